#include "cli/bench_onednn.h"

#include "lm/arena.h"
#include "lm/error.h"

#include <stdlib.h>

enum { MAX_SETS = 256 };

static const int64_t rotated_bytes = INT64_C(128) << 20; /* what a round reads at least: several times a CPU's cache */

/* A set: the caches of one batch of sequences. */
typedef struct decode_case {
    const nsa_ctx *ctx;
    const bench_device *device;
    const bench_shape *shape;
    bool lacks;
    int32_t n_sets, turn;
    bench_tensors memory;
    void *workspace;
    size_t workspace_bytes;

    bench_caches caches; /* nsa: sequence s of a set is number set * batch + s */
    nsa_cache_args decode;
    nsa_phi phi_k, phi_v;
    void *drop_graph[MAX_SETS], *decode_graph[MAX_SETS]; /* where the device has graphs */

    nsa_config dense;
    nsa_batch batch;
    nsa_attn_args args[MAX_SETS]; /* dense */

    onednn_attn *attn;
    void *packed_q, *packed_o, *packed_k[MAX_SETS], *packed_v[MAX_SETS];
} decode_case;

static bool reserve(decode_case *c, size_t bytes)
{
    if (bytes <= c->workspace_bytes)
        return true;
    c->device->release(c->workspace);
    c->workspace = c->device->take(bytes);
    c->workspace_bytes = c->workspace == NULL ? 0 : bytes;
    c->lacks = c->workspace == NULL;
    return c->workspace != NULL;
}

/* The library's status as ours. */
static bool took(decode_case *c, nsa_status status, const char *function)
{
    c->lacks = status == NSA_ERR_UNSUPPORTED;
    return lm_nsa(status, function);
}

/* bench_take has said why. */
static bool no_memory(decode_case *c)
{
    c->lacks = true;
    return false;
}

/* ---- NSA --------------------------------------------------------------------------------------------------------- */

/* The first cache. It holds keys and values, nothing of queries: one query head per kv head is enough. */
static bool fill_first(decode_case *c)
{
    bench_shape few = *c->shape;
    few.cfg.n_heads_q = few.cfg.n_heads_kv;
    const int32_t heads = few.cfg.n_heads_kv;
    bench_tensors m = {.random = (uint64_t)few.seed, .device = c->device};
    nsa_cache_args a = c->decode;
    a.n_seqs = 1;
    a.max_seqlen = few.seqlen;
    a.total = few.seqlen;
    a.cu_seqlens = bench_take_cu(&m, 1, few.seqlen);
    a.q[0] = a.q[1] = a.q[2] = bench_random_tensor(&m, few.seqlen, few.dtype, heads, few.cfg.d_qk);
    a.k[0] = a.k[1] = a.k[2] = bench_random_tensor(&m, few.seqlen, few.dtype, heads, few.cfg.d_qk);
    a.v[0] = a.v[1] = a.v[2] = bench_random_tensor(&m, few.seqlen, few.dtype, heads, few.cfg.d_v);
    a.gate = bench_random_gate(&m, few.seqlen, heads);
    a.o = bench_tensor(&m, few.seqlen, few.dtype, heads, few.cfg.d_v);
    const nsa_cache *pool = &c->caches.pool;
    size_t bytes = 0;
    const bool filled =
        m.out_of_memory
            ? no_memory(c)
            : took(c, nsa_prefill_workspace(c->ctx, &few.cfg, pool, &a, &bytes), "nsa_prefill") && reserve(c, bytes) &&
                  took(c, nsa_prefill(c->ctx, &few.cfg, pool, &a, c->workspace, c->workspace_bytes, c->device->stream),
                       "nsa_prefill");
    bench_tensors_free(&m);
    return filled;
}

/* All others are equal to it. */
static bool copy_first(decode_case *c)
{
    const bench_caches *k = &c->caches;
    const size_t pages = (size_t)k->pages_per_seq * k->page_bytes;
    for (int32_t s = 1; s < c->n_sets * c->shape->batch; s++)
        LM_TRY(c->device->copy((char *)k->pool.pages + (size_t)s * pages, k->pool.pages, pages) &&
               c->device->copy(bench_state(k, s), k->first_state, k->state_bytes));
    return true;
}

/* The set whose turn it is. */
static void point_at_set(decode_case *c)
{
    const int32_t first = c->turn * c->shape->batch;
    c->decode.states = c->caches.states + first;
    c->decode.page_table = c->caches.table + (ptrdiff_t)first * c->caches.pages_per_seq;
}

/* The token that the set's last round has appended. */
static bool drop(void *self)
{
    decode_case *c = self;
    const bench_shape *shape = c->shape;
    for (int32_t s = 0; s < shape->batch; s++)
        LM_TRY(lm_nsa(nsa_cache_drop(c->ctx, &shape->cfg, &c->caches.pool,
                                     bench_state(&c->caches, c->turn * shape->batch + s), shape->seqlen,
                                     c->device->stream),
                      "nsa_cache_drop"));
    return true;
}

