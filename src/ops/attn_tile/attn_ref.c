#include "ops/attn_tile/attn_ref.h"

#include <math.h>

/* The rows of one (sequence, kv head) and room for the work on them. */
typedef struct scratch {
    rows k, v;
    int32_t *keys;   /* [t_k]: those of the row at hand */
    double *p;       /* [t_k] */
    double *q, *dq;  /* [d_qk] */
    double *o, *d_o; /* [d_v] */
    double *dk, *dv; /* [t_k][d_qk], [t_k][d_v] */
} scratch;

bool attn_ref_supports(const attn_problem *p)
{
    return !p->ctx->cuda;
}

int64_t attn_n_tokens(const nsa_config *cfg, int64_t t_k)
{
    (void)cfg;
    return t_k;
}

static scratch take_scratch(const attn_problem *p, arena *ws, bool backward)
{
    int64_t t_k = 0;
    for (int32_t s = 0; s < p->seqs.n; s++)
        t_k = max_i64(t_k, seq_at(&p->seqs, s).t_k);
    const int64_t d_qk = p->cfg->d_qk, d_v = p->cfg->d_v;
    scratch x = {.keys = arena_take(ws, t_k, sizeof *x.keys)};
    x.p = arena_take(ws, t_k, sizeof *x.p);
    x.q = arena_take(ws, d_qk, sizeof *x.q);
    x.o = arena_take(ws, d_v, sizeof *x.o);
    if (backward) {
        x.dq = arena_take(ws, d_qk, sizeof *x.dq);
        x.d_o = arena_take(ws, d_v, sizeof *x.d_o);
        x.dk = arena_take(ws, t_k, (size_t)d_qk * sizeof *x.dk);
        x.dv = arena_take(ws, t_k, (size_t)d_v * sizeof *x.dv);
    }
    return x;
}

static void load(double *dst, const nsa_tensor *t, const attn_row *row, int64_t h, int64_t d)
{
    const void *src = tensor_at(t, row->s, row->seq.q0, row->r, h);
    for (int64_t c = 0; c < d; c++)
        dst[c] = dtype_get(src, t->dtype, c);
}

static void store(void *dst, nsa_dtype t, const double *src, int64_t d, bool add)
{
    for (int64_t c = 0; c < d; c++)
        dtype_set(dst, t, c, add ? dtype_get(dst, t, c) + src[c] : src[c]);
}

static void clear(double *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = 0.0;
}

/* x . row j */
static double dot(const attn_problem *p, const double *x, const rows *of, int64_t j, int64_t d)
{
    const void *y = rows_at(of, j);
    double sum = 0.0;
    for (int64_t c = 0; c < d; c++)
        sum = ref_op(p->rounding, sum + ref_op(p->rounding, x[c] * dtype_get(y, of->dtype, c)));
    return sum;
}

/* y += a * row j */
static void add_row(const attn_problem *p, double *y, double a, const rows *of, int64_t j, int64_t d)
{
    const void *x = rows_at(of, j);
    for (int64_t c = 0; c < d; c++)
        y[c] = ref_op(p->rounding, y[c] + ref_op(p->rounding, a * dtype_get(x, of->dtype, c)));
}

/* y += a * x */
static void add_scaled(const attn_problem *p, double *y, double a, const double *x, int64_t d)
{
    for (int64_t c = 0; c < d; c++)
        y[c] = ref_op(p->rounding, y[c] + ref_op(p->rounding, a * x[c]));
}

/* o[t][h] and lse[t][h] over n keys. */
static void forward_head(const attn_problem *p, const scratch *x, const attn_row *row, int64_t h, int64_t n)
{
    const ref_rounding rd = p->rounding;
    const double scale = ref_op(rd, config_scale(p->cfg));
    double max = -INFINITY, sum = 0.0;
    load(x->q, &p->q, row, h, p->cfg->d_qk);
    for (int64_t i = 0; i < n; i++) {
        x->p[i] = ref_op(rd, scale * dot(p, x->q, &x->k, x->keys[i], p->cfg->d_qk));
        max = fmax(max, x->p[i]);
    }
    clear(x->o, p->cfg->d_v);
    for (int64_t i = 0; i < n; i++) {
        const double e = ref_op(rd, exp(ref_op(rd, x->p[i] - max)));
        sum = ref_op(rd, sum + e);
        add_row(p, x->o, ref_p(rd, e), &x->v, x->keys[i], p->cfg->d_v);
    }
    for (int64_t c = 0; c < p->cfg->d_v && n > 0; c++)
        x->o[c] /= sum;
    const double lse = n == 0 ? -INFINITY : max + log(sum);
    store(tensor_at(&p->o, row->s, row->seq.q0, row->r, h), p->o.dtype, x->o, p->cfg->d_v, false);
    store(tensor_at(&p->lse, row->s, row->seq.q0, row->r, h), p->lse.dtype, &lse, 1, false);
}

