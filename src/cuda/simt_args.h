/* From the problems of the C side to the structs of the kernels. */
#ifndef NSA_CUDA_SIMT_ARGS_H
#define NSA_CUDA_SIMT_ARGS_H

#include "core/rows.h"
#include "cuda/simt.h"

static inline simt_seqs simt_seqs_of(const seqs *x)
{
    return (simt_seqs){.n = x->n,
                       .max_q = x->max_q,
                       .max_k = x->max_k,
                       .total_q = x->total_q,
                       .total_k = x->total_k,
                       .cu_q = x->cu_q,
                       .cu_k = x->cu_k};
}

static inline simt_config simt_config_of(const nsa_config *cfg)
{
    return (simt_config){.c = *cfg, .group = config_group(cfg), .scale = (float)config_scale(cfg)};
}

/* Whether every row of d channels is whole chunks (cuda/chunks.cuh) that lie on 16 bytes, or there are none. */
static inline bool simt_whole_chunks(const nsa_tensor *t, int64_t d)
{
    const int64_t n = 16 / (int64_t)dtype_size(t->dtype);
    return t->data == NULL || ((uintptr_t)t->data % 16 == 0 && d % SIMT_CHUNK == 0 && t->stride_seq % n == 0 &&
                               t->stride_token % n == 0 && t->stride_head % n == 0);
}

#endif
