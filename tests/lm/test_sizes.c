/* Models, runs and sessions of the largest sizes that the settings allow are refused for want of memory, in words. */
#include "testlib/unit.h"
#include "testlib/testlib.h"

#include "lm/arena.h"
#include "lm/error.h"
#include "lm/model.h"
#include "lm/run.h"
#include "lm/session.h"

#include <string.h>

static void assert_refused(bool ok, const char *message)
{
    assert_false(ok);
    if (strstr(lm_error(), message) == NULL)
        test_fail("'%s' does not say '%s'", lm_error(), message);
}

static void test_largest_model(void **state)
{
    (void)state;
    for (int attention = ATTENTION_NSA; attention <= ATTENTION_DENSE; attention++)
        for (int phi = NSA_PHI_MEAN; phi <= NSA_PHI_MLP; phi++) {
            lm_config cfg;
            model *m = NULL;
            config_init(&cfg);
            for (const setting *s = settings; s->name != NULL; s++)
                assert_true(setting_set(s, &cfg, s->name, s->max));
            cfg.model.attention = attention;
            cfg.model.phi = phi;
            cfg.model.slc_n_init = cfg.model.slc_n_local = 0;
            cfg.train.batch = 1;
            assert_refused(model_create(&m, &cfg), "out of memory");
            assert_null(m);
        }
}

static void test_longest_run_and_session(void **state)
{
    (void)state;
    for (int attention = ATTENTION_NSA; attention <= ATTENTION_DENSE; attention++) {
        lm_config cfg;
        model *m = NULL;
        run *r = NULL;
        session *s = NULL;
        config_init(&cfg);
        cfg.model.attention = attention;
        assert_true(model_create(&m, &cfg));
        assert_refused(run_create(&r, m, INT32_MAX, INT32_MAX, true), "more than");
        assert_refused(run_create(&r, m, 1, INT32_MAX, true), "out of memory");
        assert_refused(run_create(&r, m, INT32_MAX, 1, false), "out of memory");
        assert_refused(session_create(&s, m, INT32_MAX, 16), "out of memory");
        model_destroy(m);
    }
}

static void test_parameters_overflow(void **state)
{
    (void)state;
    static const int64_t shapes[][PARAM_MAX_DIMS + 1] = {
        {INT64_MAX / 2, 4, 0}, {INT64_MAX, 0}, {INT64_C(1) << 31, INT64_C(1) << 31, 4}, {-1, 3, 0}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        param_table table = {0};
        assert_true(params_add(&table, "a", shapes[i], false, INIT_ZEROS, 0) == 0);
        assert_true(table.failed);
        params_free(&table);
    }
}

static void test_buffers_overflow(void **state)
{
    (void)state;
    lm_arena a = {0};
    assert_null(lm_take_floats(&a, INT64_C(1) << 40, INT64_C(1) << 40));
    lm_take(&a, 1, 1);
    assert_int_equal(a.used, SIZE_MAX);
    assert_null(lm_alloc_zeroed(a.used));
    assert_null(lm_alloc_zeroed(SIZE_MAX - 8));
    a = (lm_arena){0};
    lm_take(&a, -1, 1);
    assert_int_equal(a.used, SIZE_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_largest_model),
        cmocka_unit_test(test_longest_run_and_session),
        cmocka_unit_test(test_parameters_overflow),
        cmocka_unit_test(test_buffers_overflow),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
