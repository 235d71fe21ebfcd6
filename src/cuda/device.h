/* The CUDA device as the C side of the library sees it. Every build has these functions; one without CUDA says so. */
#ifndef NSA_CUDA_DEVICE_H
#define NSA_CUDA_DEVICE_H

#include "core/arena.h"

/* Whether device `index` can be used: NSA_ERR_NO_DEVICE says what is missing. Its kernels' name into isa: "sm_90". */
nsa_status cuda_open(int32_t index, char *isa, size_t bytes);

/* Multiprocessors of a device that was opened: kernels that stay on theirs want no more CTAs than fit. */
int cuda_n_sms(int32_t index);

/* Makes the device the thread's current one, and back: the caller may be working with another. */
nsa_status cuda_enter(int32_t index, int *before);
void cuda_leave(int32_t index, int before);

/* Keeps the cudaError_t that a launch has returned. */
void cuda_launched(arena *ws, const char *what, int error);

/* Every row of `from` into `to`, of any two types; tensors [total][n_heads][d] over cu. */
void cuda_copy(nsa_tensor from, nsa_tensor to, const int32_t *cu, int32_t n_seqs, int64_t total, int32_t max_seqlen,
               int32_t n_heads, int32_t d, arena *ws);

#endif
