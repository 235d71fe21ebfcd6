/*
 * linear and mlp around their products (compress_product_sm90.cu): where rows lie, weights in planes, and from each
 * product what the next one reads. A thread for each element.
 *
 *     forward     x w1 -> z -> h -> h w2 -> y                                  linear: x w1 -> y
 *     backward    x w1 -> z;  dy w2^T -> dz, h;  dz w1^T -> dx, where each token collects from its blocks;
 *                 x^T dz -> dw1;  h^T dy -> dw2                                linear: dz = dy
 *
 * x is read where it lies: pe w1 is the same for all blocks and goes to the bias, and to dw1 comes pe^T sum dz.
 *
 * Products are in planes of bf16 as their file says, with float32 weights x w1 is three products of bf16, dz w1^T six,
 * x^T dz three. With d 128, blocks of 32/16 and d_hidden 128 each is 17 GFLOP at 64k tokens of 4 heads.
 */
#include "ops/compress/compress_dense_sm90.h"
#include "ops/compress/compress_simt.cuh"

/* ---- Where rows lie */

static __global__ __launch_bounds__(THREADS) void lines_kernel(const __grid_constant__ compress_dense_sm90 p, int64_t n)
{
    const int heads = p.a.cfg.c.n_heads_kv;
    const nsa_tensor &y = p.a.y.data != NULL ? p.a.y : p.a.dy;
    for (int64_t i = first_element(); i < n; i += element_stride()) {
        const cmp_row row = row_at(p.a, i / heads);
        const int64_t head = i % heads;
        p.x_lines[i] = p.y_lines[i] = {0, 0, 0};
        if (row.s < 0)
            continue;
        p.x_lines[i] = {offset_of(p.a.x, row.s, row.start, (int64_t)row.i * p.a.cfg.c.cmp_stride, head), 0,
                        p.a.cfg.c.cmp_block};
        p.y_lines[i] = {at_row(p.a, y, row, head), 0, 1};
    }
}

static __global__ __launch_bounds__(THREADS) void group_lines_kernel(const __grid_constant__ compress_dense_sm90 p,
                                                                     int64_t n)
{
    const nsa_config &c = p.a.cfg.c;
    for (int64_t i = first_element(); i < n; i += element_stride()) {
        const int64_t head = i % c.n_heads_kv;
        int32_t s;
        const int64_t t = find_tile(p.a.seqs.cu_k, p.a.seqs.n, 1, c.cmp_stride, i / c.n_heads_kv, &s);
        const seq_range k = seq_k(p.a.seqs, s);
        p.dz_lines[i] = p.dx_lines[i] = {0, 0, 0};
        if (t < 0 || t >= k.n)
            continue;
        const int last = (int)(t / c.cmp_stride), n_cmp = (int)n_cmp_seen(c, k.n - 1);
        const int64_t first_row = k.start / c.cmp_stride;
        const int64_t at = p.a.phi.kind == NSA_PHI_MLP ? ((first_row + last) * c.n_heads_kv + head) * p.width
                                                       : offset_of(p.a.dy, s, first_row, last, head);
        p.dz_lines[i] = {at, max(0, last - n_cmp + 1), min(c.cmp_block / c.cmp_stride, last + 1)};
        p.dx_lines[i] = {offset_of(p.a.dx, s, k.start, t, head), 0, (int32_t)min64(c.cmp_stride, k.n - t)};
    }
}

/* ---- Weights */

/* Number i of a matrix that has n, in planes. */
template <int PLANES> static __device__ void store_planes(bf16_bits *planes, int64_t n, int64_t i, float x)
{
#pragma unroll
    for (int plane = 0; plane < PLANES; plane++) {
        const bf16 part = __float2bfloat16_rn(x);
        ((bf16 *)planes)[plane * n + i] = part;
        x -= to_float(part);
    }
}

/* Rows of `from` have n_columns, those of the planes `width`. */
static __global__ __launch_bounds__(THREADS) void weights_kernel(bf16_bits *to, int n_planes, const void *from,
                                                                 nsa_dtype dtype, int n_columns, int width, int64_t n)
{
    for (int64_t i = first_element(); i < n; i += element_stride()) {
        const int64_t column = i % width;
        const float w = column < n_columns ? load_as(from, dtype, i / width * n_columns + column) : 0.0F;
        if (n_planes == 1)
            store_planes<1>(to, n, i, w);
        else
            store_planes<3>(to, n, i, w);
    }
}

enum { BIAS_THREADS = 1024, BIAS_ROWS = BIAS_THREADS / WARP };

