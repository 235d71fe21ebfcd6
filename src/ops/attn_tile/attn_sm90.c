/* The host's side of attn_fwd_sm90.cu: which problems it takes, and its workspace. */
#include "ops/attn_tile/attn_sm90.h"
#include "cuda/device.h"
#include "cuda/simt_args.h"
#include "cuda/tensor_map_sm90.h"
#include "ops/attn_tile/attn.h"
#include "ops/gate/gate.h"

#include <float.h>

static bool has_kernel(int32_t d_qk, int32_t d_v)
{
    return (d_qk == d_v && (d_qk == 64 || d_qk == 128 || d_qk == 256)) || (d_qk == 192 && d_v == 128);
}

static map_rows q_rows(const attn_problem *p, int32_t d)
{
    return (map_rows){p->seqs.n, p->seqs.max_q, p->seqs.total_q, p->cfg->n_heads_q, d};
}

static map_rows k_rows(const attn_problem *p, int32_t d)
{
    const bool cmp = p->branch == NSA_CMP;
    return (map_rows){p->seqs.n, cmp ? nsa_n_cmp(p->cfg, p->seqs.max_k) : p->seqs.max_k,
                      cmp ? p->seqs.total_k / p->cfg->cmp_stride : p->seqs.total_k, p->cfg->n_heads_kv, d};
}

bool attn_sm90_supports(const attn_problem *p)
{
    const int32_t d_qk = p->cfg->d_qk, d_v = p->cfg->d_v;
    const map_rows q = q_rows(p, d_qk), k = k_rows(p, d_qk), v = k_rows(p, d_v), o = q_rows(p, d_v);
    return ctx_is_sm90(p->ctx) && has_kernel(d_qk, d_v) && config_group(p->cfg) <= FWD_ROWS &&
           config_scale(p->cfg) > FLT_MIN && config_scale(p->cfg) < FLT_MAX / 2.0 && tensor_map_supports(&p->q, &q) &&
           tensor_map_supports(&p->k.tensor, &k) && tensor_map_supports(&p->v.tensor, &v) &&
           tensor_map_supports(&p->o, &o); /* whose rows are written 16 bytes at a time */
}

bool attn_sm90_gates(const attn_problem *p)
{
    const gate_problem *g = p->gates;
    const map_rows o = q_rows(p, p->cfg->d_v);
    return g != NULL && p->cfg->d_v <= MAX_GATED_D && tensor_map_supports(&g->o, &o) &&
           tensor_map_supports(&g->o_branch[NSA_CMP], &o) && tensor_map_supports(&g->o_branch[NSA_SLC], &o);
}

void attn_sm90_forward(const void *problem, arena *ws)
{
    const attn_problem *p = problem;
    attn_fwd_sm90 args = {
        .cfg = simt_config_of(p->cfg),
        .branch = p->branch,
        .seqs = simt_seqs_of(&p->seqs),
        .q = p->q,
        .k = p->k.tensor,
        .v = p->v.tensor,
        .o = p->o,
        .lse = p->lse,
        .tile_tokens = FWD_ROWS / config_group(p->cfg),
    };
    if (p->gates != NULL)
        args.gates =
            (attn_gates){p->gates->gate, p->gates->o_branch[NSA_CMP], p->gates->o_branch[NSA_SLC], p->gates->o};
    args.n_tiles = n_tiles(p->seqs.total_q, p->seqs.n, args.tile_tokens);
    args.state = arena_take(ws, 1, sizeof *args.state);
    args.again = arena_take(ws, i64_mul(args.n_tiles, p->cfg->n_heads_kv), sizeof *args.again);
    if (arena_launches(ws))
        cuda_launched(ws, "attention", launch_attn_fwd_sm90(&args, ws->stream));
}
