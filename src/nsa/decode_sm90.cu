/*
 * Decoding on Hopper in one launch: append, compress (mean), cmp_attn, select, slc_attn, win_attn and gate of a token
 * and kv head by a cluster of CTAs, which share its keys.
 *
 *     S[head][key] = q k^T         mma.sync, the heads of a group as its 16 rows; logits of cmp go to the workspace
 *     p = 2^(S' - max), o += p v   online softmax, each warp for its own keys
 *     lse of cmp over the cluster -> P[key] = sum over heads -> score[block] -> slc_idx, by each CTA for itself
 *     o of the branches, weighted by lse and gates, of the warps, then of the CTAs: added in the order of ranks
 *
 * Rows come in stages of 64: four tiles of 16 rows, each of which lies in one piece in a page, a ring or the call's
 * tensors, or in few. Four warps read, one for K and one for V of each of the ring's two slots: a lane asks the copy
 * engine for a tile, so that reading costs few instructions and 64 KiB of a CTA are under way. Four warps attend, each
 * with four rows of every tile. Rows lie in a slot as in memory, so ldmatrix would meet bank conflicts; see
 * multiply_q. The first stages of the window are known before the selected blocks: they are there when blocks are
 * selected. Where the branches share K and V, tiles of the window that are selected, too, are read once for both.
 *
 * New tokens are read from the call's tensors and blocks that they complete are made by each CTA that reads them, so
 * that no unit waits for another's writes. Rings and lengths are written by the unit of a sequence that is the last to
 * have read (a counter in the state): the order of units changes no result.
 *
 * Grid: a cluster for each (token, kv head), of so many CTAs that few units fill the device, two on an SM. Logits of
 * more than 256 MiB come in several launches.
 * Barriers: see the names in decode_sm90.cuh; the ring's, full and free of each slot; the cluster's, for sums of
 * exponentials, P, sums again and o, which CTAs write into each other's shared memory ahead of it.
 * Numerics: S, p, P, scores, o in float32; p rounded to bf16 for p v; o is rounded once, after the gates.
 *
 * Roofline: bytes. At 64k tokens and 32 sequences, 64/4 heads, 369 MB, 85 us at 4.35 TB/s. Measured on an H200
 * (2026-11-28, 41d92a6): 143 us there, 158 of 109 at 32k, 333 of 246 at 8k, 535 of 428 at 4k, 34 for one sequence of
 * 64k; with K and V shared by the branches 354 at 8k, 1118 at 2k, 2102 at 1k, of 182, 539 and 1014: those kernels
 * spill.
 *
 * Tried: cp.async of 16 bytes by all lanes into a ring of each warp and logits in shared memory: 515 us there. A tile
 * of 16 rows took a warp 3 us and more, and a long sequence a cluster of eight CTAs that did not fit two on an SM. One
 * reading warp for all four parts of the ring: 168 us, about 2 us a stage of a CTA at every length.
 */
#include "nsa/decode_sm90.cuh"
#include "ops/select/block_score.cuh"

/* ---- A stage: S[head][key] = q k^T, online softmax, o[head][channel] += p v */

/* Element o[8 b + e][2 r + c] is channel 8 (2 (lane%4) + c + 8 b) + e of head lane/4 + 8 r; max and sum are of heads
 * lane/4 and lane/4 + 8, the sum over the lane's keys. */
template <int D> struct sums {
    float o[D / 8][4];
    float max[2], sum[2]; /* of rows lane/4 and lane/4 + 8; sum: over the lane's keys */
};

template <int D> static __device__ void clear(sums<D> *a)
{
#pragma unroll
    for (int i = 0; i < D / 8; i++)
        a->o[i][0] = a->o[i][1] = a->o[i][2] = a->o[i][3] = 0.0F;
    a->max[0] = a->max[1] = -INFINITY;
    a->sum[0] = a->sum[1] = 0.0F;
}

/*
 * Which keys and channels a lane multiplies. Rows lie in a slot as they do in memory, whole 128 bytes each; reading
 * them 16 bytes at a time, eight lanes that are served together find eight different banks, since tiles are 32 bytes
 * further apart than their rows fill. mma wants a lane's keys to be 2 (lane%4) + c + 8 i of 16; which rows these are,
 * and which channels one of its steps takes, is free as long as both of its operands agree.
 */
static __device__ int tile_of_key(int pair, int c)
{
    return pair ^ 2 * c;
}

