/*
 * A vector of float32, as kernels.inc sees it. Each vec_<isa>.h defines all of this and is the only place for the
 * intrinsics of its set; simd_<isa>.c includes one of them and kernels.inc inside a region compiled for that set.
 *
 *     VEC_NAME, VEC_NEEDS       of the table's row: "avx2", CPU_AVX2
 *     VF_LANES                  floats in a vf; divides SIMD_PAD
 *     MM_ROWS, MM_VECS          the register block of a product: MM_ROWS x MM_VECS accumulators; MM_ROWS 2 .. 6,
 *                               MM_VECS 2 or 4
 *     VEC_BF16                  1 if the set multiplies pairs of bf16, else 0
 *     VEC_TILES                 defined if it does so by tiles: product_tiles() instead of vf_dot_bf16()
 *
 *     vf, vm                    lanes of float32; a mask for each lane
 *     vf_load(p), vf_store(p,x) any alignment
 *     vf_set1(x)
 *     vf_add, vf_sub, vf_mul
 *     vf_fma(a,b,c)             a*b + c with one rounding where the set has FMA, else with two
 *     vf_max(a,b)               a > b ? a : b, so that a NaN in a is passed over
 *     vf_hsum(x), vf_hmax(x)    over the lanes, in a fixed order
 *     vf_lt(a,b), vf_le(a,b)    masks; false for NaN
 *     vf_select(m,a,b)          m ? a : b
 *     vm_lanes(lo,hi)           lanes lo .. hi-1; lo and hi may lie outside 0 .. VF_LANES
 *     vf_add_exponent(x,n)      x times 2^i, i the integer whose low 9 bits are those of n's representation;
 *                               garbage where the exponent leaves its range
 *     vf_transpose(r)           r[i][j] <-> r[j][i] of VF_LANES vectors
 *     vf_count(m)               lanes that are set
 *     vf_load_bf16(p), vf_load_f16(p), vf_store_bf16(p,x), vf_store_f16(p,x)
 *                               rounding as core/dtype.h does
 *
 * and if VEC_BF16, with pairs of bf16 in the lanes of a vf (they may flush denormals to 0):
 *     vf_dot_bf16(a,b,c)        a.low*b.low + a.high*b.high + c, in an order and rounding of the set's own; a has one
 *                               pair in all lanes
 *     vf_bf16_row(x,y)          2*VF_LANES bf16 side by side: those of x, then those of y
 *     vf_bf16_pairs(x,y)        lane i is the pair (x[i], y[i])
 *     vf_pair_low(x,y), vf_pair_high(x,y)
 *                               of two rows of 2*VF_LANES bf16: lane i is the pair (x[i], y[i]); of the upper half
 */
#ifndef NSA_SIMD_VEC_H
#define NSA_SIMD_VEC_H

#include "core/cpu.h"
#include "core/dtype.h"
#include "simd/simd.h"

#include <math.h>
#include <stdbool.h>

#define VEC_FN static inline __attribute__((always_inline))

/* Before a loop of a constant count: without it gcc leaves an array of accumulators in memory. */
#if defined(__clang__)
#define VEC_UNROLL _Pragma("clang loop unroll(full)")
#else
#define VEC_UNROLL _Pragma("GCC unroll 16")
#endif

#endif
