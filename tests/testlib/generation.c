#include "testlib/generation.h"

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

static void *on_device(const generation *g, void *p)
{
    args_on_device(g->ctx, &p, sizeof p);
    return p;
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
    for (int s = 0; s < b->n_seqs; s++)
        g->states[s] = guarded(g->state_bytes, s % 2 == 0 ? FLUSH_RIGHT : FLUSH_LEFT);
    begin_call(ctx, 0);
    for (int s = 0; s < b->n_seqs; s++)
        assert_ok(nsa_cache_reset(ctx, &whole->cfg, &g->cache, on_device(g, g->states[s]), NULL));
    end_call(ctx);
}

/* The entries that the new lengths need, among others that must not be read. */
static const int32_t *table_for_call(const generation *g)
{
    const int32_t bad[] = {INT32_MIN, -1, (int32_t)g->cache.n_pages, INT32_MAX};
    const int32_t n_seqs = g->whole->batch.n_seqs, *cu = g->added.cu_seqlens_q;
    int32_t *table = guarded((size_t)(n_seqs * g->pages_per_seq) * sizeof *table, FLUSH_RIGHT);
    for (int32_t i = 0; i < n_seqs * g->pages_per_seq; i++) {
        const int32_t s = i / g->pages_per_seq;
        const int64_t length = g->held[s] + cu[s + 1] - cu[s];
        const bool needed = (int64_t)(i % g->pages_per_seq) * g->cache.page_size < length;
        table[i] = needed ? g->page_table[i] : bad[i % 4];
    }
    return table;
}

/* Room for the new tokens' rows of x, or of a result like x. */
static test_tensor chunk_like(const generation *g, const test_tensor *x, layout as)
{
    return tensor_new(&g->whole->cfg, &g->added, SIDE_Q, x->e.n_heads, x->e.d, x->t.dtype, as);
}

static void *row_of(const test_tensor *x, int32_t s, int64_t row, int32_t head)
{
    return dtype_at_mut(x->t.data, x->t.dtype, tensor_index(x, s, row, head, 0));
}

/* The tokens held[s] .. of every sequence of x. */
static nsa_tensor chunk(const generation *g, const test_tensor *x)
{
    const test_tensor y = chunk_like(g, x, layout_broadcasts(x->layout) ? x->layout : g->as);
    for (int32_t s = 0; s < g->added.n_seqs; s++)
        for (int64_t t = 0; t < tensor_rows(&y, s); t++)
            for (int32_t h = 0; h < x->e.n_heads; h++)
                memcpy(row_of(&y, s, t, h), row_of(x, s, g->held[s] + t, h), (size_t)x->e.d * dtype_size(x->t.dtype));
    return y.t;
}

/* The call that appends n_new[s] tokens to each sequence. */
static nsa_cache_args args_of(generation *g, const int32_t n_new[])
{
    const nsa_case *w = g->whole;
    seq_lengths lengths[GENERATION_MAX_SEQS] = {{0, 0}};
    for (int s = 0; s < w->batch.n_seqs; s++)
        lengths[s].q = n_new[s];
    g->added = batch_of(lengths, w->batch.n_seqs);
    g->o = chunk_like(g, &w->o, g->as);
    g->slc_idx = chunk_like(g, &w->slc_idx, g->as);
    nsa_cache_args args = {
        .n_seqs = w->batch.n_seqs,
        .max_seqlen = g->added.max_seqlen_q,
        .total = g->added.total_q,
        .cu_seqlens = g->added.cu_seqlens_q,
        .states = g->states,
        .page_table = table_for_call(g),
        .pages_per_seq = g->pages_per_seq,
        .gate = chunk(g, &w->gate),
        .phi_k = &w->phi_k,
        .phi_v = &w->phi_v,
        .o = g->o.t,
        .slc_idx = g->slc_idx.t,
    };
    for (int b = 0; b < (g->cache.shared_kv != 0 ? 1 : NSA_N_BRANCHES); b++)
        args.k[b] = chunk(g, &w->k[b]), args.v[b] = chunk(g, &w->v[b]);
    for (int b = 0; b < NSA_N_BRANCHES; b++)
        args.q[b] = chunk(g, &w->q[b]);
    return args;
}

