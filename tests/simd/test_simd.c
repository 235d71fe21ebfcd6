/* Every row of simd_table that this CPU runs against plain loops in double. */
#include "testlib/unit.h"
#include "testlib/testlib.h"

#include <math.h>

enum { POISON = 0x7fdeadbe }; /* a NaN */

static float *floats(int64_t n, rng *r)
{
    float *x = guarded((size_t)n * sizeof *x, FLUSH_RIGHT);
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)rng_normal(r);
    return x;
}

static float *poisoned(int64_t n)
{
    float *x = guarded((size_t)n * sizeof *x, FLUSH_RIGHT);
    for (int64_t i = 0; i < n; i++)
        x[i] = bits_float(POISON);
    return x;
}

/* Distance of x to `exact` in units of exact's last place as a normal float. */
static double ulps(float x, double exact)
{
    int exponent = 0;
    frexp(exact, &exponent);
    return fabs((double)x - exact) / ldexp(1.0, (exponent < -125 ? -125 : exponent) - 24);
}

typedef void kernel_test(const simd_kernels *simd, rng *r);

static void each_row(kernel_test *test)
{
    nsa_ctx contexts[MAX_CONTEXTS];
    const int n = test_contexts(contexts, 1);
    for (int i = 0; i < n; i++) {
        rng r = rng_new();
        test_note("%s", contexts[i].simd->name);
        test(contexts[i].simd, &r);
        testlib_reset();
    }
}

/* ---- matmul */

typedef struct product {
    int64_t m, n, k;
    bool transposed_a, add;
    int64_t gap; /* more floats between rows */
} product;

static void check_product(const simd_kernels *simd, product x, rng *r)
{
    const int64_t ldb = simd_pad(x.n) + x.gap, ldc = ldb;
    const int64_t a_row = x.transposed_a ? 1 : x.k + x.gap, a_col = x.transposed_a ? x.m + x.gap : 1;
    const float *a = floats(x.m > 0 && x.k > 0 ? (x.m - 1) * a_row + (x.k - 1) * a_col + 1 : 0, r);
    const float *b = floats(x.k * ldb - x.gap * (x.k > 0), r);
    float *c = floats(x.m * ldc - x.gap * (x.m > 0), r);
    double *exact = guarded((size_t)(x.m * x.n) * sizeof *exact, FLUSH_RIGHT);
    double *size = guarded((size_t)(x.m * x.n) * sizeof *size, FLUSH_RIGHT);
    for (int64_t i = 0; i < x.m; i++)
        for (int64_t j = 0; j < x.n; j++) {
            double sum = x.add ? (double)c[i * ldc + j] : 0.0, all = fabs(sum);
            for (int64_t p = 0; p < x.k; p++) {
                const double term = (double)a[i * a_row + p * a_col] * (double)b[p * ldb + j];
                sum += term;
                all += fabs(term);
            }
            exact[i * x.n + j] = sum;
            size[i * x.n + j] = all;
        }
    for (int64_t i = 0; i < x.m * ldc - x.gap; i++)
        if (i % ldc >= simd_pad(x.n))
            c[i] = bits_float(POISON);
    simd_matmul(simd, c, ldc, a, a_row, a_col, b, ldb, x.m, x.n, x.k, x.add);
    for (int64_t i = 0; i < x.m; i++)
        for (int64_t j = 0; j < x.n; j++) {
            const double e = exact[i * x.n + j], allowed = size[i * x.n + j] * 0x1p-23 * sqrt((double)x.k + 1.0);
            if (!(fabs((double)c[i * ldc + j] - e) <= allowed))
                test_fail("%lld x %lld x %lld: c[%lld][%lld] is %.9g, not %.9g", (long long)x.m, (long long)x.n,
                          (long long)x.k, (long long)i, (long long)j, (double)c[i * ldc + j], e);
        }
    for (int64_t i = 0; i < x.m * ldc - x.gap; i++)
        if (i % ldc >= simd_pad(x.n) && float_bits(c[i]) != POISON)
            test_fail("%lld x %lld x %lld: wrote past the padding of a row", (long long)x.m, (long long)x.n,
                      (long long)x.k);
}