/* 32 columns of a set: a warp sums every 32nd row of pe w1. */
static __global__ __launch_bounds__(BIAS_THREADS) void bias_kernel(const __grid_constant__ compress_dense_sm90 p)
{
    __shared__ float sums[BIAS_ROWS][WARP];
    const int n_blocks = (p.a.width + WARP - 1) / WARP, warp = (int)threadIdx.x / WARP;
    const int64_t set = blockIdx.x / n_blocks, j = blockIdx.x % n_blocks * WARP + lane_index();
    float sum = 0.0F;
    if (p.a.phi.pe != NULL && j < p.a.width)
#pragma unroll 8
        for (int64_t k = warp; k < p.n_in; k += BIAS_ROWS)
            sum = fmaf(param(p.a, p.a.phi.pe, set, p.n_in, k),
                       param(p.a, p.a.phi.w1, set, p.n_in * p.a.width, k * p.a.width + j), sum);
    sums[warp][lane_index()] = sum;
    __syncthreads();
    if (warp > 0 || j >= p.a.width)
        return;
    sum = param(p.a, p.a.phi.b1, set, p.a.width, j);
    for (int i = 0; i < BIAS_ROWS; i++)
        sum += sums[i][lane_index()];
    p.bias[set * p.a.width + j] = sum;
}

/* ---- After products */

static __device__ float sum_of(const compress_dense_sm90 &p, const dense_sums &sums, int64_t set, int64_t row,
                               int64_t column)
{
    const int64_t at = (set * sums.n_rows + row) * sums.n_columns + column;
    const int64_t part = p.a.n_sets * sums.n_rows * sums.n_columns;
    float sum = sums.x[at];
    for (int i = 1; i < sums.n_parts; i++)
        sum += sums.x[i * part + at];
    return sum;
}

static __device__ int64_t set_of(const compress_dense_sm90 &p, int64_t item)
{
    return p.a.phi.per_head ? item % p.a.cfg.c.n_heads_kv : 0;
}

static __device__ float sum_of_item(const compress_dense_sm90 &p, const dense_sums &sums, int64_t item, int64_t column)
{
    return sum_of(p, sums, set_of(p, item), p.a.phi.per_head ? item / p.a.cfg.c.n_heads_kv : item, column);
}

static __device__ float gelu_cdf(float z)
{
    return 0.5F * erfcf(-z * 0.70710678118654752440F);
}

/* Elements [item][width]. */
static __global__ __launch_bounds__(THREADS) void hidden_kernel(const __grid_constant__ compress_dense_sm90 p,
                                                                const __grid_constant__ dense_sums sums, int64_t n)
{
    for (int64_t i = first_element(); i < n; i += element_stride()) {
        const int64_t item = i / p.width, j = i % p.width;
        const bool is = j < p.a.width && p.y_lines[item].end > 0;
        const float z = is ? sum_of_item(p, sums, item, j) + p.bias[set_of(p, item) * p.a.width + j] : 0.0F;
        if (p.a.z != NULL)
            p.a.z[i] = z;
        else
            store_planes<3>(p.h, n, i, z * gelu_cdf(z));
    }
}

/* Elements [item][channel]. */
static __global__ __launch_bounds__(THREADS) void y_kernel(const __grid_constant__ compress_dense_sm90 p,
                                                           const __grid_constant__ dense_sums sums, int64_t n)
{
    for (int64_t i = first_element(); i < n; i += element_stride()) {
        const int64_t item = i / p.a.d, c = i % p.a.d, set = set_of(p, item);
        if (p.y_lines[item].end == 0)
            continue;
        const float bias =
            p.a.phi.kind == NSA_PHI_MLP ? param(p.a, p.a.phi.b2, set, p.a.d, c) : p.bias[set * p.a.d + c];
        store(p.a.y, p.y_lines[item].at + c, sum_of_item(p, sums, item, c) + bias);
    }
}

/* Elements [item][width]. */
static __global__ __launch_bounds__(THREADS) void dz_kernel(const __grid_constant__ compress_dense_sm90 p,
                                                            const __grid_constant__ dense_sums sums, int64_t n)
{
    const float inv_sqrt_2pi = 0.39894228040143267794F;
    for (int64_t i = first_element(); i < n; i += element_stride()) {
        const int64_t item = i / p.width, j = i % p.width;
        const bool is = j < p.a.width && p.y_lines[item].end > 0;
        float dz = 0.0F;
        if (p.a.phi.kind == NSA_PHI_MLP) {
            const float z = is ? p.a.z[i] : 0.0F, cdf = gelu_cdf(z);
            if (is)
                dz = sum_of_item(p, sums, item, j) * (cdf + z * expf(-0.5F * z * z) * inv_sqrt_2pi);
            store_planes<3>(p.h, n, i, z * cdf);
            store_planes<3>(p.dz, n, i, dz);
        } else if (is) {
            dz = load(p.a.dy, p.y_lines[item].at + j);
        }
        if (is)
            p.a.dz[item * p.a.width + j] = dz;
    }
}

