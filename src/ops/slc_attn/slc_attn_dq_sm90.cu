/*
 * dq of slc_attn on Hopper, token-major.
 *
 *     S^T = k q^T    dP^T = v dO^T    P = exp2(scale log2e S - log2e lse)    dS = P (gate dP - delta)
 *     dq^T += k^T dS^T
 *
 * A CTA takes TOKENS consecutive tokens of a kv head, 16 heads of each: a producer warp and two warpgroups, each with
 * its own tokens. The producer walks the union of the blocks that the tokens have selected, in rising order, and brings
 * KEYS keys at a time into a ring of stages; a stage says which tokens want it. kv heads are the slowest index of the
 * grid, so that the K and V of one lie in the L2 cache.
 *
 *     gK, gV -> sK, sV (ring)    gQ, gdO, values -> sQ, sdO, values (once)
 *     sK sQ -> rS    sV sdO -> rdP    rS rdP -> rdS -> sdS    sK -> rK^T (ldmatrix)    rK^T sdS -> rdQ^T -> gdQ
 *
 * Keys are the M = 64 of S^T, channels that of dq^T, heads are N = 16: no arithmetic is wasted on a group of 16. The
 * accumulators of a token are few (d_qk/8 registers of a thread).
 *
 *     filled[stage]     K and V have come, and `wanted`
 *     emptied[stage]    a lane of each consumer warp: the stage's last use is over
 *     loaded            q, dO and values of all tokens have come
 *     DS_FREE, DS_STORED    of a warpgroup: dS may be written, has been written
 *
 * Masks: a token sees the first n keys of a stage. dS is 0 beyond, and so is what is read of k for dq: a NaN there
 * stays there. Everything else has a row of its own. Sums are in the order of the keys, whatever the order of slc_idx
 * and whatever the other tokens of the CTA want.
 *
 * Cost at 64k tokens, 64/4 heads, d 128: 3.3 TFLOP; 137 GB of K and V through the L2 cache where tokens of a CTA share
 * no blocks. One H100, 2026-11-24: 16.0 ms with random blocks, 9.5 ms where neighbours select much the same.
 *
 * A stage is given back only when its k has come to registers. Right after ldmatrix was issued is too early: the copy
 * engine then overtakes it now and then.
 */
#include "ops/slc_attn/slc_attn_bwd_sm90.cuh"

enum { N_WARPGROUPS = 2, CONSUMERS = N_WARPGROUPS * WARPGROUP, THREADS = CONSUMERS + WARPGROUP };
enum {
    TOKENS = 4,                                 /* of a CTA */
    COLUMNS = TOKENS / N_WARPGROUPS * DQ_HEADS, /* of a warpgroup's two tokens, one after the other */
    LANES = WARP / TOKENS                       /* of the producer, for each token */
};
enum { DS_FREE = 1, DS_STORED = DS_FREE + N_WARPGROUPS };

template <int D_QK, int D_V, int STAGES> struct dq_shared {
    bf16 k[STAGES][D_QK / 64][KEYS][64], v[STAGES][D_V / 64][KEYS][64];
    bf16 q[N_WARPGROUPS][D_QK / 64][COLUMNS][64], d_o[N_WARPGROUPS][D_V / 64][COLUMNS][64];
    bf16 ds[N_WARPGROUPS][COLUMNS][KEYS];
    slc_values values[TOKENS * DQ_HEADS];
    uint64_t filled[STAGES], emptied[STAGES], loaded;
    int32_t t[TOKENS];       /* their positions */
    int32_t key[STAGES];     /* the first; -1: there are no more */
    int32_t keys[STAGES];    /* of the block */
    unsigned wanted[STAGES]; /* a bit for each lane of the producer */
};

/* The tokens of a CTA: items are (token, 16 heads of the group), those of a token one after the other. */
typedef struct dq_tile {
    int32_t s, kv_head, per_token;
    int64_t first, n; /* items of this tile; of the sequence */
    seq_range q, k;
} dq_tile;

static __device__ bool find_dq_tile(const attn_simt &p, int tokens, int64_t n_tiles, dq_tile *x)
{
    x->kv_head = (int32_t)(blockIdx.x / n_tiles);
    x->per_token = (p.cfg.group + DQ_HEADS - 1) / DQ_HEADS;
    x->first = find_tile(p.seqs.cu_q, p.seqs.n, x->per_token, tokens, blockIdx.x % n_tiles, &x->s);
    x->q = seq_q(p.seqs, x->s);
    x->k = seq_k(p.seqs, x->s);
    x->n = x->q.n * x->per_token;
    return x->first >= 0 && x->first < x->n;
}

