/*
 * From tokens and the blocks they have selected to blocks and their tokens, in rising order, of the tokens of a round.
 *
 *     count       how many tokens of a segment each block has      a CTA has 1024 blocks of a (sequence, kv head) and
 *     segments    where in its list each segment begins            a segment of the tokens from the first of them on
 *     plan        where lists begin; items                         one CTA: prefix sums
 *     fill        the tokens, and for each entry of slc_idx its    as count
 *                 place among them
 *
 * A segment is walked in windows of 1024 tokens. Each warp has some tokens that follow each other, whose entries it
 * looks at in their order: those of as many tokens at a time as have room in its lanes. How many entries of the warp
 * came before for the same block is their rank; the sum over the warps before gives the place. Integers only: the same
 * lists in every run. Of entries of a token for the same block the first counts.
 *
 * Cost: slc_idx is read by each owner of later tokens, T/(1024 slc_block)/2 times if that is more than once. One H200,
 * 2026-11-28: 0.11 ms for a kv head of 64k tokens, which fills half of the machine. With 128 blocks for a CTA, that
 * were marked in a bit for each (block, token), it was 0.27.
 */
#include "ops/slc_attn/slc_attn_lists_sm90.cuh"

enum {
    THREADS = 512,
    N_WARPS = THREADS / WARP,
    WINDOW = 1024,
    OF_WARP = WINDOW / N_WARPS /* tokens */
};

/* Rows of a sequence that an owner of blocks from `key` on looks through in one segment. */
static __device__ row_span segment_rows(const row_span &rows, const seq_range &q, const seq_range &k, int64_t key,
                                        int segment, int n_segments)
{
    const int64_t first = key == 0 ? rows.first : max64(rows.first, key - (k.n - q.n)); /* others have places, too */
    const int64_t n = max64(0, rows.end - first);
    const int64_t windows = (n + WINDOW - 1) / WINDOW, each = (windows + n_segments - 1) / n_segments * WINDOW;
    const row_span x = {first + segment * each, min64(rows.end, first + (segment + 1) * each)};
    return x;
}

/* Owned blocks in a window. */
typedef struct owned_blocks {
    uint16_t entries[N_WARPS][OWNED]; /* of each warp; then of the warps before it */
    int32_t begin[OWNED];             /* where the tokens of the window go in the list */
} owned_blocks;

/* The tokens of a window, and what the CTA owns. */
typedef struct window {
    const int32_t *idx; /* of the first token */
    int64_t stride;     /* of idx, to the next token */
    int32_t *places;    /* of the first token */
    int32_t topk, n;
    int64_t t; /* position of the first token */
    int64_t slc_block;
    int32_t first_block; /* owned */
    int32_t first_row;   /* of the sequence */
} window;

/* An entry of a lane: block < 0 if it has none. Entries of a token are side by side in lanes. */
typedef struct entry_of_lane {
    int32_t token, entry, block;
    int32_t place;     /* as it stands in places, if asked for */
    unsigned of_token; /* lanes */
    bool exists, seen;
    int32_t owned; /* its number among the owned blocks; or out of their range */
} entry_of_lane;

/* f(x, first) for the entries of the warp's tokens, by whole warps; first: of the token's, which lanes begin with.
 * AT_ONCE are under way. */
template <int AT_ONCE, bool PLACES, typename F> static __device__ void each_entry(const window &w, const F &f)
{
    int lanes = 1; /* of a token */
    while (lanes < w.topk && lanes < WARP)
        lanes *= 2;
    const int lane = lane_index(), together = WARP / lanes, from = (int)threadIdx.x / WARP * OF_WARP;
    const int end = min(w.n, from + OF_WARP);
    const unsigned of_token = (lanes == WARP ? ~0U : (1U << lanes) - 1U) << lane / lanes * lanes;
    for (int token = from; token < end; token += together * AT_ONCE)
        for (int first = 0; first < w.topk; first += WARP) {
            int32_t block[AT_ONCE], place[AT_ONCE];
            const int entry = first + lane % lanes, mine = token + lane / lanes;
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                const int at = mine + i * together;
                const bool exists = at < end && entry < w.topk;
                block[i] = exists ? __ldg(w.idx + at * w.stride + entry) : -1;
                place[i] = PLACES && exists ? w.places[at * w.topk + entry] : -1;
            }
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                const int at = mine + i * together;
                const entry_of_lane x = {
                    at,
                    entry,
                    block[i],
                    place[i],
                    of_token,
                    at < end && entry < w.topk,
                    block[i] >= 0 && block[i] * w.slc_block <= w.t + at,
                    block[i] < 0 ? -1 : block[i] - w.first_block,
                };
                if (token + i * together < end)
                    f(x, first);
            }
        }
}

