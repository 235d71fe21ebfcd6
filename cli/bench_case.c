#include "cli/bench_case.h"

#include "lm/arena.h"
#include "lm/error.h"

const char *const bench_op_names[BENCH_N_OPS] = {"forward",  "backward", "prefill",  "decode",
                                                 "forward",  "compress", "cmp_attn", "select",
                                                 "slc_attn", "win_attn", "gate",     "train_step"};
const char *const bench_attention_names[BENCH_N_ATTENTIONS] = {"nsa", "dense", "onednn"};

/* ---- Tensors ----------------------------------------------------------------------------------------------------- */

static void make_batch(bench_case *b)
{
    const int32_t n = b->shape.batch, seqlen = b->shape.seqlen;
    b->cu = bench_take_cu(&b->memory, n, seqlen);
    b->batch = (nsa_batch){n, seqlen, seqlen, (int64_t)n * seqlen, (int64_t)n * seqlen, b->cu, b->cu};
}

static void make_training(bench_case *b)
{
    const nsa_config *cfg = &b->shape.cfg;
    const nsa_dtype dtype = b->shape.dtype;
    const int64_t rows = b->batch.total_q, rows_cmp = rows / cfg->cmp_stride + 1;
    bench_tensors *m = &b->memory;
    nsa_forward_args *f = &b->forward;
    nsa_backward_args *g = &b->backward;
    f->q[0] = f->q[1] = f->q[2] = bench_random_q(m, rows, &b->shape);
    g->dq[0] = g->dq[1] = g->dq[2] = bench_tensor(m, rows, dtype, cfg->n_heads_q, cfg->d_qk);
    for (int c = 0; c < NSA_N_BRANCHES; c++) {
        f->k[c] = bench_random_tensor(m, rows, dtype, cfg->n_heads_kv, cfg->d_qk);
        f->v[c] = bench_random_tensor(m, rows, dtype, cfg->n_heads_kv, cfg->d_v);
        f->o_branch[c] = bench_tensor(m, rows, dtype, cfg->n_heads_q, cfg->d_v);
        f->lse[c] = bench_tensor(m, rows, NSA_F32, cfg->n_heads_q, 1);
        g->dk[c] = bench_tensor(m, rows, dtype, cfg->n_heads_kv, cfg->d_qk);
        g->dv[c] = bench_tensor(m, rows, dtype, cfg->n_heads_kv, cfg->d_v);
    }
    f->gate = bench_random_gate(m, rows, cfg->n_heads_q);
    f->phi_k = &b->phi[0];
    f->phi_v = &b->phi[1];
    f->o = bench_tensor(m, rows, dtype, cfg->n_heads_q, cfg->d_v);
    f->k_cmp = bench_tensor(m, rows_cmp, dtype, cfg->n_heads_kv, cfg->d_qk);
    f->v_cmp = bench_tensor(m, rows_cmp, dtype, cfg->n_heads_kv, cfg->d_v);
    f->slc_idx = bench_tensor(m, rows, NSA_I32, cfg->n_heads_kv, cfg->slc_topk);
    g->d_o = bench_random_tensor(m, rows, dtype, cfg->n_heads_q, cfg->d_v);
    g->dgate = bench_tensor(m, rows, NSA_F32, cfg->n_heads_q, 3);
    g->dphi_k = &b->dphi[0];
    g->dphi_v = &b->dphi[1];
    g->fwd = *f;
}

/* Dense attention has the same q, and the window's k and v. Its outputs are its own: backward wants both in place. */
static void make_dense(bench_case *b)
{
    const nsa_config *cfg = &b->shape.cfg;
    b->dense = *cfg;
    b->dense.win_size = INT32_MAX;
    b->dense_forward =
        (nsa_attn_args){.q = b->forward.q[NSA_WIN], .k = b->forward.k[NSA_WIN], .v = b->forward.v[NSA_WIN]};
    b->dense_forward.o = bench_tensor(&b->memory, b->batch.total_q, b->shape.dtype, cfg->n_heads_q, cfg->d_v);
    b->dense_forward.lse = bench_tensor(&b->memory, b->batch.total_q, NSA_F32, cfg->n_heads_q, 1);
    b->dense_backward = (nsa_attn_backward_args){.fwd = b->dense_forward,
                                                 .d_o = b->backward.d_o,
                                                 .dq = b->backward.dq[NSA_WIN],
                                                 .dk = b->backward.dk[NSA_WIN],
                                                 .dv = b->backward.dv[NSA_WIN]};
}

