/*
 * Decoding on Hopper in one launch: append, compress (mean), cmp_attn, select, slc_attn, win_attn and gate of a token
 * and kv head by a cluster of CTAs, which share its keys.
 *
 *     S[head][key] = q k^T         mma.sync, the heads of a group as its 16 rows; logits of cmp stay in shared memory
 *     p = 2^(S' - max), o += p v   online softmax, each warp for its own keys
 *     lse of cmp over the cluster -> P[key] = sum over heads -> score[block] -> slc_idx, by each CTA for itself
 *     o of the warps, then of the CTAs, then of the branches with their gates: added in the order of ranks
 *
 * A warp reads tiles of 16 rows of K and of V, dealt out in turn, into a ring of its own: two of each, by cp.async, so
 * that rows may lie in pages, rings and the call's tensors alike, and rows that are not seen are zeros. No warp waits
 * for another but for selection and at the end. The tiles of the window are known before those of the selected blocks:
 * they are under way, and mostly there, while blocks are selected. Where the branches share K and V, tiles of the
 * window that are selected, too, are read once for both.
 *
 * New tokens are read from the call's tensors and blocks that they complete are made by each CTA that reads them, so
 * that no unit waits for another's writes. Rings and lengths are written by the unit of a sequence that is the last to
 * have read (a counter in the state): the order of units changes no result.
 *
 * Grid: a cluster for each (token, kv head), of so many CTAs that two fit on an SM (up to about 32k tokens) and few
 * units fill the device.
 * Barriers: __syncthreads and the cluster's, after cmp (sums of exponentials; P) and at the end (o; nobody reads it any
 * more). Groups of copies: K and V of a tile each; three younger ones may be under way while one is waited for.
 * Numerics: S, p, P, scores, o in float32; p rounded to bf16 for p v; o is rounded once, after the gates.
 *
 * Roofline: bytes. At 64k tokens and 32 sequences, 64/4 heads, 369 MB, 85 us at 4.35 TB/s.
 */
#include "nsa/decode_sm90.cuh"
#include "ops/select/block_score.cuh"

/* ---- A tile: S[head][key] = q k^T, online softmax, o[head][channel] += p v */

typedef struct sums {
    float o[D / 8][4];
    float max[2], sum[2]; /* of rows lane/4 and lane/4 + 8; sum: over the lane's keys */
} sums;

static __device__ void clear(sums *a)
{
#pragma unroll
    for (int i = 0; i < D / 8; i++)
        a->o[i][0] = a->o[i][1] = a->o[i][2] = a->o[i][3] = 0.0F;
    a->max[0] = a->max[1] = -INFINITY;
    a->sum[0] = a->sum[1] = 0.0F;
}

/* Where a lane's row of ldmatrix starts: of matrices that go on along the rows, or along the channels, first. */
static __device__ uint32_t along_rows(const char *slot)
{
    const int l = lane_index();
    return shared_address(slot) + (l / 8 % 2 * 8 + l % 8) * ROW + ((l / 16) ^ (l % 8)) * 16;
}

static __device__ uint32_t along_channels(const char *slot)
{
    const int l = lane_index();
    return shared_address(slot) + (l / 16 * 8 + l % 8) * ROW + ((l / 8 % 2) ^ (l % 8)) * 16;
}

/* Logits times log2 e of keys lo .. hi - 1, -inf of the others: s[i][2 r + c] of head lane/4 + 8 r, key
 * 8 i + 2 (lane%4) + c. */
static __device__ void multiply_q(const char *q, const char *k, float scale, const tile &x, float s[2][4])
{
    const uint32_t a_row = along_rows(q), b_row = along_channels(k);
    float part[2][2][4] = {};
#pragma unroll
    for (int c = 0; c < D / 16; c++) {
        uint32_t a[4], b[4];
        load_matrices(a, a_row ^ c * 32);
        load_matrices(b, b_row ^ c * 32);
        mma_16x8(part[c % 2][0], a, b);
        mma_16x8(part[c % 2][1], a, b + 2);
    }
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int key = 8 * i + lane_index() % 4 * 2 + e % 2;
            s[i][e] = key >= x.lo && key < x.hi ? scale * (part[0][i][e] + part[1][i][e]) : -INFINITY;
        }
}

