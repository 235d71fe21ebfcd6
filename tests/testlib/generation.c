#include "testlib/generation.h"

static void assert_ok(nsa_status status)
{
    if (status != NSA_OK)
        test_fail("%s: %s", nsa_status_string(status), nsa_last_error());
}

/* Pages of the pool, each once, in any order. */
static int32_t *shuffled_pages(int32_t n, rng *r)
{
    int32_t *pages = guarded((size_t)n * sizeof *pages, FLUSH_RIGHT);
    for (int32_t i = 0; i < n; i++)
        pages[i] = i;
    for (int32_t i = n - 1; i > 0; i--) {
        const int32_t j = rng_range(r, 0, i), page = pages[i];
        pages[i] = pages[j], pages[j] = page;
    }
    return pages;
}

void generation_start(generation *g, const nsa_ctx *ctx, const nsa_case *whole, int32_t page_size, int32_t max_draft,
                      int32_t spare_pages, rng *r)
{
    const nsa_batch *b = &whole->batch;
    *g = (generation){.ctx = ctx, .whole = whole};
    g->pages_per_seq = (b->max_seqlen_q + page_size - 1) / page_size;
    g->cache = (nsa_cache){.page_size = page_size,
                           .max_draft = max_draft,
                           .shared_kv = whole->shape.shared,
                           .dtype = whole->shape.dtype,
                           .n_pages = b->n_seqs * g->pages_per_seq + spare_pages};
    assert_ok(nsa_cache_page_bytes(ctx, &whole->cfg, &g->cache, &g->page_bytes));
    assert_ok(nsa_cache_state_bytes(ctx, &whole->cfg, &g->cache, &g->state_bytes));
    g->cache.pages = guarded(g->page_bytes * (size_t)g->cache.n_pages, FLUSH_RIGHT);
    const size_t table_bytes = (size_t)(b->n_seqs * g->pages_per_seq) * sizeof *g->page_table;
    g->page_table = guarded(table_bytes, FLUSH_RIGHT);
    memcpy(g->page_table, shuffled_pages((int32_t)g->cache.n_pages, r), table_bytes);
    for (int s = 0; s < b->n_seqs; s++) {
        g->states[s] = guarded(g->state_bytes, FLUSH_RIGHT);
        assert_ok(nsa_cache_reset(ctx, &whole->cfg, &g->cache, g->states[s]));
    }
}

/* The tokens held[s] .. of every sequence of x, as a packed tensor. */
static nsa_tensor chunk(const generation *g, const test_tensor *x, const int32_t *cu)
{
    const int32_t n_seqs = g->whole->batch.n_seqs;
    const nsa_dtype dtype = x->t.dtype;
    const size_t row = (size_t)x->e.d * dtype_size(dtype);
    char *to = guarded(row * (size_t)x->e.n_heads * (size_t)cu[n_seqs], FLUSH_RIGHT);
    const nsa_tensor packed = nsa_packed(to, dtype, x->e.n_heads, x->e.d);
    for (int32_t s = 0; s < n_seqs; s++)
        for (int64_t t = 0; t < cu[s + 1] - cu[s]; t++)
            for (int32_t h = 0; h < x->e.n_heads; h++)
                memcpy(tensor_at(&packed, s, cu[s], t, h),
                       (char *)x->t.data + tensor_index(x, s, g->held[s] + t, h, 0) * (int64_t)dtype_size(dtype), row);
    return packed;
}

nsa_cache_args generation_args(const generation *g, const int32_t *cu)
{
    const nsa_case *w = g->whole;
    nsa_cache_args args = {
        .n_seqs = w->batch.n_seqs,
        .total = cu[w->batch.n_seqs],
        .cu_seqlens = cu,
        .states = g->states,
        .page_table = g->page_table,
        .pages_per_seq = g->pages_per_seq,
        .gate = chunk(g, &w->gate, cu),
        .phi_k = &w->phi_k,
        .phi_v = &w->phi_v,
        .o = chunk(g, &w->d_o, cu),
        .slc_idx = chunk(g, &w->slc_idx, cu),
    };
    for (int b = 0; b < (g->cache.shared_kv != 0 ? 1 : NSA_N_BRANCHES); b++)
        args.k[b] = chunk(g, &w->k[b], cu), args.v[b] = chunk(g, &w->v[b], cu);
    for (int b = 0; b < NSA_N_BRANCHES; b++)
        args.q[b] = chunk(g, &w->q[b], cu);
    return args;
}

/* The rows of a chunk's output equal those of the whole. */
static void assert_rows(const generation *g, const char *what, const nsa_tensor *got, const test_tensor *whole,
                        const int32_t *cu)
{
    const size_t row = (size_t)whole->e.d * dtype_size(got->dtype);
    for (int32_t s = 0; s < g->whole->batch.n_seqs; s++)
        for (int64_t t = 0; t < cu[s + 1] - cu[s]; t++)
            for (int32_t h = 0; h < whole->e.n_heads; h++) {
                const int64_t at = tensor_index(whole, s, g->held[s] + t, h, 0);
                if (memcmp(tensor_at(got, s, cu[s], t, h), dtype_at(whole->t.data, got->dtype, at), row) != 0)
                    test_fail("%s of sequence %d, token %lld, head %d differs from the whole: %.9g, %.9g", what, s,
                              (long long)(g->held[s] + t), h, dtype_get(tensor_at(got, s, cu[s], t, h), got->dtype, 0),
                              dtype_get(whole->t.data, got->dtype, at));
            }
}

void generation_step(generation *g, const int32_t n_new[], bool decode)
{
    const nsa_case *w = g->whole;
    int32_t cu[GENERATION_MAX_SEQS + 1] = {0};
    for (int s = 0; s < w->batch.n_seqs; s++)
        cu[s + 1] = cu[s] + n_new[s];
    const nsa_cache_args args = generation_args(g, cu);
    size_t bytes = 0;
    if (decode) {
        assert_ok(nsa_decode_workspace(g->ctx, &w->cfg, &g->cache, &args, &bytes));
        assert_ok(nsa_decode(g->ctx, &w->cfg, &g->cache, &args, guarded(bytes, FLUSH_RIGHT), bytes, NULL));
    } else {
        assert_ok(nsa_prefill_workspace(g->ctx, &w->cfg, &g->cache, &args, &bytes));
        assert_ok(nsa_prefill(g->ctx, &w->cfg, &g->cache, &args, guarded(bytes, FLUSH_RIGHT), bytes, NULL));
    }
    assert_rows(g, "slc_idx", &args.slc_idx, &w->slc_idx, cu);
    assert_rows(g, "o", &args.o, &w->o, cu);
    for (int s = 0; s < w->batch.n_seqs; s++) {
        g->held[s] += n_new[s];
        g->longest[s] = max_i64(g->longest[s], g->held[s]);
        int64_t held = -1;
        assert_ok(nsa_cache_length(g->ctx, g->states[s], &held));
        assert_int_equal(held, g->held[s]);
    }
}

void generation_drop(generation *g, int32_t s, int64_t n_tokens)
{
    const int64_t lowest = max_i64(0, g->longest[s] - g->cache.max_draft);
    const bool allowed = n_tokens >= lowest && n_tokens <= g->held[s];
    const nsa_status status = nsa_cache_drop(g->ctx, &g->whole->cfg, &g->cache, g->states[s], n_tokens);
    assert_int_equal(status, allowed ? NSA_OK : NSA_ERR_INVALID_ARGUMENT);
    if (allowed)
        g->held[s] = n_tokens;
}