/* Elements [set][k][column]. */
static __global__ __launch_bounds__(THREADS) void dw1_kernel(const __grid_constant__ compress_dense_sm90 p,
                                                             const __grid_constant__ dense_sums sums, int64_t n)
{
    for (int64_t i = first_element(); i < n; i += element_stride()) {
        const int64_t j = i % p.a.width, k = i / p.a.width % p.n_in, set = i / p.a.width / p.n_in;
        const float pe = param(p.a, p.a.phi.pe, set, p.n_in, k);
        store_as(p.a.dphi.w1, p.a.phi.dtype, i, fmaf(pe, p.a.dz_sum[set * p.a.width + j], sum_of(p, sums, set, k, j)));
    }
}

/* Elements [set][column][channel]. */
static __global__ __launch_bounds__(THREADS) void dw2_kernel(const __grid_constant__ compress_dense_sm90 p,
                                                             const __grid_constant__ dense_sums sums, int64_t n)
{
    for (int64_t i = first_element(); i < n; i += element_stride())
        store_as(p.a.dphi.w2, p.a.phi.dtype, i,
                 sum_of(p, sums, i / p.a.d / p.a.width, i / p.a.d % p.a.width, i % p.a.d));
}

/* ---- Launches */

/* kernel<<<>>> with a thread for each of n elements. */
#define LAUNCH_ELEMENTS(n, stream, kernel, ...)                                                                        \
    do {                                                                                                               \
        const int64_t n_ = (n);                                                                                        \
        if (n_ > 0)                                                                                                    \
            kernel<<<grid_of(n_, THREADS), THREADS, 0, stream>>>(__VA_ARGS__, n_);                                     \
    } while (0)

int launch_dense_lines(const compress_dense_sm90 *p, nsa_stream stream)
{
    LAUNCH_ELEMENTS(p->n_items, stream, lines_kernel, *p);
    if (p->dz_lines != NULL)
        LAUNCH_ELEMENTS(p->n_groups * p->a.cfg.c.n_heads_kv, stream, group_lines_kernel, *p);
    return cudaGetLastError();
}

int launch_dense_weights(const compress_dense_sm90 *p, nsa_stream stream)
{
    const nsa_phi *phi = &p->a.phi;
    const int32_t n_sets = p->a.n_sets, n_blocks = (p->a.width + WARP - 1) / WARP;
    LAUNCH_ELEMENTS(n_sets * p->n_in * p->width, stream, weights_kernel, p->w1, p->w_planes, phi->w1, phi->dtype,
                    p->a.width, p->width);
    if (phi->kind == NSA_PHI_MLP)
        LAUNCH_ELEMENTS((int64_t)n_sets * p->a.width * p->a.d, stream, weights_kernel, p->w2, p->w_planes, phi->w2,
                        phi->dtype, p->a.d, p->a.d);
    bias_kernel<<<n_sets * n_blocks, BIAS_THREADS, 0, stream>>>(*p);
    return cudaGetLastError();
}

int launch_dense_hidden(const compress_dense_sm90 *p, const dense_sums *sums, nsa_stream stream)
{
    LAUNCH_ELEMENTS(p->n_items * p->width, stream, hidden_kernel, *p, *sums);
    return cudaGetLastError();
}

int launch_dense_y(const compress_dense_sm90 *p, const dense_sums *sums, nsa_stream stream)
{
    LAUNCH_ELEMENTS(p->n_items * p->a.d, stream, y_kernel, *p, *sums);
    return cudaGetLastError();
}

int launch_dense_dz(const compress_dense_sm90 *p, const dense_sums *sums, nsa_stream stream)
{
    LAUNCH_ELEMENTS(p->n_items * p->width, stream, dz_kernel, *p, *sums);
    return cudaGetLastError();
}

int launch_dense_dw1(const compress_dense_sm90 *p, const dense_sums *sums, nsa_stream stream)
{
    LAUNCH_ELEMENTS(p->a.n_sets * p->n_in * p->a.width, stream, dw1_kernel, *p, *sums);
    return cudaGetLastError();
}

int launch_dense_dw2(const compress_dense_sm90 *p, const dense_sums *sums, nsa_stream stream)
{
    LAUNCH_ELEMENTS((int64_t)p->a.n_sets * p->a.width * p->a.d, stream, dw2_kernel, *p, *sums);
    return cudaGetLastError();
}