static __device__ int64_t row_of(const dq_tile &x, int token)
{
    return (x.first + token) / x.per_token;
}

static __device__ int first_head(const attn_simt &p, const dq_tile &x, int token)
{
    return x.kv_head * p.cfg.group + (int)((x.first + token) % x.per_token) * DQ_HEADS;
}

/* ---- Producer */

template <int D_QK, int D_V, int STAGES>
static __device__ void load_token(const slc_backward &p, const slc_maps &maps, const dq_tile &tile, int i,
                                  dq_shared<D_QK, D_V, STAGES> *x)
{
    const attn_simt &a = p.attn;
    const int64_t row = row_of(tile, i);
    const int head = first_head(a, tile, i), n_heads = min(DQ_HEADS, (tile.kv_head + 1) * a.cfg.group - head);
    const int warpgroup = i * DQ_HEADS / COLUMNS, column = i * DQ_HEADS % COLUMNS;
    x->t[i] = (int32_t)(row + tile.k.n - tile.q.n);
    mbar_arrive_expect(&x->loaded,
                       DQ_HEADS * (D_QK + D_V) * (uint32_t)sizeof(bf16) + n_heads * (uint32_t)sizeof(slc_values));
    copy_tile<D_QK>(x->q[warpgroup][0][column], sizeof x->q[0][0], &maps.q, &x->loaded, head, map_row(a.q, tile.q, row),
                    map_seq(a.q, tile.s));
    copy_tile<D_V>(x->d_o[warpgroup][0][column], sizeof x->d_o[0][0], &maps.d_o, &x->loaded, head,
                   map_row(a.d_o, tile.q, row), map_seq(a.d_o, tile.s));
    copy_bytes(&x->values[i * DQ_HEADS], p.values + (tile.q.start + row) * a.cfg.c.n_heads_q + head,
               n_heads * (uint32_t)sizeof(slc_values), &x->loaded);
}

template <int D_QK, int D_V, int STAGES>
static __device__ void produce(const slc_backward &p, const slc_maps &maps, const dq_tile &tile,
                               dq_shared<D_QK, D_V, STAGES> *x)
{
    const attn_simt &a = p.attn;
    const int lane = lane_index(), slc_block = a.cfg.c.slc_block, topk = a.cfg.c.slc_topk;
    if (lane < TOKENS) {
        if (tile.first + lane < tile.n)
            load_token(p, maps, tile, lane, x);
        else
            mbar_arrive(&x->loaded);
    }
    const bool exists = tile.first + lane / LANES < tile.n;
    const int64_t row = exists ? row_of(tile, lane / LANES) : 0;
    const int64_t t = exists ? row + tile.k.n - tile.q.n : -1;
    const int32_t *idx =
        (const int32_t *)a.slc_idx.data + offset_of(a.slc_idx, tile.s, tile.q.start, row, tile.kv_head);
    int n = 0;
    for (int last = -1;;) {
        int next = INT32_MAX; /* of the token */
        for (int e = lane % LANES; e < topk; e += LANES) {
            const int entry = __ldg(idx + e);
            next = entry > last ? min(next, entry) : next;
        }
        for (int i = 1; i < LANES; i *= 2)
            next = min(next, __shfl_xor_sync(~0U, next, i));
        const int block = __reduce_min_sync(~0U, (int64_t)next * slc_block <= t ? next : INT32_MAX);
        last = block;
        for (int64_t key = (int64_t)block * slc_block, end = key + slc_block; key < end; key += KEYS) {
            const unsigned wanted = __ballot_sync(~0U, next == block && key <= t);
            if (wanted == 0 && block != INT32_MAX)
                break;
            const int stage = n % STAGES;
            if (n >= STAGES)
                mbar_wait(&x->emptied[stage], (n / STAGES - 1) % 2);
            n++;
            if (lane == 0) {
                x->key[stage] = block == INT32_MAX ? -1 : (int32_t)key;
                x->keys[stage] = (int32_t)min64(KEYS, end - key);
                x->wanted[stage] = wanted;
                mbar_arrive_expect(&x->filled[stage], block == INT32_MAX ? 0 : sizeof x->k[0] + sizeof x->v[0]);
            }
            if (block == INT32_MAX)
                return;
            if (lane == 0) {
                copy_tile<D_QK>(x->k[stage], sizeof x->k[0][0], &maps.k, &x->filled[stage], tile.kv_head,
                                map_row(a.k, tile.k, key), map_seq(a.k, tile.s));
                copy_tile<D_V>(x->v[stage], sizeof x->v[0][0], &maps.v, &x->filled[stage], tile.kv_head,
                               map_row(a.v, tile.k, key), map_seq(a.v, tile.s));
            }
        }
    }
}

