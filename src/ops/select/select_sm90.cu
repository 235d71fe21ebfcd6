/*
 * Selection on Hopper: scores and top-k of a tile of tokens, of which no more than two rows of scores ever exist.
 *
 *     S^T[key][column] = K_cmp q^T       wgmma, 64 keys by 128 columns (token, head): a half of a tile
 *     p = 2^(scale' S - lse')            scale' = scale log2 e; lse' likewise
 *     P[key][token] = sum over heads     in the registers of one thread
 *     score[block][token]                over the keys that share tokens with the block: shuffles within a warp
 *     slc_idx[token]                     a warp for each token, from its row of scores
 *
 * Columns. A thread of wgmma has columns 8 i + 2 x + c (x = lane % 4; i < 16, c < 2) of two keys. They are given to
 * slots 32 x + 2 i + c, and slots to (token, head) with heads fastest: so a group of up to 32 heads lies in a thread,
 * and a sum over heads needs no other thread. A group is padded to a power of two with columns of q = 0, lse = inf,
 * whose p is 0.
 *
 * Scores. Block j has keys n j .. n j + n - 1 (n = slc_block/cmp_stride, up to 8: of one warp's 8 rows), and where
 * blocks of compression overlap (cmp_block = 2 cmp_stride) all but the last count twice, and the last of block j - 1
 * counts once. A score is kept as a pair, whose sum it is: what the last key of block j - 1 carries, and block j's own.
 *
 *     gK -> sK (ring of stages, copy engine) -.
 *     gq -> sQ (once for a tile, by its users) -> rS -> rP -> gScore (pairs; stays in L2) -> slc_idx
 *
 * Grid: persistent CTAs, n_ctas, two of an SM up to d = 128; tile i of CTA b is b + i n_ctas, the longest rows first.
 * Warps: a warpgroup that scores; a warp that copies keys; three that choose, of the tile before the one being scored.
 * Order of a scorer: the products of a half run during the exponentials of the other, and its sums over heads become
 * scores then, too: one stream of ex2, between whose instructions all others find their place.
 * Barriers: full[stage] (copies -> scorers), empty[stage] (each warp of them -> copies); named: sQ and lse are written,
 * or free / the rows of a tile are written -> choosers / are read -> scorers, these two for each of two sets of rows.
 * Top-k: rounds of 128 or 512 candidates in a warp's registers, and the best so far; the bound by bisection over the
 * bits of scores, from what the best of each lane say on.
 * Masks: a key that a token does not see has P = 0 by select, whatever its bits. Keys past the sequence are not seen.
 * Tokens with at most slc_topk candidates need no scores; a tile of such tokens reads nothing.
 * Numerics: S, p, P and scores in float32; ex2.approx (2 ulp); each score is made by the same chain of operations.
 *
 * Cost at 64k tokens, 64/4 heads, d 128: 2.2 TFLOP and 8.6 G exponentials: 3.0 and 2.4 ms at best, in parallel.
 * Measured on an H200 (2026-11-28, medians): 0.16 ms at 8k, 4.6 to 5.0 at 64k, 18.6 at 128k. Both the tensor cores and
 * ex2 are busy half of the time. Of the 3660 cycles in which a scorer does 64 keys, it issues ex2 in some 2500, one in
 * 16 to 19, which two warps of a quarter of an SM must share; it waits 410 for products, whose last ones the assembler
 * issues behind most of the exponentials, and 150 for its other warps.
 * Tried (H200, ms at 64k):
 *  - two warpgroups that score whole tiles and then choose, two CTAs an SM: 6.15. Products (2.8 alone) and exponentials
 *    (3.8) hardly overlap. In turns by named barriers 6.13; with an eighth or a quarter of the exponentials by a
 *    polynomial 6.15, 6.40;
 *  - one that scores halves and then chooses: 6.85. Between exponentials it did as many cycles of other work, and the
 *    loads of top-k, with a branch for each, waited for each other;
 *  - choosers apart, but lse read when it is wanted, and scores made at once: 4.83. LDS takes 130 cycles behind ex2,
 *    which shares its queue.
 * A fifth warp for copies alone, without moving registers, would leave 168 a thread: too few.
 */
#include "cuda/sm90.cuh"
#include "ops/select/select_sm90.h"

