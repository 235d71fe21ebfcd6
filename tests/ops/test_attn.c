/* Every implementation of cmp, slc and win attention on every instruction set against the oracle. */
#include "testlib/attn_case.h"

#include <math.h>
#include <stdio.h>

static const nsa_config block_sizes[] = {
    {sizeof(nsa_config), 0, 0, 0, 0, 8, 4, 16, 4, 1, 1, 13, 0.0},
    {sizeof(nsa_config), 0, 0, 0, 0, 32, 16, 64, 3, 1, 2, 70, 0.0},
    {sizeof(nsa_config), 0, 0, 0, 0, 6, 3, 9, 2, 0, 1, 1, 0.0},
    {sizeof(nsa_config), 0, 0, 0, 0, 1, 1, 1, 9, 1, 1, INT32_MAX, 0.0},
    {sizeof(nsa_config), 0, 0, 0, 0, 48, 24, 144, 2, 0, 1, 200, 0.0}, /* longer than a tile's block of keys */
    {sizeof(nsa_config), 0, 0, 0, 0, 16, 8, 32, 3, 1, 1, 40, 0.0},
    {sizeof(nsa_config), 0, 0, 0, 0, 32, 16, 64, 2, 0, 1, 70, 0.0},
};

typedef struct scenario {
    int blocks;  /* of block_sizes */
    int32_t max; /* longest sequence */
    attn_shape shape;
} scenario;

