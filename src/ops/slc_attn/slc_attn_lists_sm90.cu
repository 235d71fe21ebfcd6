/*
 * From tokens and the blocks they have selected to blocks and their tokens, in rising order, of the tokens of a round.
 *
 *     count     how many tokens each block has      a CTA owns 128 blocks of a (sequence, kv head)
 *     plan      where lists begin; items            one CTA: prefix sums
 *     fill      the tokens, and for each entry of   as count
 *               slc_idx its place among them
 *
 * An owner goes through all tokens from its first block on, in SEGMENTS parts by as many CTAs, 1024 at a time: a bit
 * for each (block, token) in shared memory, so that the order of slc_idx and repeated entries do not matter; then a
 * warp goes through some blocks, for which its lanes count and write out the tokens of 32 bits each; then once more
 * through the entries, which find their places by counting bits. Integers only: the same lists in every run.
 *
 * Cost: slc_idx is read by each owner of later tokens, T/(128 slc_block)/2 times.
 */
#include "ops/slc_attn/slc_attn_lists_sm90.cuh"

enum { WINDOW = WARP * WARP, THREADS = 1024, OF_WARP = OWNED / (THREADS / WARP) };

/* Rows of a sequence that an owner of blocks from `key` on looks through in one segment. */
static __device__ row_span segment_rows(const row_span &rows, const seq_range &q, const seq_range &k, int64_t key,
                                        int segment)
{
    const int64_t first = max64(rows.first, key - (k.n - q.n)), n = max64(0, rows.end - first);
    const int64_t windows = (n + WINDOW - 1) / WINDOW, each = (windows + SEGMENTS - 1) / SEGMENTS * WINDOW;
    const row_span x = {first + segment * each, min64(rows.end, first + (segment + 1) * each)};
    return x;
}

/* Owned blocks in a window; rows of words for each 32 tokens. */
typedef struct owned_blocks {
    uint32_t tokens[OWNED][WARP + 1]; /* a bit for each that has selected the block */
    int32_t first[OWNED][WARP + 1];   /* place of the first of them */
    int32_t next[OWNED], end[OWNED];  /* where the block's next token goes, and its list ends; of the count: from 0 */
} owned_blocks;

/* Of n tokens, the first of which has position t, the entries that are owned blocks: sets their bits in x, or looks up
 * their places there, of which `places` begins with the first token's. */
template <bool FILL>
static __device__ void each_entry(const nsa_tensor &slc_idx, const int32_t *idx, int n, int topk, int64_t first_block,
                                  int64_t slc_block, int64_t t, owned_blocks *x, int32_t *places)
{
    enum { AT_ONCE = 4 };
    int token = (int)threadIdx.x / topk, entry = (int)threadIdx.x % topk;
    while (token < n) {
        int32_t block[AT_ONCE];
        int at[AT_ONCE], entry_of[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            at[i] = token;
            entry_of[i] = entry;
            block[i] = token < n ? __ldg(idx + token * slc_idx.stride_token + entry) : -1;
            token += THREADS / topk;
            entry += THREADS % topk;
            token += entry >= topk;
            entry -= entry >= topk ? topk : 0;
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const int64_t owned = block[i] - first_block;
            if (owned < 0 || owned >= OWNED || block[i] * slc_block > t + at[i])
                continue;
            const int word = at[i] / WARP;
            const uint32_t bit = 1U << at[i] % WARP;
            if (FILL)
                places[(int64_t)at[i] * topk + entry_of[i]] =
                    x->first[owned][word] + __popc(x->tokens[owned][word] & (bit - 1U));
            else
                atomicOr(&x->tokens[owned][word], bit);
        }
    }
}

/* Counts the tokens of an owned block, by a warp; writes them out. */
template <bool FILL> static __device__ void list_tokens(int32_t *tokens, int32_t first_row, int block, owned_blocks *x)
{
    const int lane = lane_index();
    uint32_t mine = x->tokens[block][lane];
    int32_t end = __popc(mine);
    for (int i = 1; i < WARP; i *= 2) {
        const int32_t before = __shfl_up_sync(~0U, end, i);
        end += lane >= i ? before : 0;
    }
    int32_t at = x->next[block] + end - __popc(mine);
    __syncwarp();
    if (lane == WARP - 1)
        x->next[block] += end;
    if (!FILL)
        return;
    x->first[block][lane] = at;
    for (; mine != 0 && at < x->end[block]; at++, mine &= mine - 1)
        tokens[at] = first_row + lane * WARP + __ffs((int)mine) - 1;
}

