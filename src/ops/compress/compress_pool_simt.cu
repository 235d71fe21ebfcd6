/*
 * gated_token and gated_channel: weighted sums of a block's rows. A token's logits, x w1, are the same in all of
 * its blocks and made once; only the bias differs. Column of channel c: c, or 0 of gated_token.
 *
 *     a_r = exp(logit_r + b1_r - max) / sum      y_c = sum_r a_r x_rc
 *     da_r = x_rc dy_c (gated_token: x_r . dy)   dlogit_r = a_r (da_r - sum_r a_r da_r)
 *     dx of a token = sum over its blocks of a dy, + (sum over its blocks of dlogit) w1^T
 *     dw1 = sum over tokens of x^T (sum over its blocks of dlogit)      db1_r = sum over blocks of dlogit_r
 */
#include "ops/compress/compress_simt.cuh"

static __device__ int64_t column_of(const compress_simt_args &p, int64_t c)
{
    return p.width == 1 ? 0 : c;
}

/* With its bias: token r of a block. */
static __device__ float logit_of(const compress_simt_args &p, const cmp_row &row, int64_t head, int64_t r,
                                 int64_t column)
{
    const int64_t token = (int64_t)row.start + (int64_t)row.i * p.cfg.c.cmp_stride + r;
    return p.logits[(token * p.cfg.c.n_heads_kv + head) * p.width + column] +
           param(p, p.phi.b1, head, (int64_t)p.cfg.c.cmp_block * p.width, r * p.width + column);
}

static __device__ float max_logit(const compress_simt_args &p, const cmp_row &row, int64_t head, int64_t column)
{
    float max = -INFINITY;
    for (int64_t r = 0; r < p.cfg.c.cmp_block; r++)
        max = fmaxf(max, logit_of(p, row, head, r, column));
    return max;
}

/* Elements [token][head][column]. */
static __global__ __launch_bounds__(THREADS) void logits_kernel(const __grid_constant__ compress_simt_args p, int64_t n)
{
    for (int64_t i = first_element(); i < n; i += element_stride()) {
        const int64_t j = i % p.width, head = i / p.width % p.cfg.c.n_heads_kv;
        const cmp_token token = p.tokens[i / p.width / p.cfg.c.n_heads_kv];
        if (token.s < 0 || token.n_rows == 0)
            continue;
        float logit = 0.0F;
        for (int64_t c = 0; c < p.d; c++)
            logit =
                fmaf(x_of(p, token, head, c), param(p, p.phi.w1, head, (int64_t)p.d * p.width, c * p.width + j), logit);
        p.logits[i] = logit;
    }
}

/* y: elements [row][head][channel]. */
static __global__ __launch_bounds__(THREADS) void forward_kernel(const __grid_constant__ compress_simt_args p,
                                                                 int64_t n)
{
    for (int64_t i = first_element(); i < n; i += element_stride()) {
        const int64_t c = i % p.d, head = i / p.d % p.cfg.c.n_heads_kv;
        const cmp_row row = p.rows[i / p.d / p.cfg.c.n_heads_kv];
        if (row.s < 0)
            continue;
        const float max = max_logit(p, row, head, column_of(p, c));
        float sum = 0.0F, y = 0.0F;
        for (int64_t r = 0; r < p.cfg.c.cmp_block; r++) {
            const float a = expf(logit_of(p, row, head, r, column_of(p, c)) - max);
            sum += a;
            y = fmaf(a, x_of(p, row, head, r, c), y);
        }
        store(p.y, at_row(p, p.y, row, head) + c, y / sum);
    }
}

/* ---- Backward */

/* gated_token: elements [row][head][token of the block]. */
static __global__ __launch_bounds__(THREADS) void dots_kernel(const __grid_constant__ compress_simt_args p, int64_t n)
{
    for (int64_t i = first_element(); i < n; i += element_stride()) {
        const int64_t r = i % p.cfg.c.cmp_block, head = i / p.cfg.c.cmp_block % p.cfg.c.n_heads_kv;
        const cmp_row row = p.rows[i / p.cfg.c.cmp_block / p.cfg.c.n_heads_kv];
        if (row.s < 0)
            continue;
        float dot = 0.0F;
        for (int64_t c = 0; c < p.d; c++)
            dot = fmaf(x_of(p, row, head, r, c), dy_of(p, row, head, c), dot);
        p.dots[i] = dot;
    }
}

