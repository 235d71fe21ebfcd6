/* Gate: every implementation on every instruction set against the oracle, and by hand. */
#include "ops/gate/gate.h"
#include "testlib/testlib.h"

static const nsa_ctx oracle_ctx = {.n_threads = 1, .reference = true};

typedef struct shape {
    int32_t n_heads, d;
    nsa_dtype dtype, gate_dtype;
    layout in, gate, out; /* LAYOUT_ONE_HEAD of gate: a gate per token */
} shape;

static const shape shapes[] = {
    {4, 16, NSA_F32, NSA_F32, LAYOUT_THD, LAYOUT_THD, LAYOUT_THD},
    {3, 7, NSA_F32, NSA_F32, LAYOUT_GAPS, LAYOUT_ONE_HEAD, LAYOUT_BHSD},
    {5, 256, NSA_BF16, NSA_F32, LAYOUT_BSHD, LAYOUT_BHSD, LAYOUT_GAPS},
    {2, 33, NSA_F16, NSA_F16, LAYOUT_HTD, LAYOUT_ONE_TOKEN, LAYOUT_BSHD},
    {1, 1, NSA_BF16, NSA_BF16, LAYOUT_ONE_HEAD, LAYOUT_GAPS, LAYOUT_THD},
    {2, 9, NSA_F32, NSA_F32, LAYOUT_ONE_TOKEN, LAYOUT_HTD, LAYOUT_HTD},
    {6, 128, NSA_BF16, NSA_F32, LAYOUT_THD, LAYOUT_THD, LAYOUT_THD},
    {70, 40, NSA_F16, NSA_F16, LAYOUT_THD, LAYOUT_GAPS, LAYOUT_BHSD},
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

typedef struct gate_case {
    nsa_config cfg;
    nsa_batch batch;
    shape shape;
    test_tensor gate, o_branch[NSA_N_BRANCHES], d_o;
} gate_case;

static void case_init(gate_case *c, const shape *sh, rng *r)
{
    testlib_reset();
    c->shape = *sh;
    c->batch = batch_ragged(16, 150);
    nsa_config_init(&c->cfg);
    c->cfg.n_heads_q = c->cfg.n_heads_kv = sh->n_heads;
    c->cfg.d_v = sh->d;
    c->gate = tensor_new(&c->cfg, &c->batch, SIDE_Q, sh->n_heads, NSA_N_BRANCHES, sh->gate_dtype, sh->gate);
    tensor_fill_normal(&c->gate, r, 0.5);
    c->d_o = tensor_new(&c->cfg, &c->batch, SIDE_Q, sh->n_heads, sh->d, sh->dtype, sh->in);
    tensor_fill_normal(&c->d_o, r, 1.0);
    for (int b = 0; b < NSA_N_BRANCHES; b++) {
        c->o_branch[b] = tensor_new(&c->cfg, &c->batch, SIDE_Q, sh->n_heads, sh->d, sh->dtype, sh->in);
        tensor_fill_normal(&c->o_branch[b], r, 1.0);
    }
}

typedef struct result {
    test_tensor o, dgate, do_branch[NSA_N_BRANCHES];
} result;

static result run(const gate_case *c, const nsa_ctx *ctx, const gate_impl *impl, ref_rounding rounding, nsa_dtype dtype,
                  nsa_dtype gate_dtype)
{
    const shape *sh = &c->shape;
    result x;
    gate_problem p = {.ctx = ctx, .cfg = &c->cfg, .seqs = seqs_of_batch(&c->batch), .rounding = rounding};
    p.seqs.cu_k = NULL;
    p.gate = c->gate.t;
    for (int b = 0; b < NSA_N_BRANCHES; b++)
        p.o_branch[b] = c->o_branch[b].t;
    x.o = tensor_new(&c->cfg, &c->batch, SIDE_Q, sh->n_heads, sh->d, dtype, sh->out);
    p.o = x.o.t;
    run_op(ctx, impl->forward, &p, sizeof p);

    x.dgate = tensor_new(&c->cfg, &c->batch, SIDE_Q, sh->n_heads, NSA_N_BRANCHES, gate_dtype, sh->out);
    p.d_o = c->d_o.t;
    p.dgate = x.dgate.t;
    for (int b = 0; b < NSA_N_BRANCHES; b++) {
        x.do_branch[b] = tensor_new(&c->cfg, &c->batch, SIDE_Q, sh->n_heads, sh->d, dtype, sh->out);
        p.do_branch[b] = x.do_branch[b].t;
    }
    run_op(ctx, impl->backward, &p, sizeof p);
    return x;
}

static bool takes(const gate_case *c, const nsa_ctx *ctx, const gate_impl *impl)
{
    const gate_problem p = {.ctx = ctx, .cfg = &c->cfg, .o_branch = {c->o_branch[0].t}};
    return impl->supports(&p);
}

static const gate_impl *fastest(const gate_case *c, const nsa_ctx *ctx)
{
    const gate_impl *impl = gate_impls;
    while (!takes(c, ctx, impl))
        impl++;
    return impl;
}

static const gate_impl *oracle(void)
{
    const gate_impl *impl = gate_impls;
    while (impl[1].name != NULL)
        impl++;
    return impl;
}

/* The same with the absolute values, of which the terms of the sizes are made. */
static void case_abs(gate_case *sizes, const gate_case *c)
{
    *sizes = *c;
    test_tensor *inputs[] = {&sizes->gate, &sizes->d_o, &sizes->o_branch[0], &sizes->o_branch[1], &sizes->o_branch[2]};
    for (int i = 0; i < 5; i++) {
        const test_tensor of = *inputs[i];
        *inputs[i] = tensor_like(&of, NSA_F64);
        tensor_fill_abs(inputs[i], &of);
    }
}

static void test_against_oracle(void **state)
{
    (void)state;
    rng r = rng_new();
    nsa_ctx contexts[MAX_CONTEXTS];
    const int n_contexts = test_contexts(contexts, 2);
    for (int i = 0; i < N_SHAPES; i++) {
        gate_case c;
        case_init(&c, &shapes[i], &r);
        const result exact = run(&c, &oracle_ctx, oracle(), REF_EXACT, NSA_F64, NSA_F64);
        const result rounded = run(&c, &oracle_ctx, oracle(), REF_F32, c.shape.dtype, c.shape.gate_dtype);
        gate_case sizes;
        case_abs(&sizes, &c);
        const result size = run(&sizes, &oracle_ctx, oracle(), REF_EXACT, NSA_F64, NSA_F64);
        for (int x = 0; x < n_contexts; x++)
            for (const gate_impl *impl = gate_impls; impl->name != NULL; impl++) {
                if (!takes(&c, &contexts[x], impl))
                    continue;
                test_note("%s, %s, case %d", impl->name, nsa_ctx_isa(&contexts[x]), i);
                const result got = run(&c, &contexts[x], impl, REF_EXACT, c.shape.dtype, c.shape.gate_dtype);
                assert_close("o", &got.o, &exact.o, &rounded.o, &size.o);
                assert_close("dgate", &got.dgate, &exact.dgate, &rounded.dgate, &size.dgate);
                assert_padding_intact("o", &got.o);
                assert_padding_intact("dgate", &got.dgate);
                for (int b = 0; b < NSA_N_BRANCHES; b++) {
                    assert_close("do_branch", &got.do_branch[b], &exact.do_branch[b], &rounded.do_branch[b],
                                 &size.do_branch[b]);
                    assert_padding_intact("do_branch", &got.do_branch[b]);
                }
            }
    }
}

static void assert_same(const result *got, const result *want)
{
    assert_same_bits("o", &got->o, &want->o);
    assert_same_bits("dgate", &got->dgate, &want->dgate);
    for (int b = 0; b < NSA_N_BRANCHES; b++)
        assert_same_bits("do_branch", &got->do_branch[b], &want->do_branch[b]);
}

static void test_same_bits_for_any_threads(void **state)
{
    (void)state;
    rng r = rng_new();
    nsa_ctx contexts[MAX_CONTEXTS];
    const int n_contexts = test_contexts(contexts, 1);
    const int32_t n_threads[] = {2, 3, 8};
    for (int i = 0; i < N_SHAPES; i++) {
        gate_case c;
        case_init(&c, &shapes[i], &r);
        for (int x = 0; x < n_contexts; x++) {
            test_note("%s, case %d", nsa_ctx_isa(&contexts[x]), i);
            const gate_impl *impl = fastest(&c, &contexts[x]);
            const result first = run(&c, &contexts[x], impl, REF_EXACT, c.shape.dtype, c.shape.gate_dtype);
            for (int k = 0; k < 3; k++) {
                nsa_ctx other = contexts[x];
                other.n_threads = n_threads[k];
                const result again = run(&c, &other, impl, REF_EXACT, c.shape.dtype, c.shape.gate_dtype);
                assert_same(&again, &first);
            }
        }
    }
}

static void test_same_bits_in_every_layout(void **state)
{
    (void)state;
    rng r = rng_new();
    nsa_ctx contexts[MAX_CONTEXTS];
    const int n_contexts = test_contexts(contexts, 2);
    for (int i = 0; i < 2 * n_test_layouts(); i++) { /* rows of whole 16 bytes, and others */
        const int as = i / 2;
        const shape sh = {3,          i % 2 == 0 ? 20 : 24,     NSA_BF16, NSA_F32, (layout)as,
                          (layout)as, output_layout((layout)as)};
        gate_case c;
        case_init(&c, &sh, &r);
        gate_case packed = c;
        packed.shape.out = LAYOUT_THD;
        packed.gate = tensor_as(&c.gate, LAYOUT_THD);
        packed.d_o = tensor_as(&c.d_o, LAYOUT_THD);
        for (int b = 0; b < NSA_N_BRANCHES; b++)
            packed.o_branch[b] = tensor_as(&c.o_branch[b], LAYOUT_THD);
        for (int x = 0; x < n_contexts; x++)
            for (const gate_impl *impl = gate_impls; impl->name != NULL; impl++) {
                if (!takes(&c, &contexts[x], impl))
                    continue;
                test_note("%s, %s, layout %d", impl->name, nsa_ctx_isa(&contexts[x]), as);
                const result want = run(&packed, &contexts[x], impl, REF_EXACT, sh.dtype, sh.gate_dtype);
                const result got = run(&c, &contexts[x], impl, REF_EXACT, sh.dtype, sh.gate_dtype);
                assert_same(&got, &want);
            }
    }
}

/* One row by hand: branch 0 of gate 0.5, branch 1 of 0.25, branch 2 of 0. */
static void test_by_hand(void **state)
{
    (void)state;
    nsa_config cfg;
    nsa_config_init(&cfg);
    cfg.n_heads_q = cfg.n_heads_kv = 1;
    cfg.d_v = 2;
    const int32_t cu[] = {0, 1};
    const nsa_batch batch = {1, 1, -1, 1, -1, cu, NULL}; /* of the key side nothing is read */
    double gate[] = {0.5, 0.25, 0.0}, o0[] = {2.0, 4.0}, o1[] = {8.0, 16.0}, o2[] = {3.0, 5.0}, o[2];
    double d_o[] = {1.0, -1.0}, dgate[3], do0[2], do1[2], do2[2];
    nsa_ctx *ctx = NULL;
    assert_ok(nsa_ctx_create(&ctx, NULL));
    const nsa_tensor branches[] = {nsa_packed(o0, NSA_F64, 1, 2), nsa_packed(o1, NSA_F64, 1, 2),
                                   nsa_packed(o2, NSA_F64, 1, 2)};
    const nsa_gate_args args = {
        nsa_packed(gate, NSA_F64, 1, 3), {branches[0], branches[1], branches[2]}, nsa_packed(o, NSA_F64, 1, 2)};
    assert_ok(nsa_gate(ctx, &cfg, &batch, &args, NULL));
    require(o[0] == 3.0 && o[1] == 6.0);
    const nsa_gate_backward_args back = {
        nsa_packed(gate, NSA_F64, 1, 3),
        {branches[0], branches[1], branches[2]},
        nsa_packed(d_o, NSA_F64, 1, 2),
        nsa_packed(dgate, NSA_F64, 1, 3),
        {nsa_packed(do0, NSA_F64, 1, 2), nsa_packed(do1, NSA_F64, 1, 2), nsa_packed(do2, NSA_F64, 1, 2)}};
    assert_ok(nsa_gate_backward(ctx, &cfg, &batch, &back, NULL));
    require(dgate[0] == -2.0 && dgate[1] == -8.0 && dgate[2] == -2.0);
    require(do0[0] == 0.5 && do0[1] == -0.5 && do1[0] == 0.25 && do1[1] == -0.25 && do2[0] == 0.0 && do2[1] == 0.0);
    nsa_ctx_destroy(ctx);
}

const test_case test_cases[] = {
    TEST(test_against_oracle),
    TEST(test_same_bits_for_any_threads),
    TEST(test_same_bits_in_every_layout),
    TEST(test_by_hand),
    {NULL, NULL, NULL},
};
