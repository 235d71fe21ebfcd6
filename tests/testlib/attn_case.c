#include "testlib/attn_case.h"

#include "ops/cmp_attn/cmp_attn.h"
#include "ops/slc_attn/slc_attn.h"
#include "ops/win_attn/win_attn.h"

#include <math.h>

const attn_op attn_ops[NSA_N_BRANCHES] = {
    {"cmp_attn", NSA_CMP, SIDE_CMP, cmp_attn_impls},
    {"slc_attn", NSA_SLC, SIDE_K, slc_attn_impls},
    {"win_attn", NSA_WIN, SIDE_K, win_attn_impls},
};

const attn_impl *attn_oracle(const attn_op *op)
{
    const attn_impl *last = op->impls;
    while (last[1].name != NULL)
        last++;
    return last;
}

void attn_case_inputs(attn_case *c, const attn_op *op, const nsa_config *blocks, const nsa_batch *batch,
                      const attn_shape *shape, rng *r)
{
    *c = (attn_case){.op = op, .cfg = *blocks, .batch = *batch};
    c->cfg.n_heads_kv = shape->n_heads_kv;
    c->cfg.n_heads_q = shape->n_heads_kv * shape->group;
    c->cfg.d_qk = shape->d_qk;
    c->cfg.d_v = shape->d_v;
    c->cfg.scale = shape->scale;
    const int32_t n_q = c->cfg.n_heads_q, n_kv = c->cfg.n_heads_kv;
    c->q = tensor_new(&c->cfg, &c->batch, SIDE_Q, n_q, shape->d_qk, shape->dtype, shape->q);
    c->k = tensor_new(&c->cfg, &c->batch, op->keys, n_kv, shape->d_qk, shape->dtype, shape->kv);
    c->v = tensor_new(&c->cfg, &c->batch, op->keys, n_kv, shape->d_v, shape->dtype, shape->kv);
    c->d_o = tensor_new(&c->cfg, &c->batch, SIDE_Q, n_q, shape->d_v, shape->dtype, shape->q);
    const test_tensor *inputs[] = {&c->q, &c->k, &c->v, &c->d_o};
    for (int i = 0; i < 4; i++)
        tensor_fill_normal(inputs[i], r, 1.0);
    if (op->branch == NSA_SLC) {
        c->slc_idx = tensor_new(&c->cfg, &c->batch, SIDE_Q, n_kv, c->cfg.slc_topk, NSA_I32, shape->q);
        tensor_fill_slc_idx(&c->slc_idx, r);
    }
    if (shape->gate) { /* per token, or laid out like the outputs */
        const layout as = shape->out == LAYOUT_THD ? LAYOUT_ONE_HEAD : shape->out;
        const nsa_dtype dtype = shape->dtype == NSA_F16 ? NSA_F32 : shape->dtype;
        c->gate = tensor_new(&c->cfg, &c->batch, SIDE_Q, n_q, NSA_N_BRANCHES, dtype, as);
        tensor_fill_normal(&c->gate, r, 0.5);
    }
}

void attn_case_init(attn_case *c, const attn_op *op, const nsa_config *blocks, const nsa_batch *batch,
                    const attn_shape *shape, rng *r)
{
    attn_case_inputs(c, op, blocks, batch, shape, r);
    const attn_out out = attn_out_new(c, shape->dtype, shape->out);
    const nsa_ctx ctx = {.n_threads = 1, .reference = true};
    attn_run_forward(c, &ctx, attn_oracle(op)->forward, REF_EXACT, &out);
    c->o = out.o;
    c->lse = out.lse;
}

bool attn_attends(const attn_case *c, int32_t s, int64_t row, int32_t kv_head, int64_t j)
{
    const nsa_batch *b = &c->batch;
    const int64_t t_q = b->cu_seqlens_q[s + 1] - b->cu_seqlens_q[s], t_k = b->cu_seqlens_k[s + 1] - b->cu_seqlens_k[s];
    const int64_t t = row + t_k - t_q;
    if (c->op->branch == NSA_CMP)
        return j * c->cfg.cmp_stride + c->cfg.cmp_block - 1 <= t;
    if (c->op->branch == NSA_WIN)
        return j <= t && j > t - c->cfg.win_size;
    bool selected = false;
    for (int32_t i = 0; i < c->cfg.slc_topk; i++)
        selected |= tensor_get(&c->slc_idx, s, row, kv_head, i) == (double)(j / c->cfg.slc_block);
    return selected && j <= t;
}

