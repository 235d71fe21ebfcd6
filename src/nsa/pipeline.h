/*
 * The ops in order, over rows wherever they lie; nsa_forward runs it over tensors, the KV cache over pages and rings:
 *
 *     cmp_attn (o, lse) -> select (slc_idx) -> slc_attn (o, lse) -> win_attn (o, lse) -> gate -> o
 *
 * select is run by cmp_attn and gate by win_attn, for there are kernels that do both.
 */
#ifndef NSA_NSA_PIPELINE_H
#define NSA_NSA_PIPELINE_H

#include "core/arena.h"
#include "core/ctx.h"
#include "core/rows.h"

typedef struct pipeline {
    const nsa_ctx *ctx;
    const nsa_config *cfg;
    seqs
        seqs[NSA_N_BRANCHES]; /* the query side is the same; a branch's keys may be fewer, as long as it sees no more */
    nsa_dtype dtype;          /* of q, k, v, o */
    nsa_tensor q[NSA_N_BRANCHES];
    row_source k[NSA_N_BRANCHES], v[NSA_N_BRANCHES]; /* of NSA_CMP: the compressed rows */
    nsa_tensor gate;
    bool slc_idx_given;
    nsa_tensor slc_idx, o_branch[NSA_N_BRANCHES], lse[NSA_N_BRANCHES]; /* data NULL: not kept, made in the workspace */
    nsa_tensor o;
} pipeline;

void pipeline_run(const pipeline *p, arena *ws); /* as an op_fn: counts or runs */

#endif
