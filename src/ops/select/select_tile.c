/*
 * Selection by tiles: a unit of work is a few tokens of one (sequence, kv head), with the heads of its group as rows.
 *
 *     k_cmp -> panels [d][PANEL], once per call;  per tile:  q panel -> S -> p -> P += p  -> score -> slc_idx
 *
 * A row with no more candidates than slc_topk takes them all and needs no scores; a sequence of such rows no panels.
 */
#include "ops/select/select.h"

#include <omp.h>

enum {
    PANEL = 64,       /* compressed blocks in a panel */
    TILE_TOKENS = 32, /* most tokens of a tile */
    TILE_ROWS = 128   /* most (token, head) rows of a product */
};

typedef struct plan {
    const select_problem *p;
    int32_t group;
    int64_t d;
    int64_t tokens, heads;    /* of a tile, and how many heads of the group a product takes */
    int64_t per_slc, per_cmp; /* slc_block and cmp_block in strides */
    int64_t n_slc;            /* selection blocks of the longest sequence */
    int64_t sum_row;          /* floats in a row of P: per_cmp - 1 zeros, the compressed blocks, zeros */
    int32_t *cu_cmp;          /* [n_seqs + 1] compressed blocks that need panels, added up */
    float *panels;            /* [tile of cu_cmp][n_heads_kv][d][PANEL] */
    float *weight;            /* [per_slc + per_cmp - 1] strides that P's blocks share with a selection block */
    char *scratch;            /* of all threads */
    size_t scratch_bytes;     /* of one */
} plan;

typedef struct scratch {
    float *k;     /* [PANEL][padded d] */
    float *q;     /* [tokens * heads][d] */
    float *s;     /* [tokens * heads][PANEL] */
    float *sum;   /* P: [tokens][sum_row] */
    int32_t *key; /* [n_slc] the scores, as integers of the same order */
} scratch;

static scratch carve_scratch(arena *ws, const plan *pl)
{
    scratch t;
    t.k = arena_take(ws, PANEL * simd_pad(pl->d), sizeof *t.k);
    t.q = arena_take(ws, pl->tokens * pl->heads * pl->d, sizeof *t.q);
    t.s = arena_take(ws, pl->tokens * pl->heads * PANEL, sizeof *t.s);
    t.sum = arena_take(ws, pl->tokens * pl->sum_row, sizeof *t.sum);
    t.key = arena_take(ws, pl->n_slc, sizeof *t.key);
    return t;
}

/* Compressed blocks of a sequence that get a panel. */
static int64_t n_packed(const nsa_config *cfg, int64_t n_tokens)
{
    return n_slc_blocks(cfg, n_tokens) <= cfg->slc_topk ? 0 : n_cmp_visible(cfg, n_tokens - 1);
}

static plan make_plan(const select_problem *p, arena *ws)
{
    const nsa_config *cfg = p->cfg;
    int64_t longest = 0, total = 0;
    for (int32_t s = 0; s < p->seqs.n; s++) {
        const int64_t t_k = seq_at(&p->seqs, s).t_k;
        longest = max_i64(longest, t_k);
        total += n_packed(cfg, t_k);
    }
    plan pl = {.p = p,
               .group = config_group(cfg),
               .d = cfg->d_qk,
               .per_slc = cfg->slc_block / cfg->cmp_stride,
               .per_cmp = cfg->cmp_block / cfg->cmp_stride,
               .n_slc = n_slc_blocks(cfg, longest)};
    pl.heads = min_i64(pl.group, TILE_ROWS);
    pl.tokens = min_i64(TILE_TOKENS, TILE_ROWS / pl.heads);
    const int64_t n_cmp = (n_packed(cfg, longest) + PANEL - 1) / PANEL * PANEL;
    pl.sum_row = pl.per_cmp - 1 + max_i64(n_cmp, pl.n_slc * pl.per_slc);
    pl.cu_cmp = arena_take(ws, (int64_t)p->seqs.n + 1, sizeof *pl.cu_cmp);
    pl.panels = arena_take(ws, n_tiles(total, p->seqs.n, PANEL) * cfg->n_heads_kv * pl.d, PANEL * sizeof *pl.panels);
    pl.weight = arena_take(ws, pl.per_slc + pl.per_cmp - 1, sizeof *pl.weight);
    arena one = {NULL, 0, 0};
    carve_scratch(&one, &pl);
    pl.scratch_bytes = one.used;
    pl.scratch = arena_take(ws, p->ctx->n_threads, pl.scratch_bytes);
    return pl;
}

