/*
 * Attention over selected blocks, forward, on Hopper.
 *
 *     s = scale q k^T    p = exp(s - max)    o = p v / sum p    lse = max + ln sum p    over the blocks of slc_idx[t]
 *
 * Grid    a block of threads for each (kv head, tile of consecutive tokens), kv head slowest: the K and V that all SMs
 *         read at a time are those of one kv head and stay in L2.
 * Tile    a few tokens. The blocks that any of them selected are listed once, ascending, and the list streams through
 *         a ring of slots in shared memory. So a tile reads a block once: tokens that share blocks share loads.
 * Warp    16 rows: 16 heads of one token, or all heads of the `together` tokens of a small group. It multiplies by
 *         mma.sync only where one of its tokens selected the block, with its own softmax: warps never wait for each
 *         other, and a slow one holds up no more than the slots that it has yet to read.
 *
 *     gQ -> rQ                             once
 *     gK -> sK[slot]  gV -> sV[slot]       tensor maps, boxes of KEYS keys x 64 channels
 *     sK -> rS = rQ k^T -> rP (bf16)       ldmatrix, registers of the warp
 *     sV -> rO += rP v                     ldmatrix, transposed
 *     rO -> gO, lse
 *
 * Ring    item i (KEYS keys of a listed block) lies in slot i % STAGES. k_item, v_item say that it is on its way,
 *         k_full, v_full that it has come. Who arrives last at k_empty, v_empty, having read it, fills the slot
 *         again, so there is no producer. K is given back as soon as its scores are there.
 * List    made in windows of so many blocks as `wanted` has room for, a set of tokens for each block: 2048, so one
 *         window is enough up to 128k tokens unless groups are small.
 * Masks   a row has `seen` of the KEYS keys: none if it did not select the block, some in the block of its position.
 * NaN     scores are masked by select, but p = 0 times v = NaN is NaN. Where all rows of a warp see the same keys, it
 *         clears the rows of V that they do not see. Rows of different tokens see different ones: if a result of the
 *         tile is not finite, the tile is done again, token after token. The other results keep their bits: what they
 *         do not see added 0.
 * Numbers max is in units of log2. It follows the largest score only when that has grown by 2^8: the same sums, fewer
 *         multiplications. p is rounded to bf16 for the product, not for its sum.
 *
 * H100, 2026-11-24, 64/4 heads, d 128, 16 of blocks of 64: 13.8 ms at 64k where tokens choose at random (the union of
 * a tile is 13.4 blocks a token, 115 GB through L2), 9.3 ms where neighbours share 85 % of their blocks; 1.3 ms at 8k.
 * With 32 heads, at random: 8.7 ms at 32k/group 4, 5.7 ms at 32k/group 8, 35 ms at 64k/group 2, 55 ms at 64k/group 1.
 * There shared memory is what is busiest, at 60 %: each warp reads K and V for itself.
 *
 * Tried (ms at 64k, random and shared): one block of 12 warps on an SM 13.6, 9.5; two of 4 warps, with more registers
 * 14.2, 10.2; items of 32 keys 15.3, 11.5, of 16 keys 18.8, 14.1; scores of 32 keys at a time 13.7, 9.1.
 */
#include "cuda/sm90.cuh"
#include "ops/slc_attn/slc_attn_sm90.h"

enum {
    WARPS_AT = 16,
    WINDOW = 2048,       /* blocks of a list, at most */
    WANTED_WORDS = 2048, /* of 32 (block, token) */
    HEADS = 16,          /* rows of a warp */
    AHEAD = 3,           /* operands on their way from shared memory */
    GROWTH = 8           /* log2: of the largest score, before max follows */
};

