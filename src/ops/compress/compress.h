/*
 * Compression: y[i] = phi(x[i*cmp_stride .. i*cmp_stride + cmp_block - 1]) for every whole block i (paper eq. 7).
 *
 *     mean           y = sum_r x_r / block
 *     linear         y = flat(x + pe) w1
 *     gated_token    a_r = softmax over r of (x_r . w1 + b1_r)             y    = sum_r a_r x_r
 *     gated_channel  a_rc = softmax over r of ((x_r w1)_c + b1_rc)         y_c  = sum_r a_rc x_rc
 *     mlp            y = GELU(flat(x + pe) w1 + b1) w2 + b2                GELU(z) = z Phi(z), with erf
 *
 * Weights per kv head or shared by all. Backward: each token collects from up to block/stride blocks.
 */
#ifndef NSA_OPS_COMPRESS_H
#define NSA_OPS_COMPRESS_H

#include "core/arena.h"
#include "core/ctx.h"
#include "core/ref.h"

typedef struct compress_problem {
    const nsa_ctx *ctx;
    const nsa_config *cfg;
    seqs seqs; /* only the key side is read */
    int32_t d;
    nsa_phi phi;
    row_source x;
    nsa_tensor y; /* in backward: not used */

    /* For caches: of sequence s make the blocks from first[s] on only, and put the first of them in row y_row[s] of y
     * (stride_seq = 0). NULL: all blocks, at cu_k[s]/cmp_stride. Forward only. */
    const int32_t *first, *y_row;

    /* backward */
    nsa_tensor dy;
    nsa_tensor dx;   /* any float dtype */
    bool add_dx;
    nsa_phi dphi;

    ref_rounding rounding; /* of the oracle; set by tests only */
} compress_problem;

typedef struct compress_impl {
    const char *name;
    bool (*supports)(const compress_problem *p);
    op_fn *forward, *backward; /* of a compress_problem */
} compress_impl;

extern const compress_impl compress_impls[]; /* fastest first, the oracle last; ends with name = NULL */

const compress_impl *compress_choose(const compress_problem *p);

#endif