static const scenario scenarios[] = {
    {0, 67, {1, 2, 16, 16, NSA_F32, LAYOUT_THD, LAYOUT_THD, LAYOUT_THD, false, 0.0}},
    {0, 67, {3, 2, 16, 16, NSA_BF16, LAYOUT_BSHD, LAYOUT_BHSD, LAYOUT_BHSD, true, 0.0}},
    {0, 67, {16, 1, 16, 16, NSA_F16, LAYOUT_GAPS, LAYOUT_GAPS, LAYOUT_GAPS, false, 0.5}},
    {0, 67, {5, 2, 64, 64, NSA_F32, LAYOUT_HTD, LAYOUT_HTD, LAYOUT_HTD, true, 0.0}},
    {0, 67, {16, 1, 64, 64, NSA_BF16, LAYOUT_THD, LAYOUT_THD, LAYOUT_THD, false, 0.0}},
    {2, 31, {3, 1, 64, 64, NSA_F16, LAYOUT_BHSD, LAYOUT_BSHD, LAYOUT_BSHD, true, 0.0}},
    {2, 31, {16, 1, 192, 128, NSA_F32, LAYOUT_THD, LAYOUT_GAPS, LAYOUT_THD, false, 0.0}},
    {0, 67, {1, 2, 192, 128, NSA_BF16, LAYOUT_THD, LAYOUT_THD, LAYOUT_THD, true, 0.0}},
    {3, 23, {5, 1, 192, 128, NSA_F16, LAYOUT_THD, LAYOUT_THD, LAYOUT_BHSD, false, 0.0}},
    {0, 67, {1, 3, 5, 7, NSA_F32, LAYOUT_GAPS, LAYOUT_BHSD, LAYOUT_GAPS, true, 2.0}},
    {3, 37, {3, 2, 5, 7, NSA_BF16, LAYOUT_THD, LAYOUT_THD, LAYOUT_THD, false, 0.0}},
    {2, 53, {5, 2, 5, 7, NSA_F16, LAYOUT_ONE_HEAD, LAYOUT_ONE_HEAD, LAYOUT_THD, false, 0.0}},
    {0, 67, {2, 2, 16, 33, NSA_F32, LAYOUT_ONE_TOKEN, LAYOUT_ONE_TOKEN, LAYOUT_THD, false, 0.0}},
    {3, 31, {64, 1, 1, 1, NSA_F32, LAYOUT_THD, LAYOUT_THD, LAYOUT_THD, true, 1.0}},
    {2, 29, {3, 1, 256, 256, NSA_F32, LAYOUT_THD, LAYOUT_THD, LAYOUT_THD, false, 0.0}},
    {0, 67, {2, 2, 16, 16, NSA_F32, LAYOUT_THD, LAYOUT_THD, LAYOUT_THD, false, 12.0}}, /* probabilities underflow */
    {0, 67, {2, 2, 16, 16, NSA_BF16, LAYOUT_THD, LAYOUT_THD, LAYOUT_THD, true, 12.0}},
    {1, 331, {2, 1, 24, 8, NSA_F32, LAYOUT_THD, LAYOUT_THD, LAYOUT_THD, true, 0.0}},
    {1, 331, {4, 1, 16, 16, NSA_BF16, LAYOUT_THD, LAYOUT_THD, LAYOUT_THD, false, 0.0}},
    {3, 331, {1, 1, 8, 8, NSA_F32, LAYOUT_THD, LAYOUT_THD, LAYOUT_THD, false, 0.0}},
    {4, 331, {2, 1, 8, 24, NSA_F32, LAYOUT_THD, LAYOUT_THD, LAYOUT_THD, true, 0.0}},
    {4, 331, {3, 1, 16, 16, NSA_F16, LAYOUT_THD, LAYOUT_THD, LAYOUT_THD, false, 0.0}},
    /* What kernels for tensor cores take, in sequences of several of their tiles. */
    {5, 97, {16, 1, 128, 128, NSA_BF16, LAYOUT_THD, LAYOUT_THD, LAYOUT_THD, true, 0.0}},
    {1, 203, {4, 1, 64, 64, NSA_BF16, LAYOUT_BSHD, LAYOUT_BHSD, LAYOUT_BHSD, true, 0.0}},
    {5, 131, {7, 1, 128, 128, NSA_BF16, LAYOUT_HTD, LAYOUT_HTD, LAYOUT_HTD, false, 0.0}},
    {5, 131, {2, 1, 192, 128, NSA_BF16, LAYOUT_THD, LAYOUT_THD, LAYOUT_THD, true, 0.0}},
    {1, 203, {1, 2, 64, 64, NSA_BF16, LAYOUT_THD, LAYOUT_BSHD, LAYOUT_THD, false, 0.0}},
    {0, 67, {3, 1, 256, 256, NSA_BF16, LAYOUT_THD, LAYOUT_THD, LAYOUT_BHSD, true, 0.0}},
    {3, 331, {1, 2, 64, 64, NSA_BF16, LAYOUT_THD, LAYOUT_HTD, LAYOUT_BSHD, false, 0.0}},
    {4, 331, {2, 1, 128, 128, NSA_BF16, LAYOUT_THD, LAYOUT_THD, LAYOUT_THD, false, 0.0}},
    {3, 331, {16, 1, 64, 64, NSA_BF16, LAYOUT_THD, LAYOUT_THD, LAYOUT_THD, true, 0.0}},
    {0, 67, {20, 1, 64, 64, NSA_BF16, LAYOUT_THD, LAYOUT_THD, LAYOUT_THD, false, 1.0}},
    {1, 203, {9, 1, 128, 128, NSA_BF16, LAYOUT_THD, LAYOUT_THD, LAYOUT_THD, false, 0.0}},
    {0, 19, {129, 1, 64, 64, NSA_BF16, LAYOUT_THD, LAYOUT_BHSD, LAYOUT_THD, false, 0.0}},
    {1, 203, {3, 1, 64, 64, NSA_BF16, LAYOUT_THD, LAYOUT_THD, LAYOUT_THD, false, 0.0}},
    {3, 150, {5, 1, 192, 128, NSA_BF16, LAYOUT_HTD, LAYOUT_BHSD, LAYOUT_THD, false, 0.0}},
    {1, 150, {16, 1, 192, 128, NSA_BF16, LAYOUT_THD, LAYOUT_THD, LAYOUT_THD, true, 0.0}},
    {3, 150, {2, 1, 256, 256, NSA_BF16, LAYOUT_THD, LAYOUT_HTD, LAYOUT_THD, true, 0.0}},
    /* Small groups and many blocks, so that the rows that have selected a block are what is gathered. */
    {5, 420, {1, 2, 128, 128, NSA_BF16, LAYOUT_THD, LAYOUT_THD, LAYOUT_THD, false, 0.0}},
    {5, 450, {2, 1, 64, 64, NSA_BF16, LAYOUT_HTD, LAYOUT_HTD, LAYOUT_BHSD, true, 0.0}},
    {6, 710, {4, 1, 128, 128, NSA_BF16, LAYOUT_BSHD, LAYOUT_BHSD, LAYOUT_THD, false, 0.5}},
    {0, 331, {1, 1, 64, 64, NSA_BF16, LAYOUT_THD, LAYOUT_THD, LAYOUT_THD, false, 0.0}},
};
enum {
    N_SCENARIOS = sizeof scenarios / sizeof *scenarios,
    TENSOR_CORES = 22, /* the first of those */
    SMALL_GROUPS = 38
};

