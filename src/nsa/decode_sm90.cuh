/* Decoding on Hopper: which rows a CTA reads, where these lie, and the warps that bring them to shared memory. */
#ifndef NSA_NSA_DECODE_SM90_CUH
#define NSA_NSA_DECODE_SM90_CUH

#include "cuda/sm90.cuh"
#include "nsa/cache_simt.cuh"
#include "nsa/decode_sm90.h"

enum {
    TILE = DECODE_TILE,
    STAGE = DECODE_STAGE,
    TILES = STAGE / TILE, /* of a stage */
    SLOTS = DECODE_SLOTS,
    HEADS = DECODE_HEADS,
    ATTENDING = WARPS * WARP, /* threads that attend: a warpgroup. Another one reads */
    THREADS = 2 * WARPGROUP
};
static_assert((int)WARPS == DECODE_WARPS && (int)WARPS == (int)TILES, "a warp has four rows of each tile");

/* Named barriers; 0 is __syncthreads. */
enum {
    ATTENDED = 1, /* among the warps that attend */
    SELECTED = 2, /* the reading warps wait for what they have selected; */
    HAS_READ = 3  /* and one of them until all is read */
};

/* Of one branch and head, over some keys: the largest logit (times log2 e) and the sum of 2^(logit - it). */
typedef float2 max_sum;

/* Shared memory. Behind it lie a ring, P[row] of all compressed rows, where later a list of blocks and then o of each
 * warp lie, and score[block]. */
typedef struct shared {
    max_sum of_warp[NSA_N_BRANCHES][WARPS][HEADS];
    float gate[NSA_N_BRANCHES][HEADS];
    float lse[NSA_N_BRANCHES][HEADS]; /* times log2 e */
    union {
        max_sum of_ctas[DECODE_MAX_CLUSTER][HEADS]; /* of cmp; later */
        uint64_t best[WARPS][WARP];
    };
    uint64_t full[2][SLOTS], free[2][SLOTS]; /* of K, of V */
    int32_t chosen[DECODE_MAX_TOPK];
    uint16_t seen[SLOTS][TILES]; /* of the tiles of a stage, a bit for each row that the token sees */
    int32_t n_listed;
} shared;

static_assert(sizeof(shared) <= DECODE_SMALL_BYTES, "decode_sm90_bytes counts it");

/* K or V of a stage, rows of D channels: tiles lie so far apart that rows of the same number are in different banks. */
template <int D> struct stage {
    char tile[TILES][TILE * D * 2 + DECODE_TILE_PAD];
};

template <int D_QK, int D_V> struct ring {
    enum { Q_BYTES = HEADS * D_QK * 2 > DECODE_MIN_Q_BYTES ? HEADS *D_QK * 2 : DECODE_MIN_Q_BYTES };
    stage<D_QK> k[SLOTS];
    stage<D_V> v[SLOTS];
    uint4 q[NSA_N_BRANCHES][Q_BYTES / 16]; /* as multiply_q reads it; that of cmp makes room for sums of CTAs */
};

static_assert(2 * DECODE_MAX_CLUSTER * HEADS * sizeof(max_sum) <= DECODE_MIN_Q_BYTES, "of slc and win");

/* ---- What a CTA works at: the same in all of its threads, and but for rank in its cluster */

typedef struct work {
    cached x;
    int32_t head, rank;
    int64_t row;              /* of the call's tensors */
    int32_t t, old, cur;      /* position, the cache's length before the call, the position's block */
    int32_t n_cmp, first_new; /* compressed rows that t sees; those from first_new on are of this call */
    int32_t shift;            /* compressed row 0 is the shift-th of the first page's */
    int32_t win_first;        /* key */
    int32_t tiles_first;      /* where its tiles start: there, or if K is shared at a whole tile */
    int32_t slc_end;          /* selected blocks are read up to this key: to t, or if K is shared to the first whole
                                 tile of the window, whose tiles are read once */
    int32_t n_tiles[NSA_N_BRANCHES];
    bool scored;      /* t sees more blocks than are selected */
    int32_t selected; /* the block number lane_index() of those selected, or -1 */
} work;

static __device__ inline int32_t ceil_div(int32_t n, int32_t by)
{
    return (n + by - 1) / by;
}

/* Of n, dealt to `of` in turn, the first to number 0. */
static __device__ inline int32_t dealt(int32_t n, int32_t i, int32_t of)
{
    return i < n ? (n - 1 - i) / of + 1 : 0;
}

/* The sequence of a token: mostly all have as many. */
static __device__ inline int32_t seq_of_token(const cache_simt &c, int64_t token)
{
    const int32_t guess = (int32_t)min64(token / c.max_new, c.n_seqs - 1);
    return c.cu[guess] <= token && token < c.cu[guess + 1] ? guess : seq_of_row(c.cu, c.n_seqs, 1, token);
}

