/* Random numbers as a function of (seed, stream, index): no state, so that a resumed run draws what it would have. */
#ifndef LM_RANDOM_H
#define LM_RANDOM_H

#include <math.h>
#include <stdint.h>

/* Streams below this number are those of tensors' initial values; then one for every training step. */
#define RANDOM_TRAINING (UINT64_C(1) << 40)
#define RANDOM_NEEDLES (UINT64_C(2) << 40)
#define RANDOM_SAMPLING (UINT64_C(3) << 40)

/* The finaliser of SplitMix64. */
static inline uint64_t random_mix(uint64_t x)
{
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9U;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebU;
    return x ^ x >> 31;
}

static inline uint64_t random_bits(uint64_t seed, uint64_t stream, uint64_t index)
{
    const uint64_t golden = 0x9e3779b97f4a7c15U;
    return random_mix(random_mix(random_mix(seed + golden) + stream * golden) + index * golden);
}

/* In [0, 1). */
static inline double random_unit(uint64_t seed, uint64_t stream, uint64_t index)
{
    return (double)(random_bits(seed, stream, index) >> 11) * 0x1p-53;
}

/* In 0 .. n-1. */
static inline int64_t random_below(uint64_t seed, uint64_t stream, uint64_t index, int64_t n)
{
    return (int64_t)(random_unit(seed, stream, index) * (double)n);
}

/* Standard normal (Box and Muller). */
static inline double random_normal(uint64_t seed, uint64_t stream, uint64_t index)
{
    const double u = 1.0 - random_unit(seed, stream, 2 * index);
    const double v = random_unit(seed, stream, 2 * index + 1);
    return sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v);
}

#endif
