/* vec.h for NEON, AArch64's vectors of 128 bits; with VEC_BF16 also its dot products of bf16. */
#ifndef NSA_SIMD_VEC_NEON_H
#define NSA_SIMD_VEC_NEON_H

#include "simd/vec.h"

#include <arm_neon.h>

#if VEC_BF16
#define VEC_NAME "neonbf16"
#define VEC_NEEDS (CPU_NEON | CPU_NEONBF16)
#else
#define VEC_NAME "neon"
#define VEC_NEEDS CPU_NEON
#endif

/* 24 accumulators, 4 vectors of B and a factor of A: 29 of 32 registers, 10 loads for 24 products. 16 independent
 * accumulators hide the 4 cycles of four FMA units. */
enum { VF_LANES = 4, MM_ROWS = 6, MM_VECS = 4 };

typedef float32x4_t vf;
typedef uint32x4_t vm;

VEC_FN vf vf_load(const float *p)
{
    return vld1q_f32(p);
}

VEC_FN void vf_store(float *p, vf x)
{
    vst1q_f32(p, x);
}

VEC_FN vf vf_set1(float x)
{
    return vdupq_n_f32(x);
}

VEC_FN vf vf_add(vf a, vf b)
{
    return vaddq_f32(a, b);
}

VEC_FN vf vf_sub(vf a, vf b)
{
    return vsubq_f32(a, b);
}

VEC_FN vf vf_mul(vf a, vf b)
{
    return vmulq_f32(a, b);
}

VEC_FN vf vf_fma(vf a, vf b, vf c)
{
    return vfmaq_f32(c, a, b);
}

VEC_FN vm vf_lt(vf a, vf b)
{
    return vcltq_f32(a, b);
}

VEC_FN vm vf_le(vf a, vf b)
{
    return vcleq_f32(a, b);
}

VEC_FN vf vf_select(vm m, vf a, vf b)
{
    return vbslq_f32(m, a, b);
}

/* Neither of the instructions: FMAX returns any NaN, FMAXNM a signalling one. */
VEC_FN vf vf_max(vf a, vf b)
{
    return vbslq_f32(vcgtq_f32(a, b), a, b);
}

VEC_FN int vf_count(vm m)
{
    return (int)vaddvq_u32(vshrq_n_u32(m, 31));
}

VEC_FN float vf_hsum(vf x)
{
    return vaddvq_f32(x);
}

VEC_FN float vf_hmax(vf x)
{
    return vmaxvq_f32(x);
}

VEC_FN vm vm_lanes(int64_t lo, int64_t hi)
{
    static const int32_t lanes[VF_LANES] = {0, 1, 2, 3};
    const int32_t first = (int32_t)(lo < 0 ? 0 : lo > VF_LANES ? VF_LANES : lo);
    const int32_t end = (int32_t)(hi < 0 ? 0 : hi > VF_LANES ? VF_LANES : hi);
    const int32x4_t lane = vld1q_s32(lanes);
    return vandq_u32(vcgeq_s32(lane, vdupq_n_s32(first)), vcltq_s32(lane, vdupq_n_s32(end)));
}

VEC_FN vf vf_add_exponent(vf x, vf n)
{
    const uint32x4_t exponent = vshlq_n_u32(vreinterpretq_u32_f32(n), 23);
    return vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_f32(x), exponent));
}

/* The 64-bit halves a.low, b.low; a.high, b.high. */
VEC_FN vf vf_low_halves(vf a, vf b)
{
    return vreinterpretq_f32_f64(vtrn1q_f64(vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b)));
}

VEC_FN vf vf_high_halves(vf a, vf b)
{
    return vreinterpretq_f32_f64(vtrn2q_f64(vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b)));
}

VEC_FN void vf_transpose(vf r[VF_LANES])
{
    const vf even01 = vtrn1q_f32(r[0], r[1]), odd01 = vtrn2q_f32(r[0], r[1]); /* columns 0 2, then 1 3 */
    const vf even23 = vtrn1q_f32(r[2], r[3]), odd23 = vtrn2q_f32(r[2], r[3]);
    r[0] = vf_low_halves(even01, even23);
    r[1] = vf_low_halves(odd01, odd23);
    r[2] = vf_high_halves(even01, even23);
    r[3] = vf_high_halves(odd01, odd23);
}

VEC_FN vf vf_load_bf16(const uint16_t *p)
{
    return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(vld1_u16(p)), 16));
}

VEC_FN vf vf_load_f16(const uint16_t *p)
{
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}

#if VEC_BF16
/* As assembly, since clang 14 has these intrinsics only where a whole file is compiled for them. */
VEC_FN uint16x4_t vf_to_bf16(vf x)
{
    uint16x4_t h;
    __asm__("bfcvtn %0.4h, %1.4s" : "=w"(h) : "w"(x));
    return h;
}
#else
VEC_FN uint16x4_t vf_to_bf16(vf x)
{
    const uint32x4_t u = vreinterpretq_u32_f32(x);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(u, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t quiet = vorrq_u32(u, vdupq_n_u32(0x400000));
    return vshrn_n_u32(vbslq_u32(vceqq_f32(x, x), rounded, quiet), 16);
}
#endif

VEC_FN void vf_store_bf16(uint16_t *p, vf x)
{
    vst1_u16(p, vf_to_bf16(x));
}

VEC_FN void vf_store_f16(uint16_t *p, vf x)
{
    vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(x)));
}

#if VEC_BF16
/* By lane 0 of a: what was loaded as one pair need not be spread. */
VEC_FN vf vf_dot_bf16(vf a, vf b, vf c)
{
    __asm__("bfdot %0.4s, %1.8h, %2.2h[0]" : "+w"(c) : "w"(b), "w"(vgetq_lane_f32(a, 0)));
    return c;
}

VEC_FN vf vf_bf16_row(vf x, vf y)
{
    return vreinterpretq_f32_u16(vcombine_u16(vf_to_bf16(x), vf_to_bf16(y)));
}

VEC_FN vf vf_bf16_pairs(vf x, vf y)
{
    const uint16x8_t row = vcombine_u16(vf_to_bf16(x), vf_to_bf16(y));
    return vreinterpretq_f32_u16(vzip1q_u16(row, vextq_u16(row, row, 4)));
}

VEC_FN vf vf_pair_low(vf x, vf y)
{
    return vreinterpretq_f32_u16(vzip1q_u16(vreinterpretq_u16_f32(x), vreinterpretq_u16_f32(y)));
}

VEC_FN vf vf_pair_high(vf x, vf y)
{
    return vreinterpretq_f32_u16(vzip2q_u16(vreinterpretq_u16_f32(x), vreinterpretq_u16_f32(y)));
}
#endif

#endif
