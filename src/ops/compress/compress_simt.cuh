/*
 * What the kernels of compression share. Each is a thread for each element of its result, which walks the terms of the
 * sum in order; rows of y and tokens of x are looked up in two tables that are made first.
 */
#ifndef NSA_OPS_COMPRESS_SIMT_CUH
#define NSA_OPS_COMPRESS_SIMT_CUH

#include "cuda/simt.cuh"
#include "ops/compress/compress_simt.h"

enum { THREADS = 256 };

/* Packed row r of y, or one that no sequence has (s < 0). */
static __device__ inline cmp_row row_at(const compress_simt_args &p, int64_t r)
{
    const nsa_config &c = p.cfg.c;
    const int32_t s = seq_of_row(p.seqs.cu_k, p.seqs.n, c.cmp_stride, r);
    const seq_range k = seq_k(p.seqs, s);
    const int64_t i = r - k.start / c.cmp_stride;
    const bool made = i >= 0 && i < n_cmp_seen(c, k.n - 1);
    return {made ? s : -1, (int32_t)k.start, (int32_t)i};
}

/* The blocks that hold token t of a sequence, which has n_cmp of them: first .. end - 1. */
typedef struct block_range {
    int32_t first, end;
} block_range;

static __device__ inline block_range blocks_of(const nsa_config &c, int32_t t, int32_t n_cmp)
{
    const int32_t first = t < c.cmp_block ? 0 : (t - c.cmp_block) / c.cmp_stride + 1;
    return {first, max(first, min(t / c.cmp_stride + 1, n_cmp))};
}

/* Channel c of the r-th token of a block. */
static __device__ inline float x_of(const compress_simt_args &p, const cmp_row &row, int64_t head, int64_t r, int64_t c)
{
    return load(p.x, offset_of(p.x, row.s, row.start, (int64_t)row.i * p.cfg.c.cmp_stride + r, head) + c);
}

static __device__ inline float x_of(const compress_simt_args &p, const cmp_token &token, int64_t head, int64_t c)
{
    return load(p.x, offset_of(p.x, token.s, token.start, token.t, head) + c);
}

/* Where a block's row of y or dy starts. */
static __device__ inline int64_t at_row(const compress_simt_args &p, const nsa_tensor &t, const cmp_row &row,
                                        int64_t head)
{
    return offset_of(t, row.s, row.start / p.cfg.c.cmp_stride, row.i, head);
}

static __device__ inline float dy_of(const compress_simt_args &p, const cmp_row &row, int64_t head, int64_t c)
{
    return load(p.dy, at_row(p, p.dy, row, head) + c);
}

/* Element i of a parameter, of which a set has `size` elements; 0 if it is not given. */
static __device__ inline float param(const compress_simt_args &p, const void *data, int64_t head, int64_t size,
                                     int64_t i)
{
    return data == NULL ? 0.0F : load_as(data, p.phi.dtype, (p.phi.per_head ? head * size : 0) + i);
}

/* The heads that share a set of parameters. */
typedef struct head_range {
    int32_t first, end;
} head_range;

static __device__ inline head_range heads_of(const compress_simt_args &p, int64_t set)
{
    const head_range one = {(int32_t)set, (int32_t)set + 1}, all = {0, p.cfg.c.n_heads_kv};
    return p.phi.per_head ? one : all;
}

static __device__ inline void store_dx(const compress_simt_args &p, const cmp_token &token, int64_t head, int64_t c,
                                       float x)
{
    const int64_t at = offset_of(p.dx, token.s, token.start, token.t, head) + c;
    store(p.dx, at, p.add_dx ? load(p.dx, at) + x : x);
}

/* kernel<<<>>> with a thread for each of n elements, unless an earlier launch has failed. */
#define LAUNCH_EACH(error, kernel, n, p, stream)                                                                       \
    do {                                                                                                               \
        const int64_t n_ = (n);                                                                                        \
        if ((error) == cudaSuccess && n_ > 0) {                                                                        \
            kernel<<<grid_of(n_, THREADS), THREADS, 0, stream>>>(p, n_);                                               \
            (error) = cudaGetLastError();                                                                              \
        }                                                                                                              \
    } while (0)

/* ---- Gradients of parameters */

/* What the i-th thread of parts times elements sums: of an element the rows first .. end - 1. */
typedef struct partial_sum {
    int64_t element, first, end;
} partial_sum;

static __device__ inline partial_sum partial_sum_of(int64_t i, int64_t n_elements, int64_t n_rows)
{
    const int64_t n = compress_parts(n_elements, n_rows), part = i / n_elements;
    return {i % n_elements, n_rows * part / n, n_rows * (part + 1) / n};
}

/* The elements of a gradient from the parts in p.sums. */
static __global__ __launch_bounds__(THREADS) void add_parts_kernel(const __grid_constant__ compress_simt_args p,
                                                                   int64_t n, int64_t n_parts, void *gradient,
                                                                   nsa_dtype dtype)
{
    for (int64_t i = first_element(); i < n; i += element_stride()) {
        float sum = 0.0F;
#pragma unroll 8
        for (int64_t part = 0; part < n_parts; part++)
            sum += p.sums[part * n + i];
        store_as(gradient, dtype, i, sum);
    }
}

#define LAUNCH_ADD_PARTS(error, n, n_rows, gradient, dtype, p, stream)                                                 \
    do {                                                                                                               \
        const int64_t elements_ = (n);                                                                                 \
        if ((error) == cudaSuccess) {                                                                                  \
            add_parts_kernel<<<grid_of(elements_, THREADS), THREADS, 0, stream>>>(                                     \
                p, elements_, compress_parts(elements_, n_rows), gradient, dtype);                                     \
            (error) = cudaGetLastError();                                                                              \
        }                                                                                                              \
    } while (0)

/* kernel makes the parts of n elements, which are sums over n_rows. */
#define LAUNCH_SUMS(error, kernel, n, n_rows, gradient, dtype, p, stream)                                              \
    do {                                                                                                               \
        LAUNCH_EACH(error, kernel, (n)*compress_parts(n, n_rows), p, stream);                                          \
        LAUNCH_ADD_PARTS(error, n, n_rows, gradient, dtype, p, stream);                                                \
    } while (0)

#endif