/* ---- Consumers */

/* The column of an accumulator's elements [4 (i/2) + 2 r + i%2]. */
static __device__ int column(int i)
{
    return i / 2 * 8 + lane_index() % 4 * 2 + i % 2;
}

/* k^T of KEYS keys as operand a: a warp its 16 channels of each box. Keys from n on as zeros. */
template <int D_QK>
static __device__ void load_k_transposed(uint32_t (&kt)[D_QK / 64][KEYS / 16][4], const bf16 (*k)[KEYS][64], int n)
{
    const int lane = lane_index(), warp = (int)threadIdx.x / WARP % 4;
#pragma unroll
    for (int b = 0; b < D_QK / 64; b++)
#pragma unroll
        for (int j = 0; j < KEYS / 16; j++) {
            load_matrices_transposed(kt[b][j], shared_address(k[b]) + in_box(16 * j + lane / 16 * 8 + lane % 8,
                                                                             16 * warp + lane / 8 % 2 * 8));
            if (n < KEYS)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int key = 16 * j + i / 2 * 8 + lane % 4 * 2;
                    kt[b][j][i] &= key + 1 < n ? ~0U : key < n ? 0xffffU : 0U;
                }
        }
}

/* What keys of which the token sees n add to dq: of N columns from FIRST on, one token's or two tokens' that both see
 * all of the keys. Then, if so, the stage is no longer needed. */
template <int D_QK, int D_V, int FIRST, int N>
static __device__ void attend(float (&dq)[2][D_QK / 64][DQ_HEADS / 2], const bf16 (*q)[COLUMNS][64],
                              const bf16 (*d_o)[COLUMNS][64], const bf16 (*k)[KEYS][64], const bf16 (*v)[KEYS][64],
                              bf16 (*shared_ds)[KEYS], const slc_values *values, float scale, int n, uint64_t *emptied)
{
    const int lane = lane_index(), warp = (int)threadIdx.x / WARP % 4, warpgroup = (int)threadIdx.x / WARPGROUP;
    float s[N / 2], dp[N / 2];
    wgmma_fence();
#pragma unroll
    for (int c = 0; c < D_QK; c += 16)
        wgmma<N>(s, further(along_k(k[c / 64]), c % 64 * 2), further(along_k(q[c / 64][FIRST]), c % 64 * 2), c > 0);
#pragma unroll
    for (int c = 0; c < D_V; c += 16)
        wgmma<N>(dp, further(along_k(v[c / 64]), c % 64 * 2), further(along_k(d_o[c / 64][FIRST]), c % 64 * 2), c > 0);
    wgmma_commit();
    wgmma_wait<0>();
    pin(s), pin(dp);
    bar_sync(DS_FREE + warpgroup, WARPGROUP);
#pragma unroll
    for (int h = 0; h < N; h += DQ_HEADS) {
        uint32_t ds[4]; /* heads 0-7 of keys 0-7 and 8-15 of the warp's, then heads 8-15 */
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float x[2];
#pragma unroll
            for (int c = 0; c < 2; c++) {
                const slc_values y = values[h + column(i / 2 * 2 + c)];
                const int at = h / 2 + 2 * i + c;
                x[c] = exp2_fast(fmaf(s[at], scale, -y.lse)) * fmaf(y.gate, dp[at], -y.delta);
            }
            ds[i] = 16 * warp + lane / 4 + i % 2 * 8 < n ? pack2(x[0], x[1]) : 0;
        }
        store_matrices_transposed(
            shared_address(shared_ds[h]) + in_box(lane / 16 * 8 + lane % 8, 16 * warp + lane / 8 % 2 * 8), ds);
    }
    fence_async();
    uint32_t kt[D_QK / 64][KEYS / 16][4];
    load_k_transposed<D_QK>(kt, k, n);
    bar_sync(DS_STORED + warpgroup, WARPGROUP);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < KEYS / 16; j++)
