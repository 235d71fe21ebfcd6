#ifndef NSA_CORE_CTX_H
#define NSA_CORE_CTX_H

#include "core/status.h"
#include "simd/simd.h"

#include <stdbool.h>

struct nsa_ctx {
    int32_t n_threads;
    bool reference;
    const simd_kernels *simd; /* the inner loops for this machine */

    bool cuda; /* for a CUDA device: all but this and n_threads = 1 is then the device's */
    int32_t device_index;
    char isa[16]; /* "sm_90" */
};

/* Whether the kernels for Hopper run there. */
bool ctx_is_sm90(const nsa_ctx *ctx);

nsa_status check_ctx(const nsa_ctx *ctx); /* not NULL */

/* Whether ctx computes in this type; others than those of tensors are not its business. */
nsa_status check_ctx_dtype(const nsa_ctx *ctx, const char *name, nsa_dtype dtype);

#endif
