/* Every size that follows from a configuration, in one place. */
#ifndef NSA_CORE_CONFIG_H
#define NSA_CORE_CONFIG_H

#include "core/status.h"

#include <stdbool.h>

enum { MAX_HEAD_DIM = 256 };

nsa_status check_config(const nsa_config *cfg);

static inline int32_t config_group(const nsa_config *cfg)
{
    return cfg->n_heads_q / cfg->n_heads_kv;
}

double config_scale(const nsa_config *cfg);

/* Compressed blocks that position t sees; t may be negative. Also n_cmp of t + 1 tokens. */
static inline int64_t n_cmp_visible(const nsa_config *cfg, int64_t t)
{
    return t < cfg->cmp_block - 1 ? 0 : (t - (cfg->cmp_block - 1)) / cfg->cmp_stride + 1;
}

static inline int64_t n_slc_blocks(const nsa_config *cfg, int64_t n_tokens)
{
    return (n_tokens + cfg->slc_block - 1) / cfg->slc_block;
}

static inline int64_t min_i64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static inline int64_t max_i64(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

#endif