attn_out attn_out_new(const attn_case *c, nsa_dtype dtype, layout as)
{
    return (attn_out){
        .o = tensor_new(&c->cfg, &c->batch, SIDE_Q, c->cfg.n_heads_q, c->cfg.d_v, dtype, as),
        .lse = tensor_new(&c->cfg, &c->batch, SIDE_Q, c->cfg.n_heads_q, 1, lse_dtype(dtype), as),
    };
}

attn_grads attn_grads_new(const attn_case *c, nsa_dtype dtype, layout as)
{
    return (attn_grads){
        .dq = tensor_new(&c->cfg, &c->batch, SIDE_Q, c->cfg.n_heads_q, c->cfg.d_qk, dtype, as),
        .dk = tensor_new(&c->cfg, &c->batch, c->op->keys, c->cfg.n_heads_kv, c->cfg.d_qk, dtype, as),
        .dv = tensor_new(&c->cfg, &c->batch, c->op->keys, c->cfg.n_heads_kv, c->cfg.d_v, dtype, as),
    };
}

/* What dot products of bf16 that flush to 0 below 2^-126 may lose of a term: its other factor; the term, its sum. */
static double flushed(nsa_dtype dtype, double factor)
{
    return dtype == NSA_BF16 ? (fabs(factor) + 2.0) * CLOSE_FLUSHED : 0.0;
}

/* What (row, h) adds to the sizes. p, p_size: room for a number per key. */
static void add_row_sizes(const attn_case *c, int32_t s, int64_t row, int32_t h, double *p, double *p_size,
                          const attn_out *out, const attn_grads *grads)
{
    const int32_t d_qk = c->cfg.d_qk, d_v = c->cfg.d_v, kv = h / config_group(&c->cfg);
    const int64_t n = tensor_rows(&c->k, s);
    const double scale = config_scale(&c->cfg), lse = tensor_get(&c->lse, s, row, h, 0);
    const double gate = c->gate.t.data == NULL ? 1.0 : tensor_get(&c->gate, s, row, h, c->op->branch);
    const nsa_dtype dtype = c->q.t.dtype; /* to which a kernel may round p, ds and a gated d_o */
    const double rounding = dtype == NSA_BF16 ? 0x1p-9 / CLOSE_SIZE : dtype == NSA_F16 ? 0x1p-12 / CLOSE_SIZE : 1.0;
    const double gate_rounding = gate == 1.0 ? 1.0 : rounding;
    double shift = 0.0, delta = 0.0, delta_size = 0.0, d_o[MAX_HEAD_DIM];
    for (int64_t j = 0; j < n; j++) {
        p[j] = 0.0;
        if (!attn_attends(c, s, row, kv, j))
            continue;
        double logit = 0.0, size = 0.0;
        for (int32_t i = 0; i < d_qk; i++) {
            const double term = scale * tensor_get(&c->q, s, row, h, i) * tensor_get(&c->k, s, j, kv, i);
            logit += term, size += fabs(term);
        }
        p[j] = exp(logit - lse);
        p_size[j] = p[j] * (rounding + size + fabs(logit - lse)) + CLOSE_FLUSHED;
        shift += p_size[j];
    }
    tensor_add(&out->lse, s, row, h, 0, isfinite(lse) ? fabs(lse) + shift : 0.0);
    for (int32_t i = 0; i < d_v; i++) {
        const double o = tensor_get(&c->o, s, row, h, i);
        d_o[i] = gate * tensor_get(&c->d_o, s, row, h, i);
        delta += d_o[i] * o, delta_size += fabs(d_o[i] * o);
    }
    for (int64_t j = 0; j < n; j++) {
        if (p[j] == 0.0)
            continue;
        double dp = 0.0, dp_size = 0.0;
        for (int32_t i = 0; i < d_v; i++) {
            const double v = tensor_get(&c->v, s, j, kv, i);
            dp += d_o[i] * v, dp_size += fabs(d_o[i] * v);
            const double lost = flushed(dtype, tensor_get(&c->d_o, s, row, h, i));
            tensor_add(&out->o, s, row, h, i, (p_size[j] + p[j] * shift) * fabs(v) + flushed(dtype, v));
            tensor_add(&grads->dv, s, j, kv, i, (p_size[j] + p[j] * gate_rounding) * fabs(d_o[i]) + lost);
        }
        const double ds = scale * (p_size[j] * fabs(dp - delta) + p[j] * gate_rounding * (dp_size + delta_size));
        for (int32_t i = 0; i < d_qk; i++) {
            const double q = tensor_get(&c->q, s, row, h, i), k = tensor_get(&c->k, s, j, kv, i);
            tensor_add(&grads->dq, s, row, h, i, ds * fabs(k) + flushed(dtype, k));
            tensor_add(&grads->dk, s, j, kv, i, ds * fabs(q) + flushed(dtype, q));
        }
    }
}

