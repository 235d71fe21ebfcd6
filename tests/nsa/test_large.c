/* Large shapes: a sequence of 2^20 tokens, and keys up to the last number that a token can have. Offsets past 32 bits
 * of tensors, pages and rings are tested with each operation's layouts and with the cache. */
#include "testlib/unit.h"
#include "testlib/generation.h"

#include <math.h>

enum { MILLION = 1 << 20 };

/* Rows row .. of got against all rows of want, each of the last sequence of its batch. */
static void assert_near(const char *what, const test_tensor *got, int64_t row, const test_tensor *want)
{
    const int32_t s = got->e.n_seqs - 1, want_s = want->e.n_seqs - 1;
    for (int64_t i = 0; i < tensor_rows(want, want_s); i++)
        for (int32_t h = 0; h < want->e.n_heads; h++)
            for (int32_t c = 0; c < want->e.d; c++) {
                const double x = tensor_get(got, s, row + i, h, c), y = tensor_get(want, want_s, i, h, c);
                if (!(x == y || fabs(x - y) <= 1e-5 * fmax(1.0, fabs(y))))
                    test_fail("%s: row %lld, head %d, channel %d: %.9g, by the oracle %.9g", what, (long long)(row + i),
                              h, c, x, y);
            }
}

static void forward(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch, const nsa_forward_args *args)
{
    size_t bytes = 0;
    assert_ok(nsa_forward_workspace(ctx, cfg, batch, args, &bytes));
    assert_ok(nsa_forward(ctx, cfg, batch, args, workspace(bytes), bytes, NULL));
}

/* ---- 2^20 tokens */

static const nsa_config million_cfg = {sizeof(nsa_config), 0, 0, 0, 0, 512, 512, 512, 2, 0, 1, 64, 0.0};
static const nsa_shape million_shape = {1, 1, 8, 8, NSA_F32, LAYOUT_THD, true, false, NSA_PHI_GATED_CHANNEL, false};

static nsa_tensor from_row(const test_tensor *x, int64_t row)
{
    nsa_tensor t = x->t;
    t.data = dtype_at_mut(t.data, t.dtype, tensor_index(x, 0, row, 0, 0));
    return t;
}

/* c's arguments without the queries before `row`. */
static nsa_forward_args queries_from(const nsa_case *c, int64_t row)
{
    nsa_forward_args args = c->fwd;
    args.gate = from_row(&c->gate, row);
    args.o = from_row(&c->o, row);
    args.slc_idx = from_row(&c->slc_idx, row);
    for (int b = 0; b < NSA_N_BRANCHES; b++) {
        args.q[b] = from_row(&c->q[b], row);
        args.o_branch[b] = from_row(&c->o_branch[b], row);
        args.lse[b] = from_row(&c->lse[b], row);
    }
    return args;
}

static void check_compressed(const nsa_ctx *oracle, const nsa_case *c)
{
    const test_tensor k_cmp = tensor_like(&c->k_cmp, NSA_F32);
    const nsa_compress_args args = {c->cfg.d_qk, c->phi_k, c->k[0].t, k_cmp.t};
    size_t bytes = 0;
    assert_ok(nsa_compress_workspace(oracle, &c->cfg, &c->batch, &args, &bytes));
    assert_ok(nsa_compress(oracle, &c->cfg, &c->batch, &args, workspace(bytes), bytes, NULL));
    assert_near("k_cmp", &c->k_cmp, 0, &k_cmp);
}

/* What token t selects and attends to, by the oracle from the same k_cmp and v_cmp. */
static void check_token(const nsa_ctx *oracle, const nsa_case *c, int64_t t)
{
    const nsa_config *cfg = &c->cfg;
    const nsa_batch batch = batch_of(&(seq_lengths){1, (int32_t)t + 1}, 1);
    const test_tensor o = tensor_new(cfg, &batch, SIDE_Q, 1, cfg->d_v, NSA_F32, LAYOUT_THD);
    const test_tensor slc_idx = tensor_new(cfg, &batch, SIDE_Q, 1, cfg->slc_topk, NSA_I32, LAYOUT_THD);
    test_tensor lse[NSA_N_BRANCHES];
    nsa_forward_args args = queries_from(c, t);
    args.phi_k = args.phi_v = NULL;
    args.o = o.t;
    args.slc_idx = slc_idx.t;
    for (int b = 0; b < NSA_N_BRANCHES; b++) {
        lse[b] = tensor_new(cfg, &batch, SIDE_Q, 1, 1, NSA_F32, LAYOUT_THD);
        args.lse[b] = lse[b].t;
        args.o_branch[b].data = NULL;
    }
    forward(oracle, cfg, &batch, &args);
    assert_near("slc_idx", &c->slc_idx, t, &slc_idx);
    assert_near("o", &c->o, t, &o);
    for (int b = 0; b < NSA_N_BRANCHES; b++)
        assert_near("lse", &c->lse[b], t, &lse[b]);
}

