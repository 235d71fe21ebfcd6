#include "lm/run.h"
#include "lm/arena.h"
#include "lm/error.h"
#include "lm/layers.h"
#include "lm/matmul.h"

#include <string.h>

/* ---- Buffers ----------------------------------------------------------------------------------------------------- */

static void take_attention(lm_arena *a, const run *r, layer_acts *l)
{
    const model_config *c = &r->m->cfg.model;
    const int64_t rows = r->rows;
    const int64_t q = (int64_t)c->heads * c->head_dim;
    l->qkv = lm_take_floats(a, rows, r->m->columns.width);
    l->rot = lm_take_floats(a, rows, r->m->columns.rot_width);
    l->o = lm_take_floats(a, rows, q);
    l->lse[NSA_WIN] = lm_take_floats(a, rows, c->heads);
    if (model_is_dense(r->m))
        return;
    l->gate_pre = lm_take_floats(a, rows, c->gate_hidden);
    l->gate_hidden = lm_take_floats(a, rows, c->gate_hidden);
    l->gate = lm_take_floats(a, rows, (int64_t)c->heads * NSA_N_BRANCHES);
    if (r->training) {
        l->lse[NSA_CMP] = lm_take_floats(a, rows, c->heads);
        l->lse[NSA_SLC] = lm_take_floats(a, rows, c->heads);
        for (int b = 0; b < NSA_N_BRANCHES; b++)
            l->o_branch[b] = lm_take_floats(a, rows, q);
        const int64_t kv = (int64_t)c->kv_heads * c->head_dim;
        l->k_cmp = lm_take_floats(a, rows / c->cmp_stride + 1, kv);
        l->v_cmp = lm_take_floats(a, rows / c->cmp_stride + 1, kv);
        l->slc_idx = lm_take(a, rows, size_of(i64_mul(c->kv_heads, c->slc_topk), sizeof(int32_t)));
    }
}

static void take_layer(lm_arena *a, const run *r, layer_acts *l)
{
    const model_config *c = &r->m->cfg.model;
    l->x = lm_take_floats(a, r->rows, c->d_model);
    l->mid = r->training ? lm_take_floats(a, r->rows, c->d_model) : l->x;
    l->attn_in = lm_take_floats(a, r->rows, c->d_model);
    l->attn_rstd = lm_take_floats(a, r->rows, 1);
    take_attention(a, r, l);
    l->ffn_in = lm_take_floats(a, r->rows, c->d_model);
    l->ffn_rstd = lm_take_floats(a, r->rows, 1);
    l->ffn_pre = lm_take_floats(a, r->rows, 2 * (int64_t)c->d_ff);
    l->ffn_act = lm_take_floats(a, r->rows, c->d_ff);
}

static void take_grads(lm_arena *a, run *r)
{
    const model_config *c = &r->m->cfg.model;
    r->d.x = lm_take_floats(a, r->rows, c->d_model);
    r->d.in = lm_take_floats(a, r->rows, c->d_model);
    r->d.qkv = lm_take_floats(a, r->rows, r->m->columns.width);
    r->d.rot = lm_take_floats(a, r->rows, r->m->columns.rot_width);
    r->d.gate = lm_take_floats(a, r->rows, (int64_t)c->heads * NSA_N_BRANCHES);
    r->d.gate_hidden = lm_take_floats(a, r->rows, c->gate_hidden);
    r->d.o = lm_take_floats(a, r->rows, (int64_t)c->heads * c->head_dim);
    r->d.ffn_pre = lm_take_floats(a, r->rows, 2 * (int64_t)c->d_ff);
    r->d.ffn_act = lm_take_floats(a, r->rows, c->d_ff);
}

