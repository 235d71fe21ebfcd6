/* States in device memory. Every build has these functions: cache_device.c. */
#ifndef NSA_NSA_CACHE_DEVICE_H
#define NSA_NSA_CACHE_DEVICE_H

#include "core/ctx.h"

nsa_status cache_device_reset(const nsa_ctx *ctx, void *state, int64_t bytes, nsa_stream stream);
nsa_status cache_device_length(const nsa_ctx *ctx, const void *state, int64_t *n_tokens, nsa_stream stream);
nsa_status cache_device_drop(const nsa_ctx *ctx, void *state, int64_t bytes, int32_t max_draft, int64_t n_tokens,
                             nsa_stream stream);

#endif
