/* nsa_backward: the ops of the forward pass in reverse, gradients of shared tensors added in the order cmp, slc, win.
 */
#include "cuda/device.h"
#include "nsa/forward.h"
#include "nsa/pipeline.h"
#include "ops/attn_tile/attn.h"
#include "ops/compress/compress.h"
#include "ops/gate/gate.h"

typedef struct backward_problem {
    const nsa_ctx *ctx;
    const nsa_config *cfg;
    const nsa_batch *batch;
    const nsa_backward_args *args;
} backward_problem;

/* ---- Checks ---- */

/* dq, dk or dv: an output per branch; branches that share memory must agree on how it is laid out. */
static nsa_status check_grads(const char *name, const nsa_tensor *grads, int first, extent e, nsa_dtype dtype)
{
    for (int b = first; b < NSA_N_BRANCHES; b++) {
        NSA_TRY(check_output(field("args.", name, b).text, &grads[b], e, (int)dtype));
        for (int a = first; a < b; a++)
            NSA_REQUIRE(grads[a].data != grads[b].data || (grads[a].stride_seq == grads[b].stride_seq &&
                                                           grads[a].stride_token == grads[b].stride_token &&
                                                           grads[a].stride_head == grads[b].stride_head),
                        "args.%s[%d] and args.%s[%d] are the same memory with different strides", name, a, name, b);
    }
    return NSA_OK;
}

static nsa_status check_outputs(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                const nsa_backward_args *args)
{
    const nsa_forward_args *f = &args->fwd;
    const nsa_dtype dtype = f->q[0].dtype;
    const bool own_cmp = f->phi_k == NULL;
    const int first = own_cmp ? NSA_SLC : NSA_CMP;

    NSA_TRY(check_grads("dq", args->dq, NSA_CMP, extent_q(cfg, batch, cfg->d_qk), dtype));
    NSA_TRY(check_grads("dk", args->dk, first, extent_k(cfg, batch, cfg->d_qk), dtype));
    NSA_TRY(check_grads("dv", args->dv, first, extent_k(cfg, batch, cfg->d_v), dtype));
    NSA_TRY(check_output("args.dgate", &args->dgate, extent_q(cfg, batch, NSA_N_BRANCHES), (int)f->gate.dtype));
    if (own_cmp) {
        NSA_TRY(check_output("args.dk_cmp", &args->dk_cmp, extent_cmp(ctx, cfg, batch, cfg->d_qk), (int)dtype));
        NSA_TRY(check_output("args.dv_cmp", &args->dv_cmp, extent_cmp(ctx, cfg, batch, cfg->d_v), (int)dtype));
    } else {
        NSA_TRY(check_dphi("args.dphi_k", args->dphi_k, f->phi_k));
        NSA_TRY(check_dphi("args.dphi_v", args->dphi_v, f->phi_v));
    }
    for (int q = 0; q < NSA_N_BRANCHES; q++)
        for (int k = first; k < NSA_N_BRANCHES; k++)
            for (int v = first; v < NSA_N_BRANCHES; v++) {
                const field_name dq = field("args.", "dq", q), dk = field("args.", "dk", k),
                                 dv = field("args.", "dv", v);
                const named_output outputs[] = {
                    {dq.text, args->dq[q].data},
                    {dk.text, args->dk[k].data},
                    {dv.text, args->dv[v].data},
                    {"args.dgate", args->dgate.data},
                    {"args.dk_cmp", own_cmp ? args->dk_cmp.data : NULL},
                    {"args.dv_cmp", own_cmp ? args->dv_cmp.data : NULL},
                };
                NSA_TRY(check_distinct(outputs, sizeof outputs / sizeof *outputs));
            }
    return NSA_OK;
}

static nsa_status check_backward(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                 const nsa_backward_args *args)
{
    NSA_TRY(check_ctx(ctx));
    NSA_TRY(check_config(cfg));
    NSA_TRY(check_batch(ctx, batch));
    NSA_REQUIRE(args != NULL, "args is NULL");
    const nsa_forward_args *f = &args->fwd;
    NSA_TRY(check_forward_inputs("args.fwd.", ctx, cfg, batch, f));

    const extent o = extent_q(cfg, batch, cfg->d_v), lse = extent_q(cfg, batch, 1);
    const nsa_dtype dtype = f->q[0].dtype;
    for (int b = 0; b < NSA_N_BRANCHES; b++) {
        NSA_TRY(check_input(field("args.fwd.", "o_branch", b).text, &f->o_branch[b], o, (int)dtype));
        NSA_TRY(check_input(field("args.fwd.", "lse", b).text, &f->lse[b], lse, (int)lse_dtype(dtype)));
    }
    NSA_TRY(check_input("args.fwd.k_cmp", &f->k_cmp, extent_cmp(ctx, cfg, batch, cfg->d_qk), (int)dtype));
    NSA_TRY(check_input("args.fwd.v_cmp", &f->v_cmp, extent_cmp(ctx, cfg, batch, cfg->d_v), (int)dtype));
    NSA_TRY(check_input("args.fwd.slc_idx", &f->slc_idx, extent_slc_idx(cfg, batch), NSA_I32));
    NSA_TRY(check_input("args.d_o", &args->d_o, o, (int)dtype));
    return check_outputs(ctx, cfg, batch, args);
}

