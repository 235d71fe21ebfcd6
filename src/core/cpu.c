#define _DEFAULT_SOURCE /* syscall */
#include "core/cpu.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#if defined(__x86_64__)
/* Whose cores take four times as long for a dot product of bf16 as for a multiply-add of floats (measured on Emerald
 * Rapids), so that floats are twice as fast there; on AMD's bf16 are. */
static bool is_intel(void)
{
    uint32_t a, b, c, d;
    return __get_cpuid(0, &a, &b, &c, &d) && b == signature_INTEL_ebx;
}
#endif

/* Linux gives the registers of tiles to a process that asks for them: not if a thread has a stack for signals that is
 * too small to hold them. Elsewhere XCR0 says it all. */
static bool may_use_tiles(void)
{
#if defined(__x86_64__) && defined(__linux__)
    enum { REQUEST = 0x1023 /* ARCH_REQ_XCOMP_PERM */, TILES = 18 };
    return syscall(SYS_arch_prctl, REQUEST, TILES) == 0;
#else
    return true;
#endif
}

static uint32_t detect(void)
{
    uint32_t features = 0;
#if defined(__x86_64__)
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE))
        return 0;
    /* The OS must save the registers: XCR0 bits 1, 2 (xmm, ymm), and 5, 6, 7 (masks, zmm), or 17, 18 (tiles). Written
     * out since the intrinsic needs -mxsave. */
    uint32_t xcr0, xcr0_high;
    __asm__("xgetbv" : "=a"(xcr0), "=d"(xcr0_high) : "c"(0));
    const bool ymm = (xcr0 & 0x06U) == 0x06U, zmm = (xcr0 & 0xe6U) == 0xe6U;
    const bool fma_f16c = (c & bit_FMA) && (c & bit_F16C) && (c & bit_AVX);
    if (!ymm || !fma_f16c || !__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return 0;
    const uint32_t avx512 = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
    if (b & bit_AVX2)
        features |= CPU_AVX2;
    if (zmm && (b & avx512) == avx512)
        features |= CPU_AVX512;
    const bool tiles = (xcr0 & 0x60000U) == 0x60000U && (d >> 24 & d >> 22 & 1) != 0;
    if (zmm && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & bit_AVX512BF16))
        features |= (is_intel() ? 0 : CPU_AVX512BF16) | (tiles ? CPU_AMX : 0);
#elif defined(__aarch64__)
    features |= CPU_NEON;
#if defined(__linux__)
    if (getauxval(AT_HWCAP2) & HWCAP2_BF16)
        features |= CPU_NEONBF16;
#endif
#endif
    return features;
}

nsa_status cpu_features(uint32_t *features)
{
    static const struct {
        const char *name;
        uint32_t flag;
    } names[] = {{"avx2", CPU_AVX2}, {"avx512", CPU_AVX512}, {"avx512bf16", CPU_AVX512BF16},
                 {"amx", CPU_AMX},   {"neon", CPU_NEON},     {"neonbf16", CPU_NEONBF16}};

    *features = detect();
    const char *list = getenv("NSA_DISABLE_CPU");
    while (list != NULL && *list != '\0') {
        const size_t length = strcspn(list, ",");
        size_t i = 0;
        while (i < sizeof names / sizeof *names &&
               (strlen(names[i].name) != length || strncmp(names[i].name, list, length) != 0))
            i++;
        NSA_REQUIRE(i < sizeof names / sizeof *names,
                    "NSA_DISABLE_CPU names '%.*s'; known are: avx2, avx512, avx512bf16, amx, neon, neonbf16",
                    (int)length, list);
        *features &= ~names[i].flag;
        list += length + (list[length] == ',');
    }
    if ((*features & CPU_AMX) && !may_use_tiles())
        *features &= ~(uint32_t)CPU_AMX;
    return NSA_OK;
}
