/*
 * linear and mlp, and the tables of compression. With in = flat(x + pe) of a block:
 *
 *     z = in w1 + b1    h = GELU(z)    y = h w2 + b2                                   (linear: y = in w1)
 *     dz = (dy w2^T) GELU'(z)                                                          (linear: dz = dy)
 *     dw2 = sum h^T dy    db2 = sum dy    dw1 = sum in^T dz    db1 = sum dz    dpe = (sum dz) w1^T
 *     dx of a token = sum over its blocks of dz w1^T, at its place
 */
#include "ops/compress/compress_simt.cuh"

/* ---- Tables */

static __global__ __launch_bounds__(THREADS) void rows_kernel(const __grid_constant__ compress_simt_args p, int64_t n)
{
    for (int64_t r = first_element(); r < n; r += element_stride())
        p.rows[r] = row_at(p, r);
}

static __global__ __launch_bounds__(THREADS) void tokens_kernel(const __grid_constant__ compress_simt_args p, int64_t n)
{
    const nsa_config &c = p.cfg.c;
    for (int64_t i = first_element(); i < n; i += element_stride()) {
        const int32_t s = seq_of_row(p.seqs.cu_k, p.seqs.n, 1, i);
        const seq_range k = seq_k(p.seqs, s);
        const int64_t t = i - k.start;
        const bool is = t >= 0 && t < k.n;
        const block_range blocks = blocks_of(c, is ? (int32_t)t : 0, (int32_t)n_cmp_seen(c, k.n - 1));
        const cmp_token token = {is ? s : -1,
                                 (int32_t)k.start,
                                 (int32_t)t,
                                 (int32_t)(k.start / c.cmp_stride) + blocks.first,
                                 blocks.end - blocks.first,
                                 (int32_t)t - blocks.first * c.cmp_stride};
        p.tokens[i] = token;
    }
}

/* ---- Forward */

/* in[k] of a block. */
static __device__ float in_of(const compress_simt_args &p, const cmp_row &row, int64_t head, int64_t k)
{
    return x_of(p, row, head, k / p.d, k % p.d) + param(p, p.phi.pe, head, (int64_t)p.cfg.c.cmp_block * p.d, k);
}

static __device__ int64_t n_in(const compress_simt_args &p)
{
    return (int64_t)p.cfg.c.cmp_block * p.d;
}

static __device__ float gelu(float z)
{
    return 0.5F * z * erfcf(-z * 0.70710678118654752440F);
}

static __device__ float gelu_slope(float z)
{
    const float inv_sqrt_2pi = 0.39894228040143267794F;
    return 0.5F * erfcf(-z * 0.70710678118654752440F) + z * expf(-0.5F * z * z) * inv_sqrt_2pi;
}

/* Elements [row][head][column]: z and h of mlp, y of linear. */
static __global__ __launch_bounds__(THREADS) void first_layer_kernel(const __grid_constant__ compress_simt_args p,
                                                                     int64_t n)
{
    const bool mlp = p.phi.kind == NSA_PHI_MLP;
    for (int64_t i = first_element(); i < n; i += element_stride()) {
        const int64_t j = i % p.width, head = i / p.width % p.cfg.c.n_heads_kv;
        const cmp_row row = p.rows[i / p.width / p.cfg.c.n_heads_kv];
        if (row.s < 0)
            continue;
        float z = mlp ? param(p, p.phi.b1, head, p.width, j) : 0.0F;
        for (int64_t k = 0; k < n_in(p); k++)
            z = fmaf(in_of(p, row, head, k), param(p, p.phi.w1, head, n_in(p) * p.width, k * p.width + j), z);
        if (mlp) {
            p.z[i] = z;
            p.h[i] = gelu(z);
        } else {
            store(p.y, at_row(p, p.y, row, head) + j, z);
        }
    }
}

/* y of mlp: elements [row][head][channel]. */
static __global__ __launch_bounds__(THREADS) void second_layer_kernel(const __grid_constant__ compress_simt_args p,
                                                                      int64_t n)
{
    for (int64_t i = first_element(); i < n; i += element_stride()) {
        const int64_t c = i % p.d, row_head = i / p.d, head = row_head % p.cfg.c.n_heads_kv;
        const cmp_row row = p.rows[row_head / p.cfg.c.n_heads_kv];
        if (row.s < 0)
            continue;
        float y = param(p, p.phi.b2, head, p.d, c);
        for (int64_t j = 0; j < p.width; j++)
            y = fmaf(p.h[row_head * p.width + j], param(p, p.phi.w2, head, (int64_t)p.width * p.d, j * p.d + c), y);
        store(p.y, at_row(p, p.y, row, head) + c, y);
    }
}

