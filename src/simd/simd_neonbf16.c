#if defined(__aarch64__)

#include "simd/vec.h"

#include <arm_neon.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("bf16"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("+bf16")
#pragma GCC optimize("no-schedule-insns") /* as in simd_neon.c */
#endif

#define VEC_BF16 1
#include "simd/vec_neon.h"

#define SIMD_TABLE simd_neonbf16
extern const simd_kernels simd_neonbf16;

#include "simd/kernels.inc"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else
typedef int simd_neonbf16_unused; /* a translation unit may not be empty */
#endif
