/*
 * Any command line, words ended by NUL as in /proc/PID/cmdline. nsa's own main takes it; only files and measurements
 * are not there (the linker puts the __wrap_ functions below in their places). Whatever it is, nsa returns one of its
 * exit codes and after a failure has said why in one line.
 */
#include "fuzz/fuzz.h"

#include "cli/bench.h"
#include "cli/cli.h"
#include "lm/checkpoint.h"
#include "lm/corpus.h"
#include "lm/error.h"

#include <errno.h>
#include <omp.h>
#include <stdio.h>
#include <string.h>

int nsa_main(int argc, char **argv); /* cli/main.c */

bool __wrap_corpus_load(corpus *t, const char *const *paths, int32_t n_paths);
bool __wrap_checkpoint_load_model(const char *path, model **m, checkpoint_info *info);
FILE *__real_fopen(const char *path, const char *mode);
FILE *__wrap_fopen(const char *path, const char *mode);
int __wrap_cli_write_file(const char *path, const void *data, size_t bytes);
double __wrap_bench_peak_gflops(const char *isa, nsa_dtype dtype, int32_t n_threads);
bench_case *__wrap_bench_case_create(const nsa_ctx *ctx, const bench_device *device, const bench_shape *shape);

bool __wrap_corpus_load(corpus *t, const char *const *paths, int32_t n_paths)
{
    FUZZ_CHECK(n_paths > 0);
    *t = (corpus){0};
    return lm_fail("%s: no files here", paths[n_paths - 1]);
}

bool __wrap_checkpoint_load_model(const char *path, model **m, checkpoint_info *info)
{
    (void)info;
    *m = NULL;
    return lm_fail("%s: no files here", path);
}

static bool in_main; /* libFuzzer itself opens files, too */

FILE *__wrap_fopen(const char *path, const char *mode)
{
    if (!in_main)
        return __real_fopen(path, mode);
    errno = ENOENT;
    return NULL;
}

int __wrap_cli_write_file(const char *path, const void *data, size_t bytes)
{
    (void)data, (void)bytes;
    return cli_fail("%s: no files here", path);
}

double __wrap_bench_peak_gflops(const char *isa, nsa_dtype dtype, int32_t n_threads)
{
    FUZZ_CHECK(strlen(isa) > 0 && (dtype == NSA_F32 || dtype == NSA_BF16) && n_threads > 0);
    return 1.0;
}

bench_case *__wrap_bench_case_create(const nsa_ctx *ctx, const bench_device *device, const bench_shape *shape)
{
    (void)device;
    size_t bytes = 0;
    const nsa_cache cache = {.page_size = shape->cfg.slc_block, .dtype = shape->dtype};
    FUZZ_CHECK(nsa_cache_page_bytes(ctx, &shape->cfg, &cache, &bytes) == NSA_OK);
    FUZZ_CHECK((int64_t)shape->batch * shape->seqlen <= INT32_MAX && shape->seqlen > 0);
    return NULL;
}

enum { MAX_WORDS = 200, MAX_BYTES = 4096 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char text[MAX_BYTES + 1];
    static char name[] = "nsa";
    char *argv[MAX_WORDS + 2] = {name};
    int argc = 1;
    if (size == 0 || size > MAX_BYTES)
        return 0;
    memcpy(text, data, size);
    text[size] = '\0';
    for (char *word = text; word < text + size && argc <= MAX_WORDS; word += strlen(word) + 1)
        argv[argc++] = word;

    omp_set_num_threads(1);
    fuzz_capture_begin();
    in_main = true;
    const int exit_code = nsa_main(argc, argv);
    in_main = false;
    const char *said = fuzz_capture_end();
    FUZZ_CHECK(exit_code == CLI_OK || exit_code == CLI_FAILED || exit_code == CLI_USAGE);
    FUZZ_CHECK(exit_code == CLI_OK || strncmp(said, "nsa", 3) == 0 || strstr(said, "\nnsa: ") != NULL);
    if (exit_code == CLI_USAGE)
        FUZZ_CHECK(strchr(said, '\n') == said + strlen(said) - 1);
    return 0;
}
