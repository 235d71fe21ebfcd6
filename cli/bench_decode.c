#include "cli/bench_onednn.h"

#include "lm/arena.h"
#include "lm/error.h"

#include <string.h>

enum { MAX_SETS = 256 };

static const int64_t rotated_bytes = INT64_C(128) << 20; /* what a round reads at least: several times a CPU's cache */

/* A set: the caches of one batch of sequences. */
typedef struct decode_case {
    const nsa_ctx *ctx;
    const bench_shape *shape;
    int32_t n_sets, turn;
    bench_tensors memory;
    void *workspace;
    size_t workspace_bytes;

    bench_caches caches; /* nsa: sequence s of a set is number set * batch + s */
    nsa_cache_args decode;
    nsa_phi phi_k, phi_v;

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
    free(c->workspace);
    c->workspace = lm_alloc_zeroed(bytes);
    c->workspace_bytes = c->workspace == NULL ? 0 : bytes;
    return c->workspace != NULL ? true : lm_out_of_memory("workspace");
}

/* ---- NSA --------------------------------------------------------------------------------------------------------- */

/* The caches of the first set. They hold keys and values, nothing of queries: one query head per kv head is enough. */
static bool fill_first(decode_case *c)
{
    bench_shape few = *c->shape;
    few.cfg.n_heads_q = few.cfg.n_heads_kv;
    const int32_t heads = few.cfg.n_heads_kv;
    const int64_t rows = (int64_t)few.batch * few.seqlen;
    bench_tensors m = {.random = (uint64_t)few.seed, .device = &bench_cpu};
    nsa_cache_args a = c->decode;
    a.total = rows;
    a.cu_seqlens = bench_take_cu(&c->memory, few.batch, few.seqlen);
    a.q[0] = a.q[1] = a.q[2] = bench_random_tensor(&m, rows, few.dtype, heads, few.cfg.d_qk);
    a.k[0] = a.k[1] = a.k[2] = bench_random_tensor(&m, rows, few.dtype, heads, few.cfg.d_qk);
    a.v[0] = a.v[1] = a.v[2] = bench_random_tensor(&m, rows, few.dtype, heads, few.cfg.d_v);
    a.gate = bench_random_gate(&m, rows, heads);
    a.o = bench_tensor(&m, rows, few.dtype, heads, few.cfg.d_v);
    size_t bytes = 0;
    const bool filled =
        !m.out_of_memory && !c->memory.out_of_memory
            ? lm_nsa(nsa_prefill_workspace(c->ctx, &few.cfg, &c->caches.pool, &a, &bytes), "nsa_prefill") &&
                  reserve(c, bytes) &&
                  lm_nsa(nsa_prefill(c->ctx, &few.cfg, &c->caches.pool, &a, c->workspace, c->workspace_bytes, NULL),
                         "nsa_prefill")
            : lm_out_of_memory("the tokens of a cache");
    bench_tensors_free(&m);
    return filled;
}

static void copy_first(decode_case *c)
{
    const bench_caches *k = &c->caches;
    const int32_t n = c->shape->batch;
    const size_t pages = (size_t)n * (size_t)k->pages_per_seq * k->page_bytes;
    for (int32_t set = 1; set < c->n_sets; set++) {
        memcpy((char *)k->pool.pages + (size_t)set * pages, k->pool.pages, pages);
        for (int32_t s = 0; s < n; s++)
            memcpy(k->states[set * n + s], k->states[s], k->state_bytes);
    }
}

