#include "ops/cmp_attn/cmp_attn.h"
#include "ops/attn_tile/attn_ref.h"
#include "ops/attn_tile/attn_tile.h"

static span visible(const nsa_config *cfg, int64_t t)
{
    return (span){0, n_cmp_visible(cfg, t)};
}

static void forward(const void *problem, arena *ws)
{
    interval_forward(problem, ws, visible);
}

static void backward(const void *problem, arena *ws)
{
    interval_backward(problem, ws, visible);
}

const attn_impl cmp_attn_impls[] = {
    {"tile", tile_supports, forward, backward},
    {"ref", attn_ref_supports, cmp_attn_ref_forward, cmp_attn_ref_backward},
    {NULL, NULL, NULL, NULL},
};