static bool make_prefill(bench_case *b)
{
    const nsa_forward_args *f = &b->forward;
    if (bench_make_caches(&b->memory, b->ctx, &b->shape, b->shape.batch, &b->caches) != NSA_OK)
        return false;
    b->prefill = (nsa_cache_args){.n_seqs = b->shape.batch,
                                  .total = b->batch.total_q,
                                  .cu_seqlens = b->cu,
                                  .states = b->caches.states,
                                  .page_table = b->caches.table,
                                  .pages_per_seq = b->caches.pages_per_seq,
                                  .gate = f->gate,
                                  .phi_k = f->phi_k,
                                  .phi_v = f->phi_v,
                                  .o = f->o};
    for (int c = 0; c < NSA_N_BRANCHES; c++) {
        b->prefill.q[c] = f->q[c];
        b->prefill.k[c] = f->k[c];
        b->prefill.v[c] = f->v[c];
    }
    return true;
}

static bench_case *create_one(const nsa_ctx *ctx, const bench_device *device, const bench_shape *shape, int64_t seed)
{
    bench_case *b = calloc(1, sizeof *b);
    if (b == NULL) {
        (void)lm_out_of_memory("a case");
        return NULL;
    }
    b->ctx = ctx;
    b->device = device;
    b->shape = *shape;
    b->memory.random = (uint64_t)seed;
    b->memory.device = device;
    make_batch(b);
    bench_make_phi(&b->memory, shape, shape->cfg.d_qk, &b->phi[0], &b->dphi[0]);
    bench_make_phi(&b->memory, shape, shape->cfg.d_v, &b->phi[1], &b->dphi[1]);
    make_training(b);
    make_dense(b);
    if ((device == &bench_cpu && !make_prefill(b)) || b->memory.out_of_memory) {
        bench_case_destroy(b);
        return NULL;
    }
    return b;
}

bench_case *bench_case_create(const nsa_ctx *ctx, const bench_device *device, const bench_shape *shape)
{
    bench_case *b = create_one(ctx, device, shape, shape->seed);
    if (b != NULL && device->n_sets > 1)
        b->other = create_one(ctx, device, shape, shape->seed + 1);
    return b;
}

void bench_case_destroy(bench_case *b)
{
    if (b == NULL)
        return;
    bench_case_destroy(b->other);
    bench_tensors_free(&b->memory);
    b->device->release(b->workspace);
    free(b);
}

size_t bench_case_workspace(const bench_case *b)
{
    return b->asked_bytes;
}

size_t bench_case_tensors(const bench_case *b)
{
    const nsa_config *cfg = &b->shape.cfg;
    const int64_t heads = cfg->n_heads_q + (b->attention == BENCH_NSA ? NSA_N_BRANCHES : 1) * (int64_t)cfg->n_heads_kv;
    return (size_t)(b->batch.total_q * heads * (cfg->d_qk + cfg->d_v)) * bench_element_size(b->shape.dtype);
}

size_t bench_case_residuals(const bench_case *b)
{
    return (size_t)bench_residual_bytes(&b->shape, b->attention);
}

int bench_case_sets(const bench_case *b)
{
    return b->other != NULL ? 2 : 1;
}

bool bench_case_lacks(const bench_case *b)
{
    return b->lacks;
}

bool bench_case_overlap(const bench_case *b, double *overlap)
{
    const nsa_config *cfg = &b->shape.cfg;
    const size_t bytes = size_of(i64_mul(b->batch.total_q, (int64_t)cfg->n_heads_kv * cfg->slc_topk), sizeof(int32_t));
    int32_t *slc_idx = lm_alloc_zeroed(bytes);
    if (slc_idx == NULL)
        return lm_out_of_memory("selected blocks");
    const bool read = b->device->copy(slc_idx, b->forward.slc_idx.data, bytes);
    if (read)
        *overlap = bench_overlap(cfg, slc_idx, b->shape.seqlen);
    free(slc_idx);
    return read;
}

/* ---- Runs -------------------------------------------------------------------------------------------------------- */

