/*
 * Before and after the walks of attn_bwd_sm90.cu.
 *
 *     rows_kernel     a block for each row tile: delta, what else a step needs of its rows; zeros where nobody adds
 *     keys_kernel     a block for each key tile: dk and dv from its sums
 *     round_kernel    a warp for each (token, head): dq from the workspace
 *
 * Cost: d_o and o are read once, 0.75 ms at 64k (64 heads, d 128) at 3 TB/s; the results once or twice.
 */
#include "ops/attn_tile/attn_bwd_sm90.cuh"

/* ---- Before */

enum { LANES_PER_ROW = 8 };

/* d_o . o of a row by 8 lanes; `finite` becomes false in one that has a part of d_o which is not. */
static __device__ float dot_row(const uint4 *x, const uint4 *y, int n, bool *finite)
{
    float sum = 0.0F;
    for (int i = lane_index() % LANES_PER_ROW; i < n; i += LANES_PER_ROW) {
        const uint4 x4 = x[i], y4 = y[i];
        const uint32_t xs[] = {x4.x, x4.y, x4.z, x4.w}, ys[] = {y4.x, y4.y, y4.z, y4.w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
            *finite = *finite && !not_finite(xs[j]);
            const float2 a = __bfloat1622float2(*(const __nv_bfloat162 *)&xs[j]),
                         b = __bfloat1622float2(*(const __nv_bfloat162 *)&ys[j]);
            sum = fmaf(a.y, b.y, fmaf(a.x, b.x, sum));
        }
    }
    for (int i = LANES_PER_ROW / 2; i > 0; i /= 2)
        sum += __shfl_xor_sync(~0U, sum, i);
    return sum;
}

/* Nobody adds to these rows of dq. */
static __device__ void clear_rows(const attn_bwd_sm90 &p, int32_t s, int64_t start, int64_t first, int64_t n,
                                  int32_t head)
{
    const int d = p.a.cfg.c.d_qk;
    for (int64_t i = threadIdx.x; i < n * p.heads * d; i += blockDim.x)
        store(p.dq, offset_of(p.dq, s, start, first + i / d / p.heads, head + i / d % p.heads) + i % d, 0.0F);
}

static __device__ bool rises(const int32_t *cu, int64_t i)
{
    return cu[i] <= cu[i + 1];
}

static __global__ __launch_bounds__(WARP *WARPS) void rows_kernel(const __grid_constant__ attn_bwd_sm90 p)
{
    const attn_simt &a = p.a;
    const nsa_config &c = a.cfg.c;
    for (int64_t i = first_element(); i < a.seqs.n; i += element_stride())
        if (!rises(a.seqs.cu_q, i) || !rises(a.seqs.cu_k, i))
            *p.unsound = 1;
    const int32_t part = (int32_t)(blockIdx.x % p.parts), head = (int32_t)(blockIdx.x / p.parts % c.n_heads_kv);
    const int64_t tile = blockIdx.x / p.parts / c.n_heads_kv;
    const int32_t s = seq_of_tile(a.seqs.cu_q, a.seqs.n, a.seqs.total_q, 1, p.tokens, tile);
    const seq_range q = seq_q(a.seqs, s), k = seq_k(a.seqs, s);
    const int64_t first = (tile - first_tile(a.seqs.cu_q, s, a.seqs.total_q, 1, p.tokens)) * p.tokens;
    if (first >= q.n)
        return;
    bwd_stats *stats = &p.stats[row_index(p, (int32_t)tile, head, part)];
    const int32_t first_head = head * a.cfg.group + part * p.heads;
    const int64_t n = min64(p.tokens, q.n - first), t = first + k.n - q.n;
    bool plain = n == p.tokens;
    for (int r = threadIdx.x / LANES_PER_ROW; r < ROWS; r += WARP * WARPS / LANES_PER_ROW) {
        const int64_t row = first + r / p.heads, h = first_head + r % p.heads;
        const bool there = r < n * p.heads;
        const int64_t o_at = there ? offset_of(a.o, s, q.start, row, h) : 0;
        const int64_t d_o_at = there ? offset_of(a.d_o, s, q.start, row, h) : 0;
        const float delta = dot_row((const uint4 *)((const bf16 *)a.d_o.data + d_o_at),
                                    (const uint4 *)((const bf16 *)a.o.data + o_at), there ? c.d_v / 8 : 0, &plain);
        if (lane_index() % LANES_PER_ROW != 0)
            continue;
        const float lse = there ? load(a.lse, offset_of(a.lse, s, q.start, row, h)) : -INFINITY;
        const float gate =
            !there || a.gate.data == NULL ? 1.0F : load(a.gate, offset_of(a.gate, s, q.start, row, h) + a.branch);
        stats->lse[r] = lse == -INFINITY ? INFINITY : lse * LOG2_E - log2f(fabsf(gate));
        stats->delta[r] = delta * a.cfg.scale;
        stats->sign[r] = copysignf(1.0F, gate);
        plain = plain && !signbit(gate);
    }
    plain = __syncthreads_and(plain) != 0;
    int32_t lo, hi;
    keys_seen(a, (int32_t)t, (int32_t)(t + n - 1), &lo, &hi);
    if (threadIdx.x == 0) {
        const int div = a.branch == NSA_CMP ? c.cmp_stride : 1;
        stats->first = (int32_t)first_tile(a.seqs.cu_k, s, a.seqs.total_k, div, p.keys) + lo / p.keys;
        stats->plain = plain;
    }
    if (hi == 0 && !p.add_dq)
        clear_rows(p, s, q.start, first, n, first_head);
}

