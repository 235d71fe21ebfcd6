/* vec.h for AVX-512 (F, BW, DQ, VL); with VEC_BF16 also its dot products of bf16, with VEC_TILES for cores with AMX. */
#ifndef NSA_SIMD_VEC_AVX512_H
#define NSA_SIMD_VEC_AVX512_H

#include "simd/vec.h"

#include <immintrin.h>

#if defined(VEC_TILES)
#define VEC_NAME "amx"
#define VEC_NEEDS (CPU_AVX2 | CPU_AVX512 | CPU_AMX)
#elif VEC_BF16
#define VEC_NAME "avx512bf16"
#define VEC_NEEDS (CPU_AVX2 | CPU_AVX512 | CPU_AVX512BF16)
#else
#define VEC_NAME "avx512"
#define VEC_NEEDS (CPU_AVX2 | CPU_AVX512)
#endif

/* 24 accumulators, 4 vectors of B and a broadcast of A: 29 of 32 registers, 10 loads for 24 products. 12 or more
 * independent accumulators hide the 6 cycles of two units for bf16. */
enum { VF_LANES = 16, MM_ROWS = 6, MM_VECS = 4 };

typedef __m512 vf;
typedef __mmask16 vm;

VEC_FN vf vf_load(const float *p)
{
    return _mm512_loadu_ps(p);
}

VEC_FN void vf_store(float *p, vf x)
{
    _mm512_storeu_ps(p, x);
}

VEC_FN vf vf_set1(float x)
{
    return _mm512_set1_ps(x);
}

VEC_FN vf vf_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}

VEC_FN vf vf_sub(vf a, vf b)
{
    return _mm512_sub_ps(a, b);
}

VEC_FN vf vf_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}

VEC_FN vf vf_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}

VEC_FN vf vf_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}

VEC_FN vm vf_lt(vf a, vf b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ);
}

VEC_FN vm vf_le(vf a, vf b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ);
}

VEC_FN vf vf_select(vm m, vf a, vf b)
{
    return _mm512_mask_blend_ps(m, b, a);
}

VEC_FN int vf_count(vm m)
{
    return __builtin_popcount((unsigned)m);
}

VEC_FN float vf_hsum(vf x)
{
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

VEC_FN float vf_hmax(vf x)
{
    const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

VEC_FN vm vm_lanes(int64_t lo, int64_t hi)
{
    const int first = (int)(lo < 0 ? 0 : lo > VF_LANES ? VF_LANES : lo);
    const int end = (int)(hi < 0 ? 0 : hi > VF_LANES ? VF_LANES : hi);
    return (vm)(((1U << end) - 1U) & ~((1U << first) - 1U));
}

VEC_FN vf vf_add_exponent(vf x, vf n)
{
    const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(n), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), exponent));
}

VEC_FN void vf_transpose(vf r[VF_LANES])
{
    __m512 pairs[16];
    __m512d quads[16];
    VEC_UNROLL
    for (int i = 0; i < 8; i++) { /* of neighbouring rows, within each 128 bits: columns 0 1, then 2 3 */
        pairs[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    VEC_UNROLL
    for (int i = 0; i < 4; i++) { /* of rows 4i .. 4i+3: column c of each 128 bits in quads[4i + c] */
        const __m512d a = _mm512_castps_pd(pairs[4 * i]), b = _mm512_castps_pd(pairs[4 * i + 1]);
        const __m512d c = _mm512_castps_pd(pairs[4 * i + 2]), d = _mm512_castps_pd(pairs[4 * i + 3]);
        quads[4 * i] = _mm512_unpacklo_pd(a, c);
        quads[4 * i + 1] = _mm512_unpackhi_pd(a, c);
        quads[4 * i + 2] = _mm512_unpacklo_pd(b, d);
        quads[4 * i + 3] = _mm512_unpackhi_pd(b, d);
    }
    VEC_UNROLL
    for (int c = 0; c < 4; c++) { /* a 4 x 4 transposition of 128-bit parts */
        const __m512 x0 = _mm512_castpd_ps(quads[c]), x1 = _mm512_castpd_ps(quads[4 + c]);
        const __m512 x2 = _mm512_castpd_ps(quads[8 + c]), x3 = _mm512_castpd_ps(quads[12 + c]);
        const __m512 even01 = _mm512_shuffle_f32x4(x0, x1, 0x88), odd01 = _mm512_shuffle_f32x4(x0, x1, 0xdd);
        const __m512 even23 = _mm512_shuffle_f32x4(x2, x3, 0x88), odd23 = _mm512_shuffle_f32x4(x2, x3, 0xdd);
        r[c] = _mm512_shuffle_f32x4(even01, even23, 0x88);
        r[4 + c] = _mm512_shuffle_f32x4(odd01, odd23, 0x88);
        r[8 + c] = _mm512_shuffle_f32x4(even01, even23, 0xdd);
        r[12 + c] = _mm512_shuffle_f32x4(odd01, odd23, 0xdd);
    }
}

VEC_FN vf vf_load_bf16(const uint16_t *p)
{
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

VEC_FN vf vf_load_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}

/* Not the instruction: that one flushes denormals. */
VEC_FN void vf_store_bf16(uint16_t *p, vf x)
{
    const __m512i u = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(u, _mm512_set1_epi32(0x400000));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m512i high = _mm512_srli_epi32(_mm512_mask_blend_epi32(is_nan, rounded, quiet), 16);
    _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtepi32_epi16(high));
}

VEC_FN void vf_store_f16(uint16_t *p, vf x)
{
    _mm256_storeu_si256((__m256i *)(void *)p, _mm512_maskz_cvtps_ph(0xffff, x, _MM_FROUND_TO_NEAREST_INT));
}

#if VEC_BF16
VEC_FN vf vf_dot_bf16(vf a, vf b, vf c)
{
    return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b);
}

VEC_FN vf vf_bf16_row(vf x, vf y)
{
    return (vf)_mm512_cvtne2ps_pbh(y, x);
}

VEC_FN vf vf_bf16_pairs(vf x, vf y)
{
    const __m512i row = (__m512i)_mm512_cvtne2ps_pbh(y, x);
    const __m512i order = _mm512_add_epi32(
        _mm512_set1_epi32(0x00100000),
        _mm512_mullo_epi32(_mm512_set1_epi32(0x00010001),
                           _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15))); /* i, 16 + i */
    return _mm512_castsi512_ps(_mm512_permutexvar_epi16(order, row));
}

/* Lane i of the result is (x[first + i], y[first + i]); y's elements have the numbers 32 and up. */
VEC_FN vf vf_pair_from(vf x, vf y, int first)
{
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i low = _mm512_add_epi32(lane, _mm512_set1_epi32(first));
    const __m512i order = _mm512_or_si512(low, _mm512_slli_epi32(_mm512_add_epi32(low, _mm512_set1_epi32(32)), 16));
    return _mm512_castsi512_ps(_mm512_permutex2var_epi16(_mm512_castps_si512(x), order, _mm512_castps_si512(y)));
}

VEC_FN vf vf_pair_low(vf x, vf y)
{
    return vf_pair_from(x, y, 0);
}

VEC_FN vf vf_pair_high(vf x, vf y)
{
    return vf_pair_from(x, y, 16);
}
#endif

#endif
