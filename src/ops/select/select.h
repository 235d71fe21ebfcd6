/*
 * Selection: which blocks of slc_block keys each (token, kv head) attends to (paper eq. 8 to 12).
 *
 *     p[h][i]  = exp(scale * q[t][h] . k_cmp[i] - lse[t][h])        over the visible blocks i; below 2^-126 it is 0
 *     P[i]     = sum over the group's heads h, ascending, of p[h][i]            (probabilities, not logits)
 *     score[j] = sum_{m < slc_block/stride} sum_{n < cmp_block/stride} P[(slc_block/stride)*j + m - n]
 *
 * p, P and score are float32. Of the candidates 0 .. cur = t/slc_block the first slc_n_init and the last slc_n_local
 * are forced; the largest scores fill up to slc_topk. Ties go to the lower block, NaN ranks below every number.
 * No [tokens][n_cmp] scores exist: a tile of tokens makes its scores and its indices before the next.
 */
#ifndef NSA_OPS_SELECT_H
#define NSA_OPS_SELECT_H

#include "core/arena.h"
#include "core/ctx.h"
#include "core/rows.h"

typedef struct select_problem {
    const nsa_ctx *ctx;
    const nsa_config *cfg;
    seqs seqs;
    nsa_tensor q;
    row_source k_cmp;
    nsa_tensor lse;
    nsa_tensor slc_idx;
} select_problem;

typedef struct select_impl {
    const char *name;
    bool (*supports)(const select_problem *p);
    op_fn *run; /* of a select_problem */
} select_impl;

extern const select_impl select_impls[]; /* fastest first, the oracle last; ends with name = NULL */

const select_impl *select_choose(const select_problem *p);

#endif
