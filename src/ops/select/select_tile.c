/*
 * Selection by tiles: a unit of work is a few tokens of one (sequence, kv head), with the heads of its group as rows.
 *
 *     for each panel of compressed blocks:  q k_cmp^T -> s -> p = exp -> P += p;   then P -> score -> slc_idx
 *
 * A row with no more candidates than slc_topk takes them all and needs no scores.
 */
#include "ops/select/select.h"

#include <omp.h>

enum {
    PANEL = 64,       /* compressed blocks */
    TILE_TOKENS = 64, /* most tokens of a tile */
    TILE_ROWS = 256   /* most (token, head) rows of a product: what the panel's transposition is shared by */
};

typedef struct plan {
    const select_problem *p;
    int32_t group;
    int64_t d, dp;            /* channels, and padded */
    int64_t tokens, heads;    /* of a tile, and how many heads of the group a product takes */
    int64_t per_slc, per_cmp; /* slc_block and cmp_block in strides */
    int64_t n_slc;            /* selection blocks of the longest sequence */
    int64_t sum_row;          /* floats in a row of P: per_cmp - 1 zeros, the compressed blocks, zeros */
    float *weight;            /* [per_slc + per_cmp - 1] strides that P's blocks share with a selection block */
    char *scratch;            /* of all threads */
    size_t scratch_bytes;     /* of one */
} plan;

typedef struct scratch {
    float *q;     /* [tokens * heads][d] */
    float *k;     /* [PANEL][dp] */
    float *panel; /* k transposed: [d][PANEL] */
    float *s;     /* [tokens * heads][PANEL] */
    float *sum;   /* P: [tokens][sum_row] */
    int32_t *key; /* [n_slc] the scores, as integers of the same order */
} scratch;

/* Some tokens of one (sequence, kv head). */
typedef struct tile {
    int32_t s, head;
    seq q;
    int64_t row, n; /* query rows row .. row + n - 1 */
    int64_t t0;     /* position of the first */
    rows k;
} tile;

static scratch carve_scratch(arena *ws, const plan *pl)
{
    scratch t;
    t.q = arena_take(ws, pl->tokens * pl->heads * pl->d, sizeof *t.q);
    t.k = arena_take(ws, PANEL * pl->dp, sizeof *t.k);
    t.panel = arena_take(ws, pl->d * PANEL, sizeof *t.panel);
    t.s = arena_take(ws, pl->tokens * pl->heads * PANEL, sizeof *t.s);
    t.sum = arena_take(ws, i64_mul(pl->tokens, pl->sum_row), sizeof *t.sum);
    t.key = arena_take(ws, pl->n_slc, sizeof *t.key);
    return t;
}

static plan make_plan(const select_problem *p, arena *ws)
{
    const nsa_config *cfg = p->cfg;
    int64_t longest = 0;
    for (int32_t s = 0; s < p->seqs.n; s++)
        longest = max_i64(longest, seq_at(&p->seqs, s).t_k);
    plan pl = {.p = p,
               .group = config_group(cfg),
               .d = cfg->d_qk,
               .dp = simd_pad(cfg->d_qk),
               .per_slc = cfg->slc_block / cfg->cmp_stride,
               .per_cmp = cfg->cmp_block / cfg->cmp_stride,
               .n_slc = n_slc_blocks(cfg, longest)};
    pl.heads = min_i64(pl.group, TILE_ROWS);
    pl.tokens = min_i64(TILE_TOKENS, TILE_ROWS / pl.heads);
    pl.sum_row = pl.per_cmp - 1 + pl.n_slc * pl.per_slc;
    pl.weight = arena_take(ws, pl.per_slc + pl.per_cmp - 1, sizeof *pl.weight);
    arena one = {NULL, 0, 0};
    carve_scratch(&one, &pl);
    pl.scratch_bytes = one.used;
    pl.scratch = arena_take(ws, p->ctx->n_threads, pl.scratch_bytes);
    return pl;
}

/* t->panel = the n rows of k_cmp from `first` on, as columns. */
static void load_panel(const plan *pl, const scratch *t, const rows *k, int64_t first, int64_t n)
{
    const simd_kernels *simd = pl->p->ctx->simd;
    const float *x = t->k;
    int64_t ld = pl->dp;
    if (k->dtype == NSA_F32 && first >= k->split && pl->d == pl->dp) {
        x = rows_at(k, first);
        ld = k->stride_bytes / (int64_t)sizeof *x;
    } else {
        for (int64_t i = 0; i < n; i++)
            simd->load_row(t->k + i * pl->dp, rows_at(k, first + i), k->dtype, pl->d);
    }
    simd->transpose(t->panel, PANEL, x, ld, NULL, n, pl->d);
}

