#include "cli/bench.h"
#include "cli/progress.h"
#include "lm/arena.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_BUFFERS = 64, MAX_REPS = 101 };

const char *const bench_op_names[BENCH_N_OPS] = {"forward", "backward", "prefill", "decode"};
const char *const bench_attention_names[BENCH_N_ATTENTIONS] = {"nsa", "dense"};

struct bench_case {
    const nsa_ctx *ctx;
    bench_shape shape;
    nsa_config dense;     /* cfg with a window without end */
    nsa_batch batch, one; /* one: a query per sequence */
    int32_t *cu, *cu_one;

    nsa_phi phi[2], dphi[2]; /* of keys, of values */
    nsa_forward_args forward;
    nsa_backward_args backward;
    nsa_attn_args dense_forward, dense_decode;
    nsa_attn_backward_args dense_backward;
    nsa_cache cache;
    nsa_cache_args prefill, decode;
    void **states;

    void *workspace;
    size_t workspace_bytes;
    void *buffers[MAX_BUFFERS];
    int n_buffers;
    bool out_of_memory;
    uint64_t random;
};

/* ---- Work -------------------------------------------------------------------------------------------------------- */

static double attended(const nsa_config *cfg, bench_attention attention, int64_t t)
{
    if (attention == BENCH_DENSE)
        return (double)(t + 1);
    const int64_t cur = t / cfg->slc_block;
    const int64_t selected = cur + 1 < cfg->slc_topk ? cur + 1 : cfg->slc_topk;
    const int64_t slc = (selected - 1) * cfg->slc_block + t % cfg->slc_block + 1; /* the current block is forced */
    const int64_t win = t + 1 < cfg->win_size ? t + 1 : cfg->win_size;
    return (double)(nsa_n_cmp(cfg, t + 1) + slc + win);
}

double bench_flop(const bench_shape *shape, bench_op op, bench_attention attention)
{
    double pairs = 0;
    if (op == BENCH_DECODE)
        pairs = attended(&shape->cfg, attention, shape->seqlen);
    else
        for (int64_t t = 0; t < shape->seqlen; t++)
            pairs += attended(&shape->cfg, attention, t);
    const double flop = 2.0 * (shape->cfg.d_qk + shape->cfg.d_v) * shape->cfg.n_heads_q * shape->batch * pairs;
    return op == BENCH_BACKWARD ? 2.5 * flop : flop;
}

/* ---- Tensors ----------------------------------------------------------------------------------------------------- */

static size_t element_size(nsa_dtype dtype)
{
    return dtype == NSA_BF16 || dtype == NSA_F16 ? 2 : 4;
}

/* `count` elements of `size` bytes, zeroed: touched before the clock runs. */
static void *take(bench_case *b, int64_t count, size_t size)
{
    void *p = b->n_buffers < MAX_BUFFERS ? lm_alloc_zeroed(size_of(count, size)) : NULL;
    if (p == NULL) {
        b->out_of_memory = true;
        return NULL;
    }
    return b->buffers[b->n_buffers++] = p;
}

/* Uniform in [-1, 1) (splitmix64). */
static float uniform(bench_case *b)
{
    uint64_t z = b->random += 0x9e3779b97f4a7c15U;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9U;
    z = (z ^ z >> 27) * 0x94d049bb133111ebU;
    return (float)((double)(z >> 40) / (1 << 23) - 1);
}

/* Towards zero, and what is below f16's normal range to zero: these are random numbers. */
static uint16_t to_half(float x, nsa_dtype dtype)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    if (dtype == NSA_BF16)
        return (uint16_t)(u >> 16);
    const uint32_t magnitude = u & 0x7fffffffU, bias = (127U - 15U) << 23;
    return (uint16_t)((u >> 16 & 0x8000U) | (magnitude > bias ? (magnitude - bias) >> 13 : 0));
}

static void *take_random(bench_case *b, int64_t count, nsa_dtype dtype, float scale, float offset)
{
    void *p = take(b, count, element_size(dtype));
    for (int64_t i = 0; p != NULL && i < count; i++) {
        const float x = offset + scale * uniform(b);
        if (dtype == NSA_F32)
            ((float *)p)[i] = x;
        else
            ((uint16_t *)p)[i] = to_half(x, dtype);
    }
    return p;
}

static nsa_tensor tensor(bench_case *b, int64_t rows, nsa_dtype dtype, int32_t heads, int32_t d)
{
    return nsa_packed(take(b, i64_mul(i64_mul(rows, heads), d), element_size(dtype)), dtype, heads, d);
}