enum {
    KEYS = 64,
    COLUMNS = SELECT_COLUMNS,
    HALVES = SELECT_HALVES,
    THREADS = 2 * WARPGROUP,
    CHOOSERS = WARPGROUP - WARP, /* threads */
    SLOTS = COLUMNS / 4,         /* of a thread in a half */
    LSE_ROW = SLOTS + 4,         /* on other banks than the last */
    Q_BOX = COLUMNS * BOX_ROW,
    K_BOX = KEYS * BOX_ROW,
};

/* Of a thread; launched with 128. */
enum { SCORER_REGISTERS = 200, OTHERS_REGISTERS = 56 };

/* Named barriers; of the last two one for each set of rows. */
enum { LOADED = 1, SCORED = 2, CHOSEN = 4 };

/* As shared memory allows, after the CTAs of an SM. */
template <int D> constexpr int stages_of = D == 64 || D == 192 ? 4 : 2;

/* A block and its rank: the bits of its score, which order like the numbers; NaN is -1, none is -2. */
typedef struct ranked_block {
    int rank, block;
} ranked_block;

template <int D> struct shared {
    char q[HALVES][D / BOX_CHANNELS][Q_BOX];
    char k[stages_of<D>][D / BOX_CHANNELS][K_BOX];
    float lse[HALVES][4][LSE_ROW]; /* -lse' of the slots */
    ranked_block best[CHOOSERS];   /* scratch of top-k */
    uint64_t full[stages_of<D>], empty[stages_of<D>];
};

/* ---- Tiles of tokens */

typedef struct tile {
    int32_t s, head; /* of K_cmp */
    seq_range q, k;
    int64_t first; /* row of the sequence */
    int n_key_tiles;
} tile;

static __device__ int64_t position(const tile &x, int64_t row)
{
    return row + x.k.n - x.q.n;
}

static __device__ int64_t n_items(const select_sm90_args &p)
{
    return p.n_tiles * p.cfg.c.n_heads_kv;
}

/* The last tiles, of the longest rows, come first. False where no sequence has it. */
static __device__ bool find_tile(const select_sm90_args &p, int64_t item, tile *x)
{
    const nsa_config &c = p.cfg.c;
    const int64_t tokens = HALVES * COLUMNS >> p.group_shift;
    const int64_t i = p.n_tiles - 1 - item / c.n_heads_kv;
    int32_t lo = 0, hi = p.seqs.n; /* the last sequence whose tiles start at or before i */
    while (hi - lo > 1) {
        const int32_t mid = lo + (hi - lo) / 2;
        if (p.seqs.cu_q[mid] / tokens + mid <= i)
            lo = mid;
        else
            hi = mid;
    }
    x->s = lo;
    x->head = (int32_t)(item % c.n_heads_kv);
    x->q = seq_q(p.seqs, lo);
    x->k = seq_k(p.seqs, lo);
    x->first = (i - (x->q.start / tokens + lo)) * tokens;
    if (x->first < 0 || x->first >= x->q.n)
        return false;
    const int64_t t = position(*x, min64(x->first + tokens, x->q.n) - 1), cur = t < 0 ? -1 : t / c.slc_block;
    x->n_key_tiles = cur < c.slc_topk ? 0 : (int)(cur * (c.slc_block / c.cmp_stride) / KEYS + 1);
    return true;
}

/* ---- Products */

/* A place in the ring of stages, and which round it is. */
typedef struct ring {
    int stage;
    uint32_t phase;
} ring;

template <int D> static __device__ void advance(ring *x)
{
    x->stage++;
    if (x->stage == stages_of<D>)
        x->stage = 0, x->phase ^= 1;
}

/* The keys of all tiles, by one thread. */
template <int D> static __device__ void copy_keys(const select_sm90_args &p, shared<D> *sh)
{
    ring to = {0, 0};
    tile x;
    for (int64_t item = blockIdx.x; item < n_items(p); item += gridDim.x) {
        if (!find_tile(p, item, &x))
            continue;
        const int row = p.k_is_packed ? (int)(x.k.start / p.cfg.c.cmp_stride) : 0;
        for (int i = 0; i < x.n_key_tiles; i++) {
            uint64_t *full = &sh->full[to.stage];
            mbar_wait(&sh->empty[to.stage], to.phase ^ 1);
            mbar_arrive_expect(full, sizeof sh->k[0]);
            copy_tile<D>(sh->k[to.stage], K_BOX, &p.k_map, full, x.head, row + i * KEYS, p.k_is_packed ? 0 : x.s);
            advance<D>(&to);
        }
    }
}