static void take_all(lm_arena *a, run *r)
{
    const model_config *c = &r->m->cfg.model;
    r->layers = lm_take(a, c->layers + 1, sizeof *r->layers);
    layer_acts shared = {0};
    if (!r->training)
        take_layer(a, r, &shared);
    for (int32_t l = 0; l <= c->layers; l++) {
        layer_acts acts = shared;
        if (r->training && l < c->layers)
            take_layer(a, r, &acts);
        else if (r->training)
            acts.x = lm_take_floats(a, r->rows, c->d_model);
        if (r->layers != NULL)
            r->layers[l] = acts;
    }
    r->final_in = lm_take_floats(a, r->rows, c->d_model);
    r->final_rstd = lm_take_floats(a, r->rows, 1);
    r->logits = lm_take_floats(a, r->rows, BYTE_VOCABULARY);
    r->loss = lm_take_floats(a, r->rows, 1);
    r->rope = lm_take_floats(a, r->seqlen, c->head_dim);
    r->cu_seqlens = lm_take(a, (int64_t)r->n_seqs + 1, sizeof *r->cu_seqlens);
    if (r->training)
        take_grads(a, r);
}

static bool allocate(run *r)
{
    lm_arena a = {0};
    take_all(&a, r);
    r->memory = a.base = lm_alloc_zeroed(a.used);
    if (r->memory == NULL)
        return lm_fail("out of memory: %.1f GB of activations for %d sequences of %d tokens", (double)a.used * 1e-9,
                       r->n_seqs, r->seqlen);
    a.used = 0;
    take_all(&a, r);
    rope_table(r->rope, r->seqlen, r->m->cfg.model.head_dim, r->m->cfg.model.rope_theta);
    for (int32_t s = 0; s <= r->n_seqs; s++)
        r->cu_seqlens[s] = s * r->seqlen;
    LM_TRY(attention_workspace(r, &r->workspace_bytes));
    r->workspace = lm_alloc_zeroed(r->workspace_bytes);
    if (r->workspace == NULL)
        return lm_fail("out of memory: %.1f GB of workspace", (double)r->workspace_bytes * 1e-9);
    return true;
}

bool run_create(run **out, const model *m, int32_t n_seqs, int32_t seqlen, bool training)
{
    *out = NULL;
    run *r = calloc(1, sizeof *r);
    if (r == NULL)
        return lm_out_of_memory("a run");
    *r = (run){.m = m, .n_seqs = n_seqs, .seqlen = seqlen, .rows = (int64_t)n_seqs * seqlen, .training = training};
    if (r->rows > INT32_MAX) {
        run_destroy(r);
        return lm_fail("%d sequences of %d tokens are more than %d tokens", n_seqs, seqlen, INT32_MAX);
    }
    if (!allocate(r)) {
        run_destroy(r);
        return false;
    }
    *out = r;
    return true;
}

void run_destroy(run *r)
{
    if (r == NULL)
        return;
    free(r->memory);
    free(r->workspace);
    free(r);
}

/* ---- Forward ----------------------------------------------------------------------------------------------------- */

static void copy_unless_same(float *dst, const float *src, int64_t count)
{
    if (dst != src)
        memcpy(dst, src, (size_t)count * sizeof *dst);
}

static bool project_forward(run *r, int32_t l)
{
    const model *m = r->m;
    const model_config *c = &m->cfg.model;
    const layer_params *p = &m->layers[l];
    const float *w = m->weights;
    layer_acts *a = &r->layers[l];
    const int64_t d = c->d_model;
    rmsnorm_forward(a->attn_in, a->attn_rstd, a->x, w + p->attn_norm, r->rows, d);
    LM_TRY(matmul(a->qkv, m->columns.width, plain(a->attn_in, d), plain(w + p->qkv, m->columns.width), r->rows,
                  m->columns.width, d, false));
    if (model_is_dense(m))
        return true;
    const int64_t h = c->gate_hidden;
    const int64_t n = (int64_t)c->heads * NSA_N_BRANCHES;
    LM_TRY(matmul(a->gate_pre, h, plain(a->attn_in, d), plain(w + p->gate_w1, h), r->rows, h, d, false));
    bias_silu_forward(a->gate_hidden, a->gate_pre, w + p->gate_b1, r->rows, h);
    LM_TRY(matmul(a->gate, n, plain(a->gate_hidden, h), plain(w + p->gate_w2, n), r->rows, n, h, false));
    bias_sigmoid_forward(a->gate, w + p->gate_b2, r->rows, n);
    return true;
}

