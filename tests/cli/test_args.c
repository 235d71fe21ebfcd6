/* Command lines, good and bad, against a table with a flag of every kind. */
#include "cli/args.h"
#include "cli/cli.h"

#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { MAX_WORDS = 160, MAX_OUTPUT = 4096 };

typedef struct values {
    int32_t threads, attention;
    int64_t steps;
    int_list lengths;
    double lr;
    const char *out, *prompt;
    string_list data;
    bool resume, steps_given;
} values;

typedef struct outcome {
    bool go_on;
    int exit_code;
    char out[MAX_OUTPUT], err[MAX_OUTPUT];
} outcome;

static void capture(FILE *file, int fd, int saved, char *text)
{
    fflush(fd == STDOUT_FILENO ? stdout : stderr);
    dup2(saved, fd);
    close(saved);
    rewind(file);
    text[fread(text, 1, MAX_OUTPUT - 1, file)] = '\0';
    fclose(file);
}

/* Parses a line of words separated by spaces; "''" stands for an empty word. */
static outcome parse(const char *line, values *v)
{
    *v = (values){0};
    const arg args[] = {
        arg_required(arg_string("out", &v->out, "DIR", NULL, "where")),
        arg_given(arg_i64("steps", &v->steps, 1, 1e12, "100", "how many"), &v->steps_given),
        arg_i32("threads", &v->threads, 0, 64, "0", "how wide"),
        arg_ints("lengths", &v->lengths, 1, 1 << 20, "16,32", "how long"),
        arg_float("lr", &v->lr, 0, 1, "0.5", "how fast"),
        arg_choice("attention", &v->attention, "nsa|dense", "nsa", "which"),
        arg_text("prompt", &v->prompt, "TEXT", "", "what"),
        arg_strings("data", &v->data, "FILE", "whence"),
        arg_flag("resume", &v->resume, "again"),
    };
    const arg_table table = {"test", "Tests.", args, ARGS_COUNT(args)};

    static char words[2048]; /* the values point into it */
    char *argv[MAX_WORDS + 1];
    int argc = 0;
    snprintf(words, sizeof words, "test %s", line);
    for (char *word = strtok(words, " "); word != NULL; word = strtok(NULL, " ")) {
        assert_true(argc < MAX_WORDS);
        argv[argc++] = strcmp(word, "''") == 0 ? word + 2 : word;
    }
    argv[argc] = NULL;

    outcome r;
    FILE *out = tmpfile(), *err = tmpfile();
    assert_true(out != NULL && err != NULL);
    fflush(stdout);
    const int saved_out = dup(STDOUT_FILENO), saved_err = dup(STDERR_FILENO);
    dup2(fileno(out), STDOUT_FILENO);
    dup2(fileno(err), STDERR_FILENO);
    r.go_on = args_parse(&table, argc, argv, &r.exit_code);
    capture(out, STDOUT_FILENO, saved_out, r.out);
    capture(err, STDERR_FILENO, saved_err, r.err);
    return r;
}

static void test_defaults(void **state)
{
    (void)state;
    values v;
    const outcome r = parse("--out x", &v);
    assert_true(r.go_on);
    assert_int_equal(r.exit_code, CLI_OK);
    assert_string_equal(r.err, "");
    assert_string_equal(v.out, "x");
    assert_int_equal(v.steps, 100);
    assert_false(v.steps_given);
    assert_int_equal(v.threads, 0);
    assert_int_equal(v.lengths.n, 2);
    assert_int_equal(v.lengths.item[1], 32);
    assert_true(v.lr == 0.5);
    assert_int_equal(v.attention, 0);
    assert_string_equal(v.prompt, "");
    assert_int_equal(v.data.n, 0);
    assert_false(v.resume);
}