static void products(const simd_kernels *simd, rng *r)
{
    static const int64_t sizes[] = {1, 2, 3, 5, 6, 7, 8, 15, 16, 17, 33, 64, 97};
    enum { N = sizeof sizes / sizeof *sizes };
    for (int m = 0; m < N; m++)
        for (int n = 0; n < N; n++) {
            const int64_t k = sizes[rng_range(r, 0, N - 1)];
            check_product(simd, (product){sizes[m], sizes[n], k, n % 2 == 1, m % 2 == 1, (m + n) % 3 * 5}, r);
            testlib_reset();
        }
    check_product(simd, (product){5, 20, 700, false, false, 0}, r); /* deeper and taller than one block */
    check_product(simd, (product){203, 9, 300, true, true, 3}, r);
    check_product(simd, (product){4, 4, 0, false, false, 0}, r); /* zeros */
    check_product(simd, (product){4, 4, 0, false, true, 0}, r);
    check_product(simd, (product){0, 4, 4, false, false, 0}, r);
}

static void test_matmul(void **state)
{
    (void)state;
    each_row(products);
}

/* An element's bits depend on its row of A and its column of B, not on where they stand, nor on the split of k. */
static void placed_products(const simd_kernels *simd, rng *r)
{
    enum { M = 23, N = 37, K = 300 };
    const int64_t ldb = simd_pad(N);
    const float *a = floats(M * K, r), *b = floats(K * ldb, r);
    float *whole = floats(M * ldb, r), *part = floats(M * ldb, r);
    simd_matmul(simd, whole, ldb, a, K, 1, b, ldb, M, N, K, 0);
    for (int trial = 0; trial < 200; trial++) {
        const int32_t i = rng_range(r, 0, M - 1), m = rng_range(r, 1, M - i);
        const int32_t j = rng_range(r, 0, 1) * SIMD_PAD, n = rng_range(r, 1, N - j), split = rng_range(r, 0, K);
        simd_matmul(simd, part, ldb, a + i * K, K, 1, b + j, ldb, m, n, split, 0);
        simd_matmul(simd, part, ldb, a + i * K + split, K, 1, b + split * ldb + j, ldb, m, n, K - split, 1);
        for (int32_t y = 0; y < m; y++)
            for (int32_t x = 0; x < n; x++)
                if (float_bits(part[y * ldb + x]) != float_bits(whole[(i + y) * ldb + j + x]))
                    test_fail("rows %d + %d, columns %d + %d, k split at %d: other bits", i, m, j, n, split);
    }
}

static void test_matmul_is_independent_of_place(void **state)
{
    (void)state;
    each_row(placed_products);
}

/* ---- exp_row */

static void exp_in_range(const simd_kernels *simd, rng *r)
{
    (void)r;
    enum { N = 1 << 16 };
    float *x = guarded(N * sizeof *x, FLUSH_RIGHT), *y = guarded(N * sizeof *y, FLUSH_RIGHT);
    for (int sign = -1; sign <= 1; sign += 2)
        for (uint32_t high = 0; high < 0x42c00000U >> 16; high += 64) { /* magnitudes to 96, thinned */
            for (uint32_t low = 0; low < N; low++)
                x[low] = (float)sign * bits_float((high << 16) + low * 64 + (low & 63));
            memset(y, 0, N * sizeof *y);
            simd->add_exp(y, x, N, 1.0F, 0.0F);
            for (uint32_t i = 0; i < N; i++) {
                const double e = exp((double)x[i]);
                const bool good = e < 0x1p-126          ? y[i] == 0.0F
                                  : e >= 0x1.ffffffp127 ? y[i] == INFINITY
                                                        : ulps(y[i], e) <= 2.0;
                if (!good)
                    test_fail("exp(%.9g = %a): got %.9g, exact %.9g", (double)x[i], (double)x[i], (double)y[i], e);
            }
        }
}

