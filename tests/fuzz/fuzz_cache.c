/*
 * A KV cache led any way: tokens appended in chunks, dropped, pages moved, and between them calls with hostile page
 * tables, lengths, states and sizes. The outputs stay those of one nsa_forward over the whole, bit for bit; a hostile
 * call is refused and changes nothing, or is one that could be meant and stays inside of the pages.
 */
#include "fuzz/fuzz.h"
#include "nsa/kv_cache.h"
#include "testlib/generation.h"

/* ---- The problem */

static nsa_config draw_config(fuzz_input *in)
{
    nsa_config cfg;
    nsa_config_init(&cfg);
    cfg.cmp_stride = fuzz_range(in, 1, 4);
    const int32_t per_block = fuzz_range(in, 1, 3);
    cfg.cmp_block = cfg.cmp_stride * per_block;
    cfg.slc_block = cfg.cmp_stride * (per_block + fuzz_range(in, 0, 3));
    cfg.slc_n_init = fuzz_range(in, 0, 2);
    cfg.slc_n_local = fuzz_range(in, 0, 2);
    cfg.slc_topk = cfg.slc_n_init + cfg.slc_n_local + fuzz_range(in, 0, 3);
    cfg.slc_topk = cfg.slc_topk == 0 ? 1 : cfg.slc_topk;
    cfg.win_size = fuzz_range(in, 1, 20);
    return cfg;
}

static nsa_batch draw_batch(fuzz_input *in)
{
    seq_lengths lengths[GENERATION_MAX_SEQS];
    const int32_t n = fuzz_range(in, 1, GENERATION_MAX_SEQS);
    for (int32_t s = 0; s < n; s++)
        lengths[s].q = lengths[s].k = fuzz_range(in, 1, 48);
    return batch_of(lengths, n);
}

static nsa_shape draw_shape(fuzz_input *in)
{
    return (nsa_shape){
        .group = fuzz_range(in, 1, 3),
        .n_heads_kv = fuzz_range(in, 1, 2),
        .d_qk = fuzz_range(in, 1, 9),
        .d_v = fuzz_range(in, 1, 9),
        .dtype = (nsa_dtype)fuzz_range(in, NSA_F32, NSA_F64),
        .shared = fuzz_range(in, 0, 1) != 0,
        .token_gate = fuzz_range(in, 0, 1) != 0,
        .phi = (nsa_phi_kind)fuzz_range(in, NSA_PHI_MEAN, NSA_PHI_MLP),
        .per_head = fuzz_range(in, 0, 1) != 0,
    };
}

/* ---- What a caller may do */

static void append(generation *g, fuzz_input *in)
{
    const nsa_batch *b = &g->whole->batch;
    int32_t n_new[GENERATION_MAX_SEQS];
    const bool decode = fuzz_range(in, 0, 1) != 0;
    for (int s = 0; s < b->n_seqs; s++) {
        const int32_t rest = b->cu_seqlens_q[s + 1] - b->cu_seqlens_q[s] - (int32_t)g->held[s];
        const int32_t n = decode ? fuzz_range(in, 0, 2) : fuzz_range(in, 0, 30);
        n_new[s] = n < rest ? n : rest;
    }
    generation_step(g, n_new, decode);
}

static char *page_at(const generation *g, int32_t page)
{
    return (char *)g->cache.pages + (size_t)page * g->page_bytes;
}

/* Two pages change places, and the tables say so; a state moves to other memory. */
static void move(generation *g, fuzz_input *in)
{
    const int32_t last = (int32_t)g->cache.n_pages - 1, a = fuzz_range(in, 0, last), b = fuzz_range(in, 0, last);
    char *copy = guarded(g->page_bytes, FLUSH_RIGHT);
    memcpy(copy, page_at(g, a), g->page_bytes);
    memmove(page_at(g, a), page_at(g, b), g->page_bytes);
    memcpy(page_at(g, b), copy, g->page_bytes);
    for (int32_t i = 0; i < g->whole->batch.n_seqs * g->pages_per_seq; i++)
        g->page_table[i] = g->page_table[i] == a ? b : g->page_table[i] == b ? a : g->page_table[i];

    void **state = &g->states[fuzz_range(in, 0, g->whole->batch.n_seqs - 1)];
    void *elsewhere = guarded(g->state_bytes, FLUSH_RIGHT);
    memcpy(elsewhere, *state, g->state_bytes);
    memset(*state, POISON_BYTE, g->state_bytes);
    *state = elsewhere;
}

