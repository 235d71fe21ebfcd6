#include "simd/vec_scalar.h"

#define SIMD_TABLE simd_scalar
extern const simd_kernels simd_scalar;

#include "simd/kernels.inc"
