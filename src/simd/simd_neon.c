#if defined(__aarch64__)

#include "simd/vec.h"

#include <arm_neon.h>

/* gcc's first scheduling moves all loads of a step ahead of its sums, and then has too few registers. */
#if !defined(__clang__)
#pragma GCC push_options
#pragma GCC optimize("no-schedule-insns")
#endif

#define VEC_BF16 0
#include "simd/vec_neon.h"

#define SIMD_TABLE simd_neon
extern const simd_kernels simd_neon;

#include "simd/kernels.inc"

#if !defined(__clang__)
#pragma GCC pop_options
#endif

#else
typedef int simd_neon_unused; /* a translation unit may not be empty */
#endif