/* q and lse of a half: the tokens from `first` on. */
template <int D>
static __device__ void load_q(const select_sm90_args &p, const tile &x, int64_t first, char *q, float *lse)
{
    const int shift = p.group_shift, mask = (1 << shift) - 1;
    const int64_t head = (int64_t)x.head * p.cfg.group;
    const uint4 zero = {0, 0, 0, 0};
    const int thread = (int)threadIdx.x, chunk = thread % 8 * 8;
    for (int b = 0; b < D / BOX_CHANNELS; b++) {
        uint4 loaded[COLUMNS / 16];
#pragma unroll
        for (int i = 0; i < COLUMNS / 16; i++) {
            const int n = thread / 8 + 16 * i, slot = n % 8 / 2 * SLOTS + n / 8 * 2 + n % 2;
            const int64_t row = first + (slot >> shift);
            const bool is = row < x.q.n && (slot & mask) < p.cfg.group;
            const int64_t from = offset_of(p.q, x.s, x.q.start, row, head + (slot & mask)) + b * BOX_CHANNELS + chunk;
            loaded[i] = is ? *(const uint4 *)((const bf16 *)p.q.data + from) : zero;
        }
#pragma unroll
        for (int i = 0; i < COLUMNS / 16; i++)
            *(uint4 *)(q + b * Q_BOX + in_box(thread / 8 + 16 * i, chunk)) = loaded[i];
    }
    const int slot = thread;
    const int64_t row = first + (slot >> shift);
    const bool is = row < x.q.n && (slot & mask) < p.cfg.group;
    lse[slot / SLOTS * LSE_ROW + slot % SLOTS] =
        is ? -LOG2_E * load(p.lse, offset_of(p.lse, x.s, x.q.start, row, head + (slot & mask))) : -INFINITY;
}

/* Starts s = the products of a stage's keys and a half's columns. */
template <int D> static __device__ void multiply(float (&s)[COLUMNS / 2], const char *k, const char *q)
{
    wgmma_fence();
#pragma unroll
    for (int c = 0; c < D; c += 16) {
        const int box = c / BOX_CHANNELS, at = c % BOX_CHANNELS * 2;
        wgmma<COLUMNS>(s, further(along_k(k), box * K_BOX + at), further(along_k(q), box * Q_BOX + at), c > 0);
    }
    wgmma_commit();
}

static __device__ void wait_for(float (&s)[COLUMNS / 2])
{
    wgmma_wait<0>();
    pin(s);
}

/* ---- Scores */

/* Sums of each v[i] over the LANES lanes that differ in lane / 4 % LANES only, who share them out: a lane's are the
 * first max(1, N / LANES), and were numbers kept<LANES, N>() and up. */
template <int LANES, int N> static __device__ void add_lanes(float (&v)[N])
{
    int n = N;
#pragma unroll
    for (int bit = 1; bit < LANES; bit *= 2) {
        const bool upper = lane_index() & 4 * bit;
        if (n == 1) {
            v[0] += __shfl_xor_sync(~0U, v[0], 4 * bit);
            continue;
        }
        n /= 2;
#pragma unroll
        for (int i = 0; i < n; i++) {
            const float others = __shfl_xor_sync(~0U, upper ? v[i] : v[n + i], 4 * bit);
            v[i] = (upper ? v[n + i] : v[i]) + others;
        }
    }
}

template <int LANES, int N> static __device__ int kept()
{
    int first = 0;
    for (int bit = 1, n = N / 2; bit < LANES && n > 0; bit *= 2, n /= 2)
        first += lane_index() & 4 * bit ? n : 0;
    return first;
}

/* What a thread has to know of its keys and tokens, of one half. */
typedef struct lane_place {
    int last;     /* last token of its first key, from its first query's position on */
    float weight; /* of its keys in their own block's score */
    bool carries; /* they count in the next block's, too */
    const float4 *lse;
    float *pair; /* where its first score goes */
} lane_place;

/* A thread has SLOTS / GROUP tokens in a half, GROUP columns of each. It does a few of them at a time, as registers
 * allow: a part. Their sums are those of token i / 2 and key i % 2. */
template <int GROUP> constexpr int part_tokens = SLOTS / GROUP < 4 ? SLOTS / GROUP : 4;
template <int GROUP> constexpr int n_parts = SLOTS / GROUP / part_tokens<GROUP>;