/* How tokens and heads are dealt out. */
typedef struct deal {
    int32_t warps;    /* of a block of threads */
    int32_t together; /* tokens of a warp: a power of two, so that their bits in `wanted` lie in one word */
    int32_t splits;   /* warps of a token, which share its group in 16s */
    int32_t rounds;   /* blocks of threads of a tile: more than 1 if a group needs more warps than one has */
    int32_t tile;     /* tokens */
    int32_t log_bits; /* of a block in `wanted`: log2 of tile, rounded up */
    int32_t window;   /* blocks of a list */
    int32_t parts;    /* items of a block */
    int64_t n_tiles;  /* numbers of tiles, of which some are not used */
} deal;

/* ---- Who does what */

/* The tile of a block of threads. */
typedef struct place_of_tile {
    int32_t s, kv_head, first_split;
    int32_t first, n, t; /* row of its first token; its tokens; position of the first, maybe negative */
    seq_range q, k;
} place_of_tile;

static __device__ bool find_tile(const slc_fwd_sm90 &p, const deal &d, place_of_tile *x)
{
    const int64_t column = blockIdx.x / d.n_tiles, i = blockIdx.x % d.n_tiles;
    x->kv_head = (int32_t)(column / d.rounds);
    x->first_split = (int32_t)(column % d.rounds) * d.splits;
    int32_t lo = 0, hi = p.seqs.n; /* the last sequence whose tiles start at or before i */
    while (hi - lo > 1) {
        const int32_t mid = lo + (hi - lo) / 2;
        if (p.seqs.cu_q[mid] / d.tile + mid <= i)
            lo = mid;
        else
            hi = mid;
    }
    x->s = lo;
    x->q = seq_q(p.seqs, lo);
    x->k = seq_k(p.seqs, lo);
    const int64_t first = (i - (p.seqs.cu_q[lo] / d.tile + lo)) * d.tile;
    x->first = (int32_t)first;
    x->n = (int32_t)max64(0, min64(d.tile, x->q.n - first));
    x->t = (int32_t)(first + x->k.n - x->q.n);
    return first >= 0 && x->n > 0;
}

/* The first token in the tile of this warp. */
static __device__ int first_token(const deal &d, int warp)
{
    return warp / d.splits * d.together;
}

/* Of the 16 rows of a warp, those past its tokens and heads are zeros that nobody stores. */
typedef struct warp_row {
    bool used;
    int32_t token; /* of the warp's */
    int64_t row, head;
} warp_row;

static __device__ int token_of_row(const slc_fwd_sm90 &p, const deal &d, int i)
{
    return min(i / min(p.cfg.group, HEADS), d.together - 1);
}

static __device__ warp_row row_of(const slc_fwd_sm90 &p, const deal &d, const place_of_tile &at, int i)
{
    const int warp = (int)threadIdx.x / WARP, heads = min(p.cfg.group, HEADS);
    const int head = (at.first_split + warp % d.splits) * HEADS + i % heads, token = first_token(d, warp) + i / heads;
    warp_row x;
    x.token = token_of_row(p, d, i);
    x.row = at.first + token;
    x.head = (int64_t)at.kv_head * p.cfg.group + head;
    x.used = i / heads < d.together && head < p.cfg.group && token < at.n;
    return x;
}

template <int D_QK, int D_V, int KEYS, int STAGES> struct fwd_shared {
    bf16 k[STAGES][D_QK / BOX_CHANNELS][KEYS][BOX_CHANNELS], v[STAGES][D_V / BOX_CHANNELS][KEYS][BOX_CHANNELS];
    uint32_t wanted[WANTED_WORDS]; /* [block of the window][token of the tile], bits */
    uint32_t list[WINDOW];         /* block of the window; from bit WARPS_AT on the warps that want it */
    uint64_t k_full[STAGES], v_full[STAGES], k_empty[STAGES], v_empty[STAGES];
    uint32_t k_item[STAGES], v_item[STAGES];
    int32_t n_of_warp[WARP];
    place_of_tile at;
};

/* ---- The list */

