#include "testlib/attn_case.h"

#include "ops/cmp_attn/cmp_attn.h"
#include "ops/slc_attn/slc_attn.h"
#include "ops/win_attn/win_attn.h"

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

/* Any number of distinct blocks, the row's future ones too, in any order, among entries that must be skipped. */
static void fill_slc_idx(const test_tensor *x, const nsa_batch *batch, rng *r)
{
    for (int32_t s = 0; s < batch->n_seqs; s++) {
        const int64_t t_k = batch->cu_seqlens_k[s + 1] - batch->cu_seqlens_k[s];
        const int32_t n_blocks = (int32_t)n_slc_blocks(x->cfg, t_k);
        const int32_t skipped[] = {INT32_MIN, -1, n_blocks, n_blocks + 1, INT32_MAX, INT32_MAX / 2};
        for (int64_t row = 0; row < tensor_rows(x, s); row++)
            for (int32_t h = 0; h < x->e.n_heads; h++) {
                int32_t *idx = (int32_t *)x->t.data + tensor_index(x, s, row, h, 0);
                int32_t block = n_blocks == 0 ? 0 : rng_range(r, 0, n_blocks - 1), left = n_blocks;
                for (int32_t i = 0; i < x->e.d; i++) {
                    const bool valid = left > 0 && rng_range(r, 0, 3) > 0;
                    idx[i] = valid ? block : skipped[rng_range(r, 0, 5)];
                    if (valid)
                        block = (block + 1) % n_blocks, left--;
                }
                for (int32_t i = x->e.d - 1; i > 0; i--) { /* shuffle */
                    const int32_t j = rng_range(r, 0, i), swap = idx[i];
                    idx[i] = idx[j], idx[j] = swap;
                }
            }
    }
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
        c->slc_idx = tensor_new(&c->cfg, &c->batch, SIDE_Q, n_kv, c->cfg.slc_topk, NSA_I32, LAYOUT_GAPS);
        fill_slc_idx(&c->slc_idx, batch, r);
    }
    if (shape->gate) {
        c->gate = tensor_new(&c->cfg, &c->batch, SIDE_Q, n_q, NSA_N_BRANCHES, shape->dtype, LAYOUT_ONE_HEAD);
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

void attn_run_forward(const attn_case *c, const nsa_ctx *ctx, op_fn *op, ref_rounding rounding, const attn_out *out)
{
    attn_problem p = problem_of(c, ctx, rounding);
    p.o = out->o.t;
    p.lse = out->lse.t;
    run_op(op, &p);
}

void attn_run_backward(const attn_case *c, const nsa_ctx *ctx, op_fn *op, ref_rounding rounding,
                       const attn_grads *grads, bool add)
{
    attn_problem p = problem_of(c, ctx, rounding);
    p.dq = grads->dq.t;
    p.dk = grads->dk.t;
    p.dv = grads->dv.t;
    p.add_dq = p.add_dk = p.add_dv = add;
    run_op(op, &p);
}

ref_rounding attn_fair_rounding(nsa_dtype dtype)
{
    return dtype == NSA_BF16 ? REF_P_BF16 : dtype == NSA_F16 ? REF_P_F16 : REF_F32;
}
