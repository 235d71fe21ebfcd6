/* The attention of a layer: queries and keys are rotated, then the library is called; and the way back. */
#include "lm/error.h"
#include "lm/layers.h"
#include "lm/run.h"
#include "lm/session.h"

static nsa_batch batch_of(const run *r)
{
    return (nsa_batch){.n_seqs = r->n_seqs,
                       .max_seqlen_q = r->seqlen,
                       .max_seqlen_k = r->seqlen,
                       .total_q = r->rows,
                       .total_k = r->rows,
                       .cu_seqlens_q = r->cu_seqlens,
                       .cu_seqlens_k = r->cu_seqlens};
}

/* Heads that start at `column` of rows of `width`. */
static nsa_tensor heads_at(const model *m, float *rows, int32_t width, int32_t column)
{
    nsa_tensor t = nsa_packed(rows + column, NSA_F32, 1, m->cfg.model.head_dim);
    t.stride_token = width;
    t.stride_head = m->cfg.model.head_dim;
    return t;
}

/* q, k and v of each branch in rows of projections (or of their gradients) and of the rotated copies. */
void attention_inputs(const model *m, float *qkv, float *rot, nsa_tensor q[], nsa_tensor k[], nsa_tensor v[])
{
    const qkv_columns *c = &m->columns;
    for (int b = 0; b < NSA_N_BRANCHES; b++) {
        const bool raw = b == NSA_CMP;
        q[b] = raw ? heads_at(m, qkv, c->width, c->q) : heads_at(m, rot, c->rot_width, c->rot_q);
        k[b] = raw ? heads_at(m, qkv, c->width, c->k[b]) : heads_at(m, rot, c->rot_width, c->rot_k[b]);
        v[b] = heads_at(m, qkv, c->width, c->v[b]);
    }
}

/* ---- NSA --------------------------------------------------------------------------------------------------------- */

typedef struct nsa_call {
    nsa_forward_args fwd;
    nsa_phi phi_k, phi_v;
} nsa_call;

static void make_nsa_call(const run *r, int32_t l, nsa_call *call)
{
    const model *m = r->m;
    const model_config *c = &m->cfg.model;
    const layer_acts *a = &r->layers[l];
    call->phi_k = model_phi(m, &m->layers[l].phi_k, m->weights);
    call->phi_v = model_phi(m, &m->layers[l].phi_v, m->weights);
    nsa_forward_args *f = &call->fwd;
    *f = (nsa_forward_args){.phi_k = &call->phi_k, .phi_v = &call->phi_v};
    attention_inputs(m, a->qkv, a->rot, f->q, f->k, f->v);
    f->gate = nsa_packed(a->gate, NSA_F32, c->heads, NSA_N_BRANCHES);
    f->o = nsa_packed(a->o, NSA_F32, c->heads, c->head_dim);
    if (!r->training)
        return;
    f->k_cmp = nsa_packed(a->k_cmp, NSA_F32, c->kv_heads, c->head_dim);
    f->v_cmp = nsa_packed(a->v_cmp, NSA_F32, c->kv_heads, c->head_dim);
    f->slc_idx = nsa_packed(a->slc_idx, NSA_I32, c->kv_heads, c->slc_topk);
    for (int b = 0; b < NSA_N_BRANCHES; b++) {
        f->o_branch[b] = nsa_packed(a->o_branch[b], NSA_F32, c->heads, c->head_dim);
        f->lse[b] = nsa_packed(a->lse[b], NSA_F32, c->heads, 1);
    }
}

typedef struct nsa_back_call {
    nsa_call fwd;
    nsa_backward_args args;
    nsa_phi dphi_k, dphi_v;
} nsa_back_call;

static void make_nsa_back_call(const run *r, int32_t l, float *grads, nsa_back_call *call)
{
    const model *m = r->m;
    const model_config *c = &m->cfg.model;
    make_nsa_call(r, l, &call->fwd);
    call->dphi_k = model_phi(m, &m->layers[l].phi_k, grads);
    call->dphi_v = model_phi(m, &m->layers[l].phi_v, grads);
    nsa_backward_args *b = &call->args;
    *b = (nsa_backward_args){.fwd = call->fwd.fwd, .dphi_k = &call->dphi_k, .dphi_v = &call->dphi_v};
    b->d_o = nsa_packed(r->d.o, NSA_F32, c->heads, c->head_dim);
    b->dgate = nsa_packed(r->d.gate, NSA_F32, c->heads, NSA_N_BRANCHES);
    attention_inputs(m, r->d.qkv, r->d.rot, b->dq, b->dk, b->dv);
}

/* ---- Dense ------------------------------------------------------------------------------------------------------- */

static nsa_attn_args make_dense_call(const run *r, int32_t l)
{
    const model_config *c = &r->m->cfg.model;
    const layer_acts *a = &r->layers[l];
    nsa_tensor q[NSA_N_BRANCHES], k[NSA_N_BRANCHES], v[NSA_N_BRANCHES];
    attention_inputs(r->m, a->qkv, a->rot, q, k, v);
    return (nsa_attn_args){.q = q[NSA_WIN],
                           .k = k[NSA_WIN],
                           .v = v[NSA_WIN],
                           .o = nsa_packed(a->o, NSA_F32, c->heads, c->head_dim),
                           .lse = nsa_packed(a->lse[NSA_WIN], NSA_F32, c->heads, 1)};
}