static __device__ void load_lse(float (&lse)[SLOTS], const lane_place &at)
{
#pragma unroll
    for (int m = 0; m < SLOTS; m += 4)
        *(float4 *)&lse[m] = at.lse[m / 4];
}

/* s -> P of a part. */
template <int GROUP>
static __device__ void add_heads(float (&sum)[2 * part_tokens<GROUP>], int part, const float (&s)[COLUMNS / 2],
                                 const float (&lse)[SLOTS], float scale)
{
    constexpr int N = part_tokens<GROUP> * GROUP;
#pragma unroll
    for (int i = 0; i < N; i++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int m = part * N + i;
            const float prob = exp2_fast(fmaf(s[m / 2 * 4 + 2 * r + m % 2], scale, lse[m]));
            float *to = &sum[i / GROUP * 2 + r];
            *to = i % GROUP == 0 ? prob : *to + prob;
        }
}

/* P of a part -> scores of blocks. */
template <int GROUP, int PER_SLC>
static __device__ void add_keys(const select_sm90_args &p, float (&sum)[2 * part_tokens<GROUP>], int part,
                                const lane_place &at)
{
    constexpr int N = 2 * part_tokens<GROUP>;
    const int first = part * part_tokens<GROUP>;
    float carry[N];
    if (GROUP == SLOTS)
        for (int n = 1; n << 5 < 1 << p.group_shift; n *= 2) /* a group of several lanes */
            for (int r = 0; r < 2; r++)
                sum[r] += __shfl_xor_sync(~0U, sum[r], n);
#pragma unroll
    for (int i = 0; i < N; i++) {
        sum[i] = at.last + i % 2 * 8 * p.cfg.c.cmp_stride <= first + i / 2 ? sum[i] : 0.0F;
        carry[i] = at.carries ? sum[i] : 0.0F;
        sum[i] *= at.weight;
    }
    add_lanes<PER_SLC>(sum);
    add_lanes<PER_SLC>(carry);
#pragma unroll
    for (int i = 0; i < max(1, N / PER_SLC); i++) {
        float *pair = at.pair + (first + i / 2) * 2 * p.n_slc + i % 2 * 2 * (8 / PER_SLC);
        pair[1] = sum[i];
        pair[2] = carry[i];
    }
}

/* Of a half: s -> scores, each part's during the exponentials of the next. Before them those of the last part of the
 * other half; its own last part is left in sum. */
template <int GROUP, int PER_SLC>
static __device__ void add_half(const select_sm90_args &p, float (&sum)[2 * part_tokens<GROUP>],
                                const float (&s)[COLUMNS / 2], const float (&lse)[SLOTS], float scale,
                                const lane_place &at, const lane_place &before)
{
#pragma unroll
    for (int part = 0; part < n_parts<GROUP>; part++) {
        add_keys<GROUP, PER_SLC>(p, sum, (part == 0 ? n_parts<GROUP> : part) - 1, part == 0 ? before : at);
        add_heads<GROUP>(sum, part, s, lse, scale);
    }
}

template <int PER_SLC> static __device__ void to_next_keys(const select_sm90_args &p, lane_place *at)
{
    at->last += KEYS * p.cfg.c.cmp_stride;
    at->pair += 2 * (KEYS / PER_SLC);
}

/* Of the tokens from `first` on. A position before the first token is before all of a thread's tokens. */
template <int GROUP, int PER_SLC>
static __device__ lane_place place_of(const select_sm90_args &p, const tile &x, int64_t first, const float *lse,
                                      float *rows)
{
    const nsa_config &c = p.cfg.c;
    const int lane = lane_index(), token = lane % 4 * SLOTS >> p.group_shift;
    const int key = (int)threadIdx.x / WARP * 16 + lane / 4, kept_first = kept<PER_SLC, 2 * part_tokens<GROUP>>();
    const bool is_last = lane / 4 % PER_SLC == PER_SLC - 1, overlap = c.cmp_block > c.cmp_stride;
    lane_place at;
    at.last = key * c.cmp_stride + c.cmp_block - 1 - (int)max64(position(x, first + token), -SLOTS);
    at.weight = overlap && !is_last ? 2.0F : 1.0F;
    at.carries = overlap && is_last;
    at.lse = (const float4 *)(lse + lane % 4 * LSE_ROW);
    at.pair = rows + 2 * ((token + kept_first / 2) * p.n_slc + key / PER_SLC + kept_first % 2 * (8 / PER_SLC));
    return at;
}