void attn_add_sizes(const attn_case *c, const attn_out *out, const attn_grads *grads)
{
    const size_t bytes = (size_t)c->batch.max_seqlen_k * sizeof(double);
    double *p = guarded(bytes, FLUSH_RIGHT), *p_size = guarded(bytes, FLUSH_RIGHT);
    for (int32_t s = 0; s < c->batch.n_seqs; s++)
        for (int64_t row = 0; row < tensor_rows(&c->q, s); row++)
            for (int32_t h = 0; h < c->cfg.n_heads_q; h++)
                add_row_sizes(c, s, row, h, p, p_size, out, grads);
}

static attn_problem problem_of(const attn_case *c, const nsa_ctx *ctx, ref_rounding rounding)
{
    const int32_t start_div = c->op->branch == NSA_CMP ? c->cfg.cmp_stride : 1;
    return (attn_problem){
        .ctx = ctx,
        .cfg = &c->cfg,
        .seqs = seqs_of_batch(&c->batch),
        .q = c->q.t,
        .k = rows_from_tensor(&c->k.t, c->cfg.d_qk, c->batch.cu_seqlens_k, start_div),
        .v = rows_from_tensor(&c->v.t, c->cfg.d_v, c->batch.cu_seqlens_k, start_div),
        .slc_idx = c->slc_idx.t,
        .o = c->o.t,
        .lse = c->lse.t,
        .d_o = c->d_o.t,
        .gate = c->gate.t,
        .branch = c->op->branch,
        .rounding = rounding,
    };
}

bool attn_takes(const attn_case *c, const nsa_ctx *ctx, const attn_impl *impl)
{
    const attn_problem p = problem_of(c, ctx, REF_EXACT);
    return impl->supports(&p);
}

void attn_run_forward(const attn_case *c, const nsa_ctx *ctx, op_fn *op, ref_rounding rounding, const attn_out *out)
{
    attn_problem p = problem_of(c, ctx, rounding);
    p.o = out->o.t;
    p.lse = out->lse.t;
    run_op(ctx, op, &p, sizeof p);
}

void attn_run_backward(const attn_case *c, const nsa_ctx *ctx, op_fn *op, ref_rounding rounding,
                       const attn_grads *grads, bool add)
{
    attn_problem p = problem_of(c, ctx, rounding);
    p.dq = grads->dq.t;
    p.dk = grads->dk.t;
    p.dv = grads->dv.t;
    p.add_dq = p.add_dk = p.add_dv = add;
    run_op(ctx, op, &p, sizeof p);
}

ref_rounding attn_fair_rounding(nsa_dtype dtype)
{
    return dtype == NSA_BF16 ? REF_P_BF16 : dtype == NSA_F16 ? REF_P_F16 : REF_F32;
}