/* da of row number `at`. */
static __device__ float da_of(const compress_simt_args &p, int64_t at, int64_t head, int64_t r, int64_t column)
{
    if (p.phi.kind == NSA_PHI_GATED_TOKEN)
        return p.dots[(at * p.cfg.c.n_heads_kv + head) * p.cfg.c.cmp_block + r];
    return x_of(p, p.rows[at], head, r, column) * dy_of(p, p.rows[at], head, column);
}

/* Elements [row][head][column]. */
static __global__ __launch_bounds__(THREADS) void stats_kernel(const __grid_constant__ compress_simt_args p, int64_t n)
{
    for (int64_t i = first_element(); i < n; i += element_stride()) {
        const int64_t column = i % p.width, head = i / p.width % p.cfg.c.n_heads_kv;
        const int64_t at = i / p.width / p.cfg.c.n_heads_kv;
        const cmp_row row = p.rows[at];
        if (row.s < 0)
            continue;
        const float max = max_logit(p, row, head, column);
        float sum = 0.0F, mean = 0.0F;
        for (int64_t r = 0; r < p.cfg.c.cmp_block; r++) {
            const float a = expf(logit_of(p, row, head, r, column) - max);
            sum += a;
            mean = fmaf(a, da_of(p, at, head, r, column), mean);
        }
        p.stats[3 * i] = max;
        p.stats[3 * i + 1] = sum;
        p.stats[3 * i + 2] = mean / sum;
    }
}

/* The weight of token r in row number `at`. */
static __device__ float weight_of(const compress_simt_args &p, int64_t at, int64_t head, int64_t r, int64_t column)
{
    const float *stats = p.stats + 3 * ((at * p.cfg.c.n_heads_kv + head) * p.width + column);
    return expf(logit_of(p, p.rows[at], head, r, column) - stats[0]) / stats[1];
}

static __device__ float dlogit_of(const compress_simt_args &p, int64_t at, int64_t head, int64_t r, int64_t column)
{
    const float mean = p.stats[3 * ((at * p.cfg.c.n_heads_kv + head) * p.width + column) + 2];
    return weight_of(p, at, head, r, column) * (da_of(p, at, head, r, column) - mean);
}

/* Elements [token][head][column]. */
static __global__ __launch_bounds__(THREADS) void dlogits_kernel(const __grid_constant__ compress_simt_args p,
                                                                 int64_t n)
{
    for (int64_t i = first_element(); i < n; i += element_stride()) {
        const int64_t column = i % p.width, head = i / p.width % p.cfg.c.n_heads_kv;
        const cmp_token token = p.tokens[i / p.width / p.cfg.c.n_heads_kv];
        if (token.s < 0)
            continue;
        float sum = 0.0F;
        for (int64_t b = 0; b < token.n_rows; b++)
            sum += dlogit_of(p, token.first_row + b, head, token.place - b * p.cfg.c.cmp_stride, column);
        p.dlogits[i] = sum;
    }
}

/* Elements [token][head][channel]. */
static __global__ __launch_bounds__(THREADS) void dx_kernel(const __grid_constant__ compress_simt_args p, int64_t n)
{
    for (int64_t i = first_element(); i < n; i += element_stride()) {
        const int64_t c = i % p.d, token_head = i / p.d, head = token_head % p.cfg.c.n_heads_kv;
        const cmp_token token = p.tokens[token_head / p.cfg.c.n_heads_kv];
        if (token.s < 0)
            continue;
        float dx = 0.0F;
        for (int64_t b = 0; b < token.n_rows; b++) {
            const int64_t at = token.first_row + b, r = token.place - b * p.cfg.c.cmp_stride;
            dx = fmaf(weight_of(p, at, head, r, column_of(p, c)), dy_of(p, p.rows[at], head, c), dx);
        }
        for (int64_t j = 0; j < p.width && token.n_rows > 0; j++)
            dx = fmaf(p.dlogits[token_head * p.width + j],
                      param(p, p.phi.w1, head, (int64_t)p.d * p.width, c * p.width + j), dx);
        store_dx(p, token, head, c, dx);
    }
}