/* All scores of a tile. The products of one half are made during the exponentials of the other. */
template <int D, int GROUP, int PER_SLC>
static __device__ void make_scores(const select_sm90_args &p, const tile &x, shared<D> *sh, float *rows, ring *from)
{
    const int tokens = COLUMNS >> p.group_shift;
    const float scale = p.cfg.scale * LOG2_E;
    lane_place at0 = place_of<GROUP, PER_SLC>(p, x, x.first, sh->lse[0][0], rows);
    lane_place at1 = place_of<GROUP, PER_SLC>(p, x, x.first + tokens, sh->lse[1][0], rows + tokens * 2 * p.n_slc);
    const int n = __shfl_sync(~0U, x.n_key_tiles, 0); /* so that the compiler knows it uniform */
    float s0[COLUMNS / 2], s1[COLUMNS / 2], lse[SLOTS], sum[2 * part_tokens<GROUP>] = {};
    load_lse(lse, at0);
    mbar_wait(&sh->full[from->stage], from->phase);
    multiply<D>(s0, sh->k[from->stage][0], sh->q[0][0]);
    for (int i = 0; i < n; i++) {
        uint64_t *empty = &sh->empty[from->stage];
        wait_for(s0);
        multiply<D>(s1, sh->k[from->stage][0], sh->q[1][0]);
        add_half<GROUP, PER_SLC>(p, sum, s0, lse, scale, at0,
                                 at1); /* at1 gets zeros first, and scores in their place */
        load_lse(lse, at1);
        if (i > 0)
            to_next_keys<PER_SLC>(p, &at1);
        advance<D>(from);
        wait_for(s1);
        if (lane_index() == 0)
            mbar_arrive(empty);
        if (i + 1 < n)
            mbar_wait(&sh->full[from->stage], from->phase);
        multiply<D>(s0, sh->k[from->stage][0], sh->q[0][0]); /* after the last keys: of anything, not used */
        add_half<GROUP, PER_SLC>(p, sum, s1, lse, scale, at1, at0);
        load_lse(lse, at0);
        to_next_keys<PER_SLC>(p, &at0);
    }
    wait_for(s0);
    add_keys<GROUP, PER_SLC>(p, sum, n_parts<GROUP> - 1, at1);
}

/* ---- Top-k, by a warp */

/* Candidates of a round are in registers: rank[i] is of number 32 i + lane. */
template <int N> static __device__ int count_from(const int (&rank)[N], int best, int bound)
{
    int count = best >= bound;
#pragma unroll
    for (int i = 0; i < N; i++)
        count += rank[i] >= bound;
    return __reduce_add_sync(~0U, count);
}

/* The largest rank that at least k of candidates and best reach, or one below it that exactly k do. */
template <int N> static __device__ int kth_rank(const int (&rank)[N], int best, int k)
{
    int most = best;
#pragma unroll
    for (int i = 0; i < N; i++)
        most = max(most, rank[i]);
    int hi = __reduce_max_sync(~0U, most) + 1;
    for (int n = 1; k * n <= WARP / 2; n *= 2)
        most = max(most, __shfl_xor_sync(~0U, most, n));
    /* k groups of lanes each have one that reaches the lowest of their highest; and so have the k best so far. */
    const int reached = __reduce_min_sync(~0U, most), so_far = __reduce_min_sync(~0U, lane_index() < k ? best : hi);
    int lo = max(max(reached, so_far), -1);
    for (int count = count_from(rank, best, lo); count != k && hi - lo > 1;) {
        const int mid = lo + (hi - lo) / 2, n = count_from(rank, best, mid);
        if (n >= k)
            lo = mid, count = n;
        else
            hi = mid;
    }
    return lo;
}

/* Appends of a warp's ranked blocks those above bound, and of those that equal it the first *ties. */
static __device__ void take(ranked_block x, int bound, int *ties, ranked_block *list, int *n)
{
    const unsigned tied = __ballot_sync(~0U, x.rank == bound);
    const bool is = x.rank > bound || (x.rank == bound && lanes_before(tied) < *ties);
    const unsigned taken = __ballot_sync(~0U, is);
    if (is)
        list[*n + lanes_before(taken)] = x;
    *ties = max(0, *ties - __popc(tied));
    *n += __popc(taken);
}

