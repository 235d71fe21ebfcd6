#include "nsa/pipeline.h"
#include "core/check.h"
#include "ops/attn_tile/attn.h"
#include "ops/gate/gate.h"

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
        if (b != NSA_WIN)
            a[b].o = tensor_or_scratch(&p->o_branch[b], ws, n, p->dtype, cfg->n_heads_q, cfg->d_v);
        else /* absent where the gated sum is all that is wanted */
            a[b].o =
                p->o_branch[b].data != NULL ? p->o_branch[b] : nsa_packed(NULL, p->dtype, cfg->n_heads_q, cfg->d_v);
        a[b].lse = tensor_or_scratch(&p->lse[b], ws, n, lse_dtype(p->dtype), cfg->n_heads_q, 1);
        g.o_branch[b] = a[b].o;
    }
    a[NSA_SLC].slc_idx = tensor_or_scratch(&p->slc_idx, ws, n, NSA_I32, cfg->n_heads_kv, cfg->slc_topk);

    a[NSA_CMP].selects = !p->slc_idx_given;
    a[NSA_CMP].select = a[NSA_SLC].slc_idx;
    a[NSA_WIN].gates = &g;
    for (int b = 0; b < NSA_N_BRANCHES; b++)
        run_attn(impls[b], &a[b], ws);
}
