#include "ops/select/select_simt.h"
#include "cuda/device.h"
#include "cuda/simt_args.h"
#include "ops/select/select.h"

enum { MAX_WARPS = 2048 }; /* bounds the workspace: 20 KiB each at 64k tokens */

void select_simt(const void *problem, arena *ws)
{
    const select_problem *p = problem;
    const int64_t n_rows = i64_mul(p->seqs.total_q, p->cfg->n_heads_kv);
    select_simt_args a = {
        .cfg = simt_config_of(p->cfg),
        .seqs = simt_seqs_of(&p->seqs),
        .q = p->q,
        .k_cmp = p->k_cmp.tensor,
        .lse = p->lse,
        .slc_idx = p->slc_idx,
        .n_warps = min_i64(n_rows, MAX_WARPS),
        .n_cmp = n_cmp_visible(p->cfg, (int64_t)p->seqs.max_k - 1),
        .n_slc = n_slc_blocks(p->cfg, p->seqs.max_k),
    };
    a.sum = arena_take(ws, i64_mul(a.n_warps, a.n_cmp), sizeof(float));
    a.score = arena_take(ws, i64_mul(a.n_warps, a.n_slc), sizeof(float));
    if (arena_launches(ws))
        cuda_launched(ws, "selection", launch_select(&a, ws->stream));
}