static bool make_nsa(decode_case *c)
{
    const bench_shape *shape = c->shape;
    const nsa_config *cfg = &shape->cfg;
    bench_tensors *m = &c->memory;
    if (bench_make_caches(m, c->ctx, shape, c->n_sets * shape->batch, &c->caches) != NSA_OK)
        return lm_out_of_memory("caches");
    nsa_cache_args *a = &c->decode;
    bench_make_phi(m, shape, cfg->d_qk, &c->phi_k, NULL);
    bench_make_phi(m, shape, cfg->d_v, &c->phi_v, NULL);
    *a = (nsa_cache_args){.n_seqs = shape->batch,
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
        return lm_out_of_memory("caches");
    LM_TRY(fill_first(c));
    copy_first(c);
    size_t bytes = 0;
    LM_TRY(lm_nsa(nsa_decode_workspace(c->ctx, cfg, &c->caches.pool, a, &bytes), "nsa_decode"));
    return reserve(c, bytes);
}

/* The caches of the set whose turn it is, without the token that the last round appended. */
static bool prepare_nsa(void *self)
{
    decode_case *c = self;
    const bench_shape *shape = c->shape;
    const int32_t first = c->turn * shape->batch;
    c->decode.states = c->caches.states + first;
    c->decode.page_table = c->caches.table + (ptrdiff_t)first * c->caches.pages_per_seq;
    for (int32_t s = 0; s < shape->batch; s++)
        LM_TRY(lm_nsa(nsa_cache_drop(c->ctx, &shape->cfg, &c->caches.pool, c->decode.states[s], shape->seqlen, NULL),
                      "nsa_cache_drop"));
    c->turn = (c->turn + 1) % c->n_sets;
    return true;
}

static bool run_nsa(void *self)
{
    decode_case *c = self;
    return lm_nsa(
        nsa_decode(c->ctx, &c->shape->cfg, &c->caches.pool, &c->decode, c->workspace, c->workspace_bytes, NULL),
        "nsa_decode");
}

/* ---- Dense ------------------------------------------------------------------------------------------------------- */

static nsa_tensor copy_of(decode_case *c, const nsa_tensor *x, int64_t rows)
{
    nsa_tensor y = *x;
    const size_t size = bench_element_size(x->dtype);
    y.data = bench_take(&c->memory, rows * x->stride_token, size);
    if (x->data != NULL && y.data != NULL)
        memcpy(y.data, x->data, (size_t)(rows * x->stride_token) * size);
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
        return lm_out_of_memory("keys and values");
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
    return !c->memory.out_of_memory ? true : lm_out_of_memory("keys and values");
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
    return lm_nsa(nsa_win_attn(c->ctx, &c->dense, &c->batch, &c->args[c->turn], c->workspace, c->workspace_bytes, NULL),
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
        return lm_out_of_memory("keys and values");
    c->attn = bench_onednn_create(shape, 1, 1);
    return c->attn != NULL && run_onednn(c) && bench_onednn_check(shape, c->packed_o, &a->o, 1);
}

/* ------------------------------------------------------------------------------------------------------------------ */

/* Bytes of keys and values that a token of each sequence reads. */
static int64_t read_bytes(const bench_shape *shape, bench_attention attention)
{
    const nsa_dtype dtype = attention == BENCH_ONEDNN ? bench_onednn_dtype(shape->dtype) : shape->dtype;
    const double flop = bench_flop(shape, BENCH_DECODE, attention);
    return (int64_t)flop / 2 / shape->cfg.n_heads_q * shape->cfg.n_heads_kv * (int64_t)bench_element_size(dtype);
}

bool bench_measure_decode(const nsa_ctx *ctx, const bench_shape *shape, bench_attention attention,
                          const bench_effort *effort, bench_time *time, int64_t *rotated)
{
    const int64_t once = read_bytes(shape, attention), rounds = (rotated_bytes + once - 1) / once;
    decode_case *c = calloc(1, sizeof *c);
    if (c == NULL)
        return lm_out_of_memory("decode");
    c->ctx = ctx;
    c->shape = shape;
    c->n_sets = rounds < MAX_SETS ? (int32_t)rounds : MAX_SETS;
    c->memory.random = (uint64_t)shape->seed;
    c->memory.device = &bench_cpu;
    *rotated = once * c->n_sets;
    const bool measured = attention == BENCH_NSA ? make_nsa(c) && bench_repeat(c, prepare_nsa, run_nsa, effort, time)
                          : attention == BENCH_DENSE
                              ? make_dense(c) && copy_dense(c) && bench_repeat(c, next_set, run_dense, effort, time)
                              : make_onednn(c) && bench_repeat(c, next_set, run_onednn, effort, time);
    onednn_attn_destroy(c->attn);
    bench_tensors_free(&c->memory);
    free(c->workspace);
    free(c);
    return measured;
}
