/* What a model knows of a text, and whether it finds a needle in one. */
#ifndef LM_EVALUATE_H
#define LM_EVALUATE_H

#include "lm/corpus.h"
#include "lm/run.h"

/* Mean loss in nats per byte over windows of the model's context; at most max_tokens tokens, spread evenly (0: all).
 * *tokens: how many were read. */
bool evaluate_loss(const model *m, const corpus *data, corpus_part part, int64_t max_tokens, double *loss,
                   int64_t *tokens);

enum { NEEDLE_MAX_LENGTHS = 64, NEEDLE_MAX_DEPTHS = 64 };

/* For each length (tokens of the text) and depth (0: at the start, 1: right before the question) `trials` texts with
 * names and numbers of their own; the texts are the same for all depths. */
typedef struct needle_test {
    int32_t n_lengths, n_depths, trials;
    int32_t length[NEEDLE_MAX_LENGTHS];
    double depth[NEEDLE_MAX_DEPTHS];
    uint64_t seed;
} needle_test;

typedef struct needle_cell {
    double saved_nats; /* loss on the answer without the fact in the text, less the loss with it; mean over trials */
    double accuracy;   /* share of the answers that were the likeliest byte */
} needle_cell;

/* cells [n_lengths][n_depths]. The hay is the held-out part of the text. */
bool needle_evaluate(const model *m, const corpus *data, const needle_test *test, needle_cell *cells);

#endif
