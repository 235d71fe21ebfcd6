#include "core/config.h"

#include <math.h>

void nsa_config_init(nsa_config *cfg)
{
    if (cfg == NULL)
        return;
    *cfg = (nsa_config){
        .struct_size = sizeof *cfg,
        .n_heads_q = 64,
        .n_heads_kv = 4,
        .d_qk = 192,
        .d_v = 128,
        .cmp_block = 32,
        .cmp_stride = 16,
        .slc_block = 64,
        .slc_topk = 16,
        .slc_n_init = 1,
        .slc_n_local = 2,
        .win_size = 512,
        .scale = 0.0,
    };
}

nsa_status check_config(const nsa_config *c)
{
    NSA_REQUIRE(c != NULL, "cfg is NULL");
    NSA_REQUIRE(c->struct_size == sizeof *c, "cfg.struct_size is %u, must be %zu: call nsa_config_init first",
                c->struct_size, sizeof *c);
    /* With these bounds a product of tokens (2^31), heads (2^16), channels (2^8) and bytes (2^3) is below 2^63. */
    const struct {
        const char *name;
        int32_t value, min, max;
    } ranges[] = {
        {"n_heads_q", c->n_heads_q, 1, 65536},   {"n_heads_kv", c->n_heads_kv, 1, 65536},
        {"d_qk", c->d_qk, 1, MAX_HEAD_DIM},      {"d_v", c->d_v, 1, MAX_HEAD_DIM},
        {"cmp_block", c->cmp_block, 1, 65536},   {"cmp_stride", c->cmp_stride, 1, 65536},
        {"slc_block", c->slc_block, 1, 65536},   {"slc_topk", c->slc_topk, 1, 65536},
        {"slc_n_init", c->slc_n_init, 0, 65536}, {"slc_n_local", c->slc_n_local, 0, 65536},
        {"win_size", c->win_size, 1, INT32_MAX},
    };
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++)
        NSA_REQUIRE(ranges[i].value >= ranges[i].min && ranges[i].value <= ranges[i].max,
                    "cfg.%s is %d, must be %d .. %d", ranges[i].name, ranges[i].value, ranges[i].min, ranges[i].max);
    NSA_REQUIRE(c->n_heads_q % c->n_heads_kv == 0, "cfg.n_heads_q is %d, must be a multiple of cfg.n_heads_kv = %d",
                c->n_heads_q, c->n_heads_kv);
    NSA_REQUIRE(c->cmp_block % c->cmp_stride == 0, "cfg.cmp_stride is %d, must divide cfg.cmp_block = %d",
                c->cmp_stride, c->cmp_block);
    NSA_REQUIRE(c->slc_block % c->cmp_stride == 0, "cfg.cmp_stride is %d, must divide cfg.slc_block = %d",
                c->cmp_stride, c->slc_block);
    NSA_REQUIRE(c->cmp_block <= c->slc_block, "cfg.cmp_block is %d, must be at most cfg.slc_block = %d", c->cmp_block,
                c->slc_block);
    NSA_REQUIRE(c->slc_topk >= c->slc_n_init + c->slc_n_local,
                "cfg.slc_topk is %d, must be at least cfg.slc_n_init + cfg.slc_n_local = %d", c->slc_topk,
                c->slc_n_init + c->slc_n_local);
    NSA_REQUIRE(c->scale >= 0.0 && isfinite(c->scale), "cfg.scale is %g, must be finite and > 0, or 0 for 1/sqrt(d_qk)",
                c->scale);
    return NSA_OK;
}

double config_scale(const nsa_config *cfg)
{
    return cfg->scale > 0.0 ? cfg->scale : 1.0 / sqrt((double)cfg->d_qk);
}

int64_t nsa_n_cmp(const nsa_config *cfg, int64_t n_tokens)
{
    return cfg == NULL || cfg->cmp_stride < 1 ? 0 : n_cmp_visible(cfg, n_tokens - 1);
}
