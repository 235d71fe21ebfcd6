/*
 * linear and mlp around their products (compress_product_sm90.cu): where rows lie, parameters in planes, and from each
 * product what the next one reads. A warp for each row.
 *
 *     forward     x w1 -> z -> h;  h w2 -> y                                   linear: x w1 -> y
 *     backward    x w1 -> z;  dy w2^T -> dz, h;  dz w1^T -> dx;  x^T dz -> dw1;  h^T dy -> dw2        linear: dz = dy
 *
 * x is read where it lies. pe w1 is the same for every block and belongs to the bias; dw1 gets pe^T sum dz. dx is one
 * product, too: of cmp_stride tokens side by side all lie in the same blocks, so its rows are those, its columns
 * (token, channel), and k goes over (block, column of dz). Sums over all rows, and pe w1, are products of one row.
 *
 * Cost: that of the products (17 GFLOP for each pair of planes at 64k tokens, 4 heads, d and d_hidden 128, blocks
 * 32/16) and launches. On one H200 (CUDA 13.0, 2026-11-28), ms, float32 parameters; in brackets the readable kernels:
 *
 *     mlp, 64k tokens                    forward 0.203 (45.1)    backward 0.649 (134)
 *     mlp, 8k; 32 tokens                 forward 0.095; 0.079    backward 0.224; 0.146
 *     mlp, bf16 parameters, 64k          forward 0.153           backward 0.541
 *     linear, 64k                        forward 0.168           backward 0.333
 *
 * Tried: sums over rows by a thread for each column, and a thread for each element in the place of a warp for each row
 * (forward 0.232, backward 0.980).
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

/* ---- Planes */

/* Element `at` of planes of n elements. */
template <int PLANES> static __device__ void store_planes(bf16_bits *planes, int64_t n, int64_t at, float x)
{
#pragma unroll
    for (int plane = 0; plane < PLANES; plane++) {
        const bf16 part = __float2bfloat16_rn(x);
        ((bf16 *)planes)[plane * n + at] = part;
        x -= to_float(part);
    }
}

/* Rows of n_columns, which in the planes are `width` long. */
static __global__ __launch_bounds__(WARPS *WARP) void planes_kernel(bf16_bits *to, int n_planes, const void *from,
                                                                    nsa_dtype dtype, int64_t n_rows, int n_columns,
                                                                    int width)
{
    for (int64_t row = first_item(); row < n_rows; row += item_stride())
        for (int j = lane_index(); j < width; j += WARP) {
            const float x = j < n_columns ? load_as(from, dtype, row * n_columns + j) : 0.0F;
            if (n_planes == 1)
                store_planes<1>(to, n_rows * width, row * width + j, x);
            else
                store_planes<3>(to, n_rows * width, row * width + j, x);
        }
}

static __global__ void ones_kernel(bf16_bits *to)
{
    ((bf16 *)to)[threadIdx.x] = __float2bfloat16_rn(1.0F);
}

/* ---- After products */

/* The set and its row that an item is. */
typedef struct set_row {
    int64_t set, row;
} set_row;

static __device__ set_row row_of_item(const compress_dense_sm90 &p, int64_t item)
{
    const int heads = p.a.cfg.c.n_heads_kv;
    return p.a.phi.per_head ? set_row{item % heads, item / heads} : set_row{0, item};
}

/* Element i of all rows of all sets. */
static __device__ float sum_at(const compress_dense_sm90 &p, const dense_sums &sums, int64_t i)
{
    const int64_t part = p.a.n_sets * sums.n_rows * sums.n_columns;
    float sum = sums.x[i];
#pragma unroll 8
    for (int k = 1; k < sums.n_parts; k++)
        sum += sums.x[k * part + i];
    return sum;
}

static __device__ float sum_of(const compress_dense_sm90 &p, const dense_sums &sums, set_row at, int column)
{
    return sum_at(p, sums, (at.set * sums.n_rows + at.row) * sums.n_columns + column);
}

/* Elements [set][width]. */
static __global__ __launch_bounds__(THREADS) void bias_kernel(const __grid_constant__ compress_dense_sm90 p,
                                                              const __grid_constant__ dense_sums sums, int64_t n)
{
    for (int64_t i = first_element(); i < n; i += element_stride()) {
        const int64_t set = i / p.width, j = i % p.width;
        const float pe_w1 = p.a.phi.pe != NULL ? sum_at(p, sums, i) : 0.0F;
        p.bias[i] = j < p.a.width ? param(p.a, p.a.phi.b1, set, p.a.width, j) + pe_w1 : 0.0F;
    }
}