/* best (of each lane one, by rising block): the k highest of it and of the blocks from `first` on. */
template <int N>
static __device__ void merge(const int (&rank)[N], int first, int k, ranked_block *best, ranked_block *list)
{
    const int bound = kth_rank(rank, best->rank, k);
    int ties = k - count_from(rank, best->rank, bound + 1), n = 0;
    take(*best, bound, &ties, list, &n);
#pragma unroll
    for (int i = 0; i < N; i++)
        if (__any_sync(~0U, rank[i] >= bound)) {
            const ranked_block b = {rank[i], first + i * WARP + lane_index()};
            take(b, bound, &ties, list, &n);
        }
    __syncwarp();
    if (lane_index() < k)
        *best = list[lane_index()];
    __syncwarp();
}

/* The k highest of the blocks from..to - 1, in rounds, by rising block a lane each. A score is the sum of a pair. */
template <int N> static __device__ int highest(const float2 *pairs, int from, int to, int k, ranked_block *list)
{
    ranked_block best = {-2, 0};
    for (int first = from; first < to; first += N * WARP) {
        int rank[N];
#pragma unroll
        for (int i = 0; i < N; i++) {
            const int j = first + i * WARP + lane_index();
            const float2 pair = pairs[min(j, to - 1)]; /* any: the loads shall not wait for each other */
            const int bits = __float_as_int(fmaxf(pair.x + pair.y, -1.0F)); /* NaN: those of -1.0F */
            rank[i] = j < to ? max(bits, -1) : -2;
        }
        merge(rank, first, k, &best, list);
    }
    return best.block;
}

/* Of more than slc_topk candidates: the forced ones at both ends, and of those between the highest. */
static __device__ void choose(const nsa_config &c, const float2 *pairs, int cur, ranked_block *list, int32_t *out)
{
    const int from = c.slc_n_init, to = cur + 1 - c.slc_n_local, k = c.slc_topk - c.slc_n_init - c.slc_n_local;
    for (int i = lane_index(); i < c.slc_topk; i += WARP) /* the forced ones, on both sides of the others */
        if (i < from || i >= from + k)
            out[i] = i < from ? i : to + i - from - k;
    if (k == 0)
        return;
    const int block =
        to - from <= 4 * WARP ? highest<4>(pairs, from, to, k, list) : highest<16>(pairs, from, to, k, list);
    if (lane_index() < k)
        out[from + lane_index()] = block;
}

/* A tile's tokens, whose rows are complete: a warp for each. */
static __device__ void choose_blocks(const select_sm90_args &p, const tile &x, const float *rows, int warp,
                                     ranked_block *list)
{
    const nsa_config &c = p.cfg.c;
    for (int token = warp; token < HALVES * COLUMNS >> p.group_shift; token += CHOOSERS / WARP) {
        const int64_t row = x.first + token;
        if (row >= x.q.n)
            return;
        const int64_t t = position(x, row);
        const int cur = t < 0 ? -1 : (int)(t / c.slc_block);
        int32_t *out = (int32_t *)p.slc_idx.data + offset_of(p.slc_idx, x.s, x.q.start, row, x.head);
        if (cur < c.slc_topk) /* all that there are */
            for (int j = lane_index(); j < c.slc_topk; j += WARP)
                out[j] = j <= cur ? j : -1;
        else
            choose(c, (const float2 *)rows + token * p.n_slc, cur, list, out);
    }
}

/* ---- The kernel */

/* The rows of a tile's tokens: two sets, in turn. */
static __device__ float *rows_of(const select_sm90_args &p, int turn)
{
    const int tokens = HALVES * COLUMNS >> p.group_shift;
    return p.score + ((int64_t)blockIdx.x * SELECT_ROW_SETS + turn) * tokens * 2 * p.n_slc;
}

