/* The oracles of attention against things simpler than they: dense attention, finite differences, arithmetic. */
#include "testlib/unit.h"
#include "testlib/attn_case.h"

#include <math.h>

static const nsa_ctx ctx = {.n_threads = 1, .reference = true};
static const nsa_config blocks = {sizeof(nsa_config), 0, 0, 0, 0, 4, 2, 6, 2, 1, 1, 5, 0.0};
static const attn_shape small = {2, 2, 3, 4, NSA_F64, LAYOUT_THD, LAYOUT_THD, LAYOUT_THD, true, 0.0};
static const seq_lengths lengths[] = {{11, 11}, {0, 4}, {3, 9}, {6, 2}, {1, 1}};
enum { N_SEQS = sizeof lengths / sizeof *lengths };

/* ---- Attention as one would write it down: over all keys up to t, or those of the branch */

static void attend(const attn_case *c, bool dense, const test_tensor *o, const test_tensor *lse)
{
    const double scale = 1.0 / sqrt((double)c->cfg.d_qk);
    for (int32_t s = 0; s < c->batch.n_seqs; s++)
        for (int64_t r = 0; r < tensor_rows(&c->q, s); r++)
            for (int32_t h = 0; h < c->cfg.n_heads_q; h++) {
                const int32_t kv = h / config_group(&c->cfg);
                const int64_t t = r + tensor_rows(&c->k, s) - tensor_rows(&c->q, s);
                double sum = 0.0, acc[MAX_HEAD_DIM] = {0.0};
                for (int64_t j = 0; j < tensor_rows(&c->k, s); j++) {
                    if (dense ? j > t : !attn_attends(c, s, r, kv, j))
                        continue;
                    double dot = 0.0;
                    for (int32_t i = 0; i < c->cfg.d_qk; i++)
                        dot += tensor_get(&c->q, s, r, h, i) * tensor_get(&c->k, s, j, kv, i);
                    sum += exp(scale * dot);
                    for (int32_t i = 0; i < c->cfg.d_v; i++)
                        acc[i] += exp(scale * dot) * tensor_get(&c->v, s, j, kv, i);
                }
                tensor_set(lse, s, r, h, 0, log(sum));
                for (int32_t i = 0; i < c->cfg.d_v; i++)
                    tensor_set(o, s, r, h, i, sum == 0.0 ? 0.0 : acc[i] / sum);
            }
}

static void assert_near(const char *what, const test_tensor *got, const test_tensor *want)
{
    for (int32_t s = 0; s < got->e.n_seqs; s++)
        for (int64_t r = 0; r < tensor_rows(got, s); r++)
            for (int32_t h = 0; h < got->e.n_heads; h++)
                for (int32_t c = 0; c < got->e.d; c++) {
                    const double x = tensor_get(got, s, r, h, c), y = tensor_get(want, s, r, h, c);
                    if (!(x == y || fabs(x - y) <= 1e-13 * fmax(1.0, fabs(y))))
                        test_fail("%s: seq %d, row %lld, head %d, channel %d: %.17g and %.17g", what, s, (long long)r,
                                  h, c, x, y);
                }
}

/* An endless window, all blocks selected, and blocks of one token: each is dense attention. */
static void test_dense(void **state)
{
    const attn_op *op = *state;
    testlib_reset();
    test_note("%s, dense", op->name);
    rng r = rng_new();
    nsa_config wide = blocks;
    wide.win_size = INT32_MAX;
    wide.slc_topk = 8;
    wide.cmp_block = wide.cmp_stride = 1;
    const nsa_batch batch = batch_of(lengths, N_SEQS);
    attn_case c;
    attn_case_init(&c, op, &wide, &batch, &small, &r);
    if (op->branch == NSA_SLC)
        for (int32_t s = 0; s < N_SEQS; s++)
            for (int64_t row = 0; row < tensor_rows(&c.q, s); row++)
                for (int32_t h = 0; h < small.n_heads_kv; h++)
                    for (int32_t i = 0; i < wide.slc_topk; i++)
                        tensor_set(&c.slc_idx, s, row, h, i, wide.slc_topk - 1 - i);
    const attn_out want = attn_out_new(&c, NSA_F64, LAYOUT_THD), got = attn_out_new(&c, NSA_F64, LAYOUT_THD);
    attend(&c, true, &want.o, &want.lse);
    attn_run_forward(&c, &ctx, attn_oracle(op)->forward, REF_EXACT, &got);
    assert_near("o", &got.o, &want.o);
    assert_near("lse", &got.lse, &want.lse);
}

