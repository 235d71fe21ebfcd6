/* The command from end to end: trains a tiny model, is killed, resumes, generates, measures, draws; and every mistake
 * is answered by one line that names the flag or the file, and an exit code. */
#include "cli/cli.h"

#include <cjson/cJSON.h>

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

enum { MAX_OUTPUT = 1 << 16 };

#define TINY                                                                                                           \
    "--context 128 --layers 2 --d-model 32 --heads 4 --kv-heads 2 --head-dim 8 --d-ff 48 --gate-hidden 8 "             \
    "--phi-hidden 16 --win 16 --slc-topk 4 --batch 2 --warmup 2 --threads 2 "

static char folder[] = "/tmp/nsa_command_XXXXXX";
static char out_text[MAX_OUTPUT], err_text[MAX_OUTPUT];
static size_t out_bytes; /* a model may well print a NUL */

static size_t read_text(const char *path, char *text)
{
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    const size_t bytes = fread(text, 1, MAX_OUTPUT - 1, file);
    text[bytes] = '\0';
    fclose(file);
    return bytes;
}

static void write_text(const char *path, const void *data, size_t bytes)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, bytes, file), bytes);
    assert_int_equal(fclose(file), 0);
}

static int shell(const char *command)
{
    const int status = system(command);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

/* Exit code of nsa with these words, in the test's folder; what it wrote is in out_text and err_text. */
static int nsa(const char *words)
{
    char command[2048];
    snprintf(command, sizeof command, "\"$NSA_COMMAND\" %s >out.txt 2>err.txt", words);
    const int exit_code = shell(command);
    out_bytes = read_text("out.txt", out_text);
    read_text("err.txt", err_text);
    return exit_code;
}

static void nsa_succeeds(const char *words)
{
    const int exit_code = nsa(words);
    if (exit_code != CLI_OK)
        fail_msg("nsa %s: exits %d and says '%s'", words, exit_code, err_text);
}

static bool exists(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && info.st_size > 0;
}

static void assert_png(const char *path)
{
    unsigned char head[8] = {0};
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fread(head, 1, sizeof head, file), sizeof head);
    fclose(file);
    assert_memory_equal(head, "\x89PNG\r\n\x1a\n", sizeof head);
}

/* Text of sentences with some sense in them, and files of every wrong kind. */
static int set_up(void **state)
{
    (void)state;
    static const char *const words[] = {"the",   "king", "went", "unto",   "his",
                                        "house", "and",  "said", "behold", "water"};
    if (getenv("NSA_COMMAND") == NULL || mkdtemp(folder) == NULL || chdir(folder) != 0)
        return -1;
    FILE *file = fopen("text.txt", "w");
    if (file == NULL)
        return -1;
    uint32_t random = 1;
    for (int i = 0; i < 6000; i++) {
        random = random * 1664525U + 1013904223U;
        fprintf(file, "%s%s", words[(random >> 16) % 10], i % 9 == 8 ? ".\n" : " ");
    }
    fclose(file);
    write_text("empty.txt", "", 0);
    write_text("binary.txt", "some\0thing", 10);
    return mkdir("folder", 0755);
}

static int tear_down(void **state)
{
    (void)state;
    char command[64];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return chdir("/") == 0 ? shell(command) : -1;
}

/* ---- What works -------------------------------------------------------------------------------------------------- */

static void test_train(void **state)
{
    (void)state;
    nsa_succeeds("train --data text.txt --out model --log model.jsonl --steps 8 --eval-every 4 --save-every 4 " TINY);
    assert_true(exists("model/step-8/model.safetensors"));
    assert_true(exists("model/step-8/config.json"));
    read_text("model.jsonl", out_text);
    int lines = 0;
    for (char *line = strtok(out_text, "\n"); line != NULL; line = strtok(NULL, "\n")) {
        cJSON *json = cJSON_Parse(line);
        assert_int_equal(cJSON_GetObjectItem(json, "step")->valueint, ++lines);
        assert_true(cJSON_GetObjectItem(json, "loss")->valuedouble > 1);
        assert_true((cJSON_GetObjectItem(json, "val_loss") != NULL) == (lines % 4 == 0));
        cJSON_Delete(json);
    }
    assert_int_equal(lines, 8);
    nsa_succeeds(
        "train --data text.txt --out dense --log dense.jsonl --steps 8 --eval-every 4 --attention dense " TINY);
}