/* ---- Outputs that branches share ---- */

/* Where each branch's part of a gradient goes. A shared output of less than float32 is summed in float32 and rounded
 * once, at the end. */
typedef struct grad_sink {
    nsa_tensor to[NSA_N_BRANCHES];
    bool add[NSA_N_BRANCHES];
    bool rounded[NSA_N_BRANCHES]; /* at the first branch of those that share: `to` is to be rounded into the output */
} grad_sink;

static grad_sink make_sink(const nsa_tensor *out, int first, int64_t n_rows, int32_t n_heads, int32_t d, arena *ws)
{
    grad_sink s = {0};
    for (int b = first; b < NSA_N_BRANCHES; b++) {
        int owner = first;
        while (out[owner].data != out[b].data)
            owner++;
        bool shared = false;
        for (int a = b + 1; a < NSA_N_BRANCHES; a++)
            shared = shared || out[a].data == out[b].data;
        s.to[b] = owner < b ? s.to[owner] : out[b];
        s.add[b] = owner < b;
        s.rounded[b] = owner == b && shared && (out[b].dtype == NSA_BF16 || out[b].dtype == NSA_F16);
        if (s.rounded[b])
            s.to[b] =
                nsa_packed(arena_take(ws, i64_mul(n_rows, n_heads), (size_t)d * sizeof(float)), NSA_F32, n_heads, d);
    }
    return s;
}

static void round_rows(nsa_tensor from, nsa_tensor to, const nsa_ctx *ctx, const int32_t *cu, int32_t n_seqs,
                       int64_t total, int32_t n_heads, int32_t d)
{
    enum { TILE = 64 };
#pragma omp parallel for num_threads(ctx->n_threads) schedule(static)
    for (int64_t i = 0; i < n_tiles(total, n_seqs, TILE); i++) {
        int32_t s;
        int64_t first;
        if (!tile_at(cu, n_seqs, TILE, i, &s, &first))
            continue;
        const int64_t end = min_i64(first + TILE, cu[s + 1] - cu[s]);
        for (int64_t t = first; t < end; t++)
            for (int32_t h = 0; h < n_heads; h++)
                dtype_store_row(tensor_at(&to, s, cu[s], t, h), to.dtype, tensor_at(&from, s, cu[s], t, h), d);
    }
}

/* A gradient of queries, or of keys or values. */
static void round_sink(const grad_sink *sink, const nsa_tensor *out, const backward_problem *p, bool query, int32_t d,
                       arena *ws)
{
    const nsa_batch *b = p->batch;
    const int32_t *cu = query ? b->cu_seqlens_q : b->cu_seqlens_k;
    const int64_t total = query ? b->total_q : b->total_k;
    const int32_t max = query ? b->max_seqlen_q : b->max_seqlen_k;
    const int32_t n_heads = query ? p->cfg->n_heads_q : p->cfg->n_heads_kv;
    for (int i = 0; i < NSA_N_BRANCHES; i++) {
        if (!sink->rounded[i] || ws->status != NSA_OK)
            continue;
        if (p->ctx->cuda)
            cuda_copy(sink->to[i], out[i], cu, b->n_seqs, total, max, n_heads, d, ws);
        else
            round_rows(sink->to[i], out[i], p->ctx, cu, b->n_seqs, total, n_heads, d);
    }
}

/* ---- The pass ---- */

static void attn_backward_of(const backward_problem *p, int branch, nsa_tensor dk, nsa_tensor dv, bool add_dk,
                             bool add_dv, const grad_sink *dq, arena *ws)
{
    static const attn_impl *const impls[] = {cmp_attn_impls, slc_attn_impls, win_attn_impls};
    const nsa_config *cfg = p->cfg;
    const nsa_forward_args *f = &p->args->fwd;
    const bool cmp = branch == NSA_CMP;
    const int32_t *cu_k = p->batch->cu_seqlens_k;
    const attn_problem a = {
        .ctx = p->ctx,
        .cfg = cfg,
        .seqs = seqs_of_batch(p->batch),
        .q = f->q[branch],
        .k = rows_from_tensor(cmp ? &f->k_cmp : &f->k[branch], cfg->d_qk, cu_k, cmp ? cfg->cmp_stride : 1),
        .v = rows_from_tensor(cmp ? &f->v_cmp : &f->v[branch], cfg->d_v, cu_k, cmp ? cfg->cmp_stride : 1),
        .slc_idx = f->slc_idx,
        .o = f->o_branch[branch],
        .lse = f->lse[branch],
        .d_o = p->args->d_o,
        .gate = f->gate,
        .branch = branch,
        .dq = dq->to[branch],
        .dk = dk,
        .dv = dv,
        .add_dq = dq->add[branch],
        .add_dk = add_dk,
        .add_dv = add_dv,
    };
    const size_t mark = ws->used;
    attn_choose(impls[branch], &a)->backward(&a, ws);
    arena_release(ws, mark);
}

