/* Calls on the GPU from problems in host memory; testlib.h says how. */
#ifndef NSA_TESTS_GPU_DEVICE_H
#define NSA_TESTS_GPU_DEVICE_H

#include "testlib/testlib.h"

/* The context for CUDA device 0, or NULL and nsa_last_error(). */
const nsa_ctx *gpu_context(void);

#endif