/* A key is seen by the tokens after it only, so that the gradients of the last ones come of the last queries. */
static void check_last_gradients(const nsa_ctx *oracle, const nsa_case *c)
{
    enum { N_QUERIES = 640, N_KEYS = N_QUERIES - 512 }; /* a token of the last has its blocks among the last queries */
    const nsa_config *cfg = &c->cfg;
    const int64_t first = MILLION - N_QUERIES;
    const nsa_batch batch = batch_of(&(seq_lengths){N_QUERIES, MILLION}, 1);
    const test_tensor dq = tensor_new(cfg, &batch, SIDE_Q, 1, cfg->d_qk, NSA_F32, LAYOUT_THD);
    const test_tensor dk = tensor_new(cfg, &batch, SIDE_K, 1, cfg->d_qk, NSA_F32, LAYOUT_THD);
    const test_tensor dv = tensor_new(cfg, &batch, SIDE_K, 1, cfg->d_v, NSA_F32, LAYOUT_THD);
    const test_tensor dgate = tensor_new(cfg, &batch, SIDE_Q, 1, NSA_N_BRANCHES, NSA_F32, LAYOUT_THD);
    nsa_backward_args args = c->bwd; /* phi's gradients come of all queries: they are not looked at */
    args.fwd = queries_from(c, first);
    args.d_o = from_row(&c->d_o, first);
    args.dgate = dgate.t;
    for (int b = 0; b < NSA_N_BRANCHES; b++)
        args.dq[b] = dq.t, args.dk[b] = dk.t, args.dv[b] = dv.t;
    size_t bytes = 0;
    assert_ok(nsa_backward_workspace(oracle, cfg, &batch, &args, &bytes));
    assert_ok(nsa_backward(oracle, cfg, &batch, &args, workspace(bytes), bytes, NULL));
    assert_near("dq", &c->dq[0], first, &dq);
    assert_near("dgate", &c->dgate, first, &dgate);

    const nsa_batch last = batch_of(&(seq_lengths){0, N_KEYS}, 1);
    const test_tensor *got[] = {&c->dk[0], &c->dv[0]}, *all[] = {&dk, &dv};
    for (int i = 0; i < 2; i++) {
        test_tensor want = *all[i];
        want.batch = &last;
        want.t = from_row(all[i], MILLION - N_KEYS);
        assert_near(i == 0 ? "dk" : "dv", got[i], MILLION - N_KEYS, &want);
    }
}

/* By prefill, in two parts, and by decode of the last tokens: the bits of the whole. */
static void check_cache(const nsa_ctx *ctx, const nsa_case *c, rng *r)
{
    static const int32_t steps[][1] = {{MILLION - 700}, {698}, {1}, {1}};
    generation g;
    generation_start(&g, ctx, c, 1024, 0, 1, r);
    for (int i = 0; i < 4; i++)
        generation_step(&g, steps[i], i > 1);
}

static void test_a_million_tokens(void **state)
{
    (void)state;
    testlib_reset();
    test_note("2^20 tokens");
    rng r = rng_new();
    nsa_ctx *ctx = NULL;
    assert_ok(nsa_ctx_create(&ctx, NULL));
    const nsa_ctx oracle = {.n_threads = 1, .reference = true, .simd = ctx->simd};
    const nsa_batch batch = batch_of(&(seq_lengths){MILLION, MILLION}, 1);
    nsa_case c;
    nsa_case_init(&c, &million_cfg, &batch, &million_shape, &r);
    run_forward(ctx, &c, &c.fwd);
    check_compressed(&oracle, &c);
    for (int i = 0; i < 24; i++)
        check_token(&oracle, &c, i == 0 ? MILLION - 1 : rng_range(&r, 0, MILLION - 1));
    run_backward(ctx, &c, &c.bwd);
    check_last_gradients(&oracle, &c);
    check_cache(ctx, &c, &r);
    nsa_ctx_destroy(ctx);
}

/* ---- 2^31 - 1 keys. Of their memory only what is touched exists. */

/* The inputs of some queries in the last of the batch's sequences, and what a forward call makes of them. */
typedef struct giant {
    nsa_config cfg;
    nsa_batch batch;
    test_tensor q, k, v, k_cmp, v_cmp, gate, o, slc_idx, lse[NSA_N_BRANCHES];
} giant;

static void fill_rows(const test_tensor *x, int64_t first, int64_t n, uint64_t seed)
{
    rng r = {seed};
    for (int64_t row = first; row < first + n; row++)
        for (int32_t h = 0; h < x->e.n_heads; h++)
            for (int32_t c = 0; c < x->e.d; c++)
                tensor_set(x, x->e.n_seqs - 1, row, h, c, rng_normal(&r));
}