static void test_keys_of_the_branch(void **state)
{
    const attn_op *op = *state;
    testlib_reset();
    test_note("%s, keys of the branch", op->name);
    rng r = rng_new();
    const nsa_batch batch = batch_ragged(blocks.slc_block, 23);
    attn_case c;
    attn_case_init(&c, op, &blocks, &batch, &small, &r);
    const attn_out want = attn_out_new(&c, NSA_F64, LAYOUT_THD);
    attend(&c, false, &want.o, &want.lse);
    assert_near("o", &c.o, &want.o);
    assert_near("lse", &c.lse, &want.lse);
}

/* ---- Gradients against central differences of L = sum of gate * d_o * o */

static double loss(const attn_case *c)
{
    attn_run_forward(c, &ctx, attn_oracle(c->op)->forward, REF_EXACT, &(attn_out){c->o, c->lse});
    double sum = 0.0;
    for (int32_t s = 0; s < c->batch.n_seqs; s++)
        for (int64_t r = 0; r < tensor_rows(&c->q, s); r++)
            for (int32_t h = 0; h < c->cfg.n_heads_q; h++)
                for (int32_t i = 0; i < c->cfg.d_v; i++)
                    sum += tensor_get(&c->gate, s, r, h, c->op->branch) * tensor_get(&c->d_o, s, r, h, i) *
                           tensor_get(&c->o, s, r, h, i);
    return sum;
}

static void compare_with_differences(const attn_case *c, const char *what, const test_tensor *x,
                                     const test_tensor *grad)
{
    const double step = 1e-3;
    for (int32_t s = 0; s < x->e.n_seqs; s++)
        for (int64_t r = 0; r < tensor_rows(x, s); r++)
            for (int32_t h = 0; h < x->e.n_heads; h++)
                for (int32_t i = 0; i < x->e.d; i++) {
                    const double at = tensor_get(x, s, r, h, i);
                    double l[4]; /* at -2, -1, 1, 2 steps: an error of step^4 */
                    for (int k = 0; k < 4; k++) {
                        tensor_set(x, s, r, h, i, at + (k < 2 ? k - 2 : k - 1) * step);
                        l[k] = loss(c);
                    }
                    tensor_set(x, s, r, h, i, at);
                    const double want = (l[0] - 8.0 * l[1] + 8.0 * l[2] - l[3]) / (12.0 * step);
                    const double got = tensor_get(grad, s, r, h, i);
                    if (!(fabs(got - want) <= 1e-9 * fmax(1.0, fabs(want))))
                        test_fail("%s: seq %d, row %lld, head %d, channel %d: %.12g, by differences %.12g", what, s,
                                  (long long)r, h, i, got, want);
                }
}

static void test_gradients(void **state)
{
    const attn_op *op = *state;
    testlib_reset();
    test_note("%s, gradients", op->name);
    rng r = rng_new();
    const nsa_batch batch = batch_of(lengths, N_SEQS);
    attn_case c;
    attn_case_init(&c, op, &blocks, &batch, &small, &r);
    const attn_grads g = attn_grads_new(&c, NSA_F64, LAYOUT_THD);
    attn_run_backward(&c, &ctx, attn_oracle(op)->backward, REF_EXACT, &g, false);
    compare_with_differences(&c, "dq", &c.q, &g.dq);
    compare_with_differences(&c, "dk", &c.k, &g.dk);
    compare_with_differences(&c, "dv", &c.v, &g.dv);
}

/* ---- Rows with nothing to attend to */

