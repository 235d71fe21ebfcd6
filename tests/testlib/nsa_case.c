#include "testlib/nsa_case.h"

enum { HIDDEN = 6 };

void **phi_member(nsa_phi *phi, int m)
{
    void **const members[N_MEMBERS] = {&phi->pe, &phi->w1, &phi->b1, &phi->w2, &phi->b2};
    return members[m];
}

int64_t phi_member_size(const nsa_case *c, int32_t d, int m)
{
    const int64_t block = c->cfg.cmp_block;
    const int64_t sizes[][N_MEMBERS] = {
        [NSA_PHI_MEAN] = {0, 0, 0, 0, 0},
        [NSA_PHI_LINEAR] = {block * d, block * d * d, 0, 0, 0},
        [NSA_PHI_GATED_TOKEN] = {0, d, block, 0, 0},
        [NSA_PHI_GATED_CHANNEL] = {0, (int64_t)d * d, block * d, 0, 0},
        [NSA_PHI_MLP] = {block * d, block * d * HIDDEN, HIDDEN, (int64_t)HIDDEN * d, d},
    };
    return sizes[c->shape.phi][m] * (c->shape.per_head ? c->cfg.n_heads_kv : 1);
}

/* Random parameters of phi, or with r = NULL room for gradients. */
static nsa_phi make_phi(const nsa_case *c, int32_t d, rng *r)
{
    nsa_phi phi = {.kind = c->shape.phi, .dtype = c->shape.dtype, .per_head = c->shape.per_head};
    phi.d_hidden = phi.kind == NSA_PHI_MLP ? HIDDEN : 0;
    for (int m = 0; m < N_MEMBERS; m++) {
        const int64_t n = phi_member_size(c, d, m);
        if (n == 0)
            continue;
        void *member = elements(n, phi.dtype);
        for (int64_t i = 0; r != NULL && i < n; i++)
            dtype_set(member, phi.dtype, i, rng_normal(r) * (m == 1 ? 0.2 : 0.5));
        *phi_member(&phi, m) = member;
    }
    return phi;
}

static test_tensor random_tensor(const nsa_case *c, side on, int32_t n_heads, int32_t d, rng *r)
{
    const test_tensor t = tensor_new(&c->cfg, &c->batch, on, n_heads, d, c->shape.dtype, c->shape.as);
    tensor_fill_normal(&t, r, 1.0);
    return t;
}

static nsa_dtype gate_dtype(const nsa_case *c)
{
    return c->shape.dtype == NSA_BF16 ? NSA_F32 : c->shape.dtype;
}

