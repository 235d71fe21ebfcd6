/* The host's side of attn_bwd_sm90.cu: which problems it takes, how their work is divided, the workspace. */
#include "ops/attn_tile/attn_bwd_sm90.h"
#include "cuda/device.h"
#include "ops/attn_tile/attn_simt_args.h"

#include <cuda_runtime_api.h>

enum {
    SMS = 132, /* of an H100: work is divided for so many, on every GPU alike, for sums to be the same */
    SHORTEST_PIECE = 64,
    LONGEST_PIECE = 512 /* row tiles */
};

static const int64_t most_tokens = INT64_C(1) << 30; /* positions and tiles in int32 */

static map_rows rows_of_queries(const attn_problem *p, int32_t d)
{
    return (map_rows){p->seqs.n, p->seqs.max_q, p->seqs.total_q, p->cfg->n_heads_q, d};
}

static map_rows rows_of_keys(const attn_problem *p, int32_t d)
{
    const bool cmp = p->branch == NSA_CMP;
    return (map_rows){p->seqs.n, cmp ? nsa_n_cmp(p->cfg, p->seqs.max_k) : p->seqs.max_k,
                      cmp ? p->seqs.total_k / p->cfg->cmp_stride : p->seqs.total_k, p->cfg->n_heads_kv, d};
}

static bool has_kernel(int32_t d_qk, int32_t d_v)
{
    return (d_qk == d_v && (d_qk == 64 || d_qk == 128 || d_qk == 256)) || (d_qk == 192 && d_v == 128);
}

static bool supports(const attn_problem *p)
{
    const nsa_config *c = p->cfg;
    const map_rows q = rows_of_queries(p, c->d_qk), o = rows_of_queries(p, c->d_v), k = rows_of_keys(p, c->d_qk),
                   v = rows_of_keys(p, c->d_v);
    return ctx_is_sm90(p->ctx) && p->branch != NSA_SLC && has_kernel(c->d_qk, c->d_v) &&
           p->seqs.total_q <= most_tokens && p->seqs.total_k <= most_tokens && tensor_map_supports(&p->q, &q) &&
           tensor_map_supports(&p->o, &o) && tensor_map_supports(&p->d_o, &o) &&
           tensor_map_supports(&p->k.tensor, &k) && tensor_map_supports(&p->v.tensor, &v);
}

/* Heads of a row tile: as many of the group as leave no more than an eighth of its rows empty. */
static int32_t heads_of_tile(int32_t group)
{
    for (int32_t n = group < BWD_ROWS ? group : BWD_ROWS; n > 1; n--)
        if (group % n == 0 && BWD_ROWS / n * n >= BWD_ROWS / 8 * 7)
            return n;
    return 1;
}

