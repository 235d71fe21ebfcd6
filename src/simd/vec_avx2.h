/* vec.h for AVX2 with FMA and F16C. */
#ifndef NSA_SIMD_VEC_AVX2_H
#define NSA_SIMD_VEC_AVX2_H

#include "simd/vec.h"

#include <immintrin.h>

#define VEC_NAME "avx2"
#define VEC_NEEDS CPU_AVX2
#define VEC_BF16 0

/* 12 accumulators, 2 vectors of B and a broadcast of A: 15 of the 16 registers. 8 or more independent accumulators hide
 * the 4 cycles of two FMA units. */
enum { VF_LANES = 8, MM_ROWS = 6, MM_VECS = 2 };

typedef __m256 vf;
typedef __m256 vm;

VEC_FN vf vf_load(const float *p)
{
    return _mm256_loadu_ps(p);
}

VEC_FN void vf_store(float *p, vf x)
{
    _mm256_storeu_ps(p, x);
}

VEC_FN vf vf_set1(float x)
{
    return _mm256_set1_ps(x);
}

VEC_FN vf vf_add(vf a, vf b)
{
    return _mm256_add_ps(a, b);
}

VEC_FN vf vf_sub(vf a, vf b)
{
    return _mm256_sub_ps(a, b);
}

VEC_FN vf vf_mul(vf a, vf b)
{
    return _mm256_mul_ps(a, b);
}

VEC_FN vf vf_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}

VEC_FN vf vf_max(vf a, vf b)
{
    return _mm256_max_ps(a, b);
}

VEC_FN vm vf_lt(vf a, vf b)
{
    return _mm256_cmp_ps(a, b, _CMP_LT_OQ);
}

VEC_FN vm vf_le(vf a, vf b)
{
    return _mm256_cmp_ps(a, b, _CMP_LE_OQ);
}

VEC_FN vf vf_select(vm m, vf a, vf b)
{
    return _mm256_blendv_ps(b, a, m);
}

VEC_FN int vf_count(vm m)
{
    return __builtin_popcount((unsigned)_mm256_movemask_ps(m));
}

VEC_FN float vf_hsum(vf x)
{
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

VEC_FN float vf_hmax(vf x)
{
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

VEC_FN vm vm_lanes(int64_t lo, int64_t hi)
{
    const int first = (int)(lo < 0 ? 0 : lo > VF_LANES ? VF_LANES : lo);
    const int end = (int)(hi < 0 ? 0 : hi > VF_LANES ? VF_LANES : hi);
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i from_first = _mm256_cmpgt_epi32(lane, _mm256_set1_epi32(first - 1));
    const __m256i before_end = _mm256_cmpgt_epi32(_mm256_set1_epi32(end), lane);
    return _mm256_castsi256_ps(_mm256_and_si256(from_first, before_end));
}

VEC_FN vf vf_add_exponent(vf x, vf n)
{
    const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(n), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), exponent));
}

VEC_FN void vf_transpose(vf r[VF_LANES])
{
    vf pairs[8], quads[8];
    VEC_UNROLL
    for (int i = 0; i < 4; i++) { /* of neighbouring rows: columns 0 1 | 4 5, then 2 3 | 6 7 */
        pairs[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        pairs[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    VEC_UNROLL
    for (int i = 0; i < 2; i++) { /* of rows 4i .. 4i+3: column 0 | 4, 1 | 5, 2 | 6, 3 | 7 */
        quads[4 * i] = _mm256_shuffle_ps(pairs[4 * i], pairs[4 * i + 2], 0x44);
        quads[4 * i + 1] = _mm256_shuffle_ps(pairs[4 * i], pairs[4 * i + 2], 0xee);
        quads[4 * i + 2] = _mm256_shuffle_ps(pairs[4 * i + 1], pairs[4 * i + 3], 0x44);
        quads[4 * i + 3] = _mm256_shuffle_ps(pairs[4 * i + 1], pairs[4 * i + 3], 0xee);
    }
    VEC_UNROLL
    for (int i = 0; i < 4; i++) {
        r[i] = _mm256_permute2f128_ps(quads[i], quads[4 + i], 0x20);
        r[4 + i] = _mm256_permute2f128_ps(quads[i], quads[4 + i], 0x31);
    }
}

VEC_FN vf vf_load_bf16(const uint16_t *p)
{
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

VEC_FN vf vf_load_f16(const uint16_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}

VEC_FN void vf_store_bf16(uint16_t *p, vf x)
{
    const __m256i u = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
    _mm_storeu_si128((__m128i *)(void *)p, _mm256_castsi256_si128(packed));
}

VEC_FN void vf_store_f16(uint16_t *p, vf x)
{
    _mm_storeu_si128((__m128i *)(void *)p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

#endif