/* Of which the warp has rows 4 warp .. 4 warp + 3: this one is of keys i, c. */
static __device__ int row_of_key(int i, int c)
{
    return 4 * warp_index() + 2 * i + c;
}

/* Whether the token sees the lane's keys: bit 2 i + c. */
static __device__ unsigned seen_of(const uint16_t *seen)
{
    const int j = lane_index() % 4, row = row_of_key(0, 0);
    return (seen[tile_of_key(j, 0)] >> row & 5) | (seen[tile_of_key(j, 1)] >> row & 10);
}

/* Logits times log2 e, -inf of keys that are not seen: s[i][2 r + c] of head lane/4 + 8 r. */
template <int D>
static __device__ void multiply_q(const uint4 *q, const stage<D> &k, float scale, unsigned seen, float s[2][4])
{
    const int l = lane_index(), pair = l / 8, c_of_key = l / 4 % 2;
    const char *row = k.tile[tile_of_key(pair, c_of_key)] + row_of_key(0, c_of_key) * D * 2 + l % 4 * 16;
    float part[2][2][4] = {};
#pragma unroll
    for (int c = 0; c < D / 32; c++) {
        const uint4 lo = q[2 * c * WARP + l], hi = q[(2 * c + 1) * WARP + l];
        const uint32_t a[2][4] = {{lo.x, hi.x, lo.y, hi.y}, {lo.z, hi.z, lo.w, hi.w}};
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint4 x = *(const uint4 *)(row + 2 * i * D * 2 + c * 64);
            const uint32_t b[2][2] = {{x.x, x.y}, {x.z, x.w}};
            mma_16x8(part[0][i], a[0], b[0]);
            mma_16x8(part[1][i], a[1], b[1]);
        }
    }
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            s[i][e] = seen >> (2 * i + e % 2) & 1 ? scale * (part[0][i][e] + part[1][i][e]) : -INFINITY;
}

/* s becomes p, as an operand of mma. */
template <int D> static __device__ void soften(const float s[2][4], sums<D> *a, uint32_t p[4])
{
    float most[2], e[2][4];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float m = fmaxf(fmaxf(s[0][2 * r], s[0][2 * r + 1]), fmaxf(s[1][2 * r], s[1][2 * r + 1]));
        most[r] = fmaxf(a->max[r], quad_max(m));
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
    /* As long as none of the warp's keys is seen all are 0. */
    const float max[2] = {a->max[0] == -INFINITY ? 0.0F : a->max[0], a->max[1] == -INFINITY ? 0.0F : a->max[1]};
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            e[i][j] = exp2_fast(s[i][j] - max[j / 2]);
            a->sum[j / 2] += e[i][j];
        }
    p[0] = pack2(e[0][0], e[0][1]), p[1] = pack2(e[0][2], e[0][3]);
    p[2] = pack2(e[1][0], e[1][1]), p[3] = pack2(e[1][2], e[1][3]);
}

/* The same bf16, the lower or the upper, of two pairs. */
static __device__ uint32_t lower_of(uint32_t a, uint32_t b)
{
    return __byte_perm(a, b, 0x5410);
}

static __device__ uint32_t upper_of(uint32_t a, uint32_t b)
{
    return __byte_perm(a, b, 0x7632);
}

template <int D> static __device__ void multiply_v(const uint32_t p[4], const stage<D> &v, unsigned seen, sums<D> *a)
{
    const int l = lane_index();
#pragma unroll
    for (int b = 0; b < D / 64; b++) {
        uint32_t x[4][4];
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const char *from = v.tile[tile_of_key(l % 4, k % 2)] + row_of_key(k / 2, k % 2) * D * 2 + l / 4 * 16;
            uint4 y = {0, 0, 0, 0};
            if (seen >> k & 1)
                y = *(const uint4 *)(from + b * 128);
            x[k][0] = y.x, x[k][1] = y.y, x[k][2] = y.z, x[k][3] = y.w;
        }
#pragma unroll
        for (int m = 0; m < 4; m++) {
            const uint32_t lower[2] = {lower_of(x[0][m], x[1][m]), lower_of(x[2][m], x[3][m])};
            const uint32_t upper[2] = {upper_of(x[0][m], x[1][m]), upper_of(x[2][m], x[3][m])};
            mma_16x8(a->o[8 * b + 2 * m], p, lower);
            mma_16x8(a->o[8 * b + 2 * m + 1], p, upper);
        }
    }
}