static __device__ inline int warp_index()
{
    return (int)(threadIdx.x / WARP);
}

template <bool SHARED_KV> static __device__ inline bool find_work(const decode_sm90 &p, work *w)
{
    const nsa_config &c = p.cache.cfg.c;
    const int64_t unit = p.first_unit + blockIdx.x / p.cluster, token = unit / c.n_heads_kv;
    w->rank = (int32_t)(blockIdx.x % p.cluster);
    w->head = (int32_t)(unit % c.n_heads_kv);
    w->x = cached_of(p.cache, seq_of_token(p.cache, token));
    w->row = token - w->x.added.start;
    if (w->row < 0 || w->row >= w->x.added.n)
        return false;
    /* Where cu_seqlens is not sound a token may be another sequence's, too: then none of this one's units takes part,
     * so that the next call finds its state as this one did. */
    for (int64_t i = 0; i < w->x.added.n; i++)
        if (i != w->row && seq_of_token(p.cache, w->x.added.start + i) != w->x.s)
            return false;
    w->old = (int32_t)w->x.old;
    w->t = (int32_t)(w->x.old + w->row);
    w->cur = w->t / c.slc_block;
    w->n_cmp = (int32_t)n_cmp_seen(c, w->t);
    w->first_new = (int32_t)n_cmp_seen(c, w->x.old - 1);
    w->win_first = max(0, w->t - (c.win_size - 1));
    w->tiles_first = SHARED_KV ? w->win_first / TILE * TILE : w->win_first;
    w->slc_end = SHARED_KV ? ceil_div(w->win_first, TILE) * TILE : w->t + 1;
    w->shift = c.cmp_block / c.cmp_stride - 1;
    w->n_tiles[NSA_CMP] = w->n_cmp > 0 ? ceil_div(w->n_cmp + w->shift, TILE) : 0;
    w->n_tiles[NSA_WIN] = ceil_div(w->t + 1 - w->tiles_first, TILE);
    w->n_tiles[NSA_SLC] = 0;
    w->scored = w->cur >= c.slc_topk && c.slc_n_init + c.slc_n_local < c.slc_topk;
    w->selected = -1;
    return true;
}

/* The stages of a branch are dealt to the CTAs of a cluster in turn, those of win from the last CTA on. */
static __device__ inline int32_t first_stage(const decode_sm90 &p, const work &w, int branch)
{
    return branch == NSA_WIN ? p.cluster - 1 - w.rank : w.rank;
}

static __device__ inline int32_t n_stages(const decode_sm90 &p, const work &w, int branch)
{
    return dealt(ceil_div(w.n_tiles[branch], TILES), first_stage(p, w, branch), p.cluster);
}

static __device__ inline int32_t stage_at(const decode_sm90 &p, const work &w, int branch, int32_t i)
{
    return first_stage(p, w, branch) + i * p.cluster;
}

/* Rows first + lo .. first + hi - 1; those of cmp are counted from the start of the first page, so that a tile lies in
 * one page. */
typedef struct tile {
    int32_t first, lo, hi;
} tile;

/* Whole warps: a lane's i-th of a branch. */
static __device__ inline tile tile_of(const decode_sm90 &p, const work &w, int branch, int32_t i)
{
    const int32_t of_block = p.cache.cfg.c.slc_block / TILE;
    const int32_t block = __shfl_sync(~0U, w.selected, i / of_block % WARP);
    tile x = {i * TILE, 0, 0};
    if (branch == NSA_WIN)
        x.first += w.tiles_first;
    if (branch == NSA_SLC)
        x.first = block * p.cache.cfg.c.slc_block + i % of_block * TILE;
    if (i < w.n_tiles[branch]) {
        const int32_t start = branch == NSA_CMP ? w.shift : branch == NSA_WIN ? w.win_first : 0;
        const int32_t end = branch == NSA_CMP ? w.shift + w.n_cmp : w.t + 1;
        x.lo = max(0, start - x.first);
        x.hi = min(TILE, end - x.first);
    }
    return x;
}

/* The selected blocks are known: how many tiles they have, all blocks but the last whole. */
static __device__ inline void deal_selected(const decode_sm90 &p, work *w)
{
    const int32_t block = p.cache.cfg.c.slc_block, rest = w->slc_end - w->selected * block;
    const int32_t mine = w->selected < 0 ? 0 : min(block / TILE, max(0, ceil_div(rest, TILE)));
    w->n_tiles[NSA_SLC] = __reduce_add_sync(~0U, mine);
}

/* ---- Where rows lie */

/* n rows, one behind the other. */
typedef struct run {
    const char *from;
    int32_t n;
} run;