static void giant_init(giant *g, const nsa_config *blocks, const seq_lengths *lengths, int32_t n_seqs)
{
    *g = (giant){.cfg = *blocks};
    nsa_config *cfg = &g->cfg;
    cfg->n_heads_q = 2, cfg->n_heads_kv = 1, cfg->d_qk = 4, cfg->d_v = 3;
    g->batch = batch_of(lengths, n_seqs);
    g->q = tensor_new(cfg, &g->batch, SIDE_Q, 2, 4, NSA_F32, LAYOUT_THD);
    g->k = tensor_new(cfg, &g->batch, SIDE_K, 1, 4, NSA_F32, LAYOUT_THD);
    g->v = tensor_new(cfg, &g->batch, SIDE_K, 1, 3, NSA_F32, LAYOUT_THD);
    g->k_cmp = tensor_new(cfg, &g->batch, SIDE_CMP, 1, 4, NSA_F32, LAYOUT_THD);
    g->v_cmp = tensor_new(cfg, &g->batch, SIDE_CMP, 1, 3, NSA_F32, LAYOUT_THD);
    g->gate = tensor_new(cfg, &g->batch, SIDE_Q, 2, NSA_N_BRANCHES, NSA_F32, LAYOUT_THD);
    const int64_t t_k = tensor_rows(&g->k, n_seqs - 1), some = min_i64(t_k, 300);
    const test_tensor *all[] = {&g->q, &g->gate, &g->k_cmp, &g->v_cmp};
    for (int i = 0; i < 4; i++)
        fill_rows(all[i], 0, tensor_rows(all[i], n_seqs - 1), (uint64_t)i);
    fill_rows(&g->k, t_k - some, some, 5);
    fill_rows(&g->v, t_k - some, some, 6);
}

static void giant_run(giant *g, const nsa_ctx *ctx)
{
    const nsa_config *cfg = &g->cfg;
    g->o = tensor_new(cfg, &g->batch, SIDE_Q, 2, 3, NSA_F32, LAYOUT_THD);
    g->slc_idx = tensor_new(cfg, &g->batch, SIDE_Q, 1, cfg->slc_topk, NSA_I32, LAYOUT_THD);
    nsa_forward_args args = {
        .gate = g->gate.t, .k_cmp = g->k_cmp.t, .v_cmp = g->v_cmp.t, .o = g->o.t, .slc_idx = g->slc_idx.t};
    for (int b = 0; b < NSA_N_BRANCHES; b++) {
        g->lse[b] = tensor_new(cfg, &g->batch, SIDE_Q, 2, 1, NSA_F32, LAYOUT_THD);
        args.q[b] = g->q.t, args.k[b] = g->k.t, args.v[b] = g->v.t, args.lse[b] = g->lse[b].t;
    }
    forward(ctx, cfg, &g->batch, &args);
}

/* One sequence of them all: blocks as large as they can be, compared with the oracle. */
static void test_all_keys_there_can_be(void **state)
{
    (void)state;
    static const nsa_config blocks = {sizeof(nsa_config), 0, 0, 0, 0, 65536, 65536, 65536, 3, 1, 1, 100, 0.0};
    nsa_ctx contexts[MAX_CONTEXTS];
    const int n_contexts = test_contexts(contexts, 2);
    const nsa_ctx oracle = {.n_threads = 1, .reference = true, .simd = contexts[0].simd};
    testlib_reset();
    giant want, got;
    giant_init(&want, &blocks, &(seq_lengths){5, INT32_MAX}, 1);
    got = want;
    giant_run(&want, &oracle);
    for (int x = 0; x < n_contexts; x++) {
        test_note("%s, 2^31 - 1 keys", contexts[x].simd->name);
        giant_run(&got, &contexts[x]);
        assert_near("slc_idx", &got.slc_idx, 0, &want.slc_idx);
        assert_near("o", &got.o, 0, &want.o);
        for (int b = 0; b < NSA_N_BRANCHES; b++)
            assert_near("lse", &got.lse[b], 0, &want.lse[b]);
    }
}

/* A short sequence after one that has all keys but those, and no queries: the same bits as alone. */
static void test_last_of_all_keys(void **state)
{
    (void)state;
    enum { N = 300 };
    static const nsa_config blocks = {sizeof(nsa_config), 0, 0, 0, 0, 16, 16, 32, 3, 1, 1, 100, 0.0};
    nsa_ctx contexts[MAX_CONTEXTS];
    const int n_contexts = test_contexts(contexts, 2);
    for (int x = 0; x < n_contexts; x++) {
        testlib_reset();
        test_note("%s, the last of 2^31 - 1 keys", contexts[x].simd->name);
        giant alone, last;
        giant_init(&alone, &blocks, &(seq_lengths){N, N}, 1);
        giant_init(&last, &blocks, (const seq_lengths[]){{0, INT32_MAX - N}, {N, N}}, 2);
        giant_run(&alone, &contexts[x]);
        giant_run(&last, &contexts[x]);
        const test_tensor *got[] = {&last.o, &last.slc_idx, &last.lse[0], &last.lse[1], &last.lse[2]};
        const test_tensor *want[] = {&alone.o, &alone.slc_idx, &alone.lse[0], &alone.lse[1], &alone.lse[2]};
        for (int i = 0; i < 5; i++)
            if (memcmp(got[i]->t.data, want[i]->t.data, (size_t)want[i]->n * sizeof(float)) != 0)
                test_fail("result %d differs", i);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_million_tokens),
        cmocka_unit_test(test_all_keys_there_can_be),
        cmocka_unit_test(test_last_of_all_keys),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
