#include "testlib/nsa_case.h"

/* Random parameters of phi, or with r = NULL room for gradients; members lie one after the other. */
static nsa_phi make_phi(const nsa_case *c, int32_t d, rng *r, int64_t *bytes)
{
    enum { HIDDEN = 6 };
    const int64_t block = c->cfg.cmp_block, heads = c->shape.per_head ? c->cfg.n_heads_kv : 1;
    nsa_phi phi = {.kind = c->shape.phi, .dtype = c->shape.dtype, .per_head = c->shape.per_head};
    int64_t n[5] = {0}; /* pe, w1, b1, w2, b2 */
    switch (c->shape.phi) {
    case NSA_PHI_MEAN: break;
    case NSA_PHI_LINEAR: n[0] = block * d, n[1] = block * d * d; break;
    case NSA_PHI_GATED_TOKEN: n[1] = d, n[2] = block; break;
    case NSA_PHI_GATED_CHANNEL: n[1] = (int64_t)d * d, n[2] = block * d; break;
    case NSA_PHI_MLP:
        phi.d_hidden = HIDDEN;
        n[0] = block * d, n[1] = block * d * HIDDEN, n[2] = HIDDEN, n[3] = (int64_t)HIDDEN * d, n[4] = d;
        break;
    }
    const int64_t size = (int64_t)dtype_size(phi.dtype);
    int64_t total = 0;
    for (int i = 0; i < 5; i++)
        total += n[i] * heads;
    *bytes = total * size;
    char *at = guarded((size_t)*bytes, FLUSH_RIGHT);
    void **members[5] = {&phi.pe, &phi.w1, &phi.b1, &phi.w2, &phi.b2};
    for (int i = 0; i < 5; i++) {
        if (n[i] == 0)
            continue;
        *members[i] = at;
        if (r != NULL)
            for (int64_t j = 0; j < n[i] * heads; j++)
                dtype_set(at, phi.dtype, j, rng_normal(r) * (i == 1 ? 0.2 : 0.5));
        at += n[i] * heads * size;
    }
    return phi;
}

static test_tensor random_tensor(const nsa_case *c, side on, int32_t n_heads, int32_t d, rng *r)
{
    const test_tensor t = tensor_new(&c->cfg, &c->batch, on, n_heads, d, c->shape.dtype, c->shape.as);
    tensor_fill_normal(&t, r, 1.0);
    return t;
}

void nsa_case_init(nsa_case *c, const nsa_config *blocks, const nsa_batch *batch, const nsa_shape *shape, rng *r)
{
    *c = (nsa_case){.cfg = *blocks, .batch = *batch, .shape = *shape};
    nsa_config *cfg = &c->cfg;
    cfg->n_heads_kv = shape->n_heads_kv;
    cfg->n_heads_q = shape->n_heads_kv * shape->group;
    cfg->d_qk = shape->d_qk;
    cfg->d_v = shape->d_v;

    const nsa_dtype dtype = shape->dtype, lse = lse_dtype(dtype);
    const layout as = shape->as;
    const nsa_batch *b = &c->batch;
    c->phi_k = make_phi(c, cfg->d_qk, r, &c->dphi_k_bytes);
    c->phi_v = make_phi(c, cfg->d_v, r, &c->dphi_v_bytes);
    c->dphi_k = make_phi(c, cfg->d_qk, NULL, &c->dphi_k_bytes);
    c->dphi_v = make_phi(c, cfg->d_v, NULL, &c->dphi_v_bytes);
    for (int i = 0; i < NSA_N_BRANCHES; i++) {
        const bool copy = i > 0 && shape->shared;
        c->q[i] = copy ? c->q[0] : random_tensor(c, SIDE_Q, cfg->n_heads_q, cfg->d_qk, r);
        c->k[i] = copy ? c->k[0] : random_tensor(c, SIDE_K, cfg->n_heads_kv, cfg->d_qk, r);
        c->v[i] = copy ? c->v[0] : random_tensor(c, SIDE_K, cfg->n_heads_kv, cfg->d_v, r);
        c->dq[i] = copy ? c->dq[0] : tensor_like(&c->q[i], dtype);
        c->dk[i] = copy ? c->dk[0] : tensor_like(&c->k[i], dtype);
        c->dv[i] = copy ? c->dv[0] : tensor_like(&c->v[i], dtype);
        c->o_branch[i] = tensor_new(cfg, b, SIDE_Q, cfg->n_heads_q, cfg->d_v, dtype, as);
        c->lse[i] = tensor_new(cfg, b, SIDE_Q, cfg->n_heads_q, 1, lse, as);
        c->fwd.q[i] = c->q[i].t, c->fwd.k[i] = c->k[i].t, c->fwd.v[i] = c->v[i].t;
        c->fwd.o_branch[i] = c->o_branch[i].t, c->fwd.lse[i] = c->lse[i].t;
        c->bwd.dq[i] = c->dq[i].t, c->bwd.dk[i] = c->dk[i].t, c->bwd.dv[i] = c->dv[i].t;
    }
    c->gate =
        tensor_new(cfg, b, SIDE_Q, cfg->n_heads_q, NSA_N_BRANCHES, dtype, shape->token_gate ? LAYOUT_ONE_HEAD : as);
    tensor_fill_normal(&c->gate, r, 0.5);
    c->d_o = random_tensor(c, SIDE_Q, cfg->n_heads_q, cfg->d_v, r);
    c->o = tensor_like(&c->d_o, dtype);
    c->k_cmp = tensor_new(cfg, b, SIDE_CMP, cfg->n_heads_kv, cfg->d_qk, dtype, as);
    c->v_cmp = tensor_new(cfg, b, SIDE_CMP, cfg->n_heads_kv, cfg->d_v, dtype, as);
    c->slc_idx = tensor_new(cfg, b, SIDE_Q, cfg->n_heads_kv, cfg->slc_topk, NSA_I32, as);
    c->dgate = tensor_new(cfg, b, SIDE_Q, cfg->n_heads_q, NSA_N_BRANCHES, dtype, as);

    c->fwd.gate = c->gate.t;
    c->fwd.phi_k = &c->phi_k, c->fwd.phi_v = &c->phi_v;
    c->fwd.o = c->o.t;
    c->fwd.k_cmp = c->k_cmp.t, c->fwd.v_cmp = c->v_cmp.t;
    c->fwd.slc_idx = c->slc_idx.t;
    c->bwd.fwd = c->fwd;
    c->bwd.d_o = c->d_o.t;
    c->bwd.dgate = c->dgate.t;
    c->bwd.dphi_k = &c->dphi_k, c->bwd.dphi_v = &c->dphi_v;
}