template <int D> static __device__ void put_sums(const sums<D> &a, max_sum *of_heads)
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float sum = a.sum[r] + __shfl_xor_sync(~0U, a.sum[r], 1);
        sum += __shfl_xor_sync(~0U, sum, 2);
        if (lane_index() % 4 == 0)
            of_heads[lane_index() / 4 + 8 * r] = make_float2(a.max[r], sum);
    }
}

/* ---- Queries and gates */

/* In the order in which lanes read them: 16 bytes `piece` of head h for lane h%8 * 4 + piece%4. */
template <int D, class RING> static __device__ void load_q(const decode_sm90 &p, const work &w, RING *x)
{
    enum { PIECES = D / 8 };
    const int group = p.cache.cfg.group;
#pragma unroll
    for (int i = threadIdx.x; i < NSA_N_BRANCHES * HEADS * PIECES; i += ATTENDING) {
        const int b = i / (HEADS * PIECES), h = i / PIECES % HEADS, piece = i % PIECES;
        const nsa_tensor &t = p.q[b];
        const int64_t at = offset_of(t, w.x.s, w.x.added.start, w.row, (int64_t)w.head * group + min(h, group - 1));
        const uint4 y = ((const uint4 *)((const bf16 *)t.data + at))[piece], none = {0, 0, 0, 0};
        x->q[b][(piece / 4 * 2 + h / 8) * WARP + h % 8 * 4 + piece % 4] = h < group ? y : none;
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

/* Over all keys of the cluster: log2 of the sum of 2^logit, of n branches. Each CTA writes its part to all, into parts
 * [branch][CTA][head], that no CTA of the cluster uses any more. Heads beyond the group count nothing. */
static __device__ void find_lse(const decode_sm90 &p, const work &w, shared *sh, int first, int n, max_sum *parts)
{
    const int b = threadIdx.x / HEADS, h = threadIdx.x % HEADS;
    bar_sync(ATTENDED, ATTENDING);
    if (p.cluster > 1) {
        for (int k = 0; k < n; k++) {
            const max_sum x = of_all_warps(sh, first + k, h);
            for (int r = b; r < p.cluster; r += ATTENDING / HEADS)
                store_2(in_cta(&parts[(k * p.cluster + w.rank) * HEADS + h], r), x);
        }
        cluster_sync();
    }
    if (b < n) {
        max_sum x = make_float2(-INFINITY, 0.0F);
        if (p.cluster == 1)
            x = of_all_warps(sh, first + b, h);
        else
            for (int r = 0; r < p.cluster; r++)
                x = join(x, parts[(b * p.cluster + r) * HEADS + h]);
        sh->lse[first + b][h] = h < p.cache.cfg.group ? x.x + log2f(x.y) : INFINITY;
    }
    bar_sync(ATTENDED, ATTENDING);
}

/* Of the heads lane/4 and lane/4 + 8: what the warp's o counts, with the gate. */
template <int D> static __device__ float weight_of(const shared *sh, const sums<D> &a, int b, int r)
{
    const int h = lane_index() / 4 + 8 * r;
    return a.max[r] == -INFINITY ? 0.0F : exp2_fast(a.max[r] - sh->lse[b][h]) * sh->gate[b][h];
}

/* Logits of the CTA's i-th stage, [head][place]: the lane's keys i, c have place 2 i + c of the four that are its. */
static __device__ float *logits_at(const decode_sm90 &p, const work &w, int32_t i)
{
    const int64_t unit = blockIdx.x / p.cluster;
    return p.logits + (unit * p.max_stages + stage_at(p, w, NSA_CMP, i)) * (STAGE * HEADS);
}

static __device__ void keep_logits(float *logits, const float s[2][4])
{
    const int l = lane_index();
#pragma unroll
    for (int r = 0; r < 2; r++)
        ((float4 *)logits)[(l / 4 + 8 * r) * (STAGE / 4) + warp_index() * 4 + l % 4] =
            make_float4(s[0][2 * r], s[0][2 * r + 1], s[1][2 * r], s[1][2 * r + 1]);
}

/* P of the CTA's own rows: a warp takes whole stages, a lane two places of each. */
static __device__ void sum_heads(const decode_sm90 &p, const work &w, const shared *sh, float *sum)
{
    enum { AT_ONCE = 2 };
    const int l = lane_index(), n = n_stages(p, w, NSA_CMP);
    float lse[HEADS];
#pragma unroll
    for (int h = 0; h < HEADS; h++)
        lse[h] = sh->lse[NSA_CMP][h];
    for (int first = warp_index(); first < n; first += AT_ONCE * WARPS) {
        float2 s[AT_ONCE][HEADS];
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++)
            if (first + k * WARPS < n) {
                const float2 *from = (const float2 *)logits_at(p, w, first + k * WARPS) + l;
#pragma unroll
                for (int h = 0; h < HEADS; h++)
                    s[k][h] = __ldcg(from + h * (STAGE / 2));
            }
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++)
            if (first + k * WARPS < n) {
                float2 all = {0.0F, 0.0F};
#pragma unroll
                for (int h = 0; h < HEADS; h++)
                    all.x += exp2_fast(s[k][h].x - lse[h]), all.y += exp2_fast(s[k][h].y - lse[h]);
                float *const to = sum + stage_at(p, w, NSA_CMP, first + k * WARPS) * STAGE + l / 8 * 4 + l % 2 * 2;
                to[tile_of_key(l % 8 / 2, 0) * TILE] = all.x;
                to[tile_of_key(l % 8 / 2, 1) * TILE + 1] = all.y;
            }
    }
}