static __device__ bool is_owned(const entry_of_lane &x)
{
    return x.seen && x.owned >= 0 && x.owned < OWNED;
}

static __device__ int32_t *place_of(const window &w, const entry_of_lane &x)
{
    return w.places + x.token * w.topk + x.entry;
}

/* Counts the entries of each warp and block; FILL: leaves ranks in places, and -1 for entries that are in no list. */
template <bool FILL> static __device__ void rank_entries(const window &w, owned_blocks *b)
{
    uint16_t *mine = b->entries[threadIdx.x / WARP];
    each_entry<4, false>(w, [&](const entry_of_lane &x, int first) {
        const unsigned same = __match_any_sync(~0U, x.block), before = (1U << lane_index()) - 1U;
        bool counts = is_owned(x) && (same & x.of_token & before) == 0;
        for (int i = 0; i < first; i++)
            counts &= __ldg(w.idx + x.token * w.stride + i) != x.block;
        const unsigned peers = __ballot_sync(~0U, counts) & same;
        const int found = counts ? mine[x.owned] : 0;
        __syncwarp();
        if (counts && (peers & before) == 0)
            mine[x.owned] = (uint16_t)(found + __popc(peers));
        __syncwarp();
        if (FILL && counts)
            *place_of(w, x) = found + __popc(peers & before);
        else if (FILL && x.exists && (is_owned(x) || (!x.seen && w.first_block == 0)))
            *place_of(w, x) = -1;
    });
}

/* From ranks to places. end: of all lists. */
static __device__ void fill_list(const window &w, const owned_blocks &b, int32_t *tokens, int64_t end)
{
    const uint16_t *before = b.entries[threadIdx.x / WARP];
    each_entry<4, true>(w, [&](const entry_of_lane &x, int) {
        if (!is_owned(x) || x.place < 0)
            return;
        const int32_t place = b.begin[x.owned] + before[x.owned] + x.place;
        *place_of(w, x) = place;
        if (place >= 0 && place < end)
            tokens[place] = w.first_row + x.token;
    });
}

/* Of a block the entries of the warps, to the sums of those before; of all of them. */
static __device__ int sum_warps(owned_blocks *b, int block)
{
    int sum = 0;
#pragma unroll
    for (int i = 0; i < N_WARPS; i++) {
        const int n = b->entries[i][block];
        b->entries[i][block] = (uint16_t)sum;
        sum += n;
    }
    return sum;
}

template <bool FILL>
static __global__ __launch_bounds__(THREADS, 2) void lists_kernel(const __grid_constant__ slc_listing p)
{
    enum { EACH = OWNED / THREADS };
    __shared__ __align__(16) owned_blocks x;
    const nsa_config &c = p.cfg;
    const int n_segments = p.lists.n_segments;
    const int64_t n_owners = p.seqs.total_k / ((int64_t)OWNED * c.slc_block) + p.seqs.n;
    const int segment = (int)(blockIdx.x % n_segments);
    const int64_t owner = blockIdx.x / n_segments;
    const int32_t kv_head = (int32_t)(owner / n_owners);
    int32_t s;
    const int64_t key = find_tile(p.seqs.cu_k, p.seqs.n, 1, OWNED * c.slc_block, owner % n_owners, &s);
    const seq_range q = seq_q(p.seqs, s), k = seq_k(p.seqs, s);
    if (key < 0 || (key >= k.n && key > 0)) /* without keys there are places still */
        return;

    const int64_t first_list = kv_head * p.lists.n_blocks + k.start / c.slc_block + s + key / c.slc_block;
    const int n_owned = (int)min64(OWNED, (k.n - key + c.slc_block - 1) / c.slc_block);
    int32_t *segments = p.lists.segments + segment * p.lists.n_lists + first_list;
    int32_t next[EACH]; /* of the thread's blocks: where the next token goes; of the count: from 0 */
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const int block = i * THREADS + (int)threadIdx.x;
        next[i] = FILL && block < n_owned ? (int32_t)p.lists.begin[first_list + block] + segments[block] : 0;
    }
    const row_span rows = segment_rows(rows_of_round(p.round, q), q, k, key, segment, n_segments);
    for (int64_t row = rows.first; row < rows.end; row += WINDOW) {
        const window w = {
            (const int32_t *)p.slc_idx.data + offset_of(p.slc_idx, s, q.start, row, kv_head),
            p.slc_idx.stride_token,
            p.lists.places + (kv_head * p.round.n + q.start + row - p.round.first) * (int64_t)c.slc_topk,
            c.slc_topk,
            (int32_t)min64(WINDOW, rows.end - row),
            row + k.n - q.n,
            c.slc_block,
            (int32_t)(key / c.slc_block),
            (int32_t)row,
        };
        for (int i = (int)threadIdx.x; i < (int)(sizeof x.entries / sizeof(uint4)); i += THREADS)
            ((uint4 *)x.entries)[i] = make_uint4(0, 0, 0, 0);
        __syncthreads();
        rank_entries<FILL>(w, &x);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const int block = i * THREADS + (int)threadIdx.x;
            x.begin[block] = next[i];
            next[i] += sum_warps(&x, block);
        }
        __syncthreads();
        if (FILL)
            fill_list(w, x, p.lists.tokens, p.lists.room);
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const int block = i * THREADS + (int)threadIdx.x;
        if (!FILL && block < n_owned)
            segments[block] = next[i];
    }
}