/* ---- Backward */

static __global__ __launch_bounds__(THREADS) void dz_kernel(const __grid_constant__ compress_simt_args p, int64_t n)
{
    for (int64_t i = first_element(); i < n; i += element_stride()) {
        const int64_t j = i % p.width, head = i / p.width % p.cfg.c.n_heads_kv;
        const cmp_row row = p.rows[i / p.width / p.cfg.c.n_heads_kv];
        if (row.s < 0)
            continue;
        float dz = 0.0F;
        if (p.phi.kind == NSA_PHI_MLP) {
            for (int64_t c = 0; c < p.d; c++)
                dz = fmaf(dy_of(p, row, head, c), param(p, p.phi.w2, head, (int64_t)p.width * p.d, j * p.d + c), dz);
            dz *= gelu_slope(p.z[i]);
        } else {
            dz = dy_of(p, row, head, j);
        }
        p.dz[i] = dz;
    }
}

/* Sums of elements [set][column]. */
static __global__ __launch_bounds__(THREADS) void db1_kernel(const __grid_constant__ compress_simt_args p, int64_t n)
{
    for (int64_t i = first_element(); i < n; i += element_stride()) {
        const partial_sum own = partial_sum_of(i, (int64_t)p.n_sets * p.width, p.n_rows);
        const head_range heads = heads_of(p, own.element / p.width);
        float sum = 0.0F;
        for (int64_t r = own.first; r < own.end; r++)
            for (int64_t head = heads.first; head < heads.end && p.rows[r].s >= 0; head++)
                sum += p.dz[(r * p.cfg.c.n_heads_kv + head) * p.width + own.element % p.width];
        p.sums[i] = sum;
    }
}

/* Sums of elements [set][k][column]. */
static __global__ __launch_bounds__(THREADS) void dw1_kernel(const __grid_constant__ compress_simt_args p, int64_t n)
{
    for (int64_t i = first_element(); i < n; i += element_stride()) {
        const partial_sum own = partial_sum_of(i, p.n_sets * n_in(p) * p.width, p.n_rows);
        const int64_t j = own.element % p.width, k = own.element / p.width % n_in(p);
        const head_range heads = heads_of(p, own.element / p.width / n_in(p));
        float sum = 0.0F;
        for (int64_t r = own.first; r < own.end; r++)
            for (int64_t head = heads.first; head < heads.end && p.rows[r].s >= 0; head++)
                sum = fmaf(in_of(p, p.rows[r], head, k), p.dz[(r * p.cfg.c.n_heads_kv + head) * p.width + j], sum);
        p.sums[i] = sum;
    }
}

/* Elements [set][k]. */
static __global__ __launch_bounds__(THREADS) void dpe_kernel(const __grid_constant__ compress_simt_args p, int64_t n)
{
    for (int64_t i = first_element(); i < n; i += element_stride()) {
        const int64_t k = i % n_in(p), set = i / n_in(p);
        float sum = 0.0F;
        for (int64_t j = 0; j < p.width; j++)
            sum = fmaf(p.dz_sum[set * p.width + j], param(p, p.phi.w1, set, n_in(p) * p.width, k * p.width + j), sum);
        store_as(p.dphi.pe, p.phi.dtype, i, sum);
    }
}

/* Sums of elements [set][column][channel]. */
static __global__ __launch_bounds__(THREADS) void dw2_kernel(const __grid_constant__ compress_simt_args p, int64_t n)
{
    for (int64_t i = first_element(); i < n; i += element_stride()) {
        const partial_sum own = partial_sum_of(i, (int64_t)p.n_sets * p.width * p.d, p.n_rows);
        const int64_t c = own.element % p.d, j = own.element / p.d % p.width;
        const head_range heads = heads_of(p, own.element / p.d / p.width);
        float sum = 0.0F;
        for (int64_t r = own.first; r < own.end; r++)
            for (int64_t head = heads.first; head < heads.end && p.rows[r].s >= 0; head++)
                sum = fmaf(p.h[(r * p.cfg.c.n_heads_kv + head) * p.width + j], dy_of(p, p.rows[r], head, c), sum);
        p.sums[i] = sum;
    }
}

