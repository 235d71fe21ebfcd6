/*
 * Generation over a KV cache, to be compared with one nsa_forward over the whole: sequence s appends tokens
 * held[s] .. of the case, by any chunks, and the outputs are those of the whole bit for bit.
 */
#ifndef NSA_TESTLIB_GENERATION_H
#define NSA_TESTLIB_GENERATION_H

#include "testlib/nsa_case.h"

enum { GENERATION_MAX_SEQS = 3 };

typedef struct generation {
    const nsa_ctx *ctx;
    const nsa_case *whole; /* after run_forward */
    nsa_cache cache;
    size_t page_bytes, state_bytes;
    void *states[GENERATION_MAX_SEQS];
    int64_t held[GENERATION_MAX_SEQS], longest[GENERATION_MAX_SEQS];
    int32_t *page_table, pages_per_seq;
    layout as; /* of the next call's tensors; those that broadcast in the whole do so here */

    /* The last call's. */
    nsa_batch added;
    test_tensor o, slc_idx;
} generation;

/* Empty sequences and spare_pages more pages than they will need, in shuffled order. */
void generation_start(generation *g, const nsa_ctx *ctx, const nsa_case *whole, int32_t page_size, int32_t max_draft,
                      int32_t spare_pages, rng *r);

/* Appends n_new[s] tokens and compares the outputs. */
void generation_step(generation *g, const int32_t n_new[], bool decode);

/* Drops to any number of tokens: an error if it is one that the header does not allow. */
void generation_drop(generation *g, int32_t s, int64_t n_tokens);

#endif
