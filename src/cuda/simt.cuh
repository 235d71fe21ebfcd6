/*
 * The building blocks of the readable kernels. One warp does one item (a row of a head, mostly); items beyond the grid
 * are taken in strides of it, so that any number fits. Offsets are int64. cu_seqlens come from the caller's device
 * memory and are not trusted: seq_q and seq_k clamp them to the batch.
 */
#ifndef NSA_CUDA_SIMT_CUH
#define NSA_CUDA_SIMT_CUH

#include "cuda/simt.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

enum {
    WARP = 32,
    WARPS = 4, /* of a block */
    MAX_D = 256,
    PER_LANE = MAX_D / WARP /* channels of a row that a lane keeps: lane, lane + 32 ... */
};

typedef __nv_bfloat16 bf16;
typedef __half f16;

/* ---- Items */

static inline unsigned grid_of(int64_t n_items, int64_t per_block)
{
    const int64_t n = (n_items + per_block - 1) / per_block, most = 1 << 20;
    return (unsigned)(n < most ? n : most);
}

__device__ inline int lane_index()
{
    return (int)(threadIdx.x % WARP);
}

/* for (int64_t i = first_item(); i < n; i += item_stride()) one item for each warp. */
__device__ inline int64_t first_item()
{
    return (int64_t)blockIdx.x * WARPS + threadIdx.x / WARP;
}

__device__ inline int64_t item_stride()
{
    return (int64_t)gridDim.x * WARPS;
}

