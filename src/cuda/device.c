#include "cuda/device.h"

#ifdef NSA_CUDA

#include "cuda/simt_args.h"

#include <cuda_runtime_api.h>

#include <stdio.h>

enum { MIN_MAJOR = 8 }; /* compute capability; the kernels are compiled for 8.0 and up */

static nsa_status no_device(const char *what, cudaError_t error)
{
    return nsa_fail(NSA_ERR_NO_DEVICE, "%s: %s (%s)", what, cudaGetErrorName(error), cudaGetErrorString(error));
}

static nsa_status count_devices(int *n)
{
    int driver = 0;
    const cudaError_t known = cudaDriverGetVersion(&driver);
    if (known != cudaSuccess || driver == 0)
        return nsa_fail(NSA_ERR_NO_DEVICE, "this machine has no CUDA driver");
    const cudaError_t error = cudaGetDeviceCount(n);
    if (error == cudaErrorInsufficientDriver)
        return nsa_fail(NSA_ERR_NO_DEVICE, "this machine's driver is for CUDA %d.%d, this build needs %d.%d or newer",
                        driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    if (error == cudaErrorNoDevice)
        return nsa_fail(NSA_ERR_NO_DEVICE, "this machine has a CUDA driver, but no CUDA device that it can use");
    return error == cudaSuccess ? NSA_OK : no_device("CUDA devices cannot be counted", error);
}

nsa_status cuda_open(int32_t index, char *isa, size_t bytes)
{
    int n = 0, major = 0, minor = 0;
    NSA_TRY(count_devices(&n));
    if (index >= n)
        return nsa_fail(NSA_ERR_NO_DEVICE, "options.device_index is %d, this machine has %d CUDA device(s)", index, n);
    cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index);
    if (error == cudaSuccess)
        error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index);
    if (error != cudaSuccess)
        return no_device("the compute capability of options.device_index cannot be read", error);
    if (major < MIN_MAJOR)
        return nsa_fail(NSA_ERR_NO_DEVICE, "CUDA device %d has compute capability %d.%d, needed is %d.0 or higher",
                        index, major, minor, MIN_MAJOR);
    snprintf(isa, bytes, "sm_%d%d", major, minor);
    return NSA_OK;
}

int cuda_n_sms(int32_t index)
{
    int n = 0;
    (void)cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, index); /* of a device that was there */
    return n > 0 ? n : 1;
}

nsa_status cuda_enter(int32_t index, int *before)
{
    cudaError_t error = cudaGetDevice(before);
    if (error == cudaSuccess && *before != index)
        error = cudaSetDevice(index);
    if (error != cudaSuccess)
        return nsa_fail(NSA_ERR_DEVICE, "CUDA device %d cannot be made current: %s (%s)", index,
                        cudaGetErrorName(error), cudaGetErrorString(error));
    return NSA_OK;
}

void cuda_leave(int32_t index, int before)
{
    if (before != index)
        (void)cudaSetDevice(before); /* it was current a moment ago */
}

void cuda_launched(arena *ws, const char *what, int error)
{
    if (error == cudaSuccess)
        return;
    ws->status = nsa_fail(NSA_ERR_DEVICE, "%s: %s (%s)", what, cudaGetErrorName((cudaError_t)error),
                          cudaGetErrorString((cudaError_t)error));
}

void cuda_copy(nsa_tensor from, nsa_tensor to, const int32_t *cu, int32_t n_seqs, int64_t total, int32_t max_seqlen,
               int32_t n_heads, int32_t d, arena *ws)
{
    const bool whole = simt_whole_chunks(&from, d) && simt_whole_chunks(&to, d);
    const copy_simt p = {n_seqs, max_seqlen, n_heads, d, total, cu, from, to, whole};
    cuda_launched(ws, "rounding of a gradient", launch_copy(&p, ws->stream));
}

#else

nsa_status cuda_open(int32_t index, char *isa, size_t bytes)
{
    (void)index, (void)isa, (void)bytes;
    return nsa_fail(NSA_ERR_NO_DEVICE, "options.device is CUDA (1); this build is for the CPU only (NSA_CUDA=OFF)");
}

nsa_status cuda_enter(int32_t index, int *before)
{
    (void)before;
    return nsa_fail(NSA_ERR_DEVICE, "CUDA device %d in a build for the CPU only", index);
}

void cuda_leave(int32_t index, int before)
{
    (void)index, (void)before;
}

void cuda_copy(nsa_tensor from, nsa_tensor to, const int32_t *cu, int32_t n_seqs, int64_t total, int32_t max_seqlen,
               int32_t n_heads, int32_t d, arena *ws)
{
    (void)from, (void)to, (void)cu, (void)n_seqs, (void)total, (void)max_seqlen, (void)n_heads, (void)d, (void)ws;
}

#endif