static void exp_of_anything(const simd_kernels *simd, rng *r)
{
    const float special[] = {0.0F,  -0.0F,  INFINITY, -INFINITY, NAN, bits_float(0xffffffffU), bits_float(0x7f800001U),
                             1e30F, -1e30F, 1e-45F};
    const float expected[] = {1.0F, 1.0F, INFINITY, 0.0F, NAN, NAN, NAN, INFINITY, 0.0F, 1.0F};
    for (int i = 0; i < 10; i++) {
        float x[SIMD_PAD], y[SIMD_PAD] = {0};
        for (int j = 0; j < SIMD_PAD; j++)
            x[j] = special[i];
        simd->add_exp(y, x, SIMD_PAD, 1.0F, 0.0F);
        for (int j = 0; j < SIMD_PAD; j++)
            if (!(y[j] == expected[i] || (y[j] != y[j] && expected[i] != expected[i])))
                test_fail("exp(%g) is %g", (double)special[i], (double)y[j]);
    }
    for (int trial = 0; trial < 300; trial++) { /* what lies past the end stays, whatever is in x there */
        const int32_t n = rng_range(r, 0, 80), padded = (int32_t)simd_pad(n);
        float *x = poisoned(padded), *y = floats(padded, r), before[80];
        for (int32_t j = 0; j < n; j++)
            x[j] = (float)rng_normal(r);
        memcpy(before, y, (size_t)padded * sizeof *y);
        simd->add_exp(y, x, n, 0.25F, 1.5F);
        for (int32_t j = 0; j < padded; j++) {
            const double e = j < n ? exp((double)x[j] * 0.25 - 1.5) : 0.0;
            if (!(fabs((double)y[j] - (double)before[j] - e) <= 0x1p-22 * (fabs((double)before[j]) + e)))
                test_fail("%d of %d: got %g", j, n, (double)y[j]);
        }
        testlib_reset();
    }
}

static void test_exp(void **state)
{
    (void)state;
    each_row(exp_in_range);
    each_row(exp_of_anything);
}

/* ---- sum_row, count_from, has_nonfinite */

static void reductions(const simd_kernels *simd, rng *r)
{
    for (int trial = 0; trial < 300; trial++) {
        const int32_t n = 16 * rng_range(r, 0, 9), m = rng_range(r, 0, n);
        float *x = floats(n, r);
        double sum = 0.0, all = 0.0;
        int64_t from = 0;
        const float bound = m > 0 ? x[rng_range(r, 0, m - 1)] : 0.0F;
        for (int32_t j = 0; j < n; j++) {
            sum += (double)x[j];
            all += fabs((double)x[j]);
            from += j < m && x[j] >= bound;
        }
        if (!(fabs((double)simd->sum_row(x, n) - sum) <= all * 0x1p-22))
            test_fail("sum of %d: %.9g, not %.9g", n, (double)simd->sum_row(x, n), sum);
        if (simd->count_from(x, m, bound) != from)
            test_fail("%lld of %d are >= %g, not %lld", (long long)from, m, (double)bound,
                      (long long)simd->count_from(x, m, bound));
        testlib_reset();
    }
}

static void nonfinites(const simd_kernels *simd, rng *r)
{
    static const uint16_t odd_ones[] = {0x7f80, 0xff80, 0x7fc0, 0x7f81, 0xffff};
    for (int trial = 0; trial < 200; trial++) {
        const int32_t n = rng_range(r, 1, 70), pack = rng_range(r, 1, 2);
        uint16_t *x = guarded((size_t)n * sizeof(float), FLUSH_RIGHT);
        for (int32_t j = 0; j < 2 * n; j++) /* finite as bf16; as floats what stands in the lower half means nothing */
            x[j] = pack == 1 && j % 2 == 0 ? (uint16_t)rng_bits(r) : (uint16_t)(rng_bits(r) & 0xff7fU);
        const float *units = (const float *)(const void *)x;
        if (simd->has_nonfinite(units, n, pack) != 0)
            test_fail("%d finite units, pack %d", n, pack);
        const int32_t at = rng_range(r, 0, 2 * n - 1);
        x[pack == 1 ? at | 1 : at] = odd_ones[rng_range(r, 0, 4)];
        if (simd->has_nonfinite(units, n, pack) == 0)
            test_fail("element %d of %d units is not finite, pack %d", at, n, pack);
        testlib_reset();
    }
}

static void test_reductions(void **state)
{
    (void)state;
    each_row(reductions);
    each_row(nonfinites);
}

/* ---- softmax_step */

