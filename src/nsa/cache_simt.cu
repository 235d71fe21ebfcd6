/*
 * The KV cache's memory on CUDA: new tokens go to their pages, and when all have read them to the rings; between the
 * two the rows that an operation wants are gathered into packed tensors, which every kernel of the operations takes. A
 * warp for each row: this is bound by bytes.
 */
#include "nsa/cache_simt.cuh"

/* By a warp. Rows of pages and rings, and of tensors, are aligned to their elements only. */
static __device__ void copy_row(char *to, const char *from, int64_t bytes, int element)
{
    const int n = (int)(bytes / element);
    if (element == 2)
        for (int c = lane_index(); c < n; c += WARP)
            ((uint16_t *)to)[c] = ((const uint16_t *)from)[c];
    else
        for (int c = lane_index(); c < n; c += WARP)
            ((uint32_t *)to)[c] = ((const uint32_t *)from)[c];
}

static __global__ __launch_bounds__(WARP *WARPS) void append_kernel(const __grid_constant__ cache_simt p)
{
    const int b = p.shared_kv ? 0 : NSA_SLC;
    for (int64_t i = first_item(); i < p.total * p.cfg.c.n_heads_kv; i += item_stride()) {
        cached x;
        place at;
        if (!find_added(p, p.cfg.c.n_heads_kv, i, &x, &at))
            continue;
        const int64_t t = x.old + at.row;
        copy_row(page_row(p, x, CACHE_SLC_K, at.head, t), new_row(p, x, p.k[b], at.head, t), row_bytes(p, 0),
                 p.element);
        copy_row(page_row(p, x, CACHE_SLC_V, at.head, t), new_row(p, x, p.v[b], at.head, t), row_bytes(p, 1),
                 p.element);
    }
}

/* ---- Gathering */

static __device__ int64_t first_new_block(const cache_simt &p, const cached &x)
{
    return n_cmp_seen(p.cfg.c, x.old - 1);
}

/* How many rows of a sequence, or of NSA_CMP: how many tokens these are of. */
static __device__ int32_t gathered_length(const cache_simt &p, const cached &x, gathered what)
{
    if (x.added.n == 0)
        return 0;
    const int64_t first = first_new_block(p, x);
    switch (what) {
    case GATHER_WIN: return (int32_t)min64(x.length, p.cfg.c.win_size - 1 + x.added.n);
    case GATHER_RAW:
        return n_cmp_seen(p.cfg.c, x.length - 1) == first ? 0 : (int32_t)(x.length - first * p.cfg.c.cmp_stride);
    default: return (int32_t)x.length;
    }
}

/* Inclusive, over the lanes. */
static __device__ int32_t prefix_sum(int32_t n)
{
    for (int i = 1; i < WARP; i *= 2) {
        const int32_t below = __shfl_up_sync(~0U, n, i);
        n += lane_index() >= i ? below : 0;
    }
    return n;
}

/* One warp. */
static __global__ void cu_kernel(const __grid_constant__ cache_simt p, const __grid_constant__ cache_cu cu)
{
    int32_t *const to[] = {cu.all, cu.win, cu.raw};
    const gathered what[] = {GATHER_SLC, GATHER_WIN, GATHER_RAW};
    for (int a = 0; a < 3; a++) {
        int32_t start = 0;
        for (int32_t first = 0; first < p.n_seqs; first += WARP) {
            const int32_t s = first + lane_index();
            const int32_t sum = prefix_sum(s < p.n_seqs ? gathered_length(p, cached_of(p, s), what[a]) : 0);
            if (s < p.n_seqs)
                to[a][s + 1] = start + sum;
            start += __shfl_sync(~0U, sum, WARP - 1);
        }
        if (lane_index() == 0)
            to[a][0] = 0;
    }
}

/* Row number `row` of the sequence in what is gathered; part: K or V of it. */
static __device__ const char *gathered_row(const cache_simt &p, const cached &x, gathered what, int v, int head,
                                           int64_t row)
{
    switch (what) {
    case GATHER_CMP: return page_row(p, x, CACHE_K_CMP + v, head, row);
    case GATHER_SLC: return page_row(p, x, CACHE_SLC_K + v, head, row);
    case GATHER_WIN: return token_row(p, x, CACHE_WIN_K + v, head, x.length - gathered_length(p, x, what) + row);
    default: return token_row(p, x, CACHE_RAW_K + v, head, first_new_block(p, x) * p.cfg.c.cmp_stride + row);
    }
}

static __global__ __launch_bounds__(WARP *WARPS) void gather_kernel(const __grid_constant__ cache_simt p,
                                                                    const __grid_constant__ gather_simt to)
{
    const int n_heads = p.cfg.c.n_heads_kv, div = to.what == GATHER_CMP ? p.cfg.c.cmp_stride : 1;
    for (int64_t i = first_item(); i < to.total * n_heads; i += item_stride()) {
        const int32_t s = seq_of_row(to.cu, p.n_seqs, div, i / n_heads), head = (int32_t)(i % n_heads);
        const cached x = cached_of(p, s);
        const int64_t row = i / n_heads - to.cu[s] / div, n = to.cu[s + 1] - to.cu[s];
        if (row >= (to.what == GATHER_CMP ? n_cmp_seen(p.cfg.c, n - 1) : n))
            continue;
        const nsa_tensor *const tensors[] = {&to.k, &to.v};
        for (int v = 0; v < 2; v++)
            copy_row((char *)tensors[v]->data + offset_of(*tensors[v], s, 0, i / n_heads, head) * p.element,
                     gathered_row(p, x, to.what, v, head, row), row_bytes(p, v), p.element);
    }
}