/* The same for each thread. */
__device__ inline int64_t first_element()
{
    return (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
}

__device__ inline int64_t element_stride()
{
    return (int64_t)gridDim.x * blockDim.x;
}

/* ---- Elements */

__device__ inline float to_float(float x)
{
    return x;
}

__device__ inline float to_float(bf16 x)
{
    return __bfloat162float(x);
}

__device__ inline float to_float(f16 x)
{
    return __half2float(x);
}

__device__ inline float load_as(const void *data, nsa_dtype dtype, int64_t i)
{
    switch (dtype) {
    case NSA_BF16: return __bfloat162float(((const bf16 *)data)[i]);
    case NSA_F16: return __half2float(((const f16 *)data)[i]);
    default: return ((const float *)data)[i];
    }
}

__device__ inline void store_as(void *data, nsa_dtype dtype, int64_t i, float x)
{
    switch (dtype) {
    case NSA_BF16: ((bf16 *)data)[i] = __float2bfloat16_rn(x); break;
    case NSA_F16: ((f16 *)data)[i] = __float2half_rn(x); break;
    default: ((float *)data)[i] = x; break;
    }
}

__device__ inline float load(const nsa_tensor &t, int64_t i)
{
    return load_as(t.data, t.dtype, i);
}

__device__ inline void store(const nsa_tensor &t, int64_t i, float x)
{
    store_as(t.data, t.dtype, i, x);
}

/* Offset of token `row` of sequence s (packed: its rows start at `start`) and a head. */
__device__ inline int64_t offset_of(const nsa_tensor &t, int32_t s, int64_t start, int64_t row, int64_t head)
{
    return (t.stride_seq == 0 ? start * t.stride_token : s * t.stride_seq) + row * t.stride_token +
           head * t.stride_head;
}

/* ---- Sequences */

__device__ inline int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

__device__ inline int64_t max64(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* First packed token and number of tokens. */
typedef struct seq_range {
    int64_t start, n;
} seq_range;

__device__ inline seq_range seq_range_of(const int32_t *cu, int32_t s, int64_t total, int32_t max)
{
    const int64_t start = min64(max64(cu[s], 0), total), end = min64(max64(cu[s + 1], start), total);
    const seq_range x = {start, min64(end - start, max)};
    return x;
}

__device__ inline seq_range seq_q(const simt_seqs &x, int32_t s)
{
    return seq_range_of(x.cu_q, s, x.total_q, x.max_q);
}

__device__ inline seq_range seq_k(const simt_seqs &x, int32_t s)
{
    return seq_range_of(x.cu_k, s, x.total_k, x.max_k);
}

/* The sequence of packed row i, of which the rows of sequence s start at cu[s]/div: the last to start at or before it.
 * Where cu is not sound it may be another: callers look whether the row is in its range. */
__device__ inline int32_t seq_of_row(const int32_t *cu, int32_t n, int32_t div, int64_t i)
{
    int32_t lo = 0, hi = n;
    while (hi - lo > 1) {
        const int32_t mid = lo + (hi - lo) / 2;
        if (cu[mid] / div <= i)
            lo = mid;
        else
            hi = mid;
    }
    return lo;
}

/* Tiles of items that never cross a sequence, of which a row of cu has `per_row`: those of sequence s have the numbers
 * cu[s] * per_row / tile + s and up. The sequence of the i-th, and its first item there: callers look whether that is
 * in range. total * per_row / tile + n bounds their number. */
__device__ inline int64_t find_tile(const int32_t *cu, int32_t n, int32_t per_row, int32_t tile, int64_t i, int32_t *s)
{
    int32_t lo = 0, hi = n;
    while (hi - lo > 1) {
        const int32_t mid = lo + (hi - lo) / 2;
        if ((int64_t)cu[mid] * per_row / tile + mid <= i)
            lo = mid;
        else
            hi = mid;
    }
    *s = lo;
    return (i - ((int64_t)cu[lo] * per_row / tile + lo)) * tile;
}

/* Where a (token, head) lies. */
typedef struct place {
    int32_t s, head;
    seq_range seq;
    int64_t row; /* of the sequence */
} place;

/* The i-th of packed tokens times heads; false if no sequence has it. */
__device__ inline bool find_place(const int32_t *cu, int32_t n_seqs, int64_t total, int32_t max, int32_t n_heads,
                                  int64_t i, place *x)
{
    const int64_t token = i / n_heads;
    x->head = (int32_t)(i % n_heads);
    x->s = seq_of_row(cu, n_seqs, 1, token);
    x->seq = seq_range_of(cu, x->s, total, max);
    x->row = token - x->seq.start;
    return x->row >= 0 && x->row < x->seq.n;
}

/* A token of a head, its sequence's keys, its position among them. */
typedef struct query {
    place at;
    seq_range k;
    int64_t t;
} query;

__device__ inline bool find_query(const simt_seqs &seqs, int32_t n_heads, int64_t i, query *x)
{
    const bool found = find_place(seqs.cu_q, seqs.n, seqs.total_q, seqs.max_q, n_heads, i, &x->at);
    x->k = seq_k(seqs, x->at.s);
    x->t = x->at.row + x->k.n - x->at.seq.n;
    return found;
}

/* The row of a token in a tensor, in another of its heads. */
__device__ inline int64_t offset_at(const nsa_tensor &t, const place &x, int64_t head)
{
    return offset_of(t, x.s, x.seq.start, x.row, head);
}

/* Compressed blocks that position t sees; t may be negative. Also those of t + 1 tokens. */
__device__ inline int64_t n_cmp_seen(const nsa_config &c, int64_t t)
{
    return t < c.cmp_block - 1 ? 0 : (t - (c.cmp_block - 1)) / c.cmp_stride + 1;
}

/* ---- Reductions: every lane gets the result, summed in the same order always */

__device__ inline float warp_sum(float x)
{
    for (int i = WARP / 2; i > 0; i /= 2)
        x += __shfl_xor_sync(~0U, x, i);
    return x;
}

__device__ inline float warp_max(float x)
{
    for (int i = WARP / 2; i > 0; i /= 2)
        x = fmaxf(x, __shfl_xor_sync(~0U, x, i));
    return x;
}

/* How many lanes below this one have flag set. */
__device__ inline int lanes_before(unsigned flags)
{
    return __popc(flags & ((1U << lane_index()) - 1U));
}

/* ---- Launches */

/* kernel<<<>>> with a warp for each of n items. */
#define LAUNCH_WARPS(kernel, n, stream, ...)                                                                           \
    do {                                                                                                               \
        if ((n) > 0)                                                                                                   \
            kernel<<<grid_of(n, WARPS), WARP * WARPS, 0, stream>>>(__VA_ARGS__);                                       \
    } while (0)

#endif
