/* The host's side of the backward kernels of slc_attn for Hopper: what they take, their workspace, their launches. */
#include "ops/slc_attn/slc_attn_bwd_sm90.h"
#include "cuda/device.h"
#include "ops/attn_tile/attn_simt_args.h"
#include "ops/slc_attn/slc_attn.h"
#include "ops/slc_attn/slc_attn_sm90_args.h"

#include <cuda_runtime_api.h>

enum {
    MIN_ITEM = 256,     /* tokens, where there are so many: less would not pay for its keys */
    MAX_ITEM = 1 << 14, /* times the group fits an int32_t */
    PARTS = 1024,       /* that lists are cut into, all together, as long as items are not larger */
    MIN_ROUND = 1024    /* tokens */
};
static const int64_t ROUND_BYTES = INT64_C(1) << 30; /* of dS; small rounds cost dk and dv more often their sums */

static map_rows query_rows(const attn_problem *p, int32_t d)
{
    return (map_rows){p->seqs.n, p->seqs.max_q, p->seqs.total_q, p->cfg->n_heads_q, d};
}

static map_rows key_rows(const attn_problem *p, int32_t d)
{
    return (map_rows){p->seqs.n, p->seqs.max_k, p->seqs.total_k, p->cfg->n_heads_kv, d};
}

/* The largest divisor of the group that fits a stage; of whole units if the group is. */
static int32_t box_heads_of(const nsa_config *cfg)
{
    const int32_t group = config_group(cfg), step = group % HEADS == 0 ? HEADS : 1;
    const int32_t whole = slc_stage_columns(cfg) / step * step;
    int32_t heads = group < whole ? group : whole;
    while (group % heads != 0)
        heads -= step;
    return heads;
}

static slc_lists take_lists(const attn_problem *p, int64_t round_tokens, arena *ws, int64_t *n_parts)
{
    const int64_t room = slc_lists_room(p, round_tokens);
    const int64_t item_tokens = min_i64(MAX_ITEM, max_i64(MIN_ITEM, room / PARTS));
    *n_parts = 2 * (room / item_tokens); /* the items of a list with several are fewer than twice its full ones */
    return slc_lists_take(p, round_tokens, item_tokens, ws);
}

static int32_t n_tiles_of_block(const nsa_config *cfg)
{
    return (cfg->slc_block + KEYS - 1) / KEYS;
}

static int32_t units_of(const nsa_config *cfg)
{
    return (config_group(cfg) + HEADS - 1) / HEADS;
}

static int32_t unit_heads_of(const nsa_config *cfg)
{
    int32_t heads = 1;
    while (heads < config_group(cfg) && heads < HEADS)
        heads *= 2;
    return heads;
}

static int64_t ds_bytes(const nsa_config *cfg)
{
    return (int64_t)units_of(cfg) * n_tiles_of_block(cfg) * unit_heads_of(cfg) * KEYS * (int64_t)sizeof(uint16_t);
}

/* Tokens of a round: as many as dS has room for. */
static int64_t round_tokens_of(const attn_problem *p)
{
    const int64_t per_token = i64_mul(i64_mul(slc_most_blocks(p), p->cfg->n_heads_kv), ds_bytes(p->cfg));
    const int64_t tokens = ROUND_BYTES / max_i64(1, per_token) / MIN_ROUND * MIN_ROUND;
    return max_i64(1, min_i64(p->seqs.total_q, max_i64(MIN_ROUND, tokens)));
}

/* Grids have room for 2^31 blocks of threads. */
static bool fits_grids(const attn_problem *p)
{
    arena none = {.base = NULL};
    int64_t n_parts = 0;
    const int64_t tokens = round_tokens_of(p);
    const slc_lists x = take_lists(p, tokens, &none, &n_parts);
    const int64_t tokens_of_dq = i64_mul(i64_add(i64_mul(tokens, units_of(p->cfg)), p->seqs.n + 3), p->cfg->n_heads_kv);
    return slc_lists_fit(&x, p->cfg) && i64_mul(x.max_items, n_tiles_of_block(p->cfg)) <= INT32_MAX &&
           tokens_of_dq <= INT32_MAX;
}

/* Whether a stage of dk and dv has whole tokens, or tokens whole units. */
static bool fits_stages(const nsa_config *cfg)
{
    return config_group(cfg) <= slc_stage_columns(cfg) || config_group(cfg) % HEADS == 0;
}

