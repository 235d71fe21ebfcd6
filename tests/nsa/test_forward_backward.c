/* nsa_forward and nsa_backward: what holds bit for bit. Their values are checked against NumPy in tests/oracle. */
#include "ops/gate/gate.h"
#include "testlib/nsa_case.h"

#include <math.h>

static const nsa_config blocks = {sizeof(nsa_config), 0, 0, 0, 0, 8, 4, 16, 4, 1, 1, 13, 0.0};

static const nsa_shape shapes[] = {
    {4, 2, 16, 16, NSA_F32, LAYOUT_THD, true, false, NSA_PHI_MLP, false},
    {3, 2, 24, 8, NSA_BF16, LAYOUT_THD, true, true, NSA_PHI_GATED_CHANNEL, true},
    {1, 3, 5, 7, NSA_F32, LAYOUT_THD, false, false, NSA_PHI_LINEAR, true},
    {16, 1, 32, 32, NSA_F16, LAYOUT_THD, false, true, NSA_PHI_GATED_TOKEN, false},
    {5, 1, 16, 16, NSA_BF16, LAYOUT_THD, false, false, NSA_PHI_MEAN, false},
    {2, 1, 8, 8, NSA_F64, LAYOUT_THD, true, false, NSA_PHI_MLP, true},
    /* What kernels for tensor cores take, on a GPU. */
    {16, 1, 128, 128, NSA_BF16, LAYOUT_THD, false, false, NSA_PHI_MEAN, false},
    {3, 2, 64, 64, NSA_BF16, LAYOUT_THD, true, true, NSA_PHI_MEAN, false},
    {2, 1, 192, 128, NSA_BF16, LAYOUT_THD, false, false, NSA_PHI_MEAN, false},
    {3, 1, 256, 256, NSA_BF16, LAYOUT_THD, false, false, NSA_PHI_MEAN, false},
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes, TENSOR_CORES = 6 /* the first of those */, MAX_SEQLEN = 97 };

static void new_case(nsa_case *c, nsa_shape shape)
{
    rng r = rng_new();
    const nsa_batch batch = batch_ragged(blocks.slc_block, MAX_SEQLEN);
    nsa_case_init(c, &blocks, &batch, &shape, &r);
}

static void run_both(const nsa_ctx *ctx, nsa_case *c)
{
    run_forward(ctx, c, &c->fwd);
    run_backward(ctx, c, &c->bwd);
}

static void each_shape(void (*test)(const nsa_ctx *ctx, const nsa_shape *shape))
{
    nsa_ctx contexts[MAX_CONTEXTS];
    const int n_contexts = nsa_contexts(contexts, 2);
    for (int x = 0; x < n_contexts; x++)
        for (int i = 0; i < N_SHAPES; i++) {
            if (contexts[x].cuda ? shapes[i].dtype == NSA_F64 : i >= TENSOR_CORES)
                continue;
            testlib_reset();
            test_note("%s, shape %d", nsa_ctx_isa(&contexts[x]), i);
            test(&contexts[x], &shapes[i]);
        }
}

static void same_for_threads_and_runs(const nsa_ctx *ctx, const nsa_shape *shape)
{
    nsa_case expected;
    new_case(&expected, *shape);
    run_both(ctx, &expected);
    static const int32_t n_threads[] = {1, 2, 3, 8};
    for (int i = 0; i < 4; i++) {
        nsa_case got;
        new_case(&got, *shape);
        nsa_ctx other = *ctx;
        other.n_threads = n_threads[i];
        run_both(&other, &got);
        assert_same_forward(&got, &expected);
        assert_same_backward(&got, &expected);
    }
}

static void same_in_every_layout(const nsa_ctx *ctx, const nsa_shape *shape)
{
    static const seq_lengths lengths[] = {{13, 13}, {0, 5}, {41, 41}, {3, 37}, {6, 2}, {20, 20}};
    /* Tensor maps take rows without gaps; others go to kernels whose sums have another order. */
    const int n_layouts = shape - shapes >= TENSOR_CORES ? LAYOUT_GAPS : n_test_layouts();
    for (int as = LAYOUT_THD; as < n_layouts; as++) {
        testlib_reset();
        test_note("%s, shape %d, layout %d", nsa_ctx_isa(ctx), (int)(shape - shapes), as);
        rng r = rng_new();
        const nsa_batch batch = batch_of(lengths, sizeof lengths / sizeof *lengths);
        nsa_shape laid_out = *shape;
        laid_out.as = (layout)as;
        nsa_case got, packed;
        nsa_case_init(&got, &blocks, &batch, &laid_out, &r);
        nsa_case_as(&packed, &got, LAYOUT_THD);
        run_both(ctx, &got);
        run_both(ctx, &packed);
        assert_same_forward(&got, &packed);
        assert_same_backward(&got, &packed);
    }
}

