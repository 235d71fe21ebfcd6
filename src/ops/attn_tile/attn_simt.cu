/*
 * Attention, a warp for each row.
 *
 *     forward    of a (token, query head): 32 keys at a time; lanes are keys in scores, channels in o
 *     dq         the same, and delta = gate do . o on the way
 *     dk, dv     of a (key, kv head): 32 (token, head) rows that see the key at a time, as lanes
 *
 * Shared memory holds the warp's own row (q; q and gate do; k and v) as float32, registers a lane's channels of the
 * results.
 *
 * What a row does not see is never touched, so nothing there has an influence. Sums are in the order of the keys (of
 * the tokens), whatever the order of slc_idx, so results are the same bits in every run. float32 throughout.
 *
 * Cost: every product is an FMA whose operands come from global memory through the L1 cache. Not timed yet.
 */
#include "ops/attn_tile/attn_simt.h"
#include "cuda/simt.cuh"

/* ---- Which keys a row sees */

static __device__ int kv_head_of(const attn_simt &p, const query &x)
{
    return x.at.head / p.cfg.group;
}

static __device__ int64_t at_query(const nsa_tensor &t, const query &x)
{
    return offset_at(t, x.at, x.at.head);
}

/* Where the keys of a sequence start in a packed tensor. */
static __device__ int64_t key_start(const attn_simt &p, const seq_range &k)
{
    return p.branch == NSA_CMP ? k.start / p.cfg.c.cmp_stride : k.start;
}

/* Keys lo .. hi - 1; block: of slc. Starts as {0, 0, -1}. */
typedef struct key_span {
    int64_t lo, hi, block;
} key_span;

/* The next keys that x sees, in rising order; false: no more. slc takes the lowest block above the last one, so the
 * order of slc_idx, what is in it twice and what lies outside of 0 .. t do not matter. */
static __device__ bool next_keys(const attn_simt &p, const query &x, key_span *keys)
{
    const nsa_config &c = p.cfg.c;
    if (p.branch == NSA_SLC) {
        const int32_t *idx = (const int32_t *)p.slc_idx.data + offset_at(p.slc_idx, x.at, kv_head_of(p, x));
        int next = INT32_MAX;
        for (int i = lane_index(); i < c.slc_topk; i += WARP)
            next = idx[i] > keys->block ? min(next, idx[i]) : next;
        keys->block = __reduce_min_sync(~0U, next);
        keys->lo = keys->block * c.slc_block;
        keys->hi = min64(x.t + 1, keys->lo + c.slc_block);
        return keys->lo <= x.t;
    }
    if (keys->block >= 0)
        return false;
    keys->block = 0;
    keys->lo = p.branch == NSA_WIN ? max64(0, x.t - c.win_size + 1) : 0;
    keys->hi = p.branch == NSA_WIN ? x.t + 1 : n_cmp_seen(c, x.t);
    return keys->lo < keys->hi;
}

/* ---- Rows */

template <typename T> static __device__ void load_row(float *dst, const T *src, int d)
{
    for (int c = lane_index(); c < d; c += WARP)
        dst[c] = to_float(src[c]);
}

template <typename T> static __device__ float dot(const float *x, const T *y, int d)
{
    float sum = 0.0F;
#pragma unroll 8
    for (int c = 0; c < d; c++)
        sum = fmaf(x[c], to_float(y[c]), sum);
    return sum;
}

/* acc += w * x, a lane its channels. */
template <typename T> static __device__ void add_row(float acc[PER_LANE], float w, const T *x, int d)
{
#pragma unroll
    for (int i = 0; i < PER_LANE; i++)
        if (lane_index() + i * WARP < d)
            acc[i] = fmaf(w, to_float(x[lane_index() + i * WARP]), acc[i]);
}

static __device__ void store_row(const nsa_tensor &t, int64_t at, const float acc[PER_LANE], int d, bool add)
{
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        const int c = lane_index() + i * WARP;
        if (c < d)
            store(t, at + c, add ? load(t, at + c) + acc[i] : acc[i]);
    }
}

/* ---- Forward */