static const nsa_ctx oracle_ctx = {.n_threads = 1, .reference = true};

static char case_name[32]; /* for the messages of failures */

static void start_case(attn_case *c, const attn_op *op, const scenario *sc, rng *r)
{
    testlib_reset();
    const nsa_config *blocks = &block_sizes[sc->blocks];
    const nsa_batch batch = batch_ragged(blocks->slc_block, sc->max);
    snprintf(case_name, sizeof case_name, "case %d", (int)(sc - scenarios));
    test_note("%s, %s", op->name, case_name);
    attn_case_init(c, op, blocks, &batch, &sc->shape, r);
}

/* Scenarios from SMALL_GROUPS on are large, for kernels that only a GPU has. */
static bool has_scenario(int i)
{
    nsa_ctx contexts[MAX_CONTEXTS];
    test_contexts(contexts, 1);
    return i < SMALL_GROUPS || contexts[0].cuda;
}

/* What a test does with an implementation. */
typedef void impl_fn(const attn_case *c, const scenario *sc, const nsa_ctx *ctx, const attn_impl *impl, void *expected);

static void each_impl(const attn_case *c, const scenario *sc, int32_t n_threads, impl_fn *test, void *expected)
{
    nsa_ctx contexts[MAX_CONTEXTS];
    const int n_contexts = test_contexts(contexts, n_threads);
    for (int x = 0; x < n_contexts; x++)
        for (const attn_impl *impl = c->op->impls; impl->name != NULL; impl++) {
            if (!attn_takes(c, &contexts[x], impl) ||
                (x > 0 && impl == attn_oracle(c->op))) /* the same on every instruction set */
                continue;
            test_note("%s %s, %s, %d threads, %s", c->op->name, impl->name, nsa_ctx_isa(&contexts[x]),
                      contexts[x].n_threads, case_name);
            test(c, sc, &contexts[x], impl, expected);
        }
}

/* ---- Forward and backward against the oracle */

typedef struct reference {
    attn_out exact, rounded, size;
    attn_grads exact_grads, rounded_grads, size_grads, start; /* start: what is added to, if so */
    bool add;
} reference;

static attn_grads grads_copy(const attn_grads *g, nsa_dtype dtype)
{
    return (attn_grads){tensor_copy(&g->dq, dtype), tensor_copy(&g->dk, dtype), tensor_copy(&g->dv, dtype)};
}