#pragma unroll
        for (int b = 0; b < D_QK / 64; b++)
#pragma unroll
            for (int h = 0; h < N; h += DQ_HEADS)
                wgmma<DQ_HEADS>(dq[(FIRST + h) / DQ_HEADS][b], kt[b][j], further(along_k(shared_ds[h]), j * 32), 1);
    wgmma_commit();
    if (emptied != NULL && lane == 0)
        mbar_arrive(emptied); /* k has come to registers, or wgmma could not have begun */
    wgmma_wait<0>();
#pragma unroll
    for (int b = 0; b < D_QK / 64; b++)
        pin(dq[0][b]), pin(dq[1][b]);
}

template <int D_QK>
static __device__ void store_dq(const attn_simt &p, const dq_tile &tile, int token,
                                const float (&dq)[D_QK / 64][DQ_HEADS / 2])
{
    const int warp = (int)threadIdx.x / WARP % 4, channel = 16 * warp + lane_index() / 4;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int head = first_head(p, tile, token) + column(i);
        if (head >= (tile.kv_head + 1) * p.cfg.group)
            continue;
        const int64_t at = offset_of(p.dq, tile.s, tile.q.start, row_of(tile, token), head) + channel;
#pragma unroll
        for (int b = 0; b < D_QK / 64; b++)
#pragma unroll
            for (int r = 0; r < 2; r++)
                put(p.dq, at + 64 * b + 8 * r, dq[b][i / 2 * 4 + 2 * r + i % 2] * p.cfg.scale, p.add_dq);
    }
}

template <int D_QK, int D_V, int STAGES>
static __device__ void consume(const attn_simt &p, const dq_tile &tile, dq_shared<D_QK, D_V, STAGES> *x)
{
    const int warpgroup = (int)threadIdx.x / WARPGROUP, token = 2 * warpgroup;
    const float scale = p.cfg.scale * LOG2_E;
    float dq[2][D_QK / 64][DQ_HEADS / 2] = {};
    const bf16(*q)[COLUMNS][64] = x->q[warpgroup], (*d_o)[COLUMNS][64] = x->d_o[warpgroup];
    const slc_values *values = &x->values[token * DQ_HEADS];
    bf16(*ds)[KEYS] = x->ds[warpgroup];
    mbar_wait(&x->loaded, 0);
    for (int n = 0;; n++) {
        const int stage = n % STAGES;
        uint64_t *emptied = &x->emptied[stage];
        mbar_wait(&x->filled[stage], n / STAGES % 2);
        const int key = x->key[stage];
        if (key < 0)
            break;
        const bf16(*k)[KEYS][64] = x->k[stage], (*v)[KEYS][64] = x->v[stage];
        const bool first = x->wanted[stage] >> token * LANES & 1, second = x->wanted[stage] >> (token + 1) * LANES & 1;
        const int sees_first = min(x->t[token] - key + 1, x->keys[stage]);
        const int sees_second = min(x->t[token + 1] - key + 1, x->keys[stage]);
        if (first && second && sees_first >= KEYS && sees_second >= KEYS) {
            attend<D_QK, D_V, 0, COLUMNS>(dq, q, d_o, k, v, ds, values, scale, KEYS, emptied);
            continue;
        }
        if (first)
            attend<D_QK, D_V, 0, DQ_HEADS>(dq, q, d_o, k, v, ds, values, scale, sees_first, second ? NULL : emptied);
        if (second)
            attend<D_QK, D_V, DQ_HEADS, DQ_HEADS>(dq, q, d_o, k, v, ds, values + DQ_HEADS, scale, sees_second, emptied);
        if (!first && !second && lane_index() == 0)
            mbar_arrive(emptied);
    }
#pragma unroll
    for (int i = 0; i < 2; i++)
        if (tile.first + token + i < tile.n)
            store_dq<D_QK>(p, tile, token + i, dq[i]);
}