/* Starts a long training and ends it by a signal once it has saved something; returns its exit code. */
static int interrupted_training(int signal_number)
{
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        execl("/bin/sh", "sh", "-c",
              "exec \"$NSA_COMMAND\" train --data text.txt --out cut --log cut.jsonl --steps 60 --save-every 10 "
              "--eval-every 30 " TINY "2>/dev/null",
              (char *)NULL);
        _exit(127);
    }
    int status = 0;
    const struct timespec pause = {0, 2000000};
    while (!exists("cut/step-10/config.json") && waitpid(child, &status, WNOHANG) == 0)
        nanosleep(&pause, NULL);
    kill(child, signal_number);
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void test_killed_and_resumed(void **state)
{
    (void)state;
    const char *const resume = "train --data text.txt --out cut --log cut.jsonl --steps 60 --resume --save-every 10 "
                               "--eval-every 30 " TINY;
    nsa_succeeds("train --data text.txt --out whole --log whole.jsonl --steps 60 --eval-every 30 " TINY);
    assert_int_equal(interrupted_training(SIGKILL), 128 + SIGKILL);
    nsa_succeeds(resume);
    static const char compare[] = "for run in whole cut; do sed 's/,\"tokens_per_s.*//' $run.jsonl >$run.losses; done; "
                                  "cmp whole.losses cut.losses && "
                                  "cmp whole/step-60/model.safetensors cut/step-60/model.safetensors";
    assert_int_equal(shell(compare), 0);

    assert_int_equal(shell("rm -r cut cut.jsonl"), 0);
    const int exit_code = interrupted_training(SIGINT);
    assert_true(exit_code == 128 + SIGINT || exit_code == 0); /* 0: it was faster than the signal */
    nsa_succeeds(resume);
    assert_int_equal(shell(compare), 0);
}

static void test_generate(void **state)
{
    (void)state;
    static char first[MAX_OUTPUT];
    nsa_succeeds("generate --model model --prompt 'the king ' --tokens 200 --seed 3");
    assert_true(strncmp(out_text, "the king ", 9) == 0);
    assert_true(out_bytes >= 209);
    memcpy(first, out_text, out_bytes);
    nsa_succeeds("generate --model model/step-8 --prompt 'the king ' --tokens 200 --seed 3 --threads 1");
    assert_memory_equal(out_text, first, out_bytes);
    nsa_succeeds("generate --model model --prompt 'the king ' --tokens 20 --temperature 0");
    nsa_succeeds("generate --model dense --prompt x --tokens 20");
}

static void test_eval(void **state)
{
    (void)state;
    nsa_succeeds("eval --model model --data text.txt --tokens 512 --needle --depths 2 --trials 2 --lengths 128,256 "
                 "--out needle.png");
    assert_png("needle.png");
    cJSON *json = cJSON_Parse(out_text);
    assert_non_null(json);
    assert_true(cJSON_GetObjectItem(json, "loss")->valuedouble > 0);
    assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItem(json, "needle")), 4);
    cJSON_Delete(json);
}

static void test_map_and_losses(void **state)
{
    (void)state;
    nsa_succeeds("map --model model --data text.txt --out map.png");
    assert_png("map.png");
    nsa_succeeds("map --model model --data text.txt --tokens 37 --out map.svg");
    nsa_succeeds("losses --log model.jsonl dense.jsonl --out losses.png --json losses.json");
    assert_png("losses.png");
    read_text("losses.json", out_text);
    cJSON *json = cJSON_Parse(out_text);
    assert_int_equal(cJSON_GetObjectItem(cJSON_GetObjectItem(json, "dense"), "steps")->valueint, 8);
    assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItem(cJSON_GetObjectItem(json, "model"), "loss_by_step")), 8);
    cJSON_Delete(json);
}

static const char *word_of(const cJSON *json, const char *key)
{
    return cJSON_GetStringValue(cJSON_GetObjectItem(json, key));
}

/* Forward, prefill and decode by NSA, by dense attention and by oneDNN, whose outputs it compares; backward by two. */
static void test_bench(void **state)
{
    (void)state;
    static const char *const keys[] = {"op",     "attention", "phi",      "device", "dtype",  "batch",
                                       "seqlen", "heads_q",   "heads_kv", "d_qk",   "d_v",    "threads",
                                       "isa",    "selection", "reps",     "ms",     "gflops", "peak_fraction",
                                       "date",   "cpu",       "version",  "commit"};
    nsa_succeeds("bench --quick --json --lengths 65,128 --heads-q 4 --heads-kv 2 --d-qk 16 --d-v 8 --batch 2 "
                 "--threads 2 --dtype bf16 --phi linear --chart bench.png");
    assert_png("bench.png");
    int lines = 0, onednn = 0, workspaces = 0;
    for (char *line = strtok(out_text, "\n"); line != NULL; line = strtok(NULL, "\n"), lines++) {
        cJSON *json = cJSON_Parse(line);
        for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
            assert_non_null(cJSON_GetObjectItem(json, keys[i]));
        assert_true(cJSON_GetObjectItem(json, "ms")->valuedouble > 0);
        assert_true(cJSON_GetObjectItem(json, "gflops")->valuedouble > 0);
        onednn += strcmp(word_of(json, "attention"), "onednn") == 0;
        workspaces += cJSON_HasObjectItem(json, "workspace_bytes");
        assert_int_equal(cJSON_HasObjectItem(json, "rotated_bytes"), strcmp(word_of(json, "op"), "decode") == 0);
        cJSON_Delete(json);
    }
    assert_int_equal(lines, 2 * (3 + 2 + 3 + 3));
    assert_int_equal(onednn, 2 * 3);
    assert_int_equal(workspaces, 2 * (2 + 2 + 2));
}

