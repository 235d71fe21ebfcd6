/* Every row of simd_table that this CPU runs against plain loops in double. */
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
    simd->matmul(c, ldc, a, a_row, a_col, b, ldb, x.m, x.n, x.k, x.add);
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
    simd->matmul(whole, ldb, a, K, 1, b, ldb, M, N, K, 0);
    for (int trial = 0; trial < 200; trial++) {
        const int32_t i = rng_range(r, 0, M - 1), m = rng_range(r, 1, M - i);
        const int32_t j = rng_range(r, 0, 1) * SIMD_PAD, n = rng_range(r, 1, N - j), split = rng_range(r, 0, K);
        simd->matmul(part, ldb, a + i * K, K, 1, b + j, ldb, m, n, split, 0);
        simd->matmul(part, ldb, a + i * K + split, K, 1, b + split * ldb + j, ldb, m, n, K - split, 1);
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
                y[low] = x[low] = (float)sign * bits_float((high << 16) + low * 64 + (low & 63));
            simd->exp_row(y, N, 0, N, 1.0F, 0.0F);
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
        float x[SIMD_PAD];
        for (int j = 0; j < SIMD_PAD; j++)
            x[j] = special[i];
        simd->exp_row(x, SIMD_PAD, 0, SIMD_PAD, 1.0F, 0.0F);
        for (int j = 0; j < SIMD_PAD; j++)
            if (!(x[j] == expected[i] || (x[j] != x[j] && expected[i] != expected[i])))
                test_fail("exp(%g) is %g", (double)special[i], (double)x[j]);
    }
    for (int trial = 0; trial < 300; trial++) { /* zeros around what is asked for, whatever stands there */
        const int32_t n = 16 * rng_range(r, 1, 5), lo = rng_range(r, 0, n), hi = rng_range(r, lo, n);
        const float *x = floats(n, r);
        float *y = poisoned(n);
        for (int32_t j = lo; j < hi; j++)
            y[j] = x[j];
        simd->exp_row(y, n, lo, hi, 0.25F, 1.5F);
        for (int32_t j = 0; j < n; j++)
            if (j < lo || j >= hi ? y[j] != 0.0F : !(ulps(y[j], exp((double)x[j] * 0.25 - 1.5)) <= 4.0))
                test_fail("%d of %d .. %d - 1 in %d: got %g", j, lo, hi, n, (double)y[j]);
        testlib_reset();
    }
}

static void test_exp(void **state)
{
    (void)state;
    each_row(exp_in_range);
    each_row(exp_of_anything);
}

/* ---- max_row, sum_row */

static void reductions(const simd_kernels *simd, rng *r)
{
    for (int trial = 0; trial < 300; trial++) {
        const int32_t n = 16 * rng_range(r, 0, 9), lo = rng_range(r, 0, n), hi = rng_range(r, lo, n);
        float *x = floats(n, r);
        double sum = 0.0, all = 0.0;
        for (int32_t j = 0; j < n; j++) {
            sum += (double)x[j];
            all += fabs((double)x[j]);
        }
        if (!(fabs((double)simd->sum_row(x, n) - sum) <= all * 0x1p-22))
            test_fail("sum of %d: %.9g, not %.9g", n, (double)simd->sum_row(x, n), sum);
        for (int32_t j = 0; j < n; j++)
            if (rng_range(r, 0, 4) == 0)
                x[j] = NAN;
        float most = -INFINITY;
        for (int32_t j = lo; j < hi; j++)
            most = x[j] > most ? x[j] : most;
        if (simd->max_row(x, lo, hi) != most)
            test_fail("max of %d .. %d - 1: %.9g, not %.9g", lo, hi, (double)simd->max_row(x, lo, hi), (double)most);
        testlib_reset();
    }
}

static void test_reductions(void **state)
{
    (void)state;
    each_row(reductions);
}

/* ---- softmax_step, softmax_grad */

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

static void grads(const simd_kernels *simd, rng *r)
{
    enum { M = 13, N = 22, LD = 48 };
    for (int by_column = 0; by_column <= 1; by_column++) {
        const float *s = floats(M * LD, r), *dp = floats(M * LD, r), *lse = floats(32, r), *delta = floats(32, r);
        float *p = poisoned(M * LD), *ds = poisoned(M * LD);
        memcpy(p, s, M * LD * sizeof(float));
        memcpy(ds, dp, M * LD * sizeof(float));
        simd->softmax_grad(p, ds, LD, M, N, 0.3F, lse, delta, by_column);
        for (int i = 0; i < M; i++)
            for (int j = 0; j < N; j++) {
                const int at = i * LD + j, of = by_column ? j : i;
                const double e = exp((double)0.3F * (double)s[at] - (double)lse[of]);
                const double d = e * ((double)dp[at] - (double)delta[of]) * (double)0.3F;
                if (!(fabs((double)p[at] - e) <= 0x1p-20 * e) ||
                    !(fabs((double)ds[at] - d) <= 0x1p-20 * (fabs(d) + e * fabs((double)dp[at]))))
                    test_fail("by_column %d [%d][%d]: p %.9g, ds %.9g, not %.9g, %.9g", by_column, i, j, (double)p[at],
                              (double)ds[at], e, d);
            }
    }
}

static void test_softmax(void **state)
{
    (void)state;
    each_row(steps);
    each_row(grads);
}

/* ---- transpose, load_row, store_row */

static void transposes(const simd_kernels *simd, rng *r)
{
    for (int trial = 0; trial < 200; trial++) {
        const int32_t n_rows = rng_range(r, 1, 40), m = rng_range(r, 1, 40), n = rng_range(r, 1, 40);
        const int64_t ldx = simd_pad(n), ldy = simd_pad(m) + 16;
        const float *x = floats((n_rows > m ? n_rows : m) * ldx, r);
        float *y = poisoned(n * ldy);
        int32_t pick[40];
        for (int32_t i = 0; i < m; i++)
            pick[i] = trial % 2 == 0 ? i : rng_range(r, 0, n_rows - 1);
        simd->transpose(y, ldy, x, ldx, trial % 2 == 0 ? NULL : pick, m, n);
        for (int32_t j = 0; j < n; j++)
            for (int32_t i = 0; i < ldy; i++) {
                const uint32_t e = i < m ? float_bits(x[pick[i] * ldx + j]) : i < simd_pad(m) ? 0 : POISON;
                if (float_bits(y[j * ldy + i]) != e)
                    test_fail("%d x %d: y[%d][%d] is %g", m, n, j, i, (double)y[j * ldy + i]);
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
    each_row(conversions);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_matmul),  cmocka_unit_test(test_matmul_is_independent_of_place),
        cmocka_unit_test(test_exp),     cmocka_unit_test(test_reductions),
        cmocka_unit_test(test_softmax), cmocka_unit_test(test_moves),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