static void steps(const simd_kernels *simd, rng *r)
{
    enum { M = 21, N = 19, LD = 48, STEPS = 3 };
    const float scale = 0.7F;
    float *max = poisoned(32), *sum = poisoned(32), *keep = poisoned(32);
    float *logits[STEPS], *p[STEPS];
    for (int j = 0; j < N; j++) {
        max[j] = -INFINITY;
        sum[j] = 0.0F;
    }
    for (int step = 0; step < STEPS; step++) {
        logits[step] = floats(M * LD, r);
        for (int i = 0; i < M; i++)
            for (int j = 0; j < N; j++)
                if (j == 3 || (j == 4 && step == 0) || (j == 5 && step == 1) || rng_range(r, 0, 3) == 0)
                    logits[step][i * LD + j] = -INFINITY;
        logits[step][0 * LD + 7] = step == 1 ? NAN : 1.0F;
        p[step] = poisoned(M * LD);
        memcpy(p[step], logits[step], M * LD * sizeof(float));
        float before[N];
        memcpy(before, sum, sizeof before);
        simd->softmax_step(p[step], LD, M, N, scale, max, sum, keep);
        if (step == 1 && (keep[5] != 1.0F || float_bits(sum[5]) != float_bits(before[5])))
            test_fail("a step without elements: keep %g, sum %g after %g", (double)keep[5], (double)sum[5],
                      (double)before[5]);
        for (int before_it = 0; before_it < step; before_it++)
            for (int i = 0; i < M; i++)
                for (int j = 0; j < N; j++)
                    p[before_it][i * LD + j] *= keep[j];
    }
    for (int j = 0; j < N; j++) {
        double most = -INFINITY, total = 0.0;
        for (int s = 0; s < STEPS * M; s++)
            most = fmax(most, (double)logits[s / M][s % M * LD + j]);
        for (int s = 0; s < STEPS * M; s++) {
            const double l = (double)logits[s / M][s % M * LD + j],
                         e = l == -INFINITY ? 0.0 : exp((double)scale * (l - most));
            const float got = p[s / M][s % M * LD + j];
            total += e;
            if (j != 7 && (e == 0.0 ? got != 0.0F : !(fabs((double)got - e) <= 0x1p-20 * e)))
                test_fail("column %d: p is %.9g, not %.9g", j, (double)got, e);
        }
        if (j == 7 ? sum[j] == sum[j] : !(fabs((double)sum[j] - total) <= 0x1p-20 * total) || (double)max[j] != most)
            test_fail("column %d: sum %.9g, max %.9g, not %.9g, %.9g", j, (double)sum[j], (double)max[j], total, most);
    }
}

/* ---- attention: softmax, softmax_grad, product; with floats and with pairs of bf16 */

static double bf16_at(const float *units, int64_t element)
{
    uint16_t h;
    memcpy(&h, (const char *)units + element * 2, sizeof h);
    return (double)bf16_to_f32(h);
}

static double element_at(const simd_attn *attn, const float *units, int64_t element)
{
    return attn->pack == 2 ? bf16_at(units, element) : (double)units[element];
}

static simd_span *spans(int32_t m, int32_t n, rng *r)
{
    simd_span *x = guarded((size_t)m * sizeof *x, FLUSH_RIGHT);
    for (int32_t i = 0; i < m; i++) {
        const int32_t lo = rng_range(r, 0, n), hi = rng_range(r, lo, n);
        x[i] = i % 3 == 0 ? (simd_span){0, n} : (simd_span){lo, hi};
    }
    return x;
}

typedef void attn_test(const simd_attn *attn, rng *r);

static void each_type(const simd_kernels *simd, rng *r, attn_test *test)
{
    test(&simd->f32, r);
    if (simd->bf16.pack != 0)
        test(&simd->bf16, r);
}