/* s becomes p, as an operand of mma. */
static __device__ void soften(const float s[2][4], sums *a, uint32_t p[4])
{
    float most[2], e[2][4];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float m = fmaxf(fmaxf(s[0][2 * r], s[0][2 * r + 1]), fmaxf(s[1][2 * r], s[1][2 * r + 1]));
        m = fmaxf(m, __shfl_xor_sync(~0U, m, 1));
        most[r] = fmaxf(a->max[r], fmaxf(m, __shfl_xor_sync(~0U, m, 2)));
    }
    if (__any_sync(~0U, most[0] > a->max[0] || most[1] > a->max[1])) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float by = exp2_fast(a->max[r] - most[r]);
            a->max[r] = most[r];
            a->sum[r] *= by;
#pragma unroll
            for (int i = 0; i < D / 8; i++)
                a->o[i][2 * r] *= by, a->o[i][2 * r + 1] *= by;
        }
    }
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            e[i][j] = exp2_fast(s[i][j] - a->max[j / 2]);
            a->sum[j / 2] += e[i][j];
        }
    p[0] = pack2(e[0][0], e[0][1]), p[1] = pack2(e[0][2], e[0][3]);
    p[2] = pack2(e[1][0], e[1][1]), p[3] = pack2(e[1][2], e[1][3]);
}

static __device__ void multiply_v(const uint32_t p[4], const char *v, sums *a)
{
    const uint32_t row = along_rows(v);
#pragma unroll
    for (int c = 0; c < D / 16; c++) {
        uint32_t b[4];
        load_matrices_transposed(b, row ^ c * 32);
        mma_16x8(a->o[2 * c], p, b);
        mma_16x8(a->o[2 * c + 1], p, b + 2);
    }
}

/* Where a key's logits of 4 heads lie: swizzled, for threads as keys and for threads as heads. */
static __device__ int logit_at(int32_t key, int head)
{
    return key * HEADS + ((head / 4) ^ (key / 2 % 4)) * 4 + head % 4;
}

static __device__ void keep_logits(float *logits, int32_t first, const float s[2][4])
{
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            logits[logit_at(first + 8 * i + lane_index() % 4 * 2 + e % 2, lane_index() / 4 + e / 2 * 8)] = s[i][e];
}

/* The lane's share of its rows' results goes to shared memory: element (2 i + r) * WARP + lane is channels
 * 8 i + 2 (lane%4) + 0, 1 of head lane/4 + 8 r. */
static __device__ void put(const sums &a, float2 *o)
{
#pragma unroll
    for (int i = 0; i < D / 8; i++)
#pragma unroll
        for (int r = 0; r < 2; r++)
            o[(2 * i + r) * WARP + lane_index()] = make_float2(a.o[i][2 * r], a.o[i][2 * r + 1]);
}

static __device__ void put_sums(const sums &a, max_sum *of_heads)
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float sum = a.sum[r] + __shfl_xor_sync(~0U, a.sum[r], 1);
        sum += __shfl_xor_sync(~0U, sum, 2);
        if (lane_index() % 4 == 0)
            of_heads[lane_index() / 4 + 8 * r] = make_float2(a.max[r], sum);
    }
}

static __device__ int head_of(int element)
{
    return element % WARP / 4 + element / WARP % 2 * 8;
}

static __device__ int channel_of(int element)
{
    return element / (2 * WARP) * 8 + element % 4 * 2;
}

/* ---- Queries and gates */

static __device__ void load_q(const decode_sm90 &p, const work &w, int b, char *q)
{
    for (int i = threadIdx.x; i < HEADS * ROW / 16; i += THREADS) {
        const int h = i / (ROW / 16), piece = i % (ROW / 16), group = p.cache.cfg.group;
        const nsa_tensor &t = p.q[b];
        const int64_t at = offset_of(t, w.x.s, w.x.added.start, w.row, (int64_t)w.head * group + min(h, group - 1));
        const uint4 x = ((const uint4 *)((const bf16 *)t.data + at))[piece], none = {0, 0, 0, 0};
        *(uint4 *)(q + h * ROW + (piece ^ h % 8) * 16) = h < group ? x : none;
    }
}