/* Sums of elements [set][channel][column]. A token in no block may hold anything. */
static __global__ __launch_bounds__(THREADS) void dw1_kernel(const __grid_constant__ compress_simt_args p, int64_t n)
{
    const int64_t n_elements = (int64_t)p.n_sets * p.d * p.width;
    for (int64_t i = first_element(); i < n; i += element_stride()) {
        const partial_sum own = partial_sum_of(i, n_elements, p.seqs.total_k);
        const int64_t j = own.element % p.width, c = own.element / p.width % p.d;
        const head_range heads = heads_of(p, own.element / p.width / p.d);
        float sum = 0.0F;
        for (int64_t t = own.first; t < own.end; t++) {
            const cmp_token token = p.tokens[t];
            for (int64_t head = heads.first; head < heads.end && token.s >= 0 && token.n_rows > 0; head++)
                sum = fmaf(x_of(p, token, head, c), p.dlogits[(t * p.cfg.c.n_heads_kv + head) * p.width + j], sum);
        }
        p.sums[i] = sum;
    }
}

/* Sums of elements [set][token of the block][column]. */
static __global__ __launch_bounds__(THREADS) void db1_kernel(const __grid_constant__ compress_simt_args p, int64_t n)
{
    const int64_t n_elements = (int64_t)p.n_sets * p.cfg.c.cmp_block * p.width;
    for (int64_t i = first_element(); i < n; i += element_stride()) {
        const partial_sum own = partial_sum_of(i, n_elements, p.n_rows);
        const int64_t column = own.element % p.width, r = own.element / p.width % p.cfg.c.cmp_block;
        const head_range heads = heads_of(p, own.element / p.width / p.cfg.c.cmp_block);
        float sum = 0.0F;
        for (int64_t at = own.first; at < own.end; at++)
            for (int64_t head = heads.first; head < heads.end && p.rows[at].s >= 0; head++)
                sum += dlogit_of(p, at, head, r, column);
        p.sums[i] = sum;
    }
}

/* ---- Launches */

int launch_compress_pool(const compress_simt_args *p, nsa_stream stream)
{
    const int64_t n_heads = p->cfg.c.n_heads_kv;
    cudaError_t error = cudaSuccess;
    LAUNCH_EACH(error, logits_kernel, p->seqs.total_k * n_heads * p->width, *p, stream);
    LAUNCH_EACH(error, forward_kernel, p->n_rows * n_heads * p->d, *p, stream);
    return error;
}

int launch_compress_pool_backward(const compress_simt_args *p, nsa_stream stream)
{
    const int64_t n_heads = p->cfg.c.n_heads_kv, block = p->cfg.c.cmp_block;
    cudaError_t error = cudaSuccess;
    LAUNCH_EACH(error, logits_kernel, p->seqs.total_k * n_heads * p->width, *p, stream);
    if (p->phi.kind == NSA_PHI_GATED_TOKEN)
        LAUNCH_EACH(error, dots_kernel, p->n_rows * n_heads * block, *p, stream);
    LAUNCH_EACH(error, stats_kernel, p->n_rows * n_heads * p->width, *p, stream);
    LAUNCH_EACH(error, dlogits_kernel, p->seqs.total_k * n_heads * p->width, *p, stream);
    LAUNCH_SUMS(error, dw1_kernel, (int64_t)p->n_sets * p->d * p->width, p->seqs.total_k, p->dphi.w1, p->phi.dtype, *p,
                stream);
    LAUNCH_SUMS(error, db1_kernel, p->n_sets * block * p->width, p->n_rows, p->dphi.b1, p->phi.dtype, *p, stream);
    LAUNCH_EACH(error, dx_kernel, p->seqs.total_k * n_heads * p->d, *p, stream);
    return error;
}