static void row_steps(const simd_attn *attn, rng *r)
{
    enum { M = 13, STATES = 29, LD = 64, STEPS = 3 };
    const float scale = 0.7F;
    const double tolerance = attn->pack == 2 ? 0x1p-8 : 0x1p-20;
    float *max = poisoned(STATES), *sum = poisoned(STATES), *keep = poisoned(M);
    double most[M], total[M];
    int32_t state_of[M];
    for (int i = 0; i < M; i++) {
        state_of[i] = (int32_t)(i * 11 % STATES);
        max[state_of[i]] = -INFINITY;
        sum[state_of[i]] = 0.0F;
        most[i] = -INFINITY;
        total[i] = 0.0;
    }
    for (int step = 0; step < STEPS; step++) {
        const int32_t n = 16 * rng_range(r, 1, 4);
        float *s = floats(M * LD, r), *p = poisoned(M * LD);
        const simd_span *sees = step == 1 ? NULL : spans(M, n, r);
        for (int i = 0; sees != NULL && i < M; i++)
            for (int j = 0; j < n; j++)
                if (j < sees[i].lo || j >= sees[i].hi)
                    s[i * LD + j] = NAN;
        attn->softmax(&(simd_softmax){s, LD, p, LD, M, n, sees, state_of, scale, max, sum, keep});
        for (int i = 0; i < M; i++) {
            const int32_t lo = sees != NULL ? sees[i].lo : 0, hi = sees != NULL ? sees[i].hi : n;
            double now = most[i], added = 0.0;
            for (int j = lo; j < hi; j++)
                now =
                    (double)s[i * LD + j] > now ? (double)s[i * LD + j] : now; /* gcc 12 for AArch64 crashes on fmax */
            for (int j = 0; j < n; j++) {
                const double e = j >= lo && j < hi ? exp((double)scale * ((double)s[i * LD + j] - now)) : 0.0;
                const double got = element_at(attn, p + i * LD, j);
                if (!(fabs(got - e) <= tolerance * e))
                    test_fail("step %d, p[%d][%d] is %.9g, not %.9g", step, i, j, got, e);
                added += e;
            }
            const double kept = most[i] == -INFINITY ? 0.0 : exp((double)scale * (most[i] - now));
            total[i] = total[i] * kept + added;
            most[i] = now;
            if (!(fabs((double)keep[i] - kept) <= 0x1p-20 * kept) || (double)max[state_of[i]] != now ||
                !(fabs((double)sum[state_of[i]] - total[i]) <= 0x1p-20 * total[i]))
                test_fail("step %d, row %d: keep %g max %g sum %g, not %g %g %g", step, i, (double)keep[i],
                          (double)max[state_of[i]], (double)sum[state_of[i]], kept, now, total[i]);
        }
    }
}

static void row_grads(const simd_attn *attn, rng *r)
{
    enum { LD = 64 };
    for (int trial = 0; trial < 40; trial++) {
        const int32_t m = rng_range(r, 1, 9), n = 16 * rng_range(r, 1, 4);
        const double tolerance = attn->pack == 2 ? 0x1p-8 : 0x1p-20;
        float *s = floats(m * LD, r), *dp = floats(m * LD, r);
        const float *lse = floats(m, r), *delta = floats(m, r), *gate = floats(m, r);
        float *p_t = poisoned(m * LD), *ds_t = poisoned(m * LD), *ds = poisoned(m * LD);
        const simd_span *sees = trial % 2 == 0 ? NULL : spans(m, n, r);
        for (int i = 0; sees != NULL && i < m; i++)
            for (int j = 0; j < n; j++)
                if (j < sees[i].lo || j >= sees[i].hi)
                    s[i * LD + j] = dp[i * LD + j] = NAN;
        attn->softmax_grad(&(simd_softmax_grad){s, dp, LD, m, n, sees, lse, delta, gate, 0.3F, ds, ds_t, p_t});
        for (int i = 0; i < m; i++)
            for (int j = 0; j < n; j++) {
                const bool in = sees == NULL || (j >= sees[i].lo && j < sees[i].hi);
                const double e = in ? exp((double)0.3F * (double)s[i * LD + j] - (double)lse[i]) : 0.0;
                const double d_p = in ? (double)dp[i * LD + j] * (double)gate[i] : 0.0;
                const double d = e * (d_p - (double)delta[i]) * (double)0.3F;
                const int pack = attn->pack;
                const int64_t turned = (i / pack * LD + j) * pack + i % pack;
                const double got_p = element_at(attn, p_t, turned), got = element_at(attn, ds + i * LD, j);
                const double got_t = pack == 2 ? element_at(attn, ds_t, turned) : got;
                const double allowed = tolerance * fabs(d) + 0x1p-20 * e * (fabs(d_p) + fabs((double)delta[i]));
                if (!(fabs(got_p - e * (double)gate[i]) <= tolerance * e * fabs((double)gate[i])) ||
                    !(fabs(got - d) <= allowed) || !(fabs(got_t - d) <= allowed))
                    test_fail("[%d][%d]: p %.9g, ds %.9g and %.9g, not %.9g, %.9g", i, j, got_p, got, got_t,
                              e * (double)gate[i], d);
            }
        for (int j = 0; j < n && attn->pack == 2 && m % 2 == 1; j++) /* an odd last row pairs with zeros */
            if (element_at(attn, p_t, (m / 2 * LD + j) * 2 + 1) != 0.0)
                test_fail("[%d] past the last row is not 0", m);
        testlib_reset();
    }
}