static __device__ void load_gates(const decode_sm90 &p, const work &w, shared *sh)
{
    const int b = threadIdx.x / HEADS, h = threadIdx.x % HEADS, group = p.cache.cfg.group;
    if (b < NSA_N_BRANCHES)
        sh->gate[b][h] =
            h >= group
                ? 0.0F
                : load(p.gate, offset_of(p.gate, w.x.s, w.x.added.start, w.row, (int64_t)w.head * group + h) + b);
}

/* ---- Selection */

/* Over n parts: the sum to the largest of all. */
static __device__ max_sum join(max_sum a, max_sum b)
{
    const float most = fmaxf(a.x, b.x);
    return most == -INFINITY ? a : make_float2(most, a.y * exp2_fast(a.x - most) + b.y * exp2_fast(b.x - most));
}

static __device__ max_sum of_all_warps(const shared *sh, int b, int h)
{
    max_sum x = sh->of_warp[b][0][h];
    for (int i = 1; i < WARPS; i++)
        x = join(x, sh->of_warp[b][i][h]);
    return x;
}

/* P of the CTA's own rows. */
static __device__ void sum_heads(const work &w, const float *lse, const float *logits, float *sum)
{
    const int32_t n = min(w.cta_tiles * TILE, w.n_cmp - w.rank * w.cta_tiles * TILE);
    for (int32_t i = threadIdx.x; i < n; i += THREADS) {
        float all = 0.0F;
#pragma unroll
        for (int h = 0; h < HEADS; h += 4) {
            const float4 s = *(const float4 *)(logits + logit_at(i, h));
            all += exp2_fast(s.x - lse[h]);
            all += exp2_fast(s.y - lse[h + 1]);
            all += exp2_fast(s.z - lse[h + 2]);
            all += exp2_fast(s.w - lse[h + 3]);
        }
        sum[i] = all;
    }
}

/* Orders blocks: the higher score first, then the lower block; NaN is below all numbers. 0 is no block. */
static __device__ uint64_t key_of(float score, int32_t block)
{
    return (uint64_t)(score >= 0.0F ? __float_as_uint(score) + 1 : 0) << 32 | (uint32_t)~block;
}

/* How many of the lanes have a larger key. */
static __device__ int rank_of(uint64_t key)
{
    int rank = 0;
#pragma unroll
    for (int i = 0; i < WARP; i++)
        rank += __shfl_sync(~0U, key, i) > key;
    return rank;
}

/*
 * The n_free best of blocks from .. to - 1, into sh->chosen: the best of those that a lane of any warp has bound the
 * n_free best of all from below; the few blocks that reach the bound are ranked among themselves.
 */
static __device__ void choose(const nsa_config &c, shared *sh, const float *score, uint64_t *list, int32_t from,
                              int32_t to, int n_free)
{
    uint64_t best = 0;
    for (int32_t j = from + threadIdx.x; j < to; j += THREADS) {
        const uint64_t key = key_of(score[j], j);
        best = key > best ? key : best;
    }
    sh->best[warp_index()][lane_index()] = best;
    if (threadIdx.x == 0)
        sh->n_listed = 0;
    __syncthreads();
    best = 0;
    for (int i = 0; i < WARPS; i++)
        best = sh->best[i][lane_index()] > best ? sh->best[i][lane_index()] : best;
    const unsigned last = __ballot_sync(~0U, rank_of(best) == n_free - 1);
    const uint64_t bound = __shfl_sync(~0U, best, __ffs((int)last) - 1);
    for (int32_t j = from + threadIdx.x; j < to; j += THREADS) {
        const uint64_t key = key_of(score[j], j);
        if (key >= bound)
            list[atomicAdd(&sh->n_listed, 1)] = key;
    }
    __syncthreads();
    const int32_t n = sh->n_listed;
    for (int32_t i = threadIdx.x; i < n; i += THREADS) {
        const uint64_t key = list[i];
        int rank = 0;
        for (int32_t k = 0; k < n; k++)
            rank += list[k] > key;
        if (rank < n_free)
            sh->chosen[rank] = (int32_t) ~(uint32_t)key;
    }
    __syncthreads();
}