static __device__ float gelu_cdf(float z)
{
    return 0.5F * erfcf(-z * 0.70710678118654752440F);
}

static __global__ __launch_bounds__(WARPS *WARP) void hidden_kernel(const __grid_constant__ compress_dense_sm90 p,
                                                                    const __grid_constant__ dense_sums sums)
{
    for (int64_t item = first_item(); item < p.n_items; item += item_stride()) {
        const set_row at = row_of_item(p, item);
        const bool made = p.y_lines[item].end > 0;
        for (int j = lane_index(); j < p.width; j += WARP) {
            const bool is = made && j < p.a.width;
            const float z = is ? sum_of(p, sums, at, j) + p.bias[at.set * p.width + j] : 0.0F;
            if (p.z != NULL)
                p.z[item * p.width + j] = z;
            else
                store_planes<3>(p.h, p.n_items * p.width, item * p.width + j, z * gelu_cdf(z));
        }
    }
}

static __global__ __launch_bounds__(WARPS *WARP) void y_kernel(const __grid_constant__ compress_dense_sm90 p,
                                                               const __grid_constant__ dense_sums sums)
{
    for (int64_t item = first_item(); item < p.n_items; item += item_stride()) {
        const set_row at = row_of_item(p, item);
        if (p.y_lines[item].end == 0)
            continue;
        for (int c = lane_index(); c < p.a.d; c += WARP) {
            const float bias =
                p.a.phi.kind == NSA_PHI_MLP ? param(p.a, p.a.phi.b2, at.set, p.a.d, c) : p.bias[at.set * p.width + c];
            store(p.a.y, p.y_lines[item].at + c, sum_of(p, sums, at, c) + bias);
        }
    }
}

static __global__ __launch_bounds__(WARPS *WARP) void dz_kernel(const __grid_constant__ compress_dense_sm90 p,
                                                                const __grid_constant__ dense_sums sums)
{
    const float inv_sqrt_2pi = 0.39894228040143267794F;
    for (int64_t item = first_item(); item < p.n_items; item += item_stride()) {
        const set_row at = row_of_item(p, item);
        const bool made = p.y_lines[item].end > 0;
        for (int j = lane_index(); j < p.width; j += WARP) {
            const bool is = made && j < p.a.width;
            const float z = is ? p.z[item * p.width + j] : 0.0F, dh = is ? sum_of(p, sums, at, j) : 0.0F;
            const float cdf = gelu_cdf(z), slope = cdf + z * expf(-0.5F * z * z) * inv_sqrt_2pi;
            store_planes<3>(p.h, p.n_items * p.width, item * p.width + j, z * cdf);
            store_planes<3>(p.dz, p.n_items * p.width, item * p.width + j, dh * slope);
        }
    }
}

/* Elements [set][width]. */
static __global__ __launch_bounds__(THREADS) void db1_kernel(const __grid_constant__ compress_dense_sm90 p,
                                                             const __grid_constant__ dense_sums sums, int64_t n)
{
    for (int64_t i = first_element(); i < n; i += element_stride()) {
        const int64_t set = i / p.width, j = i % p.width;
        const float sum = j < p.a.width ? sum_at(p, sums, i) : 0.0F;
        p.dz_sum[i] = sum;
        store_planes<3>(p.dz_sum_planes, n, i, sum);
        if (p.a.dphi.b1 != NULL && j < p.a.width)
            store_as(p.a.dphi.b1, p.a.phi.dtype, set * p.a.width + j, sum);
    }
}

static __global__ __launch_bounds__(WARPS *WARP) void dw1_kernel(const __grid_constant__ compress_dense_sm90 p,
                                                                 const __grid_constant__ dense_sums sums)
{
    for (int64_t row = first_item(); row < p.a.n_sets * p.n_in; row += item_stride()) {
        const set_row at = {row / p.n_in, row % p.n_in};
        const float pe = param(p.a, p.a.phi.pe, at.set, p.n_in, at.row);
        for (int j = lane_index(); j < p.a.width; j += WARP) {
            const float sum = sum_of(p, sums, at, j);
            store_as(p.a.dphi.w1, p.a.phi.dtype, row * p.a.width + j,
                     p.a.phi.pe == NULL ? sum : fmaf(pe, p.dz_sum[at.set * p.width + j], sum));
        }
    }
}