static reference run_oracle(const attn_case *c, const attn_shape *shape, nsa_dtype grad_dtype, bool add, rng *r)
{
    const attn_impl *ref = attn_oracle(c->op);
    const ref_rounding fair = attn_fair_rounding(shape->dtype);
    reference x = {.add = add};
    x.exact = attn_out_new(c, NSA_F64, LAYOUT_THD);
    x.rounded = attn_out_new(c, shape->dtype, LAYOUT_THD);
    attn_run_forward(c, &oracle_ctx, ref->forward, REF_EXACT, &x.exact);
    attn_run_forward(c, &oracle_ctx, ref->forward, fair, &x.rounded);
    x.start = attn_grads_new(c, grad_dtype, shape->out);
    if (add) {
        tensor_fill_normal(&x.start.dq, r, 1.0);
        tensor_fill_normal(&x.start.dk, r, 1.0);
        tensor_fill_normal(&x.start.dv, r, 1.0);
    }
    x.exact_grads = grads_copy(&x.start, NSA_F64);
    x.rounded_grads = grads_copy(&x.start, grad_dtype);
    attn_run_backward(c, &oracle_ctx, ref->backward, REF_EXACT, &x.exact_grads, add);
    attn_run_backward(c, &oracle_ctx, ref->backward, fair, &x.rounded_grads, add);
    x.size = attn_out_new(c, NSA_F64, LAYOUT_THD);
    x.size_grads = attn_grads_new(c, NSA_F64, LAYOUT_THD);
    const test_tensor *sizes[] = {&x.size.o, &x.size.lse, &x.size_grads.dq, &x.size_grads.dk, &x.size_grads.dv};
    const test_tensor *starts[] = {NULL, NULL, &x.start.dq, &x.start.dk, &x.start.dv};
    for (int i = 0; i < 5; i++)
        tensor_fill_abs(sizes[i], add ? starts[i] : NULL);
    attn_add_sizes(c, &x.size, &x.size_grads);
    return x;
}

static void compare_with_oracle(const attn_case *c, const scenario *sc, const nsa_ctx *ctx, const attn_impl *impl,
                                void *expected)
{
    const reference *x = expected;
    const attn_out out = attn_out_new(c, sc->shape.dtype, sc->shape.out);
    attn_run_forward(c, ctx, impl->forward, REF_EXACT, &out);
    assert_close("o", &out.o, &x->exact.o, &x->rounded.o, &x->size.o);
    assert_close("lse", &out.lse, &x->exact.lse, &x->rounded.lse, &x->size.lse);
    assert_padding_intact("o", &out.o);
    assert_padding_intact("lse", &out.lse);

    const attn_grads grads = grads_copy(&x->start, x->start.dq.t.dtype);
    attn_run_backward(c, ctx, impl->backward, REF_EXACT, &grads, x->add);
    assert_close("dq", &grads.dq, &x->exact_grads.dq, &x->rounded_grads.dq, &x->size_grads.dq);
    assert_close("dk", &grads.dk, &x->exact_grads.dk, &x->rounded_grads.dk, &x->size_grads.dk);
    assert_close("dv", &grads.dv, &x->exact_grads.dv, &x->rounded_grads.dv, &x->size_grads.dv);
    assert_padding_intact("dq", &grads.dq);
    assert_padding_intact("dk", &grads.dk);
    assert_padding_intact("dv", &grads.dv);
}

static void test_against_oracle(void **state)
{
    const attn_op *op = *state;
    rng r = rng_new();
    for (int i = 0; i < N_SCENARIOS && has_scenario(i); i++) {
        attn_case c;
        start_case(&c, op, &scenarios[i], &r);
        reference x = run_oracle(&c, &scenarios[i].shape, scenarios[i].shape.dtype, false, &r);
        each_impl(&c, &scenarios[i], 2, compare_with_oracle, &x);
    }
}

static void test_adds_to_gradients(void **state)
{
    const attn_op *op = *state;
    rng r = rng_new();
    const int chosen[] = {0, 1, 2, 3, 12, TENSOR_CORES + 1, TENSOR_CORES + 3, TENSOR_CORES + 5};
    for (size_t i = 0; i < sizeof chosen / sizeof *chosen; i++) {
        const scenario *sc = &scenarios[chosen[i]];
        attn_case c;
        start_case(&c, op, sc, &r);
        reference x = run_oracle(&c, &sc->shape, NSA_F32, true, &r); /* float32 sums of 16-bit tensors too */
        each_impl(&c, sc, 2, compare_with_oracle, &x);
    }
}

/* ---- The same bits from run to run, for any number of threads */

typedef struct bits {
    attn_out out;
    attn_grads grads;
} bits;