/* The lanes' blocks in rising order, and -1 behind them as before. */
static __device__ int32_t in_order(int32_t block)
{
    int rank = 0;
    int32_t x = -1;
#pragma unroll
    for (int i = 0; i < WARP; i++)
        rank += (uint32_t)__shfl_sync(~0U, block, i) < (uint32_t)block;
    rank = block < 0 ? lane_index() : rank;
#pragma unroll
    for (int i = 0; i < WARP; i++) {
        const int at = __shfl_sync(~0U, rank, i), from = __shfl_sync(~0U, block, i);
        x = at == lane_index() ? from : x;
    }
    return x;
}

/* After a CTA's tiles of cmp: the selected blocks, in the lanes of each warp. */
static __device__ int32_t select_blocks(const decode_sm90 &p, const work &w, shared *sh, float *logits, float *sum,
                                        float *score)
{
    const nsa_config &c = p.cache.cfg.c;
    const int l = lane_index(), n_free = c.slc_topk - c.slc_n_init - c.slc_n_local;
    if (w.cur < c.slc_topk)
        return l <= w.cur ? l : -1;
    const int32_t from = c.slc_n_init, to = w.cur + 1 - c.slc_n_local;
    if (n_free > 0) {
        if (threadIdx.x < HEADS)
            sh->of_cta[NSA_CMP][threadIdx.x] = of_all_warps(sh, NSA_CMP, threadIdx.x);
        if (p.cluster > 1)
            cluster_sync();
        if (threadIdx.x < HEADS) {
            max_sum x = make_float2(-INFINITY, 0.0F);
            for (int r = 0; r < p.cluster; r++)
                x = join(x, load_2(in_cta(&sh->of_cta[NSA_CMP][threadIdx.x], r)));
            sh->lse[threadIdx.x] = threadIdx.x < p.cache.cfg.group ? x.x + log2f(x.y) : INFINITY;
        }
        __syncthreads();
        sum_heads(w, sh->lse, logits, sum);
        const float *all = sum;
        if (p.cluster > 1) { /* the others' rows take the place of the logits */
            cluster_sync();
            const int32_t of_cta = w.cta_tiles * TILE;
            for (int32_t i = 4 * threadIdx.x; i < w.n_cmp; i += 4 * THREADS)
                *(float4 *)(logits + i) = load_4(in_cta(sum + i % of_cta, i / of_cta));
            all = logits;
        }
        __syncthreads();
        for (int32_t j = from + threadIdx.x; j < to; j += THREADS)
            score[j] = block_score<int32_t>(c, all, w.n_cmp, j);
        choose(c, sh, score, (uint64_t *)logits, from, to, n_free);
    }
    const int32_t block = l < c.slc_n_init            ? l
                          : l < c.slc_n_init + n_free ? sh->chosen[l - c.slc_n_init]
                          : l < c.slc_topk            ? to + l - c.slc_n_init - n_free
                                                      : -1;
    return in_order(block);
}

/* ---- Results */

/* Of the warps and, in the order of ranks, of the CTAs; the gates; o. */
static __device__ void write_o(const decode_sm90 &p, const work &w, int element, float2 x)
{
    const int h = head_of(element);
    if (h >= p.cache.cfg.group)
        return;
    const int64_t at = offset_of(p.o, w.x.s, w.x.added.start, w.row, (int64_t)w.head * p.cache.cfg.group + h);
    *(uint32_t *)((bf16 *)p.o.data + at + channel_of(element)) = pack2(x.x, x.y);
}

/* What each warp, then each CTA, counts: 2^(its maximum - that of all), over the sum of all, times the gate. */
static __device__ float weight_of(max_sum part, max_sum all, float gate)
{
    return part.y > 0.0F || part.y != part.y ? exp2_fast(part.x - all.x) / all.y * gate : 0.0F;
}

