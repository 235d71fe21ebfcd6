#include "cli/args.h"

#include "cli/cli.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_ARGS = 64,
    FIRST_LONG = 256, /* what getopt_long returns for row 0: past every character */
    HELP_FLAG = FIRST_LONG + MAX_ARGS,
    HELP_COLUMN = 30
};

int args_fail(const arg_table *table, const char *flag, const char *format, ...)
{
    char message[1024];
    const int n = snprintf(message, sizeof message, "nsa %s: %s ", table->command, flag);
    va_list ap;
    va_start(ap, format);
    if (n > 0 && (size_t)n < sizeof message)
        vsnprintf(message + n, sizeof message - (size_t)n, format, ap);
    va_end(ap);
    cli_one_line(message);
    fprintf(stderr, "%s\n", message);
    return CLI_USAGE;
}

/* What a flag takes, in words: "an integer from 1 to 100". */
static void describe(const arg *a, char *out, size_t size)
{
    switch (a->kind) {
    case ARG_I32:
    case ARG_I64: snprintf(out, size, "an integer from %.0f to %.0f", a->min, a->max); break;
    case ARG_INTS:
        snprintf(out, size, "at most %d integers from %.0f to %.0f, separated by commas", ARGS_MAX_LIST, a->min,
                 a->max);
        break;
    case ARG_FLOAT: snprintf(out, size, "a number from %g to %g", a->min, a->max); break;
    case ARG_CHOICE: snprintf(out, size, "one of %s", a->what); break;
    case ARG_STRINGS: snprintf(out, size, "at most %d words", ARGS_MAX_LIST); break;
    case ARG_STRING:
    case ARG_TEXT:
    case ARG_FLAG: snprintf(out, size, "not empty"); break;
    }
}

/* A number starts with a digit, a sign or a point: strtol and strtod would skip spaces and read "inf" and "nan". */
static bool starts_number(const char *text)
{
    return isdigit((unsigned char)text[0]) || text[0] == '-' || text[0] == '+' || text[0] == '.';
}

static bool parse_int(const arg *a, const char *text, char until, const char **end, int64_t *x)
{
    char *stop;
    errno = 0;
    const long long value = strtoll(text, &stop, 10);
    *end = stop;
    *x = value;
    return starts_number(text) && stop != text && errno == 0 && (*stop == '\0' || *stop == until) &&
           (double)value >= a->min && (double)value <= a->max;
}

static bool parse_ints(const arg *a, const char *text)
{
    int_list *list = a->value;
    list->n = 0;
    for (const char *end = text;; text = end + 1) {
        if (list->n == ARGS_MAX_LIST || !parse_int(a, text, ',', &end, &list->item[list->n]))
            return false;
        list->n++;
        if (*end == '\0')
            return true;
    }
}

static bool parse_float(const arg *a, const char *text)
{
    char *end;
    const double value = strtod(text, &end);
    if (!starts_number(text) || end == text || *end != '\0' || !isfinite(value) || value < a->min || value > a->max)
        return false;
    *(double *)a->value = value;
    return true;
}

static bool parse_choice(const arg *a, const char *text)
{
    const size_t length = strlen(text);
    int32_t index = 0;
    for (const char *word = a->what; *word != '\0'; index++) {
        const size_t n = strcspn(word, "|");
        if (n == length && strncmp(word, text, n) == 0) {
            *(int32_t *)a->value = index;
            return true;
        }
        word += n + (word[n] == '|');
    }
    return false;
}

static bool parse_value(const arg *a, const char *text)
{
    const char *end;
    int64_t x = 0;
    switch (a->kind) {
    case ARG_I32:
        if (!parse_int(a, text, '\0', &end, &x))
            return false;
        *(int32_t *)a->value = (int32_t)x;
        return true;
    case ARG_I64: return parse_int(a, text, '\0', &end, a->value);
    case ARG_INTS: return parse_ints(a, text);
    case ARG_FLOAT: return parse_float(a, text);
    case ARG_CHOICE: return parse_choice(a, text);
    case ARG_STRING:
    case ARG_TEXT: *(const char **)a->value = text; return a->kind == ARG_TEXT || *text != '\0';
    case ARG_STRINGS: {
        string_list *list = a->value;
        if (list->n == ARGS_MAX_LIST || *text == '\0')
            return false;
        list->item[list->n++] = text;
        return true;
    }
    case ARG_FLAG: *(bool *)a->value = true; return true;
    }
    return false;
}

static int bad_value(const arg_table *table, const arg *a, const char *text)
{
    char flag[64], allowed[256];
    snprintf(flag, sizeof flag, "--%s", a->name);
    describe(a, allowed, sizeof allowed);
    return args_fail(table, flag, "is '%.200s', must be %s", text, allowed);
}

