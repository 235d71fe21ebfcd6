#include "ops/slc_attn/slc_attn.h"
#include "ops/attn_tile/attn_ref.h"
#include "ops/attn_tile/attn_tile.h"

/*
 * Forward and dq walk, tile by tile of tokens, the union of the tokens' blocks and gather for each block the rows of
 * the tokens that selected it: a block is read once per tile, whatever the group. dk and dv need the same lists for
 * whole sequences, and so does a key block gather all its tokens.
 */

/* Tokens of a tile: several times what is worked on together, since few of them share a block. */
enum { GATHER = 4 };

static int64_t tile_tokens(const attn_problem *p)
{
    return GATHER * tile_lane_tokens(p);
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

/* ---- Forward and dq ---------------------------------------------------------------------------------------------- */

static int64_t most_blocks(const attn_problem *p)
{
    int64_t most = 0;
    for (int32_t s = 0; s < p->seqs.n; s++)
        most = max_i64(most, n_slc_blocks(p->cfg, seq_at(&p->seqs, s).t_k));
    return most;
}

static block_lists carve_lists(const attn_problem *p, arena *a)
{
    const int64_t n = most_blocks(p);
    block_lists lists;
    lists.begin = arena_take(a, n, sizeof *lists.begin);
    lists.end = arena_take(a, n, sizeof *lists.end);
    lists.list = arena_take(a, tile_tokens(p), (size_t)p->cfg->slc_topk * sizeof *lists.list);
    return lists;
}

/* One block and the tokens that selected it, as many as there are lanes at a time. */
static void attend_block(attn_tile *t, int64_t block, const int32_t *tokens, int64_t n)
{
    const int64_t together = tile_lane_tokens(t->p), first_key = block * t->p->cfg->slc_block;
    for (int64_t i = 0; i < n; i += together) {
        tile_pick(t, tokens + i, min_i64(together, n - i));
        const int64_t seen = t->sees[t->picked[t->n_picked - 1]].hi;
        const int64_t end = min_i64(first_key + t->p->cfg->slc_block, seen);
        for (int64_t k0 = first_key; k0 < end; k0 += KEY_BLOCK)
            tile_attend(t, k0, min_i64(KEY_BLOCK, end - k0));
        tile_unpick(t);
    }
}

static void attend_unit(attn_tile *t, int64_t unit, const void *shared, void *extra)
{
    (void)shared;
    const attn_problem *p = t->p;
    const int64_t tokens = tile_tokens(p), tiles = n_tiles(p->seqs.total_q, p->seqs.n, tokens);
    int32_t s = 0;
    int64_t first = 0;
    if (!tile_at(p->seqs.cu_q, p->seqs.n, tokens, tiles - 1 - unit / p->cfg->n_heads_kv, &s, &first))
        return;
    tile_enter(t, s, (int32_t)(unit % p->cfg->n_heads_kv));
    const int64_t n = min_i64(tokens, t->seq.t_q - first);
    tile_load(t, NULL, first, n);
    arena own = {extra, 0, 0};
    const block_lists lists = carve_lists(p, &own);
    list_tokens(p, s, t->head, first, n, lists);
    for (int64_t j = 0; j * p->cfg->slc_block < t->sees[n - 1].hi; j++)
        attend_block(t, j, lists.list + lists.begin[j], lists.end[j] - lists.begin[j]);
    tile_store(t);
}

static tile_run attend_run(const attn_problem *p, tile_pass pass)
{
    arena extra = {NULL, 0, 0};
    carve_lists(p, &extra);
    return (tile_run){.p = p,
                      .pass = pass,
                      .visible = visible,
                      .max_tokens = tile_tokens(p),
                      .units = n_tiles(p->seqs.total_q, p->seqs.n, tile_tokens(p)) * p->cfg->n_heads_kv,
                      .unit = attend_unit,
                      .extra_bytes = extra.peak};
}

static void forward(const void *problem, arena *ws)
{
    const tile_run run = attend_run(problem, TILE_FORWARD);
    tile_run_units(&run, ws);
}

/* ---- dk and dv --------------------------------------------------------------------------------------------------- */

/* The lists of all sequences: those of a kv head one after the other, a sequence's blocks at the numbers that tile_at
 * gives them, its tokens at cu_q[s] * slc_topk. */
typedef struct all_lists {
    int64_t n_blocks; /* numbers of blocks */
    block_lists lists;
} all_lists;

static block_lists lists_of(const attn_problem *p, const all_lists *all, int32_t s, int32_t head)
{
    const int64_t blocks = head * all->n_blocks + p->seqs.cu_k[s] / p->cfg->slc_block + s;
    const int64_t tokens = (head * p->seqs.total_q + p->seqs.cu_q[s]) * p->cfg->slc_topk;
    return (block_lists){all->lists.begin + blocks, all->lists.end + blocks, all->lists.list + tokens};
}

static void list_all(const attn_problem *p, const all_lists *all)
{
#pragma omp parallel for num_threads(p->ctx->n_threads) schedule(dynamic)
    for (int64_t unit = 0; unit < (int64_t)p->seqs.n * p->cfg->n_heads_kv; unit++) {
        const int32_t s = (int32_t)(unit / p->cfg->n_heads_kv), head = (int32_t)(unit % p->cfg->n_heads_kv);
        list_tokens(p, s, head, 0, p->seqs.cu_q[s + 1] - p->seqs.cu_q[s], lists_of(p, all, s, head));
    }
}

static void keys_unit(attn_tile *t, int64_t unit, const void *shared, void *extra)
{
    (void)extra;
    const attn_problem *p = t->p;
    const int64_t slc_block = p->cfg->slc_block, together = tile_lane_tokens(p);
    int32_t s = 0;
    int64_t first = 0;
    if (!tile_at(p->seqs.cu_k, p->seqs.n, slc_block, unit / p->cfg->n_heads_kv, &s, &first))
        return;
    tile_enter(t, s, (int32_t)(unit % p->cfg->n_heads_kv));
    const block_lists lists = lists_of(p, shared, s, t->head);
    const int64_t block = first / slc_block, end = min_i64(first + slc_block, t->seq.t_k);
    for (int64_t k0 = first; k0 < end; k0 += KEY_BLOCK) {
        const int64_t n = min_i64(KEY_BLOCK, end - k0);
        tile_load_keys(t, k0, n);
        for (int64_t i = lists.begin[block]; i < lists.end[block]; i += together) {
            tile_load(t, lists.list + i, 0, min_i64(together, lists.end[block] - i));
            tile_attend_keys(t, k0, n);
        }
        tile_store_keys(t, k0, n);
    }
}

static void backward(const void *problem, arena *ws)
{
    const attn_problem *p = problem;
    const int64_t total_k = p->seqs.n == 0 ? 0 : p->seqs.cu_k[p->seqs.n], heads = p->cfg->n_heads_kv;
    all_lists all = {.n_blocks = n_tiles(total_k, p->seqs.n, p->cfg->slc_block)};
    float *all_delta = arena_take(ws, p->seqs.total_q, (size_t)p->cfg->n_heads_q * sizeof(float));
    const size_t mark = ws->used;
    tile_run run = attend_run(p, TILE_DQ);
    run.all_delta = all_delta;
    tile_run_units(&run, ws);

    arena_release(ws, mark);
    all.lists.begin = arena_take(ws, all.n_blocks, (size_t)heads * sizeof *all.lists.begin);
    all.lists.end = arena_take(ws, all.n_blocks, (size_t)heads * sizeof *all.lists.end);
    all.lists.list = arena_take(ws, i64_mul(p->seqs.total_q, p->cfg->slc_topk), (size_t)heads * sizeof *all.lists.list);
    if (!arena_counts(ws))
        list_all(p, &all);
    run = (tile_run){.p = p,
                     .pass = TILE_DKV,
                     .visible = visible,
                     .max_tokens = tile_lane_tokens(p),
                     .all_delta = all_delta,
                     .units = all.n_blocks * heads,
                     .unit = keys_unit,
                     .shared = &all};
    tile_run_units(&run, ws);
}

const attn_impl slc_attn_impls[] = {
    {"tile", tile_supports, forward, backward},
    {"ref", attn_ref_supports, slc_attn_ref_forward, slc_attn_ref_backward},
    {NULL, NULL, NULL, NULL},
};
