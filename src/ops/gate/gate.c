/* Gate: the threaded driver, its table, the public functions. */
#include "ops/gate/gate.h"
#include "core/check.h"

enum { TILE = 64 }; /* tokens of a work unit */

/* One (token, head). */
typedef struct place {
    int32_t s;
    int64_t start, row, head;
} place;

/* A row as float32: where it lies if it is so, else in buffer. */
static const float *load(const gate_problem *p, float *buffer, const nsa_tensor *t, place at, int64_t n)
{
    const void *row = tensor_at(t, at.s, at.start, at.row, at.head);
    if (t->dtype == NSA_F32)
        return row;
    p->ctx->simd->load_row(buffer, row, t->dtype, n);
    return buffer;
}

static void store(const gate_problem *p, const nsa_tensor *t, place at, const float *src, int64_t n)
{
    p->ctx->simd->store_row(tensor_at(t, at.s, at.start, at.row, at.head), t->dtype, src, n);
}

static void forward_row(const gate_problem *p, place at)
{
    const int64_t d = p->cfg->d_v;
    float g_row[NSA_N_BRANCHES], x_row[NSA_N_BRANCHES][MAX_HEAD_DIM], o[MAX_HEAD_DIM];
    const float *g = load(p, g_row, &p->gate, at, NSA_N_BRANCHES);
    const float *x[NSA_N_BRANCHES];
    for (int c = 0; c < NSA_N_BRANCHES; c++)
        x[c] = load(p, x_row[c], &p->o_branch[c], at, d);
    for (int64_t i = 0; i < d; i++)
        o[i] = g[NSA_CMP] * x[NSA_CMP][i] + g[NSA_SLC] * x[NSA_SLC][i] + g[NSA_WIN] * x[NSA_WIN][i];
    store(p, &p->o, at, o, d);
}

static void backward_row(const gate_problem *p, place at)
{
    const int64_t d = p->cfg->d_v, padded = simd_pad(d);
    float g_row[NSA_N_BRANCHES], d_o_row[MAX_HEAD_DIM], x_row[MAX_HEAD_DIM];
    float dgate[NSA_N_BRANCHES], product[MAX_HEAD_DIM], dx[MAX_HEAD_DIM];
    const float *g = load(p, g_row, &p->gate, at, NSA_N_BRANCHES);
    const float *d_o = load(p, d_o_row, &p->d_o, at, d);
    for (int64_t i = d; i < padded; i++)
        product[i] = 0.0F;
    for (int c = 0; c < NSA_N_BRANCHES; c++) {
        const float *x = load(p, x_row, &p->o_branch[c], at, d);
        const float gate = g[c];
        for (int64_t i = 0; i < d; i++) {
            product[i] = d_o[i] * x[i];
            dx[i] = gate * d_o[i];
        }
        dgate[c] = p->ctx->simd->sum_row(product, padded);
        if (p->do_branch[c].data != NULL)
            store(p, &p->do_branch[c], at, dx, d);
    }
    store(p, &p->dgate, at, dgate, NSA_N_BRANCHES);
}

static void for_each_row(const gate_problem *p, void (*run)(const gate_problem *, place))
{
    const int64_t n = n_tiles(p->seqs.total_q, p->seqs.n, TILE);
#pragma omp parallel for num_threads((int)min_i64(p->ctx->n_threads, max_i64(1, n))) schedule(dynamic)
    for (int64_t i = 0; i < n; i++) {
        int32_t s;
        int64_t first;
        if (!tile_at(p->seqs.cu_q, p->seqs.n, TILE, i, &s, &first))
            continue;
        const seq q = seq_at(&p->seqs, s);
        for (int64_t row = first; row < min_i64(first + TILE, q.t_q); row++)
            for (int64_t h = 0; h < p->cfg->n_heads_q; h++)
                run(p, (place){s, q.q0, row, h});
    }
}

static void forward(const void *problem, arena *ws)
{
    if (!arena_counts(ws))
        for_each_row(problem, forward_row);
}

static void backward(const void *problem, arena *ws)
{
    if (!arena_counts(ws))
        for_each_row(problem, backward_row);
}

static bool is_fast(const gate_problem *p)
{
    return !p->ctx->cuda && !p->ctx->reference && p->o_branch[0].dtype != NSA_F64;
}