/* The rows of a chunk's output equal those of the whole. */
static void assert_rows(const generation *g, const char *what, const test_tensor *got, const test_tensor *whole)
{
    assert_padding_intact(what, got);
    for (int32_t s = 0; s < got->e.n_seqs; s++)
        for (int64_t t = 0; t < tensor_rows(got, s); t++)
            for (int32_t h = 0; h < got->e.n_heads; h++)
                if (memcmp(row_of(got, s, t, h), row_of(whole, s, g->held[s] + t, h),
                           (size_t)got->e.d * dtype_size(got->t.dtype)) != 0)
                    test_fail("%s of sequence %d, token %lld, head %d differs from the whole: %.9g, %.9g", what, s,
                              (long long)(g->held[s] + t), h, tensor_get(got, s, t, h, 0),
                              tensor_get(whole, s, g->held[s] + t, h, 0));
}

/* The call, and then the lengths. */
static void append(const generation *g, nsa_cache_args args, bool decode, int64_t *held)
{
    const nsa_case *w = g->whole;
    const size_t states_bytes = (size_t)args.n_seqs * sizeof *args.states;
    size_t bytes = 0;
    assert_ok((decode ? nsa_decode_workspace : nsa_prefill_workspace)(g->ctx, &w->cfg, &g->cache, &args, &bytes));
    void *states = guarded(states_bytes, FLUSH_RIGHT);
    args.states = memcpy(states, g->states, states_bytes);
    void *ws = begin_call(g->ctx, bytes);
    pointers_on_device(g->ctx, states, states_bytes);
    nsa_cache cache = g->cache;
    nsa_phi phi_k, phi_v;
    args_on_device(g->ctx, &cache, sizeof cache);
    args_on_device(g->ctx, &args, sizeof args);
    args.phi_k = phi_on_device(g->ctx, &w->phi_k, &phi_k), args.phi_v = phi_on_device(g->ctx, &w->phi_v, &phi_v);
    assert_ok((decode ? nsa_decode : nsa_prefill)(g->ctx, &w->cfg, &cache, &args, ws, bytes, NULL));
    for (int s = 0; s < args.n_seqs; s++)
        assert_ok(nsa_cache_length(g->ctx, on_device(g, g->states[s]), on_device(g, held + s), NULL));
    end_call(g->ctx);
}

void generation_step(generation *g, const int32_t n_new[], bool decode)
{
    const nsa_case *w = g->whole;
    const nsa_cache_args args = args_of(g, n_new);
    int64_t *held = guarded(GENERATION_MAX_SEQS * sizeof *held, FLUSH_RIGHT);
    append(g, args, decode, held);
    assert_slack_intact();
    assert_rows(g, "slc_idx", &g->slc_idx, &w->slc_idx);
    assert_rows(g, "o", &g->o, &w->o);
    for (int s = 0; s < w->batch.n_seqs; s++) {
        g->held[s] += n_new[s];
        g->longest[s] = max_i64(g->longest[s], g->held[s]);
        require(held[s] == g->held[s]);
    }
}

void generation_drop(generation *g, int32_t s, int64_t n_tokens)
{
    const int64_t lowest = max_i64(0, g->longest[s] - g->cache.max_draft);
    const bool allowed = n_tokens >= lowest && n_tokens <= g->held[s];
    begin_call(g->ctx, 0);
    const nsa_status status =
        nsa_cache_drop(g->ctx, &g->whole->cfg, &g->cache, on_device(g, g->states[s]), n_tokens, NULL);
    end_call(g->ctx);
    require(status == (allowed || g->ctx->cuda ? NSA_OK : NSA_ERR_INVALID_ARGUMENT));
    if (allowed)
        g->held[s] = n_tokens;
}