/* With `bytes` a call asks for its workspace, without it runs. */
static nsa_status call_branch(bench_case *b, int branch, const nsa_config *cfg, const nsa_attn_args *args,
                              size_t *bytes)
{
    static const struct {
        nsa_status (*workspace)(const nsa_ctx *, const nsa_config *, const nsa_batch *, const nsa_attn_args *,
                                size_t *);
        nsa_status (*run)(const nsa_ctx *, const nsa_config *, const nsa_batch *, const nsa_attn_args *, void *, size_t,
                          nsa_stream);
    } calls[] = {[NSA_CMP] = {nsa_cmp_attn_workspace, nsa_cmp_attn},
                 [NSA_SLC] = {nsa_slc_attn_workspace, nsa_slc_attn},
                 [NSA_WIN] = {nsa_win_attn_workspace, nsa_win_attn}};
    return bytes != NULL
               ? calls[branch].workspace(b->ctx, cfg, &b->batch, args, bytes)
               : calls[branch].run(b->ctx, cfg, &b->batch, args, b->workspace, b->workspace_bytes, b->device->stream);
}

static nsa_status call_dense(bench_case *b, bench_op op, size_t *bytes)
{
    if (op != BENCH_BACKWARD)
        return call_branch(b, NSA_WIN, &b->dense, &b->dense_forward, bytes);
    return bytes != NULL ? nsa_win_attn_backward_workspace(b->ctx, &b->dense, &b->batch, &b->dense_backward, bytes)
                         : nsa_win_attn_backward(b->ctx, &b->dense, &b->batch, &b->dense_backward, b->workspace,
                                                 b->workspace_bytes, b->device->stream);
}

static nsa_status call_compress(bench_case *b, size_t *bytes)
{
    const nsa_config *cfg = &b->shape.cfg;
    const nsa_forward_args *f = &b->forward;
    const nsa_compress_args args[] = {{cfg->d_qk, *f->phi_k, f->k[NSA_CMP], f->k_cmp},
                                      {cfg->d_v, *f->phi_v, f->v[NSA_CMP], f->v_cmp}};
    nsa_status status = NSA_OK;
    size_t most = 0;
    for (int i = 0; i < 2 && status == NSA_OK; i++) {
        size_t one = 0;
        status = bytes != NULL ? nsa_compress_workspace(b->ctx, cfg, &b->batch, &args[i], &one)
                               : nsa_compress(b->ctx, cfg, &b->batch, &args[i], b->workspace, b->workspace_bytes,
                                              b->device->stream);
        most = one > most ? one : most;
    }
    if (bytes != NULL)
        *bytes = most;
    return status;
}

static nsa_status call_select(bench_case *b, size_t *bytes)
{
    const nsa_config *cfg = &b->shape.cfg;
    const nsa_forward_args *f = &b->forward;
    const nsa_select_args args = {f->q[NSA_CMP], f->k_cmp, f->lse[NSA_CMP], f->slc_idx};
    return bytes != NULL
               ? nsa_select_workspace(b->ctx, cfg, &b->batch, &args, bytes)
               : nsa_select(b->ctx, cfg, &b->batch, &args, b->workspace, b->workspace_bytes, b->device->stream);
}

static nsa_status call_gate(bench_case *b, const size_t *bytes)
{
    const nsa_forward_args *f = &b->forward;
    const nsa_gate_args args = {f->gate, {f->o_branch[NSA_CMP], f->o_branch[NSA_SLC], f->o_branch[NSA_WIN]}, f->o};
    return bytes != NULL ? NSA_OK : nsa_gate(b->ctx, &b->shape.cfg, &b->batch, &args, b->device->stream);
}

static nsa_status call_attn(bench_case *b, int branch, size_t *bytes)
{
    const nsa_forward_args *f = &b->forward;
    const bool cmp = branch == NSA_CMP;
    const nsa_attn_args args = {f->q[branch], cmp ? f->k_cmp : f->k[branch], cmp ? f->v_cmp : f->v[branch],
                                f->slc_idx,   f->o_branch[branch],           f->lse[branch]};
    return call_branch(b, branch, &b->shape.cfg, &args, bytes);
}

static nsa_status call_forward(bench_case *b, bool given, size_t *bytes)
{
    nsa_forward_args args = b->forward;
    args.slc_idx_given = given;
    return bytes != NULL ? nsa_forward_workspace(b->ctx, &b->shape.cfg, &b->batch, &args, bytes)
                         : nsa_forward(b->ctx, &b->shape.cfg, &b->batch, &args, b->workspace, b->workspace_bytes,
                                       b->device->stream);
}

