/* The workspace: at any address, of any size, an operation gets what it counted and no byte more. */
#include "testlib/unit.h"
#include "testlib/testlib.h"

typedef struct two_steps {
    int64_t first, second, third; /* elements of 3 bytes; the third takes the place of the second */
    int runs;
} two_steps;

static void fill(arena *ws, int64_t count)
{
    char *p = arena_take(ws, count, 3);
    if (arena_counts(ws)) {
        assert_null(p);
        return;
    }
    assert_true(count == 0 || (uintptr_t)p % ARENA_ALIGN == 0);
    memset(p, 1, (size_t)count * 3);
    for (int64_t end = count * 3; end % ARENA_ALIGN != 0; end++)
        p[end] = 1; /* all that the arena gave */
}

static void steps_op(const void *problem, arena *ws)
{
    const two_steps *x = problem;
    fill(ws, x->first);
    const size_t mark = ws->used;
    fill(ws, x->second);
    arena_release(ws, mark);
    fill(ws, x->third);
    if (!arena_counts(ws))
        ((two_steps *)(uintptr_t)problem)->runs++;
}

static const nsa_ctx ctx = {.n_threads = 1};

static void test_any_address(void **state)
{
    (void)state;
    const two_steps sizes[] = {{1, 0, 0, 0}, {100, 7, 200, 0}, {64, 300, 1, 0}, {0, 0, 43, 0}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (size_t offset = 0; offset < ARENA_ALIGN; offset++) {
            testlib_reset();
            two_steps x = sizes[i];
            size_t bytes = 0;
            assert_int_equal(op_workspace(steps_op, &x, &bytes), NSA_OK);
            unsigned char *memory = guarded(4096, FLUSH_LEFT); /* 64-byte aligned, 0xff */
            assert_true(offset + bytes < 4096);
            assert_int_equal(op_run(&ctx, steps_op, &x, memory + offset, bytes - 1, NULL), NSA_ERR_WORKSPACE);
            assert_int_equal(x.runs, 0);
            assert_int_equal(op_run(&ctx, steps_op, &x, memory + offset, bytes, NULL), NSA_OK);
            assert_int_equal(x.runs, 1);
            for (size_t at = 0; at < 4096; at++)
                if ((at < offset || at >= offset + bytes) && memory[at] != 0xff)
                    test_fail("a workspace of %zu bytes at %zu: byte %zu was written", bytes, offset, at);
        }
}

static void test_none_needed(void **state)
{
    (void)state;
    two_steps x = {0, 0, 0, 0};
    size_t bytes = 1;
    assert_int_equal(op_workspace(steps_op, &x, &bytes), NSA_OK);
    assert_int_equal(bytes, 0);
    assert_int_equal(op_run(&ctx, steps_op, &x, NULL, 0, NULL), NSA_OK);
    assert_int_equal(x.runs, 1);
}

static void test_overflow(void **state)
{
    (void)state;
    const int64_t third = INT64_MAX / 3;
    const two_steps too_large[] = {{INT64_MAX, 0, 0, 0}, {third, third, 1, 0}, {1, INT64_MAX - 1, 1, 0}, {-1, 0, 0, 0}};
    size_t bytes = 7;
    for (size_t i = 0; i < sizeof too_large / sizeof *too_large; i++)
        assert_int_equal(op_workspace(steps_op, &too_large[i], &bytes), NSA_ERR_INVALID_ARGUMENT);
    const two_steps large = {third - 64, third - 64, 1, 0};
    assert_int_equal(op_workspace(steps_op, &large, &bytes), NSA_OK);
    assert_true(bytes > 6 * (size_t)(third - 64));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_address),
        cmocka_unit_test(test_none_needed),
        cmocka_unit_test(test_overflow),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