static bits run_for_bits(const attn_case *c, layout out, const nsa_ctx *ctx, const attn_impl *impl)
{
    const nsa_dtype dtype = c->q.t.dtype;
    const bits x = {attn_out_new(c, dtype, out), attn_grads_new(c, dtype, out)};
    attn_run_forward(c, ctx, impl->forward, REF_EXACT, &x.out);
    attn_run_backward(c, ctx, impl->backward, REF_EXACT, &x.grads, false);
    return x;
}

static void assert_same(const bits *got, const bits *want)
{
    assert_same_bits("o", &got->out.o, &want->out.o);
    assert_same_bits("lse", &got->out.lse, &want->out.lse);
    assert_same_bits("dq", &got->grads.dq, &want->grads.dq);
    assert_same_bits("dk", &got->grads.dk, &want->grads.dk);
    assert_same_bits("dv", &got->grads.dv, &want->grads.dv);
}

static void assert_all_padding_intact(const bits *x)
{
    assert_padding_intact("o", &x->out.o);
    assert_padding_intact("lse", &x->out.lse);
    assert_padding_intact("dq", &x->grads.dq);
    assert_padding_intact("dk", &x->grads.dk);
    assert_padding_intact("dv", &x->grads.dv);
}

static void compare_threads(const attn_case *c, const scenario *sc, const nsa_ctx *ctx, const attn_impl *impl,
                            void *expected)
{
    (void)expected;
    const bits first = run_for_bits(c, sc->shape.out, ctx, impl);
    const int32_t n_threads[] = {1, 2, 3, 8};
    for (int i = 0; i < 4; i++) {
        nsa_ctx other = *ctx;
        other.n_threads = n_threads[i];
        const bits again = run_for_bits(c, sc->shape.out, &other, impl);
        assert_same(&again, &first);
    }
}

static void test_same_bits_for_any_threads(void **state)
{
    rng r = rng_new();
    const int chosen[] = {3, 9, 15, 16, TENSOR_CORES + 3};
    for (size_t i = 0; i < sizeof chosen / sizeof *chosen; i++) {
        attn_case c;
        start_case(&c, *state, &scenarios[chosen[i]], &r);
        each_impl(&c, &scenarios[chosen[i]], 1, compare_threads, NULL);
    }
}

/* ---- The same bits however tensors lie: all inputs in one layout, the o and lse of backward among them, all outputs
 * too */

static void compare_layouts(const attn_case *c, const scenario *sc, const nsa_ctx *ctx, const attn_impl *impl,
                            void *expected)
{
    const bits want = run_for_bits(expected, LAYOUT_THD, ctx, impl), got = run_for_bits(c, sc->shape.out, ctx, impl);
    assert_same(&got, &want);
    assert_all_padding_intact(&got);
}

static void test_same_bits_in_every_layout(void **state)
{
    static const scenario base[] = {
        {0, 0, {3, 2, 16, 16, NSA_F32, LAYOUT_THD, LAYOUT_THD, LAYOUT_THD, true, 0.0}},
        {2, 0, {1, 3, 24, 7, NSA_BF16, LAYOUT_THD, LAYOUT_THD, LAYOUT_THD, false, 0.0}},
        {1, 0, {4, 2, 64, 64, NSA_BF16, LAYOUT_THD, LAYOUT_THD, LAYOUT_THD, true, 0.0}},
    };
    static const seq_lengths lengths[] = {{13, 13}, {0, 5}, {29, 29}, {3, 37}, {6, 2}};
    rng r = rng_new();
    for (size_t i = 0; i < sizeof base / sizeof *base; i++)
        for (int as = LAYOUT_THD; as < n_test_layouts(); as++) {
            testlib_reset();
            snprintf(case_name, sizeof case_name, "case %d in layout %d", (int)i, as);
            scenario sc = base[i];
            sc.shape.q = sc.shape.kv = (layout)as;
            sc.shape.out = output_layout((layout)as);
            const nsa_batch batch = batch_of(lengths, sizeof lengths / sizeof *lengths);
            attn_case c;
            attn_case_init(&c, *state, &block_sizes[sc.blocks], &batch, &sc.shape, &r);
            if (layout_broadcasts((layout)as)) { /* no forward call leaves such an o and lse, but backward takes them */
                c.o = tensor_new(&c.cfg, &c.batch, SIDE_Q, c.cfg.n_heads_q, c.cfg.d_v, sc.shape.dtype, (layout)as);
                c.lse = tensor_new(&c.cfg, &c.batch, SIDE_Q, c.cfg.n_heads_q, 1, NSA_F32, (layout)as);
                tensor_fill_normal(&c.o, &r, 1.0);
                tensor_fill_normal(&c.lse, &r, 2.0);
            }
            attn_case packed = c;
            test_tensor *tensors[] = {&packed.q,   &packed.k,       &packed.v, &packed.d_o,
                                      &packed.lse, &packed.slc_idx, &packed.o, &packed.gate};
            for (size_t t = 0; t < sizeof tensors / sizeof *tensors; t++)
                if (tensors[t]->t.data != NULL)
                    *tensors[t] = tensor_as(tensors[t], LAYOUT_THD);
            each_impl(&c, &sc, 2, compare_layouts, &packed);
        }
}

