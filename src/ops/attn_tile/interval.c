#include "ops/attn_tile/attn_tile.h"

/* Rows of a backward tile: enough for the sums of a block of keys, which it reads and writes once, to cost little. */
enum { BACKWARD_ROWS = 512 };

static void walk_forward(attn_tile *t, void *extra)
{
    (void)extra;
    const span seen = {t->sees[0].lo, t->sees[t->n_tokens - 1].hi};
    if (seen.lo >= seen.hi)
        return;
    tile_pick(t, NULL, 0, t->n_tokens);
    const int64_t end = block_of_key(t->keys, seen.hi - 1) + 1;
    for (int64_t b = block_of_key(t->keys, seen.lo); b < end; b++)
        tile_attend(t, b, b + 1 < end ? b + 1 : -1);
}

static void walk_backward(attn_tile *t, void *extra)
{
    (void)extra;
    const int64_t together = tile_lane_tokens(t->p);
    const span seen = {t->sees[0].lo, t->sees[t->n_tokens - 1].hi};
    if (seen.lo >= seen.hi)
        return;
    const int64_t end = block_of_key(t->keys, seen.hi - 1) + 1;
    for (int64_t b = block_of_key(t->keys, seen.lo); b < end; b++) {
        const int64_t first = first_key(t->keys, b), past = first + keys_in_block(t->keys, b);
        tile_wait_turn(t, b);
        for (int64_t i = 0; i < t->n_tokens; i += together) {
            const int64_t n = min_i64(together, t->n_tokens - i);
            if (t->sees[i + n - 1].hi <= first || t->sees[i].lo >= past)
                continue;
            tile_pick(t, NULL, i, n);
            tile_attend(t, b, i == 0 ? b + 1 : -1);
        }
        tile_pass_turn(t, b);
    }
}

void interval_finish(const attn_problem *p, arena *ws, tile_pass pass, visible_fn *visible, tile_finish_fn *finish,
                     size_t extra_bytes)
{
    const tile_run run = {.p = p,
                          .pass = pass,
                          .visible = visible,
                          .period = KEY_BLOCK,
                          .tokens = tile_lane_tokens(p),
                          .walk = walk_forward,
                          .finish = finish,
                          .extra_bytes = extra_bytes};
    tile_run_all(&run, ws);
}

void interval_forward(const attn_problem *p, arena *ws, visible_fn *visible)
{
    interval_finish(p, ws, TILE_FORWARD, visible, NULL, 0);
}

void interval_backward(const attn_problem *p, arena *ws, visible_fn *visible)
{
    const tile_run run = {.p = p,
                          .pass = TILE_BACKWARD,
                          .visible = visible,
                          .period = KEY_BLOCK,
                          .tokens = max_i64(1, BACKWARD_ROWS / config_group(p->cfg)),
                          .walk = walk_backward};
    tile_run_all(&run, ws);
}