/* A selection of one's own, in any order, with repetitions and entries to be skipped, is the same as one in order. */
static void same_for_untidy_selection(const nsa_ctx *ctx, const nsa_shape *shape)
{
    rng r = rng_new();
    nsa_case untidy, tidy;
    new_case(&untidy, *shape);
    untidy.fwd.slc_idx_given = untidy.bwd.fwd.slc_idx_given = 1;
    nsa_case_as(&tidy, &untidy, LAYOUT_THD);
    tensor_fill_slc_idx(&untidy.slc_idx, &r);
    const test_tensor *idx = &untidy.slc_idx;
    for (int32_t s = 0; s < untidy.batch.n_seqs; s++) {
        const int64_t n_blocks = n_slc_blocks(&untidy.cfg, tensor_rows(&untidy.k[0], s));
        for (int64_t row = 0; row < tensor_rows(idx, s); row++)
            for (int32_t h = 0; h < idx->e.n_heads; h++) {
                int32_t n = 0;
                for (int64_t block = 0; block < n_blocks; block++) {
                    bool selected = false;
                    for (int32_t i = 0; i < idx->e.d; i++)
                        selected |= tensor_get(idx, s, row, h, i) == (double)block;
                    if (selected)
                        tensor_set(&tidy.slc_idx, s, row, h, n++, (double)block);
                }
                while (n < idx->e.d)
                    tensor_set(&tidy.slc_idx, s, row, h, n++, -1.0);
            }
    }
    run_both(ctx, &untidy);
    run_both(ctx, &tidy);
    tidy.slc_idx = untidy.slc_idx; /* of the results all the others */
    assert_same_forward(&untidy, &tidy);
    assert_same_backward(&untidy, &tidy);
}

/* Inference keeps nothing; own slc_idx, k_cmp and v_cmp that equal those made inside change nothing. */
static void same_without_residuals(const nsa_ctx *ctx, const nsa_shape *shape)
{
    nsa_case c;
    new_case(&c, *shape);
    run_forward(ctx, &c, &c.fwd);

    nsa_forward_args bare = c.fwd;
    const test_tensor o = tensor_like(&c.o, shape->dtype);
    bare.o = o.t;
    bare.k_cmp.data = bare.v_cmp.data = bare.slc_idx.data = NULL;
    for (int i = 0; i < NSA_N_BRANCHES; i++)
        bare.o_branch[i].data = bare.lse[i].data = NULL;
    run_forward(ctx, &c, &bare);
    assert_same_bits("o without residuals", &o, &c.o);

    const test_tensor again = tensor_like(&c.o, shape->dtype);
    nsa_forward_args own = c.fwd;
    own.o = again.t;
    own.phi_k = own.phi_v = NULL;
    own.k[NSA_CMP].data = own.v[NSA_CMP].data = NULL;
    own.slc_idx_given = 1;
    run_forward(ctx, &c, &own);
    assert_same_bits("o with own slc_idx, k_cmp, v_cmp", &again, &c.o);
}

/* o is the gated sum of the branches as they are kept, be it made by an operation of its own or where win is: also of
 * what is not finite, and by gates of q's dtype. */
static void is_gated_sum(const nsa_ctx *ctx, const nsa_shape *shape)
{
    static const double values[] = {NAN, INFINITY, -INFINITY};
    nsa_case c;
    new_case(&c, *shape);
    const test_tensor *v = &c.v[NSA_WIN];
    for (int32_t s = 0; s < c.batch.n_seqs; s++)
        for (int64_t t = 7; t < tensor_rows(v, s); t += 41)
            for (int32_t i = 0; i < v->e.d; i++)
                tensor_set(v, s, t, v->e.n_heads - 1, i, values[i % 3]);
    for (int narrow = 0; narrow < 2; narrow++) {
        if (narrow)
            c.fwd.gate = tensor_copy(&c.gate, shape->dtype).t;
        run_forward(ctx, &c, &c.fwd);
        const test_tensor sum = tensor_like(&c.o, shape->dtype);
        gate_problem g = {.ctx = ctx, .cfg = &c.cfg, .seqs = seqs_of_batch(&c.batch), .gate = c.fwd.gate, .o = sum.t};
        for (int b = 0; b < NSA_N_BRANCHES; b++)
            g.o_branch[b] = c.o_branch[b].t;
        run_op(ctx, gate_choose(&g)->forward, &g, sizeof g);
        assert_same_bits("o", &c.o, &sum);
    }
}