/* Of GATHER_RAW's rows i is the block number first_new_block + i. */
static __global__ __launch_bounds__(WARP *WARPS) void scatter_kernel(const __grid_constant__ cache_simt p,
                                                                     const __grid_constant__ gather_simt from)
{
    const int n_heads = p.cfg.c.n_heads_kv, div = p.cfg.c.cmp_stride;
    for (int64_t i = first_item(); i < from.total * n_heads; i += item_stride()) {
        const int32_t s = seq_of_row(from.cu, p.n_seqs, div, i / n_heads), head = (int32_t)(i % n_heads);
        const cached x = cached_of(p, s);
        const int64_t row = i / n_heads - from.cu[s] / div;
        if (row >= n_cmp_seen(p.cfg.c, (int64_t)from.cu[s + 1] - from.cu[s] - 1))
            continue;
        const nsa_tensor *const tensors[] = {&from.k, &from.v};
        for (int v = 0; v < 2; v++)
            copy_row(page_row(p, x, CACHE_K_CMP + v, head, first_new_block(p, x) + row),
                     (const char *)tensors[v]->data + offset_of(*tensors[v], s, 0, i / n_heads, head) * p.element,
                     row_bytes(p, v), p.element);
    }
}

/* ---- States */

/* A block for each sequence: its rings take up the new tokens, then its length is the new one. */
static __global__ __launch_bounds__(WARP *WARPS) void finish_kernel(const __grid_constant__ cache_simt p)
{
    for (int32_t s = blockIdx.x; s < p.n_seqs; s += gridDim.x) {
        const cached x = cached_of(p, s);
        __syncthreads(); /* all have read the length */
        const int n_heads = p.cfg.c.n_heads_kv;
        for (int part = CACHE_RAW_K; part < CACHE_N_PARTS && !p.shared_kv; part++) {
            const int64_t first = max64(x.old, x.length - p.layout.rows[part]);
            for (int64_t i = threadIdx.x / WARP; i < (x.length - first) * n_heads; i += WARPS) {
                const int64_t t = first + i / n_heads;
                const int head = (int)(i % n_heads);
                copy_row(ring_row(p, x, part, head, t), token_row(p, x, part, head, t), row_bytes(p, part), p.element);
            }
        }
        if (threadIdx.x == 0 && x.added.n > 0) {
            cache_header *h = (cache_header *)x.state;
            h->longest = max64(h->longest, x.length);
            h->length = x.length;
        }
    }
}

static __global__ void reset_kernel(cache_header *h, int64_t bytes)
{
    const cache_header empty = {CACHE_MAGIC, bytes, 0, 0, 0};
    *h = empty;
}

static __global__ void length_kernel(const cache_header *h, int64_t *n_tokens)
{
    *n_tokens = is_state(h) ? h->length : -1;
}

static __global__ void drop_kernel(cache_header *h, int64_t bytes, int32_t max_draft, int64_t n_tokens)
{
    if (is_state(h) && h->bytes == bytes && n_tokens >= max64(0, h->longest - max_draft) && n_tokens <= h->length)
        h->length = n_tokens;
}

/* ---- Launches */

int launch_cache_append(const cache_simt *p, nsa_stream stream)
{
    LAUNCH_WARPS(append_kernel, p->total * p->cfg.c.n_heads_kv, stream, *p);
    return cudaGetLastError();
}

int launch_cache_cu(const cache_simt *p, const cache_cu *cu, nsa_stream stream)
{
    cu_kernel<<<1, WARP, 0, stream>>>(*p, *cu);
    return cudaGetLastError();
}

int launch_cache_gather(const cache_simt *p, const gather_simt *to, nsa_stream stream)
{
    LAUNCH_WARPS(gather_kernel, to->total * p->cfg.c.n_heads_kv, stream, *p, *to);
    return cudaGetLastError();
}

int launch_cache_scatter(const cache_simt *p, const gather_simt *from, nsa_stream stream)
{
    LAUNCH_WARPS(scatter_kernel, from->total * p->cfg.c.n_heads_kv, stream, *p, *from);
    return cudaGetLastError();
}

int launch_cache_finish(const cache_simt *p, nsa_stream stream)
{
    if (p->n_seqs > 0)
        finish_kernel<<<grid_of(p->n_seqs, 1), WARP * WARPS, 0, stream>>>(*p);
    return cudaGetLastError();
}

int launch_cache_reset(void *state, int64_t bytes, nsa_stream stream)
{
    reset_kernel<<<1, 1, 0, stream>>>((cache_header *)state, bytes);
    return cudaGetLastError();
}

int launch_cache_length(const void *state, int64_t *n_tokens, nsa_stream stream)
{
    length_kernel<<<1, 1, 0, stream>>>((const cache_header *)state, n_tokens);
    return cudaGetLastError();
}

int launch_cache_drop(void *state, int64_t bytes, int32_t max_draft, int64_t n_tokens, nsa_stream stream)
{
    drop_kernel<<<1, 1, 0, stream>>>((cache_header *)state, bytes, max_draft, n_tokens);
    return cudaGetLastError();
}
