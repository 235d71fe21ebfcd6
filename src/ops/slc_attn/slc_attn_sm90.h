/*
 * slc_attn on Hopper: bf16, d_qk/d_v of 64, 128, 192/128 or 256, blocks of whole 16 keys, any group. Equations:
 * ops/slc_attn/slc_attn.h.
 *
 *     forward    slc_attn_fwd_sm90.cu, token-major; slc_attn_fwd_blocks_sm90.h, block-major
 *     backward   slc_attn_bwd_sm90.h; not of 256
 */
#ifndef NSA_OPS_SLC_ATTN_SM90_H
#define NSA_OPS_SLC_ATTN_SM90_H

#include "cuda/simt.h"

enum { SLC_KEYS = 16 /* of which a block is a multiple */ };

typedef struct slc_fwd_sm90 {
    simt_config cfg;
    simt_seqs seqs;
    nsa_tensor q, k, v, slc_idx, o, lse;
} slc_fwd_sm90;

NSA_LAUNCH launch_slc_attn_fwd_sm90(const slc_fwd_sm90 *p, nsa_stream stream);

#endif
