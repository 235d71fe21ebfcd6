/*
 * The forward of slc_attn on Hopper, all but its arithmetic: tiles, lists of blocks, and the ring that they stream
 * through.
 *
 * Tile    a few tokens of a kv head, as many as the warps that multiply have rows for. A block of threads takes every
 *         gridDim-th.
 * List    the blocks that any token of the tile selected, ascending, each with the warps that want it. Two warps make
 *         the list of the next tile while this one is multiplied. A tile whose positions have more blocks than a list
 *         has room for is several lists, of windows: of 1024 blocks, so one is enough up to 64k tokens unless groups
 *         are small.
 * Item    KEYS keys of a listed block; item i lies in slot i % STAGES.
 * Ring    one thread brings keys, one values. k_item, v_item say that an item is on its way, k_full, v_full that it has
 *         come, k_empty, v_empty that all warps have read it; for those that do not want it the thread that brings it
 *         arrives. So warps never wait for each other but for slots.
 */
#ifndef NSA_OPS_SLC_ATTN_FWD_SM90_CUH
#define NSA_OPS_SLC_ATTN_FWD_SM90_CUH

#include "cuda/sm90.cuh"
#include "ops/slc_attn/slc_attn_sm90.h"

enum {
    WARPS_AT = 16,       /* bit of an entry */
    WINDOW = 1024,       /* blocks of a list, at most */
    WANTED_WORDS = 1024, /* of 32 (block, token) */
    LISTS = 2,           /* the one that is multiplied, the next */
    HEADS = 16,          /* rows of a warp */
    TOGETHER = 4,        /* warps of a warpgroup */
    MAKERS = 2,          /* warps that make lists */
    BATCH = 4,           /* entries of slc_idx that a thread has on their way */
    AGAIN_WORDS = 128,   /* of 32 tiles of a block of threads */
    JOINT_COST = 2,      /* of a block to a warpgroup; to a warp alone */
    ALONE_COST = 1,
    MADE = 1, /* named barriers: of makers; of each warpgroup */
    SHARED = 2
};

