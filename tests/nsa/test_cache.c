/* Generation over the KV cache: chunks of any size, several sequences at once, drops and pages in any order give, row
 * for row and bit for bit, what one nsa_forward over the whole gives. Memory that was never written is NaN. */
#include "testlib/nsa_case.h"

enum { MAX_SEQS = 3, PAGE = 32, MAX_DRAFT = 5, MAX_PAGES = 8, POOL = MAX_SEQS * MAX_PAGES + 3, MAX_CHUNK = 40 };

static const nsa_config blocks = {sizeof(nsa_config), 0, 0, 0, 0, 8, 4, 16, 4, 1, 1, 13, 0.0};
static const seq_lengths lengths[MAX_SEQS] = {{203, 203}, {8, 8}, {131, 131}};

static const nsa_shape shapes[] = {
    {4, 2, 16, 16, NSA_F32, LAYOUT_THD, true, false, NSA_PHI_MLP, false},
    {3, 2, 24, 8, NSA_BF16, LAYOUT_THD, false, true, NSA_PHI_GATED_CHANNEL, true},
    {1, 3, 5, 7, NSA_F32, LAYOUT_THD, false, false, NSA_PHI_LINEAR, true},
    {16, 1, 32, 32, NSA_F16, LAYOUT_THD, true, true, NSA_PHI_MEAN, false},
    {2, 1, 8, 8, NSA_F64, LAYOUT_THD, false, false, NSA_PHI_MLP, true},
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

typedef struct generation {
    const nsa_ctx *ctx;
    const nsa_case *whole;
    nsa_cache cache;
    void *states[MAX_SEQS];
    int64_t held[MAX_SEQS], longest[MAX_SEQS];
    int32_t page_table[MAX_SEQS * MAX_PAGES];
} generation;

static void assert_ok(nsa_status status)
{
    if (status != NSA_OK)
        test_fail("%s: %s", nsa_status_string(status), nsa_last_error());
}

static void start(generation *g, const nsa_ctx *ctx, const nsa_case *whole, rng *r)
{
    *g = (generation){.ctx = ctx, .whole = whole};
    g->cache = (nsa_cache){.page_size = PAGE,
                           .max_draft = MAX_DRAFT,
                           .shared_kv = whole->shape.shared,
                           .dtype = whole->shape.dtype,
                           .n_pages = POOL};
    size_t page_bytes = 0, state_bytes = 0;
    assert_ok(nsa_cache_page_bytes(ctx, &whole->cfg, &g->cache, &page_bytes));
    assert_ok(nsa_cache_state_bytes(ctx, &whole->cfg, &g->cache, &state_bytes));
    g->cache.pages = guarded(page_bytes * POOL, FLUSH_RIGHT);
    int32_t pages[POOL];
    for (int32_t i = 0; i < POOL; i++)
        pages[i] = i;
    for (int32_t i = POOL - 1; i > 0; i--) { /* shuffle */
        const int32_t j = rng_range(r, 0, i), page = pages[i];
        pages[i] = pages[j], pages[j] = page;
    }
    memcpy(g->page_table, pages, sizeof g->page_table);
    for (int s = 0; s < MAX_SEQS; s++) {
        g->states[s] = guarded(state_bytes, FLUSH_RIGHT);
        assert_ok(nsa_cache_reset(ctx, &whole->cfg, &g->cache, g->states[s]));
    }
}

/* The tokens held[s] .. held[s] + n_new[s] - 1 of every sequence of x, as a packed tensor. */
static nsa_tensor chunk(const generation *g, const test_tensor *x, const int32_t *cu)
{
    const nsa_dtype dtype = x->t.dtype;
    const size_t row = (size_t)x->e.d * dtype_size(dtype);
    char *to = guarded(row * (size_t)x->e.n_heads * (size_t)cu[MAX_SEQS], FLUSH_RIGHT);
    const nsa_tensor packed = nsa_packed(to, dtype, x->e.n_heads, x->e.d);
    for (int32_t s = 0; s < MAX_SEQS; s++)
        for (int64_t t = 0; t < cu[s + 1] - cu[s]; t++)
            for (int32_t h = 0; h < x->e.n_heads; h++)
                memcpy(tensor_at(&packed, s, cu[s], t, h),
                       (char *)x->t.data + tensor_index(x, s, g->held[s] + t, h, 0) * (int64_t)dtype_size(dtype), row);
    return packed;
}

/* The rows of a chunk's output equal those of the whole. */
static void assert_rows(const generation *g, const char *what, const nsa_tensor *got, const test_tensor *whole,
                        const int32_t *cu)
{
    const size_t row = (size_t)whole->e.d * dtype_size(got->dtype);
    for (int32_t s = 0; s < MAX_SEQS; s++)
        for (int64_t t = 0; t < cu[s + 1] - cu[s]; t++)
            for (int32_t h = 0; h < whole->e.n_heads; h++) {
                const int64_t at = tensor_index(whole, s, g->held[s] + t, h, 0);
                if (memcmp(tensor_at(got, s, cu[s], t, h), dtype_at(whole->t.data, got->dtype, at), row) != 0)
                    test_fail("%s of sequence %d, token %lld, head %d differs from the whole: %.9g, %.9g", what, s,
                              (long long)(g->held[s] + t), h, dtype_get(tensor_at(got, s, cu[s], t, h), got->dtype, 0),
                              dtype_get(whole->t.data, got->dtype, at));
            }
}

static void step(generation *g, const int32_t n_new[MAX_SEQS], bool decode)
{
    const nsa_case *w = g->whole;
    int32_t cu[MAX_SEQS + 1] = {0};
    for (int s = 0; s < MAX_SEQS; s++)
        cu[s + 1] = cu[s] + n_new[s];
    nsa_cache_args args = {
        .n_seqs = MAX_SEQS,
        .total = cu[MAX_SEQS],
        .cu_seqlens = cu,
        .states = g->states,
        .page_table = g->page_table,
        .pages_per_seq = MAX_PAGES,
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
    for (int s = 0; s < MAX_SEQS; s++) {
        g->held[s] += n_new[s];
        g->longest[s] = max_i64(g->longest[s], g->held[s]);
        int64_t held = -1;
        assert_ok(nsa_cache_length(g->ctx, g->states[s], &held));
        assert_int_equal(held, g->held[s]);
    }
}

static void drop(generation *g, rng *r)
{
    const int s = rng_range(r, 0, MAX_SEQS - 1);
    const int64_t lowest = max_i64(0, g->longest[s] - MAX_DRAFT);
    if (lowest > 0)
        assert_int_equal(nsa_cache_drop(g->ctx, &g->whole->cfg, &g->cache, g->states[s], lowest - 1),
                         NSA_ERR_INVALID_ARGUMENT);
    assert_int_equal(nsa_cache_drop(g->ctx, &g->whole->cfg, &g->cache, g->states[s], g->held[s] + 1),
                     NSA_ERR_INVALID_ARGUMENT);
    const int64_t to = rng_range(r, (int32_t)lowest, (int32_t)g->held[s]);
    assert_ok(nsa_cache_drop(g->ctx, &g->whole->cfg, &g->cache, g->states[s], to));
    g->held[s] = to;
}

/* max_chunk new tokens per sequence and call at most; after some calls a drop. */
static void generate(const nsa_ctx *ctx, const nsa_shape *shape, int32_t max_chunk, bool drops)
{
    rng r = rng_new();
    const nsa_batch batch = batch_of(lengths, MAX_SEQS);
    nsa_case whole;
    nsa_case_init(&whole, &blocks, &batch, shape, &r);
    run_forward(ctx, &whole, &whole.fwd);
    generation g;
    start(&g, ctx, &whole, &r);
    for (;;) {
        int32_t n_new[MAX_SEQS], left = 0;
        for (int s = 0; s < MAX_SEQS; s++) {
            const int32_t rest = lengths[s].q - (int32_t)g.held[s];
            const int32_t n = max_chunk == 1 ? 1 : rng_range(&r, 0, max_chunk);
            n_new[s] = n < rest ? n : rest;
            left += rest;
        }
        if (left == 0)
            break;
        step(&g, n_new, max_chunk <= MAX_DRAFT);
        if (drops && rng_range(&r, 0, 2) == 0)
            drop(&g, &r);
    }
}

static void each_shape(int32_t max_chunk, bool drops)
{
    nsa_ctx contexts[MAX_CONTEXTS];
    const int n_contexts = test_contexts(contexts, 2);
    for (int x = 0; x < n_contexts; x++)
        for (int i = 0; i < N_SHAPES; i++) {
            testlib_reset();
            test_note("%s, shape %d, chunks up to %d", contexts[x].simd->name, i, max_chunk);
            generate(&contexts[x], &shapes[i], max_chunk, drops);
        }
}

static void test_token_by_token(void **state)
{
    (void)state;
    each_shape(1, false);
}

static void test_chunks(void **state)
{
    (void)state;
    each_shape(MAX_CHUNK, false);
}

static void test_whole_at_once(void **state)
{
    (void)state;
    each_shape(1000, false);
}

static void test_drafts_and_drops(void **state)
{
    (void)state;
    each_shape(MAX_DRAFT, true);
}

static void test_chunks_and_drops(void **state)
{
    (void)state;
    each_shape(MAX_CHUNK, true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_token_by_token),   cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_whole_at_once),    cmocka_unit_test(test_drafts_and_drops),
        cmocka_unit_test(test_chunks_and_drops),
    };
    return cmocka_run_group_tests_name("nsa_cache", tests, NULL, NULL);
}