static void test_empty_rows(void **state)
{
    const attn_op *op = *state;
    testlib_reset();
    test_note("%s, empty rows", op->name);
    rng r = rng_new();
    const nsa_batch batch = batch_of(lengths, N_SEQS);
    attn_case c;
    attn_case_init(&c, op, &blocks, &batch, &small, &r);
    const attn_grads g = attn_grads_new(&c, NSA_F64, LAYOUT_THD);
    attn_run_backward(&c, &ctx, attn_oracle(op)->backward, REF_EXACT, &g, false);
    int n_empty = 0;
    for (int32_t s = 0; s < N_SEQS; s++)
        for (int64_t row = 0; row < tensor_rows(&c.q, s); row++)
            for (int32_t h = 0; h < c.cfg.n_heads_q; h++) {
                bool empty = true;
                for (int64_t j = 0; j < tensor_rows(&c.k, s); j++)
                    empty &= !attn_attends(&c, s, row, h / small.group, j);
                if ((tensor_get(&c.lse, s, row, h, 0) == -INFINITY) != empty)
                    test_fail("lse: seq %d, row %lld, head %d is %g", s, (long long)row, h,
                              tensor_get(&c.lse, s, row, h, 0));
                for (int32_t i = 0; i < c.cfg.d_v && empty; i++)
                    assert_true(tensor_get(&c.o, s, row, h, i) == 0.0);
                for (int32_t i = 0; i < c.cfg.d_qk && empty; i++)
                    assert_true(tensor_get(&g.dq, s, row, h, i) == 0.0);
                n_empty += empty;
            }
    assert_true(n_empty >= 4 * c.cfg.n_heads_q); /* of the sequence with 6 queries and 2 keys */
}

/* ---- The public functions run what the table holds */

typedef nsa_status forward_fn(const nsa_ctx *, const nsa_config *, const nsa_batch *, const nsa_attn_args *, void *,
                              size_t, nsa_stream);
typedef nsa_status forward_size_fn(const nsa_ctx *, const nsa_config *, const nsa_batch *, const nsa_attn_args *,
                                   size_t *);
typedef nsa_status backward_fn(const nsa_ctx *, const nsa_config *, const nsa_batch *, const nsa_attn_backward_args *,
                               void *, size_t, nsa_stream);
typedef nsa_status backward_size_fn(const nsa_ctx *, const nsa_config *, const nsa_batch *,
                                    const nsa_attn_backward_args *, size_t *);

static const struct {
    forward_fn *forward;
    forward_size_fn *forward_size;
    backward_fn *backward;
    backward_size_fn *backward_size;
} public[NSA_N_BRANCHES] = {
    {nsa_cmp_attn, nsa_cmp_attn_workspace, nsa_cmp_attn_backward, nsa_cmp_attn_backward_workspace},
    {nsa_slc_attn, nsa_slc_attn_workspace, nsa_slc_attn_backward, nsa_slc_attn_backward_workspace},
    {nsa_win_attn, nsa_win_attn_workspace, nsa_win_attn_backward, nsa_win_attn_backward_workspace},
};

static void run_public(const nsa_ctx *on, const attn_case *c, const attn_out *out, const attn_grads *g)
{
    const int b = c->op->branch;
    const nsa_attn_args f = {c->q.t, c->k.t, c->v.t, c->slc_idx.t, out->o.t, out->lse.t};
    size_t bytes = 0;
    assert_int_equal(public[b].forward_size(on, &c->cfg, &c->batch, &f, &bytes), NSA_OK);
    assert_int_equal(public[b].forward(on, &c->cfg, &c->batch, &f, guarded(bytes, FLUSH_RIGHT), bytes, NULL), NSA_OK);
    const nsa_attn_backward_args a = {
        {c->q.t, c->k.t, c->v.t, c->slc_idx.t, c->o.t, c->lse.t}, c->d_o.t, g->dq.t, g->dk.t, g->dv.t};
    assert_int_equal(public[b].backward_size(on, &c->cfg, &c->batch, &a, &bytes), NSA_OK);
    assert_int_equal(public[b].backward(on, &c->cfg, &c->batch, &a, guarded(bytes, FLUSH_RIGHT), bytes, NULL), NSA_OK);
}

