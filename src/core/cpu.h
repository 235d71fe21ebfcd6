/* What instruction sets the CPU has and the OS lets us use. */
#ifndef NSA_CORE_CPU_H
#define NSA_CORE_CPU_H

#include "core/status.h"

enum {
    CPU_AVX2 = 1 << 0,       /* AVX2, FMA and F16C, which no AVX2 machine lacks */
    CPU_AVX512 = 1 << 1,     /* F, BW, DQ, VL */
    CPU_AVX512BF16 = 1 << 2, /* dot products of bf16 */
    CPU_AMX = 1 << 3,        /* its tiles of bf16, and conversions to bf16 */
    CPU_NEON = 1 << 4,       /* every AArch64 has it */
    CPU_NEONBF16 = 1 << 5    /* dot products of bf16 */
};

/* The features less those named in NSA_DISABLE_CPU ("avx2,..."); an unknown name there is an error. */
nsa_status cpu_features(uint32_t *features);

#endif
