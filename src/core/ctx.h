#ifndef NSA_CORE_CTX_H
#define NSA_CORE_CTX_H

#include "core/status.h"
#include "simd/simd.h"

#include <stdbool.h>

struct nsa_ctx {
    int32_t n_threads;
    bool reference;
    const simd_kernels *simd; /* the inner loops for this machine */
};

nsa_status check_ctx(const nsa_ctx *ctx); /* not NULL */

#endif
