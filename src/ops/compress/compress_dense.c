/*
 * linear and mlp. The first product is taken token by token of the block, so overlapping blocks are never laid out:
 *
 *     z = b1 + sum over r of (x_r + pe_r) w1_r          x_r: rows r, r + stride, r + 2 stride ... of the sequence
 *     linear: y = z                                     mlp: y = GELU(z) w2 + b2
 *
 * Backward, all in matrix products over dz [block][out] (linear: dy; mlp: (dy w2^T) GELU'(z)), kept for all blocks:
 *
 *     dx[i*stride + r] += dz[i] w1_r^T      a unit of work owns the rows of one residue r mod stride
 *     dw1_r = (x_r + pe_r)^T dz             one r, some columns
 *     dpe_r = (sum_i dz[i]) w1_r^T    db1 = sum_i dz[i]    dw2 = h^T dy    db2 = sum_i dy[i]
 */
#include "ops/compress/compress_tile.h"

#include <math.h>
#include <omp.h>

enum {
    COLUMNS = 256, /* of w1, in a unit of its gradient */
    W2_ROWS = 64,  /* of w2, in a unit of its gradient */
    COPY_PARTS = 64
};

typedef struct plan {
    const compress_problem *p;
    bool mlp;
    int64_t d, dp;     /* channels, and padded */
    int64_t out, outp; /* columns of w1, and padded */
    int64_t n_sets;
    int64_t n_blocks; /* of all sequences */
    int32_t *cu;      /* [n_seqs + 1] blocks added up */
    phi_matrix pe, w1, b1, w2, b2;
    float *w1t, *w2t; /* [set][block][out][dp], [set][d][outp] */
    float *dy, *h;    /* [head][n_blocks][dp], [head][n_blocks][outp]; h mlp only */
    float *dz;        /* [head][n_blocks][outp]; linear: dy */
    float *sum_dz;    /* [set][outp] */
    char *scratch;    /* of all threads */
    size_t scratch_bytes;
} plan;

typedef struct scratch {
    float *x; /* [TILE_BLOCKS][dp] */
    float *z; /* [TILE_BLOCKS][outp]; backward: dh */
    float *y; /* [TILE_BLOCKS][dp]; backward: a tile of dx */
    float *w; /* backward: [max(d, W2_ROWS)][COLUMNS], a tile of dw1 or dw2 */
} scratch;

static scratch carve_scratch(arena *ws, const plan *pl, bool backward)
{
    scratch t;
    t.x = arena_take(ws, TILE_BLOCKS * pl->dp, sizeof *t.x);
    t.z = arena_take(ws, TILE_BLOCKS * pl->outp, sizeof *t.z);
    t.y = arena_take(ws, TILE_BLOCKS * pl->dp, sizeof *t.y);
    t.w = backward ? arena_take(ws, max_i64(pl->d, W2_ROWS), COLUMNS * sizeof *t.w) : NULL;
    return t;
}

