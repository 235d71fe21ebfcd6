/*
 * Attention over compressed blocks: position t attends to block i iff the block's last token is at or before t,
 *
 *     i*cmp_stride + cmp_block - 1 <= t
 *
 * so to the first n_cmp_visible(cfg, t) rows of k_cmp and v_cmp; for t < cmp_block - 1 to none (o = 0, lse = -inf).
 * Equations, shapes of q, o, lse and the gradients: ops/attn_tile/attn.h. k_cmp, v_cmp and their gradients have
 * nsa_n_cmp(cfg, T_k) rows per sequence; packed, they start at row cu_seqlens_k[s]/cmp_stride.
 *
 *     cmp_attn_impls      file                     takes
 *     tile                cmp_attn.c               f32, bf16, f16
 *     sm90                attn_tile/attn_sm90.h    bf16 on Hopper, some d
 *     simt                attn_tile/attn_simt.cu   f32, bf16, f16 on CUDA
 *     ref                 cmp_attn_ref.c           everything; double accumulators
 */
#ifndef NSA_OPS_CMP_ATTN_H
#define NSA_OPS_CMP_ATTN_H

#include "ops/attn_tile/attn.h"

op_fn cmp_attn_ref_forward, cmp_attn_ref_backward;

#endif
