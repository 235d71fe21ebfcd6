/*
 * What the fuzz targets share. A target defines LLVMFuzzerTestOneInput and linked with libFuzzer is searched for inputs
 * that break it; linked with replay.c it runs over its corpus, an ordinary test.
 *
 * Targets that call the library read their input as a stream of decisions. Most are small numbers, so that most inputs
 * reach far; one in a while is hostile. An input that ends early goes on with zeros.
 */
#ifndef NSA_FUZZ_H
#define NSA_FUZZ_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A bug: says which and aborts. */
_Noreturn void fuzz_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

#define FUZZ_CHECK(condition)                                                                                          \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            fuzz_fail("%s:%d: %s does not hold", __FILE__, __LINE__, #condition);                                      \
    } while (0)

/* ---- Decisions */

typedef struct fuzz_input {
    const uint8_t *at;
    size_t left;
} fuzz_input;

uint8_t fuzz_byte(fuzz_input *in);
int32_t fuzz_i32(fuzz_input *in);                               /* any, from four bytes */
int32_t fuzz_range(fuzz_input *in, int32_t lo, int32_t hi);     /* lo .. hi, at most 256 values, from one byte */
int32_t fuzz_hostile(fuzz_input *in, int32_t lo, int32_t hi);   /* lo .. hi, or now and then anything */
int64_t fuzz_hostile64(fuzz_input *in, int32_t lo, int32_t hi); /* with 64 bits */

/* ---- Files and output */

/* The path of a file that holds these bytes, until the next call. */
const char *fuzz_file(const uint8_t *data, size_t size);

/* stdout and stderr go to memory from begin to end; end returns what came on stderr, until the next begin. */
void fuzz_capture_begin(void);
const char *fuzz_capture_end(void);

#endif