/* ---- Keys and queries full of NaN or infinity touch nothing but the rows that attend to them */

typedef struct planted {
    attn_case clean;
    test_tensor bad_q; /* [token][1][1]: 1 where the query is planted */
    test_tensor bad_k; /* [key][1][1] */
} planted;

static void plant(const test_tensor *where, rng *r, int32_t one_in, const test_tensor *into[], int n)
{
    static const double values[] = {NAN, INFINITY, -INFINITY, -NAN};
    tensor_fill_normal(where, r, 0.0);
    for (int32_t s = 0; s < where->e.n_seqs; s++)
        for (int64_t row = 0; row < tensor_rows(where, s); row++) {
            if (rng_range(r, 1, one_in) > 1 && row != tensor_rows(where, s) - 1)
                continue;
            tensor_set(where, s, row, 0, 0, 1.0);
            for (int i = 0; i < n; i++)
                for (int32_t h = 0; h < into[i]->e.n_heads; h++)
                    for (int32_t c = 0; c < into[i]->e.d; c++)
                        tensor_set(into[i], s, row, h, c, values[rng_range(r, 0, 3)]);
        }
}

static bool is_dirty(const attn_case *c, const planted *x, int32_t s, int64_t row, int32_t kv_head)
{
    bool dirty = tensor_get(&x->bad_q, s, row, 0, 0) == 1.0;
    for (int64_t j = 0; j < tensor_rows(&x->bad_k, s); j++)
        dirty |= tensor_get(&x->bad_k, s, j, 0, 0) == 1.0 && attn_attends(c, s, row, kv_head, j);
    return dirty;
}

static void compare_with_clean(const attn_case *c, const scenario *sc, const nsa_ctx *ctx, const attn_impl *impl,
                               void *expected)
{
    const planted *x = expected;
    const bits got = run_for_bits(c, sc->shape.out, ctx, impl),
               want = run_for_bits(&x->clean, sc->shape.out, ctx, impl);
    const int64_t group = config_group(&c->cfg);
    for (int32_t s = 0; s < c->batch.n_seqs; s++)
        for (int32_t h = 0; h < c->cfg.n_heads_q; h++)
            for (int64_t row = 0; row < tensor_rows(&c->q, s); row++)
                if (!is_dirty(c, x, s, row, (int32_t)(h / group)) &&
                    (!row_same_bits(&got.out.o, &want.out.o, s, row, h) ||
                     !row_same_bits(&got.out.lse, &want.out.lse, s, row, h) ||
                     !row_same_bits(&got.grads.dq, &want.grads.dq, s, row, h)))
                    test_fail("seq %d, row %lld, head %d: changed by a NaN that it does not attend to", s,
                              (long long)row, h);
    for (int32_t s = 0; s < c->batch.n_seqs; s++)
        for (int32_t h = 0; h < c->cfg.n_heads_kv; h++)
            for (int64_t j = 0; j < tensor_rows(&c->k, s); j++) {
                bool dirty = false;
                for (int64_t row = 0; row < tensor_rows(&c->q, s); row++)
                    dirty |= attn_attends(c, s, row, h, j) && is_dirty(c, x, s, row, h);
                if (!dirty && (!row_same_bits(&got.grads.dk, &want.grads.dk, s, j, h) ||
                               !row_same_bits(&got.grads.dv, &want.grads.dv, s, j, h)))
                    test_fail("seq %d, key %lld, head %d: changed by a NaN in a query that does not attend to it", s,
                              (long long)j, h);
            }
}

