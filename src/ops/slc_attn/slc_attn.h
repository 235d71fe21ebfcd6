/*
 * Attention over selected blocks: position t attends, for each block b of slc_idx[t][kv_head], to the keys
 *
 *     b*slc_block .. min(t, b*slc_block + slc_block - 1)
 *
 * slc_idx may be the caller's own: entries stand in any order; those below 0 or past the last block,
 * (T_k - 1)/slc_block, are skipped wherever they stand, and so is a second entry for a block. A row with no key at or
 * before t is empty (o = 0, lse = -inf). All heads of a group share their kv head's set. Equations, shapes of q, o, lse
 * and gradients: ops/attn_tile/attn.h.
 *
 *     slc_attn_impls      file                     takes
 *     tile                slc_attn.c               f32, bf16, f16
 *     sm90-blocks         slc_attn_sm90.h          small groups, d 64 and 128, blocks of at most 64 keys; else as sm90
 *     sm90                                         bf16 on Hopper, d 64, 128, 192/128, blocks of whole 16 keys
 *     sm90-forward                                 d 256 too; backward by simt's
 *     simt                attn_tile/attn_simt.cu   f32, bf16, f16 on CUDA
 *     ref                 slc_attn_ref.c           everything; double accumulators
 */
#ifndef NSA_OPS_SLC_ATTN_H
#define NSA_OPS_SLC_ATTN_H

#include "ops/attn_tile/attn.h"

op_fn slc_attn_ref_forward, slc_attn_ref_backward;

bool slc_attn_fwd_sm90_supports(const attn_problem *p);
bool slc_attn_bwd_sm90_supports(const attn_problem *p);
bool slc_attn_sm90_supports(const attn_problem *p); /* both of them; a problem of forward has no d_o */
bool slc_attn_fwd_blocks_sm90_supports(const attn_problem *p);
bool slc_attn_blocks_sm90_supports(const attn_problem *p); /* and is faster by it */
op_fn slc_attn_fwd_sm90, slc_attn_fwd_blocks_sm90, slc_attn_bwd_sm90;

#endif
