#include "ops/win_attn/win_attn.h"
#include "ops/attn_tile/attn_ref.h"
#include "ops/attn_tile/attn_tile.h"
#include "ops/gate/gate.h"

static span visible(const nsa_config *cfg, int64_t t)
{
    return (span){max_i64(0, t - cfg->win_size + 1), max_i64(0, t + 1)};
}

/* The attention of an implementation, and the gated sum if it is wanted. */
static void gate_after(const attn_problem *p, arena *ws, op_fn *attend)
{
    attn_problem a = *p;
    a.o = tensor_or_scratch(&p->o, ws, p->seqs.total_q, p->o.dtype, p->cfg->n_heads_q, p->cfg->d_v);
    a.gates = NULL;
    attend(&a, ws);
    if (p->gates == NULL)
        return;
    gate_problem g = *p->gates;
    g.o_branch[NSA_WIN] = a.o;
    gate_choose(&g)->forward(&g, ws);
}

static void attend(const void *problem, arena *ws)
{
    interval_forward(problem, ws, visible);
}

static void forward(const void *problem, arena *ws)
{
    gate_after(problem, ws, attend);
}

static void ref_forward(const void *problem, arena *ws)
{
    gate_after(problem, ws, win_attn_ref_forward);
}

#ifdef NSA_CUDA
static void sm90_forward(const void *problem, arena *ws)
{
    if (attn_sm90_gates(problem))
        attn_sm90_forward(problem, ws);
    else
        gate_after(problem, ws, attn_sm90_forward);
}

static void simt_forward(const void *problem, arena *ws)
{
    gate_after(problem, ws, attn_simt_forward);
}
#endif

static void backward(const void *problem, arena *ws)
{
    interval_backward(problem, ws, visible);
}

const attn_impl win_attn_impls[] = {
    {"tile", tile_supports, forward, backward},
#ifdef NSA_CUDA
    {"sm90", attn_sm90_supports, sm90_forward, attn_sm90_backward},
    {"simt", attn_simt_supports, simt_forward, attn_simt_backward},
#endif
    {"ref", attn_ref_supports, ref_forward, win_attn_ref_backward},
    {NULL, NULL, NULL, NULL},
};
