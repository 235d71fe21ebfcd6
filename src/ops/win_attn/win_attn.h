/*
 * Attention over a sliding window: position t attends to the last win_size keys, its own counted in:
 *
 *     max(0, t - win_size + 1) .. t
 *
 * With win_size >= T_k this is dense causal attention. Rows with t < 0 are empty (o = 0, lse = -inf).
 * Equations, shapes of q, o, lse and the gradients: ops/attn_tile/attn.h. Where attn_problem.gates asks for it the
 * gated sum is made as well: by sm90 itself (d_v up to 128), by op gate after the others, with the same bits.
 *
 *     win_attn_impls      file                     takes
 *     tile                win_attn.c               f32, bf16, f16
 *     sm90                attn_tile/attn_sm90.h    bf16 on Hopper, some d
 *     simt                attn_tile/attn_simt.cu   f32, bf16, f16 on CUDA
 *     ref                 win_attn_ref.c           everything; double accumulators
 */
#ifndef NSA_OPS_WIN_ATTN_H
#define NSA_OPS_WIN_ATTN_H

#include "ops/attn_tile/attn.h"

op_fn win_attn_ref_forward, win_attn_ref_backward;

#endif
