/* What nsa bench measures with: oneDNN's attention against plain loops, the count of work, the repetitions, the inputs.
 */
#include "testlib/unit.h"
#include "testlib/testlib.h"

#include "bench/onednn_attn.h"
#include "cli/bench_case.h"
#include "cli/bench_onednn.h"

#include <math.h>
#include <string.h>

/* ---- oneDNN ------------------------------------------------------------------------------------------------------ */

enum { D_QK = 24, D_V = 10, MAX_ELEMENTS = 2 * 150 * 3 * 24 };

/* In f32 and in bf16 at once: these numbers have few bits. */
typedef struct buffer {
    float f32[MAX_ELEMENTS];
    uint16_t bf16[MAX_ELEMENTS];
} buffer;

static void fill(buffer *x, uint32_t seed)
{
    for (int i = 0; i < MAX_ELEMENTS; i++) {
        seed = seed * 1664525U + 1013904223U;
        x->f32[i] = (float)((int)(seed >> 26) - 32) / 16;
        uint32_t bits;
        memcpy(&bits, &x->f32[i], sizeof bits);
        x->bf16[i] = (uint16_t)(bits >> 16);
    }
}

static double output(const buffer *x, bool bf16, int64_t i)
{
    if (!bf16)
        return (double)x->f32[i];
    const uint32_t bits = (uint32_t)x->bf16[i] << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return (double)value;
}

/* Row (b, t, h) of o. */
static void expect_row(const onednn_problem *p, const buffer *q, const buffer *k, const buffer *v, int64_t b, int64_t t,
                       int64_t h, double *o)
{
    double weights[150], sum = 0;
    memset(o, 0, D_V * sizeof *o);
    for (int64_t j = 0; j <= t + p->n_k - p->n_q; j++) {
        double s = 0;
        for (int64_t c = 0; c < D_QK; c++)
            s += (double)q->f32[((b * p->n_q + t) * p->group + h) * D_QK + c] *
                 (double)k->f32[(b * p->n_k + j) * D_QK + c];
        weights[j] = exp(s / sqrt(D_QK));
        sum += weights[j];
    }
    for (int64_t j = 0; j <= t + p->n_k - p->n_q; j++)
        for (int64_t c = 0; c < D_V; c++)
            o[c] += weights[j] / sum * (double)v->f32[(b * p->n_k + j) * D_V + c];
}

static void check_problem(const onednn_problem *p)
{
    static buffer q, k, v, o;
    fill(&q, 1);
    fill(&k, 2);
    fill(&v, 3);
    memset(&o, 0xff, sizeof o); /* NaN */
    onednn_attn *a = onednn_attn_create(p);
    assert_non_null(a);
    assert_true(p->bf16 ? onednn_attn_run(a, q.bf16, k.bf16, v.bf16, o.bf16)
                        : onednn_attn_run(a, q.f32, k.f32, v.f32, o.f32));
    onednn_attn_destroy(a);
    const double tolerance = p->bf16 ? 0.08 : 1e-5;
    for (int64_t row = 0; row < p->batch * p->n_q * p->group; row++) {
        double expected[D_V];
        expect_row(p, &q, &k, &v, row / p->group / p->n_q, row / p->group % p->n_q, row % p->group, expected);
        for (int64_t c = 0; c < D_V; c++)
            if (!(fabs(output(&o, p->bf16, row * D_V + c) - expected[c]) <= tolerance))
                fail_msg("row %lld, channel %lld: %g, should be %g", (long long)row, (long long)c,
                         output(&o, p->bf16, row * D_V + c), expected[c]);
    }
}

static void test_onednn_attention(void **state)
{
    (void)state;
    static const onednn_problem problems[] = {
        {.batch = 2, .group = 3, .n_q = 150, .n_k = 150, .d_qk = D_QK, .d_v = D_V, .block = 64},
        {.batch = 2, .group = 1, .n_q = 128, .n_k = 128, .d_qk = D_QK, .d_v = D_V, .block = 32},
        {.batch = 1, .group = 3, .n_q = 7, .n_k = 129, .d_qk = D_QK, .d_v = D_V, .block = 4},
        {.batch = 2, .group = 3, .n_q = 1, .n_k = 150, .d_qk = D_QK, .d_v = D_V, .block = 1},
    };
    for (size_t i = 0; i < sizeof problems / sizeof problems[0]; i++) {
        onednn_problem p = problems[i];
        check_problem(&p);
        p.bf16 = true;
        if (onednn_has_bf16())
            check_problem(&p);
    }
}