/* Rows of C in any order, kept or overwritten; pairs of bf16 are exact but for the sums. */
static void row_products(const simd_attn *attn, rng *r)
{
    for (int trial = 0; trial < 100; trial++) {
        const int32_t m = rng_range(r, 1, 20), n = rng_range(r, 1, 140), k = rng_range(r, 0, 40), pack = attn->pack;
        const int64_t ldb = simd_pad(n), ldc = ldb, units = (int64_t)k * ldb;
        float *a = poisoned((int64_t)m * k), *b = poisoned(units), *c = floats(40 * ldc, r), *keep = floats(m, r);
        for (int64_t e = 0; e < (int64_t)m * k * pack; e++)
            dtype_set(a, pack == 2 ? NSA_BF16 : NSA_F32, e, rng_normal(r));
        for (int64_t e = 0; e < units * pack; e++)
            dtype_set(b, pack == 2 ? NSA_BF16 : NSA_F32, e, rng_normal(r));
        int32_t c_rows[20];
        for (int32_t i = 0; i < m; i++)
            c_rows[i] = (i * 7 + 3) % 40;
        float before[40 * 144];
        memcpy(before, c, (size_t)(40 * ldc) * sizeof *c);
        const int start = trial % 3;
        const bool turned = trial % 2 == 1;
        const int64_t a_row = turned ? 1 : k, a_col = turned ? m : 1;
        attn->product(&(simd_product){.c = c,
                                      .ldc = ldc,
                                      .c_rows = c_rows,
                                      .keep = start == 1 ? keep : NULL,
                                      .add = start == 2,
                                      .a = a,
                                      .a_row = a_row,
                                      .a_col = a_col,
                                      .b = b,
                                      .ldb = ldb,
                                      .m = m,
                                      .n = n,
                                      .k = k});
        for (int32_t i = 0; i < m; i++)
            for (int32_t j = 0; j < n; j++) {
                const double old = (double)before[c_rows[i] * ldc + j];
                double e = start == 0 ? 0.0 : start == 1 ? old * (double)keep[i] : old, all = fabs(e);
                for (int64_t p = 0; p < (int64_t)k * pack; p++) {
                    const int64_t at = (p / pack * ldb + j) * pack + p % pack;
                    const double term =
                        element_at(attn, a, (i * a_row + p / pack * a_col) * pack + p % pack) * element_at(attn, b, at);
                    e += term;
                    all += fabs(term);
                }
                if (!(fabs((double)c[c_rows[i] * ldc + j] - e) <= all * 0x1p-22 * sqrt(k + 1.0)))
                    test_fail("pack %d, %d x %d x %d: c[%d][%d] is %.9g, not %.9g", pack, m, n, k, i, j,
                              (double)c[c_rows[i] * ldc + j], e);
            }
        testlib_reset();
    }
}

static void attn_kernels(const simd_kernels *simd, rng *r)
{
    each_type(simd, r, row_steps);
    each_type(simd, r, row_grads);
    each_type(simd, r, row_products);
}

static void test_attn_kernels(void **state)
{
    (void)state;
    each_row(attn_kernels);
}

static void test_softmax(void **state)
{
    (void)state;
    each_row(steps);
}

/* ---- transpose, load_row, store_row */