static __device__ void combine(const decode_sm90 &p, const work &w, shared *sh, float *logits)
{
    float2 *const o[NSA_N_BRANCHES] = {(float2 *)logits, (float2 *)(sh->ring[0] + O_BYTES), (float2 *)sh->ring[0]};
    const int stride[NSA_N_BRANCHES] = {O_BYTES / 8, RING / 8, RING / 8};
    __syncthreads();
    for (int i = threadIdx.x; i < NSA_N_BRANCHES * WARPS * HEADS; i += THREADS) {
        const int b = i / (WARPS * HEADS), warp = i / HEADS % WARPS, h = i % HEADS;
        const max_sum all = of_all_warps(sh, b, h), part = sh->of_warp[b][warp][h];
        sh->weight[b][warp][h] =
            p.cluster > 1 ? weight_of(part, make_float2(all.x, 1.0F), 1.0F) : weight_of(part, all, sh->gate[b][h]);
        if (warp == 0)
            sh->of_cta[b][h] = all;
    }
    __syncthreads();
    for (int e = threadIdx.x; e < N_ELEMENTS; e += THREADS) {
        float2 y = {0.0F, 0.0F};
#pragma unroll
        for (int b = 0; b < NSA_N_BRANCHES; b++) {
            float2 x = {0.0F, 0.0F};
#pragma unroll
            for (int i = 0; i < WARPS; i++) {
                const float2 part = o[b][i * stride[b] + e];
                const float by = sh->weight[b][i][head_of(e)];
                x.x = fmaf(by, part.x, x.x), x.y = fmaf(by, part.y, x.y);
            }
            if (p.cluster > 1)
                o[b][e] = x;
            y.x += x.x, y.y += x.y;
        }
        if (p.cluster == 1)
            write_o(p, w, e, y);
    }
    if (p.cluster == 1)
        return;

    cluster_sync();
    float *const weight = (float *)sh->ring[1]; /* [branch][rank][head] */
    max_sum *const parts = (max_sum *)sh->ring[2];
    const int n = p.cluster;
    for (int i = threadIdx.x; i < NSA_N_BRANCHES * n * HEADS; i += THREADS)
        parts[i] = load_2(in_cta(&sh->of_cta[i / HEADS / n][i % HEADS], i / HEADS % n));
    __syncthreads();
    if (threadIdx.x < NSA_N_BRANCHES * HEADS) {
        const int b = threadIdx.x / HEADS, h = threadIdx.x % HEADS;
        max_sum all = make_float2(-INFINITY, 0.0F);
        for (int r = 0; r < n; r++)
            all = join(all, parts[(b * n + r) * HEADS + h]);
        for (int r = 0; r < n; r++)
            weight[(b * n + r) * HEADS + h] = weight_of(parts[(b * n + r) * HEADS + h], all, sh->gate[b][h]);
    }
    __syncthreads();
    const int mine = N_ELEMENTS / n;
    for (int e = w.rank * mine + threadIdx.x; e < (w.rank + 1) * mine; e += THREADS) {
        float2 y = {0.0F, 0.0F};
#pragma unroll 4
        for (int r = 0; r < n; r++)
#pragma unroll
            for (int b = 0; b < NSA_N_BRANCHES; b++) {
                const float2 x = load_2(in_cta(o[b] + e, r));
                const float by = weight[(b * n + r) * HEADS + head_of(e)];
                y.x = fmaf(by, x.x, y.x), y.y = fmaf(by, x.y, y.y);
            }
        write_o(p, w, e, y);
    }
}

/* ---- The cache */

/* Half a warp copies a row. */
static __device__ void copy_row(char *to, const char *from)
{
    ((uint4 *)to)[lane_row()] = ((const uint4 *)from)[lane_row()];
}

/* The new token's K and V of slc, into its page, by a warp. No CTA of this call reads them there. */
static __device__ void append(const decode_sm90 &p, const work &w)
{
    const int32_t b = p.cache.shared_kv ? 0 : NSA_SLC;
    copy_row(page_row(p.cache, w.x, CACHE_SLC_K + lane_part(), w.head, w.t),
             new_row(p.cache, w.x, lane_part() == 0 ? p.cache.k[b] : p.cache.v[b], w.head, w.t));
}

