/* Random numbers by index, for loops of the CPU and for kernels: a tensor has the same numbers wherever it is made. */
#ifndef CLI_BENCH_RANDOM_H
#define CLI_BENCH_RANDOM_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>

#if defined(__CUDACC__)
#define BENCH_BOTH_SIDES __host__ __device__
#else
#define BENCH_BOTH_SIDES
#endif

typedef struct bench_random {
    uint64_t seed;
    bool uniform; /* in [0, 1); else normal, nearly, of variance 1 */
    float scale;  /* of the numbers */
    /* 0, or how many tokens it takes from one independent row of numbers to the next. On the way a row turns: its
     * variance stays what it is. */
    int32_t turn;
    int64_t row; /* numbers of a token */
} bench_random;

/* 64 random bits for each n (splitmix64). */
static inline BENCH_BOTH_SIDES uint64_t bench_bits(uint64_t seed, uint64_t n)
{
    uint64_t z = seed + (n + 1) * 0x9e3779b97f4a7c15U;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9U;
    z = (z ^ z >> 27) * 0x94d049bb133111ebU;
    return z ^ z >> 31;
}

/* The sum of four uniform numbers of 16 bits, of variance 1. */
static inline BENCH_BOTH_SIDES float bench_normal(uint64_t seed, uint64_t n)
{
    const uint64_t z = bench_bits(seed, n);
    const int32_t sum = (int32_t)(z & 0xffff) + (int32_t)(z >> 16 & 0xffff) + (int32_t)(z >> 32 & 0xffff) +
                        (int32_t)(z >> 48) - 2 * 65535;
    return (float)sum * (1.7320508F / 65536);
}

static inline BENCH_BOTH_SIDES float bench_number(const bench_random *r, int64_t i)
{
    if (r->uniform)
        return r->scale * (float)(bench_bits(r->seed, (uint64_t)i) >> 40) * 0x1p-24F;
    if (r->turn == 0)
        return r->scale * bench_normal(r->seed, (uint64_t)i);
    const int64_t t = i / r->row, from = t / r->turn * r->row + i % r->row;
    const float angle = 1.5707963F * (float)(t % r->turn) / (float)r->turn;
    return r->scale * (cosf(angle) * bench_normal(r->seed, (uint64_t)from) +
                       sinf(angle) * bench_normal(r->seed, (uint64_t)(from + r->row)));
}

#endif