/* Adds to P the probabilities of heads g .. g + heads - 1 of the group. */
static void add_heads(const plan *pl, const scratch *t, const tile *x, int64_t g, int64_t heads)
{
    const select_problem *p = pl->p;
    const simd_kernels *simd = p->ctx->simd;
    const float scale = (float)config_scale(p->cfg);
    const int64_t head0 = (int64_t)x->head * pl->group + g;
    for (int64_t i = 0; i < x->n * heads; i++)
        simd->load_row(t->q + i * pl->d, tensor_at(&p->q, x->s, x->q.q0, x->row + i / heads, head0 + i % heads),
                       p->q.dtype, pl->d);
    const int64_t n_visible = n_cmp_visible(p->cfg, x->t0 + x->n - 1);
    for (int64_t first = 0; first < n_visible; first += PANEL) {
        const int64_t n_cols = min_i64(PANEL, n_visible - first);
        load_panel(pl, t, &x->k, first, n_cols);
        simd->matmul(t->s, PANEL, t->q, pl->d, 1, t->panel, PANEL, x->n * heads, n_cols, pl->d, 0);
        for (int64_t i = 0; i < x->n * heads; i++) {
            const int64_t token = i / heads;
            const int64_t visible = min_i64(PANEL, n_cmp_visible(p->cfg, x->t0 + token) - first);
            if (visible <= 0)
                continue;
            const float *lse = tensor_at(&p->lse, x->s, x->q.q0, x->row + token, head0 + i % heads);
            float *prob = t->s + i * PANEL, *sum = t->sum + token * pl->sum_row + pl->per_cmp - 1 + first;
            simd->exp_row(prob, simd_pad(visible), 0, visible, scale, *lse);
            for (int64_t c = 0; c < visible; c++)
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

static void run_tile(const plan *pl, const scratch *t, const tile *x)
{
    const nsa_config *cfg = pl->p->cfg;
    const int64_t early = (int64_t)cfg->slc_topk * cfg->slc_block; /* positions before it see no more than slc_topk */
    if (x->t0 + x->n > early) {
        const int64_t n_slc = n_slc_blocks(cfg, x->t0 + x->n);
        for (int64_t i = 0; i < x->n; i++)
            memset(t->sum + i * pl->sum_row, 0, (size_t)(pl->per_cmp - 1 + n_slc * pl->per_slc) * sizeof *t->sum);
        for (int64_t g = 0; g < pl->group; g += pl->heads)
            add_heads(pl, t, x, g, min_i64(pl->heads, pl->group - g));
    }
    for (int64_t i = 0; i < x->n; i++) {
        int32_t *out = tensor_at(&pl->p->slc_idx, x->s, x->q.q0, x->row + i, x->head);
        const int64_t pos = x->t0 + i;
        const int64_t cur = pos < 0 ? -1 : pos / cfg->slc_block;
        if (pos < early) {
            for (int64_t j = 0; j < cfg->slc_topk; j++)
                out[j] = j <= cur ? (int32_t)j : -1;
        } else {
            for (int64_t j = 0; j <= cur; j++)
                t->key[j] = score_key(pl, t->sum + i * pl->sum_row, j);
            pick(cfg, t->key, cur, out);
        }
    }
}

void select_tiled(const void *problem, arena *ws)
{
    const select_problem *p = problem;
    const plan pl = make_plan(p, ws);
    if (arena_counts(ws))
        return;
    const int64_t n_weights = pl.per_slc + pl.per_cmp - 1;
    for (int64_t e = 0; e < n_weights; e++)
        pl.weight[e] = (float)min_i64(min_i64(e + 1, n_weights - e), pl.per_cmp);
    const int32_t heads = p->cfg->n_heads_kv;
    const int64_t units = n_tiles(p->seqs.total_q, p->seqs.n, pl.tokens) * heads;
#pragma omp parallel num_threads((int)min_i64(p->ctx->n_threads, max_i64(1, units)))
    {
        arena mine = {pl.scratch + (size_t)omp_get_thread_num() * pl.scratch_bytes, 0, 0};
        const scratch t = carve_scratch(&mine, &pl);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < units; i++) {
            tile x = {.head = (int32_t)(i % heads)};
            if (!tile_at(p->seqs.cu_q, p->seqs.n, pl.tokens, i / heads, &x.s, &x.row))
                continue;
            x.q = seq_at(&p->seqs, x.s);
            x.n = min_i64(pl.tokens, x.q.t_q - x.row);
            x.t0 = x.row + x.q.t_k - x.q.t_q;
            x.k = rows_of(&p->k_cmp, x.s, x.head);
            run_tile(&pl, &t, &x);
        }
    }
}
