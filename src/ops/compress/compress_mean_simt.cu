/*
 * mean: y = sum_r x_r / block, dx of a token = sum over its blocks of dy / block. Bound by the bytes of x and dx, of
 * which a lane has a chunk. The tokens that blocks share come from L2 the second time.
 */
#include "cuda/chunks.cuh"
#include "ops/compress/compress_simt.cuh"

/* Chunks [row][head][lane]. */
template <typename T>
static __global__ __launch_bounds__(THREADS) void forward_kernel(const __grid_constant__ compress_simt_args p,
                                                                 int64_t n)
{
    const int lanes = chunk_lanes(p.d);
    for (int64_t i = first_element(); i < n * lanes; i += element_stride()) {
        const int c = (int)(i % lanes) * CHUNK, left = p.d - c;
        const int64_t head = i / lanes % p.cfg.c.n_heads_kv;
        const cmp_row row = row_at(p, i / lanes / p.cfg.c.n_heads_kv);
        if (row.s < 0 || left <= 0)
            continue;
        const int64_t first = offset_of(p.x, row.s, row.start, (int64_t)row.i * p.cfg.c.cmp_stride, head) + c;
        chunk<float> y = {};
#pragma unroll 8
        for (int64_t r = 0; r < p.cfg.c.cmp_block; r++) {
            const chunk<T> x = load_chunk<T>(p.x, first + r * p.x.stride_token, left, p.whole);
            for (int k = 0; k < CHUNK; k++)
                y.x[k] += to_float(x.x[k]);
        }
        for (int k = 0; k < CHUNK; k++)
            y.x[k] /= (float)p.cfg.c.cmp_block;
        store_chunk(p.y, at_row(p, p.y, row, head) + c, left, p.whole, narrow<T>(y));
    }
}

static __global__ __launch_bounds__(CHUNK_THREADS) void dx_kernel(const __grid_constant__ compress_simt_args p)
{
    const nsa_config &c = p.cfg.c;
    const float weight = 1.0F / (float)c.cmp_block;
    for (int64_t i = blockIdx.x; i < n_row_shares(p.seqs.total_k, c.n_heads_kv, p.seqs.n); i += gridDim.x) {
        row_share own;
        if (!find_rows(p.seqs.cu_k, p.seqs.n, p.seqs.total_k, p.seqs.max_k, c.n_heads_kv, p.d, i, &own) ||
            own.channel >= p.d)
            continue;
        const int left = p.d - own.channel, n_cmp = (int)n_cmp_seen(c, own.first.seq.n - 1);
        const int64_t first_row = own.first.seq.start / c.cmp_stride;
        for (int r = own.row; r < own.n; r += own.step) {
            const place at = place_of(own, r);
            const block_range blocks = blocks_of(c, (int)at.row, n_cmp);
            const int64_t to = chunk_at(p.dx, own, at);
            chunk<float> dx = {};
            for (int b = blocks.first; b < blocks.end; b++) {
                const int64_t from = offset_of(p.dy, at.s, first_row, b, at.head) + own.channel;
                const chunk<float> dy = load_floats(p.dy, from, left, p.whole);
                for (int k = 0; k < CHUNK; k++)
                    dx.x[k] = fmaf(weight, dy.x[k], dx.x[k]);
            }
            if (p.add_dx) {
                const chunk<float> before = load_floats(p.dx, to, left, p.whole);
                for (int k = 0; k < CHUNK; k++)
                    dx.x[k] += before.x[k];
            }
            store_floats(p.dx, to, left, p.whole, dx);
        }
    }
}

int launch_compress_mean(const compress_simt_args *p, nsa_stream stream)
{
    const int64_t n = p->n_rows * p->cfg.c.n_heads_kv;
    const unsigned grid = grid_of(n * chunk_lanes(p->d), THREADS);
    if (n == 0)
        return cudaSuccess;
    switch (p->x.dtype) {
    case NSA_BF16: forward_kernel<bf16><<<grid, THREADS, 0, stream>>>(*p, n); break;
    case NSA_F16: forward_kernel<f16><<<grid, THREADS, 0, stream>>>(*p, n); break;
    default: forward_kernel<float><<<grid, THREADS, 0, stream>>>(*p, n); break;
    }
    return cudaGetLastError();
}

int launch_compress_mean_backward(const compress_simt_args *p, nsa_stream stream)
{
    LAUNCH_ROWS(dx_kernel, p->seqs.total_k, p->cfg.c.n_heads_kv, p->seqs.n, stream, *p);
    return cudaGetLastError();
}
