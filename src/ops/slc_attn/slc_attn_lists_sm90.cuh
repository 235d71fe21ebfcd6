/* What the kernels that make lists and those that walk them share. */
#ifndef NSA_OPS_SLC_ATTN_LISTS_SM90_CUH
#define NSA_OPS_SLC_ATTN_LISTS_SM90_CUH

#include "cuda/simt.cuh"
#include "ops/slc_attn/slc_attn_lists_sm90.h"

/* The rows of a sequence that are of the round: first .. end - 1. */
typedef struct row_span {
    int64_t first, end;
} row_span;

__device__ inline row_span rows_of_round(const slc_round &round, const seq_range &q)
{
    const row_span x = {max64(0, round.first - q.start), min64(q.n, round.first + round.n - q.start)};
    return x;
}

#endif