static plan make_plan(const compress_problem *p, arena *ws, bool backward)
{
    const bool mlp = p->phi.kind == NSA_PHI_MLP;
    const int64_t block = p->cfg->cmp_block, out = mlp ? p->phi.d_hidden : p->d;
    plan pl = {.p = p,
               .mlp = mlp,
               .d = p->d,
               .dp = simd_pad(p->d),
               .out = out,
               .outp = simd_pad(out),
               .n_sets = compress_n_sets(p),
               .n_blocks = compress_count_blocks(p, NULL)};
    pl.cu = arena_take(ws, (int64_t)p->seqs.n + 1, sizeof *pl.cu);
    pl.pe = phi_matrix_take(p, p->phi.pe, block, p->d, ws);
    pl.w1 = phi_matrix_take(p, p->phi.w1, block * p->d, out, ws);
    pl.b1 = phi_matrix_take(p, p->phi.b1, 1, out, ws);
    pl.w2 = phi_matrix_take(p, p->phi.w2, out, p->d, ws);
    pl.b2 = phi_matrix_take(p, p->phi.b2, 1, p->d, ws);
    if (backward) {
        const int64_t n = i64_mul(p->cfg->n_heads_kv, pl.n_blocks);
        pl.w1t = arena_take(ws, i64_mul(i64_mul(pl.n_sets, block), out), (size_t)pl.dp * sizeof *pl.w1t);
        pl.dy = arena_take(ws, n, (size_t)pl.dp * sizeof *pl.dy);
        pl.dz = pl.dy;
        if (mlp) {
            pl.w2t = arena_take(ws, i64_mul(pl.n_sets, p->d), (size_t)pl.outp * sizeof *pl.w2t);
            pl.h = arena_take(ws, n, (size_t)pl.outp * sizeof *pl.h);
            pl.dz = arena_take(ws, n, (size_t)pl.outp * sizeof *pl.dz);
        }
        pl.sum_dz = arena_take(ws, pl.n_sets, (size_t)pl.outp * sizeof *pl.sum_dz);
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

static void copy_params(const plan *pl, int64_t part)
{
    const phi_matrix *const all[] = {&pl->pe, &pl->w1, &pl->b1, &pl->w2, &pl->b2};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        phi_matrix_copy(all[i], pl->p->ctx->simd, part, COPY_PARTS);
}

static int64_t set_of(const plan *pl, int64_t head)
{
    return pl->p->phi.per_head ? head : 0;
}

/* t->x = x_r + pe_r for blocks i .. i + n - 1. */
static void gather(const plan *pl, const scratch *t, const rows *x, int64_t set, int64_t i, int64_t n, int64_t r)
{
    const float *pe = phi_row(&pl->pe, set, r);
    for (int64_t b = 0; b < n; b++) {
        float *row = t->x + b * pl->dp;
        pl->p->ctx->simd->load_row(row, rows_at(x, (i + b) * pl->p->cfg->cmp_stride + r), x->dtype, pl->d);
        for (int64_t c = 0; pe != NULL && c < pl->d; c++)
            row[c] += pe[c];
    }
}

/* c [n][ldc] = a [n][lda] w + bias */
static void layer(const plan *pl, float *c, int64_t ldc, const float *a, int64_t lda, const phi_matrix *w,
                  const phi_matrix *bias, int64_t set, int64_t n)
{
    const float *from = phi_row(bias, set, 0);
    for (int64_t i = 0; from != NULL && i < n; i++)
        memcpy(c + i * ldc, from, (size_t)w->n_cols * sizeof *c);
    simd_matmul(pl->p->ctx->simd, c, ldc, a, lda, 1, phi_row(w, set, 0), w->ld, n, w->n_cols, w->n_rows, from != NULL);
}

/* z [n][outp], the first layer of blocks i .. i + n - 1. */
static void first_layer(const plan *pl, const scratch *t, const rows *x, int64_t set, int64_t i, int64_t n, float *z)
{
    const float *bias = phi_row(&pl->b1, set, 0);
    for (int64_t b = 0; bias != NULL && b < n; b++)
        memcpy(z + b * pl->outp, bias, (size_t)pl->out * sizeof *z);
    for (int64_t r = 0; r < pl->p->cfg->cmp_block; r++) {
        gather(pl, t, x, set, i, n, r);
        simd_matmul(pl->p->ctx->simd, z, pl->outp, t->x, pl->dp, 1, phi_row(&pl->w1, set, r * pl->d), pl->w1.ld, n,
                    pl->out, pl->d, r > 0 || bias != NULL);
    }
}

static float gelu_cdf(float z) /* Phi */
{
    return 0.5F * erfcf(z * -0.70710678F);
}

static void forward_tile(const plan *pl, const scratch *t, int32_t s, int64_t first, int64_t n, int32_t head)
{
    const compress_problem *p = pl->p;
    const cmp_blocks b = compress_blocks(p, s);
    const rows x = rows_of(&p->x, s, head);
    first_layer(pl, t, &x, set_of(pl, head), b.first + first, n, t->z);
    const float *y = t->z;
    int64_t ld = pl->outp;
    if (pl->mlp) {
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < pl->out; j++)
                t->z[i * pl->outp + j] *= gelu_cdf(t->z[i * pl->outp + j]);
        layer(pl, t->y, pl->dp, t->z, pl->outp, &pl->w2, &pl->b2, set_of(pl, head), n);
        y = t->y;
        ld = pl->dp;
    }
    for (int64_t i = 0; i < n; i++)
        p->ctx->simd->store_row(tensor_at(&p->y, s, b.y_row, first + i, head), p->y.dtype, y + i * ld, pl->d);
}

/* dy, and for mlp h and dz, of the blocks first .. first + n - 1 of a sequence. */
static void block_gradients(const plan *pl, const scratch *t, int32_t s, int64_t first, int64_t n, int32_t head)
{
    const compress_problem *p = pl->p;
    const int64_t at = head * pl->n_blocks + pl->cu[s] + first;
    float *dy = pl->dy + at * pl->dp;
    for (int64_t i = 0; i < n; i++)
        p->ctx->simd->load_row(dy + i * pl->dp, tensor_at(&p->dy, s, compress_blocks(p, s).y_row, first + i, head),
                               p->dy.dtype, pl->d);
    if (!pl->mlp)
        return;
    const rows x = rows_of(&p->x, s, head);
    const float *w2t = pl->w2t + set_of(pl, head) * pl->d * pl->outp;
    float *h = pl->h + at * pl->outp, *dz = pl->dz + at * pl->outp, *dh = t->z;
    first_layer(pl, t, &x, set_of(pl, head), first, n, dz);
    simd_matmul(p->ctx->simd, dh, pl->outp, dy, pl->dp, 1, w2t, pl->outp, n, pl->out, pl->d, 0);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = i * pl->outp; j < i * pl->outp + pl->out; j++) {
            const float z = dz[j], cdf = gelu_cdf(z);
            h[j] = z * cdf;
            dz[j] = dh[j] * (cdf + z * 0.39894228F * expf(-0.5F * z * z)); /* 1/sqrt(2 pi) */
        }
}