/* One warp of each cluster comes here when the cluster has read what it reads. The last of a sequence lets the rings
 * take up the new tokens, and the length grow. */
static __device__ void finish(const decode_sm90 &p, const work &w)
{
    cache_header *h = (cache_header *)w.x.state;
    const int32_t n_heads = p.cache.cfg.c.n_heads_kv, units = (int32_t)w.x.added.n * n_heads;
    unsigned before = 0;
    __threadfence();
    if (lane_index() == 0)
        before = atomicInc(&h->arrived, (unsigned)units - 1);
    if (__shfl_sync(~0U, before, 0) != (unsigned)units - 1)
        return;
    for (int part = CACHE_RAW_K; part < CACHE_N_PARTS && !p.cache.shared_kv; part += 2) {
        const int64_t first = max64(w.x.old, w.x.length - p.cache.layout.rows[part]);
        const int32_t n = (int32_t)(w.x.length - first) * n_heads;
#pragma unroll 4
        for (int32_t i = 0; i < n; i++) {
            const int64_t t = first + i / n_heads;
            copy_row(ring_row(p.cache, w.x, part + lane_part(), i % n_heads, t),
                     token_row(p.cache, w.x, part + lane_part(), i % n_heads, t));
        }
    }
    if (lane_index() == 0) {
        h->longest = max64(h->longest, w.x.length);
        h->length = w.x.length;
    }
}

/* ---- The kernel */

/* Tile i of the warp: K and V as they arrive, and in their place the next but one. */
template <bool SHARED_KV>
static __device__ void attend(const decode_sm90 &p, const work &w, reader *r, int32_t i, const tile &x, const char *q,
                              sums *a, float *logits, int32_t first)
{
    float s[2][4];
    uint32_t prob[4];
    wait_for_tile<PENDING>();
    multiply_q(q, r->ring + i % 2 * SLOT, p.cache.cfg.scale * LOG2_E, x, s);
    __syncwarp();
    read_k<SHARED_KV>(p, w, r);
    if (logits != NULL)
        keep_logits(logits, first, s);
    soften(s, a, prob);
    wait_for_tile<PENDING>();
    multiply_v(prob, r->ring + (2 + i % 2) * SLOT, a);
    __syncwarp();
    read_v<SHARED_KV>(p, w, r);
}

/* The same for two branches. */
static __device__ void attend_both(const decode_sm90 &p, const work &w, reader *r, int32_t i, const tile &x,
                                   const char (*q)[HEADS * ROW], sums *slc, sums *win)
{
    float s[2][4];
    uint32_t prob[2][4];
    wait_for_tile<PENDING>();
    multiply_q(q[0], r->ring + i % 2 * SLOT, p.cache.cfg.scale * LOG2_E, x, s);
    soften(s, slc, prob[0]);
    multiply_q(q[1], r->ring + i % 2 * SLOT, p.cache.cfg.scale * LOG2_E, x, s);
    __syncwarp();
    read_k<true>(p, w, r);
    soften(s, win, prob[1]);
    wait_for_tile<PENDING>();
    multiply_v(prob[0], r->ring + (2 + i % 2) * SLOT, slc);
    multiply_v(prob[1], r->ring + (2 + i % 2) * SLOT, win);
    __syncwarp();
    read_v<true>(p, w, r);
}