static void reset(generation *g, fuzz_input *in)
{
    const int s = fuzz_range(in, 0, g->whole->batch.n_seqs - 1);
    FUZZ_CHECK(nsa_cache_reset(g->ctx, &g->whole->cfg, &g->cache, g->states[s], NULL) == NSA_OK);
    g->held[s] = g->longest[s] = 0;
}

/* ---- What a caller should not do */

enum { MAX_NEW = 600 }; /* more than all pages hold */

typedef struct hostile_call {
    nsa_config cfg;
    nsa_cache cache;
    nsa_cache_args args;
    int32_t cu[GENERATION_MAX_SEQS + 1];
    void *states[GENERATION_MAX_SEQS];
} hostile_call;

static void change_table(hostile_call *h, const generation *g, fuzz_input *in)
{
    const int32_t n = g->whole->batch.n_seqs, per_seq = fuzz_range(in, 0, g->pages_per_seq + 1);
    int32_t *table = guarded((size_t)(n * per_seq) * sizeof *table, FLUSH_RIGHT);
    const int32_t last = (int32_t)g->cache.n_pages - 1;
    for (int32_t i = 0; i < n * per_seq; i++)
        table[i] = i < n * g->pages_per_seq && fuzz_range(in, 0, 3) > 0 ? g->page_table[i] : fuzz_hostile(in, 0, last);
    h->args.page_table = fuzz_range(in, 0, 15) == 15 ? NULL : table;
    h->args.pages_per_seq = fuzz_range(in, 0, 15) == 15 ? -per_seq : per_seq;
}

static void change_lengths(hostile_call *h, fuzz_input *in)
{
    for (int i = 0; i <= h->args.n_seqs; i++) {
        const bool rises = i > 0 && h->cu[i - 1] < MAX_NEW && fuzz_range(in, 0, 1) != 0;
        h->cu[i] = rises ? h->cu[i - 1] + fuzz_range(in, 0, 9) : fuzz_hostile(in, 0, 9);
    }
    h->args.total = fuzz_range(in, 0, 3) > 0 ? h->cu[h->args.n_seqs] : fuzz_hostile64(in, 0, 20);
}

/* A state of other lengths than those that its rings hold. */
static void *false_state(const generation *g, fuzz_input *in, int s)
{
    if (s >= g->whole->batch.n_seqs)
        return NULL;
    cache_header *state = guarded(g->state_bytes, FLUSH_RIGHT);
    memcpy(state, g->states[s], g->state_bytes);
    state->length = fuzz_hostile64(in, 0, 100);
    state->longest = fuzz_range(in, 0, 1) == 0 ? state->length : fuzz_hostile64(in, 0, 100);
    return state;
}

static void change_states(hostile_call *h, const generation *g, fuzz_input *in)
{
    const int s = fuzz_range(in, 0, GENERATION_MAX_SEQS - 1);
    switch (fuzz_range(in, 0, 5)) {
    case 0: h->states[s] = NULL; break;
    case 1: h->states[s] = h->states[fuzz_range(in, 0, GENERATION_MAX_SEQS - 1)]; break;
    case 2: h->states[s] = guarded(ARENA_ALIGN, FLUSH_RIGHT); break; /* never reset */
    case 3: h->states[s] = (char *)guarded(2 * ARENA_ALIGN, FLUSH_RIGHT) + fuzz_range(in, 1, ARENA_ALIGN - 1); break;
    case 4: h->states[s] = false_state(g, in, s); break;
    default: h->args.n_seqs = fuzz_range(in, 0, 1) == 0 ? -1 : fuzz_range(in, 0, h->args.n_seqs); break;
    }
}