/* dx of the tokens first + residue, first + residue + stride ... of a sequence, TILE_BLOCKS of them at most. */
static void token_gradients(const plan *pl, const scratch *t, int32_t s, int64_t first, int64_t residue, int32_t head)
{
    const compress_problem *p = pl->p;
    const int64_t stride = p->cfg->cmp_stride;
    const seq q = seq_at(&p->seqs, s);
    const int64_t n_blocks = compress_blocks(p, s).n;
    const int64_t n = min_i64(TILE_BLOCKS, (q.t_k - first - residue + stride - 1) / stride);
    const float *w1t = pl->w1t + set_of(pl, head) * p->cfg->cmp_block * pl->out * pl->dp;
    memset(t->y, 0, (size_t)(TILE_BLOCKS * pl->dp) * sizeof *t->y);
    for (int64_t r = residue; r < p->cfg->cmp_block; r += stride) {
        /* Token j of the tile is token r of this block: */
        const int64_t block0 = first / stride - r / stride;
        const int64_t lo = max_i64(0, -block0), hi = min_i64(n, n_blocks - block0);
        if (lo < hi)
            simd_matmul(p->ctx->simd, t->y + lo * pl->dp, pl->dp,
                        pl->dz + (head * pl->n_blocks + pl->cu[s] + block0 + lo) * pl->outp, pl->outp, 1,
                        w1t + r * pl->out * pl->dp, pl->dp, hi - lo, pl->d, pl->out, 1);
    }
    for (int64_t i = 0; i < n; i++)
        compress_store_dx(p, s, q.k0, first + residue + i * stride, head, t->y + i * pl->dp);
}

