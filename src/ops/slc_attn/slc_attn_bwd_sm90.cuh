/* What the kernels of slc_attn's backward for Hopper share. */
#ifndef NSA_OPS_SLC_ATTN_BWD_SM90_CUH
#define NSA_OPS_SLC_ATTN_BWD_SM90_CUH

#include "cuda/sm90.cuh"
#include "ops/slc_attn/slc_attn_bwd_sm90.h"
#include "ops/slc_attn/slc_attn_lists_sm90.cuh"

/* Of a gradient. */
__device__ inline void put(const nsa_tensor &t, int64_t at, float x, bool add)
{
    store(t, at, add ? load(t, at) + x : x);
}

/* An addition that the L2 cache does by itself. A launch adds to an element once at most: there is no order. */
__device__ inline void add_pair(float *p, float2 x)
{
    asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(p), "f"(x.x), "f"(x.y) : "memory");
}

/* Pairs of neighbours, the first pair at `at`, the others each 8 elements further. */
template <int N> __device__ inline void put_pairs(const nsa_tensor &t, int64_t at, const float2 (&x)[N], bool add)
{
    float *f32 = (float *)t.data + at;
    uint32_t *halves = (uint32_t *)((bf16 *)t.data + at);
    if (t.dtype == NSA_F32 && (uintptr_t)f32 % sizeof(float2) == 0) {
#pragma unroll
        for (int i = 0; i < N; i++)
            if (add)
                add_pair(f32 + 8 * i, x[i]);
            else
                *(float2 *)(f32 + 8 * i) = x[i];
    } else if (t.dtype == NSA_BF16 && !add && (uintptr_t)halves % sizeof *halves == 0) {
#pragma unroll
        for (int i = 0; i < N; i++)
            halves[4 * i] = pack2(x[i].x, x[i].y);
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) {
            put(t, at + 8 * i, x[i].x, add);
            put(t, at + 8 * i + 1, x[i].y, add);
        }
    }
}

__device__ inline slc_unit unit_of(int unit_heads)
{
    const slc_unit x = {unit_heads < 8 ? (unit_heads + 1) / 2 : 4, unit_heads > 8 ? 4 : 2};
    return x;
}

/* Where a unit's lane of a warp has what it keeps of 16 keys, in halfwords; keys16: which 16. */
__device__ inline int unit_lane(int unit_heads, int keys16, int key8)
{
    const slc_unit u = unit_of(unit_heads);
    return (keys16 * 8 + key8) * (unit_heads == 1 ? 2 : u.head_pairs * u.matrices * 2);
}

#endif