template <typename T>
static __global__ __launch_bounds__(WARP *WARPS) void forward_kernel(const __grid_constant__ attn_simt p)
{
    __shared__ float q_rows[WARPS][MAX_D];
    float *q = q_rows[threadIdx.x / WARP];
    const int d_qk = p.cfg.c.d_qk, d_v = p.cfg.c.d_v;
    const int64_t n_items = p.seqs.total_q * p.cfg.c.n_heads_q;
    for (int64_t item = first_item(); item < n_items; item += item_stride()) {
        query x;
        if (!find_query(p.seqs, p.cfg.c.n_heads_q, item, &x))
            continue;
        load_row(q, (const T *)p.q.data + at_query(p.q, x), d_qk);
        __syncwarp();
        const T *k = (const T *)p.k.data + offset_of(p.k, x.at.s, key_start(p, x.k), 0, kv_head_of(p, x));
        const T *v = (const T *)p.v.data + offset_of(p.v, x.at.s, key_start(p, x.k), 0, kv_head_of(p, x));
        float o[PER_LANE] = {0.0F}, max = -INFINITY, sum = 0.0F;
        key_span keys = {0, 0, -1};
        while (next_keys(p, x, &keys))
            for (int64_t j = keys.lo; j < keys.hi; j += WARP) {
                const int n = (int)min64(WARP, keys.hi - j), lane = lane_index();
                const float s = lane < n ? p.cfg.scale * dot(q, k + (j + lane) * p.k.stride_token, d_qk) : -INFINITY;
                const float new_max = fmaxf(max, warp_max(s)), keep = expf(max - new_max);
                const float e = lane < n ? expf(s - new_max) : 0.0F;
                sum = sum * keep + warp_sum(e);
                max = new_max;
                for (int i = 0; i < PER_LANE; i++)
                    o[i] *= keep;
                for (int i = 0; i < n; i++)
                    add_row(o, __shfl_sync(~0U, e, i), v + (j + i) * p.v.stride_token, d_v);
            }
        const bool empty = sum == 0.0F;
        for (int i = 0; i < PER_LANE; i++)
            o[i] = empty ? 0.0F : o[i] / sum;
        store_row(p.o, at_query(p.o, x), o, d_v, false);
        if (lane_index() == 0)
            store(p.lse, at_query(p.lse, x), empty ? -INFINITY : max + logf(sum));
        __syncwarp();
    }
}

/* ---- Backward */

static __device__ float gate_at(const attn_simt &p, int64_t at)
{
    return p.gate.data == NULL ? 1.0F : load(p.gate, at + p.branch);
}

template <typename T>
static __global__ __launch_bounds__(WARP *WARPS) void dq_kernel(const __grid_constant__ attn_simt p)
{
    __shared__ float q_rows[WARPS][MAX_D], d_o_rows[WARPS][MAX_D];
    float *q = q_rows[threadIdx.x / WARP], *d_o = d_o_rows[threadIdx.x / WARP];
    const int d_qk = p.cfg.c.d_qk, d_v = p.cfg.c.d_v;
    const int64_t n_items = p.seqs.total_q * p.cfg.c.n_heads_q;
    for (int64_t item = first_item(); item < n_items; item += item_stride()) {
        query x;
        if (!find_query(p.seqs, p.cfg.c.n_heads_q, item, &x))
            continue;
        load_row(q, (const T *)p.q.data + at_query(p.q, x), d_qk);
        const T *d_o_row = (const T *)p.d_o.data + at_query(p.d_o, x);
        const T *o_row = (const T *)p.o.data + at_query(p.o, x);
        const float gate = gate_at(p, at_query(p.gate, x));
        float delta = 0.0F;
        for (int c = lane_index(); c < d_v; c += WARP) {
            d_o[c] = gate * to_float(d_o_row[c]);
            delta = fmaf(d_o[c], to_float(o_row[c]), delta);
        }
        delta = warp_sum(delta);
        if (lane_index() == 0)
            p.delta[item] = delta;
        __syncwarp();
        const float lse = load(p.lse, at_query(p.lse, x));
        const T *k = (const T *)p.k.data + offset_of(p.k, x.at.s, key_start(p, x.k), 0, kv_head_of(p, x));
        const T *v = (const T *)p.v.data + offset_of(p.v, x.at.s, key_start(p, x.k), 0, kv_head_of(p, x));
        float dq[PER_LANE] = {0.0F};
        key_span keys = {0, 0, -1};
        while (next_keys(p, x, &keys))
            for (int64_t j = keys.lo; j < keys.hi; j += WARP) {
                const int n = (int)min64(WARP, keys.hi - j), lane = lane_index();
                float ds = 0.0F;
                if (lane < n) {
                    const float s = p.cfg.scale * dot(q, k + (j + lane) * p.k.stride_token, d_qk);
                    const float dp = dot(d_o, v + (j + lane) * p.v.stride_token, d_v);
                    ds = expf(s - lse) * (dp - delta) * p.cfg.scale;
                }
                for (int i = 0; i < n; i++)
                    add_row(dq, __shfl_sync(~0U, ds, i), k + (j + i) * p.k.stride_token, d_qk);
            }
        store_row(p.dq, at_query(p.dq, x), dq, d_qk, p.add_dq);
        __syncwarp();
    }
}