static void fill_plan(const plan *pl)
{
    const select_problem *p = pl->p;
    pl->cu_cmp[0] = 0;
    for (int32_t s = 0; s < p->seqs.n; s++)
        pl->cu_cmp[s + 1] = pl->cu_cmp[s] + (int32_t)n_packed(p->cfg, seq_at(&p->seqs, s).t_k);
    for (int64_t e = 0; e < pl->per_slc + pl->per_cmp - 1; e++)
        pl->weight[e] = (float)min_i64(min_i64(e + 1, pl->per_cmp), pl->per_slc + pl->per_cmp - 1 - e);
}

static float *panel_at(const plan *pl, int64_t tile, int64_t head)
{
    return pl->panels + (tile * pl->p->cfg->n_heads_kv + head) * pl->d * PANEL;
}

static void pack_panel(const plan *pl, const scratch *t, int64_t tile, int32_t head)
{
    int32_t s;
    int64_t first;
    if (!tile_at(pl->cu_cmp, pl->p->seqs.n, PANEL, tile, &s, &first))
        return;
    const simd_kernels *simd = pl->p->ctx->simd;
    const int64_t n = min_i64(PANEL, pl->cu_cmp[s + 1] - pl->cu_cmp[s] - first);
    const rows k = rows_of(&pl->p->k_cmp, s, head);
    for (int64_t i = 0; i < n; i++)
        simd->load_row(t->k + i * simd_pad(pl->d), rows_at(&k, first + i), k.dtype, pl->d);
    simd->transpose(panel_at(pl, tile, head), PANEL, t->k, simd_pad(pl->d), NULL, n, pl->d);
}

/* Adds to P the probabilities of heads g .. g + heads - 1 of the group, for tokens row .. row + n - 1. */
static void add_heads(const plan *pl, const scratch *t, int32_t s, const seq *q, int64_t row, int64_t n,
                      int32_t head_kv, int64_t g, int64_t heads)
{
    const select_problem *p = pl->p;
    const simd_kernels *simd = p->ctx->simd;
    const float scale = (float)config_scale(p->cfg);
    const int64_t t0 = row + q->t_k - q->t_q;
    for (int64_t i = 0; i < n * heads; i++) {
        const int64_t head = (int64_t)head_kv * pl->group + g + i % heads;
        simd->load_row(t->q + i * pl->d, tensor_at(&p->q, s, q->q0, row + i / heads, head), p->q.dtype, pl->d);
    }
    const int64_t n_visible = n_cmp_visible(p->cfg, t0 + n - 1);
    for (int64_t col = 0; col < n_visible; col += PANEL) {
        const float *panel = panel_at(pl, pl->cu_cmp[s] / PANEL + s + col / PANEL, head_kv);
        simd->matmul(t->s, PANEL, t->q, pl->d, 1, panel, PANEL, n * heads, min_i64(PANEL, n_visible - col), pl->d, 0);
        for (int64_t i = 0; i < n * heads; i++) {
            const int64_t visible = min_i64(PANEL, n_cmp_visible(p->cfg, t0 + i / heads) - col);
            if (visible <= 0)
                continue;
            const int64_t head = (int64_t)head_kv * pl->group + g + i % heads;
            float *prob = t->s + i * PANEL;
            float *sum = t->sum + i / heads * pl->sum_row + pl->per_cmp - 1 + col;
            simd->exp_row(prob, PANEL, 0, visible, scale,
                          *(const float *)tensor_at(&p->lse, s, q->q0, row + i / heads, head));
            for (int64_t c = 0; c < PANEL; c++)
                sum[c] += prob[c];
        }
    }
}

/* Equation 9 as a weighted sum over the compressed blocks that share tokens with block j. The scores are sums of
 * exponentials, never below +0, so that their bits order like the numbers; NaN goes below all. */
static int32_t score_key(const plan *pl, const float *sum, int64_t j)
{
    float score = 0.0F;
    for (int64_t e = 0; e < pl->per_slc + pl->per_cmp - 1; e++)
        score += pl->weight[e] * sum[pl->per_slc * j + e];
    return score >= 0.0F ? (int32_t)float_bits(score) : -1;
}