/* Variance 1, so that the logits' is too. */
static nsa_tensor random_tensor(bench_case *b, int64_t rows, int32_t heads, int32_t d)
{
    return nsa_packed(take_random(b, i64_mul(i64_mul(rows, heads), d), b->shape.dtype, 1.7320508F, 0), b->shape.dtype,
                      heads, d);
}

/* One set of parameters for all heads, f32; their gradients in dphi. An mlp is d wide inside. */
static void make_phi(bench_case *b, nsa_phi *phi, nsa_phi *dphi, int32_t d)
{
    const int64_t block = b->shape.cfg.cmp_block, flat = block * d;
    const struct {
        int64_t pe, w1, b1, w2, b2;
    } sizes[] = {
        [NSA_PHI_MEAN] = {0},
        [NSA_PHI_LINEAR] = {flat, flat * d, 0, 0, 0},
        [NSA_PHI_GATED_TOKEN] = {0, d, block, 0, 0},
        [NSA_PHI_GATED_CHANNEL] = {0, (int64_t)d * d, flat, 0, 0},
        [NSA_PHI_MLP] = {flat, flat * d, d, (int64_t)d * d, d},
    };
    const nsa_phi_kind kind = b->shape.phi;
    *phi = *dphi = (nsa_phi){.kind = kind, .dtype = NSA_F32, .d_hidden = kind == NSA_PHI_MLP ? d : 0};
    const int64_t count[] = {sizes[kind].pe, sizes[kind].w1, sizes[kind].b1, sizes[kind].w2, sizes[kind].b2};
    void **value[] = {&phi->pe, &phi->w1, &phi->b1, &phi->w2, &phi->b2};
    void **gradient[] = {&dphi->pe, &dphi->w1, &dphi->b1, &dphi->w2, &dphi->b2};
    for (int i = 0; i < 5; i++) {
        if (count[i] > 0) {
            *value[i] = take_random(b, count[i], NSA_F32, 1.7320508F / sqrtf((float)(count[i] / d + 1)), 0);
            *gradient[i] = take(b, count[i], sizeof(float));
        }
    }
}

static void make_batch(bench_case *b)
{
    const int32_t n = b->shape.batch, seqlen = b->shape.seqlen;
    b->cu = take(b, (int64_t)n + 1, sizeof(int32_t));
    b->cu_one = take(b, (int64_t)n + 1, sizeof(int32_t));
    for (int32_t s = 0; !b->out_of_memory && s <= n; s++) {
        b->cu[s] = s * seqlen;
        b->cu_one[s] = s;
    }
    b->batch = (nsa_batch){n, seqlen, seqlen, (int64_t)n * seqlen, (int64_t)n * seqlen, b->cu, b->cu};
    b->one = (nsa_batch){n, 1, seqlen, n, (int64_t)n * seqlen, b->cu_one, b->cu};
}

static void make_training(bench_case *b)
{
    const nsa_config *cfg = &b->shape.cfg;
    const nsa_dtype dtype = b->shape.dtype;
    const int64_t rows = b->batch.total_q, rows_cmp = rows / cfg->cmp_stride + 1;
    nsa_forward_args *f = &b->forward;
    nsa_backward_args *g = &b->backward;
    f->q[0] = f->q[1] = f->q[2] = random_tensor(b, rows, cfg->n_heads_q, cfg->d_qk);
    g->dq[0] = g->dq[1] = g->dq[2] = tensor(b, rows, dtype, cfg->n_heads_q, cfg->d_qk);
    for (int c = 0; c < NSA_N_BRANCHES; c++) {
        f->k[c] = random_tensor(b, rows, cfg->n_heads_kv, cfg->d_qk);
        f->v[c] = random_tensor(b, rows, cfg->n_heads_kv, cfg->d_v);
        f->o_branch[c] = tensor(b, rows, dtype, cfg->n_heads_q, cfg->d_v);
        f->lse[c] = tensor(b, rows, NSA_F32, cfg->n_heads_q, 1);
        g->dk[c] = tensor(b, rows, dtype, cfg->n_heads_kv, cfg->d_qk);
        g->dv[c] = tensor(b, rows, dtype, cfg->n_heads_kv, cfg->d_v);
    }
    f->gate = nsa_packed(take_random(b, i64_mul(rows, (int64_t)cfg->n_heads_q * 3), NSA_F32, 0.5F, 0.5F), NSA_F32,
                         cfg->n_heads_q, 3);
    f->phi_k = &b->phi[0];
    f->phi_v = &b->phi[1];
    f->o = tensor(b, rows, dtype, cfg->n_heads_q, cfg->d_v);
    f->k_cmp = tensor(b, rows_cmp, dtype, cfg->n_heads_kv, cfg->d_qk);
    f->v_cmp = tensor(b, rows_cmp, dtype, cfg->n_heads_kv, cfg->d_v);
    f->slc_idx = tensor(b, rows, NSA_I32, cfg->n_heads_kv, cfg->slc_topk);
    g->d_o = random_tensor(b, rows, cfg->n_heads_q, cfg->d_v);
    g->dgate = tensor(b, rows, NSA_F32, cfg->n_heads_q, 3);
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
    b->dense_forward.o = tensor(b, b->batch.total_q, b->shape.dtype, cfg->n_heads_q, cfg->d_v);
    b->dense_forward.lse = tensor(b, b->batch.total_q, NSA_F32, cfg->n_heads_q, 1);
    b->dense_decode = b->dense_forward;
    b->dense_decode.o = tensor(b, b->one.total_q, b->shape.dtype, cfg->n_heads_q, cfg->d_v);
    b->dense_decode.lse = tensor(b, b->one.total_q, NSA_F32, cfg->n_heads_q, 1);
    b->dense_backward = (nsa_attn_backward_args){.fwd = b->dense_forward,
                                                 .d_o = b->backward.d_o,
                                                 .dq = b->backward.dq[NSA_WIN],
                                                 .dk = b->backward.dk[NSA_WIN],
                                                 .dv = b->backward.dv[NSA_WIN]};
}

