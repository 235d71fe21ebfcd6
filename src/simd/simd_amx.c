#if defined(__x86_64__)

#include "simd/vec.h"

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(                                                                                          \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,f16c,amx-tile,amx-bf16"))),               \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,f16c,amx-tile,amx-bf16")
#endif

#define VEC_BF16 1
#define VEC_TILES
#include "simd/vec_avx512.h"
#include "simd/tiles_amx.h"

#define SIMD_TABLE simd_amx
extern const simd_kernels simd_amx;

#include "simd/kernels.inc"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else
typedef int simd_amx_unused; /* a translation unit may not be empty */
#endif
