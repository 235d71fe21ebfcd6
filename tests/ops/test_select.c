/* Selection: every implementation on every instruction set against scores made from the tokens that blocks share. */
#include "ops/select/select.h"
#include "testlib/testlib.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const nsa_ctx oracle_ctx = {.n_threads = 1, .reference = true};

typedef struct shape {
    int32_t block, stride, slc_block, topk, n_init, n_local;
    int32_t max; /* longest sequence */
    int32_t group, n_heads_kv, d;
    nsa_dtype dtype;
    layout in, out;
    double sigma; /* of q: how sharp the probabilities are */
} shape;

static const shape shapes[] = {
    {32, 16, 64, 4, 1, 2, 700, 16, 1, 16, NSA_F32, LAYOUT_THD, LAYOUT_THD, 1.0},
    {32, 16, 64, 16, 1, 2, 1300, 4, 2, 24, NSA_BF16, LAYOUT_BHSD, LAYOUT_GAPS, 2.0},
    {8, 4, 16, 3, 1, 1, 300, 3, 2, 7, NSA_F16, LAYOUT_GAPS, LAYOUT_BHSD, 1.0},
    {4, 2, 6, 5, 0, 1, 131, 5, 1, 33, NSA_F32, LAYOUT_HTD, LAYOUT_BSHD, 4.0},
    {1, 1, 1, 9, 2, 3, 151, 1, 3, 5, NSA_F32, LAYOUT_BSHD, LAYOUT_HTD, 1.0},
    {1, 1, 1, 40, 0, 0, 97, 1, 1, 256, NSA_BF16, LAYOUT_THD, LAYOUT_THD, 0.1},
    {2, 1, 4, 6, 6, 0, 89, 2, 1, 16, NSA_F32, LAYOUT_ONE_HEAD, LAYOUT_THD, 1.0},
    {6, 3, 9, 2, 0, 2, 200, 1, 2, 8, NSA_F32, LAYOUT_THD, LAYOUT_THD, 1.0},
    {4, 4, 8, 1, 0, 0, 71, 200, 1, 4, NSA_F32, LAYOUT_THD, LAYOUT_THD, 3.0},
    {3, 3, 3, 1000, 1, 1, 60, 1, 1, 4, NSA_F32, LAYOUT_THD, LAYOUT_THD, 1.0},
    {6, 2, 8, 3, 1, 0, 90, 2, 2, 3, NSA_F64, LAYOUT_THD, LAYOUT_THD, 8.0},
    {4, 2, 8, 4, 1, 1, 171, 2, 1, 8, NSA_F32, LAYOUT_THD, LAYOUT_THD, 100.0}, /* most probabilities are 0 */
    /* Of sizes that tensor cores take: d, groups, ratios of blocks. */
    {8, 4, 16, 4, 1, 2, 400, 16, 1, 128, NSA_BF16, LAYOUT_THD, LAYOUT_THD, 2.0},
    {8, 4, 16, 3, 1, 1, 300, 4, 2, 64, NSA_BF16, LAYOUT_BSHD, LAYOUT_GAPS, 1.0},
    {2, 1, 8, 5, 0, 0, 150, 2, 3, 64, NSA_BF16, LAYOUT_BHSD, LAYOUT_BHSD, 2.0},
    {8, 4, 8, 6, 2, 1, 300, 1, 2, 64, NSA_BF16, LAYOUT_HTD, LAYOUT_THD, 1.0},
    {4, 4, 4, 7, 1, 2, 300, 32, 1, 64, NSA_BF16, LAYOUT_THD, LAYOUT_THD, 1.0},
    {4, 2, 4, 3, 1, 1, 150, 7, 1, 192, NSA_BF16, LAYOUT_THD, LAYOUT_HTD, 4.0},
    {2, 2, 8, 4, 1, 1, 150, 40, 1, 64, NSA_BF16, LAYOUT_BSHD, LAYOUT_THD, 1.0},
    {4, 2, 8, 3, 0, 1, 50, 128, 1, 256, NSA_BF16, LAYOUT_THD, LAYOUT_THD, 2.0},
    {2, 1, 2, 1, 0, 0, 60, 1, 1, 64, NSA_BF16, LAYOUT_THD, LAYOUT_THD, 2.0},   /* T_q > T_k and scores all the same */
    {1, 1, 1, 16, 1, 2, 700, 1, 1, 64, NSA_BF16, LAYOUT_THD, LAYOUT_THD, 2.0}, /* rounds of top-k */
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

typedef struct select_case {
    nsa_config cfg;
    nsa_batch batch;
    shape shape;
    test_tensor q, k, lse;
    double *p, *score; /* scratch: P of the compressed blocks, and scores, of one row */
} select_case;

static double logit(const select_case *c, int32_t s, int64_t row, int32_t h, int64_t i)
{
    double sum = 0.0;
    for (int32_t e = 0; e < c->cfg.d_qk; e++)
        sum += tensor_get(&c->q, s, row, h, e) * tensor_get(&c->k, s, i, h / config_group(&c->cfg), e);
    return config_scale(&c->cfg) * sum;
}

static int64_t position(const select_case *c, int32_t s, int64_t row)
{
    return row + (c->batch.cu_seqlens_k[s + 1] - c->batch.cu_seqlens_k[s]) - tensor_rows(&c->q, s);
}

static int64_t visible(const select_case *c, int64_t t) /* counted, not computed */
{
    int64_t n = 0;
    while (n * c->cfg.cmp_stride + c->cfg.cmp_block - 1 <= t)
        n++;
    return n;
}

static void fill_lse(const select_case *c)
{
    for (int32_t s = 0; s < c->batch.n_seqs; s++)
        for (int64_t row = 0; row < tensor_rows(&c->q, s); row++)
            for (int32_t h = 0; h < c->cfg.n_heads_q; h++) {
                const int64_t n = visible(c, position(c, s, row));
                double most = -INFINITY, sum = 0.0;
                for (int64_t i = 0; i < n; i++)
                    most = fmax(most, c->p[i] = logit(c, s, row, h, i));
                for (int64_t i = 0; i < n; i++)
                    sum += exp(c->p[i] - most);
                tensor_set(&c->lse, s, row, h, 0, n == 0 ? -INFINITY : most + log(sum));
            }
}

static void case_init(select_case *c, const shape *sh, rng *r)
{
    testlib_reset();
    c->shape = *sh;
    c->batch = batch_ragged(sh->slc_block, sh->max);
    nsa_config_init(&c->cfg);
    c->cfg.n_heads_kv = sh->n_heads_kv;
    c->cfg.n_heads_q = sh->n_heads_kv * sh->group;
    c->cfg.d_qk = sh->d;
    c->cfg.cmp_block = sh->block, c->cfg.cmp_stride = sh->stride, c->cfg.slc_block = sh->slc_block;
    c->cfg.slc_topk = sh->topk, c->cfg.slc_n_init = sh->n_init, c->cfg.slc_n_local = sh->n_local;
    const nsa_dtype lse = lse_dtype(sh->dtype);
    c->q = tensor_new(&c->cfg, &c->batch, SIDE_Q, c->cfg.n_heads_q, sh->d, sh->dtype, sh->in);
    c->k = tensor_new(&c->cfg, &c->batch, SIDE_CMP, sh->n_heads_kv, sh->d, sh->dtype, sh->in);
    const layout of_lse = sh->in == LAYOUT_ONE_TOKEN ? LAYOUT_GAPS : sh->in; /* the same q, but other keys */
    c->lse = tensor_new(&c->cfg, &c->batch, SIDE_Q, c->cfg.n_heads_q, 1, lse, of_lse);
    c->p = guarded((size_t)c->batch.max_seqlen_k * sizeof(double), FLUSH_RIGHT);
    c->score = guarded((size_t)c->batch.max_seqlen_k * sizeof(double), FLUSH_RIGHT);
    tensor_fill_normal(&c->q, r, sh->sigma);
    tensor_fill_normal(&c->k, r, 1.0);
    fill_lse(c);
}

/* All but slc_idx. */
static select_problem problem_of(const select_case *c, const nsa_ctx *ctx)
{
    return (select_problem){
        .ctx = ctx,
        .cfg = &c->cfg,
        .seqs = seqs_of_batch(&c->batch),
        .q = c->q.t,
        .k_cmp = rows_from_tensor(&c->k.t, c->cfg.d_qk, c->batch.cu_seqlens_k, c->cfg.cmp_stride),
        .lse = c->lse.t,
    };
}

static bool supports(const select_case *c, const nsa_ctx *ctx, const select_impl *impl)
{
    const select_problem p = problem_of(c, ctx);
    return impl->supports(&p) && !(ctx->cuda && c->shape.dtype == NSA_F64);
}

static test_tensor run(const select_case *c, const nsa_ctx *ctx, const select_impl *impl)
{
    const test_tensor idx =
        tensor_new(&c->cfg, &c->batch, SIDE_Q, c->cfg.n_heads_kv, c->cfg.slc_topk, NSA_I32, c->shape.out);
    select_problem p = problem_of(c, ctx);
    p.slc_idx = idx.t;
    run_op(ctx, impl->run, &p, sizeof p);
    assert_padding_intact("slc_idx", &idx);
    return idx;
}

static const select_impl *oracle(void)
{
    const select_impl *impl = select_impls;
    while (impl[1].name != NULL)
        impl++;
    return impl;
}

typedef void impl_fn(const select_case *c, const nsa_ctx *ctx, const select_impl *impl, const void *expected);

static void each_impl(const select_case *c, int i, int32_t n_threads, impl_fn *test, const void *expected)
{
    nsa_ctx contexts[MAX_CONTEXTS];
    const int n_contexts = test_contexts(contexts, n_threads);
    for (int x = 0; x < n_contexts; x++)
        for (const select_impl *impl = select_impls; impl->name != NULL; impl++) {
            if (!supports(c, &contexts[x], impl) || (x > 0 && impl == oracle()))
                continue;
            test_note("%s, %s, case %d", impl->name, nsa_ctx_isa(&contexts[x]), i);
            test(c, &contexts[x], impl, expected);
        }
}

/* for (row_at a = {0, 0, -1}; next_row(c, &a);) every row of slc_idx that has a position. */
typedef struct row_at {
    int32_t s;
    int64_t row;
    int32_t head;
} row_at;

static const row_at before_first = {0, 0, -1};

static bool next_row(const select_case *c, row_at *a)
{
    do {
        if (++a->head == c->cfg.n_heads_kv)
            a->head = 0, a->row++;
        while (a->s < c->batch.n_seqs && a->row >= tensor_rows(&c->q, a->s))
            a->row = 0, a->s++;
    } while (a->s < c->batch.n_seqs && position(c, a->s, a->row) < 0);
    return a->s < c->batch.n_seqs;
}

static bool has(const test_tensor *idx, row_at a, int64_t block)
{
    bool found = false;
    for (int32_t i = 0; i < idx->e.d; i++)
        found |= tensor_get(idx, a.s, a.row, a.head, i) == (double)block;
    return found;
}

static bool is_forced(const select_case *c, int64_t j, int64_t cur)
{
    return j < c->cfg.slc_n_init || (j <= cur && j > cur - c->cfg.slc_n_local);
}

/* ---- What holds whatever the scores: how many, in order, the forced ones among them, none after the query */

static void check_shape(const select_case *c, const test_tensor *idx)
{
    for (int32_t s = 0; s < c->batch.n_seqs; s++)
        for (int64_t row = 0; row < tensor_rows(&c->q, s); row++)
            for (int32_t h = 0; h < c->cfg.n_heads_kv; h++) {
                const int64_t t = position(c, s, row), cur = t < 0 ? -1 : t / c->cfg.slc_block;
                const int64_t count = min_i64(c->cfg.slc_topk, cur + 1);
                double last = -1.0;
                for (int32_t i = 0; i < c->cfg.slc_topk; i++) {
                    const double j = tensor_get(idx, s, row, h, i);
                    if (i < count ? !(j > last && j <= (double)cur) : j != -1.0)
                        test_fail("seq %d, row %lld (t = %lld), head %d: entry %d is %g", s, (long long)row,
                                  (long long)t, h, i, j);
                    last = j;
                }
                for (int64_t j = 0; j <= cur; j++)
                    if (is_forced(c, j, cur) && !has(idx, (row_at){s, row, h}, j))
                        test_fail("seq %d, row %lld, head %d: forced block %lld is missing", s, (long long)row, h,
                                  (long long)j);
            }
}

/* ---- The highest scores */

/* c->score: by the tokens that compressed and selection blocks share, in double. Returns A of the specification. */
static double brute_force(const select_case *c, row_at a, int64_t cur)
{
    const nsa_config *cfg = &c->cfg;
    const int32_t group = config_group(cfg);
    const int64_t n = visible(c, position(c, a.s, a.row));
    double q_norm = 0.0, k_norm = 0.0, total = 0.0, sum_score = 0.0;
    for (int64_t i = 0; i < n; i++) {
        c->p[i] = 0.0;
        double square = 0.0;
        for (int32_t e = 0; e < cfg->d_qk; e++)
            square += pow(tensor_get(&c->k, a.s, i, a.head, e), 2.0);
        k_norm = fmax(k_norm, sqrt(square));
    }
    for (int32_t h = a.head * group; h < (a.head + 1) * group; h++) {
        double square = 0.0;
        for (int32_t e = 0; e < cfg->d_qk; e++)
            square += pow(tensor_get(&c->q, a.s, a.row, h, e), 2.0);
        q_norm = fmax(q_norm, sqrt(square));
        for (int64_t i = 0; i < n; i++)
            c->p[i] += exp(logit(c, a.s, a.row, h, i) - tensor_get(&c->lse, a.s, a.row, h, 0));
    }
    for (int64_t i = 0; i < n; i++)
        total += c->p[i];
    for (int64_t j = 0; j <= cur; j++) {
        c->score[j] = 0.0;
        for (int64_t i = 0; i < n; i++) {
            const int64_t from = max_i64(i * cfg->cmp_stride, j * cfg->slc_block);
            const int64_t to = min_i64(i * cfg->cmp_stride + cfg->cmp_block, (j + 1) * cfg->slc_block);
            c->score[j] += (double)max_i64(0, to - from) / cfg->cmp_stride * c->p[i];
        }
        sum_score += c->score[j];
    }
    const double bound = config_scale(cfg) * q_norm * k_norm;
    if (n > 0 && fabs(total - group) > 1e-6 * (1.0 + bound) * group) /* lse is float32 */
        test_fail("the test's own probabilities add up to %g, not %d", total, group);
    if (fabs(sum_score - (double)cfg->cmp_block / cfg->cmp_stride * total) > 1e-12 * group * cfg->cmp_block)
        test_fail("the scores add up to %g, P to %g", sum_score, total);
    return bound;
}

static void check_highest(const select_case *c, const test_tensor *idx, const test_tensor *expected)
{
    for (row_at a = before_first; next_row(c, &a);) {
        const int64_t cur = position(c, a.s, a.row) / c->cfg.slc_block;
        if (cur < c->cfg.slc_topk)
            continue;
        const double error = 0x1p-20 * (1.0 + brute_force(c, a, cur));
        double lowest = INFINITY; /* of the free blocks that the oracle took */
        for (int64_t j = 0; j <= cur; j++)
            if (!is_forced(c, j, cur) && has(expected, a, j))
                lowest = fmin(lowest, c->score[j]);
        for (int64_t j = 0; j <= cur; j++) {
            if (is_forced(c, j, cur))
                continue;
            const double score = c->score[j], off = error * lowest + 0x1p-118;
            const bool taken = has(idx, a, j);
            if ((taken != has(expected, a, j) && fabs(score - lowest) > off) || (!taken && score > lowest + off))
                test_fail("seq %d, row %lld, head %d: block %lld of score %.9g is %s, the lowest taken is %.9g", a.s,
                          (long long)a.row, a.head, (long long)j, score, taken ? "taken" : "left", lowest);
        }
    }
}

static void check_run(const select_case *c, const nsa_ctx *ctx, const select_impl *impl, const void *expected)
{
    const test_tensor idx = run(c, ctx, impl);
    check_shape(c, &idx);
    check_highest(c, &idx, expected);
}

static void test_highest_scores(void **state)
{
    (void)state;
    rng r = rng_new();
    for (int i = 0; i < N_SHAPES; i++) {
        select_case c;
        case_init(&c, &shapes[i], &r);
        const test_tensor expected = run(&c, &oracle_ctx, oracle());
        each_impl(&c, i, 2, check_run, &expected);
    }
}

static void test_block_sizes(void **state)
{
    (void)state;
    rng r = rng_new();
    int i = 0;
    for (int32_t stride = 1; stride <= 3; stride++)
        for (int32_t per_cmp = 1; per_cmp <= 4; per_cmp++)
            for (int32_t per_slc = per_cmp; per_slc <= 5; per_slc++, i++) {
                const shape sh = {
                    per_cmp * stride, stride,     per_slc * stride, 3,  0, 1, per_slc * stride * 8, 1, 1, 4,
                    NSA_F32,          LAYOUT_THD, LAYOUT_THD,       6.0};
                select_case c;
                case_init(&c, &sh, &r);
                const test_tensor expected = run(&c, &oracle_ctx, oracle());
                each_impl(&c, i, 1, check_run, &expected);
            }
}

/* ---- Ties */

/* Every interior block has the same score: k_cmp repeats from selection block to selection block. */
static void check_ties(const select_case *c, const nsa_ctx *ctx, const select_impl *impl, const void *expected)
{
    (void)expected;
    const test_tensor idx = run(c, ctx, impl);
    check_shape(c, &idx);
    const int64_t per_slc = c->cfg.slc_block / c->cfg.cmp_stride;
    for (row_at a = before_first; next_row(c, &a);) {
        const int64_t t = position(c, a.s, a.row), cur = t / c->cfg.slc_block, n = visible(c, t);
        bool left = false;
        for (int64_t j = 1; j <= cur; j++) {
            if (is_forced(c, j, cur) || per_slc * (j + 1) > n)
                continue;
            const bool taken = has(&idx, a, j);
            if (taken && left)
                test_fail("seq %d, row %lld, head %d: block %lld is taken, a lower one of the same score is not", a.s,
                          (long long)a.row, a.head, (long long)j);
            left |= !taken;
        }
    }
}

static void test_ties_go_to_the_lower_block(void **state)
{
    (void)state;
    rng r = rng_new();
    const int chosen[] = {0, 1, 2, 3, 4, 7, 12, 13, 15, 16, 17, 18};
    for (size_t i = 0; i < sizeof chosen / sizeof *chosen; i++) {
        select_case c;
        case_init(&c, &shapes[chosen[i]], &r);
        const int64_t period = c.cfg.slc_block / c.cfg.cmp_stride;
        for (int32_t s = 0; s < c.batch.n_seqs; s++)
            for (int64_t row = period; row < tensor_rows(&c.k, s); row++)
                for (int32_t h = 0; h < c.k.e.n_heads; h++)
                    for (int32_t e = 0; e < c.k.e.d; e++)
                        tensor_set(&c.k, s, row, h, e, tensor_get(&c.k, s, row - period, h, e));
        fill_lse(&c);
        each_impl(&c, chosen[i], 2, check_ties, NULL);
    }
}

/* ---- NaN */

enum { BAD_SEQ = 5 }; /* the longest of batch_ragged */

static void check_bad_block(const select_case *c, const nsa_ctx *ctx, const select_impl *impl, const void *clean_case)
{
    const nsa_config *cfg = &c->cfg;
    const test_tensor idx = run(c, ctx, impl), clean = run(clean_case, ctx, impl);
    check_shape(c, &idx);
    const int64_t bad = tensor_rows(&c->k, BAD_SEQ) / 2;
    const int64_t from = bad * cfg->cmp_stride, to = from + cfg->cmp_block; /* its tokens */
    for (row_at a = before_first; next_row(c, &a);) {
        const int64_t t = position(c, a.s, a.row), cur = t / cfg->slc_block;
        if (a.s != BAD_SEQ || t < to - 1) {
            if (!row_same_bits(&idx, &clean, a.s, a.row, a.head))
                test_fail("seq %d, row %lld: changed by a NaN that it does not see", a.s, (long long)a.row);
            continue;
        }
        bool left = false, nan_taken = false;
        for (int64_t j = 0; j <= cur; j++) {
            const bool is_nan = j * cfg->slc_block < to && (j + 1) * cfg->slc_block > from;
            if (is_forced(c, j, cur))
                continue;
            left |= !is_nan && !has(&idx, a, j);
            nan_taken |= is_nan && has(&idx, a, j);
        }
        if (left && nan_taken)
            test_fail("seq %d, row %lld, head %d: a NaN score is taken before a number", a.s, (long long)a.row, a.head);
    }
}

static void test_nan_ranks_below_numbers(void **state)
{
    (void)state;
    rng r = rng_new();
    const int chosen[] = {0, 1, 2, 4, 12, 14, 17, 18};
    for (size_t i = 0; i < sizeof chosen / sizeof *chosen; i++) {
        select_case c;
        case_init(&c, &shapes[chosen[i]], &r);
        const select_case clean = c;
        c.k = tensor_copy(&clean.k, c.shape.dtype);
        const int64_t bad = tensor_rows(&c.k, BAD_SEQ) / 2;
        for (int32_t h = 0; h < c.k.e.n_heads; h++)
            tensor_set(&c.k, BAD_SEQ, bad, h, c.k.e.d - 1, NAN);
        each_impl(&c, chosen[i], 2, check_bad_block, &clean);
    }
}

/* ---- The same bits for any number of threads */

static void check_threads(const select_case *c, const nsa_ctx *ctx, const select_impl *impl, const void *expected)
{
    (void)expected;
    const test_tensor first = run(c, ctx, impl);
    const int32_t n_threads[] = {2, 3, 8};
    for (int i = 0; i < 3; i++) {
        nsa_ctx other = *ctx;
        other.n_threads = n_threads[i];
        const test_tensor again = run(c, &other, impl);
        assert_same_bits("slc_idx", &again, &first);
    }
}

static void test_same_bits_for_any_threads(void **state)
{
    (void)state;
    rng r = rng_new();
    const int chosen[] = {1, 2, 3, 4, 12, 13, 16};
    for (size_t i = 0; i < sizeof chosen / sizeof *chosen; i++) {
        select_case c;
        case_init(&c, &shapes[chosen[i]], &r);
        each_impl(&c, chosen[i], 1, check_threads, NULL);
    }
}

/* ---- The same bits in every layout */

static void compare_with_packed(const select_case *c, const nsa_ctx *ctx, const select_impl *impl, const void *expected)
{
    if (!supports(expected, ctx, impl))
        return;
    const test_tensor want = run(expected, ctx, impl), got = run(c, ctx, impl);
    assert_same_bits("slc_idx", &got, &want);
}

static void test_same_bits_in_every_layout(void **state)
{
    (void)state;
    rng r = rng_new();
    for (int i = 0; i < 2 * n_test_layouts(); i++) {
        const layout as = (layout)(i / 2);
        shape sh = {4, 2, 8, 3, 1, 1, 67, 2, 3, 16, NSA_F32, as, output_layout(as), 2.0};
        if (i % 2 == 1)
            sh.d = 64, sh.dtype = NSA_BF16;
        select_case c;
        case_init(&c, &sh, &r);
        select_case packed = c;
        packed.shape.out = LAYOUT_THD;
        packed.q = tensor_as(&c.q, LAYOUT_THD);
        packed.k = tensor_as(&c.k, LAYOUT_THD);
        packed.lse = tensor_as(&c.lse, LAYOUT_THD);
        each_impl(&c, i, 2, compare_with_packed, &packed);
    }
}

/* ---- Public functions */

static void test_public_functions(void **state)
{
    (void)state;
    rng r = rng_new();
    select_case c;
    case_init(&c, &shapes[2], &r);
    nsa_ctx *ctx = NULL;
    assert_ok(nsa_ctx_create(&ctx, NULL));
    const test_tensor want = run(&c, ctx, select_impls), got = tensor_like(&want, NSA_I32);
    const nsa_select_args args = {c.q.t, c.k.t, c.lse.t, got.t};
    size_t bytes = 0;
    assert_ok(nsa_select_workspace(ctx, &c.cfg, &c.batch, &args, &bytes));
    void *ws = guarded(bytes, FLUSH_LEFT);
    require(nsa_select(ctx, &c.cfg, &c.batch, &args, ws, bytes - 1, NULL) == NSA_ERR_WORKSPACE);
    assert_ok(nsa_select(ctx, &c.cfg, &c.batch, &args, ws, bytes, NULL));
    assert_same_bits("slc_idx", &got, &want);
    nsa_ctx_destroy(ctx);
}

const test_case test_cases[] = {
    TEST(test_highest_scores),
    TEST(test_block_sizes),
    TEST(test_ties_go_to_the_lower_block),
    TEST(test_nan_ranks_below_numbers),
    TEST(test_same_bits_for_any_threads),
    TEST(test_same_bits_in_every_layout),
    TEST(test_public_functions),
    {NULL, NULL, NULL},
};
