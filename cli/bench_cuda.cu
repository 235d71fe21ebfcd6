/*
 * Kernels of nsa bench: random tensors, and the tensor cores' ceiling.
 *
 * The ceiling: every warpgroup multiplies tiles of random numbers that stay in shared memory, m64n256k16 after
 * m64n256k16 into the same registers, so that nothing but the tensor cores is waited for. Two warpgroups of a
 * multiprocessor keep them busy. Random numbers, since with zeros the chip draws less power and runs faster than any
 * real kernel.
 */
#include "cli/bench_cuda.h"

#include "cuda/sm90.cuh"

static __global__ void fill_kernel(void *p, nsa_dtype dtype, int64_t count, const __grid_constant__ bench_random random)
{
    for (int64_t i = first_element(); i < count; i += element_stride())
        store_as(p, dtype, i, bench_number(&random, i));
}

int bench_launch_fill(void *p, nsa_dtype dtype, int64_t count, const bench_random *random, nsa_stream stream)
{
    enum { THREADS = 256 };
    if (count > 0)
        fill_kernel<<<grid_of(count, THREADS), THREADS, 0, (cudaStream_t)stream>>>(p, dtype, count, *random);
    return cudaGetLastError();
}

/* ---- The ceiling */

enum { M = 64, N = 256, K = 64 /* a box */, STEP = 16 /* of one wgmma */, GROUPS = 2, ROUNDS = 2048 };

typedef struct peak_tiles {
    bf16 a[GROUPS][M * K], b[N * K];
} peak_tiles;

static __global__ __launch_bounds__(GROUPS *WARPGROUP, 1) void peak_kernel(float *sink)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ __align__(1024) char shared[];
    peak_tiles *s = (peak_tiles *)shared;
    for (int i = (int)threadIdx.x; i < (int)(sizeof *s / sizeof(bf16)); i += GROUPS * WARPGROUP)
        ((bf16 *)s)[i] = __float2bfloat16(bench_normal(blockIdx.x, (uint64_t)i));
    fence_async();
    __syncthreads();
    float d[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; i++)
        d[i] = 0;
    const uint64_t a = along_k(s->a[threadIdx.x / WARPGROUP]), b = along_k(s->b);
    pin(d);
    wgmma_fence();
    for (int round = 0; round < ROUNDS; round++) {
#pragma unroll
        for (int k = 0; k < K / STEP; k++)
            wgmma<N>(d, further(a, k * STEP * 2), further(b, k * STEP * 2), 1);
        wgmma_commit();
        wgmma_wait<1>();
    }
    wgmma_wait<0>();
    pin(d);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < N / 2; i++)
        sum += d[i];
    if (sum == 0.5F) /* the products must be made */
        *sink = sum;
#endif
}

int bench_launch_peak(int major, int minor, int n_multiprocessors, void *sink, double *flop, nsa_stream stream)
{
    *flop = 0;
    if (major != 9 || minor != 0)
        return cudaSuccess;
    const int bytes = (int)sizeof(peak_tiles);
    const cudaError_t error = cudaFuncSetAttribute(peak_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess)
        return error;
    *flop = 2.0 * M * N * K * ROUNDS * GROUPS * n_multiprocessors;
    peak_kernel<<<n_multiprocessors, GROUPS * WARPGROUP, bytes, (cudaStream_t)stream>>>((float *)sink);
    return cudaGetLastError();
}