/* dw1_r, columns from `col` on. */
static void w1_gradient(const plan *pl, const scratch *t, int64_t set, int64_t r, int64_t col)
{
    const compress_problem *p = pl->p;
    const int64_t n_cols = min_i64(COLUMNS, pl->out - col);
    const int32_t head0 = p->phi.per_head ? (int32_t)set : 0;
    const int32_t head1 = p->phi.per_head ? head0 + 1 : p->cfg->n_heads_kv;
    memset(t->w, 0, (size_t)(pl->d * COLUMNS) * sizeof *t->w);
    for (int32_t head = head0; head < head1; head++)
        for (int32_t s = 0; s < p->seqs.n; s++) {
            const int64_t n_blocks = pl->cu[s + 1] - pl->cu[s];
            const rows x = rows_of(&p->x, s, head);
            for (int64_t i = 0; i < n_blocks; i += TILE_BLOCKS) {
                const int64_t n = min_i64(TILE_BLOCKS, n_blocks - i);
                gather(pl, t, &x, set, i, n, r);
                simd_matmul(p->ctx->simd, t->w, COLUMNS, t->x, 1, pl->dp,
                            pl->dz + (head * pl->n_blocks + pl->cu[s] + i) * pl->outp + col, pl->outp, pl->d, n_cols, n,
                            1);
            }
        }
    for (int64_t c = 0; c < pl->d; c++)
        phi_store(p, p->dphi.w1, ((set * p->cfg->cmp_block + r) * pl->d + c) * pl->out + col, t->w + c * COLUMNS,
                  n_cols);
}

/* The rows of dy, h, dz that belong to a set: those of its heads, which follow each other. */
static int64_t set_rows(const plan *pl)
{
    return pl->p->phi.per_head ? pl->n_blocks : pl->n_blocks * pl->p->cfg->n_heads_kv;
}

static void w2_gradient(const plan *pl, const scratch *t, int64_t set, int64_t row)
{
    const compress_problem *p = pl->p;
    const int64_t n = min_i64(W2_ROWS, pl->out - row), k = set_rows(pl);
    simd_matmul(p->ctx->simd, t->w, COLUMNS, pl->h + set * k * pl->outp + row, 1, pl->outp, pl->dy + set * k * pl->dp,
                pl->dp, n, pl->d, k, 0);
    for (int64_t i = 0; i < n; i++)
        phi_store(p, p->dphi.w2, (set * pl->out + row + i) * pl->d, t->w + i * COLUMNS, pl->d);
}

/* sum_dz, and the gradients of the biases: sums are products with a row of ones. */
static void bias_gradients(const plan *pl, const scratch *t, int64_t set)
{
    const compress_problem *p = pl->p;
    const float one = 1.0F;
    const int64_t k = set_rows(pl);
    float *sum = pl->sum_dz + set * pl->outp;
    simd_matmul(p->ctx->simd, sum, pl->outp, &one, 0, 0, pl->dz + set * k * pl->outp, pl->outp, 1, pl->out, k, 0);
    if (p->dphi.b1 != NULL)
        phi_store(p, p->dphi.b1, set * pl->out, sum, pl->out);
    if (p->dphi.b2 != NULL) {
        simd_matmul(p->ctx->simd, t->y, pl->dp, &one, 0, 0, pl->dy + set * k * pl->dp, pl->dp, 1, pl->d, k, 0);
        phi_store(p, p->dphi.b2, set * pl->d, t->y, pl->d);
    }
}

static void pe_gradient(const plan *pl, const scratch *t, int64_t set, int64_t r)
{
    const compress_problem *p = pl->p;
    const int64_t at = set * p->cfg->cmp_block + r;
    simd_matmul(p->ctx->simd, t->y, pl->dp, pl->sum_dz + set * pl->outp, pl->outp, 1, pl->w1t + at * pl->out * pl->dp,
                pl->dp, 1, pl->d, pl->out, 0);
    phi_store(p, p->dphi.pe, at * pl->d, t->y, pl->d);
}

/* Blocks of unit i, of n_tiles(n_blocks) * n_heads_kv, or false. */
static bool block_unit(const plan *pl, int64_t i, int32_t *s, int64_t *first, int64_t *n, int32_t *head)
{
    const int32_t heads = pl->p->cfg->n_heads_kv;
    *head = (int32_t)(i % heads);
    if (!tile_at(pl->cu, pl->p->seqs.n, TILE_BLOCKS, i / heads, s, first))
        return false;
    *n = min_i64(TILE_BLOCKS, pl->cu[*s + 1] - pl->cu[*s] - *first);
    return true;
}

