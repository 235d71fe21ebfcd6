/* Training text: files as they are, byte by byte. The last tenth of each file is held out for validation. */
#ifndef LM_CORPUS_H
#define LM_CORPUS_H

#include "lm/config.h"

typedef struct corpus_file {
    uint8_t *bytes;
    int64_t n;
    int64_t n_train; /* bytes before the held-out tenth */
} corpus_file;

typedef struct corpus {
    corpus_file *files;
    int32_t n_files;
    int64_t n_bytes;
    uint64_t hash; /* of all files in their order: a resumed run must see the same text */
} corpus;

enum { HELD_OUT_FRACTION = 10 };

/* Reads all files. A file that is missing, empty, a directory or holds NUL bytes is an error that names it. */
bool corpus_load(corpus *t, const char *const *paths, int32_t n_paths);
void corpus_free(corpus *t);

/* A part of the text cut into windows of n tokens that do not overlap, each with the byte after it. */
typedef enum corpus_part { CORPUS_HELD_OUT, CORPUS_ALL } corpus_part;

int64_t corpus_n_windows(const corpus *t, corpus_part part, int32_t n);
const uint8_t *corpus_window(const corpus *t, corpus_part part, int32_t n, int64_t window);

/* Is there a training sequence of n tokens, and a held-out one? */
bool corpus_check(const corpus *t, int32_t n);

/* Training sequence number `row` of a step: n tokens and the byte after them, [n + 1]. A function of the seed, the step
 * and the row alone. A share of the sequences holds needles (lm/needle.h). */
void corpus_sample(const corpus *t, const train_config *cfg, int64_t step, int32_t row, int32_t n, uint8_t *bytes);

#endif