template <bool FILL>
static __global__ __launch_bounds__(THREADS) void lists_kernel(const __grid_constant__ slc_listing p)
{
    __shared__ owned_blocks x;
    const nsa_config &c = p.cfg;
    const nsa_tensor &slc_idx = p.slc_idx;
    const int64_t n_owners = p.seqs.total_k / ((int64_t)OWNED * c.slc_block) + p.seqs.n;
    const int segment = (int)(blockIdx.x % SEGMENTS);
    const int64_t owner = blockIdx.x / SEGMENTS;
    const int32_t kv_head = (int32_t)(owner / n_owners);
    int32_t s;
    const int64_t key = find_tile(p.seqs.cu_k, p.seqs.n, 1, OWNED * c.slc_block, owner % n_owners, &s);
    const seq_range q = seq_q(p.seqs, s), k = seq_k(p.seqs, s);
    if (key < 0 || key >= k.n)
        return;

    const int lane = lane_index(), warp = (int)threadIdx.x / WARP;
    const int64_t first_block = key / c.slc_block;
    const int64_t first_list = kv_head * p.lists.n_blocks + k.start / c.slc_block + s + first_block;
    const int n_owned = (int)min64(OWNED, (k.n - key + c.slc_block - 1) / c.slc_block);
    for (int i = (int)threadIdx.x; i < n_owned; i += THREADS) {
        const int64_t list = first_list + i, begin = FILL ? p.lists.begin[list] : 0;
        x.next[i] = FILL ? (int32_t)begin + p.lists.segments[list * SEGMENTS + segment] : 0;
        x.end[i] = FILL ? (int32_t)begin + p.lists.count[list] : 0;
    }
    for (int i = 0; i < OF_WARP; i++)
        x.tokens[warp * OF_WARP + i][lane] = 0;
    const row_span rows = segment_rows(rows_of_round(p.round, q), q, k, key, segment);
    for (int64_t row = rows.first; row < rows.end; row += WINDOW) {
        const int32_t *idx = (const int32_t *)slc_idx.data + offset_of(slc_idx, s, q.start, row, kv_head);
        int32_t *places = p.lists.places + (kv_head * p.round.n + q.start + row - p.round.first) * (int64_t)c.slc_topk;
        const int here = (int)min64(WINDOW, rows.end - row);
        const int64_t t = row + k.n - q.n;
        __syncthreads();
        each_entry<false>(slc_idx, idx, here, c.slc_topk, first_block, c.slc_block, t, &x, NULL);
        __syncthreads();
        for (int i = warp * OF_WARP; i < min(n_owned, (warp + 1) * OF_WARP); i++)
            list_tokens<FILL>(p.lists.tokens, (int32_t)row, i, &x);
        if (FILL) {
            __syncthreads();
            each_entry<true>(slc_idx, idx, here, c.slc_topk, first_block, c.slc_block, t, &x, places);
            __syncthreads();
        }
        for (int i = 0; i < OF_WARP; i++)
            x.tokens[warp * OF_WARP + i][lane] = 0;
    }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < n_owned && !FILL; i += THREADS)
        p.lists.segments[(first_list + i) * SEGMENTS + segment] = x.next[i];
}

/* ---- Where each list begins, and its items */

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
    for (int i = 0; i < THREADS / WARP; i++) {
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
        int64_t found = 0;
        for (int i = 0; i < SEGMENTS && list < p.n_lists; i++) {
            int32_t *segment = &p.segments[list * SEGMENTS + i];
            const int32_t n = *segment;
            *segment = (int32_t)found;
            found += n;
        }
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
    const int64_t owners = p->seqs.total_k / ((int64_t)OWNED * c->slc_block) + p->seqs.n;
    const unsigned grid = (unsigned)(owners * c->n_heads_kv * SEGMENTS);
    const size_t bytes = (size_t)p->lists.n_lists * SEGMENTS * sizeof *p->lists.segments;
    const cudaError_t error = cudaMemsetAsync(p->lists.segments, 0, bytes, stream);
    if (error != cudaSuccess || p->lists.n_lists == 0)
        return error;
    lists_kernel<false><<<grid, THREADS, 0, stream>>>(*p);
    plan_kernel<<<1, THREADS, 0, stream>>>(p->lists, p->empty_items);
    lists_kernel<true><<<grid, THREADS, 0, stream>>>(*p);
    return cudaGetLastError();
}