/* How tokens and heads are dealt out. */
typedef struct deal {
    int32_t warps;    /* of a block of threads, that multiply */
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

typedef struct place_of_tile {
    int32_t s, kv_head, first_split;
    int32_t first, n, t; /* row of its first token; its tokens; position of the first, maybe negative */
    seq_range q, k;
} place_of_tile;

/* Number i of a (kv head, round) after the other; false if no token has it. */
static __device__ bool find_tile(const slc_fwd_sm90 &p, const deal &d, uint32_t number, place_of_tile *x)
{
    const uint32_t n_tiles = (uint32_t)d.n_tiles, column = number / n_tiles, i = number % n_tiles;
    x->kv_head = (int32_t)(column / (uint32_t)d.rounds);
    x->first_split = (int32_t)(column % (uint32_t)d.rounds) * d.splits;
    int32_t lo = 0, hi = p.seqs.n; /* the last sequence whose tiles start at or before i */
    while (hi - lo > 1) {
        const int32_t mid = lo + (hi - lo) / 2;
        if (p.seqs.cu_q[mid] / d.tile + mid <= (int64_t)i)
            lo = mid;
        else
            hi = mid;
    }
    x->s = lo;
    x->q = seq_q(p.seqs, lo);
    x->k = seq_k(p.seqs, lo);
    const int64_t first = ((int64_t)i - (p.seqs.cu_q[lo] / d.tile + lo)) * d.tile;
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

/* The blocks of a window that tokens of a tile selected. */
typedef struct block_list {
    uint32_t wanted[WANTED_WORDS]; /* [block of the window][token of the tile], bits */
    uint32_t entry[WINDOW];        /* block of the window; from bit WARPS_AT on the warps that want it */
    uint32_t counts;               /* the sum over warpgroups of: its blocks << 16 | for how many warps these are */
    int32_t n_of_warp[MAKERS];
    int32_t n;           /* blocks; -1: this is no list, all are done */
    uint32_t first_item; /* they count on from list to list */
    int32_t begin;       /* first block of the window */
    int32_t only;        /* the one token of the tile that counts, or -1 for all */
    uint32_t tile;       /* of the block of threads */
    bool last;           /* of the tile */
    place_of_tile at;
} block_list;

template <int D_QK, int D_V, int KEYS, int GROUPS, int STAGES> struct fwd_shared {
    bf16 k[STAGES][D_QK / BOX_CHANNELS][KEYS][BOX_CHANNELS], v[STAGES][D_V / BOX_CHANNELS][KEYS][BOX_CHANNELS];
    bf16 q[GROUPS][D_QK / BOX_CHANNELS][TOGETHER * HEADS][BOX_CHANNELS]; /* of joint warpgroups */
    block_list lists[LISTS];
    uint64_t k_full[STAGES], v_full[STAGES], k_empty[STAGES], v_empty[STAGES], list_full[LISTS], list_empty[LISTS];
    uint32_t k_item[STAGES], v_item[STAGES];
    uint32_t again[AGAIN_WORDS]; /* bits: tiles that are to be done again */
};

#define FWD_TEMPLATE template <int D_QK, int D_V, int KEYS, int GROUPS, int STAGES>
#define FWD_SHARED fwd_shared<D_QK, D_V, KEYS, GROUPS, STAGES>

/* ---- The list */

/* Which of the tokens of a warp, from number `first` of the tile on, want block b of the window. only: the one token of
 * the tile that counts, or -1 for all. */
static __device__ uint32_t tokens_of(const uint32_t *wanted, const deal &d, int b, int first, int only)
{
    const uint32_t bit = ((uint32_t)b << d.log_bits) + (uint32_t)first;
    const uint32_t tokens = wanted[bit / 32] >> bit % 32 & ((1U << d.together) - 1U);
    return only < 0 ? tokens : only >= first && only < first + d.together ? tokens & 1U << (only - first) : 0;
}

static __device__ uint32_t warps_of(const uint32_t *wanted, const deal &d, int b, int only)
{
    uint32_t warps = 0;
    if (d.together == 1 && d.splits == 1) { /* a warp is a token */
        const uint32_t bit = (uint32_t)b << d.log_bits;
        warps = wanted[bit / 32] >> bit % 32 & ((1U << d.tile) - 1U);
        return only < 0 ? warps : warps & 1U << only;
    }
    for (int w = 0; w < d.warps && first_token(d, w) < d.tile; w++)
        warps |= tokens_of(wanted, d, b, first_token(d, w), only) != 0 ? 1U << w : 0U;
    return warps;
}

/* Of warpgroup g, those that want a block. */
static __device__ uint32_t warps_of_group(uint32_t warps, int g)
{
    return warps >> TOGETHER * g & ((1U << TOGETHER) - 1U);
}

/* Whether warpgroups multiply as one: where a block is wanted by enough of their warps. */
static __device__ bool is_joint(const block_list &x)
{
    return (x.counts >> 16) * JOINT_COST <= (x.counts & 0xffff) * ALONE_COST;
}

/* The blocks from x->begin on that tokens of the tile selected, n_blocks of them at most. Those of one token, if it
 * alone counts; but who multiplies with whom goes by all. By all makers. */
static __device__ void make_list(block_list *x, const slc_fwd_sm90 &p, const deal &d, int n_blocks)
{
    const int n_threads = MAKERS * WARP, me = (int)threadIdx.x % n_threads, topk = p.cfg.c.slc_topk, only = x->only;
    const int groups = d.warps / TOGETHER;
    for (int i = me; i < (n_blocks << d.log_bits) / 32 + 1 && i < WANTED_WORDS; i += n_threads)
        x->wanted[i] = 0;
    if (me == 0)
        x->counts = 0;
    bar_sync(MADE, n_threads);
    const int n_entries = x->at.n * topk;
    for (int first = me; first < n_entries; first += BATCH * n_threads) {
        int32_t block[BATCH];
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            const int i = min(first + k * n_threads, n_entries - 1), token = i / topk;
            block[k] =
                ((const int32_t *)
                     p.slc_idx.data)[offset_of(p.slc_idx, x->at.s, x->at.q.start, x->at.first + token, x->at.kv_head) +
                                     i % topk];
        }
#pragma unroll
        for (int k = 0; k < BATCH; k++) { /* the last entry maybe more than once */
            const int token = min(first + k * n_threads, n_entries - 1) / topk;
            const int64_t b = (int64_t)block[k] - x->begin;
            if (b < 0 || b >= n_blocks || (int64_t)block[k] * p.cfg.c.slc_block > x->at.t + token)
                continue;
            const uint32_t bit = ((uint32_t)b << d.log_bits) + (uint32_t)token;
            atomicOr(&x->wanted[bit / 32], 1U << bit % 32);
        }
    }
    bar_sync(MADE, n_threads);
    /* A thread takes some blocks that follow each other. */
    const int each = (n_blocks + n_threads - 1) / n_threads, from = min(me * each, n_blocks),
              to = min(from + each, n_blocks);
    uint32_t counts = 0;
    int n = 0;
    for (int b = from; b < to; b++) {
        const uint32_t warps = warps_of(x->wanted, d, b, -1);
        n += (only < 0 ? warps : warps_of(x->wanted, d, b, only)) != 0;
        for (int g = 0; g < groups; g++)
            counts += (uint32_t)(warps_of_group(warps, g) != 0) << 16;
        counts += (uint32_t)__popc(warps);
    }
    counts = __reduce_add_sync(~0U, counts);
    if (lane_index() == 0)
        atomicAdd(&x->counts, counts);
    int before = n;
    for (int i = 1; i < WARP; i *= 2) {
        const int other = __shfl_up_sync(~0U, before, i);
        before += lane_index() >= i ? other : 0;
    }
    if (lane_index() == WARP - 1)
        x->n_of_warp[me / WARP] = before;
    before -= n;
    bar_sync(MADE, n_threads);
    int all = 0;
    for (int w = 0; w < MAKERS; w++) {
        before += w < me / WARP ? x->n_of_warp[w] : 0;
        all += x->n_of_warp[w];
    }
    const bool joint = is_joint(*x);
    for (int b = from; b < to; b++) {
        uint32_t warps = warps_of(x->wanted, d, b, only);
        if (warps == 0)
            continue;
        for (int g = 0; g < groups; g++)
            if (joint && warps_of_group(warps, g) != 0)
                warps |= ((1U << TOGETHER) - 1U) << TOGETHER * g;
        x->entry[before++] = (uint32_t)b | warps << WARPS_AT;
    }
    if (me == 0)
        x->n = all;
}

/* The lists that have been made. */
typedef struct maker {
    uint32_t n_lists, n_items;
} maker;

/* Until the next list may be made: then its place. */
FWD_TEMPLATE static __device__ block_list *next_list(FWD_SHARED *shared, const maker &m)
{
    if (m.n_lists >= LISTS)
        mbar_wait(&shared->list_empty[m.n_lists % LISTS], (m.n_lists / LISTS - 1) % 2);
    return &shared->lists[m.n_lists % LISTS];
}

/* All windows of a tile, for one token of it or for all (-1). How many tokens the tile has. */
FWD_TEMPLATE static __device__ int make_lists(FWD_SHARED *shared, const slc_fwd_sm90 &p, const deal &d, uint32_t tile,
                                              int only, maker *m)
{
    const bool leads = threadIdx.x % (MAKERS * WARP) == 0;
    int n_tokens = 0;
    for (int begin = 0, end_block = 1; begin < end_block; begin += d.window) {
        block_list *x = next_list(shared, *m);
        if (leads) {
            if (!find_tile(p, d, blockIdx.x + tile * gridDim.x, &x->at))
                x->at.n = 0;
            x->begin = begin;
            x->only = only;
            x->tile = tile;
            x->first_item = m->n_items;
        }
        bar_sync(MADE, MAKERS * WARP);
        n_tokens = x->at.n;
        if (n_tokens == 0) {
            bar_sync(MADE, MAKERS * WARP); /* all have seen it */
            break;
        }
        const int last_t = x->at.t + n_tokens - 1;
        end_block = last_t < 0 ? 0 : last_t / p.cfg.c.slc_block + 1;
        make_list(x, p, d, min(d.window, end_block - begin));
        if (leads)
            x->last = begin + d.window >= end_block;
        bar_sync(MADE, MAKERS * WARP);
        m->n_items += (uint32_t)(x->n * d.parts);
        if (leads)
            mbar_arrive(&shared->list_full[m->n_lists % LISTS]);
        m->n_lists++;
    }
    return n_tokens;
}

/* The lists of all tiles of a block of threads. If all tokens at once give something that is not finite, the tile is
 * done again at the end, one token after the other. */
FWD_TEMPLATE static __device__ void make_all_lists(FWD_SHARED *shared, const slc_fwd_sm90 &p, const deal &d)
{
    maker m = {0, 0};
    const uint32_t all = (uint32_t)(d.n_tiles * p.cfg.c.n_heads_kv * d.rounds);
    const uint32_t n_tiles = (all - blockIdx.x + gridDim.x - 1) / gridDim.x;
    for (uint32_t i = 0; i < n_tiles; i++)
        make_lists(shared, p, d, i, -1, &m);
    for (uint32_t i = m.n_lists - min(m.n_lists, LISTS); i < m.n_lists; i++)
        mbar_wait(&shared->list_empty[i % LISTS], i / LISTS % 2);
    for (uint32_t i = 0; i < n_tiles; i++)
        if (shared->again[i / 32 % AGAIN_WORDS] >> i % 32 & 1)
            for (int only = 0, n = 1; only < n; only++)
                n = make_lists(shared, p, d, i, only, &m);
    block_list *x = next_list(shared, m);
    if (threadIdx.x % (MAKERS * WARP) == 0) {
        x->n = -1;
        mbar_arrive(&shared->list_full[m.n_lists % LISTS]);
    }
}

/* ---- The ring */

/* One thread brings the keys or the values of all items, and arrives for the warps that do not want them. */
template <int D, int KEYS, int STAGES, typename S, typename T>
static __device__ void produce(S *shared, T *slots, uint64_t *full, uint64_t *empty, uint32_t *item,
                               const CUtensorMap *map, bool packed, const deal &d)
{
    uint32_t i = 0;
    for (uint32_t n_lists = 0;; n_lists++) {
        const block_list &x = shared->lists[n_lists % LISTS];
        mbar_wait(&shared->list_full[n_lists % LISTS], n_lists / LISTS % 2);
        if (x.n < 0)
            return;
        const int n = x.n, head = x.at.kv_head, s = packed ? 0 : x.at.s;
        const int first_row = x.begin * d.parts * KEYS + (packed ? (int)x.at.k.start : 0);
        for (int b = 0; b < n; b++) {
            const uint32_t entry = x.entry[b], others = (uint32_t)(d.warps - __popc(entry >> WARPS_AT));
            int row = first_row + (int)(entry % WINDOW) * d.parts * KEYS;
            for (int part = 0; part < d.parts; part++, i++, row += KEYS) {
                const uint32_t slot = i % STAGES;
                if (i >= STAGES)
                    mbar_wait(&empty[slot], (i / STAGES - 1) % 2);
                if (others > 0)
                    mbar_arrive_many(&empty[slot], others);
                *(volatile uint32_t *)&item[slot] = i;
                mbar_arrive_expect(&full[slot], (uint32_t)sizeof slots[0]);
                copy_tile<D>(slots[slot], KEYS * BOX_ROW, map, &full[slot], head, row, s);
            }
        }
        mbar_arrive(&shared->list_empty[n_lists % LISTS]);
    }
}

/* Until item i has come. A barrier's parity alone could be that of an item before it: warps skip items. */
template <int STAGES> static __device__ void wait_for(uint64_t *full, const uint32_t *item, uint32_t i)
{
    while (*(const volatile uint32_t *)&item[i % STAGES] != i)
        __nanosleep(32);
    mbar_wait(&full[i % STAGES], i / STAGES % 2);
}

/* What a warp works at. */
FWD_TEMPLATE struct fwd_work {
    const slc_fwd_sm90 &p;
    const deal &d;
    FWD_SHARED *shared;
    const block_list &list;
    uint32_t tokens; /* the warp's first of the tile; from bits 8 and 16 on those of the lane's two rows, from that */
};

#define FWD_WORK fwd_work<D_QK, D_V, KEYS, GROUPS, STAGES>

/* Of a warp, when all its lanes have read what a barrier of items or lists is about. */
static __device__ void give_back(uint64_t *empty)
{
    __syncwarp();
    if (lane_index() == 0)
        mbar_arrive(empty);
}

/* Where a warp is among the items that it reads. */
typedef struct walk {
    uint32_t left;      /* bits: of 32 entries of the list, those that are yet to come */
    int32_t from;       /* the first of the 32 */
    uint32_t i;         /* item */
    int32_t block, key; /* of the window; the item's first, in the block */
} walk;

static __device__ walk start_walk()
{
    const walk x = {0, -WARP, 0, 0, INT32_MAX / 2};
    return x;
}

/* To the next item; false if there is none. */
FWD_TEMPLATE static __device__ bool step(const FWD_WORK &x, walk *at)
{
    at->key += KEYS;
    at->i++;
    if (at->key < x.p.cfg.c.slc_block)
        return true;
    while (at->left == 0) {
        at->from += WARP;
        if (at->from >= x.list.n)
            return false;
        const uint32_t entry = at->from + lane_index() < x.list.n ? x.list.entry[at->from + lane_index()] : 0;
        at->left = __ballot_sync(~0U, entry >> (WARPS_AT + threadIdx.x / WARP) & 1);
    }
    const int which = __ffs((int)at->left) - 1;
    at->left &= at->left - 1;
    at->block = (int32_t)(x.list.entry[at->from + which] % WINDOW);
    at->key = 0;
    at->i = x.list.first_item + (uint32_t)((at->from + which) * x.d.parts);
    return true;
}

/* How many keys from `key` of a block on the token of the tile sees, if it selected the block: maybe more than there
 * are. */
FWD_TEMPLATE static __device__ int keys_seen(const FWD_WORK &x, int block, int key, int token)
{
    return x.list.at.t + token + 1 - (x.list.begin + block) * x.p.cfg.c.slc_block - key;
}

/* Of a lane's two rows. Whether the warp sees anything. */
FWD_TEMPLATE static __device__ bool rows_seen(const FWD_WORK &x, const walk &at, int seen[2])
{
    const int first = (int)(x.tokens & 0xff);
    const uint32_t tokens = tokens_of(x.list.wanted, x.d, at.block, first, x.list.only);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int token = (int)(x.tokens >> 8 * (r + 1) & 0xff);
        seen[r] = tokens >> token & 1 ? keys_seen(x, at.block, at.key, first + token) : 0;
    }
    return tokens != 0;
}

#endif
