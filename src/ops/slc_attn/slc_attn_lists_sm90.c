#include "ops/slc_attn/slc_attn_sm90_args.h"

enum { SEGMENT_TOKENS = 1024 /* at least */ };

int64_t slc_most_blocks(const attn_problem *p)
{
    return min_i64(p->cfg->slc_topk, n_slc_blocks(p->cfg, p->seqs.max_k));
}

int64_t slc_lists_room(const attn_problem *p, int64_t round_tokens)
{
    return i64_mul(i64_mul(round_tokens, slc_most_blocks(p)), p->cfg->n_heads_kv);
}

slc_lists slc_lists_take(const attn_problem *p, int64_t round_tokens, int64_t item_tokens, arena *ws)
{
    const nsa_config *cfg = p->cfg;
    slc_lists x = {.n_blocks = p->seqs.total_k / cfg->slc_block + p->seqs.n};
    x.n_lists = i64_mul(x.n_blocks, cfg->n_heads_kv);
    x.room = slc_lists_room(p, round_tokens);
    x.item_tokens = (int32_t)item_tokens;
    x.max_items = i64_add(x.n_lists, x.room / x.item_tokens);
    const int64_t windows = (min_i64(round_tokens, p->seqs.max_q) + SEGMENT_TOKENS - 1) / SEGMENT_TOKENS;
    x.n_segments = (int32_t)max_i64(1, min_i64(SEGMENTS, windows));
    x.tokens = arena_take(ws, x.room, sizeof *x.tokens);
    x.begin = arena_take(ws, x.n_lists, sizeof *x.begin);
    x.count = arena_take(ws, x.n_lists, sizeof *x.count);
    x.segments = arena_take(ws, i64_mul(x.n_lists, x.n_segments), sizeof *x.segments);
    x.parts_begin = arena_take(ws, x.n_lists, sizeof *x.parts_begin);
    x.places = arena_take(ws, i64_mul(i64_mul(round_tokens, cfg->slc_topk), cfg->n_heads_kv), sizeof *x.places);
    x.n_items = arena_take(ws, 1, sizeof *x.n_items);
    x.items = arena_take(ws, x.max_items, sizeof *x.items);
    return x;
}

bool slc_lists_fit(const slc_lists *x, const nsa_config *cfg)
{
    return i64_mul(x->n_lists, x->n_segments) <= INT32_MAX && x->room <= INT32_MAX &&
           i64_mul(OWNED, cfg->slc_block) <= INT32_MAX;
}