/* The arguments, from the tensors. */
static void point(nsa_case *c)
{
    for (int i = 0; i < NSA_N_BRANCHES; i++) {
        c->fwd.q[i] = c->q[i].t, c->fwd.k[i] = c->k[i].t, c->fwd.v[i] = c->v[i].t;
        c->fwd.o_branch[i] = c->o_branch[i].t, c->fwd.lse[i] = c->lse[i].t;
        c->bwd.dq[i] = c->dq[i].t, c->bwd.dk[i] = c->dk[i].t, c->bwd.dv[i] = c->dv[i].t;
    }
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

static test_tensor output(const nsa_case *c, side on, int32_t n_heads, int32_t d, nsa_dtype dtype)
{
    return tensor_new(&c->cfg, &c->batch, on, n_heads, d, dtype, output_layout(c->shape.as));
}

static void make_outputs(nsa_case *c)
{
    const nsa_config *cfg = &c->cfg;
    const nsa_dtype dtype = c->shape.dtype;
    for (int i = 0; i < NSA_N_BRANCHES; i++) {
        const bool copy = i > 0 && c->shape.shared;
        c->dq[i] = copy ? c->dq[0] : output(c, SIDE_Q, cfg->n_heads_q, cfg->d_qk, dtype);
        c->dk[i] = copy ? c->dk[0] : output(c, SIDE_K, cfg->n_heads_kv, cfg->d_qk, dtype);
        c->dv[i] = copy ? c->dv[0] : output(c, SIDE_K, cfg->n_heads_kv, cfg->d_v, dtype);
        c->o_branch[i] = output(c, SIDE_Q, cfg->n_heads_q, cfg->d_v, dtype);
        c->lse[i] = output(c, SIDE_Q, cfg->n_heads_q, 1, lse_dtype(dtype));
    }
    c->o = output(c, SIDE_Q, cfg->n_heads_q, cfg->d_v, dtype);
    c->k_cmp = output(c, SIDE_CMP, cfg->n_heads_kv, cfg->d_qk, dtype);
    c->v_cmp = output(c, SIDE_CMP, cfg->n_heads_kv, cfg->d_v, dtype);
    c->slc_idx = output(c, SIDE_Q, cfg->n_heads_kv, cfg->slc_topk, NSA_I32);
    c->dgate = output(c, SIDE_Q, cfg->n_heads_q, NSA_N_BRANCHES, gate_dtype(c));
    c->dphi_k = make_phi(c, cfg->d_qk, NULL);
    c->dphi_v = make_phi(c, cfg->d_v, NULL);
}

void nsa_case_init(nsa_case *c, const nsa_config *blocks, const nsa_batch *batch, const nsa_shape *shape, rng *r)
{
    *c = (nsa_case){.cfg = *blocks, .batch = *batch, .shape = *shape};
    nsa_config *cfg = &c->cfg;
    cfg->n_heads_kv = shape->n_heads_kv;
    cfg->n_heads_q = shape->n_heads_kv * shape->group;
    cfg->d_qk = shape->d_qk;
    cfg->d_v = shape->d_v;
    c->phi_k = make_phi(c, cfg->d_qk, r);
    c->phi_v = make_phi(c, cfg->d_v, r);
    for (int i = 0; i < NSA_N_BRANCHES; i++) {
        const bool copy = i > 0 && shape->shared;
        c->q[i] = copy ? c->q[0] : random_tensor(c, SIDE_Q, cfg->n_heads_q, cfg->d_qk, r);
        c->k[i] = copy ? c->k[0] : random_tensor(c, SIDE_K, cfg->n_heads_kv, cfg->d_qk, r);
        c->v[i] = copy ? c->v[0] : random_tensor(c, SIDE_K, cfg->n_heads_kv, cfg->d_v, r);
    }
    c->gate = tensor_new(cfg, &c->batch, SIDE_Q, cfg->n_heads_q, NSA_N_BRANCHES, gate_dtype(c),
                         shape->token_gate ? LAYOUT_ONE_HEAD : shape->as);
    tensor_fill_normal(&c->gate, r, 0.5);
    c->d_o = random_tensor(c, SIDE_Q, cfg->n_heads_q, cfg->d_v, r);
    make_outputs(c);
    point(c);
}

void nsa_case_as(nsa_case *c, const nsa_case *from, layout as)
{
    *c = *from;
    c->shape.as = as;
    for (int i = 0; i < NSA_N_BRANCHES; i++) {
        const bool copy = i > 0 && c->shape.shared;
        c->q[i] = copy ? c->q[0] : tensor_as(&from->q[i], as);
        c->k[i] = copy ? c->k[0] : tensor_as(&from->k[i], as);
        c->v[i] = copy ? c->v[0] : tensor_as(&from->v[i], as);
    }
    c->gate = tensor_as(&from->gate, as);
    c->d_o = tensor_as(&from->d_o, as);
    make_outputs(c);
    point(c);
}

int nsa_contexts(nsa_ctx contexts[MAX_CONTEXTS], int32_t n_threads)
{
    const int n = test_contexts(contexts, n_threads);
    if (contexts[0].cuda)
        return n;
    contexts[n] = (nsa_ctx){.n_threads = n_threads, .reference = true, .simd = contexts[0].simd};
    return n + 1;
}

const nsa_phi *phi_on_device(const nsa_ctx *ctx, const nsa_phi *phi, nsa_phi *there)
{
    if (phi == NULL)
        return NULL;
    *there = *phi;
    args_on_device(ctx, there, sizeof *there);
    return there;
}

void run_forward(const nsa_ctx *ctx, const nsa_case *c, const nsa_forward_args *args)
{
    size_t bytes = 0;
    assert_ok(nsa_forward_workspace(ctx, &c->cfg, &c->batch, args, &bytes));
    void *ws = begin_call(ctx, bytes);
    nsa_batch batch = c->batch;
    nsa_forward_args there = *args;
    nsa_phi phi_k, phi_v;
    args_on_device(ctx, &batch, sizeof batch);
    args_on_device(ctx, &there, sizeof there);
    there.phi_k = phi_on_device(ctx, args->phi_k, &phi_k), there.phi_v = phi_on_device(ctx, args->phi_v, &phi_v);
    assert_ok(nsa_forward(ctx, &c->cfg, &batch, &there, ws, bytes, NULL));
    end_call(ctx);
    assert_slack_intact();
    assert_padding_intact("o", &c->o);
    assert_padding_intact("k_cmp", &c->k_cmp);
    assert_padding_intact("v_cmp", &c->v_cmp);
    assert_padding_intact("slc_idx", &c->slc_idx);
    for (int i = 0; i < NSA_N_BRANCHES; i++) {
        assert_padding_intact("o_branch", &c->o_branch[i]);
        assert_padding_intact("lse", &c->lse[i]);
    }
}

void run_backward(const nsa_ctx *ctx, const nsa_case *c, const nsa_backward_args *args)
{
    size_t bytes = 0;
    assert_ok(nsa_backward_workspace(ctx, &c->cfg, &c->batch, args, &bytes));
    void *ws = begin_call(ctx, bytes);
    nsa_batch batch = c->batch;
    nsa_backward_args there = *args;
    nsa_phi phi_k, phi_v, dphi_k, dphi_v;
    args_on_device(ctx, &batch, sizeof batch);
    args_on_device(ctx, &there, sizeof there);
    there.fwd.phi_k = phi_on_device(ctx, args->fwd.phi_k, &phi_k);
    there.fwd.phi_v = phi_on_device(ctx, args->fwd.phi_v, &phi_v);
    there.dphi_k = phi_on_device(ctx, args->dphi_k, &dphi_k), there.dphi_v = phi_on_device(ctx, args->dphi_v, &dphi_v);
    assert_ok(nsa_backward(ctx, &c->cfg, &batch, &there, ws, bytes, NULL));
    end_call(ctx);
    assert_slack_intact();
    assert_padding_intact("dgate", &c->dgate);
    for (int i = 0; i < NSA_N_BRANCHES; i++) {
        assert_padding_intact("dq", &c->dq[i]);
        assert_padding_intact("dk", &c->dk[i]);
        assert_padding_intact("dv", &c->dv[i]);
    }
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

static void assert_same_phi(const nsa_case *c, int32_t d, nsa_phi a, nsa_phi b)
{
    for (int m = 0; m < N_MEMBERS; m++) {
        const size_t bytes = (size_t)phi_member_size(c, d, m) * dtype_size(a.dtype);
        if (bytes > 0 && memcmp(*phi_member(&a, m), *phi_member(&b, m), bytes) != 0)
            test_fail("gradients of phi differ, member %d", m);
    }
}

void assert_same_backward(const nsa_case *a, const nsa_case *b)
{
    for (int i = 0; i < NSA_N_BRANCHES; i++) {
        assert_same_bits("dq", &a->dq[i], &b->dq[i]);
        assert_same_bits("dk", &a->dk[i], &b->dk[i]);
        assert_same_bits("dv", &a->dv[i], &b->dv[i]);
    }
    assert_same_bits("dgate", &a->dgate, &b->dgate);
    assert_same_phi(a, a->cfg.d_qk, a->dphi_k, b->dphi_k);
    assert_same_phi(a, a->cfg.d_v, a->dphi_v, b->dphi_v);
}
