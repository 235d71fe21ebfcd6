#include "ops/attn_tile/attn_tile.h"

/* Forward and dq: a unit is a tile of tokens of one kv head. The last tokens see the most keys and go first. */
static void attend_unit(attn_tile *t, int64_t unit, const void *shared, void *extra)
{
    (void)shared;
    (void)extra;
    const attn_problem *p = t->p;
    const int64_t tokens = tile_lane_tokens(p), tiles = n_tiles(p->seqs.total_q, p->seqs.n, tokens);
    int32_t s = 0;
    int64_t first = 0;
    if (!tile_at(p->seqs.cu_q, p->seqs.n, tokens, tiles - 1 - unit / p->cfg->n_heads_kv, &s, &first))
        return;
    tile_enter(t, s, (int32_t)(unit % p->cfg->n_heads_kv));
    const int64_t n = min_i64(tokens, t->seq.t_q - first);
    tile_load(t, NULL, first, n);
    tile_pick(t, NULL, n);
    /* Blocks end at multiples of KEY_BLOCK, so that their sums do not depend on the tile. The first one starts at the
     * first key that is seen: a ring no longer holds the ones before. */
    const int64_t end = t->sees[n - 1].hi;
    for (int64_t k0 = t->sees[0].lo, next; k0 < end; k0 = next) {
        next = min_i64(end, (k0 / KEY_BLOCK + 1) * KEY_BLOCK);
        tile_attend(t, k0, next - k0);
    }
    tile_unpick(t);
    tile_store(t);
}

/* The first query row that sees key k, or t_q. */
static int64_t first_to_see(const attn_tile *t, int64_t k)
{
    int64_t lo = 0, hi = t->seq.t_q;
    while (lo < hi) {
        const int64_t mid = lo + (hi - lo) / 2;
        if (t->visible(t->p->cfg, mid + t->seq.t_k - t->seq.t_q).hi > k)
            hi = mid;
        else
            lo = mid + 1;
    }
    return lo;
}

/* A block of keys of one kv head. The first keys are seen by the most tokens and go first. */
static void keys_unit(attn_tile *t, int64_t unit, const void *shared, void *extra)
{
    (void)shared;
    (void)extra;
    const attn_problem *p = t->p;
    const int64_t tokens = tile_lane_tokens(p), div = p->k.start_div;
    int32_t s = 0;
    int64_t first = 0;
    if (!tile_at(p->seqs.cu_k, p->seqs.n, KEY_BLOCK * div, unit / p->cfg->n_heads_kv, &s, &first))
        return;
    tile_enter(t, s, (int32_t)(unit % p->cfg->n_heads_kv));
    const int64_t k0 = first / div, n_keys = t->visible(p->cfg, t->seq.t_k - 1).hi; /* the last token sees all */
    if (k0 >= n_keys)
        return;
    const int64_t n = min_i64(KEY_BLOCK, n_keys - k0), offset = t->seq.t_k - t->seq.t_q;
    tile_load_keys(t, k0, n);
    for (int64_t r = first_to_see(t, k0); r < t->seq.t_q && t->visible(p->cfg, r + offset).lo < k0 + n; r += tokens) {
        tile_load(t, NULL, r, min_i64(tokens, t->seq.t_q - r));
        tile_attend_keys(t, k0, n);
    }
    tile_store_keys(t, k0, n);
}

void interval_forward(const attn_problem *p, arena *ws, visible_fn *visible)
{
    const int64_t tokens = tile_lane_tokens(p);
    const tile_run run = {.p = p,
                          .pass = TILE_FORWARD,
                          .visible = visible,
                          .max_tokens = tokens,
                          .units = n_tiles(p->seqs.total_q, p->seqs.n, tokens) * p->cfg->n_heads_kv,
                          .unit = attend_unit};
    tile_run_units(&run, ws);
}

void interval_backward(const attn_problem *p, arena *ws, visible_fn *visible)
{
    const int64_t tokens = tile_lane_tokens(p);
    const int64_t total_k = p->seqs.n == 0 ? 0 : p->seqs.cu_k[p->seqs.n];
    tile_run run = {.p = p,
                    .pass = TILE_DQ,
                    .visible = visible,
                    .max_tokens = tokens,
                    .all_delta = arena_take(ws, p->seqs.total_q, (size_t)p->cfg->n_heads_q * sizeof(float)),
                    .units = n_tiles(p->seqs.total_q, p->seqs.n, tokens) * p->cfg->n_heads_kv,
                    .unit = attend_unit};
    const size_t mark = ws->used;
    tile_run_units(&run, ws);
    arena_release(ws, mark);
    run.pass = TILE_DKV;
    run.units = n_tiles(total_k, p->seqs.n, (int64_t)KEY_BLOCK * p->k.start_div) * p->cfg->n_heads_kv;
    run.unit = keys_unit;
    tile_run_units(&run, ws);
}
