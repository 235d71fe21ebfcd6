#include "testlib/compress_case.h"

#include <math.h>

const char *const phi_member_names[N_PHI_MEMBERS] = {"dpe", "dw1", "db1", "dw2", "db2"};
static void phi_point(phi_case *c)
{
    void **const to[] = {&c->phi.pe, &c->phi.w1, &c->phi.b1, &c->phi.w2, &c->phi.b2};
    for (int m = 0; m < N_PHI_MEMBERS; m++)
        *to[m] = c->given[m] ? c->m[m].t.data : NULL;
}

/* Members as rows x columns of a set; nothing of the library is asked. */
void phi_case_init(phi_case *c, const compress_shape *sh, const nsa_config *cfg, nsa_dtype dtype)
{
    const int32_t in = sh->block * sh->d;
    const int32_t sizes[][N_PHI_MEMBERS][2] = {
        [NSA_PHI_MEAN] = {{0, 0}, {0, 0}, {0, 0}, {0, 0}, {0, 0}},
        [NSA_PHI_LINEAR] = {{sh->block, sh->d}, {in, sh->d}, {0, 0}, {0, 0}, {0, 0}},
        [NSA_PHI_GATED_TOKEN] = {{0, 0}, {1, sh->d}, {1, sh->block}, {0, 0}, {0, 0}},
        [NSA_PHI_GATED_CHANNEL] = {{0, 0}, {sh->d, sh->d}, {sh->block, sh->d}, {0, 0}, {0, 0}},
        [NSA_PHI_MLP] = {{sh->block, sh->d}, {in, sh->hidden}, {1, sh->hidden}, {sh->hidden, sh->d}, {1, sh->d}},
    };
    const bool optional[] = {true, false, sh->kind == NSA_PHI_MLP, false, true};
    c->phi = (nsa_phi){.kind = sh->kind, .dtype = dtype, .per_head = sh->per_head, .d_hidden = sh->hidden};
    for (int m = 0; m < N_PHI_MEMBERS; m++) {
        const int32_t *size = sizes[sh->kind][m];
        c->given[m] = size[0] > 0 && !(sh->bare && optional[m]);
        c->batch[m] = batch_of(&(seq_lengths){0, size[0] * (sh->per_head ? sh->n_heads : 1)}, 1);
        c->m[m] = tensor_new(cfg, &c->batch[m], SIDE_K, 1, size[1], dtype, LAYOUT_THD);
    }
    phi_point(c);
}

void compress_case_init(compress_case *c, const compress_shape *sh, const nsa_batch *batch, rng *r)
{
    c->shape = *sh;
    c->batch = *batch;
    nsa_config_init(&c->cfg);
    c->cfg.n_heads_q = c->cfg.n_heads_kv = sh->n_heads;
    c->cfg.d_qk = sh->d;
    c->cfg.cmp_block = c->cfg.slc_block = sh->block;
    c->cfg.cmp_stride = sh->stride;
    c->x = tensor_new(&c->cfg, &c->batch, SIDE_K, sh->n_heads, sh->d, sh->dtype, sh->x);
    c->dy = tensor_new(&c->cfg, &c->batch, SIDE_CMP, sh->n_heads, sh->d, sh->dtype, sh->x);
    tensor_fill_normal(&c->x, r, 1.0);
    tensor_fill_normal(&c->dy, r, 1.0);
    phi_case_init(&c->phi, sh, &c->cfg, sh->phi_dtype);
    const double in = sh->kind == NSA_PHI_LINEAR || sh->kind == NSA_PHI_MLP ? sh->block * sh->d : sh->d;
    const double sigma[] = {0.5, 1.0 / sqrt(in), 0.5, 1.0 / sqrt(fmax(1.0, sh->hidden)), 0.5};
    for (int m = 0; m < N_PHI_MEMBERS; m++)
        if (c->phi.given[m])
            tensor_fill_normal(&c->phi.m[m], r, sigma[m]);
}