/* ---- Where each segment and list begins; items */

static __global__ __launch_bounds__(WARP *WARPS) void segments_kernel(const __grid_constant__ slc_lists p)
{
    for (int64_t list = first_element(); list < p.n_lists; list += element_stride()) {
        int32_t sum = 0;
#pragma unroll 8
        for (int i = 0; i < p.n_segments; i++) {
            int32_t *segment = &p.segments[i * p.n_lists + list];
            const int32_t n = *segment;
            *segment = sum;
            sum += n;
        }
        p.count[list] = sum;
    }
}

/* The sum of x of the threads before this one; *all: of all threads. */
static __device__ int64_t sum_before(int64_t x, int64_t *all)
{
    __shared__ int64_t warps[WARP];
    const int lane = lane_index(), warp = (int)threadIdx.x / WARP;
    int64_t end = x;
    for (int i = 1; i < WARP; i *= 2) {
        const int64_t before = __shfl_up_sync(~0U, end, i);
        end += lane >= i ? before : 0;
    }
    __syncthreads();
    if (lane == WARP - 1)
        warps[warp] = end;
    __syncthreads();
    int64_t sum = end - x;
    *all = 0;
    for (int i = 0; i < N_WARPS; i++) {
        sum += i < warp ? warps[i] : 0;
        *all += warps[i];
    }
    return sum;
}

static __global__ __launch_bounds__(THREADS) void plan_kernel(const __grid_constant__ slc_lists p, int min_items)
{
    int64_t n_tokens = 0, n_items = 0, n_parts = 0;
    for (int64_t first = 0; first < p.n_lists; first += THREADS) {
        const int64_t list = first + threadIdx.x;
        const int64_t found = list < p.n_lists ? p.count[list] : 0;
        int64_t all;
        const int64_t begin = n_tokens + sum_before(found, &all);
        n_tokens += all;
        const int32_t count = (int32_t)max64(0, min64(found, p.room - begin)); /* less where cu_seqlens overlap */
        const int64_t items =
            list < p.n_lists ? max64(min_items, (count + (int64_t)p.item_tokens - 1) / p.item_tokens) : 0;
        const int64_t item = n_items + sum_before(items, &all);
        n_items += all;
        const int64_t part = n_parts + sum_before(items > 1 ? items : 0, &all);
        n_parts += all;
        if (list >= p.n_lists)
            continue;
        p.begin[list] = min64(begin, p.room);
        p.count[list] = count;
        p.parts_begin[list] = (int32_t)part;
        for (int64_t i = 0; i < items; i++) {
            const int32_t at = (int32_t)(i * p.item_tokens);
            const slc_item x = {(int32_t)list, at, (int32_t)min64(p.item_tokens, count - at),
                                items > 1 ? (int32_t)(part + i) : -1};
            p.items[item + i] = x;
        }
    }
    if (threadIdx.x == 0)
        *p.n_items = (int32_t)n_items;
}

int launch_slc_lists(const slc_listing *p, nsa_stream stream)
{
    const nsa_config *c = &p->cfg;
    const slc_lists *x = &p->lists;
    const int64_t owners = p->seqs.total_k / ((int64_t)OWNED * c->slc_block) + p->seqs.n;
    const unsigned grid = (unsigned)(owners * c->n_heads_kv * x->n_segments);
    const size_t bytes = (size_t)(x->n_lists * x->n_segments) * sizeof *x->segments;
    const cudaError_t error = cudaMemsetAsync(x->segments, 0, bytes, stream);
    if (error != cudaSuccess || x->n_lists == 0)
        return error;
    lists_kernel<false><<<grid, THREADS, 0, stream>>>(*p);
    segments_kernel<<<grid_of(x->n_lists, WARP * WARPS), WARP * WARPS, 0, stream>>>(*x);
    plan_kernel<<<1, THREADS, 0, stream>>>(*x, p->empty_items);
    lists_kernel<true><<<grid, THREADS, 0, stream>>>(*p);
    return cudaGetLastError();
}
