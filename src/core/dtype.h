/* Element types and the conversions between them; round to nearest, ties to even, NaN stays NaN. */
#ifndef NSA_CORE_DTYPE_H
#define NSA_CORE_DTYPE_H

#include <nsa.h>

#include <stdbool.h>
#include <string.h>

static inline size_t dtype_size(nsa_dtype t)
{
    return t == NSA_F64 ? 8 : t == NSA_BF16 || t == NSA_F16 ? 2 : 4;
}

static inline bool dtype_is_float(nsa_dtype t)
{
    return t == NSA_F32 || t == NSA_BF16 || t == NSA_F16 || t == NSA_F64;
}

const char *dtype_name(nsa_dtype t); /* "f32" ... ; "unknown dtype" */

static inline uint32_t float_bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static inline float bits_float(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

static inline float bf16_to_f32(uint16_t h)
{
    return bits_float((uint32_t)h << 16);
}

static inline uint16_t f32_to_bf16(float x)
{
    const uint32_t u = float_bits(x);
    if ((u & 0x7fffffffU) > 0x7f800000U)
        return (uint16_t)(u >> 16 | 0x40U); /* keep it a NaN whatever its low bits */
    return (uint16_t)((u + 0x7fffU + (u >> 16 & 1U)) >> 16);
}

float f16_to_f32(uint16_t h);
uint16_t f32_to_f16(float x);

/* One element as a double, and back: one rounding from double to the element's type. For the oracles. */
double dtype_get(const void *data, nsa_dtype t, int64_t i);
void dtype_set(void *data, nsa_dtype t, int64_t i, double x);

/* A row of n elements as float32, and back. f64 is not among them. */
void dtype_load_row(float *dst, const void *src, nsa_dtype t, int64_t n);
void dtype_store_row(void *dst, nsa_dtype t, const float *src, int64_t n);

static inline const void *dtype_at(const void *data, nsa_dtype t, int64_t i)
{
    return (const char *)data + i * (int64_t)dtype_size(t);
}

static inline void *dtype_at_mut(void *data, nsa_dtype t, int64_t i)
{
    return (char *)data + i * (int64_t)dtype_size(t);
}

#endif
