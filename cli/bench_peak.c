/*
 * The peak is what independent multiply-adds in registers reach in the instruction set that the library runs: a ceiling
 * that no kernel of that set can pass. It is measured beside the kernels, so that a slow or a shared machine lowers
 * both.
 */
#include "cli/bench.h"
#include "cli/progress.h"

#include <math.h>
#include <omp.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

enum { ROUNDS = 1 << 21, TRIES = 16 };

/* Vectors: enough chains to hide the latency, few enough for the registers. */
enum { CHAINS = 12, CHAINS_OF_32 = 16 /* where there are 32 registers */ };

static float sum(const float *x, int n)
{
    float s = 0;
    for (int i = 0; i < n; i++)
        s += x[i];
    return s;
}

/* The compilers turn the inner loop into vectors that stay in registers. */
#define PEAK_LOOP(lanes, multiply_add)                                                                                 \
    float x[CHAINS * (lanes)];                                                                                         \
    for (int i = 0; i < CHAINS * (lanes); i++)                                                                         \
        x[i] = start + (float)i;                                                                                       \
    for (int r = 0; r < ROUNDS; r++)                                                                                   \
        for (int i = 0; i < CHAINS * (lanes); i++)                                                                     \
            x[i] = multiply_add;                                                                                       \
    return sum(x, CHAINS * (lanes))

static float loop_scalar(float start)
{
    PEAK_LOOP(4, x[i] * 0.5F + 1.0F);
}

/* By intrinsics; `step` takes x[i] on. */
#define PEAK_LOOP_OF_32(vector, set1, add_lanes, step)                                                                 \
    vector x[CHAINS_OF_32];                                                                                            \
    float total = 0;                                                                                                   \
    _Pragma("GCC unroll 16") for (int i = 0; i < CHAINS_OF_32; i++) x[i] = set1(start + (float)i);                     \
    for (int r = 0; r < ROUNDS; r++)                                                                                   \
        _Pragma("GCC unroll 16") for (int i = 0; i < CHAINS_OF_32; i++) step;                                          \
    _Pragma("GCC unroll 16") for (int i = 0; i < CHAINS_OF_32; i++) total += add_lanes(x[i]);                          \
    return total

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) static float loop_avx2(float start)
{
    PEAK_LOOP(8, fmaf(x[i], 0.5F, 1.0F));
}

#define PEAK_LOOP_512(multiply_add) PEAK_LOOP_OF_32(__m512, _mm512_set1_ps, _mm512_reduce_add_ps, x[i] = multiply_add)

__attribute__((target("avx512f"))) static float loop_avx512(float start)
{
    const __m512 half = _mm512_set1_ps(0.5F), one = _mm512_set1_ps(1.0F);
    PEAK_LOOP_512(_mm512_fmadd_ps(x[i], half, one));
}

__attribute__((target("avx512f,avx512bf16"))) static float loop_bf16(float start)
{
    const __m512bh a = (__m512bh)_mm512_set1_epi16(0x3f80), b = (__m512bh)_mm512_set1_epi16(0x3c00); /* 1, 2^-7 */
    PEAK_LOOP_512(_mm512_dpbf16_ps(x[i], a, b));
}

enum { TILES = 4, TILE_FLOP = 2 * 16 * 16 * 32 };

/* Of four tiles, sums of products with 0. */
__attribute__((target("avx512f,amx-tile,amx-bf16"))) static float loop_amx(float start)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } shape = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        shape.row_bytes[i] = 64;
        shape.rows[i] = 16;
    }
    _Alignas(64) float x[16 * 16];
    for (int i = 0; i < 16 * 16; i++)
        x[i] = start;
    _tile_loadconfig(&shape);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(4, x, 64);
    _tile_zero(5);
    for (int r = 0; r < ROUNDS; r++) {
        _tile_dpbf16ps(0, 4, 5);
        _tile_dpbf16ps(1, 4, 5);
        _tile_dpbf16ps(2, 4, 5);
        _tile_dpbf16ps(3, 4, 5);
    }
    _tile_stored(0, x, 64);
    _tile_release();
    return x[0];
}
#elif defined(__aarch64__)
static float loop_neon(float start)
{
    const float32x4_t a = vdupq_n_f32(1.0F), b = vdupq_n_f32(0x1p-7F);
    PEAK_LOOP_OF_32(float32x4_t, vdupq_n_f32, vaddvq_f32, x[i] = vfmaq_f32(x[i], a, b));
}

#if defined(__clang__)
#define TARGET_BF16 __attribute__((target("bf16")))
#else
#define TARGET_BF16 __attribute__((target("+bf16")))
#endif

TARGET_BF16 static float loop_neonbf16(float start)
{
    const uint16x8_t a = vdupq_n_u16(0x3f80), b = vdupq_n_u16(0x3c00); /* 1, 2^-7 */
    PEAK_LOOP_OF_32(float32x4_t, vdupq_n_f32, vaddvq_f32,
                    __asm__("bfdot %0.4s, %1.8h, %2.8h"
                            : "+w"(x[i])
                            : "w"(a), "w"(b)));
}
#endif

typedef struct peak_loop {
    float (*run)(float start);
    double flop; /* of a round */
} peak_loop;

static peak_loop choose(const char *isa, nsa_dtype dtype)
{
#if defined(__x86_64__)
    if (strcmp(isa, "avx512bf16") == 0 && dtype == NSA_BF16)
        return (peak_loop){loop_bf16, 2 * 2 * 16 * CHAINS_OF_32};
    if (strcmp(isa, "amx") == 0 && dtype == NSA_BF16)
        return (peak_loop){loop_amx, (double)TILES * TILE_FLOP};
    if (strncmp(isa, "avx512", 6) == 0 || strcmp(isa, "amx") == 0)
        return (peak_loop){loop_avx512, 2 * 16 * CHAINS_OF_32};
    if (strcmp(isa, "avx2") == 0)
        return (peak_loop){loop_avx2, 2 * 8 * CHAINS};
#elif defined(__aarch64__)
    if (strcmp(isa, "neonbf16") == 0 && dtype == NSA_BF16)
        return (peak_loop){loop_neonbf16, 2 * 2 * 4 * CHAINS_OF_32};
    if (strncmp(isa, "neon", 4) == 0)
        return (peak_loop){loop_neon, 2 * 4 * CHAINS_OF_32};
#else
    (void)isa;
    (void)dtype;
#endif
    return (peak_loop){loop_scalar, 2 * 4 * CHAINS};
}

double bench_peak_gflops(const char *isa, nsa_dtype dtype, int32_t n_threads)
{
    const peak_loop loop = choose(isa, dtype);
    double best = 0;
    volatile float sink = 0; /* the loops must run */
    for (int i = 0; i < TRIES; i++) {
        float total = 0;
        double gflops = 0; /* all threads at once, each by its own clock */
#pragma omp parallel num_threads(n_threads) reduction(+ : total, gflops)
        {
            const double start = seconds_now();
            total += loop.run((float)i);
            gflops += 1e-9 * loop.flop * ROUNDS / (seconds_now() - start);
        }
        sink = total;
        best = fmax(best, gflops);
    }
    (void)sink;
    return best;
}