/* P of the CTA's own rows, to the others. */
static __device__ void spread_sums(const decode_sm90 &p, const work &w, float *sum)
{
    enum { PER_STAGE = STAGE / 4 };
    bar_sync(ATTENDED, ATTENDING);
    const int others = p.cluster - 1, n = n_stages(p, w, NSA_CMP) * PER_STAGE * others;
    for (int i = threadIdx.x; i < n; i += ATTENDING) {
        const int k = i / others, to = (w.rank + 1 + i % others) % p.cluster;
        float *const x = sum + stage_at(p, w, NSA_CMP, k / PER_STAGE) * STAGE + k % PER_STAGE * 4;
        store_4(in_cta(x, to), *(const float4 *)x);
    }
    cluster_sync();
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
 * The n_free best of blocks from .. to - 1, into sh->chosen in rising order: the best of those that a lane of any warp
 * has bound the n_free best of all from below; the few blocks that reach the bound are ranked among themselves.
 */
static __device__ void choose(const nsa_config &c, shared *sh, const float *score, uint64_t *list, int32_t from,
                              int32_t to, int n_free)
{
    uint64_t best = 0;
    for (int32_t j = from + threadIdx.x; j < to; j += ATTENDING) {
        const uint64_t key = key_of(score[j], j);
        best = key > best ? key : best;
    }
    sh->best[warp_index()][lane_index()] = best;
    if (threadIdx.x == 0)
        sh->n_listed = 0;
    bar_sync(ATTENDED, ATTENDING);
    best = 0;
    for (int i = 0; i < WARPS; i++)
        best = sh->best[i][lane_index()] > best ? sh->best[i][lane_index()] : best;
    const unsigned last = __ballot_sync(~0U, rank_of(best) == n_free - 1);
    const uint64_t bound = __shfl_sync(~0U, best, __ffs((int)last) - 1);
    for (int32_t j = from + threadIdx.x; j < to; j += ATTENDING) {
        const uint64_t key = key_of(score[j], j);
        if (key >= bound)
            list[atomicAdd(&sh->n_listed, 1)] = key;
    }
    bar_sync(ATTENDED, ATTENDING);
    const int32_t n = sh->n_listed;
    int32_t *const any_order = (int32_t *)sh->best;
    for (int32_t i = threadIdx.x; i < n; i += ATTENDING) {
        const uint64_t key = list[i];
        int rank = 0;
        for (int32_t k = 0; k < n; k++)
            rank += list[k] > key;
        if (rank < n_free)
            any_order[rank] = (int32_t) ~(uint32_t)key;
    }
    bar_sync(ATTENDED, ATTENDING);
    if (threadIdx.x < n_free) {
        const int32_t block = any_order[threadIdx.x];
        int rank = 0;
        for (int k = 0; k < n_free; k++)
            rank += any_order[k] < block;
        sh->chosen[rank] = block;
    }
    bar_sync(ATTENDED, ATTENDING);
}

/* The selected blocks in rising order, in the lanes of each warp, once the chosen ones are known. */
static __device__ int32_t selected_block(const decode_sm90 &p, const work &w, const shared *sh)
{
    const nsa_config &c = p.cache.cfg.c;
    const int l = lane_index(), n_free = c.slc_topk - c.slc_n_init - c.slc_n_local;
    if (w.cur < c.slc_topk)
        return l <= w.cur ? l : -1;
    return l < c.slc_n_init            ? l
           : l < c.slc_n_init + n_free ? sh->chosen[l - c.slc_n_init]
           : l < c.slc_topk            ? w.cur + 1 - c.slc_n_local + l - c.slc_n_init - n_free
                                       : -1;
}

/* After a CTA's stages of cmp, where blocks are scored. */
static __device__ void choose_blocks(const decode_sm90 &p, const work &w, shared *sh, float *sum, float *score)
{
    const nsa_config &c = p.cache.cfg.c;
    const int32_t from = c.slc_n_init, to = w.cur + 1 - c.slc_n_local;
    sum_heads(p, w, sh, sum);
    if (p.cluster > 1)
        spread_sums(p, w, sum);
    else
        bar_sync(ATTENDED, ATTENDING);
    for (int32_t j = from + threadIdx.x; j < to; j += ATTENDING)
        score[j] = block_score<int32_t>(c, sum + w.shift, w.n_cmp, j);
    bar_sync(ATTENDED, ATTENDING); /* the list takes the place of P */
    choose(c, sh, score, (uint64_t *)sum, from, to, c.slc_topk - c.slc_n_init - c.slc_n_local);
}

/* ---- Results */

/* Vector 8 b + 4 r + 2 c + half of a lane is channels 4 half .. 4 half + 3 of its o[8 b ..][2 r + c]. */
template <int D> static __device__ float4 vector_of(const sums<D> &a, int i, const float weight[2])
{
    const int b = i / 8, r = i / 4 % 2, c = i / 2 % 2, e = 8 * b + i % 2 * 4;
    return make_float4(weight[r] * a.o[e][2 * r + c], weight[r] * a.o[e + 1][2 * r + c],
                       weight[r] * a.o[e + 2][2 * r + c], weight[r] * a.o[e + 3][2 * r + c]);
}

static __device__ float4 add(const float4 &x, const float4 &y)
{
    return make_float4(x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w);
}

/* o of cmp, weighted, by each lane for itself. A warp has HEADS * D / 4 vectors. */
template <int D> static __device__ void put(const shared *sh, const sums<D> &cmp, float4 *o)
{
    const float weight[2] = {weight_of(sh, cmp, NSA_CMP, 0), weight_of(sh, cmp, NSA_CMP, 1)};
#pragma unroll
    for (int i = 0; i < D / 8; i++)
        o[(warp_index() * (D / 8) + i) * WARP + lane_index()] = vector_of(cmp, i, weight);
}

/* The same of slc and win, added to it. */
template <int D> static __device__ void put_more(const shared *sh, const sums<D> &slc, const sums<D> &win, float4 *o)
{
    const float of_slc[2] = {weight_of(sh, slc, NSA_SLC, 0), weight_of(sh, slc, NSA_SLC, 1)};
    const float of_win[2] = {weight_of(sh, win, NSA_WIN, 0), weight_of(sh, win, NSA_WIN, 1)};
#pragma unroll
    for (int i = 0; i < D / 8; i++) {
        float4 *const x = o + (warp_index() * (D / 8) + i) * WARP + lane_index();
        *x = add(*x, add(vector_of(slc, i, of_slc), vector_of(win, i, of_win)));
    }
}

static __device__ void write_o(const decode_sm90 &p, const work &w, int i, const float4 &x)
{
    const int l = i % WARP, of_lane = i / WARP, h = l / 4 + of_lane / 4 % 2 * 8;
    const int channel = 8 * (2 * (l % 4) + of_lane / 2 % 2 + of_lane / 8 * 8) + of_lane % 2 * 4;
    if (h >= p.cache.cfg.group)
        return;
    const int64_t at = offset_of(p.o, w.x.s, w.x.added.start, w.row, (int64_t)w.head * p.cache.cfg.group + h);
    *(uint2 *)((bf16 *)p.o.data + at + channel) = make_uint2(pack2(x.x, x.y), pack2(x.z, x.w));
}

/* Of the warps and, in the order of ranks, of the CTAs: each CTA adds up some vectors, which the others write to it, to
 * parts[CTA][vector]. */
template <int D> static __device__ void combine(const decode_sm90 &p, const work &w, const float4 *o, float4 *parts)
{
    enum { N_VECTORS = HEADS * D / 4 };
    const int mine = N_VECTORS / p.cluster;
    bar_sync(ATTENDED, ATTENDING);
#pragma unroll
    for (int i = threadIdx.x; i < N_VECTORS; i += ATTENDING) {
        float4 x = o[i];
#pragma unroll
        for (int k = 1; k < WARPS; k++)
            x = add(x, o[k * N_VECTORS + i]);
        if (p.cluster == 1)
            write_o(p, w, i, x);
        else
            store_4(in_cta(parts + w.rank * mine + i % mine, i / mine), x);
    }
    if (p.cluster == 1)
        return;
    cluster_sync();
    for (int i = threadIdx.x; i < mine; i += ATTENDING) {
        float4 x = parts[i];
#pragma unroll 4
        for (int r = 1; r < p.cluster; r++)
            x = add(x, parts[r * mine + i]);
        write_o(p, w, w.rank * mine + i, x);
    }
}

/* ---- The cache */

/* Half a warp copies a row: the lower one K's, the upper one V's. */
static __device__ int which_row()
{
    return lane_index() / (WARP / 2);
}

static __device__ void copy_row(const decode_sm90 &p, char *to, const char *from)
{
    for (int at = lane_index() % (WARP / 2) * 16; at < row_bytes(p.cache, which_row()); at += WARP / 2 * 16)
        *(uint4 *)(to + at) = *(const uint4 *)(from + at);
}

/* The new token's K and V of slc, into its page, by a warp. No CTA of this call reads them there. */
static __device__ void append(const decode_sm90 &p, const work &w)
{
    const int32_t b = p.cache.shared_kv ? 0 : NSA_SLC;
    copy_row(p, page_row(p.cache, w.x, CACHE_SLC_K + which_row(), w.head, w.t),
             new_row(p.cache, w.x, which_row() == 0 ? p.cache.k[b] : p.cache.v[b], w.head, w.t));
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
            copy_row(p, ring_row(p.cache, w.x, part + which_row(), i % n_heads, t),
                     token_row(p.cache, w.x, part + which_row(), i % n_heads, t));
        }
    }
    if (lane_index() == 0) {
        h->longest = max64(h->longest, w.x.length);
        h->length = w.x.length;
    }
}

