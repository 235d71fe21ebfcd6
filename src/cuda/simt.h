/*
 * What the readable kernels (X_simt.cu) and their drivers (X_simt.c) share: plain structs, passed by value. C11 and
 * CUDA C++ both read this file. A launch function returns a cudaError_t and knows no other type of CUDA's.
 */
#ifndef NSA_CUDA_SIMT_H
#define NSA_CUDA_SIMT_H

#include <nsa.h>

#include <stdbool.h>

#ifdef __cplusplus
#define NSA_LAUNCH extern "C" int
#else
#define NSA_LAUNCH int
#endif

#ifdef __CUDACC__
#define NSA_BOTH_SIDES __host__ __device__
#else
#define NSA_BOTH_SIDES
#endif

/* The sequences of a call; cu_q or cu_k may be NULL where an operation reads one side only. */
typedef struct simt_seqs {
    int32_t n, max_q, max_k;
    int64_t total_q, total_k;
    const int32_t *cu_q, *cu_k;
} simt_seqs;

/* What of nsa_config a kernel wants, and the scale as it is used. */
typedef struct simt_config {
    nsa_config c;
    int32_t group;
    float scale;
} simt_config;

enum { SIMT_CHUNK = 8 }; /* channels of a row that a lane has, where bytes are what counts: cuda/chunks.cuh */

/* Every row of `from` into `to`, of any two types. */
typedef struct copy_simt {
    int32_t n_seqs, max, n_heads, d;
    int64_t total;
    const int32_t *cu;
    nsa_tensor from, to;
    bool whole; /* their rows are whole chunks */
} copy_simt;

NSA_LAUNCH launch_copy(const copy_simt *p, nsa_stream stream);

#endif
