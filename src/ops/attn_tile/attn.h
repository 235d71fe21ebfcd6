/*
 * What cmp_attn, slc_attn and win_attn have in common: the problem, as their drivers and oracles take it.
 *
 *     s[t][h][j] = scale * q[t][h] . k[j]        p = softmax of s over the keys j that t attends to in this branch
 *     o[t][h]    = sum_j p[j] v[j]               lse[t][h] = ln sum_j exp(s[j])
 *
 *     do' = g do    (g = gate[t][h][branch], 1 without a gate)      delta = do' . o
 *     dp = do' . v[j]    ds = p (dp - delta) scale    dq += ds k[j]    dk[j] += ds q    dv[j] += p do'
 */
#ifndef NSA_OPS_ATTN_H
#define NSA_OPS_ATTN_H

#include "core/arena.h"
#include "core/ctx.h"
#include "core/ref.h"
#include "core/rows.h"

typedef struct attn_problem {
    const nsa_ctx *ctx;
    int branch; /* which of the three, and its gate in backward */
    const nsa_config *cfg;
    seqs seqs;
    nsa_tensor q;
    row_source k, v;
    nsa_tensor slc_idx; /* slc only */
    nsa_tensor o, lse;
    bool selects;      /* cmp only: make the selection as well */
    nsa_tensor select; /* out: slc_idx, as of op select */
    /* win only, may be NULL: make the gated sum of the branches as well; then o may be absent, its data NULL */
    const struct gate_problem *gates;

    /* backward */
    nsa_tensor d_o;
    nsa_tensor gate;       /* data may be NULL */
    nsa_tensor dq, dk, dv; /* any float dtype; dk, dv are tensors like k.tensor, v.tensor, packed by the same cu */
    bool add_dq, add_dk, add_dv; /* add to what is there instead of overwriting */

    ref_rounding rounding; /* of the oracle; set by tests only */
} attn_problem;

/* The implementations of an operation, fastest first, the oracle last. Dispatch takes the first that supports the
 * problem; tests run them all. */
typedef struct attn_impl {
    const char *name;
    bool (*supports)(const attn_problem *p);
    op_fn *forward, *backward; /* of an attn_problem */
} attn_impl;

extern const attn_impl cmp_attn_impls[], slc_attn_impls[], win_attn_impls[]; /* end with name = NULL */

/* On CUDA, of every branch: attn_simt.c. */
bool attn_simt_supports(const attn_problem *p);
op_fn attn_simt_forward, attn_simt_backward;

/* On Hopper, of cmp and win: attn_sm90.h. Backward of what has no kernel there is attn_simt_backward's. */
bool attn_sm90_supports(const attn_problem *p);
bool attn_sm90_gates(const attn_problem *p); /* whether forward makes the gated sum itself */
op_fn attn_sm90_forward, attn_sm90_backward;

const attn_impl *attn_choose(const attn_impl *impls, const attn_problem *p);

#endif
