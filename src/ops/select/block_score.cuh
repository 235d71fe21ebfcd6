/* Equation 9 for the GPU's ways of selecting. */
#ifndef NSA_OPS_BLOCK_SCORE_CUH
#define NSA_OPS_BLOCK_SCORE_CUH

#include "nsa.h"

/* The score of block j, a weighted sum over the compressed blocks that share tokens with it: sum [n] over the heads.
 * INT holds every index. */
template <class INT> __device__ float block_score(const nsa_config &c, const float *sum, INT n, INT j)
{
    const INT per_slc = c.slc_block / c.cmp_stride, per_cmp = c.cmp_block / c.cmp_stride;
    const INT n_weights = per_slc + per_cmp - 1;
    float score = 0.0F;
    for (INT e = 0; e < n_weights; e++) {
        const INT i = per_slc * j + e - (per_cmp - 1), shared = e + 1 < n_weights - e ? e + 1 : n_weights - e;
        const float weight = (float)(shared < per_cmp ? shared : per_cmp);
        if (i >= 0 && i < n)
            score += weight * sum[i];
    }
    return score;
}

#endif