/* By a warpgroup. */
template <int D, int GROUP> static __device__ void score_tiles(const select_sm90_args &p, shared<D> *sh)
{
    const int tokens = COLUMNS >> p.group_shift;
    ring from = {0, 0};
    tile x;
    int turn = 0;
    for (int64_t item = blockIdx.x; item < n_items(p); item += gridDim.x) {
        if (!find_tile(p, item, &x) || x.n_key_tiles == 0)
            continue;
        float *rows = rows_of(p, turn);
        for (int half = 0; half < HALVES; half++)
            load_q<D>(p, x, x.first + half * tokens, sh->q[half][0], sh->lse[half][0]);
        fence_async();
        bar_sync(LOADED, WARPGROUP);
        bar_sync(CHOSEN + turn, WARPGROUP + CHOOSERS);
        for (int token = (int)threadIdx.x; token < HALVES * tokens; token += WARPGROUP)
            rows[token * 2 * p.n_slc] = 0.0F; /* block 0 has none before it */
        switch (p.slc_shift) {
        case 0: make_scores<D, GROUP, 1>(p, x, sh, rows, &from); break;
        case 1: make_scores<D, GROUP, 2>(p, x, sh, rows, &from); break;
        case 2: make_scores<D, GROUP, 4>(p, x, sh, rows, &from); break;
        default: make_scores<D, GROUP, 8>(p, x, sh, rows, &from); break;
        }
        __threadfence_block();
        bar_arrive(SCORED + turn, WARPGROUP + CHOOSERS);
        bar_sync(LOADED, WARPGROUP); /* all are done with q */
        turn ^= 1;
    }
}

/* By a warp: every third token of all tiles. */
static __device__ void choose_of_tiles(const select_sm90_args &p, int warp, ranked_block *list)
{
    tile x;
    int turn = 0;
    bar_arrive(CHOSEN, WARPGROUP + CHOOSERS);
    bar_arrive(CHOSEN + 1, WARPGROUP + CHOOSERS);
    for (int64_t item = blockIdx.x; item < n_items(p); item += gridDim.x) {
        if (!find_tile(p, item, &x))
            continue;
        if (x.n_key_tiles > 0)
            bar_sync(SCORED + turn, WARPGROUP + CHOOSERS);
        choose_blocks(p, x, rows_of(p, turn), warp, list);
        if (x.n_key_tiles > 0) {
            bar_arrive(CHOSEN + turn, WARPGROUP + CHOOSERS);
            turn ^= 1;
        }
    }
}

template <int D, int GROUP>
static __global__ __launch_bounds__(THREADS, 2) void select_kernel(const __grid_constant__ select_sm90_args p)
{
    extern __shared__ __align__(1024) char memory[];
    shared<D> *sh = (shared<D> *)memory;
    if (threadIdx.x == 0) {
        prefetch_map(&p.k_map);
        for (int i = 0; i < stages_of<D>; i++) {
            mbar_init(&sh->full[i], 1);
            mbar_init(&sh->empty[i], WARPGROUP / WARP);
        }
        fence_mbar_init();
    }
    __syncthreads();
    const int warp = __shfl_sync(~0U, (int)threadIdx.x / WARP, 0); /* so that the compiler knows it uniform */
    if (warp < WARPGROUP / WARP) {
        registers_up<SCORER_REGISTERS>();
        score_tiles<D, GROUP>(p, sh);
    } else {
        registers_down<OTHERS_REGISTERS>();
        const int chooser = warp - WARPGROUP / WARP - 1;
        if (chooser >= 0)
            choose_of_tiles(p, chooser, sh->best + chooser * WARP);
        else if (lane_index() == 0)
            copy_keys<D>(p, sh);
    }
}

template <int D, int GROUP> static cudaError_t launch(const select_sm90_args *p, nsa_stream stream)
{
    const cudaError_t error =
        cudaFuncSetAttribute(select_kernel<D, GROUP>, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(shared<D>));
    if (error != cudaSuccess)
        return error;
    select_kernel<D, GROUP><<<(unsigned)p->n_ctas, THREADS, sizeof(shared<D>), stream>>>(*p);
    return cudaGetLastError();
}

template <int D> static cudaError_t launch_d(const select_sm90_args *p, nsa_stream stream)
{
    switch (p->group_shift) {
    case 0: return launch<D, 1>(p, stream);
    case 1: return launch<D, 2>(p, stream);
    case 2: return launch<D, 4>(p, stream);
    case 3: return launch<D, 8>(p, stream);
    case 4: return launch<D, 16>(p, stream);
    default: return launch<D, 32>(p, stream);
    }
}

int launch_select_sm90(const select_sm90_args *p, nsa_stream stream)
{
    if (p->n_ctas == 0)
        return cudaSuccess;
    switch (p->cfg.c.d_qk) {
    case 64: return launch_d<64>(p, stream);
    case 128: return launch_d<128>(p, stream);
    case 192: return launch_d<192>(p, stream);
    default: return launch_d<256>(p, stream);
    }
}