/* CTAS: on an SM. */
template <int D_QK, int D_V, int STAGES, int CTAS>
static __global__ __launch_bounds__(THREADS, CTAS) void dq_kernel(const __grid_constant__ slc_backward p,
                                                                  const __grid_constant__ slc_maps maps,
                                                                  int64_t n_tiles)
{
    extern __shared__ __align__(1024) unsigned char shared[];
    dq_shared<D_QK, D_V, STAGES> *x = (dq_shared<D_QK, D_V, STAGES> *)shared;
    dq_tile tile;
    if (!find_dq_tile(p.attn, TOKENS, n_tiles, &tile))
        return;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            mbar_init(&x->filled[i], 1);
            mbar_init(&x->emptied[i], CONSUMERS / WARP);
        }
        mbar_init(&x->loaded, TOKENS);
        fence_mbar_init();
    }
    __syncthreads();
    if (threadIdx.x < CONSUMERS) {
        registers_up<CTAS == 2 ? 104 : 208>();
        consume(p.attn, tile, x);
    } else {
        registers_down<CTAS == 2 ? 32 : 88>();
        if (threadIdx.x < CONSUMERS + WARP)
            produce(p, maps, tile, x);
    }
}

/* ---- Values of each (token, head), by 8 lanes */

static __device__ float dot_of_16_bytes(uint4 x, uint4 y)
{
    const uint32_t xs[] = {x.x, x.y, x.z, x.w}, ys[] = {y.x, y.y, y.z, y.w};
    float sum = 0.0F;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 a = __bfloat1622float2(*(const __nv_bfloat162 *)&xs[i]),
                     b = __bfloat1622float2(*(const __nv_bfloat162 *)&ys[i]);
        sum = fmaf(a.y, b.y, fmaf(a.x, b.x, sum));
    }
    return sum;
}

static __global__ __launch_bounds__(WARP *WARPS) void values_kernel(const __grid_constant__ slc_backward p, int64_t n)
{
    enum { ROW_LANES = 8, AT_ONCE = WARP / ROW_LANES };
    const attn_simt &a = p.attn;
    const int lane = lane_index() % ROW_LANES;
    for (int64_t first = first_item() * AT_ONCE; first < n; first += item_stride() * AT_ONCE) {
        const int64_t item = first + lane_index() / ROW_LANES;
        query x;
        const bool found = item < n && find_query(a.seqs, a.cfg.c.n_heads_q, item, &x);
        float delta = 0.0F;
        if (found) {
            const uint4 *o = (const uint4 *)((const bf16 *)a.o.data + offset_at(a.o, x.at, x.at.head)),
                        *d_o = (const uint4 *)((const bf16 *)a.d_o.data + offset_at(a.d_o, x.at, x.at.head));
            for (int i = lane; i < a.cfg.c.d_v / 8; i += ROW_LANES)
                delta += dot_of_16_bytes(o[i], d_o[i]);
        }
        for (int i = 1; i < ROW_LANES; i *= 2)
            delta += __shfl_xor_sync(~0U, delta, i);
        if (!found || lane != 0)
            continue;
        const float gate = a.gate.data == NULL ? 1.0F : load(a.gate, offset_at(a.gate, x.at, x.at.head) + a.branch);
        const slc_values y = {load(a.lse, offset_at(a.lse, x.at, x.at.head)) * LOG2_E, delta * gate, gate, 0.0F};
        p.values[item] = y;
    }
}

/* ---- Launches: all instantiations */

int launch_slc_values(const slc_backward *p, nsa_stream stream)
{
    const int64_t n = p->attn.seqs.total_q * p->attn.cfg.c.n_heads_q;
    LAUNCH_WARPS(values_kernel, (n + 3) / 4, stream, *p, n);
    return cudaGetLastError();
}

template <int D_QK, int D_V, int STAGES, int CTAS>
static cudaError_t launch(const slc_backward *p, const slc_maps *maps, nsa_stream stream)
{
    const int bytes = sizeof(dq_shared<D_QK, D_V, STAGES>);
    const auto kernel = dq_kernel<D_QK, D_V, STAGES, CTAS>;
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess)
        return error;
    const int64_t per_token = (p->attn.cfg.group + DQ_HEADS - 1) / DQ_HEADS;
    const int64_t n_tiles = p->attn.seqs.total_q * per_token / TOKENS + p->attn.seqs.n;
    kernel<<<(unsigned)(n_tiles * p->attn.cfg.c.n_heads_kv), THREADS, bytes, stream>>>(*p, *maps, n_tiles);
    return cudaGetLastError();
}

int launch_slc_dq(const slc_backward *p, const slc_maps *maps, nsa_stream stream)
{
    switch (p->attn.cfg.c.d_qk) {
    case 64: return launch<64, 64, 4, 2>(p, maps, stream);
    case 128: return launch<128, 128, 2, 2>(p, maps, stream);
    default: return launch<192, 128, 4, 1>(p, maps, stream);
    }
}