/* Which of the tokens of a warp, from number `first` of the tile on, want block b of the window. */
static __device__ uint32_t tokens_of(const uint32_t *wanted, const deal &d, int b, int first)
{
    const uint32_t bit = ((uint32_t)b << d.log_bits) + (uint32_t)first;
    return wanted[bit / 32] >> bit % 32 & ((1U << d.together) - 1U);
}

static __device__ uint32_t warps_of(const uint32_t *wanted, const deal &d, int b)
{
    uint32_t warps = 0;
    for (int w = 0; w < d.warps && first_token(d, w) < d.tile; w++)
        warps |= tokens_of(wanted, d, b, first_token(d, w)) != 0 ? 1U << w : 0U;
    return warps;
}

/* The blocks from `begin` on that tokens of the tile selected, n_blocks of them at most; how many there are. only: the
 * number of the token in its warp, or -1 for all. */
template <typename S>
static __device__ int make_list(S *shared, const slc_fwd_sm90 &p, const deal &d, const place_of_tile &at, int begin,
                                int n_blocks, int only)
{
    const int n_threads = (int)blockDim.x, me = (int)threadIdx.x, topk = p.cfg.c.slc_topk;
    for (int i = me; i < (n_blocks << d.log_bits) / 32 + 1 && i < WANTED_WORDS; i += n_threads)
        shared->wanted[i] = 0;
    __syncthreads();
    for (int i = me; i < at.n * topk; i += n_threads) {
        const int token = i / topk;
        if (only >= 0 && token % d.together != only)
            continue;
        const int32_t *idx =
            (const int32_t *)p.slc_idx.data + offset_of(p.slc_idx, at.s, at.q.start, at.first + token, at.kv_head);
        const int64_t block = idx[i % topk], b = block - begin;
        if (b < 0 || b >= n_blocks || block * p.cfg.c.slc_block > at.t + token)
            continue;
        const uint32_t bit = ((uint32_t)b << d.log_bits) + (uint32_t)token;
        atomicOr(&shared->wanted[bit / 32], 1U << bit % 32);
    }
    __syncthreads();
    /* A thread takes some blocks that follow each other. */
    const int each = (n_blocks + n_threads - 1) / n_threads, from = min(me * each, n_blocks),
              to = min(from + each, n_blocks);
    int n = 0;
    for (int b = from; b < to; b++)
        n += warps_of(shared->wanted, d, b) != 0;
    int before = n;
    for (int i = 1; i < WARP; i *= 2) {
        const int other = __shfl_up_sync(~0U, before, i);
        before += lane_index() >= i ? other : 0;
    }
    if (lane_index() == WARP - 1)
        shared->n_of_warp[me / WARP] = before;
    before -= n;
    __syncthreads();
    int all = 0;
    for (int w = 0; w < d.warps; w++) {
        before += w < me / WARP ? shared->n_of_warp[w] : 0;
        all += shared->n_of_warp[w];
    }
    for (int b = from; b < to; b++) {
        const uint32_t warps = warps_of(shared->wanted, d, b);
        if (warps != 0)
            shared->list[before++] = (uint32_t)b | warps << WARPS_AT;
    }
    __syncthreads();
    return all;
}

/* ---- The ring */

/* The items of a list. */
typedef struct item_range {
    uint32_t first, end; /* numbers count on from list to list */
    int32_t begin;       /* the first block of the window */
} item_range;

/* One thread brings the keys or the values of item i, and arrives for the warps that do not want them. */
template <int D, int KEYS, int STAGES, typename T>
static __device__ void fill(T *slots, uint64_t *full, uint64_t *empty, uint32_t *item, const CUtensorMap *map,
                            const uint32_t *list, const place_of_tile &at, bool packed, const deal &d,
                            const item_range &items, uint32_t i)
{
    const uint32_t slot = i % STAGES, n = i - items.first, parts = (uint32_t)d.parts;
    const uint32_t block = parts == 1 ? n : n / parts, entry = list[block];
    const uint32_t row = (((uint32_t)items.begin + entry % WINDOW - block) * parts + n) * KEYS;
    const int others = d.warps - __popc(entry >> WARPS_AT);
    if (others > 0)
        mbar_arrive_many(&empty[slot], (uint32_t)others);
    *(volatile uint32_t *)&item[slot] = i;
    mbar_arrive_expect(&full[slot], (uint32_t)sizeof slots[0]);
    copy_tile<D>(slots[slot], KEYS * BOX_ROW, map, &full[slot], at.kv_head, (int)row + (packed ? (int)at.k.start : 0),
                 packed ? 0 : at.s);
}

