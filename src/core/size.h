/*
 * Arithmetic of sizes. One that does not fit, or is negative, is SIZE_MAX (INT64_MAX): it stays so through every
 * further step, no allocation grants it and no file has it, so that a chain of products is checked once, where it ends.
 * This file needs no other, and lm/ includes it, too.
 */
#ifndef NSA_CORE_SIZE_H
#define NSA_CORE_SIZE_H

#include <stddef.h>
#include <stdint.h>

static inline size_t size_mul(size_t a, size_t b)
{
    size_t c = 0;
    return a == SIZE_MAX || b == SIZE_MAX || __builtin_mul_overflow(a, b, &c) ? SIZE_MAX : c;
}

static inline size_t size_add(size_t a, size_t b)
{
    size_t c = 0;
    return __builtin_add_overflow(a, b, &c) ? SIZE_MAX : c;
}

/* Up to the next multiple of align, a power of two. */
static inline size_t size_round_up(size_t n, size_t align)
{
    const size_t up = size_add(n, align - 1);
    return up == SIZE_MAX ? SIZE_MAX : up & ~(align - 1);
}

/* Bytes of count elements of `size` bytes. */
static inline size_t size_of(int64_t count, size_t size)
{
    size_t bytes = 0;
    return count < 0 || count == INT64_MAX || __builtin_mul_overflow(count, size, &bytes) ? SIZE_MAX : bytes;
}

static inline int64_t i64_mul(int64_t a, int64_t b)
{
    int64_t c = 0;
    const int fits = a >= 0 && b >= 0 && a < INT64_MAX && b < INT64_MAX && !__builtin_mul_overflow(a, b, &c);
    return fits ? c : INT64_MAX;
}

static inline int64_t i64_add(int64_t a, int64_t b)
{
    int64_t c = 0;
    return a >= 0 && b >= 0 && !__builtin_add_overflow(a, b, &c) ? c : INT64_MAX;
}

#endif