static void test_bench_lines(void **state)
{
    (void)state;
    nsa_succeeds("bench --quick --json --lengths 1536 --heads-q 2 --heads-kv 1 --d-qk 8 --d-v 8 --phi mean "
                 "--op forward backward --attention nsa --selection clustered");
    const char *const ops[] = {"forward", "backward"};
    int lines = 0;
    for (char *line = strtok(out_text, "\n"); line != NULL; line = strtok(NULL, "\n"), lines++) {
        cJSON *json = cJSON_Parse(line);
        assert_true(lines < 2);
        assert_string_equal(word_of(json, "op"), ops[lines]);
        assert_string_equal(word_of(json, "attention"), "nsa");
        assert_string_equal(word_of(json, "selection"), "clustered");
        if (lines == 0)
            assert_true(cJSON_GetObjectItem(json, "overlap")->valuedouble > 0.8);
        cJSON_Delete(json);
    }
    assert_int_equal(lines, 2);
}

static void test_plain_commands(void **state)
{
    (void)state;
    static const char *const commands[] = {"train", "generate", "eval", "map", "bench", "losses", "info"};
    nsa_succeeds("--version");
    nsa_succeeds("--help");
    nsa_succeeds("info");
    assert_non_null(strstr(out_text, "win_attn"));
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        char words[64];
        snprintf(words, sizeof words, "%s --help", commands[i]);
        nsa_succeeds(words);
        assert_non_null(strstr(out_text, "usage: nsa "));
        assert_string_equal(err_text, "");
    }
}

/* ---- What does not ----------------------------------------------------------------------------------------------- */

static void refused(const char *words, int exit_code, const char *named)
{
    const int code = nsa(words);
    const char *newline = strchr(err_text, '\n');
    if (code != exit_code || strstr(err_text, named) == NULL || newline == NULL || newline[1] != '\0')
        fail_msg("nsa %s: exits %d, not %d, and says '%s', which should name %s", words, code, exit_code, err_text,
                 named);
}

/* A chart of two machines; files that hold none. */
static void test_bench_files(void **state)
{
    (void)state;
    static const char ours[] =
        "{\"op\":\"forward\",\"attention\":\"nsa\",\"gpu\":\"NVIDIA H100\",\"dtype\":\"bf16\",\"batch\":1,"
        "\"seqlen\":1024,\"heads_q\":64,\"heads_kv\":4,\"d_qk\":128,\"d_v\":128,\"threads\":1,\"isa\":\"sm_90\","
        "\"selection\":\"random\",\"ms\":1.5}\n";
    static const char theirs[] =
        "{\"op\":\"forward\",\"attention\":\"cuDNN\",\"gpu\":\"NVIDIA H200\",\"dtype\":\"bf16\",\"batch\":1,"
        "\"seqlen\":1024,\"heads_q\":64,\"heads_kv\":4,\"d_qk\":128,\"d_v\":128,\"ms\":0.5,\"date\":\"2026-11-23\"}\n";
    write_text("ours.jsonl", ours, sizeof ours - 1);
    write_text("theirs.jsonl", theirs, sizeof theirs - 1);
    nsa_succeeds("bench --from ours.jsonl theirs.jsonl --chart files.png");
    assert_png("files.png");
    refused("bench --from ours.jsonl", CLI_USAGE, "--chart");
    refused("bench --from nothing.jsonl --chart files.png", CLI_FAILED, "nothing.jsonl");
    write_text("theirs.jsonl", "{\"op\":\"forward\"}\n", 17);
    refused("bench --from ours.jsonl theirs.jsonl --chart files.png", CLI_FAILED, "theirs.jsonl: line 1");
}

