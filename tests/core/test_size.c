/* Sizes that do not fit stay what they are, and no workspace is counted too small. */
#include "testlib/unit.h"
#include "testlib/testlib.h"

#include "core/size.h"

static void test_sizes_saturate(void **state)
{
    (void)state;
    assert_int_equal(size_mul(0, 5), 0);
    assert_int_equal(size_mul(SIZE_MAX / 2, 2), SIZE_MAX - 1);
    assert_int_equal(size_mul(SIZE_MAX / 2 + 1, 2), SIZE_MAX);
    assert_int_equal(size_mul(SIZE_MAX, 0), SIZE_MAX); /* what did not fit stays so */
    assert_int_equal(size_mul(0, SIZE_MAX), SIZE_MAX);
    assert_int_equal(size_add(SIZE_MAX - 1, 1), SIZE_MAX);
    assert_int_equal(size_add(SIZE_MAX, 0), SIZE_MAX);
    assert_int_equal(size_add(SIZE_MAX, SIZE_MAX), SIZE_MAX);
    assert_int_equal(size_round_up(0, 64), 0);
    assert_int_equal(size_round_up(1, 64), 64);
    assert_int_equal(size_round_up(128, 64), 128);
    assert_int_equal(size_round_up(SIZE_MAX - 127, 64), SIZE_MAX - 127);
    assert_int_equal(size_round_up(SIZE_MAX - 62, 64), SIZE_MAX);
    assert_int_equal(size_of(3, 8), 24);
    assert_int_equal(size_of(-1, 1), SIZE_MAX);
    assert_int_equal(size_of(-1, 0), SIZE_MAX);
    assert_int_equal(size_of(INT64_MIN, 8), SIZE_MAX);
    assert_int_equal(size_of(INT64_MAX, 1), SIZE_MAX);
    assert_int_equal(size_of(INT64_MAX / 2, 8), SIZE_MAX);
    assert_int_equal(size_of(7, SIZE_MAX), SIZE_MAX);
}

static void test_i64_saturates(void **state)
{
    (void)state;
    assert_true(i64_mul(1 << 20, 1 << 20) == INT64_C(1) << 40);
    assert_true(i64_mul(INT64_C(1) << 31, INT64_C(1) << 32) == INT64_MAX);
    assert_true(i64_mul(INT64_MAX, 0) == INT64_MAX);
    assert_true(i64_mul(-1, -1) == INT64_MAX);
    assert_true(i64_mul(-1, 0) == INT64_MAX);
    assert_true(i64_add(INT64_MAX - 1, 1) == INT64_MAX);
    assert_true(i64_add(INT64_MAX, 1) == INT64_MAX);
    assert_true(i64_add(-1, 5) == INT64_MAX);
    assert_true(i64_add(2, 5) == 7);
}

/* What an op would do whose sizes pass SIZE_MAX in one buffer, in their sum, or by a negative count. */
static void too_large_at_once(const void *problem, arena *ws)
{
    (void)problem;
    arena_take(ws, INT64_MAX / 4, 16);
}

static void too_large_in_sum(const void *problem, arena *ws)
{
    (void)problem;
    for (int i = 0; i < 3; i++)
        arena_take(ws, INT64_MAX / 4, 4);
}

static void negative(const void *problem, arena *ws)
{
    (void)problem;
    const size_t mark = ws->used;
    arena_take(ws, -64, 1);
    arena_release(ws, mark); /* must not make it good */
    arena_take(ws, 1, 1);
}

static const nsa_ctx ctx = {.n_threads = 1};

static void test_workspace_too_large(void **state)
{
    (void)state;
    op_fn *const ops[] = {too_large_at_once, too_large_in_sum, negative};
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++) {
        size_t bytes = 0;
        char workspace[1];
        assert_int_equal(op_workspace(ops[i], NULL, &bytes), NSA_ERR_INVALID_ARGUMENT);
        assert_non_null(strstr(nsa_last_error(), "too large"));
        assert_int_equal(op_run(&ctx, ops[i], NULL, workspace, SIZE_MAX, NULL), NSA_ERR_INVALID_ARGUMENT);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes_saturate),
        cmocka_unit_test(test_i64_saturates),
        cmocka_unit_test(test_workspace_too_large),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