/* ---- The kernel */

/* The s-th stage: K and V as they arrive; and their places free again. */
static __device__ void wait_for(const shared *sh, int part, uint32_t s)
{
    mbar_wait((uint64_t *)&sh->full[part][s % SLOTS], s / SLOTS % 2);
}

static __device__ void let_go(shared *sh, int part, uint32_t s)
{
    if (part == 1)
        fence_async(); /* or the next copy would overtake reads that have only been asked for; soften has used K's */
    __syncwarp();
    if (lane_index() == 0)
        mbar_arrive(&sh->free[part][s % SLOTS]);
}

template <int D_QK, int D_V>
static __device__ void attend(const decode_sm90 &p, shared *sh, const ring<D_QK, D_V> *in, int branch, uint32_t s,
                              sums<D_V> *a, float *logits)
{
    float x[2][4];
    uint32_t prob[4];
    wait_for(sh, 0, s);
    const unsigned seen = seen_of(sh->seen[s % SLOTS]);
    multiply_q(in->q[branch], in->k[s % SLOTS], p.cache.cfg.scale * LOG2_E, seen, x);
    soften(x, a, prob);
    let_go(sh, 0, s);
    wait_for(sh, 1, s);
    multiply_v(prob, in->v[s % SLOTS], seen, a);
    let_go(sh, 1, s);
    if (logits != NULL)
        keep_logits(logits, x); /* behind the fence, which would wait for it */
}