/* A key of a kv head, and the query rows that are late enough (and, of win, early enough) to see it. */
typedef struct key {
    int32_t s, head;
    seq_range q, k;
    int64_t j, first_row, end_row;
} key;

/* The i-th (key, kv head); false if no sequence has it. */
static __device__ bool find_key(const attn_simt &p, int64_t i, key *x)
{
    const nsa_config &c = p.cfg.c;
    const bool cmp = p.branch == NSA_CMP;
    x->head = (int32_t)(i % c.n_heads_kv);
    x->s = seq_of_row(p.seqs.cu_k, p.seqs.n, cmp ? c.cmp_stride : 1, i / c.n_heads_kv);
    x->q = seq_q(p.seqs, x->s);
    x->k = seq_k(p.seqs, x->s);
    x->j = i / c.n_heads_kv - key_start(p, x->k);
    const int64_t first_row_at = x->k.n - x->q.n; /* position of query row 0 */
    const int64_t from = cmp ? x->j * c.cmp_stride + c.cmp_block - 1 : x->j;
    const int64_t end = p.branch == NSA_WIN ? min64(x->k.n, x->j + c.win_size) : x->k.n;
    x->first_row = max64(0, from - first_row_at);
    x->end_row = end - first_row_at;
    return x->j >= 0 && x->j < (cmp ? n_cmp_seen(c, x->k.n - 1) : x->k.n);
}

static __device__ bool has_selected(const attn_simt &p, const key &x, int64_t row)
{
    const int32_t *idx = (const int32_t *)p.slc_idx.data + offset_of(p.slc_idx, x.s, x.q.start, row, x.head);
    const int64_t block = x.j / p.cfg.c.slc_block;
    bool found = false;
    for (int i = 0; i < p.cfg.c.slc_topk; i++)
        found |= idx[i] == block;
    return found;
}

/* What the group's heads of n tokens add to dk and dv. */
template <typename T>
static __device__ void add_tokens(const attn_simt &p, const key &x, const float *k, const float *v,
                                  const int32_t *tokens, int n, float dk[PER_LANE], float dv[PER_LANE])
{
    const int d_qk = p.cfg.c.d_qk, d_v = p.cfg.c.d_v;
    const int64_t n_rows = (int64_t)n * p.cfg.group;
    for (int64_t first = 0; first < n_rows; first += WARP) {
        const int64_t r = first + lane_index();
        int64_t q_at = 0, d_o_at = 0;
        float prob = 0.0F, ds = 0.0F;
        if (r < n_rows) {
            const int64_t row = tokens[r / p.cfg.group], head = (int64_t)x.head * p.cfg.group + r % p.cfg.group;
            q_at = offset_of(p.q, x.s, x.q.start, row, head);
            d_o_at = offset_of(p.d_o, x.s, x.q.start, row, head);
            const float gate = gate_at(p, offset_of(p.gate, x.s, x.q.start, row, head));
            const float lse = load(p.lse, offset_of(p.lse, x.s, x.q.start, row, head));
            const float delta = p.delta[(x.q.start + row) * p.cfg.c.n_heads_q + head];
            const float dp = gate * dot(v, (const T *)p.d_o.data + d_o_at, d_v);
            prob = expf(p.cfg.scale * dot(k, (const T *)p.q.data + q_at, d_qk) - lse);
            ds = prob * (dp - delta) * p.cfg.scale;
            prob *= gate;
        }
        const int count = (int)min64(WARP, n_rows - first);
        for (int i = 0; i < count; i++) {
            add_row(dk, __shfl_sync(~0U, ds, i), (const T *)p.q.data + __shfl_sync(~0U, q_at, i), d_qk);
            add_row(dv, __shfl_sync(~0U, prob, i), (const T *)p.d_o.data + __shfl_sync(~0U, d_o_at, i), d_v);
        }
    }
}