/* Gradients of branches that share an output are the sum of what each gives alone, to one rounding of each term. */
static void assert_sum(const test_tensor *sum, const test_tensor terms[NSA_N_BRANCHES])
{
    const double ulp = sum->t.dtype == NSA_F64 ? 0x1p-52 : 0x1p-23;
    for (int32_t s = 0; s < sum->batch->n_seqs; s++)
        for (int64_t t = 0; t < tensor_rows(sum, s); t++)
            for (int32_t h = 0; h < sum->e.n_heads; h++)
                for (int32_t c = 0; c < sum->e.d; c++) {
                    double expected = 0.0, size = 0.0;
                    for (int i = 0; i < NSA_N_BRANCHES; i++) {
                        expected += tensor_get(&terms[i], s, t, h, c);
                        size += fabs(tensor_get(&terms[i], s, t, h, c));
                    }
                    const double got = tensor_get(sum, s, t, h, c);
                    if (!(fabs(got - expected) <= 2.0 * ulp * size))
                        test_fail(
                            "sum of gradients: sequence %d, token %lld, head %d, channel %d: %.17g, expected %.17g", s,
                            (long long)t, h, c, got, expected);
                }
}

static void shared_gradients_add_up(const nsa_ctx *ctx, const nsa_shape *shape)
{
    if (shape->dtype != NSA_F32 && shape->dtype != NSA_F64)
        return;
    nsa_case c;
    nsa_shape one = *shape;
    one.shared = true;
    new_case(&c, one);
    run_both(ctx, &c);

    nsa_backward_args apart = c.bwd;
    nsa_tensor *outputs[3] = {apart.dq, apart.dk, apart.dv};
    const test_tensor *sums[3] = {&c.dq[0], &c.dk[0], &c.dv[0]};
    test_tensor terms[3][NSA_N_BRANCHES];
    for (int g = 0; g < 3; g++)
        for (int i = 0; i < NSA_N_BRANCHES; i++) {
            terms[g][i] = tensor_like(sums[g], shape->dtype);
            outputs[g][i] = terms[g][i].t;
        }
    run_backward(ctx, &c, &apart);
    for (int g = 0; g < 3; g++)
        assert_sum(sums[g], terms[g]);
}

/* The same numbers in float32. */
static nsa_phi widened_phi(const nsa_case *c, int32_t d, nsa_phi phi)
{
    nsa_phi wide = phi;
    wide.dtype = NSA_F32;
    for (int m = 0; m < N_MEMBERS; m++) {
        const int64_t n = phi_member_size(c, d, m);
        if (n == 0)
            continue;
        *phi_member(&wide, m) = elements(n, NSA_F32);
        dtype_load_row(*phi_member(&wide, m), *phi_member(&phi, m), phi.dtype, n);
    }
    return wide;
}

static void assert_rounded(const char *what, const test_tensor *half, const test_tensor *wide)
{
    const test_tensor rounded = tensor_copy(wide, half->t.dtype);
    assert_same_bits(what, half, &rounded);
}

static void assert_phi_rounded(const nsa_case *c, int32_t d, nsa_phi half, nsa_phi wide)
{
    for (int m = 0; m < N_MEMBERS; m++) {
        const int64_t n = phi_member_size(c, d, m);
        if (n == 0)
            continue;
        void *rounded = elements(n, half.dtype);
        dtype_store_row(rounded, half.dtype, *phi_member(&wide, m), n);
        if (memcmp(*phi_member(&half, m), rounded, (size_t)n * dtype_size(half.dtype)) != 0)
            test_fail("gradients of phi are not those of float32, rounded: member %d", m);
    }
}

/* The backward pass of f16 tensors is that of float32 from the same numbers, rounded once, at its end: where branches
 * share a gradient too, and nothing on the way from cmp to phi. (bf16's may round p and ds on the way.) */
