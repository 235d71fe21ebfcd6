#include "core/dtype.h"

#include <math.h>

const char *dtype_name(nsa_dtype t)
{
    switch (t) {
    case NSA_F32: return "f32";
    case NSA_BF16: return "bf16";
    case NSA_F16: return "f16";
    case NSA_F64: return "f64";
    case NSA_I32: return "i32";
    }
    return "unknown dtype";
}

float f16_to_f32(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000U) << 16;
    const uint32_t magnitude = h & 0x7fffU;
    if (magnitude >= 0x7c00U) /* infinity, NaN */
        return bits_float(sign | 0x7f800000U | (magnitude & 0x3ffU) << 13);
    if (magnitude >= 0x400U) /* normal: the exponent's bias goes from 15 to 127 */
        return bits_float(sign | ((magnitude << 13) + (112U << 23)));
    const float subnormal = (float)magnitude * 0x1p-24F;
    return bits_float(sign | float_bits(subnormal));
}

uint16_t f32_to_f16(float x)
{
    const uint32_t u = float_bits(x);
    const uint32_t sign = u >> 16 & 0x8000U;
    const uint32_t magnitude = u & 0x7fffffffU;
    if (magnitude > 0x7f800000U)
        return (uint16_t)(sign | 0x7e00U | (magnitude >> 13 & 0x3ffU));
    if (magnitude >= 0x477ff000U) /* 65520 and more round to infinity */
        return (uint16_t)(sign | 0x7c00U);
    if (magnitude < 0x38800000U) { /* below 2^-14: the sum's last place is the subnormal's */
        const float shifted = bits_float(magnitude) + 0.5F;
        return (uint16_t)(sign | (float_bits(shifted) - float_bits(0.5F)));
    }
    const uint32_t rounded = magnitude + 0xfffU + (magnitude >> 13 & 1U);
    return (uint16_t)(sign | (rounded - (112U << 23)) >> 13);
}

/* The nearest float whose double rounding to 11 or 8 bits equals one rounding of x: round to odd. */
static float round_to_odd(double x)
{
    const float f = (float)x;
    if (!isfinite(f) || (double)f == x)
        return f;
    const bool away = fabs((double)f) > fabs(x);
    const uint32_t u = float_bits(f);
    const uint32_t toward_zero = away ? u - 1 : u;
    return bits_float(toward_zero | 1U);
}

double dtype_get(const void *data, nsa_dtype t, int64_t i)
{
    switch (t) {
    case NSA_F64: return ((const double *)data)[i];
    case NSA_BF16: return (double)bf16_to_f32(((const uint16_t *)data)[i]);
    case NSA_F16: return (double)f16_to_f32(((const uint16_t *)data)[i]);
    case NSA_I32: return (double)((const int32_t *)data)[i];
    case NSA_F32: break;
    }
    return (double)((const float *)data)[i];
}

void dtype_set(void *data, nsa_dtype t, int64_t i, double x)
{
    switch (t) {
    case NSA_F64: ((double *)data)[i] = x; break;
    case NSA_BF16: ((uint16_t *)data)[i] = f32_to_bf16(round_to_odd(x)); break;
    case NSA_F16: ((uint16_t *)data)[i] = f32_to_f16(round_to_odd(x)); break;
    case NSA_I32: ((int32_t *)data)[i] = (int32_t)x; break;
    case NSA_F32: ((float *)data)[i] = (float)x; break;
    }
}

void dtype_load_row(float *dst, const void *src, nsa_dtype t, int64_t n)
{
    if (t == NSA_BF16) {
        const uint16_t *h = src;
        for (int64_t i = 0; i < n; i++)
            dst[i] = bf16_to_f32(h[i]);
    } else if (t == NSA_F16) {
        const uint16_t *h = src;
        for (int64_t i = 0; i < n; i++)
            dst[i] = f16_to_f32(h[i]);
    } else {
        memcpy(dst, src, (size_t)n * sizeof *dst);
    }
}

void dtype_store_row(void *dst, nsa_dtype t, const float *src, int64_t n)
{
    if (t == NSA_BF16) {
        uint16_t *h = dst;
        for (int64_t i = 0; i < n; i++)
            h[i] = f32_to_bf16(src[i]);
    } else if (t == NSA_F16) {
        uint16_t *h = dst;
        for (int64_t i = 0; i < n; i++)
            h[i] = f32_to_f16(src[i]);
    } else {
        memcpy(dst, src, (size_t)n * sizeof *src);
    }
}