template <typename T>
static __global__ __launch_bounds__(WARP *WARPS) void dkdv_kernel(const __grid_constant__ attn_simt p, int64_t n_items)
{
    __shared__ float k_rows[WARPS][MAX_D], v_rows[WARPS][MAX_D];
    __shared__ int32_t lists[WARPS][WARP];
    float *k = k_rows[threadIdx.x / WARP], *v = v_rows[threadIdx.x / WARP];
    int32_t *tokens = lists[threadIdx.x / WARP];
    const int d_qk = p.cfg.c.d_qk, d_v = p.cfg.c.d_v;
    for (int64_t item = first_item(); item < n_items; item += item_stride()) {
        key x;
        if (!find_key(p, item, &x))
            continue;
        load_row(k, (const T *)p.k.data + offset_of(p.k, x.s, key_start(p, x.k), x.j, x.head), d_qk);
        load_row(v, (const T *)p.v.data + offset_of(p.v, x.s, key_start(p, x.k), x.j, x.head), d_v);
        float dk[PER_LANE] = {0.0F}, dv[PER_LANE] = {0.0F};
        for (int64_t first = x.first_row; first < x.end_row; first += WARP) {
            const int64_t row = first + lane_index();
            const bool sees = row < x.end_row && (p.branch != NSA_SLC || has_selected(p, x, row));
            const unsigned all = __ballot_sync(~0U, sees);
            if (sees)
                tokens[lanes_before(all)] = (int32_t)row;
            __syncwarp();
            add_tokens<T>(p, x, k, v, tokens, __popc(all), dk, dv);
            __syncwarp();
        }
        store_row(p.dk, offset_of(p.dk, x.s, key_start(p, x.k), x.j, x.head), dk, d_qk, p.add_dk);
        store_row(p.dv, offset_of(p.dv, x.s, key_start(p, x.k), x.j, x.head), dv, d_v, p.add_dv);
        __syncwarp();
    }
}

/* ---- Launches: all instantiations */

#define LAUNCH_FOR_DTYPE(kernel, n, ...)                                                                               \
    do {                                                                                                               \
        switch (p->q.dtype) {                                                                                          \
        case NSA_BF16: LAUNCH_WARPS(kernel<bf16>, n, stream, __VA_ARGS__); break;                                      \
        case NSA_F16: LAUNCH_WARPS(kernel<f16>, n, stream, __VA_ARGS__); break;                                        \
        default: LAUNCH_WARPS(kernel<float>, n, stream, __VA_ARGS__); break;                                           \
        }                                                                                                              \
    } while (0)

int launch_attn_forward(const attn_simt *p, nsa_stream stream)
{
    LAUNCH_FOR_DTYPE(forward_kernel, p->seqs.total_q * p->cfg.c.n_heads_q, *p);
    return cudaGetLastError();
}

int launch_attn_dq(const attn_simt *p, nsa_stream stream)
{
    LAUNCH_FOR_DTYPE(dq_kernel, p->seqs.total_q * p->cfg.c.n_heads_q, *p);
    return cudaGetLastError();
}

int launch_attn_dkdv(const attn_simt *p, nsa_stream stream)
{
    const int64_t n_keys = p->branch == NSA_CMP ? p->seqs.total_k / p->cfg.c.cmp_stride : p->seqs.total_k;
    const int64_t n = n_keys * p->cfg.c.n_heads_kv;
    LAUNCH_FOR_DTYPE(dkdv_kernel, n, *p, n);
    return cudaGetLastError();
}