/* A stage of the window for slc, too: the tiles of selected blocks, but for one that the window begins in. */
template <int D_QK, int D_V>
static __device__ void attend_both(const decode_sm90 &p, const work &w, shared *sh, const ring<D_QK, D_V> *in,
                                   int32_t i, uint32_t s, sums<D_V> *slc, sums<D_V> *win)
{
    const int32_t first = w.tiles_first + stage_at(p, w, NSA_WIN, i) * STAGE;
    unsigned of_tiles = 0; /* a bit for each */
#pragma unroll
    for (int k = 0; k < TILES; k++) {
        const int32_t row = first + k * TILE;
        if (row >= w.slc_end && __any_sync(~0U, w.selected == row / p.cache.cfg.c.slc_block))
            of_tiles |= 1U << k;
    }
    if (of_tiles == 0) {
        attend(p, sh, in, NSA_WIN, s, win, NULL);
        return;
    }
    const int j = lane_index() % 4;
    float x[2][4];
    uint32_t prob[2][4];
    wait_for(sh, 0, s);
    const unsigned seen = seen_of(sh->seen[s % SLOTS]);
    const unsigned of_slc = seen & ((of_tiles >> tile_of_key(j, 0) & 1) * 5 | (of_tiles >> tile_of_key(j, 1) & 1) * 10);
    multiply_q(in->q[NSA_SLC], in->k[s % SLOTS], p.cache.cfg.scale * LOG2_E, of_slc, x);
    soften(x, slc, prob[0]);
    multiply_q(in->q[NSA_WIN], in->k[s % SLOTS], p.cache.cfg.scale * LOG2_E, seen, x);
    soften(x, win, prob[1]);
    let_go(sh, 0, s);
    wait_for(sh, 1, s);
    multiply_v(prob[0], in->v[s % SLOTS], seen, slc);
    multiply_v(prob[1], in->v[s % SLOTS], seen, win);
    let_go(sh, 1, s);
}

