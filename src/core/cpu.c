#include "core/cpu.h"

#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

static uint32_t detect(void)
{
    uint32_t features = 0;
#if defined(__x86_64__)
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE))
        return 0;
    /* The OS must save the ymm registers: XCR0 bits 1 (SSE) and 2 (AVX). Written out since the intrinsic needs -mxsave.
     */
    uint32_t xcr0, xcr0_high;
    __asm__("xgetbv" : "=a"(xcr0), "=d"(xcr0_high) : "c"(0));
    const int ymm = (xcr0 & 0x6U) == 0x6U;
    const int fma_f16c = (c & bit_FMA) && (c & bit_F16C) && (c & bit_AVX);
    if (ymm && fma_f16c && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_AVX2))
        features |= CPU_AVX2;
#endif
    return features;
}

nsa_status cpu_features(uint32_t *features)
{
    static const struct {
        const char *name;
        uint32_t flag;
    } names[] = {{"avx2", CPU_AVX2}};

    *features = detect();
    const char *list = getenv("NSA_DISABLE_CPU");
    while (list != NULL && *list != '\0') {
        const size_t length = strcspn(list, ",");
        size_t i = 0;
        while (i < sizeof names / sizeof *names &&
               (strlen(names[i].name) != length || strncmp(names[i].name, list, length) != 0))
            i++;
        NSA_REQUIRE(i < sizeof names / sizeof *names, "NSA_DISABLE_CPU names '%.*s'; known is: avx2", (int)length,
                    list);
        *features &= ~names[i].flag;
        list += length + (list[length] == ',');
    }
    return NSA_OK;
}
