#include "simd/simd.h"

#include <stddef.h>

extern const simd_kernels simd_scalar;
#if defined(__x86_64__)
extern const simd_kernels simd_avx2, simd_avx512, simd_avx512bf16, simd_amx;
#elif defined(__aarch64__)
extern const simd_kernels simd_neon, simd_neonbf16;
#endif

const simd_kernels *const simd_table[] = {
#if defined(__x86_64__)
    &simd_amx,    &simd_avx512bf16,
    &simd_avx512, &simd_avx2,
#elif defined(__aarch64__)
    &simd_neonbf16,   &simd_neon,
#endif
    &simd_scalar, NULL,
};

const simd_kernels *simd_choose(uint32_t features)
{
    int i = 0;
    while ((simd_table[i]->needs & ~features) != 0)
        i++;
    return simd_table[i];
}
