/*
 * Gate: o[t][h] = sum over branches c, in the order cmp, slc, win, of gate[t][h][c] * o_branch[c][t][h].
 * Backward: dgate[t][h][c] = d_o . o_branch[c],   do_branch[c] = gate[c] * d_o.
 * A gate with stride_head 0 is one per token; dgate is per head all the same, its sum over heads is the caller's.
 */
#ifndef NSA_OPS_GATE_H
#define NSA_OPS_GATE_H

#include "core/arena.h"
#include "core/ctx.h"
#include "core/ref.h"

typedef struct gate_problem {
    const nsa_ctx *ctx;
    const nsa_config *cfg;
    seqs seqs; /* only the query side is read */
    nsa_tensor gate;
    nsa_tensor o_branch[NSA_N_BRANCHES];
    nsa_tensor o;

    /* backward */
    nsa_tensor d_o;
    nsa_tensor dgate;
    nsa_tensor do_branch[NSA_N_BRANCHES]; /* data may be NULL: not wanted */

    ref_rounding rounding; /* of the oracle; set by tests only */
} gate_problem;

typedef struct gate_impl {
    const char *name;
    bool (*supports)(const gate_problem *p);
    op_fn *forward, *backward; /* of a gate_problem */
} gate_impl;

extern const gate_impl gate_impls[]; /* fastest first, the oracle last; ends with name = NULL */

const gate_impl *gate_choose(const gate_problem *p);

#endif