compress_problem compress_problem_of(const compress_case *c, const nsa_ctx *ctx, ref_rounding rounding)
{
    compress_problem p = {
        .ctx = ctx,
        .cfg = &c->cfg,
        .seqs = seqs_of_batch(&c->batch),
        .d = c->shape.d,
        .phi = c->phi.phi,
        .x = rows_from_tensor(&c->x.t, c->shape.d, c->batch.cu_seqlens_k, 1),
        .dy = c->dy.t,
        .rounding = rounding,
    };
    p.seqs.cu_q = NULL;
    return p;
}

test_tensor compress_run_forward(const compress_case *c, const nsa_ctx *ctx, const compress_impl *impl,
                                 ref_rounding rounding, nsa_dtype dtype)
{
    const test_tensor y = tensor_new(&c->cfg, &c->batch, SIDE_CMP, c->shape.n_heads, c->shape.d, dtype, c->shape.out);
    compress_problem p = compress_problem_of(c, ctx, rounding);
    p.y = y.t;
    run_op(ctx, impl->forward, &p, sizeof p);
    return y;
}

void compress_run_backward(const compress_case *c, const nsa_ctx *ctx, const compress_impl *impl, ref_rounding rounding,
                           const test_tensor *start, nsa_dtype dtype, nsa_dtype phi_dtype, compress_grads *g)
{
    g->dx = start != NULL ? tensor_copy(start, dtype)
                          : tensor_new(&c->cfg, &c->batch, SIDE_K, c->shape.n_heads, c->shape.d, dtype, c->shape.out);
    phi_case_init(&g->dphi, &c->shape, &c->cfg, phi_dtype);
    compress_problem p = compress_problem_of(c, ctx, rounding);
    p.dx = g->dx.t;
    p.add_dx = start != NULL;
    p.dphi = g->dphi.phi;
    run_op(ctx, impl->backward, &p, sizeof p);
}

const compress_impl *compress_oracle(void)
{
    const compress_impl *impl = compress_impls;
    while (impl[1].name != NULL)
        impl++;
    return impl;
}

/* ---- Sizes
 *
 * By the formulas of compress.h and of its backward, every term in absolute value. An error of a logit is one of the
 * same size, in relation, of its weight. What GELU and its slope make of an error of z: */

static const double GELU_SLOPE = 1.13, GELU_CURVE = 0.8; /* the most that |GELU'| and |GELU''| are */

typedef struct block_sizes {
    compress_shape sh;
    double *w[N_PHI_MEMBERS], *dw[N_PHI_MEMBERS]; /* parameters of a set, and the sizes of their gradients */
    double *x, *dy;                               /* of a block: [block][d], and [d] absolute */
    double *y, *dx;                               /* sizes: [d], [block][d] */
    double *z, *dz;                               /* linear, mlp: sizes of the columns of w1 */
    double *logit, *a, *dlogit;                   /* gated, of a column: [block]; a: the sizes of the weights */
} block_sizes;