/* Until item i has come. A barrier's parity alone could be that of an item before it: warps skip items. */
template <int STAGES> static __device__ void wait_for(uint64_t *full, const uint32_t *item, uint32_t i)
{
    while (*(const volatile uint32_t *)&item[i % STAGES] != i)
        __nanosleep(64);
    mbar_wait(&full[i % STAGES], i / STAGES % 2);
}

/* This warp has read item i. Whether it was the last one. */
template <int STAGES> static __device__ bool was_last(uint64_t *empty, uint32_t i)
{
    if (mbar_arrive_pending(&empty[i % STAGES]) > 1)
        return false;
    mbar_wait(&empty[i % STAGES], i / STAGES % 2);
    return true;
}

/* ---- Arithmetic of a warp */

template <int D_QK, int D_V> struct fragments {
    uint32_t q[D_QK / 4];
    float o[D_V / 2], max[2], sum[2]; /* of rows lane/4 and lane/4 + 8; sum: this lane's columns */
};

template <int D_QK, int D_V>
static __device__ void load_q(const slc_fwd_sm90 &p, const deal &d, const place_of_tile &at, fragments<D_QK, D_V> *x)
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const warp_row row = row_of(p, d, at, lane_index() / 4 + 8 * r);
        const bf16 *q = (const bf16 *)p.q.data + offset_of(p.q, at.s, at.q.start, row.row, row.head);
#pragma unroll
        for (int i = 0; i < D_QK / 8; i++)
            x->q[2 * i + r] = row.used ? *(const uint32_t *)(q + 8 * i + lane_index() % 4 * 2) : 0;
    }
}

/* s[16][KEYS] = q k^T. Operands are loaded some products ahead. */
template <int D_QK, int D_V, int KEYS>
static __device__ void multiply_k(const fragments<D_QK, D_V> &x, uint32_t k, float (&s)[KEYS / 2])
{
    const int lane = lane_index(), steps = D_QK / 16 * (KEYS / 16);
    const uint32_t row = k + (uint32_t)(lane / 16 * 8 + lane % 8) * BOX_ROW;
    const uint32_t column = (uint32_t)((lane / 8 % 2 ^ lane % 8) * 16);
    const auto load = [&](uint32_t b[4], int i) {
        const int c = i / (KEYS / 16) * 16, j = i % (KEYS / 16) * 16;
        load_matrices(b, row + (column ^ (uint32_t)(c % BOX_CHANNELS * 2)) +
                             (uint32_t)((c / BOX_CHANNELS * KEYS + j) * BOX_ROW));
    };
    uint32_t b[AHEAD][4];
#pragma unroll
    for (int i = 0; i < AHEAD; i++)
        load(b[i], i);
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++)
        s[i] = 0.0F;
#pragma unroll
    for (int i = 0; i < steps; i++) {
        const int c = i / (KEYS / 16) * 16, j = i % (KEYS / 16) * 16;
        mma_16x8(s + j / 2, x.q + c / 4, b[i % AHEAD]);
        mma_16x8(s + j / 2 + 4, x.q + c / 4, b[i % AHEAD] + 2);
        if (i + AHEAD < steps)
            load(b[i % AHEAD], i + AHEAD);
    }
}

/* Bits of a pair of values from key `key` on, of which `seen` are seen. */
static __device__ uint32_t pair_mask(int key, int seen)
{
    return key + 1 < seen ? ~0U : key < seen ? 0xffffU : 0U;
}

