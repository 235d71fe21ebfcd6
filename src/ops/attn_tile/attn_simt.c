/* The host's side of attn_simt.cu: the workspace and the launches, in order. */
#include "ops/attn_tile/attn_simt_args.h"
#include "cuda/device.h"
#include "cuda/simt_args.h"

bool attn_simt_supports(const attn_problem *p)
{
    return p->ctx->cuda;
}

attn_simt attn_simt_of(const attn_problem *p)
{
    return (attn_simt){
        .cfg = simt_config_of(p->cfg),
        .branch = p->branch,
        .seqs = simt_seqs_of(&p->seqs),
        .q = p->q,
        .k = p->k.tensor,
        .v = p->v.tensor,
        .slc_idx = p->slc_idx,
        .o = p->o,
        .lse = p->lse,
        .d_o = p->d_o,
        .gate = p->gate,
        .dq = p->dq,
        .dk = p->dk,
        .dv = p->dv,
        .add_dq = p->add_dq,
        .add_dk = p->add_dk,
        .add_dv = p->add_dv,
    };
}

void attn_simt_forward(const void *problem, arena *ws)
{
    const attn_simt args = attn_simt_of(problem);
    if (arena_launches(ws))
        cuda_launched(ws, "attention", launch_attn_forward(&args, ws->stream));
}

void attn_simt_backward(const void *problem, arena *ws)
{
    attn_simt args = attn_simt_of(problem);
    args.delta = arena_take(ws, i64_mul(args.seqs.total_q, args.cfg.c.n_heads_q), sizeof(float));
    if (arena_launches(ws))
        cuda_launched(ws, "dq of attention", launch_attn_dq(&args, ws->stream));
    if (arena_launches(ws))
        cuda_launched(ws, "dk and dv of attention", launch_attn_dkdv(&args, ws->stream));
}
