/*
 * The peak is what independent multiply-adds in registers reach in the instruction set that the library runs: a ceiling
 * that no kernel of that set can pass. It is measured beside the kernels, so that a slow or a shared machine lowers
 * both. Plain C: the compilers turn the inner loop into vectors that stay in registers.
 */
#include "cli/bench.h"
#include "cli/progress.h"

#include <math.h>
#include <omp.h>
#include <string.h>

enum { ROUNDS = 1 << 21, TRIES = 16 };

/* 12 vectors: enough chains to hide the latency, few enough for 16 registers. */
enum { LANES_128 = 12 * 4, LANES_256 = 12 * 8 };

static float sum(const float *x, int n)
{
    float s = 0;
    for (int i = 0; i < n; i++)
        s += x[i];
    return s;
}

#define PEAK_LOOP(lanes, multiply_add)                                                                                 \
    float x[lanes];                                                                                                    \
    for (int i = 0; i < (lanes); i++)                                                                                  \
        x[i] = start + (float)i;                                                                                       \
    for (int r = 0; r < ROUNDS; r++)                                                                                   \
        for (int i = 0; i < (lanes); i++)                                                                              \
            x[i] = multiply_add;                                                                                       \
    return sum(x, lanes)

static float loop_128(float start)
{
    PEAK_LOOP(LANES_128, x[i] * 0.5F + 1.0F);
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) static float loop_avx2(float start)
{
    PEAK_LOOP(LANES_256, fmaf(x[i], 0.5F, 1.0F));
}
#endif

double bench_peak_gflops(const char *isa, int32_t n_threads)
{
    float (*loop)(float) = loop_128;
    int lanes = LANES_128;
#if defined(__x86_64__)
    if (strcmp(isa, "avx2") == 0) {
        loop = loop_avx2;
        lanes = LANES_256;
    }
#else
    (void)isa;
#endif
    double best = 0;
    volatile float sink = 0; /* the loops must run */
    for (int i = 0; i < TRIES; i++) {
        float total = 0;
        double gflops = 0; /* all threads at once, each by its own clock */
#pragma omp parallel num_threads(n_threads) reduction(+ : total, gflops)
        {
            const double start = seconds_now();
            total += loop((float)i);
            gflops += 2e-9 * lanes * ROUNDS / (seconds_now() - start);
        }
        sink = total;
        best = fmax(best, gflops);
    }
    (void)sink;
    return best;
}
