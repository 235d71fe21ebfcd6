/* Where the rows of a cache lie, for kernels. Nothing in device memory is trusted: what is unsound is not followed. */
#ifndef NSA_NSA_CACHE_SIMT_CUH
#define NSA_NSA_CACHE_SIMT_CUH

#include "cuda/simt.cuh"
#include "nsa/cache_simt.h"

/* A sequence of the call; length: with its new tokens. */
typedef struct cached {
    int32_t s;
    char *state;
    const int32_t *table;
    seq_range added;
    int64_t old, length;
} cached;

__device__ inline bool is_state(const void *state)
{
    const cache_header *h = (const cache_header *)state;
    return state != NULL && (uintptr_t)state % 64 == 0 && h->magic == CACHE_MAGIC && h->length >= 0 &&
           h->length <= h->longest && h->longest <= INT32_MAX;
}

/* Without a sound state, or without room in its pages, it has no new tokens. */
__device__ inline cached cached_of(const cache_simt &p, int32_t s)
{
    cached x = {s, (char *)p.states[s], p.table + (int64_t)s * p.pages_per_seq, {0, 0}, 0, 0};
    const cache_header *h = (const cache_header *)x.state;
    if (is_state(h) && h->bytes == p.layout.state_bytes) {
        const int64_t room = min64((int64_t)p.pages_per_seq * p.page_size, INT32_MAX);
        const seq_range added = seq_range_of(p.cu, s, p.total, p.max_new);
        x.old = h->length;
        if (x.old + added.n <= room)
            x.added = added;
    }
    x.length = x.old + x.added.n;
    return x;
}

/* The i-th of new tokens times heads; false if no sequence has it. */
__device__ inline bool find_added(const cache_simt &p, int32_t n_heads, int64_t i, cached *x, place *at)
{
    at->s = seq_of_row(p.cu, p.n_seqs, 1, i / n_heads);
    at->head = (int32_t)(i % n_heads);
    *x = cached_of(p, at->s);
    at->seq = x->added;
    at->row = i / n_heads - x->added.start;
    return at->row >= 0 && at->row < x->added.n;
}

__device__ inline int64_t row_bytes(const cache_simt &p, int part)
{
    return (int64_t)(part % 2 == 0 ? p.cfg.c.d_qk : p.cfg.c.d_v) * p.element;
}

/* Row r of a part of the pages. Compressed rows lie with the last stride of tokens of their blocks. */
__device__ inline char *page_row(const cache_simt &p, const cached &x, int part, int head, int64_t r)
{
    const bool cmp = part == CACHE_K_CMP || part == CACHE_V_CMP;
    const int32_t i = (int32_t)r + (cmp ? p.cfg.c.cmp_block / p.cfg.c.cmp_stride - 1 : 0);
    const int32_t rows = (int32_t)p.layout.rows[part], page = min(max(x.table[i / rows], 0), p.n_pages - 1);
    return p.pages + page * p.layout.page_bytes + head * p.layout.page_head_bytes + p.layout.offset[part] +
           i % rows * row_bytes(p, part);
}

/* Row r of a ring. */
__device__ inline char *ring_row(const cache_simt &p, const cached &x, int part, int head, int64_t r)
{
    return x.state + head * p.layout.state_head_bytes + p.layout.offset[part] +
           (int32_t)r % (int32_t)p.layout.rows[part] * row_bytes(p, part);
}

/* New token t - old of one of the call's tensors. */
__device__ inline const char *new_row(const cache_simt &p, const cached &x, const nsa_tensor &t, int head, int64_t r)
{
    return (const char *)t.data + offset_of(t, x.s, x.added.start, r - x.old, head) * p.element;
}

/* Token r of raw or win, K or V, from before the call or of it. */
__device__ inline const char *token_row(const cache_simt &p, const cached &x, int part, int head, int64_t r)
{
    const int branch = p.shared_kv ? 0 : part >= CACHE_WIN_K ? NSA_WIN : NSA_CMP;
    if (r >= x.old)
        return new_row(p, x, part % 2 == 0 ? p.k[branch] : p.v[branch], head, r);
    return p.shared_kv ? page_row(p, x, part % 2 == 0 ? CACHE_SLC_K : CACHE_SLC_V, head, r)
                       : ring_row(p, x, part, head, r);
}

#endif
