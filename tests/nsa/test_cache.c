/* Generation over the KV cache: chunks of any size, several sequences at once, drops and pages in any order give, row
 * for row and bit for bit, what one nsa_forward over the whole gives. Memory that was never written is NaN. */
#include "testlib/generation.h"

enum { MAX_SEQS = GENERATION_MAX_SEQS, PAGE = 32, MAX_DRAFT = 5, SPARE_PAGES = 6, MAX_CHUNK = 40 };

static const nsa_config blocks = {sizeof(nsa_config), 0, 0, 0, 0, 8, 4, 16, 4, 1, 1, 13, 0.0};
static const seq_lengths lengths[MAX_SEQS] = {{203, 203}, {8, 8}, {131, 131}};
static const seq_lengths lengths_on_gpu[MAX_SEQS] = {{83, 83}, {8, 8}, {51, 51}}; /* each call copies all */

static const nsa_shape shapes[] = {
    {4, 2, 16, 16, NSA_F32, LAYOUT_THD, true, false, NSA_PHI_MLP, false},
    {3, 2, 24, 8, NSA_BF16, LAYOUT_THD, false, true, NSA_PHI_GATED_CHANNEL, true},
    {1, 3, 5, 7, NSA_F32, LAYOUT_THD, false, false, NSA_PHI_LINEAR, true},
    {16, 1, 32, 72, NSA_F16, LAYOUT_THD, true, true, NSA_PHI_MEAN, false},
    {2, 1, 8, 8, NSA_F64, LAYOUT_THD, false, false, NSA_PHI_MLP, true},
    {2, 2, 16, 8, NSA_F32, LAYOUT_ONE_HEAD, false, false, NSA_PHI_GATED_TOKEN, false},
    {2, 2, 16, 8, NSA_F32, LAYOUT_ONE_TOKEN, true, false, NSA_PHI_MEAN, false},
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static const seq_lengths *lengths_for(const nsa_ctx *ctx)
{
    return ctx->cuda ? lengths_on_gpu : lengths;
}

static void drop_some(generation *g, rng *r)
{
    const int s = rng_range(r, 0, MAX_SEQS - 1);
    const int64_t lowest = max_i64(0, g->longest[s] - MAX_DRAFT);
    generation_drop(g, s, lowest - 1); /* an error */
    generation_drop(g, s, g->held[s] + 1);
    generation_drop(g, s, rng_range(r, (int32_t)lowest, (int32_t)g->held[s]));
    for (int64_t i = (g->held[s] + PAGE - 1) / PAGE; i < g->pages_per_seq; i++) /* what is dropped may be anything */
        memset((char *)g->cache.pages + (size_t)g->page_table[s * g->pages_per_seq + i] * g->page_bytes, POISON_BYTE,
               g->page_bytes);
}

/* max_chunk new tokens per sequence and call at most; after some calls a drop. */
static void generate(const nsa_ctx *ctx, const nsa_shape *shape, int32_t max_chunk, bool drops)
{
    rng r = rng_new();
    const nsa_batch batch = batch_of(lengths_for(ctx), MAX_SEQS);
    nsa_case whole;
    nsa_case_init(&whole, &blocks, &batch, shape, &r);
    run_forward(ctx, &whole, &whole.fwd);
    generation g;
    generation_start(&g, ctx, &whole, PAGE, MAX_DRAFT, SPARE_PAGES, &r);
    for (;;) {
        int32_t n_new[MAX_SEQS], left = 0;
        for (int s = 0; s < MAX_SEQS; s++) {
            const int32_t rest = lengths_for(ctx)[s].q - (int32_t)g.held[s];
            const int32_t n = max_chunk == 1 ? 1 : rng_range(&r, 0, max_chunk);
            n_new[s] = n < rest ? n : rest;
            left += rest;
        }
        if (left == 0)
            break;
        g.as = (layout)((g.as + 1) % N_OUTPUT_LAYOUTS);
        generation_step(&g, n_new, max_chunk <= MAX_DRAFT);
        if (drops && rng_range(&r, 0, 2) == 0)
            drop_some(&g, &r);
    }
}

static void each_shape(int32_t max_chunk, bool drops)
{
    nsa_ctx contexts[MAX_CONTEXTS];
    const int n_contexts = nsa_contexts(contexts, 2 * MAX_SEQS); /* two to a tile where there is one kv head */
    for (int x = 0; x < n_contexts; x++)
        for (int i = 0; i < N_SHAPES; i++) {
            if (contexts[x].cuda && shapes[i].dtype == NSA_F64)
                continue;
            testlib_reset();
            test_note("%s, shape %d, chunks up to %d", nsa_ctx_isa(&contexts[x]), i, max_chunk);
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

/* Tensors, pages and rings whose offsets pass 32 bits. */
static void test_far_apart(void **state)
{
    (void)state;
    enum { FAR_PAGES = 1 << 23 };
    static const int32_t steps[][MAX_SEQS] = {{150, 0, 100}, {53, 8, 31}};
    nsa_config cfg = blocks;
    cfg.win_size = 1 << 26; /* of 64 bytes */
    nsa_ctx contexts[MAX_CONTEXTS];
    const int n_contexts = nsa_contexts(contexts, 2);
    for (int x = 0; x < n_contexts; x++)
        for (int as = LAYOUT_FAR_TOKENS; as < n_test_layouts(); as++) {
            testlib_reset();
            test_note("%s, layout %d", nsa_ctx_isa(&contexts[x]), as);
            rng r = rng_new();
            const nsa_batch batch = batch_of(lengths, MAX_SEQS);
            nsa_case whole;
            nsa_case_init(&whole, &cfg, &batch, &shapes[1], &r);
            run_forward(&contexts[x], &whole, &whole.fwd);
            generation g;
            generation_start(&g, &contexts[x], &whole, PAGE, MAX_DRAFT, FAR_PAGES, &r);
            g.as = (layout)as;
            for (int i = 0; i < 2; i++)
                generation_step(&g, steps[i], i > 0);
        }
}

/* A page holds whole blocks of keys, which kernels read where they lie. */
static void test_large_pages(void **state)
{
    (void)state;
    enum { LARGE = 256, LAST = 6 };
    static const seq_lengths long_ones[MAX_SEQS] = {{607, 607}, {256, 256}, {300, 300}};
    static const nsa_shape of[] = {{2, 2, 32, 64, NSA_F32, LAYOUT_THD, false, false, NSA_PHI_MEAN, false},
                                   {4, 1, 64, 32, NSA_BF16, LAYOUT_THD, false, false, NSA_PHI_MEAN, true}};
    nsa_ctx contexts[MAX_CONTEXTS];
    const int n_contexts = nsa_contexts(contexts, 2);
    for (int x = 0; x < n_contexts; x++)
        for (int i = 0; i < 2; i++) {
            testlib_reset();
            test_note("%s, shape %d", nsa_ctx_isa(&contexts[x]), i);
            rng r = rng_new();
            const nsa_batch batch = batch_of(long_ones, MAX_SEQS);
            nsa_case whole;
            nsa_case_init(&whole, &blocks, &batch, &of[i], &r);
            run_forward(&contexts[x], &whole, &whole.fwd);
            generation g;
            generation_start(&g, &contexts[x], &whole, LARGE, MAX_DRAFT, SPARE_PAGES, &r);
            const int32_t first[MAX_SEQS] = {long_ones[0].q - LAST, long_ones[1].q - LAST, long_ones[2].q - LAST};
            generation_step(&g, first, false);
            for (int step = 0; step < LAST; step++)
                generation_step(&g, (const int32_t[MAX_SEQS]){1, 1, 1}, true);
        }
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

const test_case test_cases[] = {
    TEST(test_token_by_token),   TEST(test_chunks),    TEST(test_whole_at_once), TEST(test_drafts_and_drops),
    TEST(test_chunks_and_drops), TEST(test_far_apart), TEST(test_large_pages),   {NULL, NULL, NULL},
};