static void test_values(void **state)
{
    (void)state;
    values v;
    const outcome r =
        parse("--data a b --out=dir --steps 1000000000000 --lengths 1,2,1048576 --lr 1e-3 --attention dense "
              "--prompt --x --data c --resume --threads 64",
              &v);
    assert_true(r.go_on);
    assert_string_equal(v.out, "dir");
    assert_int_equal(v.steps, 1000000000000);
    assert_true(v.steps_given);
    assert_int_equal(v.threads, 64);
    assert_int_equal(v.lengths.n, 3);
    assert_int_equal(v.lengths.item[2], 1048576);
    assert_true(v.lr == 1e-3);
    assert_int_equal(v.attention, 1);
    assert_string_equal(v.prompt, "--x");
    assert_int_equal(v.data.n, 3);
    assert_string_equal(v.data.item[2], "c");
    assert_true(v.resume);
}

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        const char *line, *flag, *allowed;
    } cases[] = {
        {"", "--out", "required"},
        {"--out", "--out", "needs a value"},
        {"--out ''", "--out", "not empty"},
        {"--out x --steps -3", "--steps", "from 1 to 1000000000000"},
        {"--out x --steps 0", "--steps", "from 1 to 1000000000000"},
        {"--out x --steps 1000000000001", "--steps", "from 1 to 1000000000000"},
        {"--out x --steps 99999999999999999999", "--steps", "from 1 to 1000000000000"},
        {"--out x --steps 9223372036854775808", "--steps", "from 1 to 1000000000000"},
        {"--out x --steps 3x", "--steps", "an integer"},
        {"--out x --steps 3.5", "--steps", "an integer"},
        {"--out x --steps 0x10", "--steps", "an integer"},
        {"--out x --steps 1e3", "--steps", "an integer"},
        {"--out x --steps ''", "--steps", "an integer"},
        {"--out x --steps \t3", "--steps", "an integer"},
        {"--out x --threads 65", "--threads", "from 0 to 64"},
        {"--out x --threads 4294967297", "--threads", "from 0 to 64"},
        {"--out x --lengths 1,,2", "--lengths", "separated by commas"},
        {"--out x --lengths 1,2,", "--lengths", "separated by commas"},
        {"--out x --lengths ,", "--lengths", "separated by commas"},
        {"--out x --lengths 0", "--lengths", "from 1 to 1048576"},
        {"--out x --lengths 1;2", "--lengths", "separated by commas"},
        {"--out x --lr nan", "--lr", "a number from 0 to 1"},
        {"--out x --lr -nan", "--lr", "a number from 0 to 1"},
        {"--out x --lr inf", "--lr", "a number from 0 to 1"},
        {"--out x --lr +inf", "--lr", "a number from 0 to 1"},
        {"--out x --lr 1e999", "--lr", "a number from 0 to 1"},
        {"--out x --lr 1.5", "--lr", "a number from 0 to 1"},
        {"--out x --lr -0.1", "--lr", "a number from 0 to 1"},
        {"--out x --lr 0.1.2", "--lr", "a number from 0 to 1"},
        {"--out x --attention mars", "--attention", "one of nsa|dense"},
        {"--out x --attention ns", "--attention", "one of nsa|dense"},
        {"--out x --attention nsa|dense", "--attention", "one of nsa|dense"},
        {"--out x --attention ''", "--attention", "one of nsa|dense"},
        {"--out x --data", "--data", "needs a value"},
        {"--out x --data a ''", "--data", "words"},
        {"--out x --resume=1", "--resume", "takes no value"},
        {"--out x --nonsense", "--nonsense", "not a flag"},
        {"--out x --nonsense=5", "--nonsense", "not a flag"},
        {"--out x -z", "-z", "not a flag"},
        {"--out x trailing", "'trailing'", "not expected"},
        {"--out x --resume trailing", "'trailing'", "not expected"},
        {"--out x --steps 3 4", "'4'", "not expected"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        values v;
        const outcome r = parse(cases[i].line, &v);
        const char *newline = strchr(r.err, '\n');
        if (r.go_on || r.exit_code != CLI_USAGE || strstr(r.err, cases[i].flag) == NULL ||
            strstr(r.err, cases[i].allowed) == NULL || newline == NULL || newline[1] != '\0' || r.out[0] != '\0')
            fail_msg("'%s' exits %d and says '%s'", cases[i].line, r.exit_code, r.err);
    }
}

static void test_too_many_words(void **state)
{
    (void)state;
    char line[1024] = "--out x --data";
    for (int i = 0; i < ARGS_MAX_LIST; i++)
        strcat(line, " f");
    values v;
    assert_true(parse(line, &v).go_on);
    assert_int_equal(v.data.n, ARGS_MAX_LIST);
    strcat(line, " f");
    assert_int_equal(parse(line, &v).exit_code, CLI_USAGE);
}

static void test_help(void **state)
{
    (void)state;
    values v;
    const outcome r = parse("--help", &v);
    assert_false(r.go_on);
    assert_int_equal(r.exit_code, CLI_OK);
    assert_string_equal(r.err, "");
    static const char *const parts[] = {"--out DIR",        "(required)",  "--steps N",
                                        "(default: 100)",   "--data FILE", "--attention nsa|dense",
                                        "(default: 16,32)", "--resume"};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        assert_non_null(strstr(r.out, parts[i]));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),       cmocka_unit_test(test_values), cmocka_unit_test(test_refused),
        cmocka_unit_test(test_too_many_words), cmocka_unit_test(test_help),
    };
    return cmocka_run_group_tests_name("args", tests, NULL, NULL);
}