static void test_public(void **state)
{
    const attn_op *op = *state;
    rng r = rng_new();
    const nsa_dtype dtypes[] = {NSA_F32, NSA_BF16, NSA_F16, NSA_F64};
    nsa_ctx *fast = NULL;
    assert_int_equal(nsa_ctx_create(&fast, NULL), NSA_OK);
    for (int i = 0; i < 8; i++) {
        testlib_reset();
        test_note("%s, public, dtype %d", op->name, (int)dtypes[i / 2]);
        attn_shape shape = small;
        shape.dtype = dtypes[i / 2];
        shape.gate = false;
        const nsa_ctx *on = i % 2 == 0 ? fast : &ctx;
        const nsa_batch batch = batch_of(lengths, N_SEQS);
        attn_case c;
        attn_case_init(&c, op, &blocks, &batch, &shape, &r);
        const bool oracle = on->reference || shape.dtype == NSA_F64;
        const attn_impl *impl = oracle ? attn_oracle(op) : op->impls;
        const attn_out got = attn_out_new(&c, shape.dtype, LAYOUT_THD),
                       want = attn_out_new(&c, shape.dtype, LAYOUT_THD);
        const attn_grads dgot = attn_grads_new(&c, shape.dtype, LAYOUT_THD),
                         dwant = attn_grads_new(&c, shape.dtype, LAYOUT_THD);
        run_public(on, &c, &got, &dgot);
        attn_run_forward(&c, on, impl->forward, REF_EXACT, &want);
        attn_run_backward(&c, on, impl->backward, REF_EXACT, &dwant, false);
        assert_same_bits("o", &got.o, &want.o);
        assert_same_bits("lse", &got.lse, &want.lse);
        assert_same_bits("dq", &dgot.dq, &dwant.dq);
        assert_same_bits("dk", &dgot.dk, &dwant.dk);
        assert_same_bits("dv", &dgot.dv, &dwant.dv);
    }
    nsa_ctx_destroy(fast);
}

/* No sequences, and sequences without tokens: nothing is read or written, and that is no error. */
static void test_nothing(void **state)
{
    const attn_op *op = *state;
    nsa_config cfg = blocks;
    cfg.n_heads_q = cfg.n_heads_kv = cfg.d_qk = cfg.d_v = 2;
    const int32_t cu[] = {0, 0, 0};
    const nsa_batch batches[] = {{0, 0, 0, 0, 0, NULL, NULL}, {2, 0, 0, 0, 0, cu, cu}};
    const nsa_attn_args f = {.slc_idx = {.dtype = NSA_I32}};
    const nsa_attn_backward_args a = {.fwd = f};
    for (int i = 0; i < 2; i++) {
        size_t bytes = 0;
        assert_int_equal(public[op->branch].forward_size(&ctx, &cfg, &batches[i], &f, &bytes), NSA_OK);
        void *ws = guarded(bytes, FLUSH_RIGHT);
        assert_int_equal(public[op->branch].forward(&ctx, &cfg, &batches[i], &f, ws, bytes, NULL), NSA_OK);
        assert_int_equal(public[op->branch].backward_size(&ctx, &cfg, &batches[i], &a, &bytes), NSA_OK);
        ws = guarded(bytes, FLUSH_RIGHT);
        assert_int_equal(public[op->branch].backward(&ctx, &cfg, &batches[i], &a, ws, bytes, NULL), NSA_OK);
    }
}

#define TESTS_OF(op)                                                                                                   \
    {#op "_attn dense", test_dense, NULL, NULL, (void *)&attn_ops[op]},                                                \
        {#op "_attn keys of the branch", test_keys_of_the_branch, NULL, NULL, (void *)&attn_ops[op]},                  \
        {#op "_attn gradients", test_gradients, NULL, NULL, (void *)&attn_ops[op]},                                    \
        {#op "_attn empty rows", test_empty_rows, NULL, NULL, (void *)&attn_ops[op]},                                  \
        {#op "_attn public functions", test_public, NULL, NULL, (void *)&attn_ops[op]},                                \
    {                                                                                                                  \
#op "_attn nothing to do", test_nothing, NULL, NULL, (void *)&attn_ops[op]                                     \
    }

int main(void)
{
    enum { cmp = NSA_CMP, slc = NSA_SLC, win = NSA_WIN };
    const struct CMUnitTest tests[] = {TESTS_OF(cmp), TESTS_OF(slc), TESTS_OF(win)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