static void assert_ok(nsa_status status)
{
    if (status != NSA_OK)
        test_fail("%s: %s", nsa_status_string(status), nsa_last_error());
}

void run_forward(const nsa_ctx *ctx, const nsa_case *c, const nsa_forward_args *args)
{
    size_t bytes = 0;
    assert_ok(nsa_forward_workspace(ctx, &c->cfg, &c->batch, args, &bytes));
    assert_ok(nsa_forward(ctx, &c->cfg, &c->batch, args, guarded(bytes, FLUSH_RIGHT), bytes, NULL));
}

void run_backward(const nsa_ctx *ctx, const nsa_case *c, const nsa_backward_args *args)
{
    size_t bytes = 0;
    assert_ok(nsa_backward_workspace(ctx, &c->cfg, &c->batch, args, &bytes));
    assert_ok(nsa_backward(ctx, &c->cfg, &c->batch, args, guarded(bytes, FLUSH_RIGHT), bytes, NULL));
}

void assert_same_forward(const nsa_case *a, const nsa_case *b)
{
    assert_same_bits("k_cmp", &a->k_cmp, &b->k_cmp);
    assert_same_bits("v_cmp", &a->v_cmp, &b->v_cmp);
    assert_same_bits("slc_idx", &a->slc_idx, &b->slc_idx);
    for (int i = 0; i < NSA_N_BRANCHES; i++) {
        assert_same_bits("lse", &a->lse[i], &b->lse[i]);
        assert_same_bits("o_branch", &a->o_branch[i], &b->o_branch[i]);
    }
    assert_same_bits("o", &a->o, &b->o);
}

static void assert_same_phi(const nsa_phi *a, const nsa_phi *b, int64_t bytes)
{
    const char *x = a->pe != NULL ? a->pe : a->w1, *y = b->pe != NULL ? b->pe : b->w1;
    if (bytes > 0 && memcmp(x, y, (size_t)bytes) != 0)
        test_fail("gradients of phi differ");
}

void assert_same_backward(const nsa_case *a, const nsa_case *b)
{
    for (int i = 0; i < NSA_N_BRANCHES; i++) {
        assert_same_bits("dq", &a->dq[i], &b->dq[i]);
        assert_same_bits("dk", &a->dk[i], &b->dk[i]);
        assert_same_bits("dv", &a->dv[i], &b->dv[i]);
    }
    assert_same_bits("dgate", &a->dgate, &b->dgate);
    assert_same_phi(&a->dphi_k, &b->dphi_k, a->dphi_k_bytes);
    assert_same_phi(&a->dphi_v, &b->dphi_v, a->dphi_v_bytes);
}