static bool layer_forward(run *r, int32_t l)
{
    const model_config *c = &r->m->cfg.model;
    const layer_params *p = &r->m->layers[l];
    const float *w = r->m->weights;
    layer_acts *a = &r->layers[l];
    float *next = r->layers[l + 1].x;
    const int64_t d = c->d_model;
    const int64_t q = (int64_t)c->heads * c->head_dim;
    LM_TRY(project_forward(r, l));
    LM_TRY(attention_forward(r, l));
    copy_unless_same(a->mid, a->x, r->rows * d);
    LM_TRY(matmul(a->mid, d, plain(a->o, q), plain(w + p->attn_out, d), r->rows, d, q, true));

    rmsnorm_forward(a->ffn_in, a->ffn_rstd, a->mid, w + p->ffn_norm, r->rows, d);
    const int64_t both = 2 * (int64_t)c->d_ff;
    LM_TRY(matmul(a->ffn_pre, both, plain(a->ffn_in, d), plain(w + p->ffn_in, both), r->rows, both, d, false));
    swiglu_forward(a->ffn_act, a->ffn_pre, r->rows, c->d_ff);
    copy_unless_same(next, a->mid, r->rows * d);
    return matmul(next, d, plain(a->ffn_act, c->d_ff), plain(w + p->ffn_out, d), r->rows, d, c->d_ff, true);
}

bool lm_forward(run *r, const uint8_t *tokens)
{
    const model *m = r->m;
    const int32_t layers = m->cfg.model.layers;
    const int64_t d = m->cfg.model.d_model;
    const float *embedding = m->weights + m->embedding;
    float *x = r->layers[0].x;
    for (int64_t i = 0; i < r->rows; i++)
        memcpy(x + i * d, embedding + tokens[i] * d, (size_t)d * sizeof *x);
    for (int32_t l = 0; l < layers; l++)
        LM_TRY(layer_forward(r, l));
    rmsnorm_forward(r->final_in, r->final_rstd, r->layers[layers].x, m->weights + m->final_norm, r->rows, d);
    return matmul(r->logits, BYTE_VOCABULARY, plain(r->final_in, d), transposed(embedding, d), r->rows, BYTE_VOCABULARY,
                  d, false);
}

void lm_loss(run *r, const uint8_t *targets, double *mean)
{
    cross_entropy(r->loss, r->logits, targets, r->rows, BYTE_VOCABULARY, 1.0F / (float)r->rows);
    double sum = 0.0;
    for (int64_t i = 0; i < r->rows; i++)
        sum += (double)r->loss[i];
    *mean = sum / (double)r->rows;
}

/* ---- Backward ---------------------------------------------------------------------------------------------------- */

/* y = x W: dW = x^T dy, dx = dy W^T (or dx += with add). x is [rows][in], dy [rows][out]. */
static bool linear_backward(const run *r, float *dx, bool add, float *dw, const float *dy, const float *x,
                            const float *w, int64_t in, int64_t out)
{
    LM_TRY(matmul(dw, out, transposed(x, in), plain(dy, out), in, out, r->rows, false));
    return matmul(dx, in, plain(dy, out), transposed(w, out), r->rows, in, out, add);
}

static bool ffn_backward(run *r, int32_t l, float *g)
{
    const model_config *c = &r->m->cfg.model;
    const layer_params *p = &r->m->layers[l];
    const float *w = r->m->weights;
    const layer_acts *a = &r->layers[l];
    const layer_grads *d = &r->d;
    LM_TRY(
        linear_backward(r, d->ffn_act, false, g + p->ffn_out, d->x, a->ffn_act, w + p->ffn_out, c->d_ff, c->d_model));
    swiglu_backward(d->ffn_pre, d->ffn_act, a->ffn_pre, r->rows, c->d_ff);
    LM_TRY(linear_backward(r, d->in, false, g + p->ffn_in, d->ffn_pre, a->ffn_in, w + p->ffn_in, c->d_model,
                           2 * (int64_t)c->d_ff));
    rmsnorm_backward(d->x, g + p->ffn_norm, d->in, a->mid, a->ffn_rstd, w + p->ffn_norm, r->rows, c->d_model);
    return true;
}