/* linear and mlp. */
static void dense_sizes(const block_sizes *b)
{
    const int32_t in = b->sh.block * b->sh.d, d = b->sh.d;
    const bool mlp = b->sh.kind == NSA_PHI_MLP;
    const int32_t n = mlp ? b->sh.hidden : d;
    for (int32_t j = 0; j < n; j++) {
        b->z[j] = mlp ? fabs(b->w[PHI_B1][j]) : 0.0;
        for (int32_t k = 0; k < in; k++)
            b->z[j] += (fabs(b->x[k]) + fabs(b->w[PHI_PE][k])) * fabs(b->w[PHI_W1][k * n + j]);
        b->dz[j] = mlp ? 0.0 : b->dy[j];
        for (int32_t c = 0; mlp && c < d; c++) {
            b->dz[j] += b->dy[c] * fabs(b->w[PHI_W2][j * d + c]);
            b->dw[PHI_W2][j * d + c] += GELU_SLOPE * b->z[j] * b->dy[c];
        }
        if (mlp) {
            b->dz[j] *= GELU_SLOPE + GELU_CURVE * b->z[j];
            b->dw[PHI_B1][j] += b->dz[j];
        }
    }
    for (int32_t c = 0; c < d; c++) {
        b->y[c] = mlp ? fabs(b->w[PHI_B2][c]) : b->z[c];
        for (int32_t j = 0; mlp && j < n; j++)
            b->y[c] += GELU_SLOPE * b->z[j] * fabs(b->w[PHI_W2][j * d + c]);
        if (mlp)
            b->dw[PHI_B2][c] += b->dy[c];
    }
    for (int32_t k = 0; k < in; k++) {
        for (int32_t j = 0; j < n; j++) {
            b->dx[k] += b->dz[j] * fabs(b->w[PHI_W1][k * n + j]);
            b->dw[PHI_W1][k * n + j] += (fabs(b->x[k]) + fabs(b->w[PHI_PE][k])) * b->dz[j];
        }
        b->dw[PHI_PE][k] += b->dx[k];
    }
}

/* Gates of column `column` of n: b->a. */
static void gate_sizes(const block_sizes *b, int32_t column, int32_t n)
{
    double max = -INFINITY, sum = 0.0, all = 0.0;
    for (int32_t r = 0; r < b->sh.block; r++) {
        b->logit[r] = b->w[PHI_B1][r * n + column];
        b->a[r] = fabs(b->logit[r]);
        for (int32_t k = 0; k < b->sh.d; k++) {
            const double term = b->x[r * b->sh.d + k] * b->w[PHI_W1][k * n + column];
            b->logit[r] += term;
            b->a[r] += fabs(term);
        }
        max = fmax(max, b->logit[r]);
    }
    for (int32_t r = 0; r < b->sh.block; r++)
        sum += exp(b->logit[r] - max);
    for (int32_t r = 0; r < b->sh.block; r++) {
        b->a[r] = exp(b->logit[r] - max) / sum * (1.0 + b->a[r] + max - b->logit[r]) + CLOSE_FLUSHED;
        all += b->a[r];
    }
    for (int32_t r = 0; r < b->sh.block; r++)
        b->a[r] += exp(b->logit[r] - max) / sum * all;
}

/* After gate_sizes: what comes of the gradients of the logits, of channels first .. end - 1. */
static void gate_gradient_sizes(const block_sizes *b, int32_t column, int32_t n, int32_t first, int32_t end)
{
    const int32_t d = b->sh.d;
    double mean = 0.0;
    for (int32_t r = 0; r < b->sh.block; r++) {
        b->dlogit[r] = 0.0;
        for (int32_t c = first; c < end; c++)
            b->dlogit[r] += b->dy[c] * fabs(b->x[r * d + c]);
        mean += b->a[r] * b->dlogit[r];
    }
    for (int32_t r = 0; r < b->sh.block; r++) {
        const double dlogit = b->a[r] * (b->dlogit[r] + mean);
        b->dw[PHI_B1][r * n + column] += dlogit;
        for (int32_t k = 0; k < d; k++) {
            b->dx[r * d + k] += dlogit * fabs(b->w[PHI_W1][k * n + column]);
            b->dw[PHI_W1][k * n + column] += dlogit * fabs(b->x[r * d + k]);
        }
    }
}

/* mean, and the gated kinds. */
static void pool_sizes(const block_sizes *b)
{
    const int32_t d = b->sh.d, n = b->sh.kind == NSA_PHI_GATED_CHANNEL ? d : 1;
    for (int32_t column = 0; column < n; column++) {
        const int32_t first = column * (d / n), end = first + d / n;
        for (int32_t r = 0; r < b->sh.block; r++)
            b->a[r] = 1.0 / b->sh.block;
        if (b->sh.kind != NSA_PHI_MEAN) {
            gate_sizes(b, column, n);
            gate_gradient_sizes(b, column, n, first, end);
        }
        for (int32_t r = 0; r < b->sh.block; r++)
            for (int32_t c = first; c < end; c++) {
                b->y[c] += b->a[r] * fabs(b->x[r * d + c]);
                b->dx[r * d + c] += b->a[r] * b->dy[c];
            }
    }
}