/* o += p v; CLEAR: without the keys from `seen` on. */
template <bool CLEAR, int D_QK, int D_V, int KEYS>
static __device__ void multiply_v(fragments<D_QK, D_V> *x, uint32_t v, const uint32_t (&p)[KEYS / 4], int seen)
{
    const int lane = lane_index(), steps = D_V / 16 * (KEYS / 16);
    const uint32_t row = v + (uint32_t)(lane % 16) * BOX_ROW;
    const uint32_t column = (uint32_t)((lane / 16 ^ lane % 8) * 16);
    const auto load = [&](uint32_t b[4], int i) {
        const int j = i / (D_V / 16) * 16, c = i % (D_V / 16) * 16;
        load_matrices_transposed(b, row + (column ^ (uint32_t)(c % BOX_CHANNELS * 2)) +
                                        (uint32_t)((c / BOX_CHANNELS * KEYS + j) * BOX_ROW));
    };
    uint32_t b[AHEAD][4];
#pragma unroll
    for (int i = 0; i < AHEAD; i++)
        load(b[i], i);
#pragma unroll
    for (int i = 0; i < steps; i++) {
        const int j = i / (D_V / 16) * 16, c = i % (D_V / 16) * 16;
        uint32_t *now = b[i % AHEAD];
        if constexpr (CLEAR) {
            const uint32_t lo = pair_mask(j, seen - lane % 4 * 2), hi = pair_mask(j + 8, seen - lane % 4 * 2);
            now[0] &= lo, now[1] &= hi;
            now[2] &= lo, now[3] &= hi;
        }
        mma_16x8(x->o + c / 2, p + j / 4, now);
        mma_16x8(x->o + c / 2 + 4, p + j / 4, now + 2);
        if (i + AHEAD < steps)
            load(now, i + AHEAD);
    }
}

static __device__ float quad_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(~0U, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0U, x, 2));
}

static __device__ float quad_sum(float x)
{
    x += __shfl_xor_sync(~0U, x, 1);
    return x + __shfl_xor_sync(~0U, x, 2);
}

/* Compares with constants: the columns of a lane would take registers. */
template <int N> static __device__ void mask_scores(float (&s)[N], const int seen[2])
{
    const int left[2] = {seen[0] - lane_index() % 4 * 2, seen[1] - lane_index() % 4 * 2};
#pragma unroll
    for (int i = 0; i < N; i++)
        s[i] = i / 4 * 8 + i % 2 < left[i / 2 % 2] ? s[i] : -INFINITY;
}

/* p = exp(s - max) as bf16; max, sum and o follow. scale: to units of log2. */
template <int D_QK, int D_V, int N>
static __device__ void softmax(fragments<D_QK, D_V> *x, const float (&s)[N], float scale, uint32_t (&p)[N / 2])
{
    float max[2][2], keep[2], base[2], sum[2][2] = {{0.0F, 0.0F}, {0.0F, 0.0F}}; /* [row][halves, side by side] */
#pragma unroll
    for (int i = 0; i < N; i++) {
        float &m = max[i / 2 % 2][i % 2];
        m = i < 4 ? s[i] : fmaxf(m, s[i]);
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float largest = quad_max(fmaxf(max[r][0], max[r][1])) * scale;
        keep[r] = 1.0F;
        if (largest > x->max[r] + GROWTH) {
            keep[r] = exp2_fast(x->max[r] - largest);
            x->max[r] = largest;
        }
        base[r] = x->max[r] == -INFINITY ? 0.0F : -x->max[r];
    }
    if (__any_sync(~0U, keep[0] != 1.0F || keep[1] != 1.0F)) {
#pragma unroll
        for (int i = 0; i < D_V / 2; i++)
            x->o[i] *= keep[i / 2 % 2];
        x->sum[0] *= keep[0];
        x->sum[1] *= keep[1];
    }
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
        const float lo = exp2_fast(fmaf(s[2 * i], scale, base[i % 2]));
        const float hi = exp2_fast(fmaf(s[2 * i + 1], scale, base[i % 2]));
        sum[i % 2][0] += lo;
        sum[i % 2][1] += hi;
        p[i] = pack2(lo, hi);
    }
    x->sum[0] += sum[0][0] + sum[0][1];
    x->sum[1] += sum[1][0] + sum[1][1];
}

