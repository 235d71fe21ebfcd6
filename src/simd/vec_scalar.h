/* vec.h for any machine: four floats side by side, which compilers turn into whatever the baseline has (SSE2, NEON) or
 * into plain floats. No FMA: where the hardware has none, fmaf is a slow library call. */
#ifndef NSA_SIMD_VEC_SCALAR_H
#define NSA_SIMD_VEC_SCALAR_H

#include "simd/vec.h"

#define VEC_NAME "scalar"
#define VEC_NEEDS 0
#define VEC_BF16 1 /* no faster than floats here, but so every machine tests the kernels of pairs */

enum { VF_LANES = 4, MM_ROWS = 4, MM_VECS = 2 };

typedef float vf __attribute__((vector_size(16)));
typedef int32_t vm __attribute__((vector_size(16)));
typedef uint32_t vu __attribute__((vector_size(16)));

VEC_FN vf vf_load(const float *p)
{
    vf x;
    memcpy(&x, p, sizeof x);
    return x;
}

VEC_FN void vf_store(float *p, vf x)
{
    memcpy(p, &x, sizeof x);
}

VEC_FN vf vf_set1(float x)
{
    return (vf){x, x, x, x};
}

VEC_FN vf vf_add(vf a, vf b)
{
    return a + b;
}

VEC_FN vf vf_sub(vf a, vf b)
{
    return a - b;
}

VEC_FN vf vf_mul(vf a, vf b)
{
    return a * b;
}

VEC_FN vf vf_fma(vf a, vf b, vf c)
{
    return a * b + c;
}

VEC_FN vm vf_lt(vf a, vf b)
{
    return a < b;
}

VEC_FN vm vf_le(vf a, vf b)
{
    return a <= b;
}

VEC_FN vf vf_select(vm m, vf a, vf b)
{
    return (vf)((m & (vm)a) | (~m & (vm)b));
}

VEC_FN vf vf_max(vf a, vf b)
{
    return vf_select(b < a, a, b);
}

VEC_FN int vf_count(vm m)
{
    return -(m[0] + m[1] + m[2] + m[3]);
}

VEC_FN float vf_hsum(vf x)
{
    return (x[0] + x[2]) + (x[1] + x[3]);
}

VEC_FN float vf_hmax(vf x)
{
    const float a = x[0] > x[1] ? x[0] : x[1];
    const float b = x[2] > x[3] ? x[2] : x[3];
    return a > b ? a : b;
}

VEC_FN vm vm_lanes(int64_t lo, int64_t hi)
{
    vm m;
    for (int i = 0; i < VF_LANES; i++)
        m[i] = lo <= i && i < hi ? -1 : 0;
    return m;
}

VEC_FN vf vf_add_exponent(vf x, vf n)
{
    return (vf)((vu)x + ((vu)n << 23));
}

VEC_FN void vf_transpose(vf r[VF_LANES])
{
    const vf a = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5);
    const vf b = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5);
    const vf c = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
    const vf d = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
    r[0] = __builtin_shufflevector(a, b, 0, 1, 4, 5);
    r[1] = __builtin_shufflevector(a, b, 2, 3, 6, 7);
    r[2] = __builtin_shufflevector(c, d, 0, 1, 4, 5);
    r[3] = __builtin_shufflevector(c, d, 2, 3, 6, 7);
}

VEC_FN vf vf_load_bf16(const uint16_t *p)
{
    return (vf){bf16_to_f32(p[0]), bf16_to_f32(p[1]), bf16_to_f32(p[2]), bf16_to_f32(p[3])};
}

VEC_FN vf vf_load_f16(const uint16_t *p)
{
    return (vf){f16_to_f32(p[0]), f16_to_f32(p[1]), f16_to_f32(p[2]), f16_to_f32(p[3])};
}

VEC_FN void vf_store_bf16(uint16_t *p, vf x)
{
    for (int i = 0; i < VF_LANES; i++)
        p[i] = f32_to_bf16(x[i]);
}

VEC_FN void vf_store_f16(uint16_t *p, vf x)
{
    for (int i = 0; i < VF_LANES; i++)
        p[i] = f32_to_f16(x[i]);
}

VEC_FN vf vf_dot_bf16(vf a, vf b, vf c)
{
    const vu high = {0xffff0000U, 0xffff0000U, 0xffff0000U, 0xffff0000U};
    const vf low = (vf)((vu)a << 16) * (vf)((vu)b << 16) + c; /* a product of two bf16 is exact */
    return (vf)((vu)a & high) * (vf)((vu)b & high) + low;
}

VEC_FN vf vf_bf16_pairs(vf x, vf y)
{
    vu pairs;
    for (int i = 0; i < VF_LANES; i++)
        pairs[i] = f32_to_bf16(x[i]) | (uint32_t)f32_to_bf16(y[i]) << 16;
    return (vf)pairs;
}

VEC_FN vf vf_bf16_row(vf x, vf y)
{
    return vf_bf16_pairs((vf){x[0], x[2], y[0], y[2]}, (vf){x[1], x[3], y[1], y[3]});
}

VEC_FN vf vf_pair_low(vf x, vf y)
{
    const vu a = __builtin_shufflevector((vu)x, (vu)x, 0, 0, 1, 1),
             b = __builtin_shufflevector((vu)y, (vu)y, 0, 0, 1, 1);
    const vu shift = {0, 16, 0, 16}, low = {0xffffU, 0xffffU, 0xffffU, 0xffffU};
    return (vf)((a >> shift & low) | (b >> shift & low) << 16);
}

VEC_FN vf vf_pair_high(vf x, vf y)
{
    return vf_pair_low((vf){x[2], x[3], x[2], x[3]}, (vf){y[2], y[3], y[2], y[3]});
}

#endif