static void test_nan_outside_the_set(void **state)
{
    rng r = rng_new();
    const int chosen[] = {0,
                          1,
                          5,
                          9,
                          11,
                          TENSOR_CORES,
                          TENSOR_CORES + 2,
                          TENSOR_CORES + 3,
                          TENSOR_CORES + 4,
                          TENSOR_CORES + 5,
                          SMALL_GROUPS,
                          SMALL_GROUPS + 1,
                          SMALL_GROUPS + 3};
    for (size_t i = 0; i < sizeof chosen / sizeof *chosen && has_scenario(chosen[i]); i++) {
        const scenario *sc = &scenarios[chosen[i]];
        planted x;
        start_case(&x.clean, *state, sc, &r);
        attn_case c = x.clean;
        c.q = tensor_copy(&x.clean.q, sc->shape.dtype);
        c.k = tensor_copy(&x.clean.k, sc->shape.dtype);
        c.v = tensor_copy(&x.clean.v, sc->shape.dtype);
        x.bad_q = tensor_new(&c.cfg, &c.batch, SIDE_Q, 1, 1, NSA_F32, LAYOUT_THD);
        x.bad_k = tensor_new(&c.cfg, &c.batch, c.op->keys, 1, 1, NSA_F32, LAYOUT_THD);
        const test_tensor *queries[] = {&c.q}, *keys[] = {&c.k, &c.v};
        plant(&x.bad_k, &r, 8, keys, 2);
        plant(&x.bad_q, &r, 8, queries, 1);
        each_impl(&c, sc, 2, compare_with_clean, &x);
    }
}

/* ---- A duplicate in slc_idx makes its row unspecified, and no more than that */

static void run_only(const attn_case *c, const scenario *sc, const nsa_ctx *ctx, const attn_impl *impl, void *expected)
{
    (void)expected;
    const bits x = run_for_bits(c, sc->shape.out, ctx, impl);
    assert_all_padding_intact(&x);
}

static void test_duplicates_stay_in_bounds(void **state)
{
    (void)state;
    rng r = rng_new();
    for (int i = 0; i < 3; i++) {
        attn_case c;
        start_case(&c, &attn_ops[NSA_SLC], &scenarios[i], &r);
        for (int32_t s = 0; s < c.batch.n_seqs; s++)
            for (int64_t row = 0; row < tensor_rows(&c.q, s); row++)
                for (int32_t h = 0; h < c.cfg.n_heads_kv; h++)
                    for (int32_t k = 0; k < c.cfg.slc_topk; k++)
                        tensor_set(&c.slc_idx, s, row, h, k, i);
        each_impl(&c, &scenarios[i], 2, run_only, NULL);
    }
}

#define TESTS_OF(op, branch)                                                                                           \
    {op " against the oracle", test_against_oracle, &attn_ops[branch]},                                                \
        {op " adds to gradients", test_adds_to_gradients, &attn_ops[branch]},                                          \
        {op " same bits for any threads", test_same_bits_for_any_threads, &attn_ops[branch]},                          \
        {op " same bits in every layout", test_same_bits_in_every_layout, &attn_ops[branch]},                          \
    {                                                                                                                  \
        op " NaN outside the set", test_nan_outside_the_set, &attn_ops[branch]                                         \
    }

const test_case test_cases[] = {
    TESTS_OF("cmp_attn", NSA_CMP),
    TESTS_OF("slc_attn", NSA_SLC),
    TESTS_OF("win_attn", NSA_WIN),
    TEST(test_duplicates_stay_in_bounds),
    {NULL, NULL, NULL},
};