static void compress_backward_of(const backward_problem *p, int32_t d, const nsa_phi *phi, const nsa_phi *dphi,
                                 const nsa_tensor *x, const nsa_tensor *dy, const grad_sink *dx, arena *ws)
{
    const compress_problem c = {
        .ctx = p->ctx,
        .cfg = p->cfg,
        .seqs = seqs_of_batch(p->batch),
        .d = d,
        .phi = *phi,
        .x = rows_from_tensor(x, d, p->batch->cu_seqlens_k, 1),
        .dy = *dy,
        .dx = dx->to[NSA_CMP],
        .add_dx = dx->add[NSA_CMP],
        .dphi = *dphi,
    };
    const size_t mark = ws->used;
    compress_choose(&c)->backward(&c, ws);
    arena_release(ws, mark);
}

static void gate_backward_of(const backward_problem *p, arena *ws)
{
    const nsa_backward_args *args = p->args;
    gate_problem g = {.ctx = p->ctx, .cfg = p->cfg, .seqs = seqs_of_batch(p->batch)};
    g.gate = args->fwd.gate;
    g.d_o = args->d_o;
    g.dgate = args->dgate;
    for (int b = 0; b < NSA_N_BRANCHES; b++)
        g.o_branch[b] = args->fwd.o_branch[b];
    const size_t mark = ws->used;
    gate_choose(&g)->backward(&g, ws);
    arena_release(ws, mark);
}

static void backward_op(const void *problem, arena *ws)
{
    const backward_problem *p = problem;
    const nsa_config *cfg = p->cfg;
    const nsa_batch *batch = p->batch;
    const nsa_backward_args *args = p->args;
    const nsa_forward_args *f = &args->fwd;
    const bool own_cmp = f->phi_k == NULL;
    const int first = own_cmp ? NSA_SLC : NSA_CMP;

    const grad_sink dq = make_sink(args->dq, NSA_CMP, batch->total_q, cfg->n_heads_q, cfg->d_qk, ws);
    const grad_sink dk = make_sink(args->dk, first, batch->total_k, cfg->n_heads_kv, cfg->d_qk, ws);
    const grad_sink dv = make_sink(args->dv, first, batch->total_k, cfg->n_heads_kv, cfg->d_v, ws);

    gate_backward_of(p, ws);

    const size_t mark = ws->used;
    nsa_tensor dk_cmp = args->dk_cmp, dv_cmp = args->dv_cmp;
    if (!own_cmp) {
        /* Between cmp_attn and phi nothing is rounded. */
        const nsa_dtype dtype = lse_dtype(f->q[0].dtype);
        const int64_t n_rows = extent_cmp(p->ctx, cfg, batch, 1).total;
        const nsa_tensor none = {.data = NULL};
        dk_cmp = tensor_or_scratch(&none, ws, n_rows, dtype, cfg->n_heads_kv, cfg->d_qk);
        dv_cmp = tensor_or_scratch(&none, ws, n_rows, dtype, cfg->n_heads_kv, cfg->d_v);
    }
    attn_backward_of(p, NSA_CMP, dk_cmp, dv_cmp, false, false, &dq, ws);
    if (!own_cmp) {
        compress_backward_of(p, cfg->d_qk, f->phi_k, args->dphi_k, &f->k[NSA_CMP], &dk_cmp, &dk, ws);
        compress_backward_of(p, cfg->d_v, f->phi_v, args->dphi_v, &f->v[NSA_CMP], &dv_cmp, &dv, ws);
    }
    arena_release(ws, mark);
    for (int b = NSA_SLC; b <= NSA_WIN; b++)
        attn_backward_of(p, b, dk.to[b], dv.to[b], dk.add[b], dv.add[b], &dq, ws);

    if (arena_counts(ws))
        return;
    round_sink(&dq, args->dq, p, true, cfg->d_qk, ws);
    round_sink(&dk, args->dk, p, false, cfg->d_qk, ws);
    round_sink(&dv, args->dv, p, false, cfg->d_v, ws);
}

nsa_status nsa_backward_workspace(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                  const nsa_backward_args *args, size_t *bytes)
{
    NSA_TRY(check_backward(ctx, cfg, batch, args));
    const backward_problem p = {ctx, cfg, batch, args};
    return op_workspace(backward_op, &p, bytes);
}

nsa_status nsa_backward(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                        const nsa_backward_args *args, void *workspace, size_t workspace_bytes, nsa_stream stream)
{
    NSA_TRY(check_backward(ctx, cfg, batch, args));
    const backward_problem p = {ctx, cfg, batch, args};
    return op_run(ctx, backward_op, &p, workspace, workspace_bytes, stream);
}