static nsa_attn_backward_args make_dense_back_call(const run *r, int32_t l)
{
    const model_config *c = &r->m->cfg.model;
    nsa_tensor dq[NSA_N_BRANCHES], dk[NSA_N_BRANCHES], dv[NSA_N_BRANCHES];
    attention_inputs(r->m, r->d.qkv, r->d.rot, dq, dk, dv);
    return (nsa_attn_backward_args){.fwd = make_dense_call(r, l),
                                    .d_o = nsa_packed(r->d.o, NSA_F32, c->heads, c->head_dim),
                                    .dq = dq[NSA_WIN],
                                    .dk = dk[NSA_WIN],
                                    .dv = dv[NSA_WIN]};
}

/* ---- Both -------------------------------------------------------------------------------------------------------- */

static size_t max_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

bool attention_workspace(const run *r, size_t *bytes)
{
    const model *m = r->m;
    const nsa_batch batch = batch_of(r);
    size_t forward = 0;
    size_t backward = 0;
    if (model_is_dense(m)) {
        const nsa_attn_args args = make_dense_call(r, 0);
        LM_TRY(lm_nsa(nsa_win_attn_workspace(m->ctx, &m->nsa, &batch, &args, &forward), "nsa_win_attn"));
        if (r->training) {
            const nsa_attn_backward_args back = make_dense_back_call(r, 0);
            LM_TRY(lm_nsa(nsa_win_attn_backward_workspace(m->ctx, &m->nsa, &batch, &back, &backward),
                          "nsa_win_attn_backward"));
        }
    } else {
        nsa_call call;
        make_nsa_call(r, 0, &call);
        LM_TRY(lm_nsa(nsa_forward_workspace(m->ctx, &m->nsa, &batch, &call.fwd, &forward), "nsa_forward"));
        if (r->training) {
            nsa_back_call back;
            make_nsa_back_call(r, 0, m->weights, &back); /* sizes only: any memory may stand for the gradients */
            LM_TRY(lm_nsa(nsa_backward_workspace(m->ctx, &m->nsa, &batch, &back.args, &backward), "nsa_backward"));
        }
    }
    *bytes = max_size(forward, backward);
    return true;
}

/* The queries and, for each K that is rotated, its heads. */
static int32_t rotated_heads(const model *m)
{
    return m->columns.rot_width / m->cfg.model.head_dim;
}

static rope rope_of(const run *r)
{
    return (rope){.table = r->rope, .first = r->first, .seqlen = r->seqlen, .d = r->m->cfg.model.head_dim};
}

static void rotate(run *r, int32_t l)
{
    const model *m = r->m;
    const qkv_columns *c = &m->columns;
    const layer_acts *a = &r->layers[l];
    const rope turn = rope_of(r);
    const int32_t n_k = rotated_heads(m) - m->cfg.model.heads; /* those of k_slc and k_win lie side by side */
    rope_rotate(&turn, a->rot + c->rot_q, c->rot_width, a->qkv + c->q, c->width, r->rows, m->cfg.model.heads);
    rope_rotate(&turn, a->rot + c->rot_k[NSA_SLC], c->rot_width, a->qkv + c->k[NSA_SLC], c->width, r->rows, n_k);
}

/* Brings the gradients of rotated rows back. Where the compressed branch has left its own, they are added. */
static void rotate_back(run *r)
{
    const model *m = r->m;
    const qkv_columns *c = &m->columns;
    rope turn = rope_of(r);
    turn.backward = true;
    turn.add = !model_is_dense(m);
    rope_rotate(&turn, r->d.qkv + c->q, c->width, r->d.rot + c->rot_q, c->rot_width, r->rows, m->cfg.model.heads);
    turn.add = turn.add && c->k[NSA_CMP] == c->k[NSA_SLC];
    rope_rotate(&turn, r->d.qkv + c->k[NSA_SLC], c->width, r->d.rot + c->rot_k[NSA_SLC], c->rot_width, r->rows,
                rotated_heads(m) - m->cfg.model.heads);
}

bool attention_forward(run *r, int32_t l)
{
    const model *m = r->m;
    rotate(r, l);
    if (r->kv != NULL)
        return kv_attend(r, l);
    const nsa_batch batch = batch_of(r);
    if (model_is_dense(m)) {
        const nsa_attn_args args = make_dense_call(r, l);
        return lm_nsa(nsa_win_attn(m->ctx, &m->nsa, &batch, &args, r->workspace, r->workspace_bytes, NULL),
                      "nsa_win_attn");
    }
    nsa_call call;
    make_nsa_call(r, l, &call);
    return lm_nsa(nsa_forward(m->ctx, &m->nsa, &batch, &call.fwd, r->workspace, r->workspace_bytes, NULL),
                  "nsa_forward");
}

bool attention_backward(run *r, int32_t l, float *grads)
{
    const model *m = r->m;
    const nsa_batch batch = batch_of(r);
    if (model_is_dense(m)) {
        const nsa_attn_backward_args args = make_dense_back_call(r, l);
        LM_TRY(lm_nsa(nsa_win_attn_backward(m->ctx, &m->nsa, &batch, &args, r->workspace, r->workspace_bytes, NULL),
                      "nsa_win_attn_backward"));
    } else {
        nsa_back_call call;
        make_nsa_back_call(r, l, grads, &call);
        LM_TRY(lm_nsa(nsa_backward(m->ctx, &m->nsa, &batch, &call.args, r->workspace, r->workspace_bytes, NULL),
                      "nsa_backward"));
    }
    rotate_back(r);
    return true;
}
