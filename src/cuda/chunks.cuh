/*
 * For kernels that are bound by bytes. A lane has a chunk of a row: 8 channels, 16 bytes of bf16 in one access. The
 * lanes of a row lie side by side (16 of 128 channels), and a warp has as many rows as that leaves room for. A block
 * has CHUNK_ROWS of them, (token, head), of one sequence that is looked up once. Rows that do not lie on 16 bytes are
 * read element by element into the same lanes: a sum has one order in every layout.
 */
#ifndef NSA_CUDA_CHUNKS_CUH
#define NSA_CUDA_CHUNKS_CUH

#include "cuda/simt.cuh"

enum {
    CHUNK = SIMT_CHUNK, /* times 32 lanes are MAX_D */
    CHUNK_THREADS = 256,
    CHUNK_ROWS = 128,
};

template <typename T> struct alignas(16) chunk {
    T x[CHUNK];
};

template <typename T> __device__ inline T from_float(float x);

template <> __device__ inline float from_float(float x)
{
    return x;
}

template <> __device__ inline bf16 from_float(float x)
{
    return __float2bfloat16_rn(x);
}

template <> __device__ inline f16 from_float(float x)
{
    return __float2half_rn(x);
}

/* From element i of t, a T, on: the `left` that the row has, others are 0. Whole rows are whole chunks that lie on 16
 * bytes (simt_whole_chunks). */
template <typename T> __device__ inline chunk<T> load_chunk(const nsa_tensor &t, int64_t i, int left, bool whole)
{
    const T *from = (const T *)t.data + i;
    if (whole)
        return *(const chunk<T> *)from;
    chunk<T> y;
#pragma unroll
    for (int k = 0; k < CHUNK; k++)
        y.x[k] = k < left ? from[k] : from_float<T>(0.0F);
    return y;
}

template <typename T>
__device__ inline void store_chunk(const nsa_tensor &t, int64_t i, int left, bool whole, const chunk<T> &x)
{
    T *to = (T *)t.data + i;
    if (whole)
        *(chunk<T> *)to = x;
    else
#pragma unroll
        for (int k = 0; k < CHUNK; k++)
            if (k < left)
                to[k] = x.x[k];
}

template <typename T> __device__ inline chunk<float> widen(const chunk<T> &x)
{
    chunk<float> y;
#pragma unroll
    for (int k = 0; k < CHUNK; k++)
        y.x[k] = to_float(x.x[k]);
    return y;
}

template <typename T> __device__ inline chunk<T> narrow(const chunk<float> &x)
{
    chunk<T> y;
#pragma unroll
    for (int k = 0; k < CHUNK; k++)
        y.x[k] = from_float<T>(x.x[k]);
    return y;
}

/* The same of any type. */
__device__ inline chunk<float> load_floats(const nsa_tensor &t, int64_t i, int left, bool whole)
{
    switch (t.dtype) {
    case NSA_BF16: return widen(load_chunk<bf16>(t, i, left, whole));
    case NSA_F16: return widen(load_chunk<f16>(t, i, left, whole));
    default: return load_chunk<float>(t, i, left, whole);
    }
}

__device__ inline void store_floats(const nsa_tensor &t, int64_t i, int left, bool whole, const chunk<float> &x)
{
    switch (t.dtype) {
    case NSA_BF16: store_chunk(t, i, left, whole, narrow<bf16>(x)); break;
    case NSA_F16: store_chunk(t, i, left, whole, narrow<f16>(x)); break;
    default: store_chunk(t, i, left, whole, x); break;
    }
}

/* ---- Rows */

/* Lanes of a row of d channels: a power of two. */
static NSA_BOTH_SIDES inline int chunk_lanes(int d)
{
    int n = 1;
    while (n * CHUNK < d)
        n *= 2;
    return n;
}

/* A block's rows, and what a thread has of them: every step-th from `row` on, in it the chunk at `channel`, which may
 * lie past the row's end. */
typedef struct row_share {
    place first;
    int n_heads, n;
    int lanes, row, step, channel;
} row_share;

/* The blocks of rows that there are at most. */
static NSA_BOTH_SIDES inline int64_t n_row_shares(int64_t total, int32_t n_heads, int32_t n_seqs)
{
    return total == 0 ? 0 : total * n_heads / CHUNK_ROWS + n_seqs;
}

/* The i-th block's; false if no sequence has them. */
__device__ inline bool find_rows(const int32_t *cu, int32_t n_seqs, int64_t total, int32_t max, int32_t n_heads, int d,
                                 int64_t i, row_share *x)
{
    const int thread = (int)threadIdx.x;
    const int64_t first = find_tile(cu, n_seqs, n_heads, CHUNK_ROWS, i, &x->first.s);
    x->first.seq = seq_range_of(cu, x->first.s, total, max);
    x->first.row = first / n_heads;
    x->first.head = (int32_t)(first % n_heads);
    x->n_heads = n_heads;
    const int64_t left = x->first.seq.n * n_heads - first;
    x->n = (int)min64(left, CHUNK_ROWS);
    x->lanes = chunk_lanes(d);
    x->row = thread / x->lanes;
    x->step = CHUNK_THREADS / x->lanes;
    x->channel = thread % x->lanes * CHUNK;
    return first >= 0 && left > 0;
}

/* Row r of a block. */
__device__ inline place place_of(const row_share &x, int r)
{
    const unsigned i = (unsigned)x.first.head + (unsigned)r, n_heads = (unsigned)x.n_heads;
    return {x.first.s, (int32_t)(i % n_heads), x.first.seq, x.first.row + i / n_heads};
}

/* Where the thread's chunk of a row lies in a tensor. */
__device__ inline int64_t chunk_at(const nsa_tensor &t, const row_share &x, const place &at)
{
    return offset_at(t, at, at.head) + x.channel;
}

#define LAUNCH_ROWS(kernel, total, n_heads, n_seqs, stream, ...)                                                       \
    do {                                                                                                               \
        const int64_t n_ = n_row_shares(total, n_heads, n_seqs);                                                       \
        if (n_ > 0)                                                                                                    \
            kernel<<<grid_of(n_, 1), CHUNK_THREADS, 0, stream>>>(__VA_ARGS__);                                         \
    } while (0)

#endif