/* Memory is what it was, so sizes that nobody can check may only shrink. */
static void change_sizes(hostile_call *h, fuzz_input *in)
{
    nsa_cache *c = &h->cache;
    switch (fuzz_range(in, 0, 6)) {
    case 0: c->n_pages = fuzz_range(in, -1, (int32_t)c->n_pages); break;
    case 1: c->max_draft = fuzz_hostile(in, 0, 9); break;
    case 2: c->shared_kv = c->shared_kv == 0; break;
    case 3: c->page_size -= fuzz_range(in, 0, c->page_size); break;
    case 4: h->cfg.win_size = fuzz_hostile(in, 1, 30); break;
    case 5: h->cfg.cmp_block = fuzz_range(in, 0, h->cfg.cmp_block); break;
    default: {
        const nsa_dtype dtype = (nsa_dtype)fuzz_hostile(in, NSA_F32, NSA_I32);
        c->dtype = dtype_size(dtype) > dtype_size(c->dtype) ? NSA_I32 : dtype;
    }
    }
}

/* A copy of all that the cache is, to compare with or to go back to. */
typedef struct snapshot {
    char *pages, *states[GENERATION_MAX_SEQS];
} snapshot;

static void *copy_of(const void *data, size_t bytes)
{
    return memcpy(guarded(bytes, FLUSH_RIGHT), data, bytes);
}

static snapshot take_snapshot(const generation *g)
{
    snapshot x = {.pages = copy_of(g->cache.pages, g->page_bytes * (size_t)g->cache.n_pages)};
    for (int s = 0; s < g->whole->batch.n_seqs; s++)
        x.states[s] = copy_of(g->states[s], g->state_bytes);
    return x;
}

static void check_unchanged(const generation *g, const snapshot *x)
{
    FUZZ_CHECK(memcmp(x->pages, g->cache.pages, g->page_bytes * (size_t)g->cache.n_pages) == 0);
    for (int s = 0; s < g->whole->batch.n_seqs; s++)
        FUZZ_CHECK(memcmp(x->states[s], g->states[s], g->state_bytes) == 0);
}

static void go_back(const generation *g, const snapshot *x)
{
    memcpy(g->cache.pages, x->pages, g->page_bytes * (size_t)g->cache.n_pages);
    for (int s = 0; s < g->whole->batch.n_seqs; s++)
        memcpy(g->states[s], x->states[s], g->state_bytes);
}

/* A packed tensor of NaN. */
static nsa_tensor nan_tensor(int64_t n, nsa_dtype dtype, int32_t n_heads, int32_t d)
{
    const size_t bytes = (size_t)(n * n_heads * d) * dtype_size(dtype);
    return nsa_packed(guarded(bytes, FLUSH_RIGHT), dtype, n_heads, d);
}

/* Of just the size that the lengths, if they can be, ask for. */
static void give_tensors(hostile_call *h)
{
    const nsa_config *cfg = &h->cfg;
    const nsa_dtype dtype = h->cache.dtype;
    const int64_t n = h->args.total > 0 && h->args.total <= MAX_NEW ? h->args.total : 0;
    for (int b = 0; b < NSA_N_BRANCHES; b++) {
        h->args.q[b] = nan_tensor(n, dtype, cfg->n_heads_q, cfg->d_qk);
        h->args.k[b] = nan_tensor(n, dtype, cfg->n_heads_kv, cfg->d_qk);
        h->args.v[b] = nan_tensor(n, dtype, cfg->n_heads_kv, cfg->d_v);
    }
    h->args.gate = nan_tensor(n, dtype, cfg->n_heads_q, NSA_N_BRANCHES);
    h->args.o = nan_tensor(n, dtype, cfg->n_heads_q, cfg->d_v);
    h->args.slc_idx = nan_tensor(n, NSA_I32, cfg->n_heads_kv, cfg->slc_topk);
}

