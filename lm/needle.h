/*
 * The needle test: a sentence such as
 *
 *     The key is 7.
 *
 * stands somewhere in a text, and again at its end: can the model tell the digit there? The answer is one digit, a
 * single hop of attention, because that is what a small model learns within minutes.
 */
#ifndef LM_NEEDLE_H
#define LM_NEEDLE_H

#include <stdbool.h>
#include <stdint.h>

/* The sentence stands between line breaks; its digit is byte NEEDLE_ANSWER. */
enum { NEEDLE_LENGTH = 15, NEEDLE_ANSWER = 12 };

typedef struct needle {
    uint8_t sentence[NEEDLE_LENGTH];
} needle;

/* With a random digit. */
needle needle_draw(uint64_t seed, uint64_t stream, uint64_t index);

/* Writes [hay][needle][hay][needle] of n bytes, the hay of a test; depth in [0, 1] tells how far down the first stands;
 * without the fact there is hay instead. n must have room for two needles. Returns where the last answer stands. */
int64_t needle_hide(uint8_t *bytes, int64_t n, const uint8_t *hay, const needle *fact, double depth, bool present);

/* Training text with a needle: the same one 2 times or more, up to four fifths of the n bytes, at random places; every
 * mention after the first is a question. A text too short for two is left as it is. Early in training (progress 0)
 * there are as many as may be, which teaches to copy at all; later (up to 1) mostly few, which teaches to look far
 * back. */
void needle_mix(uint8_t *bytes, int64_t n, double progress, uint64_t seed, uint64_t stream, uint64_t index);

#endif