static __device__ inline run run_in_page(const decode_sm90 &p, const work &w, int part, int32_t row)
{
    const cache_simt &c = p.cache;
    const int32_t rows = (int32_t)c.layout.rows[part], at = row % rows;
    const int32_t page = min(max(w.x.table[row / rows], 0), c.n_pages - 1);
    const run x = {c.pages + page * c.layout.page_bytes + w.head * c.layout.page_head_bytes + c.layout.offset[part] +
                       at * row_bytes(c, part),
                   rows - at};
    return x;
}

/* K (part 0) or V of a branch from a row on. */
template <bool SHARED_KV>
static __device__ inline run run_of(const decode_sm90 &p, const work &w, int branch, int part, int32_t row)
{
    run x;
    if (branch == NSA_CMP)
        return run_in_page(p, w, CACHE_K_CMP + part, row);
    if (row >= w.old) {
        const int of = SHARED_KV ? 0 : branch;
        x.from = new_row(p.cache, w.x, part == 0 ? p.cache.k[of] : p.cache.v[of], w.head, row);
        x.n = 1;
        return x;
    }
    if (SHARED_KV || branch == NSA_SLC) {
        x = run_in_page(p, w, CACHE_SLC_K + part, row);
    } else {
        const int32_t rows = (int32_t)p.cache.layout.rows[CACHE_WIN_K];
        x.from = ring_row(p.cache, w.x, CACHE_WIN_K + part, w.head, row);
        x.n = rows - row % rows;
    }
    x.n = min(x.n, w.old - row);
    return x;
}

/* ---- The reading warps: one for K and one for V of each slot */

/* Compresses block i by mean, into its page, K (part 0) or V: a lane has four channels at a time. Each CTA that reads
 * a new row makes it, for itself: all write the same. */
static __device__ inline void make_row(const decode_sm90 &p, const work &w, int part, int32_t i)
{
    const nsa_config &c = p.cache.cfg.c;
    const float n = (float)c.cmp_block;
    char *const to = page_row(p.cache, w.x, CACHE_K_CMP + part, w.head, i);
    for (int at = 8 * lane_index(); at < row_bytes(p.cache, part); at += 8 * WARP) {
        float y[4] = {0.0F, 0.0F, 0.0F, 0.0F};
#pragma unroll 4
        for (int32_t r = 0; r < c.cmp_block; r++) {
            const char *row = token_row(p.cache, w.x, CACHE_RAW_K + part, w.head, (int64_t)i * c.cmp_stride + r);
            const uint2 x = *(const uint2 *)(row + at);
            const float2 lo = __bfloat1622float2(*(const __nv_bfloat162 *)&x.x);
            const float2 hi = __bfloat1622float2(*(const __nv_bfloat162 *)&x.y);
            y[0] += lo.x, y[1] += lo.y, y[2] += hi.x, y[3] += hi.y;
        }
        const uint2 x = {pack2(y[0] / n, y[1] / n), pack2(y[2] / n, y[3] / n)};
        *(uint2 *)(to + at) = x;
    }
}

/* K (part 0) or V of the i-th stage of a branch into a slot, at `to`, by a warp: a tile by each of its first lanes. */
template <bool SHARED_KV>
static __device__ inline void read_stage(const decode_sm90 &p, const work &w, shared *sh, int part, int branch,
                                         int32_t i, int slot, char *to, uint32_t parity)
{
    const int l = lane_index();
    const int32_t first = stage_at(p, w, branch, i) * TILES;
    const tile x = tile_of(p, w, branch, first + l % TILES);
    if (branch == NSA_CMP && p.makes_rows && first * TILE + STAGE - w.shift > w.first_new) {
        const int32_t end = min(w.n_cmp, first * TILE + STAGE - w.shift);
        for (int32_t row = max(w.first_new, first * TILE - w.shift); row < end; row++)
            make_row(p, w, part, row);
        fence_async_global();
        __syncwarp();
    }
    run from = {NULL, 0};
    if (x.lo < x.hi)
        from = run_of<SHARED_KV>(p, w, branch, part, x.first + x.lo);
    uint64_t *const full = &sh->full[part][slot];
    const int32_t bytes = (int32_t)row_bytes(p.cache, part);
    to += l % TILES * (TILE * bytes + DECODE_TILE_PAD);
    mbar_wait(&sh->free[part][slot], parity);
    if (l < TILES) {
        if (part == 0)
            sh->seen[slot][l] = (uint16_t)(x.lo < x.hi ? (1U << x.hi) - (1U << x.lo) : 0);
        mbar_arrive_expect(full, (uint32_t)(max(0, x.hi - x.lo) * bytes));
        for (int32_t row = x.lo; row < x.hi;) {
            const int32_t n = min(from.n, x.hi - row);
            copy_bytes_once(to + row * bytes, from.from, (uint32_t)(n * bytes), full);
            row += n;
            if (row < x.hi)
                from = run_of<SHARED_KV>(p, w, branch, part, x.first + row);
        }
    }
    __syncwarp();
}

#endif
