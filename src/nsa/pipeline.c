#include "nsa/pipeline.h"
#include "core/check.h"
#include "ops/attn_tile/attn.h"
#include "ops/gate/gate.h"

nsa_tensor tensor_or_scratch(const nsa_tensor *t, arena *ws, int64_t n_rows, nsa_dtype dtype, int32_t n_heads,
                             int32_t d)
{
    if (t->data != NULL)
        return *t;
    void *data = arena_take(ws, i64_mul(n_rows, n_heads), (size_t)d * dtype_size(dtype));
    return nsa_packed(data, dtype, n_heads, d);
}

static void run_attn(const attn_impl *impls, const attn_problem *a, arena *ws)
{
    const size_t mark = ws->used;
    attn_choose(impls, a)->forward(a, ws);
    arena_release(ws, mark);
}

void pipeline_run(const pipeline *p, arena *ws)
{
    static const attn_impl *const impls[] = {cmp_attn_impls, slc_attn_impls, win_attn_impls};
    const nsa_config *cfg = p->cfg;
    const int64_t n = p->seqs[0].total_q;

    gate_problem g = {.ctx = p->ctx, .cfg = cfg, .seqs = p->seqs[0], .gate = p->gate, .o = p->o};
    attn_problem a[NSA_N_BRANCHES];
    for (int b = 0; b < NSA_N_BRANCHES; b++) {
        a[b] = (attn_problem){
            .ctx = p->ctx, .cfg = cfg, .seqs = p->seqs[b], .q = p->q[b], .k = p->k[b], .v = p->v[b], .branch = b};
        a[b].o = tensor_or_scratch(&p->o_branch[b], ws, n, p->dtype, cfg->n_heads_q, cfg->d_v);
        a[b].lse = tensor_or_scratch(&p->lse[b], ws, n, lse_dtype(p->dtype), cfg->n_heads_q, 1);
        g.o_branch[b] = a[b].o;
    }
    a[NSA_SLC].slc_idx = tensor_or_scratch(&p->slc_idx, ws, n, NSA_I32, cfg->n_heads_kv, cfg->slc_topk);

    a[NSA_CMP].selects = !p->slc_idx_given;
    a[NSA_CMP].select = a[NSA_SLC].slc_idx;
    for (int b = 0; b < NSA_N_BRANCHES; b++)
        run_attn(impls[b], &a[b], ws);
    const size_t mark = ws->used;
    gate_choose(&g)->forward(&g, ws);
    arena_release(ws, mark);
}
