#include "ops/win_attn/win_attn.h"
#include "ops/attn_tile/attn_ref.h"
#include "ops/attn_tile/attn_tile.h"

static span visible(const nsa_config *cfg, int64_t t)
{
    return (span){max_i64(0, t - cfg->win_size + 1), max_i64(0, t + 1)};
}

static void forward(const void *problem, arena *ws)
{
    interval_forward(problem, ws, visible);
}

static void backward(const void *problem, arena *ws)
{
    interval_backward(problem, ws, visible);
}

const attn_impl win_attn_impls[] = {
    {"tile", tile_supports, forward, backward},
#ifdef NSA_CUDA
    {"sm90", attn_sm90_supports, attn_sm90_forward, attn_sm90_backward},
    {"simt", attn_simt_supports, attn_simt_forward, attn_simt_backward},
#endif
    {"ref", attn_ref_supports, win_attn_ref_forward, win_attn_ref_backward},
    {NULL, NULL, NULL, NULL},
};
