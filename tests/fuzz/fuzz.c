#include "fuzz/fuzz.h"

#include <omp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/* libFuzzer's start; replay.c has no need of it. */
int LLVMFuzzerInitialize(int *argc, char ***argv);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    omp_set_num_threads(1);
    return setenv("CMOCKA_TEST_ABORT", "1", 1); /* a failed assertion of testlib is a crash */
}

void fuzz_fail(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    (void)vfprintf(stderr, format, args);
    va_end(args);
    (void)fputc('\n', stderr);
    abort();
}

/* ---- Decisions */

uint8_t fuzz_byte(fuzz_input *in)
{
    if (in->left == 0)
        return 0;
    in->left--;
    return *in->at++;
}

int32_t fuzz_i32(fuzz_input *in)
{
    uint32_t x = 0;
    for (int i = 0; i < 4; i++)
        x = x << 8 | fuzz_byte(in);
    return (int32_t)x;
}

int32_t fuzz_range(fuzz_input *in, int32_t lo, int32_t hi)
{
    return lo + fuzz_byte(in) % (hi - lo + 1);
}

int32_t fuzz_hostile(fuzz_input *in, int32_t lo, int32_t hi)
{
    static const int32_t edges[] = {INT32_MIN, INT32_MIN + 1, -65536, -1, 0, 65536, INT32_MAX - 1, INT32_MAX};
    const uint8_t kind = fuzz_byte(in);
    if (kind < 240)
        return lo + kind % (hi - lo + 1);
    return kind < 248 ? edges[kind - 240] : kind < 252 ? hi + 1 : fuzz_i32(in);
}

int64_t fuzz_hostile64(fuzz_input *in, int32_t lo, int32_t hi)
{
    static const int64_t edges[] = {INT64_MIN, -1, 0, INT32_MAX, (int64_t)INT32_MAX + 1, INT64_MAX / 8, INT64_MAX};
    const uint8_t kind = fuzz_byte(in);
    if (kind < 240)
        return lo + kind % (hi - lo + 1);
    if (kind < 247)
        return edges[kind - 240];
    const int64_t high = fuzz_i32(in);
    return kind < 252 ? high : high * 4294967296 + (uint32_t)fuzz_i32(in);
}

/* ---- Files and output */

const char *fuzz_file(const uint8_t *data, size_t size)
{
    static int fd = -1;
    static char path[64];
    if (fd < 0) {
        fd = memfd_create("fuzz", MFD_CLOEXEC);
        (void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    FUZZ_CHECK(ftruncate(fd, 0) == 0 && pwrite(fd, data, size, 0) == (ssize_t)size);
    return path;
}

typedef struct capture {
    FILE *saved, *memory;
    char *text;
    size_t size;
} capture;

static capture out, err;

/* glibc's stdout and stderr are variables that may be set. The sanitizers write to the file descriptors. */
static void begin(capture *c, FILE **stream)
{
    free(c->text);
    c->text = NULL;
    c->saved = *stream;
    c->memory = open_memstream(&c->text, &c->size);
    FUZZ_CHECK(c->memory != NULL);
    *stream = c->memory;
}

static void end(capture *c, FILE **stream)
{
    *stream = c->saved;
    FUZZ_CHECK(fclose(c->memory) == 0);
}

void fuzz_capture_begin(void)
{
    begin(&out, &stdout);
    begin(&err, &stderr);
}

const char *fuzz_capture_end(void)
{
    end(&out, &stdout);
    end(&err, &stderr);
    return err.text;
}
