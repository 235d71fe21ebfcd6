/* Selection on CUDA. Equations: ops/select/select.h. */
#ifndef NSA_OPS_SELECT_SIMT_H
#define NSA_OPS_SELECT_SIMT_H

#include "cuda/simt.h"

typedef struct select_simt_args {
    simt_config cfg;
    simt_seqs seqs;
    nsa_tensor q, k_cmp, lse, slc_idx;
    int64_t n_warps;      /* at work together; each takes a row at a time */
    int64_t n_cmp, n_slc; /* blocks of the longest sequence */
    float *sum;           /* [n_warps][n_cmp] P */
    float *score;         /* [n_warps][n_slc] NaN is -1 */
} select_simt_args;

NSA_LAUNCH launch_select(const select_simt_args *p, nsa_stream stream);

#endif
