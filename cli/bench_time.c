#include "cli/bench.h"
#include "cli/progress.h"

#include <stdlib.h>

enum { MAX_REPS = 401 };

static const double warm_up_seconds = 1; /* what takes as long needs no warm-up */
static const double patience = 60;       /* seconds, after which even min_reps are enough */

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

bool bench_repeat(void *self, bench_step *prepare, bench_step *run, const bench_effort *effort, bench_time *time)
{
    double took[MAX_REPS], spent = 0;
    int n = 0;
    for (bool warm = false; n < MAX_REPS && (n < effort->min_reps || spent < effort->seconds); warm = true) {
        if (n > 0 && spent >= patience)
            break;
        if (prepare != NULL && !prepare(self))
            return false;
        const double start = seconds_now();
        if (!run(self))
            return false;
        const double elapsed = seconds_now() - start;
        spent += elapsed;
        if (warm || elapsed >= warm_up_seconds || elapsed >= effort->seconds)
            took[n++] = elapsed;
    }
    qsort(took, (size_t)n, sizeof took[0], ascending);
    *time = (bench_time){1e3 * (n % 2 == 1 ? took[n / 2] : 0.5 * (took[n / 2 - 1] + took[n / 2])), n};
    return true;
}