static void print_help_text(const arg *a)
{
    for (const char *line = a->help; *line != '\0';) {
        const size_t n = strcspn(line, "\n");
        printf("%.*s", (int)n, line);
        line += n;
        if (*line == '\n') {
            line++;
            printf("\n%*s", HELP_COLUMN, "");
        }
    }
    if (a->required)
        printf(" (required)");
    else if (a->initial != NULL)
        printf(" (default: %s)", a->initial);
    putchar('\n');
}

static void print_help(const arg_table *table)
{
    printf("usage: nsa %s", table->command);
    for (int i = 0; i < table->n_args; i++) {
        const arg *a = &table->args[i];
        if (a->required)
            printf(" --%s %s%s", a->name, a->what, a->kind == ARG_STRINGS ? "..." : "");
    }
    printf(" [--flag value ...]\n\n%s\n\n", table->summary);
    for (int i = 0; i < table->n_args; i++) {
        const arg *a = &table->args[i];
        char head[96];
        snprintf(head, sizeof head, "--%s %s%s", a->name, a->what, a->kind == ARG_STRINGS ? "..." : "");
        printf("  %-*s", HELP_COLUMN - 2, head);
        if (strlen(head) > HELP_COLUMN - 3)
            printf("\n%*s", HELP_COLUMN, "");
        print_help_text(a);
    }
    printf("  %-*sthis text\n", HELP_COLUMN - 2, "--help");
}

static bool set_defaults(const arg_table *table)
{
    for (int i = 0; i < table->n_args; i++) {
        const arg *a = &table->args[i];
        if (a->kind == ARG_STRINGS)
            ((string_list *)a->value)->n = 0;
        if (a->kind == ARG_FLAG)
            *(bool *)a->value = false;
        else if (a->initial != NULL && !parse_value(a, a->initial))
            return false;
    }
    return true;
}

/* getopt_long refused the word. */
static int bad_flag(const arg_table *table, const char *word, int c)
{
    char flag[128];
    snprintf(flag, sizeof flag, "%.*s", (int)strcspn(word, "="), word);
    if (c == ':')
        return args_fail(table, flag, "needs a value");
    if (optopt >= FIRST_LONG)
        return args_fail(table, flag, "takes no value");
    return args_fail(table, flag, "is not a flag of this command, nsa %s --help lists them", table->command);
}

static void build_options(const arg_table *table, struct option *options)
{
    for (int i = 0; i < table->n_args; i++) {
        const arg *a = &table->args[i];
        options[i] =
            (struct option){a->name, a->kind == ARG_FLAG ? no_argument : required_argument, NULL, FIRST_LONG + i};
        if (a->given != NULL)
            *a->given = false;
    }
    options[table->n_args] = (struct option){"help", no_argument, NULL, HELP_FLAG};
}

/* The value in optarg, and for ARG_STRINGS the words after it. Returns the one that is not allowed, or NULL. */
static const char *take_values(const arg *a, int argc, char **argv)
{
    const char *text = optarg != NULL ? optarg : "";
    if (!parse_value(a, text))
        return text;
    while (a->kind == ARG_STRINGS && optind < argc && argv[optind][0] != '-') {
        if (!parse_value(a, argv[optind]))
            return argv[optind];
        optind++;
    }
    return NULL;
}

static int check_complete(const arg_table *table, const bool *given, const char *rest)
{
    if (rest != NULL) {
        char word[128];
        snprintf(word, sizeof word, "'%.100s'", rest);
        return args_fail(table, word, "is not expected here, nsa %s --help lists the flags", table->command);
    }
    for (int i = 0; i < table->n_args; i++) {
        if (table->args[i].required && !given[i]) {
            char flag[64];
            snprintf(flag, sizeof flag, "--%s", table->args[i].name);
            return args_fail(table, flag, "is required");
        }
    }
    return CLI_OK;
}

bool args_parse(const arg_table *table, int argc, char **argv, int *exit_code)
{
    struct option options[MAX_ARGS + 2] = {0};
    bool given[MAX_ARGS] = {false};
    if (table->n_args > MAX_ARGS || !set_defaults(table)) {
        *exit_code = cli_fail("the flags of %s are misdeclared", table->command);
        return false;
    }
    build_options(table, options);
    optind = 0; /* glibc: start afresh */
    opterr = 0;
    for (;;) {
        const int at = optind > 0 ? optind : 1;
        const int c = getopt_long(argc, argv, "+:h", options, NULL);
        if (c == -1)
            break;
        if (c == 'h' || c == HELP_FLAG) {
            print_help(table);
            *exit_code = CLI_OK;
            return false;
        }
        if (c == ':' || c == '?') {
            *exit_code = bad_flag(table, argv[at], c);
            return false;
        }
        const arg *a = &table->args[c - FIRST_LONG];
        const char *refused = take_values(a, argc, argv);
        if (refused != NULL) {
            *exit_code = bad_value(table, a, refused);
            return false;
        }
        given[c - FIRST_LONG] = true;
        if (a->given != NULL)
            *a->given = true;
    }
    *exit_code = check_complete(table, given, optind < argc ? argv[optind] : NULL);
    return *exit_code == CLI_OK;
}