/* Sums of elements [set][channel]. */
static __global__ __launch_bounds__(THREADS) void db2_kernel(const __grid_constant__ compress_simt_args p, int64_t n)
{
    for (int64_t i = first_element(); i < n; i += element_stride()) {
        const partial_sum own = partial_sum_of(i, (int64_t)p.n_sets * p.d, p.n_rows);
        const head_range heads = heads_of(p, own.element / p.d);
        float sum = 0.0F;
        for (int64_t r = own.first; r < own.end; r++)
            for (int64_t head = heads.first; head < heads.end && p.rows[r].s >= 0; head++)
                sum += dy_of(p, p.rows[r], head, own.element % p.d);
        p.sums[i] = sum;
    }
}

/* Elements [token][head][channel]. */
static __global__ __launch_bounds__(THREADS) void dx_kernel(const __grid_constant__ compress_simt_args p, int64_t n)
{
    for (int64_t i = first_element(); i < n; i += element_stride()) {
        const int64_t c = i % p.d, head = i / p.d % p.cfg.c.n_heads_kv;
        const cmp_token token = p.tokens[i / p.d / p.cfg.c.n_heads_kv];
        if (token.s < 0)
            continue;
        float dx = 0.0F;
        for (int64_t b = 0; b < token.n_rows; b++) {
            const int64_t k = (token.place - b * p.cfg.c.cmp_stride) * p.d + c;
            const float *dz = p.dz + ((token.first_row + b) * p.cfg.c.n_heads_kv + head) * p.width;
            for (int64_t j = 0; j < p.width; j++)
                dx = fmaf(dz[j], param(p, p.phi.w1, head, n_in(p) * p.width, k * p.width + j), dx);
        }
        store_dx(p, token, head, c, dx);
    }
}

/* ---- Launches */

int launch_compress_tables(const compress_simt_args *p, nsa_stream stream)
{
    cudaError_t error = cudaSuccess;
    LAUNCH_EACH(error, rows_kernel, p->n_rows, *p, stream);
    LAUNCH_EACH(error, tokens_kernel, p->seqs.total_k, *p, stream);
    return error;
}

int launch_compress_dense(const compress_simt_args *p, nsa_stream stream)
{
    const int64_t n = p->n_rows * p->cfg.c.n_heads_kv;
    cudaError_t error = cudaSuccess;
    LAUNCH_EACH(error, first_layer_kernel, n * p->width, *p, stream);
    if (p->phi.kind == NSA_PHI_MLP)
        LAUNCH_EACH(error, second_layer_kernel, n * p->d, *p, stream);
    return error;
}

int launch_compress_dense_backward(const compress_simt_args *p, nsa_stream stream)
{
    const int64_t n = p->n_rows * p->cfg.c.n_heads_kv, in = (int64_t)p->cfg.c.cmp_block * p->d;
    cudaError_t error = cudaSuccess;
    if (p->phi.kind == NSA_PHI_MLP)
        LAUNCH_EACH(error, first_layer_kernel, n * p->width, *p, stream);
    LAUNCH_EACH(error, dz_kernel, n * p->width, *p, stream);
    LAUNCH_EACH(error, dx_kernel, p->seqs.total_k * p->cfg.c.n_heads_kv * p->d, *p, stream);
    LAUNCH_SUMS(error, db1_kernel, (int64_t)p->n_sets * p->width, p->n_rows, p->dz_sum, NSA_F32, *p, stream);
    if (p->dphi.b1 != NULL)
        LAUNCH_ADD_PARTS(error, (int64_t)p->n_sets * p->width, p->n_rows, p->dphi.b1, p->phi.dtype, *p, stream);
    LAUNCH_SUMS(error, dw1_kernel, p->n_sets * in * p->width, p->n_rows, p->dphi.w1, p->phi.dtype, *p, stream);
    if (p->dphi.pe != NULL)
        LAUNCH_EACH(error, dpe_kernel, p->n_sets * in, *p, stream);
    if (p->dphi.w2 != NULL)
        LAUNCH_SUMS(error, dw2_kernel, (int64_t)p->n_sets * p->width * p->d, p->n_rows, p->dphi.w2, p->phi.dtype, *p,
                    stream);
    if (p->dphi.b2 != NULL)
        LAUNCH_SUMS(error, db2_kernel, (int64_t)p->n_sets * p->d, p->n_rows, p->dphi.b2, p->phi.dtype, *p, stream);
    return error;
}
