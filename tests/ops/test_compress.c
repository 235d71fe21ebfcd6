/* Compression: every implementation on every instruction set against the oracle, the oracle against differences. */
#include "testlib/compress_case.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const nsa_ctx oracle_ctx = {.n_threads = 1, .reference = true};

/* ---- Against the oracle */

static const compress_shape shapes[] = {
    {NSA_PHI_MEAN, 8, 4, 83, 2, 16, 0, false, false, NSA_F32, NSA_F32, LAYOUT_THD, LAYOUT_THD},
    {NSA_PHI_MEAN, 6, 3, 71, 2, 33, 0, true, false, NSA_BF16, NSA_F32, LAYOUT_BSHD, LAYOUT_BHSD},
    {NSA_PHI_MEAN, 1, 1, 71, 1, 5, 0, false, false, NSA_F16, NSA_F16, LAYOUT_HTD, LAYOUT_GAPS},
    {NSA_PHI_MEAN, 4, 4, 2503, 1, 8, 0, false, false, NSA_F32, NSA_F32, LAYOUT_THD, LAYOUT_THD},
    {NSA_PHI_LINEAR, 8, 4, 83, 2, 16, 0, false, false, NSA_F32, NSA_F32, LAYOUT_THD, LAYOUT_THD},
    {NSA_PHI_LINEAR, 8, 2, 211, 3, 7, 0, true, true, NSA_F32, NSA_F32, LAYOUT_GAPS, LAYOUT_BHSD},
    {NSA_PHI_LINEAR, 6, 3, 71, 2, 33, 0, true, false, NSA_BF16, NSA_BF16, LAYOUT_BHSD, LAYOUT_THD},
    {NSA_PHI_LINEAR, 4, 4, 61, 2, 256, 0, false, true, NSA_F16, NSA_F32, LAYOUT_ONE_HEAD, LAYOUT_THD},
    {NSA_PHI_LINEAR, 32, 16, 300, 1, 1, 0, false, false, NSA_F32, NSA_F32, LAYOUT_ONE_TOKEN, LAYOUT_GAPS},
    {NSA_PHI_GATED_TOKEN, 8, 4, 83, 2, 16, 0, false, false, NSA_F32, NSA_F32, LAYOUT_THD, LAYOUT_THD},
    {NSA_PHI_GATED_TOKEN, 9, 3, 2111, 2, 7, 0, true, false, NSA_F16, NSA_F16, LAYOUT_GAPS, LAYOUT_BSHD},
    {NSA_PHI_GATED_TOKEN, 2, 2, 29, 1, 1, 0, true, false, NSA_F32, NSA_F32, LAYOUT_THD, LAYOUT_THD},
    {NSA_PHI_GATED_CHANNEL, 8, 4, 83, 2, 16, 0, false, false, NSA_F32, NSA_F32, LAYOUT_THD, LAYOUT_THD},
    {NSA_PHI_GATED_CHANNEL, 9, 3, 1501, 2, 7, 0, true, false, NSA_BF16, NSA_F32, LAYOUT_BHSD, LAYOUT_HTD},
    {NSA_PHI_GATED_CHANNEL, 32, 16, 300, 1, 64, 0, false, false, NSA_F32, NSA_F32, LAYOUT_THD, LAYOUT_THD},
    {NSA_PHI_MLP, 8, 4, 83, 2, 16, 16, false, false, NSA_F32, NSA_F32, LAYOUT_THD, LAYOUT_THD},
    {NSA_PHI_MLP, 8, 2, 347, 2, 7, 5, true, false, NSA_F32, NSA_F32, LAYOUT_GAPS, LAYOUT_BHSD},
    {NSA_PHI_MLP, 6, 3, 71, 2, 33, 70, true, true, NSA_BF16, NSA_F32, LAYOUT_BSHD, LAYOUT_THD},
    {NSA_PHI_MLP, 4, 4, 29, 2, 12, 530, false, false, NSA_F16, NSA_F16, LAYOUT_HTD, LAYOUT_HTD},
    {NSA_PHI_MLP, 32, 16, 300, 1, 32, 1, false, false, NSA_F32, NSA_F32, LAYOUT_THD, LAYOUT_THD},
    {NSA_PHI_MEAN, 32, 16, 300, 3, 128, 0, false, false, NSA_BF16, NSA_F32, LAYOUT_THD, LAYOUT_THD},
    {NSA_PHI_MEAN, 8, 2, 83, 70, 40, 0, false, false, NSA_F16, NSA_F32, LAYOUT_GAPS, LAYOUT_THD},
    {NSA_PHI_LINEAR, 8, 4, 300, 3, 64, 0, false, false, NSA_BF16, NSA_F32, LAYOUT_THD, LAYOUT_THD},
    {NSA_PHI_LINEAR, 32, 16, 150, 2, 128, 0, true, true, NSA_BF16, NSA_BF16, LAYOUT_BHSD, LAYOUT_GAPS},
    {NSA_PHI_LINEAR, 2, 2, 71, 1, 256, 0, true, false, NSA_BF16, NSA_F32, LAYOUT_HTD, LAYOUT_BSHD},
    {NSA_PHI_MLP, 8, 4, 300, 2, 64, 70, false, false, NSA_BF16, NSA_F32, LAYOUT_THD, LAYOUT_THD},
    {NSA_PHI_MLP, 6, 1, 83, 3, 64, 129, true, false, NSA_BF16, NSA_F32, LAYOUT_BSHD, LAYOUT_BHSD},
    {NSA_PHI_MLP, 16, 8, 211, 2, 192, 40, false, true, NSA_BF16, NSA_BF16, LAYOUT_THD, LAYOUT_GAPS},
    {NSA_PHI_MLP, 9, 3, 71, 1, 128, 1, true, false, NSA_BF16, NSA_BF16, LAYOUT_HTD, LAYOUT_THD},
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static void start_case(compress_case *c, int i, rng *r)
{
    testlib_reset();
    test_note("case %d", i);
    const nsa_batch batch = batch_ragged(shapes[i].block, shapes[i].max);
    compress_case_init(c, &shapes[i], &batch, r);
}

/* Calls test for every implementation that takes the case, on every instruction set. */
typedef void impl_fn(const compress_case *c, const nsa_ctx *ctx, const compress_impl *impl, void *expected);

static void each_impl(const compress_case *c, int i, int32_t n_threads, impl_fn *test, void *expected)
{
    nsa_ctx contexts[MAX_CONTEXTS];
    const int n_contexts = test_contexts(contexts, n_threads);
    for (int x = 0; x < n_contexts; x++)
        for (const compress_impl *impl = compress_impls; impl->name != NULL; impl++) {
            const compress_problem p = compress_problem_of(c, &contexts[x], REF_EXACT);
            if (!impl->supports(&p) || (x > 0 && impl == compress_oracle()))
                continue;
            test_note("%s, %s, case %d", impl->name, nsa_ctx_isa(&contexts[x]), i);
            test(c, &contexts[x], impl, expected);
        }
}

typedef struct reference {
    test_tensor y, y_rounded, y_size;
    test_tensor start; /* what dx is added to */
    bool add;
    nsa_dtype dx_dtype;
    compress_grads exact, rounded, size;
} reference;

static void compare_with_oracle(const compress_case *c, const nsa_ctx *ctx, const compress_impl *impl, void *expected)
{
    const reference *want = expected;
    const test_tensor y = compress_run_forward(c, ctx, impl, REF_EXACT, c->shape.dtype);
    assert_close("y", &y, &want->y, &want->y_rounded, &want->y_size);
    assert_padding_intact("y", &y);
    compress_grads g;
    compress_run_backward(c, ctx, impl, REF_EXACT, want->add ? &want->start : NULL, want->dx_dtype, c->shape.phi_dtype,
                          &g);
    assert_close("dx", &g.dx, &want->exact.dx, &want->rounded.dx, &want->size.dx);
    assert_padding_intact("dx", &g.dx);
    for (int m = 0; m < N_PHI_MEMBERS; m++)
        if (g.dphi.given[m])
            assert_close(phi_member_names[m], &g.dphi.m[m], &want->exact.dphi.m[m], &want->rounded.dphi.m[m],
                         &want->size.dphi.m[m]);
}

static void against_oracle(bool add)
{
    rng r = rng_new();
    for (int i = 0; i < N_SHAPES; i++) {
        compress_case c;
        start_case(&c, i, &r);
        reference want = {.add = add, .dx_dtype = add ? NSA_F32 : c.shape.dtype};
        want.y = compress_run_forward(&c, &oracle_ctx, compress_oracle(), REF_EXACT, NSA_F64);
        want.y_rounded = compress_run_forward(&c, &oracle_ctx, compress_oracle(), REF_F32, c.shape.dtype);
        want.start = tensor_new(&c.cfg, &c.batch, SIDE_K, c.shape.n_heads, c.shape.d, NSA_F32, c.shape.out);
        tensor_fill_normal(&want.start, &r, 1.0);
        const test_tensor *start = add ? &want.start : NULL;
        compress_run_backward(&c, &oracle_ctx, compress_oracle(), REF_EXACT, start, NSA_F64, NSA_F64, &want.exact);
        compress_run_backward(&c, &oracle_ctx, compress_oracle(), REF_F32, start, want.dx_dtype, c.shape.phi_dtype,
                              &want.rounded);
        compress_sizes(&c, start, &want.y_size, &want.size);
        each_impl(&c, i, 2, compare_with_oracle, &want);
    }
}

static void test_against_oracle(void **state)
{
    (void)state;
    against_oracle(false);
}

static void test_adds_to_dx(void **state)
{
    (void)state;
    against_oracle(true);
}

/* ---- The same bits for any number of threads */

static void assert_same_grads(const compress_grads *got, const compress_grads *want)
{
    assert_same_bits("dx", &got->dx, &want->dx);
    for (int m = 0; m < N_PHI_MEMBERS; m++)
        if (got->dphi.given[m])
            assert_same_bits(phi_member_names[m], &got->dphi.m[m], &want->dphi.m[m]);
}

static void compare_threads(const compress_case *c, const nsa_ctx *ctx, const compress_impl *impl, void *expected)
{
    (void)expected;
    const test_tensor y = compress_run_forward(c, ctx, impl, REF_EXACT, c->shape.dtype);
    compress_grads g;
    compress_run_backward(c, ctx, impl, REF_EXACT, NULL, c->shape.dtype, c->shape.phi_dtype, &g);
    const int32_t n_threads[] = {1, 2, 3, 8};
    for (int i = 0; i < 4; i++) {
        nsa_ctx other = *ctx;
        other.n_threads = n_threads[i];
        const test_tensor y_again = compress_run_forward(c, &other, impl, REF_EXACT, c->shape.dtype);
        assert_same_bits("y", &y_again, &y);
        compress_grads again;
        compress_run_backward(c, &other, impl, REF_EXACT, NULL, c->shape.dtype, c->shape.phi_dtype, &again);
        assert_same_grads(&again, &g);
    }
}

static void test_same_bits_for_any_threads(void **state)
{
    (void)state;
    rng r = rng_new();
    const int chosen[] = {3, 5, 10, 13, 16, 18, 22, 24, 25, 26};
    for (int i = 0; i < 10; i++) {
        compress_case c;
        start_case(&c, chosen[i], &r);
        each_impl(&c, chosen[i], 1, compare_threads, NULL);
    }
}

/* ---- The same bits in every layout */

static void compare_with_packed(const compress_case *c, const nsa_ctx *ctx, const compress_impl *impl, void *expected)
{
    const compress_case *packed = expected;
    const test_tensor want = compress_run_forward(packed, ctx, impl, REF_EXACT, c->shape.dtype),
                      got = compress_run_forward(c, ctx, impl, REF_EXACT, c->shape.dtype);
    assert_same_bits("y", &got, &want);
    assert_padding_intact("y", &got);
    compress_grads g, packed_g;
    compress_run_backward(packed, ctx, impl, REF_EXACT, NULL, c->shape.dtype, c->shape.phi_dtype, &packed_g);
    compress_run_backward(c, ctx, impl, REF_EXACT, NULL, c->shape.dtype, c->shape.phi_dtype, &g);
    assert_same_grads(&g, &packed_g);
    assert_padding_intact("dx", &g.dx);
}

static void test_same_bits_in_every_layout(void **state)
{
    (void)state;
    rng r = rng_new();
    enum { KINDS = NSA_PHI_MLP + 1 };
    for (int i = 0; i < 2 * KINDS; i++)
        for (int as = LAYOUT_THD; as < n_test_layouts(); as++) {
            testlib_reset();
            const bool even = i % 2 == 0, wide = i >= KINDS;
            const compress_shape sh = {.kind = (nsa_phi_kind)(i % KINDS),
                                       .block = 4,
                                       .stride = 2,
                                       .n_heads = 3,
                                       .d = wide   ? 64
                                            : even ? 16
                                                   : 7,
                                       .hidden = 9,
                                       .per_head = even,
                                       .dtype = even && !wide ? NSA_F32 : NSA_BF16,
                                       .phi_dtype = NSA_F32,
                                       .x = (layout)as,
                                       .out = output_layout((layout)as)};
            const nsa_batch batch = batch_of((const seq_lengths[]){{0, 13}, {0, 3}, {0, 0}, {0, 40}, {0, 8}}, 5);
            compress_case c;
            compress_case_init(&c, &sh, &batch, &r);
            compress_case packed = c;
            packed.shape.out = LAYOUT_THD;
            packed.x = tensor_as(&c.x, LAYOUT_THD);
            packed.dy = tensor_as(&c.dy, LAYOUT_THD);
            each_impl(&c, as, 2, compare_with_packed, &packed);
        }
}

/* ---- A bad token changes its own blocks only; one in no block changes nothing */

static int64_t tail_of(const compress_case *c, int32_t s) /* the first token in no block */
{
    const int64_t n = nsa_n_cmp(&c->cfg, tensor_rows(&c->x, s));
    return n == 0 ? 0 : (n - 1) * c->cfg.cmp_stride + c->cfg.cmp_block;
}

static void fill_tail(const compress_case *c, double value)
{
    for (int32_t s = 0; s < c->batch.n_seqs; s++)
        for (int64_t t = tail_of(c, s); t < tensor_rows(&c->x, s); t++)
            for (int32_t h = 0; h < c->x.e.n_heads; h++)
                for (int32_t i = 0; i < c->x.e.d; i++)
                    tensor_set(&c->x, s, t, h, i, value);
}

static void compare_tail(const compress_case *c, const nsa_ctx *ctx, const compress_impl *impl, void *expected)
{
    (void)expected;
    compress_grads g[2];
    test_tensor y[2];
    for (int i = 0; i < 2; i++) {
        fill_tail(c, i == 0 ? 1.0 : NAN);
        y[i] = compress_run_forward(c, ctx, impl, REF_EXACT, c->shape.dtype);
        compress_run_backward(c, ctx, impl, REF_EXACT, NULL, c->shape.dtype, c->shape.phi_dtype, &g[i]);
    }
    assert_same_bits("y", &y[1], &y[0]);
    assert_same_grads(&g[1], &g[0]);
    for (int32_t s = 0; s < c->batch.n_seqs; s++)
        for (int64_t t = tail_of(c, s); t < tensor_rows(&c->x, s); t++)
            for (int32_t i = 0; i < c->shape.d; i++)
                require(tensor_get(&g[0].dx, s, t, 0, i) == 0.0);
}

static void compare_bad_token(const compress_case *c, const nsa_ctx *ctx, const compress_impl *impl, void *expected)
{
    (void)expected;
    enum { SEQ = 5 }; /* the longest of batch_ragged */
    const int64_t t = tensor_rows(&c->x, SEQ) / 2, stride = c->cfg.cmp_stride, block = c->cfg.cmp_block;
    const double before = tensor_get(&c->x, SEQ, t, 0, 0);
    const test_tensor y = compress_run_forward(c, ctx, impl, REF_EXACT, c->shape.dtype);
    compress_grads g, bad;
    compress_run_backward(c, ctx, impl, REF_EXACT, NULL, c->shape.dtype, c->shape.phi_dtype, &g);
    tensor_set(&c->x, SEQ, t, 0, 0, NAN);
    const test_tensor y_bad = compress_run_forward(c, ctx, impl, REF_EXACT, c->shape.dtype);
    compress_run_backward(c, ctx, impl, REF_EXACT, NULL, c->shape.dtype, c->shape.phi_dtype, &bad);
    tensor_set(&c->x, SEQ, t, 0, 0, before);
    for (int32_t s = 0; s < c->batch.n_seqs; s++)
        for (int32_t h = 0; h < c->shape.n_heads; h++) {
            for (int64_t i = 0; i < tensor_rows(&y, s); i++)
                if ((s != SEQ || h != 0 || t < i * stride || t >= i * stride + block) &&
                    !row_same_bits(&y_bad, &y, s, i, h))
                    test_fail("seq %d, block %lld, head %d: changed by a token not in it", s, (long long)i, h);
            for (int64_t j = 0; j < tensor_rows(&c->x, s); j++)
                if ((s != SEQ || h != 0 || llabs(j - t) >= block) && !row_same_bits(&bad.dx, &g.dx, s, j, h))
                    test_fail("seq %d, token %lld, head %d: dx changed by a token that shares no block", s,
                              (long long)j, h);
        }
}

static void test_bad_tokens(void **state)
{
    (void)state;
    rng r = rng_new();
    const int chosen[] = {0, 1, 5, 6, 10, 13, 16, 17, 20, 22, 23, 25, 27};
    for (int i = 0; i < 13; i++) {
        compress_case c;
        start_case(&c, chosen[i], &r);
        each_impl(&c, chosen[i], 2, compare_tail, NULL);
        each_impl(&c, chosen[i], 2, compare_bad_token, NULL);
    }
}

/* ---- As a cache calls it: the last tokens in a tensor, those before in a ring, the new blocks only */

enum { RING = 160 };

typedef struct ring_case {
    const compress_case *c;
    char *ring; /* [seq][head][RING][d] */
    const int32_t *n_old;
} ring_case;

static void locate(const void *cache, int part, int32_t s, int32_t head, rows *out)
{
    (void)part;
    const ring_case *k = cache;
    out->split = k->n_old[s];
    out->ring = k->ring + (s * k->c->shape.n_heads + head) * RING * out->row_bytes;
    out->ring_rows = RING;
}

static int64_t length_k(const void *cache, int32_t s)
{
    return tensor_rows(&((const ring_case *)cache)->c->x, s);
}

static void compare_with_whole(const compress_case *c, const nsa_ctx *ctx, const compress_impl *impl, void *expected)
{
    (void)expected;
    enum { N = 14 };
    if (ctx->cuda) /* the cache is the CPU's */
        return;
    const test_tensor whole = compress_run_forward(c, ctx, impl, REF_EXACT, c->shape.dtype);
    seq_lengths added[N];
    int32_t n_old[N], first[N], y_row[N], len_k[N], n_rows = 0;
    for (int32_t s = 0; s < c->batch.n_seqs; s++) {
        len_k[s] = (int32_t)tensor_rows(&c->x, s);
        added[s] = (seq_lengths){0, (len_k[s] + 2) / 3};
        n_old[s] = len_k[s] - added[s].k;
        first[s] = (int32_t)nsa_n_cmp(&c->cfg, n_old[s]);
        y_row[s] = n_rows;
        n_rows += (int32_t)nsa_n_cmp(&c->cfg, len_k[s]) - first[s];
    }
    require(c->batch.n_seqs == N);
    const nsa_batch new_tokens = batch_of(added, N), new_blocks = batch_of(&(seq_lengths){0, n_rows}, 1);
    const size_t row_bytes = (size_t)c->shape.d * dtype_size(c->shape.dtype);
    const ring_case k = {c, guarded((size_t)(N * c->shape.n_heads * RING) * row_bytes, FLUSH_LEFT), n_old};
    const test_tensor x =
        tensor_new(&c->cfg, &new_tokens, SIDE_K, c->shape.n_heads, c->shape.d, c->shape.dtype, c->shape.x);
    for (int32_t s = 0; s < N; s++)
        for (int32_t h = 0; h < c->shape.n_heads; h++)
            for (int32_t i = 0; i < c->shape.d; i++) {
                for (int64_t t = first[s] * c->cfg.cmp_stride; t < n_old[s]; t++)
                    dtype_set(k.ring, c->shape.dtype, ((s * c->shape.n_heads + h) * RING + t % RING) * c->shape.d + i,
                              tensor_get(&c->x, s, t, h, i));
                for (int64_t t = n_old[s]; t < len_k[s]; t++)
                    tensor_set(&x, s, t - n_old[s], h, i, tensor_get(&c->x, s, t, h, i));
            }
    compress_problem p = compress_problem_of(c, ctx, REF_EXACT);
    p.seqs.cu_k = NULL;
    p.seqs.len_k = length_k;
    p.seqs.cache = &k;
    p.x = rows_from_tensor(&x.t, c->shape.d, new_tokens.cu_seqlens_k, 1);
    p.x.locate = locate;
    p.x.cache = &k;
    p.first = first;
    p.y_row = y_row;
    const test_tensor y =
        tensor_new(&c->cfg, &new_blocks, SIDE_K, c->shape.n_heads, c->shape.d, c->shape.dtype, LAYOUT_THD);
    p.y = y.t;
    run_op(ctx, impl->forward, &p, sizeof p);
    for (int32_t s = 0; s < N; s++)
        for (int64_t i = first[s]; i < tensor_rows(&whole, s); i++)
            for (int32_t h = 0; h < c->shape.n_heads; h++)
                for (int32_t e = 0; e < c->shape.d; e++)
                    if (tensor_get(&whole, s, i, h, e) != tensor_get(&y, 0, y_row[s] + i - first[s], h, e))
                        test_fail("seq %d, block %lld, head %d: not what the whole gives", s, (long long)i, h);
}

static void test_as_a_cache(void **state)
{
    (void)state;
    rng r = rng_new();
    const int chosen[] = {0, 1, 5, 6, 9, 13, 16, 17, 20};
    for (int i = 0; i < 9; i++) {
        compress_case c;
        start_case(&c, chosen[i], &r);
        each_impl(&c, chosen[i], 2, compare_with_whole, NULL);
    }
}

/* ---- The oracle's values, where they can be told without it */

/* Blocks of tokens 0..2 and 1..3 of one sequence of 4, d = 2; x[t] = {t, 10 - t}. */
static void run_by_hand(const nsa_phi *phi, double y[4])
{
    nsa_config cfg;
    nsa_config_init(&cfg);
    cfg.n_heads_q = cfg.n_heads_kv = 1;
    cfg.cmp_block = cfg.slc_block = 3;
    cfg.cmp_stride = 1;
    const int32_t cu[] = {0, 4};
    const nsa_batch batch = {.n_seqs = 1, .max_seqlen_k = 4, .total_k = 4, .cu_seqlens_k = cu};
    double x[] = {0.0, 10.0, 1.0, 9.0, 2.0, 8.0, 3.0, 7.0};
    const nsa_compress_args args = {2, *phi, nsa_packed(x, NSA_F64, 1, 2), nsa_packed(y, NSA_F64, 1, 2)};
    size_t bytes = 0;
    assert_ok(nsa_compress_workspace(&oracle_ctx, &cfg, &batch, &args, &bytes));
    void *ws = guarded(bytes, FLUSH_RIGHT);
    assert_ok(nsa_compress(&oracle_ctx, &cfg, &batch, &args, ws, bytes, NULL));
}

static void assert_values(const char *what, const double got[4], double a, double b, double c, double d)
{
    const double want[] = {a, b, c, d};
    for (int i = 0; i < 4; i++)
        if (!(fabs(got[i] - want[i]) <= 1e-14 * fmax(1.0, fabs(want[i]))))
            test_fail("%s: element %d is %.17g, must be %.17g", what, i, got[i], want[i]);
}

static void test_by_hand(void **state)
{
    (void)state;
    testlib_reset();
    test_note("by hand");
    double y[4];
    run_by_hand(&(nsa_phi){.kind = NSA_PHI_MEAN}, y);
    assert_values("mean", y, 1.0, 9.0, 2.0, 8.0);

    /* The token in the middle, its channels exchanged, with 0.5 and 0.25 of pe added. */
    double pe[] = {9.0, 9.0, 0.5, 0.25, 9.0, 9.0}, w1[12] = {0.0};
    w1[2 * 2 + 1] = w1[3 * 2 + 0] = 1.0;
    run_by_hand(&(nsa_phi){.kind = NSA_PHI_LINEAR, .dtype = NSA_F64, .pe = pe, .w1 = w1}, y);
    assert_values("linear", y, 9.25, 1.5, 8.25, 2.5);

    /* Logits ln 1, ln 2, ln 3 by position, plus ln 2 for each step of the first channel: weights 1, 4, 12 of 17. */
    double u[] = {log(2.0), 0.0}, by_token[] = {0.0, log(2.0), log(3.0)};
    run_by_hand(&(nsa_phi){.kind = NSA_PHI_GATED_TOKEN, .dtype = NSA_F64, .w1 = u, .b1 = by_token}, y);
    assert_values("gated_token", y, 28.0 / 17, 10 - 28.0 / 17, 1 + 28.0 / 17, 9 - 28.0 / 17);

    /* The first channel's logits as above, all of the second's equal. */
    double by_channel[] = {0.0, 0.0, log(2.0), 0.0, log(3.0), 0.0}, uc[] = {log(2.0), 0.0, 0.0, 0.0};
    run_by_hand(&(nsa_phi){.kind = NSA_PHI_GATED_CHANNEL, .dtype = NSA_F64, .w1 = uc, .b1 = by_channel}, y);
    assert_values("gated_channel", y, 28.0 / 17, 9.0, 1 + 28.0 / 17, 8.0);

    /* One hidden unit that sees the last token's first channel, less 2: GELU(0) = 0, GELU(1) = Phi(1). */
    double w_hidden[6] = {0.0}, less[] = {-2.0}, w2[] = {1.0, -2.0}, b2[] = {0.5, 0.0};
    w_hidden[4] = 1.0;
    run_by_hand(
        &(nsa_phi){
            .kind = NSA_PHI_MLP, .dtype = NSA_F64, .d_hidden = 1, .w1 = w_hidden, .b1 = less, .w2 = w2, .b2 = b2},
        y);
    assert_values("mlp", y, 0.5, 0.0, 0.5 + 0.84134474606854295, -2.0 * 0.84134474606854295);
}

/* ---- The oracle's gradients against central differences of L = sum of dy * y */

static double loss(const compress_case *c, const test_tensor *y)
{
    compress_problem p = compress_problem_of(c, &oracle_ctx, REF_EXACT);
    p.y = y->t;
    run_op(&oracle_ctx, compress_oracle()->forward, &p, sizeof p);
    double sum = 0.0;
    for (int32_t s = 0; s < c->batch.n_seqs; s++)
        for (int64_t i = 0; i < tensor_rows(y, s); i++)
            for (int32_t h = 0; h < c->shape.n_heads; h++)
                for (int32_t e = 0; e < c->shape.d; e++)
                    sum += tensor_get(&c->dy, s, i, h, e) * tensor_get(y, s, i, h, e);
    return sum;
}

static void compare_with_differences(const compress_case *c, const char *what, const test_tensor *x,
                                     const test_tensor *grad)
{
    const double step = 1e-3;
    const test_tensor y = tensor_new(&c->cfg, &c->batch, SIDE_CMP, c->shape.n_heads, c->shape.d, NSA_F64, LAYOUT_THD);
    for (int32_t s = 0; s < x->e.n_seqs; s++)
        for (int64_t row = 0; row < tensor_rows(x, s); row++)
            for (int32_t h = 0; h < x->e.n_heads; h++)
                for (int32_t e = 0; e < x->e.d; e++) {
                    const double at = tensor_get(x, s, row, h, e);
                    double l[4]; /* at -2, -1, 1, 2 steps: an error of step^4 */
                    for (int k = 0; k < 4; k++) {
                        tensor_set(x, s, row, h, e, at + (k < 2 ? k - 2 : k - 1) * step);
                        l[k] = loss(c, &y);
                    }
                    tensor_set(x, s, row, h, e, at);
                    const double want = (l[0] - 8.0 * l[1] + 8.0 * l[2] - l[3]) / (12.0 * step);
                    const double got = tensor_get(grad, s, row, h, e);
                    if (!(fabs(got - want) <= 1e-9 * fmax(1.0, fabs(want))))
                        test_fail("%s: seq %d, row %lld, head %d, channel %d: %.12g, by differences %.12g", what, s,
                                  (long long)row, h, e, got, want);
                }
}

static void test_gradients_of_the_oracle(void **state)
{
    (void)state;
    rng r = rng_new();
    for (int kind = NSA_PHI_MEAN; kind <= NSA_PHI_MLP; kind++)
        for (int per_head = 0; per_head < 2; per_head++) {
            testlib_reset();
            test_note("kind %d, per_head %d", kind, per_head);
            const compress_shape sh = {(nsa_phi_kind)kind, 4,     2,       0,       2,          3,         5,
                                       per_head != 0,      false, NSA_F64, NSA_F64, LAYOUT_THD, LAYOUT_THD};
            const nsa_batch batch = batch_of((const seq_lengths[]){{0, 9}, {0, 3}, {0, 4}}, 3);
            compress_case c;
            compress_case_init(&c, &sh, &batch, &r);
            compress_grads g;
            compress_run_backward(&c, &oracle_ctx, compress_oracle(), REF_EXACT, NULL, NSA_F64, NSA_F64, &g);
            compare_with_differences(&c, "dx", &c.x, &g.dx);
            for (int m = 0; m < N_PHI_MEMBERS; m++)
                if (g.dphi.given[m])
                    compare_with_differences(&c, phi_member_names[m], &c.phi.m[m], &g.dphi.m[m]);
        }
}

/* ---- Public functions */

static void test_public_functions(void **state)
{
    (void)state;
    rng r = rng_new();
    compress_case c;
    start_case(&c, 16, &r);
    nsa_ctx *ctx = NULL;
    assert_ok(nsa_ctx_create(&ctx, NULL));
    nsa_batch keys = c.batch; /* the query side may be anything */
    keys.cu_seqlens_q = NULL;
    keys.total_q = keys.max_seqlen_q = -1;
    const compress_problem p = compress_problem_of(&c, ctx, REF_EXACT);
    const test_tensor want = compress_run_forward(&c, ctx, compress_choose(&p), REF_EXACT, c.shape.dtype);
    const test_tensor y = tensor_like(&want, c.shape.dtype);
    nsa_compress_args args = {c.shape.d, c.phi.phi, c.x.t, y.t};
    size_t bytes = 0;
    assert_ok(nsa_compress_workspace(ctx, &c.cfg, &keys, &args, &bytes));
    void *ws = guarded(bytes, FLUSH_LEFT);
    require(nsa_compress(ctx, &c.cfg, &keys, &args, ws, bytes - 1, NULL) == NSA_ERR_WORKSPACE);
    assert_ok(nsa_compress(ctx, &c.cfg, &keys, &args, ws, bytes, NULL));
    assert_same_bits("y", &y, &want);

    compress_grads g, got;
    compress_run_backward(&c, ctx, compress_choose(&p), REF_EXACT, NULL, c.shape.dtype, c.shape.phi_dtype, &g);
    phi_case_init(&got.dphi, &c.shape, &c.cfg, c.shape.phi_dtype);
    got.dx = tensor_like(&g.dx, c.shape.dtype);
    nsa_compress_backward_args back = {c.shape.d, c.phi.phi, c.x.t, c.dy.t, got.dx.t, got.dphi.phi};
    assert_ok(nsa_compress_backward_workspace(ctx, &c.cfg, &keys, &back, &bytes));
    ws = guarded(bytes, FLUSH_LEFT);
    assert_ok(nsa_compress_backward(ctx, &c.cfg, &keys, &back, ws, bytes, NULL));
    assert_same_grads(&got, &g);

    back.dphi.w2 = NULL;
    require(nsa_compress_backward(ctx, &c.cfg, &keys, &back, ws, bytes, NULL) == NSA_ERR_INVALID_ARGUMENT);
    require(strstr(nsa_last_error(), "args.dphi.w2") != NULL);
    back.dphi.w2 = back.dphi.w1;
    require(nsa_compress_backward(ctx, &c.cfg, &keys, &back, ws, bytes, NULL) == NSA_ERR_INVALID_ARGUMENT);
    args.phi.w1 = NULL;
    require(nsa_compress(ctx, &c.cfg, &keys, &args, ws, bytes, NULL) == NSA_ERR_INVALID_ARGUMENT);
    require(strstr(nsa_last_error(), "args.phi.w1") != NULL);
    nsa_ctx_destroy(ctx);
}

const test_case test_cases[] = {
    TEST(test_against_oracle),
    TEST(test_adds_to_dx),
    TEST(test_same_bits_for_any_threads),
    TEST(test_same_bits_in_every_layout),
    TEST(test_bad_tokens),
    TEST(test_as_a_cache),
    TEST(test_by_hand),
    TEST(test_gradients_of_the_oracle),
    TEST(test_public_functions),
    {NULL, NULL, NULL},
};