/* The sums as they are. */
static __global__ __launch_bounds__(THREADS) void sums_kernel(const __grid_constant__ compress_dense_sm90 p,
                                                              const __grid_constant__ dense_sums sums, void *to,
                                                              int64_t n)
{
    for (int64_t i = first_element(); i < n; i += element_stride())
        store_as(to, p.a.phi.dtype, i, sum_at(p, sums, i));
}

/* ---- Launches */

int launch_dense_lines(const compress_dense_sm90 *p, nsa_stream stream)
{
    cudaError_t error = cudaSuccess;
    LAUNCH_EACH(error, lines_kernel, p->n_items, *p, stream);
    if (p->dz_lines != NULL)
        LAUNCH_EACH(error, group_lines_kernel, p->n_groups * p->a.cfg.c.n_heads_kv, *p, stream);
    return error;
}

int launch_dense_planes(const compress_dense_sm90 *p, nsa_stream stream)
{
    const nsa_phi *phi = &p->a.phi;
    const int64_t n_sets = p->a.n_sets, w1_rows = n_sets * p->n_in, w2_rows = n_sets * p->a.width;
    ones_kernel<<<1, PRODUCT_COLUMNS, 0, stream>>>(p->ones);
    if (phi->pe != NULL)
        LAUNCH_WARPS(planes_kernel, w1_rows / PRODUCT_COLUMNS, stream, p->pe, p->w_planes, phi->pe, phi->dtype,
                     w1_rows / PRODUCT_COLUMNS, PRODUCT_COLUMNS, PRODUCT_COLUMNS);
    LAUNCH_WARPS(planes_kernel, w1_rows, stream, p->w1, p->w_planes, phi->w1, phi->dtype, w1_rows, p->a.width,
                 p->width);
    if (phi->kind == NSA_PHI_MLP)
        LAUNCH_WARPS(planes_kernel, w2_rows, stream, p->w2, p->w_planes, phi->w2, phi->dtype, w2_rows, p->a.d, p->a.d);
    return cudaGetLastError();
}

int launch_dense_bias(const compress_dense_sm90 *p, const dense_sums *sums, nsa_stream stream)
{
    const int64_t n = (int64_t)p->a.n_sets * p->width;
    bias_kernel<<<grid_of(n, THREADS), THREADS, 0, stream>>>(*p, sums == NULL ? dense_sums{} : *sums, n);
    return cudaGetLastError();
}

int launch_dense_hidden(const compress_dense_sm90 *p, const dense_sums *sums, nsa_stream stream)
{
    LAUNCH_WARPS(hidden_kernel, p->n_items, stream, *p, *sums);
    return cudaGetLastError();
}

int launch_dense_y(const compress_dense_sm90 *p, const dense_sums *sums, nsa_stream stream)
{
    LAUNCH_WARPS(y_kernel, p->n_items, stream, *p, *sums);
    return cudaGetLastError();
}

int launch_dense_dz(const compress_dense_sm90 *p, const dense_sums *sums, nsa_stream stream)
{
    LAUNCH_WARPS(dz_kernel, p->n_items, stream, *p, *sums);
    return cudaGetLastError();
}

int launch_dense_db1(const compress_dense_sm90 *p, const dense_sums *sums, nsa_stream stream)
{
    const int64_t n = (int64_t)p->a.n_sets * p->width;
    db1_kernel<<<grid_of(n, THREADS), THREADS, 0, stream>>>(*p, *sums, n);
    return cudaGetLastError();
}

int launch_dense_dw1(const compress_dense_sm90 *p, const dense_sums *sums, nsa_stream stream)
{
    LAUNCH_WARPS(dw1_kernel, p->a.n_sets * p->n_in, stream, *p, *sums);
    return cudaGetLastError();
}

static int launch_sums(const compress_dense_sm90 *p, const dense_sums *sums, void *to, nsa_stream stream)
{
    const int64_t n = p->a.n_sets * sums->n_rows * sums->n_columns;
    sums_kernel<<<grid_of(n, THREADS), THREADS, 0, stream>>>(*p, *sums, to, n);
    return cudaGetLastError();
}

int launch_dense_dpe(const compress_dense_sm90 *p, const dense_sums *sums, nsa_stream stream)
{
    return launch_sums(p, sums, p->a.dphi.pe, stream);
}

int launch_dense_dw2(const compress_dense_sm90 *p, const dense_sums *sums, nsa_stream stream)
{
    return launch_sums(p, sums, p->a.dphi.w2, stream);
}

int launch_dense_db2(const compress_dense_sm90 *p, const dense_sums *sums, nsa_stream stream)
{
    return launch_sums(p, sums, p->a.dphi.b2, stream);
}
