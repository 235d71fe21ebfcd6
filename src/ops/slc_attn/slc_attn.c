#include "ops/slc_attn/slc_attn.h"
#include "ops/attn_tile/attn_ref.h"
#include "ops/attn_tile/attn_tile.h"

/*
 * A tile of tokens walks the union of their blocks and gathers for each the rows of the tokens that selected it: a
 * block is read once per tile, whatever the group.
 */

/* Rows of a tile: so many tokens that several of them share a block, even where they choose at random. */
enum { FORWARD_ROWS = 2048, BACKWARD_ROWS = 4096 };

static int64_t tile_tokens(const attn_problem *p, tile_pass pass)
{
    return max_i64(1, (pass == TILE_FORWARD ? FORWARD_ROWS : BACKWARD_ROWS) / config_group(p->cfg));
}

static span visible(const nsa_config *cfg, int64_t t)
{
    (void)cfg;
    return (span){0, max_i64(0, t + 1)};
}

/* ---- From tokens and their blocks to blocks and their tokens ----------------------------------------------------- */

/* Block j was selected by tokens list[begin[j]] .. list[end[j] - 1], ascending. */
typedef struct block_lists {
    int64_t *begin, *end;
    int32_t *list;
} block_lists;

static const int32_t *selection(const attn_problem *p, int32_t s, int32_t head, int64_t q0, int64_t row)
{
    return tensor_at(&p->slc_idx, s, q0, row, head);
}

/* A counting sort of the selections of n tokens, from `first` on; tokens are numbered from 0. Entries that are no
 * block, or one past the token, are skipped; a second entry of a token for a block too. */
static void list_tokens(const attn_problem *p, int32_t s, int32_t head, int64_t first, int64_t n, block_lists out)
{
    const seq q = seq_at(&p->seqs, s);
    const int64_t n_blocks = n_slc_blocks(p->cfg, q.t_k), offset = q.t_k - q.t_q;
    memset(out.end, 0, (size_t)n_blocks * sizeof *out.end);
    for (int64_t i = 0; i < n; i++) {
        const int32_t *blocks = selection(p, s, head, q.q0, first + i);
        const int64_t t = first + i + offset, last = t < 0 ? -1 : t / p->cfg->slc_block;
        for (int64_t e = 0; e < p->cfg->slc_topk; e++)
            if (blocks[e] >= 0 && blocks[e] <= last)
                out.end[blocks[e]]++;
    }
    int64_t sum = 0;
    for (int64_t j = 0; j < n_blocks; j++) {
        out.begin[j] = sum;
        sum += out.end[j];
        out.end[j] = out.begin[j];
    }
    for (int64_t i = 0; i < n; i++) {
        const int32_t *blocks = selection(p, s, head, q.q0, first + i);
        const int64_t t = first + i + offset, last = t < 0 ? -1 : t / p->cfg->slc_block;
        for (int64_t e = 0; e < p->cfg->slc_topk; e++) {
            if (blocks[e] < 0 || blocks[e] > last)
                continue;
            int64_t *end = &out.end[blocks[e]];
            if (*end == out.begin[blocks[e]] || out.list[*end - 1] != (int32_t)i)
                out.list[(*end)++] = (int32_t)i;
        }
    }
}

static block_lists carve_lists(const attn_problem *p, int64_t tokens, arena *a)
{
    int64_t n = 0;
    for (int32_t s = 0; s < p->seqs.n; s++)
        n = max_i64(n, n_slc_blocks(p->cfg, seq_at(&p->seqs, s).t_k));
    block_lists lists;
    lists.begin = arena_take(a, n, sizeof *lists.begin);
    lists.end = arena_take(a, n, sizeof *lists.end);
    lists.list = arena_take(a, tokens, (size_t)p->cfg->slc_topk * sizeof *lists.list);
    return lists;
}

/* ---- The walk ---------------------------------------------------------------------------------------------------- */

/* One block of keys and the tokens that selected it, as many as work together at a time. */
static void attend_block(attn_tile *t, int64_t block, int64_t next, const int32_t *tokens, int64_t n)
{
    const int64_t together = tile_lane_tokens(t->p);
    for (int64_t i = 0; i < n; i += together) {
        tile_pick(t, tokens + i, 0, min_i64(together, n - i));
        tile_attend(t, block, i == 0 ? next : -1);
    }
}

/* The first block from b on that some token selected, or the number of blocks. */
static int64_t next_selected(const block_lists *lists, int64_t per_slc, int64_t b, int64_t n_blocks)
{
    while (b < n_blocks && lists->begin[b / per_slc] == lists->end[b / per_slc])
        b++;
    return b;
}

static void walk(attn_tile *t, void *extra)
{
    const attn_problem *p = t->p;
    arena own = {.base = extra};
    const block_lists lists = carve_lists(p, t->run->tokens, &own);
    list_tokens(p, t->s, t->head, t->first, t->n_tokens, lists);
    const int64_t end = t->sees[t->n_tokens - 1].hi, per_slc = t->keys->per_period;
    const int64_t n_blocks = end == 0 ? 0 : block_of_key(t->keys, end - 1) + 1;
    int64_t next;
    for (int64_t b = next_selected(&lists, per_slc, 0, n_blocks); b < n_blocks; b = next) {
        const int64_t begin = lists.begin[b / per_slc], n = lists.end[b / per_slc] - begin;
        next = next_selected(&lists, per_slc, b + 1, n_blocks);
        if (t->run->pass == TILE_BACKWARD)
            tile_wait_turn(t, b);
        attend_block(t, b, next, lists.list + begin, n);
        if (t->run->pass == TILE_BACKWARD)
            tile_pass_turn(t, b);
    }
}

static void run(const attn_problem *p, tile_pass pass, arena *ws)
{
    const int64_t tokens = tile_tokens(p, pass);
    arena extra = {.base = NULL};
    carve_lists(p, tokens, &extra);
    const tile_run all = {.p = p,
                          .pass = pass,
                          .visible = visible,
                          .period = p->cfg->slc_block,
                          .tokens = tokens,
                          .walk = walk,
                          .extra_bytes = extra.peak,
                          .token_blocks = ((int64_t)p->cfg->slc_block + KEY_BLOCK - 1) / KEY_BLOCK * p->cfg->slc_topk};
    tile_run_all(&all, ws);
}

static void forward(const void *problem, arena *ws)
{
    run(problem, TILE_FORWARD, ws);
}

static void backward(const void *problem, arena *ws)
{
    run(problem, TILE_BACKWARD, ws);
}

const attn_impl slc_attn_impls[] = {
    {"tile", tile_supports, forward, backward},
#ifdef NSA_CUDA
    {"sm90-blocks", slc_attn_blocks_sm90_supports, slc_attn_fwd_blocks_sm90, slc_attn_bwd_sm90},
    {"sm90", slc_attn_sm90_supports, slc_attn_fwd_sm90, slc_attn_bwd_sm90},
    {"sm90-forward", slc_attn_fwd_sm90_supports, slc_attn_fwd_sm90, attn_simt_backward},
    {"simt", attn_simt_supports, attn_simt_forward, attn_simt_backward},
#endif
    {"ref", attn_ref_supports, slc_attn_ref_forward, slc_attn_ref_backward},
    {NULL, NULL, NULL, NULL},
};
