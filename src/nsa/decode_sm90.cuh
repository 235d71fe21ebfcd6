/* Decoding on Hopper: which rows a CTA and its warps read, where these lie, and how they come to shared memory. */
#ifndef NSA_NSA_DECODE_SM90_CUH
#define NSA_NSA_DECODE_SM90_CUH

#include "cuda/sm90.cuh"
#include "nsa/cache_simt.cuh"
#include "nsa/decode_sm90.h"

enum {
    D = DECODE_D,
    ROW = 2 * D, /* bytes */
    TILE = DECODE_TILE,
    HEADS = DECODE_HEADS,
    THREADS = WARPS * WARP,
    SLOT = TILE * ROW,          /* of a ring: a tile of K or of V */
    RING = 4 * SLOT,            /* of a warp: two tiles of K, two of V */
    O_BYTES = HEADS * D * 4,    /* of one branch */
    N_ELEMENTS = HEADS * D / 2, /* of o, two channels each */
    PENDING = 3                 /* groups of copies younger than the one that is waited for */
};
static_assert(2 * O_BYTES == RING, "a warp's o of two branches takes the place of its ring");

/* Of one branch and head, over some keys: the largest logit (times log2 e) and the sum of 2^(logit - it). */
typedef float2 max_sum;

/* Behind these lie, as long as the problem wants them: logits[tile * TILE][HEADS] of the CTA's compressed rows, where
 * later o of cmp_attn lies, of each warp; then P[tile * TILE] and score[block]. */
typedef struct shared {
    char ring[WARPS][RING];
    char q[2][HEADS * ROW]; /* of cmp, then of slc; of win */
    max_sum of_warp[NSA_N_BRANCHES][WARPS][HEADS];
    max_sum of_cta[NSA_N_BRANCHES][HEADS];
    float weight[NSA_N_BRANCHES][WARPS][HEADS];
    float gate[NSA_N_BRANCHES][HEADS];
    float lse[HEADS]; /* of cmp, times log2 e */
    uint64_t best[WARPS][WARP];
    int32_t chosen[DECODE_MAX_TOPK];
    int32_t n_listed;
} shared;

static_assert(sizeof(shared) <= DECODE_FIXED_BYTES, "decode_sm90_bytes counts it");
static_assert(WARPS * O_BYTES == DECODE_O_BYTES, "and o of cmp_attn");

/* ---- What a CTA works at: the same in all of its threads, and but for rank in its cluster */

typedef struct work {
    cached x;
    int32_t head, rank;
    int64_t row;               /* of the call's tensors */
    int32_t t, old, cur;       /* position, the cache's length before the call, the position's block */
    int32_t n_cmp, first_new;  /* compressed rows that t sees; those from first_new on are of this call */
    int32_t cta_tiles;         /* of compressed rows, for each CTA of the cluster */
    int32_t win_first;         /* key */
    int32_t tiles_first;       /* where its tiles start: there, or if K is shared at a whole tile */
    int32_t slc_end;           /* selected blocks are read up to this key: to t, or if K is shared to the first whole
                                  tile of the window, whose tiles are read once */
    int32_t n[NSA_N_BRANCHES]; /* tiles of this warp */
    int32_t selected;          /* the block number lane_index() of those selected, or -1 */
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
    const int64_t unit = blockIdx.x / p.cluster, token = unit / c.n_heads_kv;
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
    const int32_t n_tiles = ceil_div(w->n_cmp, TILE), of = WARPS * p.cluster;
    w->cta_tiles = ceil_div(n_tiles, p.cluster);
    w->n[NSA_CMP] = dealt(min(w->cta_tiles, max(0, n_tiles - w->rank * w->cta_tiles)), warp_index(), WARPS);
    w->n[NSA_WIN] = dealt(ceil_div(w->t + 1 - w->tiles_first, TILE), of - 1 - (w->rank * WARPS + warp_index()), of);
    w->n[NSA_SLC] = 0;
    w->selected = -1;
    return true;
}

/* Rows first + lo .. first + hi - 1 of a branch. */
typedef struct tile {
    int branch; /* NSA_CMP ... */
    int32_t first, lo, hi;
} tile;

