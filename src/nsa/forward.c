/* nsa_forward: compress K and V, then the branches; see pipeline.h. */
#include "nsa/forward.h"
#include "nsa/pipeline.h"
#include "ops/compress/compress.h"

#include <stdio.h>

typedef struct forward_problem {
    const nsa_ctx *ctx;
    const nsa_config *cfg;
    const nsa_batch *batch;
    const nsa_forward_args *args;
} forward_problem;

field_name field(const char *prefix, const char *name, int branch)
{
    field_name n;
    if (branch < 0)
        snprintf(n.text, sizeof n.text, "%s%s", prefix, name);
    else
        snprintf(n.text, sizeof n.text, "%s%s[%d]", prefix, name, branch);
    return n;
}

nsa_status check_forward_inputs(const char *prefix, const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                const nsa_forward_args *args)
{
    const extent q = extent_q(cfg, batch, cfg->d_qk);
    const extent k = extent_k(cfg, batch, cfg->d_qk), v = extent_k(cfg, batch, cfg->d_v);
    const extent k_cmp = extent_cmp(ctx, cfg, batch, cfg->d_qk), v_cmp = extent_cmp(ctx, cfg, batch, cfg->d_v);
    const extent gate = extent_q(cfg, batch, NSA_N_BRANCHES), slc_idx = extent_slc_idx(cfg, batch);
    const nsa_dtype dtype = args->q[0].dtype;
    const bool own_cmp = args->phi_k == NULL;

    NSA_TRY(check_input(field(prefix, "q", 0).text, &args->q[0], q, -1));
    NSA_TRY(check_ctx_dtype(ctx, field(prefix, "q", 0).text, dtype));
    for (int b = 1; b < NSA_N_BRANCHES; b++)
        NSA_TRY(check_input(field(prefix, "q", b).text, &args->q[b], q, (int)dtype));
    for (int b = own_cmp ? NSA_SLC : NSA_CMP; b < NSA_N_BRANCHES; b++) {
        NSA_TRY(check_input(field(prefix, "k", b).text, &args->k[b], k, (int)dtype));
        NSA_TRY(check_input(field(prefix, "v", b).text, &args->v[b], v, (int)dtype));
    }
    NSA_TRY(check_gate(field(prefix, "gate", -1).text, &args->gate, gate, dtype, false));
    if (own_cmp) {
        NSA_REQUIRE(args->phi_v == NULL, "%sphi_v is given and %sphi_k is not", prefix, prefix);
        NSA_TRY(check_input(field(prefix, "k_cmp", -1).text, &args->k_cmp, k_cmp, (int)dtype));
        NSA_TRY(check_input(field(prefix, "v_cmp", -1).text, &args->v_cmp, v_cmp, (int)dtype));
    } else {
        NSA_REQUIRE(args->phi_v != NULL, "%sphi_k is given and %sphi_v is not", prefix, prefix);
        NSA_TRY(check_phi(field(prefix, "phi_k", -1).text, args->phi_k, dtype));
        NSA_TRY(check_phi(field(prefix, "phi_v", -1).text, args->phi_v, dtype));
    }
    if (args->slc_idx_given)
        NSA_TRY(check_input(field(prefix, "slc_idx", -1).text, &args->slc_idx, slc_idx, NSA_I32));
    return NSA_OK;
}

/* An output that may be absent. */
static nsa_status check_optional(const char *name, const nsa_tensor *t, extent e, nsa_dtype dtype)
{
    return t->data == NULL ? NSA_OK : check_output(name, t, e, (int)dtype);
}

