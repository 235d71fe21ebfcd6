/*
 * mean and the gated kinds: y = sum over r of a_r x_r, with weights a_r of 1/block or from a softmax over the block of
 *
 *     logit[r][] = x_r w1 + b1_r        width columns: d, one for each channel, or 1 for all (gated_token)
 *
 * x_r w1 is made once per token, not once per block. Backward, with da_r = dy x_r (summed over the channels that share
 * a weight) and dlogit_r = a_r (da_r - sum a da):
 *
 *     dx_r += a_r dy + dlogit_r w1^T        dw1 += x_r^T dlogit_r        db1_r += dlogit_r
 *
 * Backward's units own the tokens of a tile and look at all blocks that reach into it. The tiles are dealt out to a
 * fixed number of groups, each with sums of dw1 and db1 of its own, which are added up in order at the end.
 */
#include "ops/compress/compress_tile.h"

#include <math.h>
#include <omp.h>

enum {
    TILE_TOKENS = 1024, /* of a tile, roughly: a multiple of stride, TILE_BLOCKS blocks at most */
    MAX_GROUPS = 64
};

typedef struct plan {
    const compress_problem *p;
    bool gated;
    int64_t d, dp;     /* channels, and padded */
    int64_t width, wp; /* logits of a token, and padded; 0 for mean */
    int64_t tile;      /* blocks that start in a tile of tile * stride tokens */
    int32_t *cu;       /* [n_seqs + 1] blocks added up */
    phi_matrix w1, b1; /* [d][wp], [block][wp] */
    float *w1t;        /* backward: [set][width][dp] */
    int64_t n_groups;  /* of token tiles */
    float *sums;       /* backward: [head][group][d + block][wp]: dw1, then db1 */
    char *scratch;     /* of all threads */
    size_t scratch_bytes;
} plan;

typedef struct scratch {
    float *x;                /* [tokens][dp] */
    float *logit;            /* [tokens][wp]: x w1 */
    float *a;                /* [block][wp] */
    float *max, *sum, *keep; /* [wp] */
    float *row;              /* [dp] */
    float *y;                /* [dp]; backward: dy */
    float *da;               /* backward: [block][wp] */
    float *dx;               /* backward: [tile tokens][dp] */
    float *dlogit;           /* backward: [tile tokens][wp] */
} scratch;

static scratch carve_scratch(arena *ws, const plan *pl, bool backward)
{
    const int64_t block = pl->p->cfg->cmp_block;
    const int64_t own = pl->tile * pl->p->cfg->cmp_stride;
    const int64_t tokens = own + (backward ? 2 : 1) * block; /* and the rest of the blocks at its ends */
    scratch t = {0};
    t.x = arena_take(ws, tokens, (size_t)pl->dp * sizeof(float));
    t.logit = arena_take(ws, tokens, (size_t)pl->wp * sizeof(float));
    t.a = arena_take(ws, block, (size_t)pl->wp * sizeof(float));
    t.max = arena_take(ws, pl->wp, sizeof(float));
    t.sum = arena_take(ws, pl->wp, sizeof(float));
    t.keep = arena_take(ws, pl->wp, sizeof(float));
    t.row = arena_take(ws, pl->dp, sizeof(float));
    t.y = arena_take(ws, pl->dp, sizeof(float));
    if (backward) {
        t.da = arena_take(ws, block, (size_t)pl->wp * sizeof(float));
        t.dx = arena_take(ws, own, (size_t)pl->dp * sizeof(float));
        t.dlogit = arena_take(ws, own, (size_t)pl->wp * sizeof(float));
    }
    return t;
}

static int64_t n_token_tiles(const plan *pl)
{
    const seqs *all = &pl->p->seqs;
    return all->n == 0 ? 0 : n_tiles(all->cu_k[all->n], all->n, pl->tile * pl->p->cfg->cmp_stride);
}

