/* What `nsa bench --device cuda` needs of the CUDA runtime, and its kernels. */
#ifndef CLI_BENCH_CUDA_H
#define CLI_BENCH_CUDA_H

#include "cli/bench_report.h"

/* The GPU that CUDA has as device 0: what it is, its ceilings, as they are measured now. */
bool bench_cuda_open(bench_gpu *gpu, bench_device *device);

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Kernels; both return a cudaError_t -------------------------------------------------------------------------- */

int bench_launch_fill(void *p, nsa_dtype dtype, int64_t count, const bench_random *random, nsa_stream stream);

/* *flop: its work. 0 and nothing is launched: there is no such kernel for this GPU. */
int bench_launch_peak(int major, int minor, int n_multiprocessors, void *sink, double *flop, nsa_stream stream);

#ifdef __cplusplus
}
#endif

#endif