static void make_cache(bench_case *b)
{
    enum { PAGE = 1024 };
    const int32_t n = b->shape.batch, pages_per_seq = b->shape.seqlen / PAGE + 1;
    b->cache =
        (nsa_cache){.page_size = PAGE, .max_draft = 1, .dtype = b->shape.dtype, .n_pages = (int64_t)n * pages_per_seq};
    size_t page_bytes = 0, state_bytes = 0;
    if (nsa_cache_page_bytes(b->ctx, &b->shape.cfg, &b->cache, &page_bytes) != NSA_OK ||
        nsa_cache_state_bytes(b->ctx, &b->shape.cfg, &b->cache, &state_bytes) != NSA_OK)
        return;
    b->cache.pages = take(b, b->cache.n_pages, page_bytes);
    b->states = take(b, n, sizeof *b->states);
    int32_t *table = take(b, b->cache.n_pages, sizeof *table);
    state_bytes = size_round_up(state_bytes, LM_ALIGN);
    char *states = take(b, n, state_bytes);
    if (b->out_of_memory)
        return;
    for (int32_t s = 0; s < n; s++) {
        b->states[s] = states + (size_t)s * state_bytes;
        if (nsa_cache_reset(b->ctx, &b->shape.cfg, &b->cache, b->states[s]) != NSA_OK)
            return;
    }
    for (int32_t i = 0; i < n * pages_per_seq; i++)
        table[i] = i;

    const nsa_forward_args *f = &b->forward;
    b->prefill = (nsa_cache_args){.n_seqs = n,
                                  .total = b->batch.total_q,
                                  .cu_seqlens = b->cu,
                                  .states = b->states,
                                  .page_table = table,
                                  .pages_per_seq = pages_per_seq,
                                  .gate = f->gate,
                                  .phi_k = f->phi_k,
                                  .phi_v = f->phi_v,
                                  .o = f->o};
    for (int c = 0; c < NSA_N_BRANCHES; c++) {
        b->prefill.q[c] = f->q[c];
        b->prefill.k[c] = f->k[c];
        b->prefill.v[c] = f->v[c];
    }
    b->decode = b->prefill;
    b->decode.total = n;
    b->decode.cu_seqlens = b->cu_one;
}

bench_case *bench_case_create(const nsa_ctx *ctx, const bench_shape *shape)
{
    bench_case *b = calloc(1, sizeof *b);
    if (b == NULL)
        return NULL;
    b->ctx = ctx;
    b->shape = *shape;
    b->random = (uint64_t)shape->seed;
    make_batch(b);
    make_phi(b, &b->phi[0], &b->dphi[0], shape->cfg.d_qk);
    make_phi(b, &b->phi[1], &b->dphi[1], shape->cfg.d_v);
    make_training(b);
    make_dense(b);
    make_cache(b);
    if (b->out_of_memory) {
        bench_case_destroy(b);
        return NULL;
    }
    return b;
}

void bench_case_destroy(bench_case *b)
{
    if (b == NULL)
        return;
    for (int i = 0; i < b->n_buffers; i++)
        free(b->buffers[i]);
    free(b->workspace);
    free(b);
}

/* ---- Runs -------------------------------------------------------------------------------------------------------- */