/* dq[t][h], and this row's terms of dk and dv. */
static void backward_head(const attn_problem *p, const scratch *x, const attn_row *row, int64_t h, int64_t n)
{
    const ref_rounding rd = p->rounding;
    const int64_t d_qk = p->cfg->d_qk, d_v = p->cfg->d_v;
    const double scale = ref_op(rd, config_scale(p->cfg));
    double lse = 0.0, gate[NSA_N_BRANCHES] = {1.0, 1.0, 1.0}, delta = 0.0;
    load(x->q, &p->q, row, h, d_qk);
    load(x->o, &p->o, row, h, d_v);
    load(x->d_o, &p->d_o, row, h, d_v);
    load(&lse, &p->lse, row, h, 1);
    if (p->gate.data != NULL)
        load(gate, &p->gate, row, h, NSA_N_BRANCHES);
    for (int64_t c = 0; c < d_v; c++) {
        x->d_o[c] = ref_p(rd, gate[p->branch] * x->d_o[c]);
        delta = ref_op(rd, delta + ref_op(rd, x->d_o[c] * x->o[c]));
    }
    clear(x->dq, d_qk);
    for (int64_t i = 0; i < n; i++) {
        const int64_t j = x->keys[i];
        const double s = ref_op(rd, scale * dot(p, x->q, &x->k, j, d_qk));
        const double prob = ref_op(rd, exp(ref_op(rd, s - lse)));
        const double dp = dot(p, x->d_o, &x->v, j, d_v);
        const double ds = ref_p(rd, ref_op(rd, prob * ref_op(rd, dp - delta)) * scale);
        add_row(p, x->dq, ds, &x->k, j, d_qk);
        add_scaled(p, x->dk + j * d_qk, ds, x->q, d_qk);
        add_scaled(p, x->dv + j * d_v, ref_p(rd, prob), x->d_o, d_v);
    }
    store(tensor_at(&p->dq, row->s, row->seq.q0, row->r, h), p->dq.dtype, x->dq, d_qk, p->add_dq);
}

typedef void head_fn(const attn_problem *p, const scratch *x, const attn_row *row, int64_t h, int64_t n);

/* Every query row of sequence s, and each of the kv head's heads in it. */
static void each_head(const attn_problem *p, const scratch *x, const attn_branch *branch, int32_t s, int32_t kv_head,
                      head_fn *run)
{
    attn_row row = {s, kv_head, seq_at(&p->seqs, s), 0, 0};
    const int64_t group = config_group(p->cfg);
    for (row.r = 0; row.r < row.seq.t_q; row.r++) {
        row.t = row.r + row.seq.t_k - row.seq.t_q;
        const int64_t n = branch->keys(p, &row, x->keys);
        for (int64_t g = 0; g < group; g++)
            run(p, x, &row, kv_head * group + g, n);
    }
}

void attn_ref_forward(const attn_problem *p, arena *ws, const attn_branch *branch)
{
    scratch x = take_scratch(p, ws, false);
    if (arena_counts(ws))
        return;
    for (int32_t s = 0; s < p->seqs.n; s++)
        for (int32_t kv = 0; kv < p->cfg->n_heads_kv; kv++) {
            x.k = rows_of(&p->k, s, kv);
            x.v = rows_of(&p->v, s, kv);
            each_head(p, &x, branch, s, kv, forward_head);
        }
}

void attn_ref_backward(const attn_problem *p, arena *ws, const attn_branch *branch)
{
    scratch x = take_scratch(p, ws, true);
    if (arena_counts(ws))
        return;
    const int64_t d_qk = p->cfg->d_qk, d_v = p->cfg->d_v;
    for (int32_t s = 0; s < p->seqs.n; s++) {
        const int64_t n_keys = branch->n_keys(p->cfg, seq_at(&p->seqs, s).t_k);
        const int64_t k0 = p->k.cu[s] / p->k.start_div;
        for (int32_t kv = 0; kv < p->cfg->n_heads_kv; kv++) {
            x.k = rows_of(&p->k, s, kv);
            x.v = rows_of(&p->v, s, kv);
            clear(x.dk, n_keys * d_qk);
            clear(x.dv, n_keys * d_v);
            each_head(p, &x, branch, s, kv, backward_head);
            for (int64_t j = 0; j < n_keys; j++) {
                store(tensor_at(&p->dk, s, k0, j, kv), p->dk.dtype, x.dk + j * d_qk, d_qk, p->add_dk);
                store(tensor_at(&p->dv, s, k0, j, kv), p->dv.dtype, x.dv + j * d_v, d_v, p->add_dv);
            }
        }
    }
}
