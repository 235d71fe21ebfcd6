/* main of a suite that is a table: its cases as cmocka's. */
#include "testlib/unit.h"
#include "testlib/testlib.h"

enum { MAX_CASES = 32 };

int main(void)
{
    struct CMUnitTest tests[MAX_CASES];
    size_t n = 0;
    for (const test_case *t = test_cases; t->name != NULL; t++) {
        require(n < MAX_CASES);
        tests[n++] =
            (struct CMUnitTest){.name = t->name, .test_func = t->run, .initial_state = (void *)(uintptr_t)t->state};
    }
    return _cmocka_run_group_tests("tests", tests, n, NULL, NULL);
}
