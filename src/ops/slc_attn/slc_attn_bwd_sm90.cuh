/* What the kernels of slc_attn's backward for Hopper share. */
#ifndef NSA_OPS_SLC_ATTN_BWD_SM90_CUH
#define NSA_OPS_SLC_ATTN_BWD_SM90_CUH

#include "cuda/sm90.cuh"
#include "ops/slc_attn/slc_attn_bwd_sm90.h"

/* Of a gradient. */
__device__ inline void put(const nsa_tensor &t, int64_t at, float x, bool add)
{
    store(t, at, add ? load(t, at) + x : x);
}

#endif