/* The i-th of the warp: those of cmp come first, then win, then slc. */
static __device__ inline tile tile_of(const decode_sm90 &p, const work &w, int32_t i)
{
    const int32_t of = WARPS * p.cluster, me = w.rank * WARPS + warp_index();
    if (i < w.n[NSA_CMP]) {
        const int32_t first = (w.rank * w.cta_tiles + warp_index() + i * WARPS) * TILE;
        const tile x = {NSA_CMP, first, 0, min(TILE, w.n_cmp - first)};
        return x;
    }
    i -= w.n[NSA_CMP];
    if (i < w.n[NSA_WIN]) {
        const int32_t first = w.tiles_first + (of - 1 - me + i * of) * TILE;
        const tile x = {NSA_WIN, first, max(0, w.win_first - first), min(TILE, w.t + 1 - first)};
        return x;
    }
    i = me + (i - w.n[NSA_WIN]) * of;
    const int32_t of_block = p.cache.cfg.c.slc_block / TILE;
    const int32_t block = __shfl_sync(~0U, w.selected, i / of_block);
    const int32_t first = block * p.cache.cfg.c.slc_block + i % of_block * TILE;
    const tile x = {NSA_SLC, first, 0, min(TILE, w.t + 1 - first)};
    return x;
}

/* The selected blocks are known: the warp's tiles of them, all but the last whole. */
static __device__ inline void deal_selected(const decode_sm90 &p, work *w)
{
    const int32_t block = p.cache.cfg.c.slc_block, rest = w->slc_end - w->selected * block;
    const int32_t mine = w->selected < 0 ? 0 : min(block / TILE, max(0, ceil_div(rest, TILE)));
    const int32_t of = WARPS * p.cluster;
    w->n[NSA_SLC] = dealt(__reduce_add_sync(~0U, mine), w->rank * WARPS + warp_index(), of);
}

/* ---- A warp's ring. Lanes below 16 know where a row of K lies, the others where one of V */

typedef struct reader {
    char *ring;
    int32_t next, end; /* tiles: the one to be read next, and how many are known */
    int32_t page;      /* of the lane's row of tile `next` */
    const char *row;   /* the lane's row of the tile that is being read; NULL: none */
} reader;

static __device__ inline int lane_row()
{
    return lane_index() % TILE;
}

static __device__ inline int lane_part()
{
    return lane_index() / TILE;
}

template <bool SHARED_KV> static __device__ inline bool is_paged(const work &w, const tile &x)
{
    const int32_t i = x.first + lane_row();
    return lane_row() >= x.lo && lane_row() < x.hi &&
           (x.branch == NSA_CMP || (i < w.old && (SHARED_KV || x.branch == NSA_SLC)));
}

/* Where the lane's row lies in its sequence's pages, as page_row. */
static __device__ inline int32_t paged_row(const decode_sm90 &p, const tile &x)
{
    const nsa_config &c = p.cache.cfg.c;
    return x.first + lane_row() + (x.branch == NSA_CMP ? c.cmp_block / c.cmp_stride - 1 : 0);
}

static __device__ inline cache_part paged_part(const tile &x)
{
    return (cache_part)((x.branch == NSA_CMP ? CACHE_K_CMP : CACHE_SLC_K) + lane_part());
}

template <bool SHARED_KV> static __device__ inline void look_up(const decode_sm90 &p, const work &w, reader *r)
{
    if (r->next >= r->end)
        return;
    const tile x = tile_of(p, w, r->next);
    if (is_paged<SHARED_KV>(w, x))
        r->page = w.x.table[paged_row(p, x) / (int32_t)p.cache.layout.rows[paged_part(x)]];
}

template <bool SHARED_KV>
static __device__ inline const char *find_row(const decode_sm90 &p, const work &w, const tile &x, int32_t page)
{
    const cache_simt &c = p.cache;
    const int32_t i = x.first + lane_row();
    if (lane_row() < x.lo || lane_row() >= x.hi)
        return NULL;
    if (is_paged<SHARED_KV>(w, x)) {
        const cache_part part = paged_part(x);
        return c.pages + min(max(page, 0), c.n_pages - 1) * c.layout.page_bytes + w.head * c.layout.page_head_bytes +
               c.layout.offset[part] + paged_row(p, x) % (int32_t)c.layout.rows[part] * (int64_t)ROW;
    }
    if (i < w.old)
        return ring_row(c, w.x, CACHE_WIN_K + lane_part(), w.head, i);
    const int32_t branch = SHARED_KV ? 0 : x.branch;
    return new_row(c, w.x, lane_part() == 0 ? c.k[branch] : c.v[branch], w.head, i);
}

