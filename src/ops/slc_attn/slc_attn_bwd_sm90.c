/* The host's side of the backward kernels of slc_attn for Hopper: what they take, their workspace, their launches. */
#include "ops/slc_attn/slc_attn_bwd_sm90.h"
#include "cuda/device.h"
#include "ops/attn_tile/attn_simt_args.h"
#include "ops/slc_attn/slc_attn.h"

#include <cuda_runtime_api.h>

enum {
    MIN_ITEM = 256,     /* tokens, where there are so many: less would not pay for its keys */
    MAX_ITEM = 1 << 14, /* times the group fits an int32_t */
    PARTS = 1024        /* that lists are cut into, all together, as long as items are not larger */
};

static map_rows query_rows(const attn_problem *p, int32_t d)
{
    return (map_rows){p->seqs.n, p->seqs.max_q, p->seqs.total_q, p->cfg->n_heads_q, d};
}

static map_rows key_rows(const attn_problem *p, int32_t d)
{
    return (map_rows){p->seqs.n, p->seqs.max_k, p->seqs.total_k, p->cfg->n_heads_kv, d};
}

static int64_t n_lists(const attn_problem *p)
{
    return i64_mul(p->seqs.total_k / p->cfg->slc_block + p->seqs.n, p->cfg->n_heads_kv);
}

/* The largest divisor of the group that fits a stage. */
static int32_t box_heads_of(const nsa_config *cfg)
{
    const int32_t group = config_group(cfg);
    int32_t heads = (int32_t)min_i64(group, slc_stage_columns(cfg));
    while (group % heads != 0)
        heads--;
    return heads;
}

static slc_lists take_lists(const attn_problem *p, arena *ws, int64_t *n_parts)
{
    const nsa_config *cfg = p->cfg;
    const int64_t entries = min_i64(cfg->slc_topk, n_slc_blocks(cfg, p->seqs.max_k));
    slc_lists x = {.n_blocks = p->seqs.total_k / cfg->slc_block + p->seqs.n, .n_lists = n_lists(p)};
    x.room = i64_mul(i64_mul(p->seqs.total_q, entries), cfg->n_heads_kv);
    x.item_tokens = (int32_t)min_i64(MAX_ITEM, max_i64(MIN_ITEM, x.room / PARTS));
    x.max_items = i64_add(x.n_lists, x.room / x.item_tokens);
    *n_parts = 2 * (x.room / x.item_tokens); /* the items of a list with several are fewer than twice its full ones */
    x.tokens = arena_take(ws, x.room, sizeof *x.tokens);
    x.begin = arena_take(ws, x.n_lists, sizeof *x.begin);
    x.count = arena_take(ws, x.n_lists, sizeof *x.count);
    x.segments = arena_take(ws, x.n_lists, SEGMENTS * sizeof *x.segments);
    x.parts_begin = arena_take(ws, x.n_lists, sizeof *x.parts_begin);
    x.n_items = arena_take(ws, 1, sizeof *x.n_items);
    x.items = arena_take(ws, x.max_items, sizeof *x.items);
    return x;
}

static int32_t n_tiles_of_block(const nsa_config *cfg)
{
    return (cfg->slc_block + KEYS - 1) / KEYS;
}

/* A grid has room for 2^31 blocks of threads. */
static bool fits_grids(const attn_problem *p)
{
    arena none = {.base = NULL};
    int64_t n_parts = 0;
    const slc_lists x = take_lists(p, &none, &n_parts);
    return i64_mul(x.max_items, n_tiles_of_block(p->cfg)) <= INT32_MAX && i64_mul(x.n_lists, SEGMENTS) <= INT32_MAX;
}

bool slc_attn_bwd_sm90_supports(const attn_problem *p)
{
    const int32_t d_qk = p->cfg->d_qk, d_v = p->cfg->d_v;
    const map_rows q = query_rows(p, d_qk), d_o = query_rows(p, d_v), k = key_rows(p, d_qk), v = key_rows(p, d_v);
    const bool shape = (d_qk == d_v && (d_v == 64 || d_v == 128)) || (d_qk == 192 && d_v == 128);
    return ctx_is_sm90(p->ctx) && shape && p->cfg->slc_block % 16 == 0 && fits_grids(p) &&
           tensor_map_supports(&p->q, &q) && tensor_map_supports(&p->o, &d_o) && tensor_map_supports(&p->d_o, &d_o) &&
           tensor_map_supports(&p->k.tensor, &k) && tensor_map_supports(&p->v.tensor, &v);
}

static slc_backward take_workspace(const attn_problem *p, arena *ws)
{
    const nsa_config *cfg = p->cfg;
    slc_backward x = {.attn = attn_simt_of(p)};
    int64_t n_parts = 0;
    x.values = arena_take(ws, i64_mul(p->seqs.total_q, cfg->n_heads_q), sizeof *x.values);
    x.lists = take_lists(p, ws, &n_parts);
    x.box_heads = box_heads_of(cfg);
    x.n_tiles = n_tiles_of_block(cfg);
    x.parts = arena_take(ws, i64_mul(n_parts, x.n_tiles), KEYS * (size_t)(cfg->d_qk + cfg->d_v) * sizeof *x.parts);
    return x;
}

/* A cudaError_t. */
static int make_maps(const attn_problem *p, int32_t box_heads, slc_maps *maps)
{
    const int32_t d_qk = p->cfg->d_qk, d_v = p->cfg->d_v;
    const map_rows q = query_rows(p, d_qk), d_o = query_rows(p, d_v), k = key_rows(p, d_qk), v = key_rows(p, d_v);
    int error = tensor_map(&maps->q, &p->q, &q, box_heads, 1);
    if (error == cudaSuccess)
        error = tensor_map(&maps->d_o, &p->d_o, &d_o, box_heads, 1);
    if (error == cudaSuccess)
        error = tensor_map(&maps->k, &p->k.tensor, &k, 1, KEYS);
    if (error == cudaSuccess)
        error = tensor_map(&maps->v, &p->v.tensor, &v, 1, KEYS);
    return error;
}

void slc_attn_bwd_sm90(const void *problem, arena *ws)
{
    const attn_problem *p = problem;
    const slc_backward x = take_workspace(p, ws);
    slc_maps for_dq, for_dkdv;
    if (arena_launches(ws))
        cuda_launched(ws, "tensor maps of slc_attn", make_maps(p, DQ_HEADS, &for_dq));
    if (arena_launches(ws))
        cuda_launched(ws, "tensor maps of slc_attn", make_maps(p, x.box_heads, &for_dkdv));
    if (arena_launches(ws))
        cuda_launched(ws, "delta of slc_attn", launch_slc_values(&x, ws->stream));
    if (arena_launches(ws))
        cuda_launched(ws, "dq of slc_attn", launch_slc_dq(&x, &for_dq, ws->stream));
    if (arena_launches(ws))
        cuda_launched(ws, "lists of slc_attn", launch_slc_lists(&x, ws->stream));
    if (arena_launches(ws))
        cuda_launched(ws, "dk and dv of slc_attn", launch_slc_dkdv(&x, &for_dkdv, ws->stream));
}