/* A reading warp. The first stages of the window are under way while blocks are selected. */
template <bool SHARED_KV>
static __device__ void read_all(const decode_sm90 &p, work &w, shared *sh, int part, int slot, char *to)
{
    const int32_t n_cmp = n_stages(p, w, NSA_CMP), n_known = n_cmp + n_stages(p, w, NSA_WIN);
    const int32_t pause = min(n_known, n_cmp + SLOTS);
    int32_t n = n_known;
    bool paused = false;
    for (int32_t s = slot; s < n || !paused; s += SLOTS) {
        if (s >= pause && !paused) {
            for (int k = 0; k < (p.cluster == 1 ? 0 : w.scored ? 2 : 1); k++)
                cluster_sync();
            bar_sync(SELECTED, THREADS);
            w.selected = selected_block(p, w, sh);
            deal_selected(p, &w);
            n += n_stages(p, w, NSA_SLC);
            paused = true;
        }
        if (s < n) {
            const int branch = s < n_cmp ? NSA_CMP : s < n_known ? NSA_WIN : NSA_SLC;
            const int32_t before = branch == NSA_CMP ? 0 : branch == NSA_WIN ? n_cmp : n_known;
            read_stage<SHARED_KV>(p, w, sh, part, branch, s - before, slot, to, (uint32_t)s / SLOTS % 2 ^ 1);
        }
    }
}

/* The warps that attend. */
template <int D_QK, int D_V, bool SHARED_KV>
static __device__ void attend_all(const decode_sm90 &p, work &w, shared *sh, ring<D_QK, D_V> *in, float *sum,
                                  float *score)
{
    const int32_t n_cmp = n_stages(p, w, NSA_CMP), n_win = n_stages(p, w, NSA_WIN);
    sums<D_V> slc, win;
    uint32_t s = 0;
    load_q<D_QK>(p, w, in);
    load_gates(p, w, sh);
    bar_sync(ATTENDED, ATTENDING);
    clear(&slc);
    for (int32_t i = 0; i < n_cmp; i++)
        attend(p, sh, in, NSA_CMP, s++, &slc, w.scored ? logits_at(p, w, i) : NULL);
    put_sums(slc, sh->of_warp[NSA_CMP][warp_index()]);
    find_lse(p, w, sh, NSA_CMP, 1, sh->of_ctas[0]);
    if (w.scored)
        choose_blocks(p, w, sh, sum, score);
    bar_arrive(SELECTED, THREADS);
    w.selected = selected_block(p, w, sh);
    deal_selected(p, &w);
    put(sh, slc, (float4 *)sum);
    if (p.slc_idx.data != NULL && w.rank == 0 && threadIdx.x < p.cache.cfg.c.slc_topk)
        ((int32_t *)p.slc_idx.data)[offset_of(p.slc_idx, w.x.s, w.x.added.start, w.row, w.head) + threadIdx.x] =
            w.selected;

    clear(&slc);
    clear(&win);
    for (int32_t i = 0; i < n_win; i++)
        if (SHARED_KV)
            attend_both(p, w, sh, in, i, s++, &slc, &win);
        else
            attend(p, sh, in, NSA_WIN, s++, &win, NULL);
    for (int32_t n = n_stages(p, w, NSA_SLC); n > 0; n--)
        attend(p, sh, in, NSA_SLC, s++, &slc, NULL);
    put_sums(slc, sh->of_warp[NSA_SLC][warp_index()]);
    put_sums(win, sh->of_warp[NSA_WIN][warp_index()]);
    if (p.cluster == 1)
        bar_arrive(HAS_READ, ATTENDING + WARP);
    find_lse(p, w, sh, NSA_SLC, 2, (max_sum *)in->q[NSA_CMP]);
    put_more(sh, slc, win, (float4 *)sum);
    combine<D_V>(p, w, (float4 *)sum, (float4 *)in->k);
}