static bool decode(void *self)
{
    decode_case *c = self;
    return took(c,
                nsa_decode(c->ctx, &c->shape->cfg, &c->caches.pool, &c->decode, c->workspace, c->workspace_bytes,
                           c->device->stream),
                "nsa_decode");
}

static bool record_sets(decode_case *c)
{
    for (c->turn = 0; c->turn < c->n_sets; c->turn++) {
        point_at_set(c);
        LM_TRY(c->device->record(c, drop, &c->drop_graph[c->turn]) &&
               c->device->record(c, decode, &c->decode_graph[c->turn]));
    }
    return true;
}

static bool make_nsa(decode_case *c)
{
    const bench_shape *shape = c->shape;
    const nsa_config *cfg = &shape->cfg;
    bench_tensors *m = &c->memory;
    const nsa_status status = bench_make_caches(m, c->ctx, shape, c->n_sets * shape->batch, &c->caches);
    if (m->out_of_memory)
        return no_memory(c);
    LM_TRY(took(c, status, "caches"));
    nsa_cache_args *a = &c->decode;
    bench_make_phi(m, shape, cfg->d_qk, &c->phi_k, NULL);
    bench_make_phi(m, shape, cfg->d_v, &c->phi_v, NULL);
    *a = (nsa_cache_args){.n_seqs = shape->batch,
                          .max_seqlen = 1,
                          .total = shape->batch,
                          .cu_seqlens = bench_take_cu(m, shape->batch, 1),
                          .states = c->caches.states,
                          .page_table = c->caches.table,
                          .pages_per_seq = c->caches.pages_per_seq,
                          .gate = bench_random_gate(m, shape->batch, cfg->n_heads_q),
                          .phi_k = &c->phi_k,
                          .phi_v = &c->phi_v,
                          .o = bench_tensor(m, shape->batch, shape->dtype, cfg->n_heads_q, cfg->d_v)};
    a->k[0] = a->k[1] = a->k[2] = bench_random_tensor(m, shape->batch, shape->dtype, cfg->n_heads_kv, cfg->d_qk);
    a->v[0] = a->v[1] = a->v[2] = bench_random_tensor(m, shape->batch, shape->dtype, cfg->n_heads_kv, cfg->d_v);
    a->q[0] = a->q[1] = a->q[2] = bench_random_tensor(m, shape->batch, shape->dtype, cfg->n_heads_q, cfg->d_qk);
    if (m->out_of_memory)
        return no_memory(c);
    size_t bytes = 0;
    LM_TRY(fill_first(c) && copy_first(c));
    LM_TRY(took(c, nsa_decode_workspace(c->ctx, cfg, &c->caches.pool, a, &bytes), "nsa_decode") && reserve(c, bytes));
    return c->device->record == NULL || record_sets(c);
}

/* The next set, without the token that its last round has appended. */
static bool prepare_nsa(void *self)
{
    decode_case *c = self;
    c->turn = (c->turn + 1) % c->n_sets;
    point_at_set(c);
    return c->device->record != NULL ? c->device->launch(c->drop_graph[c->turn]) : drop(c);
}

static bool run_nsa(void *self)
{
    decode_case *c = self;
    return c->device->record != NULL ? c->device->launch(c->decode_graph[c->turn]) : decode(c);
}

/* ---- Dense ------------------------------------------------------------------------------------------------------- */

static nsa_tensor copy_of(decode_case *c, const nsa_tensor *x, int64_t rows)
{
    nsa_tensor y = *x;
    const size_t size = bench_element_size(x->dtype);
    y.data = bench_take(&c->memory, rows * x->stride_token, size);
    if (x->data != NULL && y.data != NULL && !c->device->copy(y.data, x->data, size_of(rows * x->stride_token, size)))
        c->memory.out_of_memory = true;
    return y;
}

static bool make_dense(decode_case *c)
{
    const bench_shape *shape = c->shape;
    const nsa_config *cfg = &shape->cfg;
    const int64_t rows = (int64_t)shape->batch * shape->seqlen;
    bench_tensors *m = &c->memory;
    c->dense = *cfg;
    c->dense.win_size = INT32_MAX;
    c->batch = (nsa_batch){shape->batch,
                           1,
                           shape->seqlen,
                           shape->batch,
                           rows,
                           bench_take_cu(m, shape->batch, 1),
                           bench_take_cu(m, shape->batch, shape->seqlen)};
    nsa_attn_args *a = c->args;
    a[0] = (nsa_attn_args){.q = bench_random_tensor(m, shape->batch, shape->dtype, cfg->n_heads_q, cfg->d_qk),
                           .k = bench_random_tensor(m, rows, shape->dtype, cfg->n_heads_kv, cfg->d_qk),
                           .v = bench_random_tensor(m, rows, shape->dtype, cfg->n_heads_kv, cfg->d_v),
                           .o = bench_tensor(m, shape->batch, shape->dtype, cfg->n_heads_q, cfg->d_v),
                           .lse = bench_tensor(m, shape->batch, NSA_F32, cfg->n_heads_q, 1)};
    size_t bytes = 0;
    if (m->out_of_memory)
        return no_memory(c);
    LM_TRY(lm_nsa(nsa_win_attn_workspace(c->ctx, &c->dense, &c->batch, a, &bytes), "nsa_win_attn"));
    return reserve(c, bytes);
}