static plan make_plan(const compress_problem *p, arena *ws, bool backward)
{
    const int64_t block = p->cfg->cmp_block;
    plan pl = {.p = p, .gated = p->phi.kind != NSA_PHI_MEAN, .d = p->d, .dp = simd_pad(p->d)};
    pl.width = !pl.gated ? 0 : p->phi.kind == NSA_PHI_GATED_TOKEN ? 1 : p->d;
    pl.wp = simd_pad(pl.width);
    pl.tile = min_i64(TILE_BLOCKS, max_i64(1, TILE_TOKENS / p->cfg->cmp_stride));
    pl.cu = arena_take(ws, (int64_t)p->seqs.n + 1, sizeof *pl.cu);
    pl.w1 = phi_matrix_take(p, p->phi.w1, p->d, pl.width, ws);
    pl.b1 = phi_matrix_take(p, p->phi.b1, block, pl.width, ws);
    if (backward) {
        pl.n_groups = min_i64(MAX_GROUPS, n_token_tiles(&pl));
        pl.w1t = arena_take(ws, i64_mul(compress_n_sets(p), pl.width), (size_t)pl.dp * sizeof *pl.w1t);
        pl.sums = arena_take(ws, i64_mul(i64_mul(p->cfg->n_heads_kv, pl.n_groups), p->d + block),
                             (size_t)pl.wp * sizeof *pl.sums);
    }
    arena one = {.base = NULL};
    carve_scratch(&one, &pl, backward);
    pl.scratch_bytes = one.used;
    pl.scratch = arena_take(ws, p->ctx->n_threads, pl.scratch_bytes);
    return pl;
}

static scratch my_scratch(const plan *pl, bool backward)
{
    arena mine = {.base = pl->scratch + (size_t)omp_get_thread_num() * pl->scratch_bytes};
    return carve_scratch(&mine, pl, backward);
}

static int64_t set_of(const plan *pl, int64_t head)
{
    return pl->p->phi.per_head ? head : 0;
}

/* Tokens first .. first + n - 1 of a sequence, and their logits without b1. */
static void load_tokens(const plan *pl, const scratch *t, const rows *x, int64_t set, int64_t first, int64_t n)
{
    const simd_kernels *simd = pl->p->ctx->simd;
    for (int64_t i = 0; i < n; i++)
        simd->load_row(t->x + i * pl->dp, rows_at(x, first + i), x->dtype, pl->d);
    if (pl->gated)
        simd_matmul(simd, t->logit, pl->wp, t->x, pl->dp, 1, phi_row(&pl->w1, set, 0), pl->w1.ld, n, pl->width, pl->d,
                    0);
}

/* The weights of the block whose first token is `at` of those loaded. */
static void weigh(const plan *pl, const scratch *t, int64_t set, int64_t at)
{
    const int64_t block = pl->p->cfg->cmp_block;
    if (!pl->gated) {
        for (int64_t c = 0; c < pl->d; c++)
            t->row[c] = 1.0F / (float)block;
        return;
    }
    for (int64_t r = 0; r < block; r++) {
        const float *logit = t->logit + (at + r) * pl->wp, *b1 = phi_row(&pl->b1, set, r);
        for (int64_t c = 0; c < pl->width; c++)
            t->a[r * pl->wp + c] = logit[c] + b1[c];
    }
    for (int64_t c = 0; c < pl->wp; c++) {
        t->max[c] = -INFINITY;
        t->sum[c] = 0.0F;
    }
    pl->p->ctx->simd->softmax_step(t->a, pl->wp, block, pl->width, 1.0F, t->max, t->sum, t->keep);
    for (int64_t r = 0; r < block; r++)
        for (int64_t c = 0; c < pl->width; c++)
            t->a[r * pl->wp + c] /= t->sum[c];
}

/* The weights of token r, one for each channel. */
static const float *weights(const plan *pl, const scratch *t, int64_t r)
{
    if (pl->width == pl->d)
        return t->a + r * pl->wp;
    for (int64_t c = 0; c < pl->d && pl->gated; c++)
        t->row[c] = t->a[r * pl->wp];
    return t->row;
}

static void forward_tile(const plan *pl, const scratch *t, int32_t s, int64_t first, int64_t n, int32_t head)
{
    const compress_problem *p = pl->p;
    const int64_t block = p->cfg->cmp_block, stride = p->cfg->cmp_stride, set = set_of(pl, head);
    const cmp_blocks b = compress_blocks(p, s);
    const rows x = rows_of(&p->x, s, head);
    load_tokens(pl, t, &x, set, (b.first + first) * stride, (n - 1) * stride + block);
    for (int64_t i = 0; i < n; i++) {
        weigh(pl, t, set, i * stride);
        memset(t->y, 0, (size_t)pl->d * sizeof *t->y);
        for (int64_t r = 0; r < block; r++) {
            const float *a = weights(pl, t, r), *row = t->x + (i * stride + r) * pl->dp;
            for (int64_t c = 0; c < pl->d; c++)
                t->y[c] += a[c] * row[c];
        }
        p->ctx->simd->store_row(tensor_at(&p->y, s, b.y_row, first + i, head), p->y.dtype, t->y, pl->d);
    }
}