bool slc_attn_bwd_sm90_supports(const attn_problem *p)
{
    const int32_t d_qk = p->cfg->d_qk, d_v = p->cfg->d_v;
    const map_rows q = query_rows(p, d_qk), d_o = query_rows(p, d_v), k = key_rows(p, d_qk), v = key_rows(p, d_v);
    const bool shape = (d_qk == d_v && (d_v == 64 || d_v == 128)) || (d_qk == 192 && d_v == 128);
    return ctx_is_sm90(p->ctx) && shape && p->cfg->slc_block % 16 == 0 && fits_stages(p->cfg) && fits_grids(p) &&
           tensor_map_supports(&p->q, &q) && tensor_map_supports(&p->o, &d_o) && tensor_map_supports(&p->d_o, &d_o) &&
           tensor_map_supports(&p->k.tensor, &k) && tensor_map_supports(&p->v.tensor, &v);
}

static nsa_tensor take_sums(const attn_problem *p, int32_t d, arena *ws)
{
    const int32_t n_heads = p->cfg->n_heads_kv;
    return nsa_packed(arena_take(ws, i64_mul(p->seqs.total_k, n_heads), (size_t)d * sizeof(float)), NSA_F32, n_heads,
                      d);
}

static slc_backward take_workspace(const attn_problem *p, arena *ws)
{
    const nsa_config *cfg = p->cfg;
    slc_backward x = {.attn = attn_simt_of(p)};
    int64_t n_parts = 0;
    x.round_tokens = round_tokens_of(p);
    x.n_rounds = (int32_t)max_i64(1, (p->seqs.total_q + x.round_tokens - 1) / x.round_tokens);
    x.values = arena_take(ws, i64_mul(p->seqs.total_q, cfg->n_heads_q), sizeof *x.values);
    x.lists = take_lists(p, x.round_tokens, ws, &n_parts);
    x.box_heads = box_heads_of(cfg);
    x.n_tiles = n_tiles_of_block(cfg);
    x.units = units_of(cfg);
    x.unit_heads = unit_heads_of(cfg);
    x.ds = arena_take(ws, x.lists.room, (size_t)ds_bytes(cfg));
    x.parts = arena_take(ws, i64_mul(n_parts, x.n_tiles), KEYS * (size_t)(cfg->d_qk + cfg->d_v) * sizeof *x.parts);
    if (x.n_rounds > 1) {
        x.dk = take_sums(p, cfg->d_qk, ws);
        x.dv = take_sums(p, cfg->d_v, ws);
    }
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

static void run_round(const slc_backward *x, const slc_maps *maps, arena *ws)
{
    /* dk and dv of blocks without tokens are 0: a single round says so. */
    const slc_listing listing = {x->attn.cfg.c, x->attn.seqs, x->attn.slc_idx, x->round, x->n_rounds == 1, x->lists};
    if (arena_launches(ws))
        cuda_launched(ws, "lists of slc_attn", launch_slc_lists(&listing, ws->stream));
    if (arena_launches(ws))
        cuda_launched(ws, "dk and dv of slc_attn", launch_slc_dkdv(x, maps, ws->stream));
    if (arena_launches(ws))
        cuda_launched(ws, "dq of slc_attn", launch_slc_dq(x, maps, ws->stream));
}

void slc_attn_bwd_sm90(const void *problem, arena *ws)
{
    const attn_problem *p = problem;
    slc_backward x = take_workspace(p, ws);
    slc_maps maps;
    if (arena_launches(ws))
        cuda_launched(ws, "tensor maps of slc_attn", make_maps(p, x.box_heads, &maps));
    if (arena_launches(ws))
        cuda_launched(ws, "delta of slc_attn", launch_slc_values(&x, ws->stream));
    for (int32_t i = 0; i < x.n_rounds && arena_launches(ws); i++) {
        x.round.first = i * x.round_tokens;
        x.round.n = min_i64(x.round_tokens, p->seqs.total_q - x.round.first);
        run_round(&x, &maps, ws);
    }
    if (arena_launches(ws) && x.n_rounds > 1)
        cuda_launched(ws, "sums of slc_attn", launch_slc_sums(&x, ws->stream));
}
