/*
 * From tokens and the blocks they have selected to blocks and their tokens, in rising order: what dk and dv walk.
 *
 *     count     how many tokens each block has      a CTA owns 32 blocks of a (sequence, kv head)
 *     plan      where lists begin; items            one CTA: prefix sums
 *     fill      the tokens                          as count
 *
 * An owner goes through all tokens from its first block on, in SEGMENTS parts by as many CTAs, 1024 at a time: a bit
 * for each (block, token) in shared memory, so that the order of slc_idx and repeated entries do not matter; then a
 * warp for each block, whose lanes count and write out the tokens of 32 bits each. Integers only: the same lists in
 * every run.
 *
 * Cost: slc_idx is read by each owner of later tokens, T/(32 slc_block)/2 times: 128 MB at 64k tokens from the L2
 * cache.
 */
#include "cuda/simt.cuh"
#include "ops/slc_attn/slc_attn_bwd_sm90.h"

enum { OWNED = 32, WINDOW = OWNED * WARP, THREADS = OWNED * WARP };

/* Rows of a sequence that an owner of blocks from `key` on looks through in one segment. */
typedef struct row_span {
    int64_t first, end;
} row_span;

static __device__ row_span segment_rows(const seq_range &q, const seq_range &k, int64_t key, int segment)
{
    const int64_t first = max64(0, key - (k.n - q.n)), n = max64(0, q.n - first);
    const int64_t windows = (n + WINDOW - 1) / WINDOW, each = (windows + SEGMENTS - 1) / SEGMENTS * WINDOW;
    const row_span x = {first + segment * each, min64(q.n, first + (segment + 1) * each)};
    return x;
}

/* A bit for each token of rows first .. first + n - 1 that has selected an owned block. */
static __device__ void mark(const nsa_tensor &slc_idx, const int32_t *idx, int n, int topk, int64_t first_block,
                            int64_t slc_block, int64_t t, uint32_t (*tokens_of)[WARP + 1])
{
    enum { AT_ONCE = 4 };
    int token = (int)threadIdx.x / topk, entry = (int)threadIdx.x % topk;
    while (token < n) {
        int32_t block[AT_ONCE];
        int at[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            at[i] = token;
            block[i] = token < n ? __ldg(idx + token * slc_idx.stride_token + entry) : -1;
            token += THREADS / topk;
            entry += THREADS % topk;
            token += entry >= topk;
            entry -= entry >= topk ? topk : 0;
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const int64_t owned = block[i] - first_block;
            if (owned >= 0 && owned < OWNED && block[i] * slc_block <= t + at[i])
                atomicOr(&tokens_of[owned][at[i] / WARP], 1U << at[i] % WARP);
        }
    }
}

template <bool FILL>
static __global__ __launch_bounds__(THREADS) void lists_kernel(const __grid_constant__ slc_backward p)
{
    __shared__ uint32_t tokens_of[OWNED][WARP + 1];
    const nsa_config &c = p.attn.cfg.c;
    const nsa_tensor &slc_idx = p.attn.slc_idx;
    const int64_t n_owners = p.attn.seqs.total_k / ((int64_t)OWNED * c.slc_block) + p.attn.seqs.n;
    const int segment = (int)(blockIdx.x % SEGMENTS);
    const int64_t owner = blockIdx.x / SEGMENTS;
    const int32_t kv_head = (int32_t)(owner / n_owners);
    int32_t s;
    const int64_t key = find_tile(p.attn.seqs.cu_k, p.attn.seqs.n, 1, OWNED * c.slc_block, owner % n_owners, &s);
    const seq_range q = seq_q(p.attn.seqs, s), k = seq_k(p.attn.seqs, s);
    if (key < 0 || key >= k.n)
        return;

    const int lane = lane_index(), warp = (int)threadIdx.x / WARP;
    const int64_t first_block = key / c.slc_block;
    const int64_t list = kv_head * p.lists.n_blocks + k.start / c.slc_block + s + first_block + warp;
    const bool exists = key + (int64_t)warp * c.slc_block < k.n;
    const int32_t room = FILL && exists ? p.lists.count[list] : 0;
    int32_t *tokens = FILL && exists ? p.lists.tokens + p.lists.begin[list] : NULL;
    int32_t n = FILL && exists ? p.lists.segments[list * SEGMENTS + segment] : 0;
    const row_span rows = segment_rows(q, k, key, segment);
    tokens_of[warp][lane] = 0;
    for (int64_t row = rows.first; row < rows.end; row += WINDOW) {
        __syncthreads();
        mark(slc_idx, (const int32_t *)slc_idx.data + offset_of(slc_idx, s, q.start, row, kv_head),
             (int)min64(WINDOW, rows.end - row), c.slc_topk, first_block, c.slc_block, row + k.n - q.n, tokens_of);
        __syncthreads();
        uint32_t mine = tokens_of[warp][lane];
        tokens_of[warp][lane] = 0;
        int32_t end = __popc(mine);
        for (int i = 1; i < WARP; i *= 2) {
            const int32_t before = __shfl_up_sync(~0U, end, i);
            end += lane >= i ? before : 0;
        }
        if (FILL)
            for (int32_t at = n + end - __popc(mine); mine != 0 && at < room; at++, mine &= mine - 1)
                tokens[at] = (int32_t)row + lane * WARP + __ffs((int)mine) - 1;
        n += __shfl_sync(~0U, end, WARP - 1);
    }
    if (!FILL && exists && lane == 0)
        p.lists.segments[list * SEGMENTS + segment] = n;
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

static __global__ __launch_bounds__(THREADS) void plan_kernel(const __grid_constant__ slc_lists p)
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
        const int64_t items = list < p.n_lists ? max64(1, (count + (int64_t)p.item_tokens - 1) / p.item_tokens) : 0;
        const int64_t item = n_items + sum_before(items, &all);
        n_items += all;
        const int64_t part = n_parts + sum_before(items > 1 ? items : 0, &all);
        n_parts += all;
        if (list >= p.n_lists)
            continue;
        p.begin[list] = begin;
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

int launch_slc_lists(const slc_backward *p, nsa_stream stream)
{
    const nsa_config *c = &p->attn.cfg.c;
    const int64_t owners = p->attn.seqs.total_k / ((int64_t)OWNED * c->slc_block) + p->attn.seqs.n;
    const unsigned grid = (unsigned)(owners * c->n_heads_kv * SEGMENTS);
    const size_t bytes = (size_t)p->lists.n_lists * SEGMENTS * sizeof *p->lists.segments;
    const cudaError_t error = cudaMemsetAsync(p->lists.segments, 0, bytes, stream);
    if (error != cudaSuccess || p->lists.n_lists == 0)
        return error;
    lists_kernel<false><<<grid, THREADS, 0, stream>>>(*p);
    plan_kernel<<<1, THREADS, 0, stream>>>(p->lists);
    lists_kernel<true><<<grid, THREADS, 0, stream>>>(*p);
    return cudaGetLastError();
}