static void transposes(const simd_kernels *simd, rng *r)
{
    for (int trial = 0; trial < 200; trial++) {
        const int32_t m = rng_range(r, 1, 40), n = rng_range(r, 1, 40);
        const int64_t ldx = simd_pad(n), ldy = simd_pad(m) + 16;
        const float *x = floats(m * ldx, r);
        float *y = poisoned(n * ldy);
        simd->transpose(y, ldy, x, ldx, m, n);
        for (int32_t j = 0; j < n; j++)
            for (int32_t i = 0; i < ldy; i++) {
                const uint32_t e = i < m ? float_bits(x[i * ldx + j]) : i < simd_pad(m) ? 0 : POISON;
                if (float_bits(y[j * ldy + i]) != e)
                    test_fail("%d x %d: y[%d][%d] is %g", m, n, j, i, (double)y[j * ldy + i]);
            }
        testlib_reset();
    }
}

static void pairs(const simd_kernels *simd, rng *r)
{
    for (int trial = 0; trial < 100 && simd->bf16.pack != 0; trial++) {
        const int32_t m = 2 * rng_range(r, 1, 9), n = rng_range(r, 1, 100);
        const int64_t ldy = (n + 31) / 32 * 32, ldx = ldy / 2;
        const float *x = floats(m * ldx, r);
        float *y = poisoned(m / 2 * ldy);
        simd->pair_rows(y, ldy, x, ldx, m, n);
        for (int64_t i = 0; i < m; i++)
            for (int64_t j = 0; j < n; j++) {
                uint16_t from, to;
                memcpy(&from, (const char *)(x + i * ldx) + 2 * j, sizeof from);
                memcpy(&to, (const char *)(y + i / 2 * ldy + j) + 2 * (i % 2), sizeof to);
                if (from != to)
                    test_fail("%d x %d: element %lld of row %lld", m, n, (long long)j, (long long)i);
            }
        testlib_reset();
    }
}

static void conversions(const simd_kernels *simd, rng *r)
{
    static const nsa_dtype types[] = {NSA_F32, NSA_BF16, NSA_F16};
    for (int t = 0; t < 3; t++)
        for (int32_t n = 0; n < 70; n++) {
            const size_t bytes = (size_t)n * dtype_size(types[t]);
            float *x = floats(n, r), *y = poisoned(n), *expected_y = poisoned(n);
            for (int32_t j = 0; j < n; j++) /* any float but a NaN, whose payload is free */
                do
                    x[j] = rng_range(r, 0, 1) ? x[j] : bits_float((uint32_t)rng_bits(r));
                while (x[j] != x[j]);
            void *z = guarded(bytes, FLUSH_RIGHT), *expected_z = guarded(bytes, FLUSH_RIGHT);
            simd->store_row(z, types[t], x, n);
            dtype_store_row(expected_z, types[t], x, n);
            if (n > 0 && memcmp(z, expected_z, bytes) != 0)
                test_fail("store_row of %d as %s", n, dtype_name(types[t]));
            simd->load_row(y, z, types[t], n);
            dtype_load_row(expected_y, z, types[t], n);
            if (n > 0 && memcmp(y, expected_y, (size_t)n * sizeof *y) != 0)
                test_fail("load_row of %d from %s", n, dtype_name(types[t]));
            for (int32_t j = 0; j < n; j++)
                x[j] = bits_float(0x7f800001U + (uint32_t)j);
            simd->store_row(z, types[t], x, n);
            simd->load_row(y, z, types[t], n);
            for (int32_t j = 0; j < n; j++)
                if (y[j] == y[j])
                    test_fail("NaN %d of %d as %s became %g", j, n, dtype_name(types[t]), (double)y[j]);
            testlib_reset();
        }
}

static void test_moves(void **state)
{
    (void)state;
    each_row(transposes);
    each_row(pairs);
    each_row(conversions);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_matmul),  cmocka_unit_test(test_matmul_is_independent_of_place),
        cmocka_unit_test(test_exp),     cmocka_unit_test(test_reductions),
        cmocka_unit_test(test_softmax), cmocka_unit_test(test_attn_kernels),
        cmocka_unit_test(test_moves),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
