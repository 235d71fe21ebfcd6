#include "ops/cmp_attn/cmp_attn.h"
#include "ops/attn_tile/attn_ref.h"

static int64_t visible_blocks(const attn_problem *p, const attn_row *row, int32_t *keys)
{
    int64_t n = 0;
    for (int64_t i = 0; i * p->cfg->cmp_stride + p->cfg->cmp_block - 1 <= row->t; i++)
        keys[n++] = (int32_t)i;
    return n;
}

static const attn_branch branch = {nsa_n_cmp, visible_blocks};

void cmp_attn_ref_forward(const void *problem, arena *ws)
{
    attn_ref_forward(problem, ws, &branch);
}

void cmp_attn_ref_backward(const void *problem, arena *ws)
{
    attn_ref_backward(problem, ws, &branch);
}