static nsa_status check_forward(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                const nsa_forward_args *args)
{
    NSA_TRY(check_ctx(ctx));
    NSA_TRY(check_config(cfg));
    NSA_TRY(check_batch(ctx, batch));
    NSA_REQUIRE(args != NULL, "args is NULL");
    NSA_TRY(check_forward_inputs("args.", ctx, cfg, batch, args));

    const extent o = extent_q(cfg, batch, cfg->d_v), lse = extent_q(cfg, batch, 1);
    const nsa_dtype dtype = args->q[0].dtype;
    NSA_TRY(check_output("args.o", &args->o, o, (int)dtype));
    for (int b = 0; b < NSA_N_BRANCHES; b++) {
        NSA_TRY(check_optional(field("args.", "o_branch", b).text, &args->o_branch[b], o, dtype));
        NSA_TRY(check_optional(field("args.", "lse", b).text, &args->lse[b], lse, lse_dtype(dtype)));
    }
    if (args->phi_k != NULL) {
        NSA_TRY(check_optional("args.k_cmp", &args->k_cmp, extent_cmp(ctx, cfg, batch, cfg->d_qk), dtype));
        NSA_TRY(check_optional("args.v_cmp", &args->v_cmp, extent_cmp(ctx, cfg, batch, cfg->d_v), dtype));
    }
    if (!args->slc_idx_given)
        NSA_TRY(check_optional("args.slc_idx", &args->slc_idx, extent_slc_idx(cfg, batch), NSA_I32));
    const named_output outputs[] = {
        {"args.o", args->o.data},
        {"args.o_branch[0]", args->o_branch[0].data},
        {"args.o_branch[1]", args->o_branch[1].data},
        {"args.o_branch[2]", args->o_branch[2].data},
        {"args.lse[0]", args->lse[0].data},
        {"args.lse[1]", args->lse[1].data},
        {"args.lse[2]", args->lse[2].data},
        {"args.k_cmp", args->k_cmp.data},
        {"args.v_cmp", args->phi_k == NULL ? NULL : args->v_cmp.data}, /* the caller's own two may be one */
        {"args.slc_idx", args->slc_idx.data},
    };
    return check_distinct(outputs, sizeof outputs / sizeof *outputs);
}

/* y = phi(x) */
static void compress_into(const forward_problem *f, const nsa_phi *phi, const nsa_tensor *x, const nsa_tensor *y,
                          int32_t d, arena *ws)
{
    const compress_problem c = {
        .ctx = f->ctx,
        .cfg = f->cfg,
        .seqs = seqs_of_batch(f->batch),
        .d = d,
        .phi = *phi,
        .x = rows_from_tensor(x, d, f->batch->cu_seqlens_k, 1),
        .y = *y,
    };
    const size_t mark = ws->used;
    compress_choose(&c)->forward(&c, ws);
    arena_release(ws, mark);
}

static void forward_op(const void *problem, arena *ws)
{
    const forward_problem *f = problem;
    const nsa_config *cfg = f->cfg;
    const nsa_forward_args *args = f->args;
    const nsa_dtype dtype = args->q[0].dtype;
    const int32_t *cu_k = f->batch->cu_seqlens_k;

    const int64_t n_rows = extent_cmp(f->ctx, cfg, f->batch, 1).total;
    const nsa_tensor k_cmp = tensor_or_scratch(&args->k_cmp, ws, n_rows, dtype, cfg->n_heads_kv, cfg->d_qk);
    const nsa_tensor v_cmp = tensor_or_scratch(&args->v_cmp, ws, n_rows, dtype, cfg->n_heads_kv, cfg->d_v);
    if (args->phi_k != NULL) {
        compress_into(f, args->phi_k, &args->k[NSA_CMP], &k_cmp, cfg->d_qk, ws);
        compress_into(f, args->phi_v, &args->v[NSA_CMP], &v_cmp, cfg->d_v, ws);
    }

    pipeline p = {
        .ctx = f->ctx,
        .cfg = cfg,
        .dtype = dtype,
        .gate = args->gate,
        .slc_idx_given = args->slc_idx_given != 0,
        .slc_idx = args->slc_idx,
        .o = args->o,
    };
    for (int b = 0; b < NSA_N_BRANCHES; b++) {
        const bool cmp = b == NSA_CMP;
        p.seqs[b] = seqs_of_batch(f->batch);
        p.q[b] = args->q[b];
        p.k[b] = rows_from_tensor(cmp ? &k_cmp : &args->k[b], cfg->d_qk, cu_k, cmp ? cfg->cmp_stride : 1);
        p.v[b] = rows_from_tensor(cmp ? &v_cmp : &args->v[b], cfg->d_v, cu_k, cmp ? cfg->cmp_stride : 1);
        p.o_branch[b] = args->o_branch[b];
        p.lse[b] = args->lse[b];
    }
    pipeline_run(&p, ws);
}

nsa_status nsa_forward_workspace(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                 const nsa_forward_args *args, size_t *bytes)
{
    NSA_TRY(check_forward(ctx, cfg, batch, args));
    const forward_problem f = {ctx, cfg, batch, args};
    return op_workspace(forward_op, &f, bytes);
}

nsa_status nsa_forward(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch, const nsa_forward_args *args,
                       void *workspace, size_t workspace_bytes, nsa_stream stream)
{
    NSA_TRY(check_forward(ctx, cfg, batch, args));
    const forward_problem f = {ctx, cfg, batch, args};
    return op_run(ctx, forward_op, &f, workspace, workspace_bytes, stream);
}
