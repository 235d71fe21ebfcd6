/*
 * The needle test: a sentence such as
 *
 *     The secret number of Esther is 4831.
 *
 * stands somewhere in a text, and again at its end: can the model tell the number there?
 */
#ifndef LM_NEEDLE_H
#define LM_NEEDLE_H

#include <stdbool.h>
#include <stdint.h>

enum { NEEDLE_DIGITS = 4, NEEDLE_MAX = 64 };

typedef struct needle {
    char sentence[NEEDLE_MAX]; /* with a line break before and after */
    int64_t length;
    int64_t answer; /* where its digits start */
} needle;

/* One of 32 names and a number. */
needle needle_draw(uint64_t seed, uint64_t stream, uint64_t index);

/* Writes [hay][needle][hay][needle] of n bytes, the hay of a test; depth in [0, 1] tells how far down the first stands;
 * without the fact there is hay instead. n must have room for two needles. Returns where the last answer starts. */
int64_t needle_hide(uint8_t *bytes, int64_t n, const uint8_t *hay, const needle *fact, double depth, bool present);

/* Hides and asks a few needles in n bytes of training text, which are overwritten where they stand. A text too short
 * for them is left as it is. */
void needle_mix(uint8_t *bytes, int64_t n, uint64_t seed, uint64_t stream, uint64_t index);

#endif
