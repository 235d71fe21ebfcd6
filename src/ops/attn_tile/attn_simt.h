/*
 * The three branches of attention on CUDA without tensor cores: any shape, readable, the fallback and the cross-check
 * of the fast kernels. Equations: ops/attn_tile/attn.h.
 */
#ifndef NSA_OPS_ATTN_SIMT_H
#define NSA_OPS_ATTN_SIMT_H

#include "cuda/simt.h"

typedef struct attn_simt {
    simt_config cfg;
    int32_t branch;
    simt_seqs seqs;
    nsa_tensor q, k, v, slc_idx, o, lse;

    nsa_tensor d_o, gate, dq, dk, dv; /* gate.data may be NULL */
    bool add_dq, add_dk, add_dv;
    float *delta; /* [total_q][n_heads_q] */
} attn_simt;

NSA_LAUNCH launch_attn_forward(const attn_simt *p, nsa_stream stream);
NSA_LAUNCH launch_attn_dq(const attn_simt *p, nsa_stream stream); /* and delta */
NSA_LAUNCH launch_attn_dkdv(const attn_simt *p, nsa_stream stream);

#endif
