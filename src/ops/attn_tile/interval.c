#include "ops/attn_tile/attn_tile.h"

/* Rows of a tile: enough for a block of keys, which it reads once (backward: whose sums it reads and writes once), to
 * cost little. */
enum { MOST_ROWS = 512 };

static void walk(attn_tile *t, void *extra)
{
    (void)extra;
    const int64_t together = tile_lane_tokens(t->p);
    const span seen = {t->sees[0].lo, t->sees[t->n_tokens - 1].hi};
    if (seen.lo >= seen.hi)
        return;
    const int64_t end = block_of_key(t->keys, seen.hi - 1) + 1;
    for (int64_t b = block_of_key(t->keys, seen.lo); b < end; b++) {
        const int64_t first = first_key(t->keys, b), past = first + keys_in_block(t->keys, b);
        if (t->run->pass == TILE_BACKWARD)
            tile_wait_turn(t, b);
        for (int64_t i = 0; i < t->n_tokens; i += together) {
            const int64_t n = min_i64(together, t->n_tokens - i);
            if (t->sees[i + n - 1].hi <= first || t->sees[i].lo >= past)
                continue;
            tile_pick(t, NULL, i, n);
            tile_attend(t, b, i == 0 && b + 1 < end ? b + 1 : -1);
        }
        if (t->run->pass == TILE_BACKWARD)
            tile_pass_turn(t, b);
    }
}

/* Tokens of a tile: fewer where threads would lack tiles. */
static int64_t tile_tokens(const attn_problem *p)
{
    enum { TILES_PER_THREAD = 8 };
    const int64_t share = p->seqs.total_q * p->cfg->n_heads_kv / (TILES_PER_THREAD * (int64_t)p->ctx->n_threads);
    return max_i64(tile_lane_tokens(p), min_i64(share, MOST_ROWS / config_group(p->cfg)));
}

static void run(tile_run all, arena *ws)
{
    all.period = KEY_BLOCK;
    all.walk = walk;
    tile_run_all(&all, ws);
}

/* Scores with all keys are kept: a tile is no larger than it must be. */
void interval_finish(const attn_problem *p, arena *ws, tile_pass pass, visible_fn *visible, tile_finish_fn *finish,
                     size_t extra_bytes)
{
    run((tile_run){.p = p,
                   .pass = pass,
                   .visible = visible,
                   .tokens = tile_lane_tokens(p),
                   .finish = finish,
                   .extra_bytes = extra_bytes},
        ws);
}

void interval_forward(const attn_problem *p, arena *ws, visible_fn *visible)
{
    run((tile_run){.p = p, .pass = TILE_FORWARD, .visible = visible, .tokens = tile_tokens(p)}, ws);
}

/* Sums over keys are made tile by tile, so tiles do not depend on the number of threads. */
void interval_backward(const attn_problem *p, arena *ws, visible_fn *visible)
{
    const int64_t tokens = max_i64(1, MOST_ROWS / config_group(p->cfg));
    run((tile_run){.p = p, .pass = TILE_BACKWARD, .visible = visible, .tokens = tokens}, ws);
}