/* t->da = dlogit of a block that has its weights. */
static void logit_gradients(const plan *pl, const scratch *t, int64_t at)
{
    const int64_t block = pl->p->cfg->cmp_block;
    float *mean = t->keep; /* sum of a da */
    memset(mean, 0, (size_t)pl->width * sizeof *mean);
    for (int64_t r = 0; r < block; r++) {
        const float *x = t->x + (at + r) * pl->dp, *a = t->a + r * pl->wp;
        float *da = t->da + r * pl->wp;
        if (pl->width == pl->d) {
            for (int64_t c = 0; c < pl->d; c++)
                da[c] = t->y[c] * x[c];
        } else {
            for (int64_t c = 0; c < pl->dp; c++)
                t->row[c] = c < pl->d ? t->y[c] * x[c] : 0.0F;
            da[0] = pl->p->ctx->simd->sum_row(t->row, pl->dp);
        }
        for (int64_t c = 0; c < pl->width; c++)
            mean[c] += a[c] * da[c];
    }
    for (int64_t r = 0; r < block; r++)
        for (int64_t c = 0; c < pl->width; c++)
            t->da[r * pl->wp + c] = t->a[r * pl->wp + c] * (t->da[r * pl->wp + c] - mean[c]);
}

static void add_row(float *sum, const float *x, int64_t n)
{
    for (int64_t c = 0; c < n; c++)
        sum[c] += x[c];
}

/* What one block gives to the n tokens of the tile, the first of which is `own` of those loaded; and to db1 (of the
 * group) if it starts in the tile. */
static void block_gradients(const plan *pl, const scratch *t, int64_t set, int64_t at, int64_t own, int64_t n,
                            float *db1)
{
    weigh(pl, t, set, at);
    for (int64_t r = max_i64(0, own - at); r < min_i64(pl->p->cfg->cmp_block, own + n - at); r++) {
        const float *a = weights(pl, t, r);
        float *dx = t->dx + (at + r - own) * pl->dp;
        for (int64_t c = 0; c < pl->d; c++)
            dx[c] += a[c] * t->y[c];
    }
    if (!pl->gated)
        return;
    logit_gradients(pl, t, at);
    for (int64_t r = 0; r < pl->p->cfg->cmp_block; r++) {
        const float *dlogit = t->da + r * pl->wp;
        const int64_t j = at + r - own;
        if (j >= 0 && j < n)
            add_row(t->dlogit + j * pl->wp, dlogit, pl->width);
        if (at >= own)
            add_row(db1 + r * pl->wp, dlogit, pl->width);
    }
}

/* dx of the tokens first .. first + n - 1 of a sequence; dw1 and db1 are added to `sums`. */
static void backward_tile(const plan *pl, const scratch *t, int32_t s, int64_t first, int64_t n, int32_t head,
                          float *sums)
{
    const compress_problem *p = pl->p;
    const int64_t block = p->cfg->cmp_block, stride = p->cfg->cmp_stride, set = set_of(pl, head);
    const cmp_blocks b = compress_blocks(p, s);
    const int64_t from = first < block ? 0 : (first - block) / stride + 1; /* blocks that reach into the tile */
    const int64_t to = min_i64(b.n, (first + n - 1) / stride + 1);
    const int64_t loaded = from * stride, own = first - loaded;
    memset(t->dx, 0, (size_t)(n * pl->dp) * sizeof *t->dx);
    if (from < to) {
        const rows x = rows_of(&p->x, s, head);
        load_tokens(pl, t, &x, set, loaded, (to - 1) * stride + block - loaded);
        memset(t->dlogit, 0, (size_t)(n * pl->wp) * sizeof *t->dlogit);
    }
    for (int64_t i = from; i < to; i++) {
        p->ctx->simd->load_row(t->y, tensor_at(&p->dy, s, b.y_row, i, head), p->dy.dtype, pl->d);
        block_gradients(pl, t, set, i * stride - loaded, own, n, sums + pl->d * pl->wp);
    }
    if (pl->gated && from < to) {
        const int64_t in_blocks = min_i64(n, (to - 1) * stride + block - first); /* the others may be anything */
        const float *w1t = pl->w1t + set * pl->width * pl->dp;
        simd_matmul(p->ctx->simd, t->dx, pl->dp, t->dlogit, pl->wp, 1, w1t, pl->dp, in_blocks, pl->d, pl->width, 1);
        simd_matmul(p->ctx->simd, sums, pl->wp, t->x + own * pl->dp, 1, pl->dp, t->dlogit, pl->wp, pl->d, pl->width,
                    in_blocks, 1);
    }
    for (int64_t i = 0; i < n; i++)
        compress_store_dx(p, s, seq_at(&p->seqs, s).k0, first + i, head, t->dx + i * pl->dp);
}