static bool on_cpu(const gate_problem *p)
{
    return !p->ctx->cuda;
}

#ifdef NSA_CUDA
static bool on_cuda(const gate_problem *p)
{
    return p->ctx->cuda;
}
#endif

op_fn gate_ref, gate_backward_ref, gate_simt, gate_backward_simt;

const gate_impl gate_impls[] = {
    {"rows", is_fast, forward, backward},
#ifdef NSA_CUDA
    {"simt", on_cuda, gate_simt, gate_backward_simt},
#endif
    {"ref", on_cpu, gate_ref, gate_backward_ref},
    {NULL, NULL, NULL, NULL},
};

const gate_impl *gate_choose(const gate_problem *p)
{
    const gate_impl *impl = gate_impls;
    while (!impl->supports(p))
        impl++;
    return impl;
}

/* What forward and backward share: all but their outputs. */
static nsa_status check_common(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                               const nsa_tensor *gate, const nsa_tensor *o_branch, gate_problem *p)
{
    static const char *const names[] = {"args.o_branch[0]", "args.o_branch[1]", "args.o_branch[2]"};
    NSA_TRY(check_ctx(ctx));
    NSA_TRY(check_config(cfg));
    NSA_TRY(check_batch_q(ctx, batch));
    const extent e = extent_q(cfg, batch, cfg->d_v);
    NSA_TRY(check_input(names[0], &o_branch[0], e, -1));
    NSA_TRY(check_ctx_dtype(ctx, names[0], o_branch[0].dtype));
    for (int c = 1; c < NSA_N_BRANCHES; c++)
        NSA_TRY(check_input(names[c], &o_branch[c], e, (int)o_branch[0].dtype));
    NSA_TRY(check_gate("args.gate", gate, extent_q(cfg, batch, NSA_N_BRANCHES), o_branch[0].dtype, false));

    *p = (gate_problem){.ctx = ctx, .cfg = cfg, .seqs = seqs_of_batch(batch), .gate = *gate};
    p->seqs.cu_k = NULL;
    memcpy(p->o_branch, o_branch, sizeof p->o_branch);
    return NSA_OK;
}

nsa_status nsa_gate(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch, const nsa_gate_args *args,
                    nsa_stream stream)
{
    gate_problem p;
    NSA_REQUIRE(args != NULL, "args is NULL");
    NSA_TRY(check_common(ctx, cfg, batch, &args->gate, args->o_branch, &p));
    NSA_TRY(check_output("args.o", &args->o, extent_q(cfg, batch, cfg->d_v), (int)args->o_branch[0].dtype));
    p.o = args->o;
    return op_run(ctx, gate_choose(&p)->forward, &p, NULL, 0, stream);
}

nsa_status nsa_gate_backward(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                             const nsa_gate_backward_args *args, nsa_stream stream)
{
    gate_problem p;
    NSA_REQUIRE(args != NULL, "args is NULL");
    NSA_TRY(check_common(ctx, cfg, batch, &args->gate, args->o_branch, &p));
    const extent e = extent_q(cfg, batch, cfg->d_v);
    const int dtype = (int)args->o_branch[0].dtype;
    NSA_TRY(check_input("args.d_o", &args->d_o, e, dtype));
    NSA_TRY(check_output("args.dgate", &args->dgate, extent_q(cfg, batch, NSA_N_BRANCHES), (int)args->gate.dtype));
    named_output outputs[1 + NSA_N_BRANCHES] = {
        {"args.do_branch[0]", args->do_branch[0].data},
        {"args.do_branch[1]", args->do_branch[1].data},
        {"args.do_branch[2]", args->do_branch[2].data},
        {"args.dgate", args->dgate.data},
    };
    for (int c = 0; c < NSA_N_BRANCHES; c++)
        NSA_TRY(check_output(outputs[c].name, &args->do_branch[c], e, dtype));
    NSA_TRY(check_distinct(outputs, 1 + NSA_N_BRANCHES));
    p.d_o = args->d_o;
    p.dgate = args->dgate;
    memcpy(p.do_branch, args->do_branch, sizeof p.do_branch);
    return op_run(ctx, gate_choose(&p)->backward, &p, NULL, 0, stream);
}