static void test_agreement(void **state)
{
    (void)state;
    const bench_shape shape = {
        .cfg = {.n_heads_q = 4, .n_heads_kv = 2, .d_v = 8}, .dtype = NSA_F32, .batch = 2, .seqlen = 5};
    static float o[2 * 5 * 4 * 8];
    const int64_t n = sizeof o / sizeof o[0];
    for (int64_t i = 0; i < n; i++)
        o[i] = (float)i + 1;
    const nsa_tensor expected = nsa_packed(o, NSA_F32, 4, 8);
    bench_tensors m = {.device = &bench_cpu};
    float *packed = bench_onednn_pack(&m, &shape, &expected, 5, 2);
    assert_non_null(packed);
    assert_true(bench_onednn_check(&shape, packed, &expected, 5));
    packed[n - 1] *= 1.1F;
    assert_false(bench_onednn_check(&shape, packed, &expected, 5));
    packed[n - 1] = NAN;
    assert_false(bench_onednn_check(&shape, packed, &expected, 5));
    bench_tensors_free(&m);
}

/* ---- Work and repetitions ---------------------------------------------------------------------------------------- */

static void test_flop(void **state)
{
    (void)state;
    bench_shape shape = {.dtype = NSA_F32, .batch = 3, .seqlen = 5000};
    nsa_config_init(&shape.cfg);
    shape.cfg.n_heads_q = 4;
    shape.cfg.n_heads_kv = 2;
    shape.cfg.d_qk = 24;
    shape.cfg.d_v = 8;
    const double pair = 2.0 * (24 + 8) * 4 * 3, all = bench_flop(&shape, BENCH_FORWARD, BENCH_NSA);
    assert_true(bench_flop(&shape, BENCH_FORWARD, BENCH_DENSE) == pair * 5000 * 5001 / 2);
    assert_true(bench_flop(&shape, BENCH_WIN_ATTN, BENCH_NSA) == pair * (512.0 * 513 / 2 + (5000 - 512) * 512));
    assert_true(bench_flop(&shape, BENCH_CMP_ATTN, BENCH_NSA) + bench_flop(&shape, BENCH_SLC_ATTN, BENCH_NSA) +
                    bench_flop(&shape, BENCH_WIN_ATTN, BENCH_NSA) ==
                all);
    assert_true(bench_flop(&shape, BENCH_BACKWARD, BENCH_NSA) == 2.5 * all);
    assert_true(bench_flop(&shape, BENCH_DECODE, BENCH_DENSE) == pair * 5001);
    assert_true(bench_flop(&shape, BENCH_GATE, BENCH_NSA) == 0);
}

/* By hand, for f32 and one sequence of 64 tokens. */
static void test_least_work(void **state)
{
    (void)state;
    bench_shape shape = {.dtype = NSA_F32, .batch = 1, .seqlen = 64};
    nsa_config_init(&shape.cfg);
    shape.cfg.n_heads_q = 2;
    shape.cfg.n_heads_kv = 1;
    shape.cfg.d_qk = 24;
    shape.cfg.d_v = 8;
    const double q = 64 * 2 * 24 * 4, o = 64 * 2 * 8 * 4, k = 64 * 24 * 4, v = 64 * 8 * 4, lse = 64 * 2 * 4;
    const double gate = 64 * 2 * 3 * 4, idx = 64 * 16 * 4, cmp = (k + v) / 16;
    const bench_work dense = bench_least_work(&shape, BENCH_FORWARD, BENCH_DENSE);
    assert_true(dense.bytes == q + k + v + o + lse && dense.flop == bench_flop(&shape, BENCH_FORWARD, BENCH_DENSE));
    const double residuals = cmp + idx + 3 * (o + lse);
    assert_true(bench_residual_bytes(&shape, BENCH_NSA) == residuals);
    const bench_work forward = bench_least_work(&shape, BENCH_FORWARD, BENCH_NSA);
    assert_true(forward.bytes == q + 3 * (k + v) + gate + residuals + o);
    const bench_work select = bench_least_work(&shape, BENCH_SELECT, BENCH_NSA);
    assert_true(select.bytes == q + k / 16 + lse + idx);
    assert_true(select.flop * (24 + 8) == bench_flop(&shape, BENCH_CMP_ATTN, BENCH_NSA) * 24);
    assert_true(forward.flop == bench_flop(&shape, BENCH_FORWARD, BENCH_NSA) + select.flop);
    const bench_work decode = bench_least_work(&shape, BENCH_DECODE, BENCH_DENSE);
    assert_true(decode.bytes == 65 * (24 + 8) * 4);
    assert_true(bench_least_work(&shape, BENCH_DECODE, BENCH_NSA).bytes == (3 + 65 + 65) * (24 + 8) * 4);
    shape.shared_kv = true; /* the window has been selected */
    assert_true(bench_least_work(&shape, BENCH_DECODE, BENCH_NSA).bytes == (3 + 65) * (24 + 8) * 4);
}

/* Forced are block 0 and the last two. Tokens 40 to 43 of blocks of 8 stand in block 5, token 48 in block 6. */
static void test_overlap(void **state)
{
    (void)state;
    nsa_config cfg;
    nsa_config_init(&cfg);
    cfg.n_heads_kv = 1;
    cfg.slc_block = 8;
    cfg.slc_topk = 5;
    static int32_t slc_idx[56 * 5];
    for (int i = 0; i < 56 * 5; i++)
        slc_idx[i] = -1;
    assert_true(bench_overlap(&cfg, slc_idx, 40) == -1); /* at most 5 blocks: nobody has a choice */
    static const int32_t selected[4][5] = {[0] = {0, 1, 2, 4, 5}, {0, 1, 2, 4, 5}, {0, 1, 3, 4, 5}, {0, 2, 3, 4, 5}};
    for (int t = 0; t < 4; t++)
        memcpy(&slc_idx[(40 + t) * 5], selected[t], sizeof selected[t]);
    assert_true(bench_overlap(&cfg, slc_idx, 44) == 4.0 / 8); /* of 40: 0 of 2; then 2, 1, 1 */
}