static void half_is_float_rounded_once(const nsa_ctx *ctx, const nsa_shape *shape)
{
    if (ctx->reference) /* sums are double there, and rounded once from that */
        return;
    nsa_case c;
    nsa_shape half = *shape;
    half.dtype = NSA_F16;
    new_case(&c, half);
    run_both(ctx, &c);

    const int32_t d_qk = c.cfg.d_qk, d_v = c.cfg.d_v;
    const nsa_phi phi_k = widened_phi(&c, d_qk, c.phi_k), phi_v = widened_phi(&c, d_v, c.phi_v);
    const nsa_phi dphi_k = widened_phi(&c, d_qk, c.dphi_k), dphi_v = widened_phi(&c, d_v, c.dphi_v);
    const test_tensor dgate = tensor_like(&c.dgate, NSA_F32);
    test_tensor dq[NSA_N_BRANCHES], dk[NSA_N_BRANCHES], dv[NSA_N_BRANCHES];
    nsa_backward_args wide = c.bwd;
    wide.fwd.phi_k = &phi_k, wide.fwd.phi_v = &phi_v;
    wide.dphi_k = &dphi_k, wide.dphi_v = &dphi_v;
    wide.fwd.gate = tensor_copy(&c.gate, NSA_F32).t;
    wide.fwd.k_cmp = tensor_copy(&c.k_cmp, NSA_F32).t, wide.fwd.v_cmp = tensor_copy(&c.v_cmp, NSA_F32).t;
    wide.d_o = tensor_copy(&c.d_o, NSA_F32).t;
    wide.dgate = dgate.t;
    for (int i = 0; i < NSA_N_BRANCHES; i++) {
        const bool copy = i > 0 && shape->shared;
        wide.fwd.q[i] = tensor_copy(&c.q[i], NSA_F32).t;
        wide.fwd.k[i] = tensor_copy(&c.k[i], NSA_F32).t;
        wide.fwd.v[i] = tensor_copy(&c.v[i], NSA_F32).t;
        wide.fwd.o_branch[i] = tensor_copy(&c.o_branch[i], NSA_F32).t;
        dq[i] = copy ? dq[0] : tensor_like(&c.dq[i], NSA_F32);
        dk[i] = copy ? dk[0] : tensor_like(&c.dk[i], NSA_F32);
        dv[i] = copy ? dv[0] : tensor_like(&c.dv[i], NSA_F32);
        wide.dq[i] = dq[i].t, wide.dk[i] = dk[i].t, wide.dv[i] = dv[i].t;
    }
    run_backward(ctx, &c, &wide);
    for (int i = 0; i < NSA_N_BRANCHES; i++) {
        assert_rounded("dq", &c.dq[i], &dq[i]);
        assert_rounded("dk", &c.dk[i], &dk[i]);
        assert_rounded("dv", &c.dv[i], &dv[i]);
    }
    assert_rounded("dgate", &c.dgate, &dgate);
    assert_phi_rounded(&c, d_qk, c.dphi_k, dphi_k);
    assert_phi_rounded(&c, d_v, c.dphi_v, dphi_v);
}

static void test_threads(void **state)
{
    (void)state;
    each_shape(same_for_threads_and_runs);
}

static void test_layouts(void **state)
{
    (void)state;
    each_shape(same_in_every_layout);
}

static void test_untidy_selection(void **state)
{
    (void)state;
    each_shape(same_for_untidy_selection);
}

static void test_residuals(void **state)
{
    (void)state;
    each_shape(same_without_residuals);
}

static void test_gated_sum(void **state)
{
    (void)state;
    each_shape(is_gated_sum);
}

static void test_shared_gradients(void **state)
{
    (void)state;
    each_shape(shared_gradients_add_up);
}

static void test_half_is_rounded_once(void **state)
{
    (void)state;
    each_shape(half_is_float_rounded_once);
}

static void test_nothing(void **state)
{
    (void)state;
    nsa_ctx contexts[MAX_CONTEXTS];
    const int n_contexts = nsa_contexts(contexts, 2);
    for (int x = 0; x < n_contexts; x++) {
        testlib_reset();
        rng r = rng_new();
        const nsa_batch none = {0};
        nsa_case c;
        nsa_case_init(&c, &blocks, &none, &shapes[0], &r);
        run_both(&contexts[x], &c);
    }
}

const test_case test_cases[] = {
    TEST(test_threads),   TEST(test_layouts),          TEST(test_untidy_selection),     TEST(test_residuals),
    TEST(test_gated_sum), TEST(test_shared_gradients), TEST(test_half_is_rounded_once), TEST(test_nothing),
    {NULL, NULL, NULL},
};
