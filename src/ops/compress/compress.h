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
 *
 *     compress_ref.c    the oracle
 *     compress_dense.c  linear and mlp: matrix products over tiles of blocks, no copy of overlapping blocks
 *     compress_pool.c   mean and both gated kinds: weighted sums of a block's rows
 *     compress_simt.c   all five on CUDA, with compress_{mean,dense,pool}_simt.cu
 *     compress_dense_sm90.c   linear and mlp on Hopper's tensor cores, with compress_{dense,product}_sm90.cu
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
    nsa_tensor dx; /* any float dtype */
    bool add_dx;
    nsa_phi dphi;

    ref_rounding rounding; /* of the oracle; set by tests only */
} compress_problem;

typedef struct compress_impl {
    const char *name;
    bool (*supports)(const compress_problem *p);
    op_fn *forward, *backward; /* of a compress_problem */
} compress_impl;

/* Elements of one set of parameters; 0 for a member that the kind has not. */
typedef struct phi_sizes {
    int64_t pe, w1, b1, w2, b2;
} phi_sizes;

phi_sizes compress_phi_sizes(const compress_problem *p);

static inline int32_t compress_n_sets(const compress_problem *p)
{
    return p->phi.per_head ? p->cfg->n_heads_kv : 1;
}

/* The blocks of a sequence that are made: first .. n - 1; their rows in a packed y start at y_row. */
typedef struct cmp_blocks {
    int64_t first, n, y_row;
} cmp_blocks;

static inline cmp_blocks compress_blocks(const compress_problem *p, int32_t s)
{
    const seq q = seq_at(&p->seqs, s);
    cmp_blocks b = {0, n_cmp_visible(p->cfg, q.t_k - 1), q.k0 / p->cfg->cmp_stride};
    if (p->first != NULL) {
        b.first = min_i64(p->first[s], b.n);
        b.y_row = p->y_row[s];
    }
    return b;
}

extern const compress_impl compress_impls[]; /* fastest first, the oracle last; ends with name = NULL */

const compress_impl *compress_choose(const compress_problem *p);

#endif