/* ---- Results */

/* Lane i of four gets word i of all four lanes. */
static __device__ void transpose_quad(uint32_t w[4])
{
    const int lane = lane_index();
#pragma unroll
    for (int step = 1; step <= 2; step++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            uint32_t &lo = w[step == 1 ? 2 * i : i], &hi = w[step == 1 ? 2 * i + 1 : i + 2];
            const uint32_t got = __shfl_xor_sync(~0U, lane & step ? lo : hi, step);
            (lane & step ? lo : hi) = got;
        }
    }
}

/* Writes the rows of token `only`, or of all if it is -1; whether a result is not finite. */
template <int D_QK, int D_V>
static __device__ bool store_rows(const slc_fwd_sm90 &p, const deal &d, const place_of_tile &at, int only,
                                  fragments<D_QK, D_V> *x)
{
    bool finite = true;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const warp_row row = row_of(p, d, at, lane_index() / 4 + 8 * r);
        const bool writes = row.used && (only < 0 || row.token == only);
        const float sum = quad_sum(x->sum[r]), one_over = sum == 0.0F ? 0.0F : 1.0F / sum;
        bf16 *o = (bf16 *)p.o.data + offset_of(p.o, at.s, at.q.start, row.row, row.head);
#pragma unroll
        for (int c = 0; c < D_V; c += 32) {
            uint32_t w[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float lo = x->o[c / 2 + 4 * i + 2 * r], hi = x->o[c / 2 + 4 * i + 2 * r + 1];
                finite &= isfinite(lo) && isfinite(hi);
                w[i] = sum == 0.0F ? 0 : pack2(lo * one_over, hi * one_over);
            }
            transpose_quad(w);
            if (writes)
                *(uint4 *)(o + c + lane_index() % 4 * 8) = make_uint4(w[0], w[1], w[2], w[3]);
        }
        const float ln2 = 0.693147180559945309F;
        if (writes && lane_index() % 4 == 0)
            store(p.lse, offset_of(p.lse, at.s, at.q.start, row.row, row.head),
                  sum == 0.0F ? -INFINITY : fmaf(x->max[r], ln2, logf(sum)));
        finite &= isfinite(sum);
    }
    return !finite;
}

/* ---- The kernel */

