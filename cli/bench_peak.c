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

/* 12 vectors of 8 floats: enough chains to hide the latency, few enough for 16 registers. */
enum { LANES = 96, ROUNDS = 1 << 18, TRIES = 7 };

static float sum(const float *x)
{
    float s = 0;
    for (int i = 0; i < LANES; i++)
        s += x[i];
    return s;
}

#define PEAK_LOOP(multiply_add)                                                                                        \
    float x[LANES];                                                                                                    \
    for (int i = 0; i < LANES; i++)                                                                                    \
        x[i] = start + (float)i;                                                                                       \
    for (int r = 0; r < ROUNDS; r++)                                                                                   \
        for (int i = 0; i < LANES; i++)                                                                                \
            x[i] = multiply_add;                                                                                       \
    return sum(x)

static float loop_scalar(float start)
{
    PEAK_LOOP(x[i] * 0.5F + 1.0F);
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) static float loop_avx2(float start)
{
    PEAK_LOOP(fmaf(x[i], 0.5F, 1.0F));
}
#endif

double bench_peak_gflops(const char *isa, int32_t n_threads)
{
    float (*loop)(float) = loop_scalar;
#if defined(__x86_64__)
    if (strcmp(isa, "avx2") == 0)
        loop = loop_avx2;
#else
    (void)isa;
#endif
    double best = 0;
    volatile float sink = 0; /* the loops must run */
    for (int i = 0; i < TRIES; i++) {
        const double start = seconds_now();
        float total = 0;
#pragma omp parallel num_threads(n_threads) reduction(+ : total)
        total += loop((float)i);
        const double gflops = 2e-9 * LANES * ROUNDS * n_threads / (seconds_now() - start);
        sink = total;
        best = fmax(best, gflops);
    }
    (void)sink;
    return best;
}