static void test_wrong_flags(void **state)
{
    (void)state;
    refused("fly", CLI_USAGE, "fly");
    refused("train --out x", CLI_USAGE, "--data");
    refused("train --data text.txt", CLI_USAGE, "--out");
    refused("train --data text.txt --out x --steps -3", CLI_USAGE, "--steps");
    refused("train --data text.txt --out x --context 99999999999999999999", CLI_USAGE, "--context");
    refused("train --data text.txt --out x --lr nan", CLI_USAGE, "--lr");
    refused("train --data text.txt --out x --attention sparse", CLI_USAGE, "--attention");
    refused("generate --model model --prompt x --tokens 1e3", CLI_USAGE, "--tokens");
    refused("generate --model model --prompt x --top-p 2", CLI_USAGE, "--top-p");
    refused("eval --model model", CLI_USAGE, "--data");
    refused("map --model model --data text.txt --out map.gif", CLI_USAGE, "--out");
    refused("bench --device mars", CLI_USAGE, "--device");
#if defined(NSA_CUDA)
    refused("bench --device cuda --threads 2", CLI_USAGE, "--threads");
#else
    refused("bench --device cuda", CLI_FAILED, "CPU only");
#endif
    refused("bench --op forward sideways", CLI_USAGE, "sideways");
    refused("bench --attention paged", CLI_USAGE, "paged");
    refused("bench --lengths 0", CLI_USAGE, "--lengths");
    refused("bench --heads-q 6 --heads-kv 4", CLI_USAGE, "--heads-kv");
    refused("bench --lengths 16777216 --batch 4096", CLI_USAGE, "--batch");
    refused("bench --lengths 16777216 --batch 100 --heads-q 1024 --d-qk 256", CLI_FAILED, "memory");
    refused("info now", CLI_USAGE, "now");
    assert_false(exists("x"));
}

static void test_wrong_files(void **state)
{
    (void)state;
    static const char *const files[] = {"missing.txt", "empty.txt", "binary.txt", "folder"};
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        char words[256];
        snprintf(words, sizeof words, "train --data text.txt %s --out x --steps 1 " TINY, files[i]);
        refused(words, CLI_FAILED, files[i]);
        snprintf(words, sizeof words, "eval --model model --data %s", files[i]);
        refused(words, CLI_FAILED, files[i]);
        snprintf(words, sizeof words, "map --model model --data %s --out x.png", files[i]);
        refused(words, CLI_FAILED, files[i]);
        snprintf(words, sizeof words, "losses --log %s", files[i]);
        refused(words, CLI_FAILED, files[i]);
    }
    refused("generate --model missing --prompt x", CLI_FAILED, "missing");
    refused("generate --model text.txt --prompt x", CLI_FAILED, "text.txt");
    refused("generate --model folder --prompt x", CLI_FAILED, "folder");
    refused("train --data text.txt --out text.txt --steps 1 " TINY, CLI_FAILED, "text.txt");
    refused("map --model dense --data text.txt --out x.png", CLI_FAILED, "dense");
    assert_false(exists("x.png"));
}

static void test_tampered_model(void **state)
{
    (void)state;
    static const char *const changes[] = {
        "truncate -s 1000 bad/model.safetensors",
        "truncate -s 4 bad/model.safetensors",
        "truncate -s +1 bad/model.safetensors",
        "printf '\\377\\377\\377\\377\\377\\377\\377\\377' | dd of=bad/model.safetensors conv=notrunc 2>dd.txt",
        "printf '{}' | dd of=bad/model.safetensors bs=1 seek=8 conv=notrunc 2>dd.txt",
        "rm bad/model.safetensors",
        "echo '{}' >bad/config.json",
        "rm bad/config.json",
    };
    for (size_t i = 0; i < sizeof changes / sizeof changes[0]; i++) {
        assert_int_equal(shell("rm -rf bad && cp -r model/step-8 bad"), 0);
        assert_int_equal(shell(changes[i]), 0);
        refused("generate --model bad --prompt x --tokens 1", CLI_FAILED, "bad");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_train),          cmocka_unit_test(test_killed_and_resumed),
        cmocka_unit_test(test_generate),       cmocka_unit_test(test_eval),
        cmocka_unit_test(test_map_and_losses), cmocka_unit_test(test_bench),
        cmocka_unit_test(test_bench_lines),    cmocka_unit_test(test_bench_files),
        cmocka_unit_test(test_plain_commands), cmocka_unit_test(test_wrong_flags),
        cmocka_unit_test(test_wrong_files),    cmocka_unit_test(test_tampered_model),
    };
    return cmocka_run_group_tests_name("command", tests, set_up, tear_down);
}
