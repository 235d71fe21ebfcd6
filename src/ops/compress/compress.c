/* Compression: the table of implementations and the public functions. */
#include "ops/compress/compress.h"
#include "core/check.h"

static bool is_fast(const compress_problem *p)
{
    return !p->ctx->cuda && !p->ctx->reference && p->x.dtype != NSA_F64;
}

static bool is_dense(const compress_problem *p)
{
    return is_fast(p) && (p->phi.kind == NSA_PHI_LINEAR || p->phi.kind == NSA_PHI_MLP);
}

static bool is_pool(const compress_problem *p)
{
    return is_fast(p) && !is_dense(p);
}

static bool on_cpu(const compress_problem *p)
{
    return !p->ctx->cuda;
}

#ifdef NSA_CUDA
static bool on_cuda(const compress_problem *p)
{
    return p->ctx->cuda;
}

bool compress_dense_sm90_supports(const compress_problem *p);
#endif

op_fn compress_dense_forward, compress_dense_backward;
op_fn compress_pool_forward, compress_pool_backward;
op_fn compress_simt_forward, compress_simt_backward;
op_fn compress_dense_sm90_forward, compress_dense_sm90_backward;
op_fn compress_ref_forward, compress_ref_backward;

const compress_impl compress_impls[] = {
    {"dense", is_dense, compress_dense_forward, compress_dense_backward},
    {"pool", is_pool, compress_pool_forward, compress_pool_backward},
#ifdef NSA_CUDA
    {"dense_sm90", compress_dense_sm90_supports, compress_dense_sm90_forward, compress_dense_sm90_backward},
    {"simt", on_cuda, compress_simt_forward, compress_simt_backward},
#endif
    {"ref", on_cpu, compress_ref_forward, compress_ref_backward},
    {NULL, NULL, NULL, NULL},
};

const compress_impl *compress_choose(const compress_problem *p)
{
    const compress_impl *impl = compress_impls;
    while (!impl->supports(p))
        impl++;
    return impl;
}

phi_sizes compress_phi_sizes(const compress_problem *p)
{
    const int64_t block = p->cfg->cmp_block, d = p->d, hidden = p->phi.d_hidden;
    switch (p->phi.kind) {
    case NSA_PHI_MEAN: break;
    case NSA_PHI_LINEAR: return (phi_sizes){block * d, block * d * d, 0, 0, 0};
    case NSA_PHI_GATED_TOKEN: return (phi_sizes){0, d, block, 0, 0};
    case NSA_PHI_GATED_CHANNEL: return (phi_sizes){0, d * d, block * d, 0, 0};
    case NSA_PHI_MLP: return (phi_sizes){block * d, block * d * hidden, hidden, hidden * d, d};
    }
    return (phi_sizes){0, 0, 0, 0, 0};
}

/* What forward and backward share: all but y, and the gradients. */
static nsa_status check_common(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch, int32_t d,
                               const nsa_phi *phi, const nsa_tensor *x, compress_problem *p)
{
    NSA_TRY(check_ctx(ctx));
    NSA_TRY(check_config(cfg));
    NSA_TRY(check_batch_k(ctx, batch));
    NSA_REQUIRE(d >= 1 && d <= MAX_HEAD_DIM, "args.d is %d, must be 1 .. %d", d, MAX_HEAD_DIM);
    NSA_TRY(check_input("args.x", x, extent_k(cfg, batch, d), -1));
    NSA_TRY(check_ctx_dtype(ctx, "args.x", x->dtype));
    NSA_TRY(check_phi("args.phi", phi, x->dtype));
    *p = (compress_problem){
        .ctx = ctx,
        .cfg = cfg,
        .seqs = seqs_of_batch(batch),
        .d = d,
        .phi = *phi,
        .x = rows_from_tensor(x, d, batch->cu_seqlens_k, 1),
    };
    p->seqs.cu_q = NULL;
    return NSA_OK;
}

static nsa_status prepare(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                          const nsa_compress_args *args, compress_problem *p)
{
    NSA_REQUIRE(args != NULL, "args is NULL");
    NSA_TRY(check_common(ctx, cfg, batch, args->d, &args->phi, &args->x, p));
    NSA_TRY(check_output("args.y", &args->y, extent_cmp(ctx, cfg, batch, args->d), (int)args->x.dtype));
    p->y = args->y;
    return NSA_OK;
}

static nsa_status prepare_backward(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                   const nsa_compress_backward_args *args, compress_problem *p)
{
    NSA_REQUIRE(args != NULL, "args is NULL");
    NSA_TRY(check_common(ctx, cfg, batch, args->d, &args->phi, &args->x, p));
    NSA_TRY(check_input("args.dy", &args->dy, extent_cmp(ctx, cfg, batch, args->d), (int)args->x.dtype));
    NSA_TRY(check_output("args.dx", &args->dx, extent_k(cfg, batch, args->d), (int)args->x.dtype));
    NSA_TRY(check_dphi("args.dphi", &args->dphi, &args->phi));
    const named_output outputs[] = {
        {"args.dx", args->dx.data},      {"args.dphi.pe", args->dphi.pe}, {"args.dphi.w1", args->dphi.w1},
        {"args.dphi.b1", args->dphi.b1}, {"args.dphi.w2", args->dphi.w2}, {"args.dphi.b2", args->dphi.b2},
    };
    NSA_TRY(check_distinct(outputs, sizeof outputs / sizeof *outputs));
    p->dy = args->dy;
    p->dx = args->dx;
    p->dphi = args->dphi;
    return NSA_OK;
}

nsa_status nsa_compress_workspace(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                  const nsa_compress_args *args, size_t *bytes)
{
    compress_problem p;
    NSA_TRY(prepare(ctx, cfg, batch, args, &p));
    return op_workspace(compress_choose(&p)->forward, &p, bytes);
}

nsa_status nsa_compress(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                        const nsa_compress_args *args, void *workspace, size_t workspace_bytes, nsa_stream stream)
{
    compress_problem p;
    NSA_TRY(prepare(ctx, cfg, batch, args, &p));
    return op_run(ctx, compress_choose(&p)->forward, &p, workspace, workspace_bytes, stream);
}

nsa_status nsa_compress_backward_workspace(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                           const nsa_compress_backward_args *args, size_t *bytes)
{
    compress_problem p;
    NSA_TRY(prepare_backward(ctx, cfg, batch, args, &p));
    return op_workspace(compress_choose(&p)->backward, &p, bytes);
}

nsa_status nsa_compress_backward(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                 const nsa_compress_backward_args *args, void *workspace, size_t workspace_bytes,
                                 nsa_stream stream)
{
    compress_problem p;
    NSA_TRY(prepare_backward(ctx, cfg, batch, args, &p));
    return op_run(ctx, compress_choose(&p)->backward, &p, workspace, workspace_bytes, stream);
}
