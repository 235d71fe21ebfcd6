#if defined(__x86_64__)

#include "simd/vec.h"

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c"))),                   \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")
#endif

#define VEC_BF16 0
#include "simd/vec_avx512.h"

#define SIMD_TABLE simd_avx512
extern const simd_kernels simd_avx512;

#include "simd/kernels.inc"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else
typedef int simd_avx512_unused; /* a translation unit may not be empty */
#endif
