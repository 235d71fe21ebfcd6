/* vec.h for any machine: four floats side by side, which compilers turn into whatever the baseline has (SSE2, NEON) or
 * into plain floats. No FMA: where the hardware has none, fmaf is a slow library call. */
#ifndef NSA_SIMD_VEC_SCALAR_H
#define NSA_SIMD_VEC_SCALAR_H

#include "simd/vec.h"

#define VEC_NAME "scalar"
#define VEC_NEEDS 0

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

#endif
