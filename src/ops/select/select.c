/* Selection: the table of implementations and the public functions. */
#include "ops/select/select.h"
#include "core/check.h"

static bool is_fast(const select_problem *p)
{
    return !p->ctx->cuda && !p->ctx->reference && p->q.dtype != NSA_F64;
}

static bool on_cpu(const select_problem *p)
{
    return !p->ctx->cuda;
}

#ifdef NSA_CUDA
static bool on_cuda(const select_problem *p)
{
    return p->ctx->cuda;
}
#endif

op_fn select_tiled, select_ref, select_simt, select_sm90;

bool select_sm90_supports(const select_problem *p);

const select_impl select_impls[] = {
    {"tiled", is_fast, select_tiled},
#ifdef NSA_CUDA
    {"sm90", select_sm90_supports, select_sm90},
    {"simt", on_cuda, select_simt},
#endif
    {"ref", on_cpu, select_ref},
    {NULL, NULL, NULL},
};

const select_impl *select_choose(const select_problem *p)
{
    const select_impl *impl = select_impls;
    while (!impl->supports(p))
        impl++;
    return impl;
}

static nsa_status prepare(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                          const nsa_select_args *args, select_problem *p)
{
    NSA_TRY(check_ctx(ctx));
    NSA_TRY(check_config(cfg));
    NSA_TRY(check_batch(ctx, batch));
    NSA_REQUIRE(args != NULL, "args is NULL");
    NSA_TRY(check_input("args.q", &args->q, extent_q(cfg, batch, cfg->d_qk), -1));
    NSA_TRY(check_ctx_dtype(ctx, "args.q", args->q.dtype));
    NSA_TRY(check_input("args.k_cmp", &args->k_cmp, extent_cmp(ctx, cfg, batch, cfg->d_qk), (int)args->q.dtype));
    NSA_TRY(check_input("args.lse", &args->lse, extent_q(cfg, batch, 1), (int)lse_dtype(args->q.dtype)));
    NSA_TRY(check_output("args.slc_idx", &args->slc_idx, extent_slc_idx(cfg, batch), NSA_I32));
    *p = (select_problem){
        .ctx = ctx,
        .cfg = cfg,
        .seqs = seqs_of_batch(batch),
        .q = args->q,
        .k_cmp = rows_from_tensor(&args->k_cmp, cfg->d_qk, batch->cu_seqlens_k, cfg->cmp_stride),
        .lse = args->lse,
        .slc_idx = args->slc_idx,
    };
    return NSA_OK;
}

nsa_status nsa_select_workspace(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                const nsa_select_args *args, size_t *bytes)
{
    select_problem p;
    NSA_TRY(prepare(ctx, cfg, batch, args, &p));
    return op_workspace(select_choose(&p)->run, &p, bytes);
}

nsa_status nsa_select(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch, const nsa_select_args *args,
                      void *workspace, size_t workspace_bytes, nsa_stream stream)
{
    select_problem p;
    NSA_TRY(prepare(ctx, cfg, batch, args, &p));
    return op_run(ctx, select_choose(&p)->run, &p, workspace, workspace_bytes, stream);
}