/* From d->gate, the gradient of the gates, adds to d->in. */
static bool gate_backward(run *r, int32_t l, float *g)
{
    const model_config *c = &r->m->cfg.model;
    const layer_params *p = &r->m->layers[l];
    const float *w = r->m->weights;
    const layer_acts *a = &r->layers[l];
    const layer_grads *d = &r->d;
    const int64_t n = (int64_t)c->heads * NSA_N_BRANCHES;
    sigmoid_backward(d->gate, a->gate, r->rows, n);
    sum_rows(g + p->gate_b2, d->gate, r->rows, n);
    LM_TRY(linear_backward(r, d->gate_hidden, false, g + p->gate_w2, d->gate, a->gate_hidden, w + p->gate_w2,
                           c->gate_hidden, n));
    silu_backward(d->gate_hidden, d->gate_hidden, a->gate_pre, r->rows, c->gate_hidden);
    sum_rows(g + p->gate_b1, d->gate_hidden, r->rows, c->gate_hidden);
    return linear_backward(r, d->in, true, g + p->gate_w1, d->gate_hidden, a->attn_in, w + p->gate_w1, c->d_model,
                           c->gate_hidden);
}

static bool layer_backward(run *r, int32_t l, float *g)
{
    const model_config *c = &r->m->cfg.model;
    const layer_params *p = &r->m->layers[l];
    const float *w = r->m->weights;
    const layer_acts *a = &r->layers[l];
    const layer_grads *d = &r->d;
    LM_TRY(ffn_backward(r, l, g));
    LM_TRY(linear_backward(r, d->o, false, g + p->attn_out, d->x, a->o, w + p->attn_out,
                           (int64_t)c->heads * c->head_dim, c->d_model));
    LM_TRY(attention_backward(r, l, g));
    LM_TRY(
        linear_backward(r, d->in, false, g + p->qkv, d->qkv, a->attn_in, w + p->qkv, c->d_model, r->m->columns.width));
    if (!model_is_dense(r->m))
        LM_TRY(gate_backward(r, l, g));
    rmsnorm_backward(d->x, g + p->attn_norm, d->in, a->x, a->attn_rstd, w + p->attn_norm, r->rows, c->d_model);
    return true;
}

bool lm_backward(run *r, const uint8_t *tokens, float *g)
{
    const model *m = r->m;
    const int32_t layers = m->cfg.model.layers;
    const int64_t d = m->cfg.model.d_model;
    const float *w = m->weights;
    float *dlogits = r->logits;
    memset(r->d.x, 0, (size_t)(r->rows * d) * sizeof *r->d.x);
    LM_TRY(matmul(g + m->embedding, d, transposed(dlogits, BYTE_VOCABULARY), plain(r->final_in, d), BYTE_VOCABULARY, d,
                  r->rows, false));
    LM_TRY(matmul(r->d.in, d, plain(dlogits, BYTE_VOCABULARY), plain(w + m->embedding, d), r->rows, d, BYTE_VOCABULARY,
                  false));
    rmsnorm_backward(r->d.x, g + m->final_norm, r->d.in, r->layers[layers].x, r->final_rstd, w + m->final_norm, r->rows,
                     d);
    for (int32_t l = layers - 1; l >= 0; l--)
        LM_TRY(layer_backward(r, l, g));
    /* Tokens add to the rows of the embedding in their order. */
    for (int64_t i = 0; i < r->rows; i++) {
        float *row = g + m->embedding + tokens[i] * d;
        for (int64_t c = 0; c < d; c++)
            row[c] += r->d.x[i * d + c];
    }
    return true;
}
