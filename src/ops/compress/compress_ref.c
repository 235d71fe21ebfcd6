/* The oracle of compression: plain loops in double, one block at a time. */
#include "ops/compress/compress.h"

#include <math.h>

enum { PE, W1, B1, W2, B2, N_MEMBERS };

typedef struct work {
    ref_rounding rounding;
    nsa_phi_kind kind;
    int64_t block, d, hidden;
    int64_t width; /* logits of a token: d, or 1 for gated_token */
    int64_t size[N_MEMBERS];
    double *w[N_MEMBERS], *dw[N_MEMBERS]; /* a set of parameters, and its gradients; absent ones are 0 */
    double *x, *y, *dx, *dy;              /* of a block: [block][d] with pe added, [d] */
    double *z, *h, *dz, *dh;              /* mlp: [hidden] before and after GELU */
    double *a, *da;                       /* gated: [block][width] */
    double *dx_all;                       /* [tokens of a sequence][d] */
} work;

static double add(const work *k, double sum, double a, double b)
{
    return ref_op(k->rounding, sum + ref_op(k->rounding, a * b));
}

/* y = x w + bias */
static void dense(const work *k, const double *x, const double *w, const double *bias, int64_t in, int64_t out,
                  double *y)
{
    for (int64_t j = 0; j < out; j++) {
        y[j] = bias == NULL ? 0.0 : bias[j];
        for (int64_t i = 0; i < in; i++)
            y[j] = add(k, y[j], x[i], w[i * out + j]);
    }
}

/* dx += dy w^T, dw += x^T dy, db += dy */
static void dense_backward(const work *k, const double *x, const double *w, const double *dy, int64_t in, int64_t out,
                           double *dx, double *dw, double *db)
{
    for (int64_t i = 0; i < in; i++)
        for (int64_t j = 0; j < out; j++) {
            dx[i] = add(k, dx[i], dy[j], w[i * out + j]);
            dw[i * out + j] = add(k, dw[i * out + j], x[i], dy[j]);
        }
    for (int64_t j = 0; db != NULL && j < out; j++)
        db[j] = add(k, db[j], dy[j], 1.0);
}

static double gelu(double z)
{
    return 0.5 * z * erfc(-z * sqrt(0.5));
}

static double gelu_slope(double z)
{
    const double inv_sqrt_2pi = 0.39894228040143267794;
    return 0.5 * erfc(-z * sqrt(0.5)) + z * exp(-0.5 * z * z) * inv_sqrt_2pi;
}

/* a <- softmax of the logits a over the block's tokens, for each of the width columns. */
static void softmax_tokens(const work *k)
{
    for (int64_t c = 0; c < k->width; c++) {
        double most = -INFINITY, sum = 0.0;
        for (int64_t r = 0; r < k->block; r++)
            most = fmax(most, k->a[r * k->width + c]);
        for (int64_t r = 0; r < k->block; r++) {
            double *a = &k->a[r * k->width + c];
            *a = ref_op(k->rounding, exp(ref_op(k->rounding, *a - most)));
            sum = add(k, sum, *a, 1.0);
        }
        for (int64_t r = 0; r < k->block; r++)
            k->a[r * k->width + c] = ref_op(k->rounding, k->a[r * k->width + c] / sum);
    }
}

static void forward_block(const work *k)
{
    if (k->kind == NSA_PHI_LINEAR) {
        dense(k, k->x, k->w[W1], NULL, k->block * k->d, k->d, k->y);
    } else if (k->kind == NSA_PHI_MLP) {
        dense(k, k->x, k->w[W1], k->w[B1], k->block * k->d, k->hidden, k->z);
        for (int64_t j = 0; j < k->hidden; j++)
            k->h[j] = ref_op(k->rounding, gelu(k->z[j]));
        dense(k, k->h, k->w[W2], k->w[B2], k->hidden, k->d, k->y);
    } else {
        for (int64_t r = 0; r < k->block && k->kind != NSA_PHI_MEAN; r++)
            dense(k, k->x + r * k->d, k->w[W1], k->w[B1] + r * k->width, k->d, k->width, k->a + r * k->width);
        if (k->kind != NSA_PHI_MEAN)
            softmax_tokens(k);
        for (int64_t c = 0; c < k->d; c++) {
            double sum = 0.0;
            for (int64_t r = 0; r < k->block; r++)
                sum =
                    add(k, sum, k->kind == NSA_PHI_MEAN ? 1.0 : k->a[r * k->width + c % k->width], k->x[r * k->d + c]);
            k->y[c] = k->kind == NSA_PHI_MEAN ? sum / (double)k->block : sum;
        }
    }
}