void compress_dense_forward(const void *problem, arena *ws)
{
    const compress_problem *p = problem;
    const plan pl = make_plan(p, ws, false);
    if (arena_counts(ws) || pl.n_blocks == 0) /* decoding: most tokens end no block */
        return;
    compress_count_blocks(p, pl.cu);
    const int64_t units = n_tiles(pl.n_blocks, p->seqs.n, TILE_BLOCKS) * p->cfg->n_heads_kv;
#pragma omp parallel num_threads((int)min_i64(p->ctx->n_threads, units))
    {
        const scratch t = my_scratch(&pl, false);
#pragma omp for
        for (int64_t i = 0; i < COPY_PARTS; i++)
            copy_params(&pl, i);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < units; i++) {
            int32_t s, head;
            int64_t first, n;
            if (block_unit(&pl, i, &s, &first, &n, &head))
                forward_tile(&pl, &t, s, first, n, head);
        }
    }
}

static void transpose_params(const plan *pl, int64_t i) /* i: of n_sets * block */
{
    const int64_t block = pl->p->cfg->cmp_block, set = i / block, r = i % block;
    const simd_kernels *simd = pl->p->ctx->simd;
    simd->transpose(pl->w1t + i * pl->out * pl->dp, pl->dp, phi_row(&pl->w1, set, r * pl->d), pl->w1.ld, pl->d,
                    pl->out);
    if (pl->mlp && r == 0)
        simd->transpose(pl->w2t + set * pl->d * pl->outp, pl->outp, phi_row(&pl->w2, set, 0), pl->w2.ld, pl->out,
                        pl->d);
}

void compress_dense_backward(const void *problem, arena *ws)
{
    const compress_problem *p = problem;
    const plan pl = make_plan(p, ws, true);
    if (arena_counts(ws))
        return;
    compress_count_blocks(p, pl.cu);
    const int32_t heads = p->cfg->n_heads_kv;
    const int64_t block = p->cfg->cmp_block, stride = p->cfg->cmp_stride;
    const int64_t block_units = n_tiles(pl.n_blocks, p->seqs.n, TILE_BLOCKS) * heads;
    const int64_t tile = TILE_BLOCKS * stride;
    const int64_t token_units = p->seqs.n == 0 ? 0 : n_tiles(p->seqs.cu_k[p->seqs.n], p->seqs.n, tile) * heads * stride;
    const int64_t col_tiles = (pl.out + COLUMNS - 1) / COLUMNS, row_tiles = (pl.out + W2_ROWS - 1) / W2_ROWS;
#pragma omp parallel num_threads(p->ctx->n_threads)
    {
        const scratch t = my_scratch(&pl, true);
#pragma omp for
        for (int64_t i = 0; i < COPY_PARTS; i++)
            copy_params(&pl, i);
#pragma omp for
        for (int64_t i = 0; i < pl.n_sets * block; i++)
            transpose_params(&pl, i);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < block_units; i++) {
            int32_t s, head;
            int64_t first, n;
            if (block_unit(&pl, i, &s, &first, &n, &head))
                block_gradients(&pl, &t, s, first, n, head);
        }
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < pl.n_sets; i++)
            bias_gradients(&pl, &t, i);
#pragma omp for schedule(dynamic) nowait
        for (int64_t i = 0; i < pl.n_sets * block * col_tiles; i++)
            w1_gradient(&pl, &t, i / col_tiles / block, i / col_tiles % block, i % col_tiles * COLUMNS);
#pragma omp for schedule(dynamic) nowait
        for (int64_t i = 0; i < (pl.mlp ? pl.n_sets * row_tiles : 0); i++)
            w2_gradient(&pl, &t, i / row_tiles, i % row_tiles * W2_ROWS);
#pragma omp for schedule(dynamic) nowait
        for (int64_t i = 0; i < (p->dphi.pe != NULL ? pl.n_sets * block : 0); i++)
            pe_gradient(&pl, &t, i / block, i % block);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < token_units; i++) {
            int32_t s;
            int64_t first;
            if (tile_at(p->seqs.cu_k, p->seqs.n, tile, i / stride / heads, &s, &first))
                token_gradients(&pl, &t, s, first, i % stride, (int32_t)(i / stride % heads));
        }
    }
}