template <int D_QK, int D_V, int KEYS, int WARPS_OF_BLOCK, int STAGES>
static __global__ __launch_bounds__(WARPS_OF_BLOCK *WARP,
                                    2) void forward_kernel(const __grid_constant__ slc_fwd_sm90 p,
                                                           const __grid_constant__ deal d,
                                                           const __grid_constant__ CUtensorMap k_map,
                                                           const __grid_constant__ CUtensorMap v_map)
{
    extern __shared__ __align__(1024) unsigned char memory[];
    fwd_shared<D_QK, D_V, KEYS, STAGES> *const shared = (fwd_shared<D_QK, D_V, KEYS, STAGES> *)memory;
    const place_of_tile &at = shared->at;
    const int warp = (int)threadIdx.x / WARP, lane = lane_index(), slc_block = p.cfg.c.slc_block;
    const int first = first_token(d, warp), token[2] = {token_of_row(p, d, lane / 4), token_of_row(p, d, lane / 4 + 8)};
    if (threadIdx.x == 0) {
        if (!find_tile(p, d, &shared->at))
            shared->at.n = 0;
        for (int i = 0; i < STAGES; i++) {
            mbar_init(&shared->k_full[i], 1);
            mbar_init(&shared->v_full[i], 1);
            mbar_init(&shared->k_empty[i], (uint32_t)d.warps);
            mbar_init(&shared->v_empty[i], (uint32_t)d.warps);
            shared->k_item[i] = shared->v_item[i] = ~0U;
        }
        fence_mbar_init();
    }
    __syncthreads();
    if (at.n == 0)
        return;
    fragments<D_QK, D_V> f;
    load_q(p, d, at, &f);

    const float scale = p.cfg.scale * 1.44269504088896341F;
    const int last_t = at.t + at.n - 1, end_block = last_t < 0 ? 0 : last_t / slc_block + 1;
    item_range items = {0, 0, 0};
    const auto fill_k = [&](uint32_t i) {
        fill<D_QK, KEYS, STAGES>(shared->k, shared->k_full, shared->k_empty, shared->k_item, &k_map, shared->list, at,
                                 p.k.stride_seq == 0, d, items, i);
    };
    const auto fill_v = [&](uint32_t i) {
        fill<D_V, KEYS, STAGES>(shared->v, shared->v_full, shared->v_empty, shared->v_item, &v_map, shared->list, at,
                                p.v.stride_seq == 0, d, items, i);
    };
    /* All tokens at once; if that gives something that is not finite, each token of the warps by itself. */
    for (int only = d.together > 1 ? -1 : 0; only < d.together; only++) {
#pragma unroll
        for (int i = 0; i < D_V / 2; i++)
            f.o[i] = 0.0F;
        f.max[0] = f.max[1] = -INFINITY;
        f.sum[0] = f.sum[1] = 0.0F;
        for (items.begin = 0; items.begin < end_block; items.begin += d.window) {
            const int n = make_list(shared, p, d, at, items.begin, min(d.window, end_block - items.begin), only);
            items.first = items.end;
            items.end += (uint32_t)(n * d.parts);
            if (threadIdx.x == 0)
                for (uint32_t i = items.first; i < items.end && i < items.first + STAGES; i++) {
                    fill_k(i);
                    fill_v(i);
                }
            for (int from = 0; from < n; from += WARP) {
                const uint32_t entry = from + lane < n ? shared->list[from + lane] : 0;
                for (uint32_t left = __ballot_sync(~0U, entry >> (WARPS_AT + warp) & 1); left != 0; left &= left - 1) {
                    const int which = __ffs((int)left) - 1, b = (int)(__shfl_sync(~0U, entry, which) % WINDOW);
                    const uint32_t tokens = tokens_of(shared->wanted, d, b, first);
                    int keys[2]; /* of the block and after it, up to the row's position */
#pragma unroll
                    for (int r = 0; r < 2; r++) {
                        const int x = only < 0 ? token[r] : only;
                        keys[r] = tokens >> x & 1 ? at.t + first + x + 1 - (items.begin + b) * slc_block : 0;
                    }
                    uint32_t i = items.first + (uint32_t)((from + which) * d.parts);
                    for (int key = 0; key < slc_block; key += KEYS, i++) {
                        const uint32_t slot = i % STAGES;
                        const int seen[2] = {keys[0] - key, keys[1] - key};
                        const bool masked = __any_sync(~0U, seen[0] < KEYS || seen[1] < KEYS);
                        wait_for<STAGES>(shared->k_full, shared->k_item, i);
                        float s[KEYS / 2];
                        multiply_k<D_QK, D_V, KEYS>(f, shared_address(shared->k[slot]), s);
                        __syncwarp();
                        if (lane == 0 && was_last<STAGES>(shared->k_empty, i) && i + STAGES < items.end)
                            fill_k(i + STAGES);
                        if (masked)
                            mask_scores(s, seen);
                        uint32_t prob[KEYS / 4];
                        softmax(&f, s, scale, prob);
                        wait_for<STAGES>(shared->v_full, shared->v_item, i);
                        if (masked && only >= 0)
                            multiply_v<true, D_QK, D_V, KEYS>(&f, shared_address(shared->v[slot]), prob, seen[0]);
                        else
                            multiply_v<false, D_QK, D_V, KEYS>(&f, shared_address(shared->v[slot]), prob, KEYS);
                        __syncwarp();
                        if (lane == 0 && was_last<STAGES>(shared->v_empty, i) && i + STAGES < items.end)
                            fill_v(i + STAGES);
                    }
                }
            }
            __syncthreads();
        }
        const bool again = store_rows(p, d, at, only, &f);
        if (only < 0 && !__syncthreads_or(again))
            return;
    }
}