/* Adds to dx and dw, after forward_block. */
static void backward_block(const work *k)
{
    const int64_t in = k->block * k->d;
    if (k->kind == NSA_PHI_MEAN) {
        for (int64_t i = 0; i < in; i++)
            k->dx[i] = k->dy[i % k->d] / (double)k->block;
    } else if (k->kind == NSA_PHI_LINEAR) {
        dense_backward(k, k->x, k->w[W1], k->dy, in, k->d, k->dx, k->dw[W1], NULL);
    } else if (k->kind == NSA_PHI_MLP) {
        for (int64_t j = 0; j < k->hidden; j++)
            k->dh[j] = 0.0;
        dense_backward(k, k->h, k->w[W2], k->dy, k->hidden, k->d, k->dh, k->dw[W2], k->dw[B2]);
        for (int64_t j = 0; j < k->hidden; j++)
            k->dz[j] = ref_op(k->rounding, k->dh[j] * ref_op(k->rounding, gelu_slope(k->z[j])));
        dense_backward(k, k->x, k->w[W1], k->dz, in, k->hidden, k->dx, k->dw[W1], k->dw[B1]);
    } else {
        for (int64_t i = 0; i < k->block * k->width; i++)
            k->da[i] = 0.0;
        for (int64_t i = 0; i < in; i++) {
            const int64_t logit = i / k->d * k->width + i % k->d % k->width;
            k->dx[i] = add(k, k->dx[i], k->a[logit], k->dy[i % k->d]);
            k->da[logit] = add(k, k->da[logit], k->x[i], k->dy[i % k->d]);
        }
        for (int64_t c = 0; c < k->width; c++) { /* da <- d logits = a (da - sum a da) */
            double mean = 0.0;
            for (int64_t r = 0; r < k->block; r++)
                mean = add(k, mean, k->a[r * k->width + c], k->da[r * k->width + c]);
            for (int64_t r = 0; r < k->block; r++) {
                double *da = &k->da[r * k->width + c];
                *da = ref_op(k->rounding, k->a[r * k->width + c] * ref_op(k->rounding, *da - mean));
            }
        }
        for (int64_t r = 0; r < k->block; r++)
            dense_backward(k, k->x + r * k->d, k->w[W1], k->da + r * k->width, k->d, k->width, k->dx + r * k->d,
                           k->dw[W1], k->dw[B1] + r * k->width);
    }
    if (k->kind == NSA_PHI_LINEAR || k->kind == NSA_PHI_MLP)
        for (int64_t i = 0; i < in; i++)
            k->dw[PE][i] = add(k, k->dw[PE][i], k->dx[i], 1.0);
}

static void *const *members(const nsa_phi *phi, void *out[N_MEMBERS])
{
    out[PE] = phi->pe, out[W1] = phi->w1, out[B1] = phi->b1, out[W2] = phi->w2, out[B2] = phi->b2;
    return out;
}

static void load_set(const work *k, const nsa_phi *phi, int64_t set)
{
    void *from[N_MEMBERS];
    members(phi, from);
    for (int m = 0; m < N_MEMBERS; m++)
        for (int64_t i = 0; i < k->size[m]; i++) {
            k->w[m][i] = from[m] == NULL ? 0.0 : dtype_get(from[m], phi->dtype, set * k->size[m] + i);
            k->dw[m][i] = 0.0;
        }
}

static void store_set(const work *k, const nsa_phi *dphi, int64_t set)
{
    void *to[N_MEMBERS];
    members(dphi, to);
    for (int m = 0; m < N_MEMBERS; m++)
        for (int64_t i = 0; to[m] != NULL && i < k->size[m]; i++)
            dtype_set(to[m], dphi->dtype, set * k->size[m] + i, k->dw[m][i]);
}