static void run_hostile(const generation *g, const hostile_call *h)
{
    const snapshot before = take_snapshot(g);
    size_t bytes = 0;
    const nsa_status status = nsa_prefill_workspace(g->ctx, &h->cfg, &h->cache, &h->args, &bytes);
    if (status != NSA_OK) {
        FUZZ_CHECK(nsa_prefill(g->ctx, &h->cfg, &h->cache, &h->args, g->states[0], SIZE_MAX, NULL) == status);
        check_unchanged(g, &before);
        return;
    }
    if (bytes > 0)
        FUZZ_CHECK(nsa_prefill(g->ctx, &h->cfg, &h->cache, &h->args, g->states[0], bytes - 1, NULL) ==
                   NSA_ERR_WORKSPACE);
    check_unchanged(g, &before);
    FUZZ_CHECK(h->args.total <= MAX_NEW);
    FUZZ_CHECK(nsa_prefill(g->ctx, &h->cfg, &h->cache, &h->args, guarded(bytes, FLUSH_RIGHT), bytes, NULL) == NSA_OK);
    go_back(g, &before);
}

static void call_hostile(generation *g, fuzz_input *in)
{
    hostile_call h = {.cfg = g->whole->cfg, .cache = g->cache};
    h.args = (nsa_cache_args){.n_seqs = g->whole->batch.n_seqs,
                              .cu_seqlens = h.cu,
                              .states = h.states,
                              .page_table = g->page_table,
                              .pages_per_seq = g->pages_per_seq,
                              .phi_k = &g->whole->phi_k,
                              .phi_v = &g->whole->phi_v};
    memcpy(h.states, g->states, sizeof h.states);
    for (int i = 1; i <= h.args.n_seqs; i++)
        h.cu[i] = h.cu[i - 1] + fuzz_range(in, 0, 9);
    h.args.total = h.cu[h.args.n_seqs];
    const uint8_t what = fuzz_byte(in);
    if ((what & 1) != 0)
        change_table(&h, g, in);
    if ((what & 2) != 0)
        change_lengths(&h, in);
    if ((what & 4) != 0)
        change_states(&h, g, in);
    if ((what & 8) != 0)
        change_sizes(&h, in);
    give_tensors(&h);
    run_hostile(g, &h);
}

/* ---- */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    enum { MAX_STEPS = 32 };
    fuzz_input in = {data, size};
    testlib_reset();
    nsa_ctx contexts[MAX_CONTEXTS];
    const int n_contexts = test_contexts(contexts, 1);
    const nsa_ctx *ctx = &contexts[fuzz_range(&in, 0, n_contexts - 1)];
    const nsa_config cfg = draw_config(&in);
    const nsa_batch batch = draw_batch(&in);
    const nsa_shape shape = draw_shape(&in);
    const int32_t page_size = cfg.slc_block * fuzz_range(&in, 1, 3), max_draft = fuzz_range(&in, 0, 5);
    rng r = {fuzz_byte(&in)};

    nsa_case whole;
    nsa_case_init(&whole, &cfg, &batch, &shape, &r);
    run_forward(ctx, &whole, &whole.fwd);
    generation g;
    generation_start(&g, ctx, &whole, page_size, max_draft, 2, &r);
    for (int i = 0; i < MAX_STEPS && in.left > 0; i++)
        switch (fuzz_range(&in, 0, 7)) {
        case 0: move(&g, &in); break;
        case 1: reset(&g, &in); break;
        case 2:
        case 3: generation_drop(&g, fuzz_range(&in, 0, batch.n_seqs - 1), fuzz_hostile64(&in, -1, 50)); break;
        case 4:
        case 5: call_hostile(&g, &in); break;
        default: append(&g, &in); break;
        }
    return 0;
}
