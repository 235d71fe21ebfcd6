#include "ops/cmp_attn/cmp_attn.h"
#include "ops/attn_tile/attn_ref.h"
#include "ops/select/select.h"
#include "ops/select/select_tile.h"

static void forward(const void *problem, arena *ws)
{
    const attn_problem *p = problem;
    if (p->selects)
        interval_finish(p, ws, TILE_FORWARD, cmp_visible, select_finish, select_extra_bytes(p));
    else
        interval_forward(p, ws, cmp_visible);
}

static void backward(const void *problem, arena *ws)
{
    interval_backward(problem, ws, cmp_visible);
}

static void select_after(const attn_problem *p, arena *ws)
{
    if (!p->selects)
        return;
    const select_problem s = {p->ctx, p->cfg, p->seqs, p->q, p->k, p->lse, p->select};
    select_choose(&s)->run(&s, ws);
}

static void ref_forward(const void *problem, arena *ws)
{
    cmp_attn_ref_forward(problem, ws);
    select_after(problem, ws);
}

#ifdef NSA_CUDA
static void sm90_forward(const void *problem, arena *ws)
{
    attn_sm90_forward(problem, ws);
    select_after(problem, ws);
}

static void simt_forward(const void *problem, arena *ws)
{
    attn_simt_forward(problem, ws);
    select_after(problem, ws);
}
#endif

const attn_impl cmp_attn_impls[] = {
    {"tile", tile_supports, forward, backward},
#ifdef NSA_CUDA
    {"sm90", attn_sm90_supports, sm90_forward, attn_sm90_backward},
    {"simt", attn_simt_supports, simt_forward, attn_simt_backward},
#endif
    {"ref", attn_ref_supports, ref_forward, cmp_attn_ref_backward},
    {NULL, NULL, NULL, NULL},
};
