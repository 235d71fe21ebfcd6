#if defined(__x86_64__)

#include "simd/vec.h"

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#include "simd/vec_avx2.h"

#define SIMD_TABLE simd_avx2
extern const simd_kernels simd_avx2;

#include "simd/kernels.inc"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else
typedef int simd_avx2_unused; /* a translation unit may not be empty */
#endif