/* Makes the workspace what the operation asks for. */
static nsa_status reserve(bench_case *b, bench_op op, bench_attention attention)
{
    const nsa_config *cfg = &b->shape.cfg;
    size_t bytes = 0;
    nsa_status status = NSA_ERR_INVALID_ARGUMENT;
    if (attention == BENCH_DENSE)
        status = op == BENCH_BACKWARD
                     ? nsa_win_attn_backward_workspace(b->ctx, &b->dense, &b->batch, &b->dense_backward, &bytes)
                 : op == BENCH_DECODE ? nsa_win_attn_workspace(b->ctx, &b->dense, &b->one, &b->dense_decode, &bytes)
                                      : nsa_win_attn_workspace(b->ctx, &b->dense, &b->batch, &b->dense_forward, &bytes);
    else
        switch (op) {
        case BENCH_FORWARD: status = nsa_forward_workspace(b->ctx, cfg, &b->batch, &b->forward, &bytes); break;
        case BENCH_BACKWARD: status = nsa_backward_workspace(b->ctx, cfg, &b->batch, &b->backward, &bytes); break;
        case BENCH_PREFILL: status = nsa_prefill_workspace(b->ctx, cfg, &b->cache, &b->prefill, &bytes); break;
        case BENCH_DECODE: status = nsa_decode_workspace(b->ctx, cfg, &b->cache, &b->decode, &bytes); break;
        case BENCH_N_OPS: break;
        }
    if (status != NSA_OK || bytes <= b->workspace_bytes)
        return status;
    free(b->workspace);
    b->workspace_bytes = 0;
    b->workspace = lm_alloc_zeroed(bytes);
    if (b->workspace == NULL)
        return NSA_ERR_OUT_OF_MEMORY;
    b->workspace_bytes = bytes;
    return NSA_OK;
}

/* Untimed, before every run: an empty cache for prefill, one of seqlen tokens for decode. */
static nsa_status prepare(bench_case *b, bench_op op, bench_attention attention)
{
    nsa_status status = NSA_OK;
    if (attention == BENCH_DENSE)
        return status;
    for (int32_t s = 0; s < b->shape.batch && status == NSA_OK; s++) {
        if (op == BENCH_PREFILL)
            status = nsa_cache_reset(b->ctx, &b->shape.cfg, &b->cache, b->states[s]);
        else if (op == BENCH_DECODE)
            status = nsa_cache_drop(b->ctx, &b->shape.cfg, &b->cache, b->states[s], b->shape.seqlen);
    }
    return status;
}

static nsa_status run(bench_case *b, bench_op op, bench_attention attention)
{
    const nsa_config *cfg = &b->shape.cfg;
    void *ws = b->workspace;
    const size_t n = b->workspace_bytes;
    if (attention == BENCH_DENSE)
        return op == BENCH_BACKWARD
                   ? nsa_win_attn_backward(b->ctx, &b->dense, &b->batch, &b->dense_backward, ws, n, NULL)
               : op == BENCH_DECODE ? nsa_win_attn(b->ctx, &b->dense, &b->one, &b->dense_decode, ws, n, NULL)
                                    : nsa_win_attn(b->ctx, &b->dense, &b->batch, &b->dense_forward, ws, n, NULL);
    switch (op) {
    case BENCH_FORWARD: return nsa_forward(b->ctx, cfg, &b->batch, &b->forward, ws, n, NULL);
    case BENCH_BACKWARD: return nsa_backward(b->ctx, cfg, &b->batch, &b->backward, ws, n, NULL);
    case BENCH_PREFILL: return nsa_prefill(b->ctx, cfg, &b->cache, &b->prefill, ws, n, NULL);
    case BENCH_DECODE: return nsa_decode(b->ctx, cfg, &b->cache, &b->decode, ws, n, NULL);
    case BENCH_N_OPS: break;
    }
    return NSA_ERR_INVALID_ARGUMENT;
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The first run warms up and is not counted, unless it alone takes all the time there is. */
nsa_status bench_measure(bench_case *b, bench_op op, bench_attention attention, double seconds, bench_time *time)
{
    double took[MAX_REPS], spent = 0;
    int n = 0;
    nsa_status status = reserve(b, op, attention);
    for (bool warm = false; status == NSA_OK; warm = true) {
        status = prepare(b, op, attention);
        if (status != NSA_OK)
            break;
        const double start = seconds_now();
        status = run(b, op, attention);
        const double elapsed = seconds_now() - start;
        spent += elapsed;
        if (warm || elapsed >= seconds)
            took[n++] = elapsed;
        if (n == MAX_REPS || (n > 0 && spent >= seconds))
            break;
    }
    if (status != NSA_OK)
        return status;
    qsort(took, (size_t)n, sizeof took[0], ascending);
    *time = (bench_time){1e3 * (n % 2 == 1 ? took[n / 2] : 0.5 * (took[n / 2 - 1] + took[n / 2])), n};
    return NSA_OK;
}
