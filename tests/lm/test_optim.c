/* AdamW against its formula in double, clipping, and the learning rate's course. */
#include "testlib/unit.h"
#include "testlib/testlib.h"

#include "lm/optim.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>

static void test_learning_rate(void **state)
{
    (void)state;
    train_config t = {.steps = 101, .lr = 2.0, .warmup = 10};
    assert_true(fabs(learning_rate(&t, 0) - 0.2) < 1e-12);
    assert_true(fabs(learning_rate(&t, 9) - 2.0) < 1e-12);
    assert_true(fabs(learning_rate(&t, 10) - 2.0) < 1e-12);
    assert_true(fabs(learning_rate(&t, 55) - 1.1) < 1e-12); /* half way: the mean of lr and lr/10 */
    assert_true(fabs(learning_rate(&t, 100) - 0.2) < 1e-12);
    assert_true(fabs(learning_rate(&t, 500) - 0.2) < 1e-12);
    for (int64_t step = 11; step < 101; step++)
        assert_true(learning_rate(&t, step) < learning_rate(&t, step - 1));
    /* No room for a cosine, or none for a warm-up. */
    for (int32_t steps = 1; steps < 4; steps++) {
        for (int32_t warmup = 0; warmup < 5; warmup++) {
            t.steps = steps;
            t.warmup = warmup;
            for (int64_t step = 0; step < steps; step++)
                assert_true(learning_rate(&t, step) > 0.0 && learning_rate(&t, step) <= 2.0);
        }
    }
}

static void test_adamw(void **state)
{
    (void)state;
    enum { N = 37, STEPS = 5 };
    const train_config t = {.steps = 100, .lr = 0.01, .warmup = 3, .weight_decay = 0.3, .beta1 = 0.9, .beta2 = 0.95};
    const int64_t shape[] = {N, 0};
    param_table table = {0};
    (void)params_add(&table, "decays", shape, true, INIT_ZEROS, 0);
    const int64_t second = params_add(&table, "does not", shape, false, INIT_ZEROS, 0);
    assert_false(table.failed);
    assert_int_equal(second % 16, 0);
    const size_t total = (size_t)table.total;
    float *w = calloc(total, sizeof *w), *g = calloc(total, sizeof *g);
    float *m = calloc(total, sizeof *m), *v = calloc(total, sizeof *v);
    double exact_w[2][N], exact_m[2][N] = {{0}}, exact_v[2][N] = {{0}};
    rng r = rng_new();
    for (int p = 0; p < 2; p++) {
        for (int i = 0; i < N; i++)
            exact_w[p][i] = (double)(w[table.items[p].offset + i] = (float)rng_normal(&r));
    }
    for (int step = 0; step < STEPS; step++) {
        for (int p = 0; p < 2; p++) {
            for (int i = 0; i < N; i++) {
                const double x = (double)(g[table.items[p].offset + i] = (float)rng_normal(&r)) * 0.5;
                exact_m[p][i] = 0.9 * exact_m[p][i] + 0.1 * x;
                exact_v[p][i] = 0.95 * exact_v[p][i] + 0.05 * x * x;
                const double m_hat = exact_m[p][i] / (1.0 - pow(0.9, step + 1));
                const double v_hat = exact_v[p][i] / (1.0 - pow(0.95, step + 1));
                const double decay = p == 0 ? 0.3 : 0.0;
                exact_w[p][i] -= learning_rate(&t, step) * (m_hat / (sqrt(v_hat) + 1e-8) + decay * exact_w[p][i]);
            }
        }
        adamw_step(&t, &table, w, g, m, v, step, 0.5);
    }
    for (int p = 0; p < 2; p++) {
        for (int i = 0; i < N; i++)
            assert_true(fabs((double)w[table.items[p].offset + i] - exact_w[p][i]) < 1e-5);
    }
    for (int64_t i = N; i < second; i++)
        assert_true(w[i] == 0.0F && m[i] == 0.0F && v[i] == 0.0F);
    params_free(&table);
    free(w);
    free(g);
    free(m);
    free(v);
}

static void test_norm(void **state)
{
    (void)state;
    enum { N = 5000001 };
    float *g = malloc(N * sizeof *g);
    rng r = rng_new();
    double exact = 0.0;
    for (int64_t i = 0; i < N; i++) {
        g[i] = (float)rng_range(&r, -1000, 1000);
        exact += (double)g[i] * (double)g[i];
    }
    exact = sqrt(exact);
    double first = 0.0;
    const int before = omp_get_max_threads();
    for (int threads = 1; threads <= 5; threads++) {
        omp_set_num_threads(threads);
        const double norm = gradient_norm(g, N);
        first = threads == 1 ? norm : first;
        assert_true(norm == first && fabs(norm - exact) <= 1e-12 * exact);
    }
    omp_set_num_threads(before);
    assert_true(gradient_norm(g, 0) == 0.0);
    g[N - 1] = NAN;
    assert_true(isnan(gradient_norm(g, N)));
    free(g);
}

static void test_table_overflow(void **state)
{
    (void)state;
    const int64_t huge[] = {INT64_C(1) << 40, INT64_C(1) << 40, 0};
    const int64_t large[] = {INT64_C(1) << 56, 0};
    const int64_t small[] = {4, 0};
    param_table table = {0};
    (void)params_add(&table, "a", huge, true, INIT_ZEROS, 0);
    assert_true(table.failed);
    (void)params_add(&table, "b", small, true, INIT_ZEROS, 0);
    assert_true(table.failed);
    params_free(&table);
    for (int i = 0; i < 4; i++)
        (void)params_add(&table, "c", large, true, INIT_ZEROS, 0);
    assert_true(table.failed);
    params_free(&table);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_learning_rate),
        cmocka_unit_test(test_adamw),
        cmocka_unit_test(test_norm),
        cmocka_unit_test(test_table_overflow),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