static int64_t count_from(const int32_t *key, int64_t n, int32_t least)
{
    int32_t count = 0;
    for (int64_t j = 0; j < n; j++)
        count += key[j] >= least;
    return count;
}

/* The largest key, or a bound below it, that at least k of the n reach: built bit by bit. k <= n. */
static int32_t kth_key(const int32_t *key, int64_t n, int64_t k)
{
    if (count_from(key, n, 0) < k)
        return -1;
    int32_t bound = 0;
    for (int32_t bit = 1 << 30; bit > 0; bit >>= 1) {
        const int64_t count = count_from(key, n, bound | bit);
        if (count >= k)
            bound |= bit;
        if (count == k)
            break;
    }
    return bound;
}

/* More than slc_topk candidates: the forced ones at both ends, and of those between the highest scores. */
static void pick(const nsa_config *cfg, const int32_t *key, int64_t cur, int32_t *out)
{
    const int64_t from = cfg->slc_n_init, to = cur + 1 - cfg->slc_n_local;
    const int64_t n_free = cfg->slc_topk - cfg->slc_n_init - cfg->slc_n_local;
    const int32_t bound = kth_key(key + from, to - from, n_free);
    int64_t ties = n_free;
    for (int64_t j = from; j < to; j++)
        ties -= key[j] > bound;
    for (int64_t j = 0; j <= cur; j++) {
        const bool tie = key[j] == bound && ties > 0;
        const bool forced = j < from || j >= to;
        if (forced || key[j] > bound || tie) {
            *out++ = (int32_t)j;
            ties -= !forced && key[j] == bound;
        }
    }
}

static void run_tile(const plan *pl, const scratch *t, int32_t s, int64_t row, int32_t head)
{
    const select_problem *p = pl->p;
    const nsa_config *cfg = p->cfg;
    const seq q = seq_at(&p->seqs, s);
    const int64_t n = min_i64(pl->tokens, q.t_q - row);
    const int64_t t0 = row + q.t_k - q.t_q;
    const int64_t early = (int64_t)cfg->slc_topk * cfg->slc_block; /* positions before it see no more than slc_topk */
    if (t0 + n > early) {
        memset(t->sum, 0, (size_t)(n * pl->sum_row) * sizeof *t->sum);
        for (int64_t g = 0; g < pl->group; g += pl->heads)
            add_heads(pl, t, s, &q, row, n, head, g, min_i64(pl->heads, pl->group - g));
    }
    for (int64_t i = 0; i < n; i++) {
        int32_t *out = tensor_at(&p->slc_idx, s, q.q0, row + i, head);
        if (t0 + i < early) {
            const int64_t n_all = t0 + i < 0 ? 0 : (t0 + i) / cfg->slc_block + 1;
            for (int64_t j = 0; j < cfg->slc_topk; j++)
                out[j] = j < n_all ? (int32_t)j : -1;
            continue;
        }
        const int64_t cur = (t0 + i) / cfg->slc_block;
        for (int64_t j = 0; j <= cur; j++)
            t->key[j] = score_key(pl, t->sum + i * pl->sum_row, j);
        pick(cfg, t->key, cur, out);
    }
}

void select_tiled(const void *problem, arena *ws)
{
    const select_problem *p = problem;
    const plan pl = make_plan(p, ws);
    if (arena_counts(ws))
        return;
    fill_plan(&pl);
    const int32_t heads = p->cfg->n_heads_kv;
    const int64_t panels = n_tiles(pl.cu_cmp[p->seqs.n], p->seqs.n, PANEL) * heads;
    const int64_t units = n_tiles(p->seqs.total_q, p->seqs.n, pl.tokens) * heads;
#pragma omp parallel num_threads(p->ctx->n_threads)
    {
        arena mine = {pl.scratch + (size_t)omp_get_thread_num() * pl.scratch_bytes, 0, 0};
        const scratch t = carve_scratch(&mine, &pl);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < panels; i++)
            pack_panel(&pl, &t, i / heads, (int32_t)(i % heads));
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < units; i++) {
            int32_t s;
            int64_t row;
            if (tile_at(p->seqs.cu_q, p->seqs.n, pl.tokens, i / heads, &s, &row))
                run_tile(&pl, &t, s, row, (int32_t)(i % heads));
        }
    }
}