static bool copy_dense(decode_case *c)
{
    for (int32_t set = 1; set < c->n_sets; set++) {
        c->args[set] = c->args[0];
        c->args[set].k = copy_of(c, &c->args[0].k, c->batch.total_k);
        c->args[set].v = copy_of(c, &c->args[0].v, c->batch.total_k);
    }
    return c->memory.out_of_memory ? no_memory(c) : true;
}

static bool next_set(void *self)
{
    decode_case *c = self;
    c->turn = (c->turn + 1) % c->n_sets;
    return true;
}

static bool run_dense(void *self)
{
    decode_case *c = self;
    return lm_nsa(nsa_win_attn(c->ctx, &c->dense, &c->batch, &c->args[c->turn], c->workspace, c->workspace_bytes,
                               c->device->stream),
                  "nsa_win_attn");
}

/* ---- oneDNN ------------------------------------------------------------------------------------------------------ */

static bool run_onednn(void *self)
{
    const decode_case *c = self;
    return onednn_attn_run(c->attn, c->packed_q, c->packed_k[c->turn], c->packed_v[c->turn], c->packed_o);
}

static bool make_onednn(decode_case *c)
{
    const bench_shape *shape = c->shape;
    const nsa_attn_args *a = c->args;
    const int32_t group = shape->cfg.n_heads_q / shape->cfg.n_heads_kv;
    LM_TRY(make_dense(c));
    LM_TRY(run_dense(c));
    c->packed_q = bench_onednn_pack(&c->memory, shape, &a->q, 1, group);
    c->packed_o = bench_onednn_pack(&c->memory, shape, &a->o, 1, group);
    for (int32_t set = 0; set < c->n_sets; set++) {
        c->packed_k[set] = bench_onednn_pack(&c->memory, shape, &a->k, shape->seqlen, 1);
        c->packed_v[set] = bench_onednn_pack(&c->memory, shape, &a->v, shape->seqlen, 1);
    }
    if (c->memory.out_of_memory)
        return no_memory(c);
    c->attn = bench_onednn_create(shape, 1, 1);
    return c->attn != NULL && run_onednn(c) && bench_onednn_check(shape, c->packed_o, &a->o, 1);
}

/* ------------------------------------------------------------------------------------------------------------------ */

static bool measure(decode_case *c, bench_attention attention, const bench_effort *effort, bench_time *time)
{
    switch (attention) {
    case BENCH_NSA: return make_nsa(c) && c->device->repeat(c, prepare_nsa, run_nsa, effort, time);
    case BENCH_DENSE: return make_dense(c) && copy_dense(c) && c->device->repeat(c, next_set, run_dense, effort, time);
    case BENCH_ONEDNN: return make_onednn(c) && c->device->repeat(c, next_set, run_onednn, effort, time);
    case BENCH_N_ATTENTIONS: break;
    }
    return false;
}

bool bench_measure_decode(const nsa_ctx *ctx, const bench_device *device, const bench_shape *shape,
                          bench_attention attention, const bench_effort *effort, bench_time *time, int64_t *rotated,
                          bool *lacks)
{
    bench_shape read = *shape;
    if (attention == BENCH_ONEDNN)
        read.dtype = bench_onednn_dtype(shape->dtype);
    const int64_t once = (int64_t)bench_least_work(&read, BENCH_DECODE, attention).bytes;
    const int64_t rounds = (rotated_bytes + once - 1) / once;
    decode_case *c = calloc(1, sizeof *c);
    if (c == NULL)
        return lm_out_of_memory("decode");
    c->ctx = ctx;
    c->device = device;
    c->shape = shape;
    c->n_sets = rounds < MAX_SETS ? (int32_t)rounds : MAX_SETS;
    c->memory.random = (uint64_t)shape->seed;
    c->memory.device = device;
    *rotated = once * c->n_sets;
    const bool measured = measure(c, attention, effort, time);
    *lacks = c->lacks;
    for (int32_t i = 0; i < c->n_sets && device->forget != NULL; i++) {
        device->forget(c->drop_graph[i]);
        device->forget(c->decode_graph[i]);
    }
    onednn_attn_destroy(c->attn);
    bench_tensors_free(&c->memory);
    device->release(c->workspace);
    free(c);
    return measured;
}
