/* The host's side of slc_attn on Hopper: which problems it takes, and the launches. */
#include "cuda/device.h"
#include "cuda/simt_args.h"
#include "cuda/tensor_map_sm90.h"
#include "ops/slc_attn/slc_attn.h"
#include "ops/slc_attn/slc_attn_fwd_blocks_sm90.h"
#include "ops/slc_attn/slc_attn_sm90_args.h"

#include <float.h>

enum {
    BLOCKS_GROUP = 4, /* the largest that is faster block-major, for blocks of SLC_FWD_KEYS keys */
    BLOCKS_TOKENS = 8 /* that have selected a block, on average: fewer do not pay for its list */
};

static bool has_kernel(int32_t d_qk, int32_t d_v)
{
    return (d_qk == d_v && (d_qk == 64 || d_qk == 128 || d_qk == 256)) || (d_qk == 192 && d_v == 128);
}

bool slc_attn_fwd_sm90_supports(const attn_problem *p)
{
    const nsa_config *c = p->cfg;
    const seqs *x = &p->seqs;
    const map_rows q = {x->n, x->max_q, x->total_q, c->n_heads_q, c->d_qk},
                   o = {x->n, x->max_q, x->total_q, c->n_heads_q, c->d_v},
                   k = {x->n, x->max_k, x->total_k, c->n_heads_kv, c->d_qk},
                   v = {x->n, x->max_k, x->total_k, c->n_heads_kv, c->d_v};
    /* A block of threads for each (tile, 16 heads) at most: a grid has room for 2^31. */
    return ctx_is_sm90(p->ctx) && has_kernel(c->d_qk, c->d_v) && c->slc_block % SLC_KEYS == 0 &&
           i64_mul(n_tiles(x->total_q, x->n, 1), c->n_heads_q) <= INT32_MAX && config_scale(c) > FLT_MIN &&
           config_scale(c) < FLT_MAX / 2.0 && tensor_map_supports(&p->q, &q) && tensor_map_supports(&p->o, &o) &&
           tensor_map_supports(&p->k.tensor, &k) && tensor_map_supports(&p->v.tensor, &v);
}

bool slc_attn_sm90_supports(const attn_problem *p)
{
    return slc_attn_fwd_sm90_supports(p) && (p->d_o.data == NULL || slc_attn_bwd_sm90_supports(p));
}

/* Token-major reads the keys of a block for each token, unless tokens that stand together have selected the same: all
 * have, where there are few blocks. Block-major reads the rows of a group and moves their partials, whatever else. */
bool slc_attn_blocks_sm90_supports(const attn_problem *p)
{
    const nsa_config *c = p->cfg;
    const int64_t group = config_group(c), most = n_slc_blocks(c, p->seqs.max_k), all = p->seqs.total_k / c->slc_block;
    return slc_attn_sm90_supports(p) && slc_attn_fwd_blocks_sm90_supports(p) &&
           group * SLC_FWD_KEYS <= (int64_t)BLOCKS_GROUP * c->slc_block && 2 * most >= (8 + group) * c->slc_topk &&
           i64_mul(p->seqs.total_q, c->slc_topk) >= BLOCKS_TOKENS * all;
}

slc_fwd_sm90 slc_fwd_sm90_of(const attn_problem *p)
{
    return (slc_fwd_sm90){
        .cfg = simt_config_of(p->cfg),
        .seqs = simt_seqs_of(&p->seqs),
        .q = p->q,
        .k = p->k.tensor,
        .v = p->v.tensor,
        .slc_idx = p->slc_idx,
        .o = p->o,
        .lse = p->lse,
    };
}

void slc_attn_fwd_sm90(const void *problem, arena *ws)
{
    const slc_fwd_sm90 args = slc_fwd_sm90_of(problem);
    if (arena_launches(ws))
        cuda_launched(ws, "attention over selected blocks", launch_slc_attn_fwd_sm90(&args, ws->stream));
}
