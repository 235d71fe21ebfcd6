/* One context serves any number of threads at once: what overlapping calls give has the bits of calls one after the
 * other, and nsa_last_error is each thread's own. The threads share the inputs and a pool of pages; outputs,
 * workspaces, states and pages are each thread's. */
#include "testlib/unit.h"
#include "testlib/nsa_case.h"

#include <pthread.h>
#include <stdio.h>

enum { N_WORKERS = 4, N_ROUNDS = 2, N_TOKENS = 71, PREFILLED = 40, PAGE = 32, PAGES_PER_SEQ = 3 };

static const nsa_config blocks = {sizeof(nsa_config), 0, 0, 0, 0, 8, 4, 16, 3, 1, 1, 13, 0.0};

static const nsa_shape shapes[] = {
    {4, 2, 16, 16, NSA_F32, LAYOUT_THD, true, false, NSA_PHI_MLP, false},
    {3, 2, 24, 8, NSA_BF16, LAYOUT_THD, false, true, NSA_PHI_GATED_CHANNEL, true},
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

/* A thread's work; all memory is taken before the threads start. */
typedef struct worker {
    pthread_t thread;
    pthread_barrier_t *start;
    const nsa_ctx *ctx;
    nsa_case c; /* outputs; the inputs are those of all */
    void *workspace;
    size_t workspace_bytes;
    nsa_cache cache;
    void *state;
    int32_t page_table[PAGES_PER_SEQ];
    test_tensor cache_o;
    int32_t number;
    nsa_status status; /* the first that was not NSA_OK */
    char error[256];   /* and its message */
    char refusal[256]; /* nsa_last_error after a call that must fail */
} worker;

static nsa_status attempt(worker *w, nsa_status status)
{
    if (status != NSA_OK && w->status == NSA_OK) {
        w->status = status;
        snprintf(w->error, sizeof w->error, "%s", nsa_last_error());
    }
    return status;
}

static nsa_tensor from_token(const nsa_tensor *x, int64_t t)
{
    nsa_tensor y = *x;
    y.data = tensor_at(x, 0, 0, t, 0);
    return y;
}

/* Tokens t .. t + n - 1, to the cache. */
static nsa_cache_args cache_args(worker *w, int64_t t, const int32_t cu[2])
{
    nsa_cache_args args = {
        .n_seqs = 1,
        .total = cu[1],
        .cu_seqlens = cu,
        .states = &w->state,
        .page_table = w->page_table,
        .pages_per_seq = PAGES_PER_SEQ,
        .gate = from_token(&w->c.fwd.gate, t),
        .phi_k = w->c.fwd.phi_k,
        .phi_v = w->c.fwd.phi_v,
        .o = from_token(&w->cache_o.t, t),
    };
    for (int b = 0; b < NSA_N_BRANCHES; b++) {
        args.q[b] = from_token(&w->c.fwd.q[b], t);
        args.k[b] = from_token(&w->c.fwd.k[b], t);
        args.v[b] = from_token(&w->c.fwd.v[b], t);
    }
    return args;
}

static void generate(worker *w)
{
    attempt(w, nsa_cache_reset(w->ctx, &w->c.cfg, &w->cache, w->state, NULL));
    for (int32_t t = 0; t < N_TOKENS;) {
        const int32_t cu[] = {0, t == 0 ? PREFILLED : 1};
        const nsa_cache_args args = cache_args(w, t, cu);
        if (t == 0)
            attempt(w, nsa_prefill(w->ctx, &w->c.cfg, &w->cache, &args, w->workspace, w->workspace_bytes, NULL));
        else
            attempt(w, nsa_decode(w->ctx, &w->c.cfg, &w->cache, &args, w->workspace, w->workspace_bytes, NULL));
        t += cu[1];
    }
}

static void *work(void *of)
{
    worker *w = of;
    const nsa_case *c = &w->c;
    pthread_barrier_wait(w->start);

    nsa_config bad = c->cfg;
    bad.win_size = -w->number;
    size_t bytes = 0;
    if (nsa_forward_workspace(w->ctx, &bad, &c->batch, &c->fwd, &bytes) != NSA_ERR_INVALID_ARGUMENT)
        w->status = NSA_ERR_UNSUPPORTED;

    nsa_ctx *own = NULL;
    attempt(w, nsa_ctx_create(&own, NULL));
    nsa_ctx_destroy(own);
    for (int i = 0; i < N_ROUNDS; i++) {
        attempt(w, nsa_forward(w->ctx, &c->cfg, &c->batch, &c->fwd, w->workspace, w->workspace_bytes, NULL));
        attempt(w, nsa_backward(w->ctx, &c->cfg, &c->batch, &c->bwd, w->workspace, w->workspace_bytes, NULL));
        generate(w);
    }
    snprintf(w->refusal, sizeof w->refusal, "%s", nsa_last_error());
    return NULL;
}

static void new_case(nsa_case *c, const nsa_shape *shape)
{
    rng r = rng_new();
    const nsa_batch batch = batch_of(&(seq_lengths){N_TOKENS, N_TOKENS}, 1);
    nsa_case_init(c, &blocks, &batch, shape, &r);
}

/* Outputs of its own, inputs those of `shared`. */
static void prepare(worker *w, const nsa_case *shared)
{
    new_case(&w->c, &shared->shape);
    for (int b = 0; b < NSA_N_BRANCHES; b++) {
        w->c.fwd.q[b] = shared->fwd.q[b];
        w->c.fwd.k[b] = shared->fwd.k[b];
        w->c.fwd.v[b] = shared->fwd.v[b];
    }
    w->c.fwd.gate = shared->fwd.gate;
    w->c.fwd.phi_k = shared->fwd.phi_k;
    w->c.fwd.phi_v = shared->fwd.phi_v;
    w->c.bwd.fwd = w->c.fwd;
    w->c.bwd.d_o = shared->bwd.d_o;
    w->cache_o = tensor_like(&shared->o, shared->shape.dtype);

    size_t state_bytes = 0;
    assert_ok(nsa_cache_state_bytes(w->ctx, &w->c.cfg, &w->cache, &state_bytes));
    w->state = guarded(state_bytes, FLUSH_LEFT);
    assert_ok(nsa_cache_reset(w->ctx, &w->c.cfg, &w->cache, w->state, NULL));
    for (int32_t i = 0; i < PAGES_PER_SEQ; i++) /* the pages of the workers alternate */
        w->page_table[i] = w->number - 1 + i * N_WORKERS;

    const int32_t cu[] = {0, N_TOKENS};
    const nsa_cache_args args = cache_args(w, 0, cu);
    size_t bytes[3] = {0};
    assert_ok(nsa_forward_workspace(w->ctx, &w->c.cfg, &w->c.batch, &w->c.fwd, &bytes[0]));
    assert_ok(nsa_backward_workspace(w->ctx, &w->c.cfg, &w->c.batch, &w->c.bwd, &bytes[1]));
    assert_ok(nsa_prefill_workspace(w->ctx, &w->c.cfg, &w->cache, &args, &bytes[2]));
    for (int i = 0; i < 3; i++)
        w->workspace_bytes = bytes[i] > w->workspace_bytes ? bytes[i] : w->workspace_bytes;
    w->workspace = guarded(w->workspace_bytes, FLUSH_RIGHT);
}

static void run_concurrently(const nsa_ctx *ctx, const nsa_shape *shape)
{
    static nsa_case expected;
    static worker workers[N_WORKERS];
    new_case(&expected, shape);
    run_forward(ctx, &expected, &expected.fwd);
    run_backward(ctx, &expected, &expected.bwd);

    nsa_cache cache = {.page_size = PAGE, .shared_kv = shape->shared, .dtype = shape->dtype};
    size_t page_bytes = 0;
    assert_ok(nsa_cache_page_bytes(ctx, &expected.cfg, &cache, &page_bytes));
    cache.n_pages = N_WORKERS * PAGES_PER_SEQ;
    cache.pages = guarded((size_t)cache.n_pages * page_bytes, FLUSH_LEFT);
    pthread_barrier_t start;
    assert_int_equal(pthread_barrier_init(&start, NULL, N_WORKERS), 0);
    for (int i = 0; i < N_WORKERS; i++) {
        workers[i] = (worker){.start = &start, .ctx = ctx, .cache = cache, .number = i + 1};
        prepare(&workers[i], &expected);
    }
    int64_t n_tokens = 0;
    assert_int_equal(nsa_cache_length(ctx, NULL, &n_tokens, NULL),
                     NSA_ERR_INVALID_ARGUMENT); /* the message of this thread */

    for (int i = 0; i < N_WORKERS; i++)
        assert_int_equal(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
    for (int i = 0; i < N_WORKERS; i++)
        assert_int_equal(pthread_join(workers[i].thread, NULL), 0);
    pthread_barrier_destroy(&start);

    assert_string_equal(nsa_last_error(), "state is NULL");
    for (int i = 0; i < N_WORKERS; i++) {
        const worker *w = &workers[i];
        char refusal[64];
        snprintf(refusal, sizeof refusal, "cfg.win_size is %d,", -w->number);
        if (w->status != NSA_OK)
            test_fail("thread %d: %s: %s", i, nsa_status_string(w->status), w->error);
        if (strncmp(w->refusal, refusal, strlen(refusal)) != 0)
            test_fail("thread %d was refused '%s...', its message is '%s'", i, refusal, w->refusal);
        assert_same_forward(&w->c, &expected);
        assert_same_backward(&w->c, &expected);
        assert_same_bits("o by prefill and decode", &w->cache_o, &expected.o);
    }
}

static void test_one_context_for_all(void **state)
{
    (void)state;
    nsa_ctx contexts[MAX_CONTEXTS];
    const int n_contexts = nsa_contexts(contexts, 2);
    for (int x = 0; x < n_contexts; x++)
        for (int i = 0; i < N_SHAPES; i++) {
            testlib_reset();
            test_note("%s, shape %d", nsa_ctx_isa(&contexts[x]), i);
            run_concurrently(&contexts[x], &shapes[i]);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_one_context_for_all)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
