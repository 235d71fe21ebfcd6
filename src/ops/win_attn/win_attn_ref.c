#include "ops/win_attn/win_attn.h"
#include "ops/attn_tile/attn_ref.h"

static int64_t keys_in_window(const attn_problem *p, const attn_row *row, int32_t *keys)
{
    int64_t n = 0;
    for (int64_t j = max_i64(0, row->t - p->cfg->win_size + 1); j <= row->t; j++)
        keys[n++] = (int32_t)j;
    return n;
}

static const attn_branch branch = {attn_n_tokens, keys_in_window};

void win_attn_ref_forward(const void *problem, arena *ws)
{
    attn_ref_forward(problem, ws, &branch);
}

void win_attn_ref_backward(const void *problem, arena *ws)
{
    attn_ref_backward(problem, ws, &branch);
}