static void run_block(const compress_case *c, const block_sizes *b, int32_t s, int32_t head, int64_t i,
                      const test_tensor *y, const test_tensor *dx)
{
    const int32_t d = b->sh.d, block = b->sh.block;
    const int64_t t = i * b->sh.stride;
    for (int32_t k = 0; k < block * d; k++) {
        b->x[k] = tensor_get(&c->x, s, t + k / d, head, k % d);
        b->dx[k] = 0.0;
    }
    for (int32_t k = 0; k < d; k++) {
        b->dy[k] = fabs(tensor_get(&c->dy, s, i, head, k));
        b->y[k] = 0.0;
    }
    if (b->sh.kind == NSA_PHI_LINEAR || b->sh.kind == NSA_PHI_MLP)
        dense_sizes(b);
    else
        pool_sizes(b);
    for (int32_t k = 0; k < d; k++)
        tensor_set(y, s, i, head, k, b->y[k]);
    for (int32_t k = 0; k < block * d; k++)
        tensor_add(dx, s, t + k / d, head, k % d, b->dx[k]);
}

/* Elements of member m in a set; those of a set follow each other. */
static int64_t set_size(const phi_case *phi, int m, int64_t n_sets)
{
    return tensor_rows(&phi->m[m], 0) * phi->m[m].e.d / n_sets;
}

static double *doubles(int64_t n)
{
    return elements(n, NSA_F64);
}

void compress_sizes(const compress_case *c, const test_tensor *start, test_tensor *y, compress_grads *g)
{
    const compress_shape *sh = &c->shape;
    const int64_t n_sets = sh->per_head ? sh->n_heads : 1, most = sh->d > sh->hidden ? sh->d : sh->hidden;
    *y = tensor_new(&c->cfg, &c->batch, SIDE_CMP, sh->n_heads, sh->d, NSA_F64, LAYOUT_THD);
    g->dx = tensor_new(&c->cfg, &c->batch, SIDE_K, sh->n_heads, sh->d, NSA_F64, LAYOUT_THD);
    tensor_fill_abs(&g->dx, start);
    phi_case_init(&g->dphi, sh, &c->cfg, NSA_F64);
    block_sizes b = {.sh = *sh,
                     .x = doubles(sh->block * sh->d),
                     .dx = doubles(sh->block * sh->d),
                     .y = doubles(sh->d),
                     .dy = doubles(sh->d),
                     .z = doubles(most),
                     .dz = doubles(most),
                     .logit = doubles(sh->block),
                     .a = doubles(sh->block),
                     .dlogit = doubles(sh->block)};
    for (int m = 0; m < N_PHI_MEMBERS; m++) {
        b.w[m] = doubles(set_size(&c->phi, m, n_sets));
        b.dw[m] = g->dphi.m[m].t.data;
        for (int64_t i = 0; i < set_size(&c->phi, m, n_sets) * n_sets; i++)
            b.dw[m][i] = 0.0;
    }
    for (int32_t head = 0; head < sh->n_heads; head++) {
        for (int m = 0; m < N_PHI_MEMBERS; m++) {
            const int64_t n = set_size(&c->phi, m, n_sets), first = sh->per_head ? head * n : 0;
            b.dw[m] = (double *)g->dphi.m[m].t.data + first;
            for (int64_t i = 0; i < n; i++)
                b.w[m][i] = c->phi.given[m] ? dtype_get(c->phi.m[m].t.data, c->phi.m[m].t.dtype, first + i) : 0.0;
        }
        for (int32_t s = 0; s < c->batch.n_seqs; s++)
            for (int64_t i = 0; i < tensor_rows(y, s); i++)
                run_block(c, &b, s, head, i, y, &g->dx);
    }
}
