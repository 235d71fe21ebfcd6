/* Pages of a KV cache are the caller's: they may move, and sequences that start alike may share the full ones. */
#include "testlib/unit.h"
#include "testlib/generation.h"

enum { MAX_SEQS = GENERATION_MAX_SEQS, PAGE = 32, SPARE_PAGES = 3, ALIKE = 2 * PAGE };

static const nsa_config blocks = {sizeof(nsa_config), 0, 0, 0, 0, 8, 4, 16, 4, 1, 1, 13, 0.0};
static const seq_lengths lengths[MAX_SEQS] = {{150, 150}, {8, 8}, {131, 131}};

static const nsa_shape shapes[] = {
    {4, 2, 16, 16, NSA_F32, LAYOUT_THD, true, false, NSA_PHI_MLP, false},
    {3, 2, 24, 8, NSA_BF16, LAYOUT_THD, false, true, NSA_PHI_GATED_CHANNEL, true},
    {2, 1, 8, 8, NSA_F64, LAYOUT_THD, false, false, NSA_PHI_LINEAR, true},
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static void each_shape(void (*test)(const nsa_ctx *ctx, const nsa_shape *shape))
{
    nsa_ctx contexts[MAX_CONTEXTS];
    const int n_contexts = test_contexts(contexts, 2);
    for (int x = 0; x < n_contexts; x++)
        for (int i = 0; i < N_SHAPES; i++) {
            testlib_reset();
            test_note("%s, shape %d", contexts[x].simd->name, i);
            test(&contexts[x], &shapes[i]);
        }
}

/* Grows every sequence to its length by chunks of up to max_chunk. */
static void grow(generation *g, int32_t max_chunk, rng *r, void (*between)(generation *, rng *))
{
    for (int32_t left = 1; left > 0;) {
        int32_t n_new[MAX_SEQS];
        left = 0;
        for (int s = 0; s < MAX_SEQS; s++) {
            const int32_t rest = lengths[s].q - (int32_t)g->held[s], n = rng_range(r, 0, max_chunk);
            n_new[s] = n < rest ? n : rest;
            left += rest;
        }
        generation_step(g, n_new, max_chunk == 1);
        if (between != NULL)
            between(g, r);
    }
}

static bool is_used(const generation *g, int32_t page)
{
    for (int32_t i = 0; i < MAX_SEQS * g->pages_per_seq; i++)
        if (g->page_table[i] == page)
            return true;
    return false;
}

/* A page goes where a free one is. */
static void move_page(generation *g, rng *r)
{
    int32_t *entry = &g->page_table[rng_range(r, 0, MAX_SEQS * g->pages_per_seq - 1)], to = 0;
    while (is_used(g, to))
        to++;
    char *pages = g->cache.pages, *from = pages + (size_t)*entry * g->page_bytes;
    memcpy(pages + (size_t)to * g->page_bytes, from, g->page_bytes);
    memset(from, 0xff, g->page_bytes);
    *entry = to;
}

static void moved(const nsa_ctx *ctx, const nsa_shape *shape)
{
    rng r = rng_new();
    const nsa_batch batch = batch_of(lengths, MAX_SEQS);
    nsa_case whole;
    nsa_case_init(&whole, &blocks, &batch, shape, &r);
    run_forward(ctx, &whole, &whole.fwd);
    generation g;
    generation_start(&g, ctx, &whole, PAGE, 0, SPARE_PAGES, &r);
    grow(&g, 9, &r, move_page);
}

static void test_pages_move(void **state)
{
    (void)state;
    each_shape(moved);
}

/* The first ALIKE tokens of sequence `to` become those of `from`. */
static void make_alike(const test_tensor *x, int32_t from, int32_t to)
{
    for (int64_t t = 0; t < ALIKE; t++)
        for (int32_t h = 0; h < x->e.n_heads; h++)
            for (int32_t c = 0; c < x->e.d; c++)
                tensor_set(x, to, t, h, c, tensor_get(x, from, t, h, c));
}

/* Sequence 2 starts like sequence 0: it takes over its state and its full pages, and both go their ways. */
static void shared(const nsa_ctx *ctx, const nsa_shape *shape)
{
    rng r = rng_new();
    const nsa_batch batch = batch_of(lengths, MAX_SEQS);
    nsa_case whole;
    nsa_case_init(&whole, &blocks, &batch, shape, &r);
    for (int b = 0; b < NSA_N_BRANCHES; b++) {
        make_alike(&whole.q[b], 0, 2);
        make_alike(&whole.k[b], 0, 2);
        make_alike(&whole.v[b], 0, 2);
    }
    make_alike(&whole.gate, 0, 2);
    run_forward(ctx, &whole, &whole.fwd);
    generation g;
    generation_start(&g, ctx, &whole, PAGE, 0, SPARE_PAGES, &r);
    generation_step(&g, (const int32_t[MAX_SEQS]){ALIKE, 0, 0}, false);
    memcpy(g.states[2], g.states[0], g.state_bytes);
    memcpy(g.page_table + 2 * g.pages_per_seq, g.page_table, ALIKE / PAGE * sizeof *g.page_table);
    g.held[2] = g.longest[2] = ALIKE;
    grow(&g, 1, &r, NULL);
}

static void test_pages_are_shared(void **state)
{
    (void)state;
    each_shape(shared);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pages_move),
        cmocka_unit_test(test_pages_are_shared),
    };
    return cmocka_run_group_tests_name("nsa_pages", tests, NULL, NULL);
}