/* ---- After */

static __device__ void put2(const nsa_tensor &t, int64_t at, float a, float b, bool add)
{
    store(t, at, add ? load(t, at) + a : a);
    store(t, at + 1, add ? load(t, at + 1) + b : b);
}

/* A consumer thread has 64 keys of all channels, or, of a tile of 64 keys, those of half of the channels. */
template <int KEYS>
static __global__ __launch_bounds__(CONSUMERS) void keys_kernel(const __grid_constant__ attn_bwd_sm90 p)
{
    const attn_simt &a = p.a;
    const int32_t d_qk = a.cfg.c.d_qk, d_v = a.cfg.c.d_v, n_heads = a.cfg.c.n_heads_kv;
    key_walk w;
    if (!find_key_tile<KEYS>(p, blockIdx.x / n_heads, (int32_t)(blockIdx.x % n_heads), &w))
        return;
    const float4 *sums = sums_of<KEYS>(p, w);
    const int wg = (int)threadIdx.x / WARPGROUP, n_halves = 2 * 64 / KEYS, half = wg % n_halves;
    const int row = (wg - half) * 64 + (int)threadIdx.x / WARP % 4 * 16 + lane_index() / 4;
    const int n_k = d_qk / n_halves, n_v = d_v / n_halves;
    for (int i = 0; i < (n_k + n_v) / 8; i++) {
        const float4 sum = w.lo < w.hi ? sums[i * CONSUMERS] : make_float4(0.0F, 0.0F, 0.0F, 0.0F);
        const bool is_k = i < n_k / 8;
        const nsa_tensor &to = is_k ? a.dk : a.dv;
        const bool add = is_k ? a.add_dk : a.add_dv;
        const int channel = (is_k ? half * n_k + i * 8 : half * n_v + i * 8 - n_k) + 2 * (lane_index() % 4);
        if (w.first + row < w.n_keys)
            put2(to, offset_of(to, w.s, w.k_start, w.first + row, w.head) + channel, sum.x, sum.y, add);
        if (w.first + row + 8 < w.n_keys)
            put2(to, offset_of(to, w.s, w.k_start, w.first + row + 8, w.head) + channel, sum.z, sum.w, add);
    }
}

/* dq from the workspace. */
static __global__ __launch_bounds__(WARP *WARPS) void round_kernel(const __grid_constant__ attn_bwd_sm90 p)
{
    const nsa_config &c = p.a.cfg.c;
    const int64_t n_items = p.a.seqs.total_q * c.n_heads_q;
    for (int64_t i = first_item(); i < n_items; i += item_stride()) {
        query x;
        if (!find_query(p.a.seqs, c.n_heads_q, i, &x))
            continue;
        const float *from = (const float *)p.dq.data + offset_at(p.dq, x.at, x.at.head);
        const int64_t to = offset_at(p.a.dq, x.at, x.at.head);
        for (int j = 2 * lane_index(); j < c.d_qk; j += 2 * WARP)
            put2(p.a.dq, to + j, from[j], from[j + 1], p.a.add_dq);
    }
}

/* ---- Launches */

int launch_attn_bwd_rows(const attn_bwd_sm90 *p, nsa_stream stream)
{
    const cudaError_t error = cudaMemsetAsync(p->turn, 0, p->cleared, stream);
    if (error != cudaSuccess)
        return error;
    rows_kernel<<<(unsigned)p->q_tiles * p->a.cfg.c.n_heads_kv * p->parts, WARP * WARPS, 0, stream>>>(*p);
    return cudaGetLastError();
}

int launch_attn_bwd_results(const attn_bwd_sm90 *p, nsa_stream stream)
{
    const auto kernel = p->keys == 64 ? keys_kernel<64> : keys_kernel<128>;
    kernel<<<(unsigned)p->k_tiles * p->a.cfg.c.n_heads_kv, CONSUMERS, 0, stream>>>(*p);
    if (p->dq.data != p->a.dq.data)
        LAUNCH_WARPS(round_kernel, p->a.seqs.total_q * p->a.cfg.c.n_heads_q, stream, *p);
    return cudaGetLastError();
}
