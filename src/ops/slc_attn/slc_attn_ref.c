#include "ops/slc_attn/slc_attn.h"
#include "ops/attn_tile/attn_ref.h"

static bool is_selected(const attn_problem *p, const attn_row *row, int64_t block)
{
    const int32_t *idx = tensor_at(&p->slc_idx, row->s, row->seq.q0, row->r, row->kv_head);
    for (int32_t i = 0; i < p->cfg->slc_topk; i++)
        if (idx[i] == block)
            return true;
    return false;
}

static int64_t keys_of_selected_blocks(const attn_problem *p, const attn_row *row, int32_t *keys)
{
    int64_t n = 0;
    for (int64_t block = 0; block * p->cfg->slc_block <= row->t; block++) {
        if (!is_selected(p, row, block))
            continue;
        const int64_t first = block * p->cfg->slc_block;
        for (int64_t j = first; j < first + p->cfg->slc_block && j <= row->t; j++)
            keys[n++] = (int32_t)j;
    }
    return n;
}

static const attn_branch branch = {attn_n_tokens, keys_of_selected_blocks};

void slc_attn_ref_forward(const void *problem, arena *ws)
{
    attn_ref_forward(problem, ws, &branch);
}

void slc_attn_ref_backward(const void *problem, arena *ws)
{
    attn_ref_backward(problem, ws, &branch);
}
