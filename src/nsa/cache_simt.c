/*
 * A cache's call on CUDA, for any shape: append -> compress the new blocks -> gather -> pipeline -> finish. The keys of
 * all sequences are gathered into packed tensors of the workspace, so the branches run by whatever kernels are there
 * for tensors: for prefill, whose products dwarf the copies, and where decoding has no kernels of its own.
 */
#include "nsa/cache_simt.h"
#include "cuda/device.h"
#include "cuda/simt_args.h"
#include "nsa/decode.h"
#include "nsa/pipeline.h"
#include "ops/compress/compress.h"

cache_simt cache_simt_of(const cache_problem *p)
{
    const nsa_cache_args *args = p->args;
    cache_simt a = {
        .cfg = simt_config_of(p->cfg),
        .shared_kv = p->cache->shared_kv != 0,
        .element = (int32_t)dtype_size(p->cache->dtype),
        .n_seqs = args->n_seqs,
        .max_new = (int32_t)cache_max_new(args),
        .page_size = p->cache->page_size,
        .pages_per_seq = args->pages_per_seq,
        .n_pages = (int32_t)p->cache->n_pages,
        .total = args->total,
        .cu = args->cu_seqlens,
        .table = args->page_table,
        .states = args->states,
        .pages = p->cache->pages,
        .layout = p->layout,
    };
    for (int b = 0; b < NSA_N_BRANCHES; b++) {
        a.k[b] = args->k[b];
        a.v[b] = args->v[b];
    }
    return a;
}

/* The sequences of a call with keys that are gathered: of cu, max_k of each at most. */
static seqs gathered_seqs(const cache_problem *p, const int32_t *cu, int64_t max_k)
{
    return (seqs){.n = p->args->n_seqs,
                  .total_q = p->args->total,
                  .total_k = i64_mul(p->args->n_seqs, max_k),
                  .max_q = (int32_t)cache_max_new(p->args),
                  .max_k = (int32_t)max_k,
                  .cu_q = p->args->cu_seqlens,
                  .cu_k = cu};
}

/* Tokens of GATHER_WIN and GATHER_RAW of a sequence, at most. */
static int64_t max_win(const cache_problem *p)
{
    return min_i64(cache_room(p->cache, p->args), p->cfg->win_size - 1 + cache_max_new(p->args));
}

static int64_t max_raw(const cache_problem *p)
{
    return min_i64(cache_room(p->cache, p->args), p->cfg->cmp_block - 1 + cache_max_new(p->args));
}

bool cache_gathered_supports(const cache_problem *p)
{
    const int64_t all = i64_mul(p->args->n_seqs, cache_room(p->cache, p->args));
    return p->ctx->cuda && all <= INT32_MAX;
}

/* K and V tensors for n rows. */
static gather_simt take_gathered(const cache_problem *p, gathered what, const seqs *keys, arena *ws)
{
    const nsa_config *cfg = p->cfg;
    const int64_t total = what == GATHER_CMP ? keys->total_k / cfg->cmp_stride : keys->total_k;
    const nsa_tensor none = {.data = NULL};
    return (gather_simt){
        .what = what,
        .total = total,
        .cu = keys->cu_k,
        .k = tensor_or_scratch(&none, ws, total, p->cache->dtype, cfg->n_heads_kv, cfg->d_qk),
        .v = tensor_or_scratch(&none, ws, total, p->cache->dtype, cfg->n_heads_kv, cfg->d_v),
    };
}

static gather_simt gather(const cache_problem *p, const cache_simt *a, gathered what, const seqs *keys, arena *ws)
{
    const gather_simt g = take_gathered(p, what, keys, ws);
    if (arena_launches(ws))
        cuda_launched(ws, "gathering of cached rows", launch_cache_gather(a, &g, ws->stream));
    return g;
}

