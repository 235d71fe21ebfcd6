/* main of a suite on a GPU, in the place of testlib/suite.c: needs no cmocka, and says what that does. */
#include "gpu/device.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SKIPPED = 77 };

static jmp_buf failed;

void end_test(const char *message)
{
    printf("%s\n", message);
    longjmp(failed, 1);
}

static bool run(const test_case *t)
{
    void *state = (void *)(uintptr_t)t->state;
    if (setjmp(failed) != 0)
        return false;
    t->run(&state);
    return true;
}

/* Without arguments all cases, otherwise those whose names contain the first. */
int main(int argc, char **argv)
{
    if (gpu_context() == NULL) {
        printf("skipped: %s\n", nsa_last_error());
        return SKIPPED;
    }
    int n_passed = 0, n_failed = 0;
    for (const test_case *t = test_cases; t->name != NULL; t++) {
        if (argc > 1 && strstr(t->name, argv[1]) == NULL)
            continue;
        const bool passed = run(t);
        n_passed += passed;
        n_failed += !passed;
        printf("[  %s  ] %s\n", passed ? "     OK" : " FAILED", t->name);
        fflush(stdout);
    }
    printf("[  PASSED  ] %d test(s).\n", n_passed);
    if (n_failed > 0)
        printf("[  FAILED  ] %d test(s)\n", n_failed);
    return n_failed > 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