/* Compresses block i by mean, into its page: a lane has four channels. Each CTA that reads a new row makes it, for
 * itself: all write the same. */
static __device__ inline void make_row(const decode_sm90 &p, const work &w, int32_t i)
{
    const nsa_config &c = p.cache.cfg.c;
    for (int v = 0; v < 2; v++) {
        float y[4] = {0.0F, 0.0F, 0.0F, 0.0F};
#pragma unroll 8
        for (int32_t r = 0; r < c.cmp_block; r++) {
            const char *row = token_row(p.cache, w.x, CACHE_RAW_K + v, w.head, (int64_t)i * c.cmp_stride + r);
            const uint2 x = *(const uint2 *)(row + 8 * lane_index());
            const float2 lo = __bfloat1622float2(*(const __nv_bfloat162 *)&x.x);
            const float2 hi = __bfloat1622float2(*(const __nv_bfloat162 *)&x.y);
            y[0] += lo.x, y[1] += lo.y, y[2] += hi.x, y[3] += hi.y;
        }
        const float n = (float)c.cmp_block;
        const uint2 x = {pack2(y[0] / n, y[1] / n), pack2(y[2] / n, y[3] / n)};
        *(uint2 *)(page_row(p.cache, w.x, CACHE_K_CMP + v, w.head, i) + 8 * lane_index()) = x;
    }
    __syncwarp();
}

/* Rows of K or of V, half a warp each; 16-byte pieces swizzled as ldmatrix wants them. */
static __device__ inline void copy_rows(const decode_sm90 &p, const reader &r, int part, char *slot)
{
    const int half = lane_index() / TILE, piece = lane_index() % TILE;
#pragma unroll
    for (int j = 0; j < TILE / 2; j++) {
        const int row = 2 * j + half;
        const char *from = (const char *)__shfl_sync(~0U, (unsigned long long)r.row, part * TILE + row);
        copy_16(shared_address(slot) + row * ROW + (piece ^ row % 8) * 16,
                from == NULL ? p.cache.pages : from + piece * 16, from != NULL);
    }
}

/* A group of copies: K of tile `next`, if that is known. Then V of it. */
template <bool SHARED_KV> static __device__ inline void read_k(const decode_sm90 &p, const work &w, reader *r)
{
    if (r->next < r->end) {
        const tile x = tile_of(p, w, r->next);
        if (x.branch == NSA_CMP && p.makes_rows)
            for (int32_t i = max(x.first, w.first_new); i < x.first + x.hi; i++)
                make_row(p, w, i);
        r->row = find_row<SHARED_KV>(p, w, x, r->page);
        copy_rows(p, *r, 0, r->ring + r->next % 2 * SLOT);
    }
    copies_commit();
}

template <bool SHARED_KV> static __device__ inline void read_v(const decode_sm90 &p, const work &w, reader *r)
{
    if (r->next < r->end) {
        copy_rows(p, *r, 1, r->ring + (2 + r->next % 2) * SLOT);
        r->next++;
        look_up<SHARED_KV>(p, w, r);
    }
    copies_commit();
}

/* More tiles are known: reads those of the two from `now` on that are not under way, with empty groups where there are
 * none, for attend to count. */
template <bool SHARED_KV>
static __device__ inline void read_on(const decode_sm90 &p, const work &w, reader *r, int32_t now, int32_t end)
{
    r->end = end;
    look_up<SHARED_KV>(p, w, r);
    while (r->next < r->end && r->next < now + 2) {
        read_k<SHARED_KV>(p, w, r);
        read_v<SHARED_KV>(p, w, r);
    }
    for (int32_t i = r->next; i < now + 2; i++) {
        copies_commit();
        copies_commit();
    }
}

/* Until the warp's copies have arrived, all but those of the last N groups. */
template <int N> static __device__ inline void wait_for_tile()
{
    copies_wait<N>();
    __syncwarp();
}

#endif