static float *sums_of(const plan *pl, int64_t head, int64_t group)
{
    return pl->sums + (head * pl->n_groups + group) * (pl->d + pl->p->cfg->cmp_block) * pl->wp;
}

static void backward_group(const plan *pl, const scratch *t, int32_t head, int64_t group)
{
    const seqs *all = &pl->p->seqs;
    const int64_t n_own = pl->tile * pl->p->cfg->cmp_stride;
    const int64_t tiles = n_token_tiles(pl);
    float *sums = sums_of(pl, head, group);
    memset(sums, 0, (size_t)((pl->d + pl->p->cfg->cmp_block) * pl->wp) * sizeof *sums);
    for (int64_t i = tiles * group / pl->n_groups; i < tiles * (group + 1) / pl->n_groups; i++) {
        int32_t s;
        int64_t first;
        if (tile_at(all->cu_k, all->n, n_own, i, &s, &first))
            backward_tile(pl, t, s, first, min_i64(n_own, seq_at(all, s).t_k - first), head, sums);
    }
}

/* Adds up the groups and stores row `row` of w1's gradient, or past those of b1's. */
static void store_gradient(const plan *pl, const scratch *t, int64_t set, int64_t row)
{
    const compress_problem *p = pl->p;
    const int64_t head0 = p->phi.per_head ? set : 0;
    const int64_t head1 = p->phi.per_head ? set + 1 : p->cfg->n_heads_kv;
    memset(t->sum, 0, (size_t)pl->wp * sizeof *t->sum);
    for (int64_t head = head0; head < head1; head++)
        for (int64_t group = 0; group < pl->n_groups; group++)
            add_row(t->sum, sums_of(pl, head, group) + row * pl->wp, pl->width);
    if (row < pl->d)
        phi_store(p, p->dphi.w1, (set * pl->d + row) * pl->width, t->sum, pl->width);
    else
        phi_store(p, p->dphi.b1, (set * p->cfg->cmp_block + row - pl->d) * pl->width, t->sum, pl->width);
}

static void copy_params(const plan *pl)
{
    phi_matrix_copy(&pl->w1, pl->p->ctx->simd, 0, 1);
    phi_matrix_copy(&pl->b1, pl->p->ctx->simd, 0, 1);
}

void compress_pool_forward(const void *problem, arena *ws)
{
    const compress_problem *p = problem;
    const plan pl = make_plan(p, ws, false);
    if (arena_counts(ws))
        return;
    const int64_t n_blocks = compress_count_blocks(p, pl.cu);
    if (n_blocks == 0) /* decoding: most tokens end no block */
        return;
    copy_params(&pl);
    const int32_t heads = p->cfg->n_heads_kv;
    const int64_t units = n_tiles(n_blocks, p->seqs.n, pl.tile) * heads;
#pragma omp parallel num_threads((int)min_i64(p->ctx->n_threads, units))
    {
        const scratch t = my_scratch(&pl, false);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < units; i++) {
            int32_t s;
            int64_t first;
            if (tile_at(pl.cu, p->seqs.n, pl.tile, i / heads, &s, &first))
                forward_tile(&pl, &t, s, first, min_i64(pl.tile, pl.cu[s + 1] - pl.cu[s] - first),
                             (int32_t)(i % heads));
        }
    }
}

void compress_pool_backward(const void *problem, arena *ws)
{
    const compress_problem *p = problem;
    const plan pl = make_plan(p, ws, true);
    if (arena_counts(ws))
        return;
    const int32_t heads = p->cfg->n_heads_kv, n_sets = compress_n_sets(p);
    const int64_t n_rows = pl.gated ? pl.d + p->cfg->cmp_block : 0;
    copy_params(&pl);
    for (int64_t set = 0; set < n_sets && pl.gated; set++)
        p->ctx->simd->transpose(pl.w1t + set * pl.width * pl.dp, pl.dp, phi_row(&pl.w1, set, 0), pl.w1.ld, pl.d,
                                pl.width);
#pragma omp parallel num_threads(p->ctx->n_threads)
    {
        const scratch t = my_scratch(&pl, true);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < heads * pl.n_groups; i++)
            backward_group(&pl, &t, (int32_t)(i % heads), i / heads);
#pragma omp for
        for (int64_t i = 0; i < n_sets * n_rows; i++)
            store_gradient(&pl, &t, i / n_rows, i % n_rows);
    }
}