static void compress(const cache_problem *p, const seqs *raw, const nsa_phi *phi, const nsa_tensor *x,
                     const nsa_tensor *y, int32_t d, arena *ws)
{
    const compress_problem c = {
        .ctx = p->ctx,
        .cfg = p->cfg,
        .seqs = *raw,
        .d = d,
        .phi = *phi,
        .x = rows_from_tensor(x, d, raw->cu_k, 1),
        .y = *y,
    };
    const size_t mark = ws->used;
    compress_choose(&c)->forward(&c, ws);
    arena_release(ws, mark);
}

/* The blocks that the new tokens complete, into pages. */
static void compress_new(const cache_problem *p, const cache_simt *a, const int32_t *cu, arena *ws)
{
    const size_t mark = ws->used;
    const seqs raw = gathered_seqs(p, cu, max_raw(p));
    const gather_simt x = gather(p, a, GATHER_RAW, &raw, ws);
    gather_simt y = take_gathered(p, GATHER_CMP, &raw, ws);
    compress(p, &raw, p->args->phi_k, &x.k, &y.k, p->cfg->d_qk, ws);
    compress(p, &raw, p->args->phi_v, &x.v, &y.v, p->cfg->d_v, ws);
    if (arena_launches(ws))
        cuda_launched(ws, "storing of compressed rows", launch_cache_scatter(a, &y, ws->stream));
    arena_release(ws, mark);
}

static void attend(const cache_problem *p, const cache_simt *a, const cache_cu *cu, arena *ws)
{
    const nsa_cache_args *args = p->args;
    const nsa_config *cfg = p->cfg;
    const size_t mark = ws->used;
    const seqs all = gathered_seqs(p, cu->all, cache_room(p->cache, args));
    const seqs win = a->shared_kv ? all : gathered_seqs(p, cu->win, max_win(p));
    const gather_simt slc = gather(p, a, GATHER_SLC, &all, ws);
    const gather_simt keys[NSA_N_BRANCHES] = {
        gather(p, a, GATHER_CMP, &all, ws),
        slc,
        a->shared_kv ? slc : gather(p, a, GATHER_WIN, &win, ws),
    };
    pipeline pipe = {
        .ctx = p->ctx,
        .cfg = cfg,
        .dtype = p->cache->dtype,
        .gate = args->gate,
        .slc_idx = args->slc_idx,
        .o = args->o,
    };
    for (int b = 0; b < NSA_N_BRANCHES; b++) {
        const int32_t div = b == NSA_CMP ? cfg->cmp_stride : 1;
        pipe.seqs[b] = b == NSA_WIN ? win : all;
        pipe.q[b] = args->q[b];
        pipe.k[b] = rows_from_tensor(&keys[b].k, cfg->d_qk, pipe.seqs[b].cu_k, div);
        pipe.v[b] = rows_from_tensor(&keys[b].v, cfg->d_v, pipe.seqs[b].cu_k, div);
    }
    pipeline_run(&pipe, ws);
    arena_release(ws, mark);
}

static cache_cu take_cu(const cache_simt *a, arena *ws)
{
    const int64_t n = (int64_t)a->n_seqs + 1;
    const cache_cu cu = {arena_take(ws, n, sizeof(int32_t)), arena_take(ws, n, sizeof(int32_t)),
                         arena_take(ws, n, sizeof(int32_t))};
    if (arena_launches(ws))
        cuda_launched(ws, "lengths of the cached rows", launch_cache_cu(a, &cu, ws->stream));
    return cu;
}

void cache_compress_new(const cache_problem *p, const cache_simt *a, arena *ws)
{
    const size_t mark = ws->used;
    compress_new(p, a, take_cu(a, ws).raw, ws);
    arena_release(ws, mark);
}

void cache_gathered(const void *problem, arena *ws)
{
    const cache_problem *p = problem;
    const cache_simt a = cache_simt_of(p);
    if (arena_launches(ws))
        cuda_launched(ws, "appending to pages", launch_cache_append(&a, ws->stream));
    const cache_cu cu = take_cu(&a, ws);
    compress_new(p, &a, cu.raw, ws);
    attend(p, &a, &cu, ws);
    if (arena_launches(ws))
        cuda_launched(ws, "appending to rings", launch_cache_finish(&a, ws->stream));
}
