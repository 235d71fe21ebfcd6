/* Built for the thread sanitizer only: it reports a race between OpenMP's threads, and none where a barrier orders
 * them. A set-up that sees no race, or sees them everywhere, fails here before it says anything about the library. */
#include "testlib/unit.h"
#include "testlib/testlib.h"

#include <fcntl.h>
#include <omp.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { TSAN_EXIT = 66, N_THREADS = 2 };

/* Every thread writes its own element, then its neighbour's. */
static int run_threads(bool barrier)
{
    static int x[N_THREADS];
#pragma omp parallel num_threads(N_THREADS)
    {
        const int me = omp_get_thread_num();
        x[me] = me;
        if (barrier) {
#pragma omp barrier
        }
        x[(me + 1) % N_THREADS] += 1;
    }
    return x[0] < 0; /* read, so that the writes stay */
}

/* This program with an argument: main then runs the threads and ends as the sanitizer has it. */
static int exit_of(const char *argument)
{
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        const int null = open("/dev/null", O_WRONLY);
        dup2(null, STDERR_FILENO); /* the report */
        execl("/proc/self/exe", "test_race", argument, (char *)NULL);
        _exit(127);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void test_race_is_reported(void **state)
{
    (void)state;
    assert_int_equal(exit_of("race"), TSAN_EXIT);
}

static void test_barrier_is_seen(void **state)
{
    (void)state;
    assert_int_equal(exit_of("barrier"), 0);
}

int main(int argc, char **argv)
{
    if (argc > 1)
        return run_threads(strcmp(argv[1], "barrier") == 0);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_race_is_reported),
        cmocka_unit_test(test_barrier_is_seen),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