template <bool SHARED_KV>
static __global__ __launch_bounds__(THREADS, DECODE_CTAS) void decode_kernel(const __grid_constant__ decode_sm90 p)
{
    extern __shared__ __align__(1024) char memory[];
    shared *const sh = (shared *)memory;
    float *const logits = (float *)(memory + DECODE_FIXED_BYTES);
    float *const sum = (float *)(memory + DECODE_FIXED_BYTES + decode_logits_bytes(p.max_tiles, p.max_blocks));
    float *const score = sum + p.max_tiles * TILE;
    const nsa_config &c = p.cache.cfg.c;
    work w;
    if (!find_work<SHARED_KV>(p, &w))
        return; /* as its cluster does */

    reader r = {sh->ring[warp_index()], 0, 0, 0, NULL};
    read_on<SHARED_KV>(p, w, &r, 0, w.n[NSA_CMP] + w.n[NSA_WIN]);
    load_q(p, w, NSA_CMP, sh->q[0]);
    load_q(p, w, NSA_WIN, sh->q[1]);
    load_gates(p, w, sh);
    if (w.rank == p.cluster - 1 && warp_index() == WARPS - 1)
        append(p, w);
    __syncthreads();

    sums slc, win;
    clear(&slc);
    const bool scored = w.cur >= c.slc_topk;
    int32_t i = 0;
    for (; i < w.n[NSA_CMP]; i++)
        attend<SHARED_KV>(p, w, &r, i, tile_of(p, w, i), sh->q[0], &slc, scored ? logits : NULL,
                          (warp_index() + i * WARPS) * TILE);
    put_sums(slc, sh->of_warp[NSA_CMP][warp_index()]);
    __syncthreads();
    load_q(p, w, NSA_SLC, sh->q[0]);
    w.selected = select_blocks(p, w, sh, logits, sum, score);
    deal_selected(p, &w);
    read_on<SHARED_KV>(p, w, &r, i, w.n[NSA_CMP] + w.n[NSA_WIN] + w.n[NSA_SLC]);
    __syncthreads();
    put(slc, (float2 *)logits + warp_index() * (O_BYTES / 8));
    if (p.slc_idx.data != NULL && w.rank == 0 && threadIdx.x < c.slc_topk)
        ((int32_t *)p.slc_idx.data)[offset_of(p.slc_idx, w.x.s, w.x.added.start, w.row, w.head) + threadIdx.x] =
            w.selected;

    clear(&slc);
    clear(&win);
    for (; i < w.n[NSA_CMP] + w.n[NSA_WIN]; i++) {
        const tile x = tile_of(p, w, i);
        if (SHARED_KV && x.first >= w.slc_end && __any_sync(~0U, w.selected == x.first / c.slc_block))
            attend_both(p, w, &r, i, x, sh->q, &slc, &win);
        else
            attend<SHARED_KV>(p, w, &r, i, x, sh->q[1], &win, NULL, 0);
    }
    for (; i < r.end; i++)
        attend<SHARED_KV>(p, w, &r, i, tile_of(p, w, i), sh->q[0], &slc, NULL, 0);
    wait_for_tile<0>();
    put(slc, (float2 *)(sh->ring[warp_index()] + O_BYTES));
    put(win, (float2 *)sh->ring[warp_index()]);
    put_sums(slc, sh->of_warp[NSA_SLC][warp_index()]);
    put_sums(win, sh->of_warp[NSA_WIN][warp_index()]);
    combine(p, w, sh, logits);
    if (w.rank == p.cluster - 1 && warp_index() == WARPS - 1)
        finish(p, w);
    if (p.cluster > 1)
        cluster_sync(); /* what others read stays until they have */
}

template <bool SHARED_KV> static cudaError_t launch(const decode_sm90 *p, nsa_stream stream)
{
    const int bytes = (int)decode_sm90_bytes(p->max_tiles, p->max_blocks);
    /* The same in all calls: other threads may be launching. */
    cudaError_t error =
        cudaFuncSetAttribute(decode_kernel<SHARED_KV>, cudaFuncAttributeMaxDynamicSharedMemorySize, DECODE_MAX_BYTES);
    if (error == cudaSuccess && p->cluster > 8)
        error = cudaFuncSetAttribute(decode_kernel<SHARED_KV>, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    if (error != cudaSuccess)
        return error;
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = (unsigned)p->cluster;
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)(p->cache.total * p->cache.cfg.c.n_heads_kv * p->cluster));
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = (size_t)bytes;
    config.stream = stream;
    config.attrs = &cluster;
    config.numAttrs = 1;
    error = cudaLaunchKernelEx(&config, decode_kernel<SHARED_KV>, *p);
    return error != cudaSuccess ? error : cudaGetLastError();
}

int launch_decode_sm90(const decode_sm90 *p, nsa_stream stream)
{
    if (p->cache.total == 0)
        return cudaSuccess;
    return p->cache.shared_kv ? launch<true>(p, stream) : launch<false>(p, stream);
}
