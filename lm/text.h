/* Training text: files as they are, byte by byte. The last tenth of each file is held out for validation. */
#ifndef LM_TEXT_H
#define LM_TEXT_H

#include "lm/config.h"

typedef struct text_file {
    uint8_t *bytes;
    int64_t n;
    int64_t n_train; /* bytes before the held-out tenth */
} text_file;

typedef struct text {
    text_file *files;
    int32_t n_files;
    int64_t n_bytes;
    uint64_t hash; /* of all files in their order: a resumed run must see the same text */
} text;

enum { HELD_OUT_FRACTION = 10 };

/* Reads all files. A file that is missing, empty, a directory or holds NUL bytes is an error that names it. */
bool text_load(text *t, const char *const *paths, int32_t n_paths);
void text_free(text *t);

/* A part of the text cut into windows of n tokens that do not overlap, each with the byte after it. */
typedef enum text_part { TEXT_HELD_OUT, TEXT_ALL } text_part;

int64_t text_n_windows(const text *t, text_part part, int32_t n);
const uint8_t *text_window(const text *t, text_part part, int32_t n, int64_t window);

/* Is there a training sequence of n tokens, and a held-out one? */
bool text_check(const text *t, int32_t n);

/* Training sequence number `row` of a step: n tokens and the byte after them, [n + 1]. A function of the seed, the step
 * and the row alone. A share of the sequences holds needles (lm/needle.h). */
void text_sample(const text *t, const train_config *cfg, int64_t step, int32_t row, int32_t n, uint8_t *bytes);

#endif
