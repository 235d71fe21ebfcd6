/* nsa_cmp_attn, nsa_slc_attn, nsa_win_attn and their backwards: what is checked, then the problem that an op takes. */
#include "core/check.h"
#include "ops/cmp_attn/cmp_attn.h"
#include "ops/slc_attn/slc_attn.h"
#include "ops/win_attn/win_attn.h"

typedef struct tensor_names {
    const char *q, *k, *v, *slc_idx, *o, *lse;
} tensor_names;

static const tensor_names forward_names = {"args.q", "args.k", "args.v", "args.slc_idx", "args.o", "args.lse"};
static const tensor_names backward_names = {"args.fwd.q",       "args.fwd.k", "args.fwd.v",
                                            "args.fwd.slc_idx", "args.fwd.o", "args.fwd.lse"};

static extent extent_keys(int branch, const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch, int32_t d)
{
    return branch == NSA_CMP ? extent_cmp(ctx, cfg, batch, d) : extent_k(cfg, batch, d);
}

static nsa_status check_call(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch, const void *args)
{
    NSA_TRY(check_ctx(ctx));
    NSA_TRY(check_config(cfg));
    NSA_TRY(check_batch(ctx, batch));
    NSA_REQUIRE(args != NULL, "args is NULL");
    return NSA_OK;
}

static nsa_status check_inputs(int branch, const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                               const nsa_attn_args *a, const tensor_names *names)
{
    const int dtype = (int)a->q.dtype;
    NSA_TRY(check_input(names->q, &a->q, extent_q(cfg, batch, cfg->d_qk), -1));
    NSA_TRY(check_ctx_dtype(ctx, names->q, a->q.dtype));
    NSA_TRY(check_input(names->k, &a->k, extent_keys(branch, ctx, cfg, batch, cfg->d_qk), dtype));
    NSA_TRY(check_input(names->v, &a->v, extent_keys(branch, ctx, cfg, batch, cfg->d_v), dtype));
    if (branch == NSA_SLC)
        NSA_TRY(check_input(names->slc_idx, &a->slc_idx, extent_slc_idx(cfg, batch), NSA_I32));
    return NSA_OK;
}

static attn_problem problem_of(int branch, const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                               const nsa_attn_args *a)
{
    const int32_t start_div = branch == NSA_CMP ? cfg->cmp_stride : 1;
    return (attn_problem){
        .ctx = ctx,
        .cfg = cfg,
        .seqs = seqs_of_batch(batch),
        .q = a->q,
        .k = rows_from_tensor(&a->k, cfg->d_qk, batch->cu_seqlens_k, start_div),
        .v = rows_from_tensor(&a->v, cfg->d_v, batch->cu_seqlens_k, start_div),
        .slc_idx = a->slc_idx,
        .o = a->o,
        .lse = a->lse,
        .branch = branch,
    };
}

static nsa_status forward_problem(int branch, const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                  const nsa_attn_args *a, attn_problem *p)
{
    NSA_TRY(check_call(ctx, cfg, batch, a));
    NSA_TRY(check_inputs(branch, ctx, cfg, batch, a, &forward_names));
    NSA_TRY(check_output(forward_names.o, &a->o, extent_q(cfg, batch, cfg->d_v), (int)a->q.dtype));
    NSA_TRY(check_output(forward_names.lse, &a->lse, extent_q(cfg, batch, 1), (int)lse_dtype(a->q.dtype)));
    const named_output outputs[] = {{forward_names.o, a->o.data}, {forward_names.lse, a->lse.data}};
    NSA_TRY(check_distinct(outputs, sizeof outputs / sizeof *outputs));
    *p = problem_of(branch, ctx, cfg, batch, a);
    return NSA_OK;
}

static nsa_status backward_problem(int branch, const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                   const nsa_attn_backward_args *a, attn_problem *p)
{
    NSA_TRY(check_call(ctx, cfg, batch, a));
    NSA_TRY(check_inputs(branch, ctx, cfg, batch, &a->fwd, &backward_names));
    const int dtype = (int)a->fwd.q.dtype;
    const extent q = extent_q(cfg, batch, cfg->d_qk), o = extent_q(cfg, batch, cfg->d_v);
    NSA_TRY(check_input(backward_names.o, &a->fwd.o, o, dtype));
    NSA_TRY(check_input(backward_names.lse, &a->fwd.lse, extent_q(cfg, batch, 1), (int)lse_dtype(a->fwd.q.dtype)));
    NSA_TRY(check_input("args.d_o", &a->d_o, o, dtype));
    NSA_TRY(check_output("args.dq", &a->dq, q, dtype));
    NSA_TRY(check_output("args.dk", &a->dk, extent_keys(branch, ctx, cfg, batch, cfg->d_qk), dtype));
    NSA_TRY(check_output("args.dv", &a->dv, extent_keys(branch, ctx, cfg, batch, cfg->d_v), dtype));
    const named_output outputs[] = {{"args.dq", a->dq.data}, {"args.dk", a->dk.data}, {"args.dv", a->dv.data}};
    NSA_TRY(check_distinct(outputs, sizeof outputs / sizeof *outputs));
    *p = problem_of(branch, ctx, cfg, batch, &a->fwd);
    p->d_o = a->d_o;
    p->dq = a->dq;
    p->dk = a->dk;
    p->dv = a->dv;
    return NSA_OK;
}

#define DEFINE_ATTN(op, branch)                                                                                        \
    nsa_status nsa_##op##_workspace(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,                 \
                                    const nsa_attn_args *args, size_t *bytes)                                          \
    {                                                                                                                  \
        attn_problem p;                                                                                                \
        NSA_TRY(forward_problem(branch, ctx, cfg, batch, args, &p));                                                   \
        return op_workspace(attn_choose(op##_impls, &p)->forward, &p, bytes);                                          \
    }                                                                                                                  \
                                                                                                                       \
    nsa_status nsa_##op(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch, const nsa_attn_args *args,  \
                        void *workspace, size_t workspace_bytes, nsa_stream stream)                                    \
    {                                                                                                                  \
        attn_problem p;                                                                                                \
        NSA_TRY(forward_problem(branch, ctx, cfg, batch, args, &p));                                                   \
        return op_run(ctx, attn_choose(op##_impls, &p)->forward, &p, workspace, workspace_bytes, stream);              \
    }                                                                                                                  \
                                                                                                                       \
    nsa_status nsa_##op##_backward_workspace(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,        \
                                             const nsa_attn_backward_args *args, size_t *bytes)                        \
    {                                                                                                                  \
        attn_problem p;                                                                                                \
        NSA_TRY(backward_problem(branch, ctx, cfg, batch, args, &p));                                                  \
        return op_workspace(attn_choose(op##_impls, &p)->backward, &p, bytes);                                         \
    }                                                                                                                  \
                                                                                                                       \
    nsa_status nsa_##op##_backward(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,                  \
                                   const nsa_attn_backward_args *args, void *workspace, size_t workspace_bytes,        \
                                   nsa_stream stream)                                                                  \
    {                                                                                                                  \
        attn_problem p;                                                                                                \
        NSA_TRY(backward_problem(branch, ctx, cfg, batch, args, &p));                                                  \
        return op_run(ctx, attn_choose(op##_impls, &p)->backward, &p, workspace, workspace_bytes, stream);             \
    }

DEFINE_ATTN(cmp_attn, NSA_CMP)
DEFINE_ATTN(slc_attn, NSA_SLC)
DEFINE_ATTN(win_attn, NSA_WIN)
