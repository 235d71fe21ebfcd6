/* The KV cache's memory as the host handles it; cache_layout.h says what is where. */
#ifndef NSA_NSA_KV_CACHE_H
#define NSA_NSA_KV_CACHE_H

#include "core/rows.h"
#include "core/status.h"
#include "nsa/cache_layout.h"

cache_layout cache_layout_of(const nsa_config *cfg, const nsa_cache *cache);

nsa_status check_cache(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_cache *cache);
nsa_status check_state(const char *name, const void *state);
nsa_status check_state_of(const char *name, const void *state, const cache_layout *layout);

#endif