template <int D_QK, int D_V, bool SHARED_KV>
static __global__ __launch_bounds__(THREADS, 2) void decode_kernel(const __grid_constant__ decode_sm90 p)
{
    extern __shared__ __align__(1024) char memory[];
    shared *const sh = (shared *)memory;
    ring<D_QK, D_V> *const in = (ring<D_QK, D_V> *)(memory + DECODE_SMALL_BYTES);
    float *const sum = (float *)(in + 1);
    float *const score = sum + decode_sums_bytes(p.max_stages, p.max_blocks) / 4;
    work w;
    if (p.cluster > 1)
        cluster_arrive();
    const bool found = find_work<SHARED_KV>(p, &w);
    if (p.cluster > 1)
        cluster_wait(); /* all CTAs are there to be written to */
    if (!found)
        return; /* as its cluster does */
    if (threadIdx.x < SLOTS) {
        for (int part = 0; part < 2; part++) {
            mbar_init(&sh->full[part][threadIdx.x], TILES);
            mbar_init(&sh->free[part][threadIdx.x], WARPS);
        }
        fence_mbar_init();
    }
    __syncthreads();
    if (warp_index() < WARPS) {
        registers_up<192>();
        attend_all<D_QK, D_V, SHARED_KV>(p, w, sh, in, sum, score);
        return;
    }
    registers_down<64>();
    const int reader = warp_index() - WARPS, slot = reader / 2;
    read_all<SHARED_KV>(p, w, sh, reader % 2, slot, reader % 2 == 0 ? in->k[slot].tile[0] : in->v[slot].tile[0]);
    if (reader > 0 || w.rank < p.cluster - 1)
        return;
    append(p, w);
    if (p.cluster > 1) {
        cluster_sync();
        cluster_arrive(); /* as combine does, which need not wait for the rest */
    } else {
        bar_sync(HAS_READ, ATTENDING + WARP);
    }
    finish(p, w);
    if (p.cluster > 1)
        cluster_wait();
}

template <int D_QK, int D_V, bool SHARED_KV> static cudaError_t launch(const decode_sm90 *p, nsa_stream stream)
{
    const int bytes = (int)decode_sm90_bytes(D_QK, D_V, p->max_stages, p->max_blocks);
    /* The same in all calls: other threads may be launching. */
    void (*const kernel)(decode_sm90) = decode_kernel<D_QK, D_V, SHARED_KV>;
    cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, DECODE_MAX_BYTES);
    if (error == cudaSuccess && p->cluster > 8)
        error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    if (error != cudaSuccess)
        return error;
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = (unsigned)p->cluster;
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)(p->n_units * p->cluster));
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = (size_t)bytes;
    config.stream = stream;
    config.attrs = &cluster;
    config.numAttrs = 1;
    error = cudaLaunchKernelEx(&config, kernel, *p);
    return error != cudaSuccess ? error : cudaGetLastError();
}

template <int D_QK, int D_V> static cudaError_t launch(const decode_sm90 *p, nsa_stream stream)
{
    static_assert(sizeof(ring<D_QK, D_V>) == decode_ring_bytes(D_QK, D_V), "decode_sm90_bytes counts it");
    return p->cache.shared_kv ? launch<D_QK, D_V, true>(p, stream) : launch<D_QK, D_V, false>(p, stream);
}

int launch_decode_sm90(const decode_sm90 *p, nsa_stream stream)
{
    switch (p->cache.cfg.c.d_qk) {
    case 64: return launch<64, 64>(p, stream);
    case 128: return launch<128, 128>(p, stream);
    default: return launch<192, 128>(p, stream);
    }
}