static int64_t div_up(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

/* Walks that are at a row tile at the same time find it in L2, and blocks begin many at a time: all begin at a row tile
 * of the same number modulo a period. A window's walks have about its length, which is the period. Other keys are seen
 * up to the last token: their walks are cut into pieces, a period long, for all SMs to have some. */
static void divide(attn_bwd_sm90 *x, const attn_problem *p)
{
    /* max_seqlen_q and max_seqlen_k may say anything above the longest. */
    const int64_t max_q = min_i64(p->seqs.max_q, p->seqs.total_q), max_k = min_i64(p->seqs.max_k, p->seqs.total_k);
    const int64_t n_heads = p->cfg->n_heads_kv;
    const int64_t window = p->branch == NSA_WIN ? min_i64(p->cfg->win_size, max_k) : max_k;
    const int64_t longest = max_i64(1, div_up(max_q, x->tokens));
    if (window > max_k / 2) {
        const int64_t work = x->q_tiles * n_heads * (rows_of_keys(p, 1).max / x->keys + 1) / 2;
        const int64_t piece = max_i64(SHORTEST_PIECE, min_i64(work / 2 / SMS, LONGEST_PIECE));
        x->chunk = (int32_t)div_up(longest, div_up(longest, piece));
        x->period = x->chunk;
    } else {
        x->chunk = (int32_t)longest;
        x->period = (int32_t)min_i64(longest, (window + x->keys + x->tokens - 3) / x->tokens + 1);
    }
    x->n_chunks = (int32_t)div_up(longest, x->chunk);
}

static attn_bwd_sm90 take(const attn_problem *p, arena *ws)
{
    const nsa_config *c = p->cfg;
    const map_rows keys = rows_of_keys(p, c->d_qk), queries = rows_of_queries(p, c->d_qk);
    attn_bwd_sm90 x = {
        .a = attn_simt_of(p), .keys = c->d_qk == 256 ? 64 : 128, .heads = heads_of_tile(config_group(c))};
    x.tokens = BWD_ROWS / x.heads;
    x.parts = config_group(c) / x.heads;
    x.q_tiles = (int32_t)n_tiles(p->seqs.total_q, p->seqs.n, x.tokens);
    x.k_tiles = (int32_t)n_tiles(keys.total, p->seqs.n, x.keys);
    divide(&x, p);
    x.dq = p->dq;
    x.add_dq = p->add_dq;
    if (!tensor_map_supports_f32(&p->dq, &queries)) {
        float *dq = arena_take(ws, i64_mul(p->seqs.total_q, c->n_heads_q), (size_t)c->d_qk * sizeof(float));
        x.dq = nsa_packed(dq, NSA_F32, c->n_heads_q, c->d_qk);
        x.add_dq = false;
    }
    const int64_t n_rows = i64_mul(x.q_tiles, (int64_t)c->n_heads_kv * x.parts);
    x.stats = arena_take(ws, n_rows, sizeof *x.stats);
    const int64_t n_walks = i64_mul(x.k_tiles, c->n_heads_kv), n_words = n_rows + n_walks + 2;
    x.sums = arena_take(ws, n_walks, (size_t)x.keys * (size_t)(c->d_qk + c->d_v) * sizeof(float));
    x.turn = arena_take(ws, n_words, sizeof *x.turn);
    x.cleared = (size_t)n_words * sizeof *x.turn;
    if (x.turn != NULL) {
        x.k_turn = x.turn + n_rows;
        x.ticket = x.k_turn + n_walks;
        x.unsound = x.ticket + 1;
    }
    return x;
}

static int make_maps(attn_bwd_maps *m, const attn_problem *p, const attn_bwd_sm90 *x)
{
    const map_rows q = rows_of_queries(p, p->cfg->d_qk), o = rows_of_queries(p, p->cfg->d_v),
                   k = rows_of_keys(p, p->cfg->d_qk), v = rows_of_keys(p, p->cfg->d_v);
    int error = tensor_map(&m->q, &p->q, &q, x->heads, x->tokens);
    if (error == cudaSuccess)
        error = tensor_map(&m->d_o, &p->d_o, &o, x->heads, x->tokens);
    if (error == cudaSuccess)
        error = tensor_map(&m->k, &p->k.tensor, &k, 1, x->keys);
    if (error == cudaSuccess)
        error = tensor_map(&m->v, &p->v.tensor, &v, 1, x->keys);
    if (error == cudaSuccess)
        error = tensor_map(&m->dq, &x->dq, &q, x->heads, x->tokens);
    if (error == cudaSuccess)
        error = tensor_map(&m->dq_token, &x->dq, &q, x->heads, 1);
    return error;
}

static int launch_walks(const attn_bwd_sm90 *x, const attn_bwd_maps *maps, nsa_stream stream)
{
    switch (x->a.cfg.c.d_qk) {
    case 192: return launch_attn_bwd_192_walks(x, maps, stream);
    case 256: return launch_attn_bwd_256_walks(x, maps, stream);
    default: return launch_attn_bwd_walks(x, maps, stream);
    }
}

void attn_sm90_backward(const void *problem, arena *ws)
{
    const attn_problem *p = problem;
    if (!supports(p)) {
        attn_simt_backward(problem, ws);
        return;
    }
    const attn_bwd_sm90 x = take(p, ws);
    if (!arena_launches(ws))
        return;
    attn_bwd_maps maps;
    int error = make_maps(&maps, p, &x);
    if (error == cudaSuccess)
        error = launch_attn_bwd_rows(&x, ws->stream);
    if (error == cudaSuccess)
        error = launch_walks(&x, &maps, ws->stream);
    if (error == cudaSuccess)
        error = launch_attn_bwd_results(&x, ws->stream);
    cuda_launched(ws, "backward of attention", error);
}