/* ---- Launches: all instantiations */

static deal deal_out(const slc_fwd_sm90 &p, int warps, int keys)
{
    deal d;
    d.warps = warps;
    d.together = 1;
    while (2 * d.together * p.cfg.group <= HEADS)
        d.together *= 2;
    d.splits = (p.cfg.group + HEADS - 1) / HEADS;
    d.rounds = (d.splits + warps - 1) / warps;
    d.splits = (d.splits + d.rounds - 1) / d.rounds;
    d.tile = warps / d.splits * d.together;
    d.log_bits = 3;
    while (1 << d.log_bits < d.tile)
        d.log_bits++;
    d.window = min(WINDOW, WANTED_WORDS * 32 >> d.log_bits);
    d.parts = p.cfg.c.slc_block / keys;
    d.n_tiles = p.seqs.total_q / d.tile + p.seqs.n;
    return d;
}

template <int D_QK, int D_V, int KEYS, int WARPS_OF_BLOCK, int STAGES>
static int launch(const slc_fwd_sm90 &p, nsa_stream stream)
{
    const map_rows k = {p.seqs.n, p.seqs.max_k, p.seqs.total_k, p.cfg.c.n_heads_kv, D_QK},
                   v = {p.seqs.n, p.seqs.max_k, p.seqs.total_k, p.cfg.c.n_heads_kv, D_V};
    CUtensorMap k_map, v_map;
    const auto kernel = forward_kernel<D_QK, D_V, KEYS, WARPS_OF_BLOCK, STAGES>;
    const int bytes = sizeof(fwd_shared<D_QK, D_V, KEYS, STAGES>);
    int error = tensor_map(&k_map, &p.k, &k, 1, KEYS);
    if (error == cudaSuccess)
        error = tensor_map(&v_map, &p.v, &v, 1, KEYS);
    if (error == cudaSuccess)
        error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess)
        return error;
    const deal d = deal_out(p, WARPS_OF_BLOCK, KEYS);
    const int64_t n_blocks = d.n_tiles * p.cfg.c.n_heads_kv * d.rounds;
    kernel<<<(unsigned)n_blocks, WARPS_OF_BLOCK * WARP, bytes, stream>>>(p, d, k_map, v_map);
    return cudaGetLastError();
}

/* Blocks of whole 64 (or 32) keys, and others. Two blocks of threads on an SM: 6 warps leave 168 registers a thread. */
int launch_slc_attn_fwd_sm90(const slc_fwd_sm90 *p, nsa_stream stream)
{
    const nsa_config &c = p->cfg.c;
    switch (c.d_qk) {
    case 64: return c.slc_block % 64 == 0 ? launch<64, 64, 64, 8, 6>(*p, stream) : launch<64, 64, 16, 8, 8>(*p, stream);
    case 128:
        return c.slc_block % 64 == 0 ? launch<128, 128, 64, 6, 3>(*p, stream) : launch<128, 128, 16, 6, 8>(*p, stream);
    case 192:
        return c.slc_block % 32 == 0 ? launch<192, 128, 32, 6, 4>(*p, stream) : launch<192, 128, 16, 6, 8>(*p, stream);
    default:
        return c.slc_block % 32 == 0 ? launch<256, 256, 32, 4, 3>(*p, stream) : launch<256, 256, 16, 4, 6>(*p, stream);
    }
}