/* Two sets of inputs in turn, as on a GPU; every operation runs without a forward that was asked for. */
static void test_sets(void **state)
{
    (void)state;
    bench_device device = bench_cpu;
    device.n_sets = 2;
    const bench_effort effort = {.seconds = 1e-9, .min_reps = 3};
    const bench_op ops[] = {BENCH_COMPRESS, BENCH_CMP_ATTN, BENCH_SELECT,   BENCH_SLC_ATTN,
                            BENCH_WIN_ATTN, BENCH_GATE,     BENCH_BACKWARD, BENCH_FORWARD};
    bench_shape shape = {.dtype = NSA_F32, .batch = 1, .seqlen = 300, .phi = NSA_PHI_MEAN};
    nsa_config_init(&shape.cfg);
    shape.cfg.n_heads_q = 2;
    shape.cfg.n_heads_kv = 1;
    shape.cfg.d_qk = shape.cfg.d_v = 8;
    nsa_ctx *ctx = NULL;
    assert_int_equal(nsa_ctx_create(&ctx, NULL), NSA_OK);
    bench_case *b = bench_case_create(ctx, &device, &shape);
    assert_non_null(b);
    assert_non_null(b->other);
    const float *o = b->forward.o_branch[NSA_WIN].data, *other = b->other->forward.o_branch[NSA_WIN].data;
    bench_time time;
    for (size_t i = 0; i < sizeof ops / sizeof ops[0]; i++)
        assert_true(bench_measure(b, ops[i], BENCH_NSA, &effort, &time));
    assert_true(bench_measure(b, BENCH_BACKWARD, BENCH_DENSE, &effort, &time));
    assert_true(bench_case_workspace(b) <= b->workspace_bytes);
    bool same = true;
    for (int c = 0; c < 8; c++) {
        assert_true(o[299 * 16 + c] != 0 && other[299 * 16 + c] != 0);
        same &= o[299 * 16 + c] == other[299 * 16 + c];
    }
    assert_false(same);
    bench_case_destroy(b);
    nsa_ctx_destroy(ctx);
}

static void test_random(void **state)
{
    (void)state;
    enum { N = 100000, ROW = 100 };
    for (int turn = 0; turn <= 16; turn += 8) {
        const bench_random normal = {.seed = 7, .scale = 2, .turn = turn, .row = ROW};
        double sum = 0, squares = 0, neighbours = 0;
        for (int i = 0; i < N; i++) {
            const double x = (double)bench_number(&normal, i);
            sum += x;
            squares += x * x;
            neighbours += x * (double)bench_number(&normal, i + ROW);
        }
        assert_true(fabs(sum / N) < 0.05 && fabs(squares / N - 4) < 0.1);
        const double expected = turn > 0 ? 4 * cos(acos(0) / turn) : 0; /* but for the step past a turn */
        assert_true(fabs(neighbours / N - expected) < 0.1);
    }
    const bench_random uniform = {.uniform = true, .scale = 1};
    for (int i = 0; i < N; i++)
        assert_true(bench_number(&uniform, i) >= 0 && bench_number(&uniform, i) < 1);
}

typedef struct counts {
    int prepared, run;
} counts;

static bool count_prepare(void *self)
{
    ((counts *)self)->prepared++;
    return true;
}

static bool count_run(void *self)
{
    counts *c = self;
    c->run++;
    return c->run == c->prepared;
}

static bool refuse(void *self)
{
    (void)self;
    return false;
}

static void test_repeat(void **state)
{
    (void)state;
    const bench_effort effort = {.seconds = 1e-9, .min_reps = 3}, some = {.seconds = 0.01, .min_reps = 1};
    bench_time time;
    counts c = {0};
    assert_true(bench_repeat(&c, count_prepare, count_run, &effort, &time));
    assert_int_equal(time.reps, 3);
    assert_true(time.ms >= 0);
    c = (counts){0};
    assert_true(bench_repeat(&c, count_prepare, count_run, &some, &time));
    assert_int_equal(time.reps, c.run - 1); /* the first was the warm-up */
    assert_false(bench_repeat(&c, NULL, refuse, &some, &time));
    assert_false(bench_repeat(&c, refuse, count_run, &some, &time));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_onednn_attention), cmocka_unit_test(test_agreement), cmocka_unit_test(test_flop),
        cmocka_unit_test(test_least_work),       cmocka_unit_test(test_overlap),   cmocka_unit_test(test_sets),
        cmocka_unit_test(test_random),           cmocka_unit_test(test_repeat)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