static nsa_status call_nsa(bench_case *b, bench_op op, size_t *bytes)
{
    const nsa_config *cfg = &b->shape.cfg;
    void *ws = b->workspace;
    const size_t n = b->workspace_bytes;
    switch (op) {
    case BENCH_FORWARD:
    case BENCH_FORWARD_GIVEN: return call_forward(b, op == BENCH_FORWARD_GIVEN, bytes);
    case BENCH_BACKWARD:
        return bytes != NULL ? nsa_backward_workspace(b->ctx, cfg, &b->batch, &b->backward, bytes)
                             : nsa_backward(b->ctx, cfg, &b->batch, &b->backward, ws, n, b->device->stream);
    case BENCH_PREFILL:
        return bytes != NULL ? nsa_prefill_workspace(b->ctx, cfg, &b->caches.pool, &b->prefill, bytes)
                             : nsa_prefill(b->ctx, cfg, &b->caches.pool, &b->prefill, ws, n, b->device->stream);
    case BENCH_COMPRESS: return call_compress(b, bytes);
    case BENCH_CMP_ATTN: return call_attn(b, NSA_CMP, bytes);
    case BENCH_SELECT: return call_select(b, bytes);
    case BENCH_SLC_ATTN: return call_attn(b, NSA_SLC, bytes);
    case BENCH_WIN_ATTN: return call_attn(b, NSA_WIN, bytes);
    case BENCH_GATE: return call_gate(b, bytes);
    case BENCH_DECODE:
    case BENCH_TRAIN_STEP:
    case BENCH_N_OPS: break;
    }
    return NSA_ERR_INVALID_ARGUMENT;
}

static nsa_status call(bench_case *b, size_t *bytes)
{
    return b->attention == BENCH_NSA ? call_nsa(b, b->op, bytes) : call_dense(b, b->op, bytes);
}

/* The library's status as ours. */
static bool took(bench_case *b, nsa_status status)
{
    b->lacks = status == NSA_ERR_UNSUPPORTED;
    return lm_nsa(status, bench_op_names[b->op]);
}

/* Makes the workspace what the operation asks for. */
static bool reserve(bench_case *b)
{
    b->asked_bytes = 0;
    LM_TRY(took(b, call(b, &b->asked_bytes)));
    if (b->asked_bytes <= b->workspace_bytes)
        return true;
    b->device->release(b->workspace);
    b->workspace = b->device->take(b->asked_bytes);
    b->workspace_bytes = b->workspace == NULL ? 0 : b->asked_bytes;
    b->lacks = b->workspace == NULL;
    return b->workspace != NULL;
}

/* Prefill starts from empty caches. */
static bool prepare(void *self)
{
    const bench_case *b = self;
    for (int32_t s = 0; b->op == BENCH_PREFILL && s < b->shape.batch; s++)
        LM_TRY(lm_nsa(
            nsa_cache_reset(b->ctx, &b->shape.cfg, &b->caches.pool, bench_state(&b->caches, s), b->device->stream),
            "nsa_cache_reset"));
    return true;
}

/* The sets of inputs in turn, with one workspace. */
static bool run(void *self)
{
    bench_case *b = self, *other = b->other;
    b->turn = !b->turn && other != NULL;
    if (!b->turn)
        return took(b, call(b, NULL));
    other->op = b->op;
    other->attention = b->attention;
    other->workspace = b->workspace;
    other->workspace_bytes = b->workspace_bytes;
    const nsa_status status = call(other, NULL);
    other->workspace = NULL;
    return took(b, status);
}

bool bench_case_forward(bench_case *b, bench_attention attention)
{
    if (b->forward_done[attention])
        return true;
    b->op = BENCH_FORWARD;
    b->attention = attention;
    LM_TRY(reserve(b));
    for (int i = 0; i < bench_case_sets(b); i++)
        LM_TRY(run(b));
    b->forward_done[attention] = true;
    return true;
}

bool bench_measure(bench_case *b, bench_op op, bench_attention attention, const bench_effort *effort, bench_time *time)
{
    if (op != BENCH_FORWARD && op != BENCH_PREFILL)
        LM_TRY(bench_case_forward(b, attention));
    b->op = op;
    b->attention = attention;
    b->turn = b->other != NULL; /* so that the first set comes first */
    LM_TRY(reserve(b) && b->device->repeat(b, prepare, run, effort, time));
    b->forward_done[attention] |= op == BENCH_FORWARD && (b->other == NULL || time->reps > 1);
    return true;
}