static work carve(const compress_problem *p, arena *ws, bool backward)
{
    const int64_t block = p->cfg->cmp_block, d = p->d;
    const int64_t hidden = p->phi.kind == NSA_PHI_MLP ? p->phi.d_hidden : 0;
    const phi_sizes n = compress_phi_sizes(p);
    work k = {.rounding = p->rounding,
              .kind = p->phi.kind,
              .block = block,
              .d = d,
              .hidden = hidden,
              .width = p->phi.kind == NSA_PHI_GATED_TOKEN ? 1 : d,
              .size = {n.pe, n.w1, n.b1, n.w2, n.b2}};
    int64_t longest = 0;
    for (int32_t s = 0; s < p->seqs.n && backward; s++)
        longest = max_i64(longest, seq_at(&p->seqs, s).t_k);
    for (int m = 0; m < N_MEMBERS; m++) {
        k.w[m] = arena_take(ws, k.size[m], sizeof(double));
        k.dw[m] = arena_take(ws, k.size[m], sizeof(double));
    }
    double **const arrays[] = {&k.x, &k.dx, &k.a, &k.da, &k.y, &k.dy, &k.z, &k.h, &k.dz, &k.dh, &k.dx_all};
    const int64_t sizes[] = {block * d, block * d, block * d, block * d, d,          d,
                             hidden,    hidden,    hidden,    hidden,    longest * d};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        *arrays[i] = arena_take(ws, sizes[i], sizeof(double));
    return k;
}

static void load_block(const compress_problem *p, const work *k, const rows *x, int64_t i)
{
    const bool has_pe = k->kind == NSA_PHI_LINEAR || k->kind == NSA_PHI_MLP;
    for (int64_t r = 0; r < k->block; r++)
        for (int64_t c = 0; c < k->d; c++) {
            const double pe = has_pe ? k->w[PE][r * k->d + c] : 0.0;
            k->x[r * k->d + c] =
                ref_op(k->rounding, dtype_get(rows_at(x, i * p->cfg->cmp_stride + r), x->dtype, c) + pe);
        }
}

void compress_ref_forward(const void *problem, arena *ws)
{
    const compress_problem *p = problem;
    const work k = carve(p, ws, false);
    if (arena_counts(ws))
        return;
    for (int32_t head = 0; head < p->cfg->n_heads_kv; head++) {
        load_set(&k, &p->phi, p->phi.per_head ? head : 0);
        for (int32_t s = 0; s < p->seqs.n; s++) {
            const cmp_blocks b = compress_blocks(p, s);
            const rows x = rows_of(&p->x, s, head);
            for (int64_t i = b.first; i < b.n; i++) {
                load_block(p, &k, &x, i);
                forward_block(&k);
                for (int64_t c = 0; c < k.d; c++)
                    dtype_set(tensor_at(&p->y, s, b.y_row, i - b.first, head), p->y.dtype, c, k.y[c]);
            }
        }
    }
}

static void backward_sequence(const compress_problem *p, const work *k, int32_t s, int32_t head)
{
    const seq q = seq_at(&p->seqs, s);
    const cmp_blocks b = compress_blocks(p, s);
    const rows x = rows_of(&p->x, s, head);
    for (int64_t i = 0; i < q.t_k * k->d; i++)
        k->dx_all[i] = 0.0;
    for (int64_t i = 0; i < b.n; i++) {
        load_block(p, k, &x, i);
        forward_block(k);
        for (int64_t c = 0; c < k->d; c++)
            k->dy[c] = dtype_get(tensor_at(&p->dy, s, b.y_row, i, head), p->dy.dtype, c);
        for (int64_t e = 0; e < k->block * k->d; e++)
            k->dx[e] = 0.0;
        backward_block(k);
        double *dx = k->dx_all + i * p->cfg->cmp_stride * k->d;
        for (int64_t e = 0; e < k->block * k->d; e++)
            dx[e] = add(k, dx[e], k->dx[e], 1.0);
    }
    for (int64_t t = 0; t < q.t_k; t++)
        for (int64_t c = 0; c < k->d; c++) {
            void *to = tensor_at(&p->dx, s, q.k0, t, head);
            const double before = p->add_dx ? dtype_get(to, p->dx.dtype, c) : 0.0;
            dtype_set(to, p->dx.dtype, c, before + k->dx_all[t * k->d + c]);
        }
}

void compress_ref_backward(const void *problem, arena *ws)
{
    const compress_problem *p = problem;
    const work k = carve(p, ws, true);
    if (arena_counts(ws))
        return;
    for (int32_t head = 0; head < p->cfg->n_heads_kv; head++) {
        if (p->phi.per_head || head == 0)
            load_set(&k, &p->phi, head);
        for (int32_t s = 0; s < p->seqs.n; s++)
            backward_sequence(p, &k, s, head);
        if (p->phi.per_head || head == p->cfg->n_heads_kv - 1)
            store_set(&k, &p->dphi, p->phi.per_head ? head : 0);
    }
}
