/*
 * nsa_prefill and nsa_decode: append the new tokens to the pages, compress the blocks that they complete, run the
 * branches over pages and rings, then let the rings take up the new tokens. On the CPU the two are one, and here; for
 * CUDA see cache_simt.c.
 */
#include "core/arena.h"
#include "core/check.h"
#include "nsa/decode.h"
#include "nsa/forward.h"
#include "nsa/pipeline.h"
#include "ops/compress/compress.h"

static cache_header *header_of(const cache_problem *p, int32_t s)
{
    return p->args->states[s];
}

/* NULL if there is no table: sequences without tokens need none. */
static const int32_t *table_of(const cache_problem *p, int32_t s)
{
    const nsa_cache_args *args = p->args;
    return args->page_table == NULL ? NULL : args->page_table + (int64_t)s * args->pages_per_seq;
}

static int64_t n_new(const cache_problem *p, int32_t s)
{
    return p->args->cu_seqlens[s + 1] - p->args->cu_seqlens[s];
}

static int64_t new_length(const void *problem, int32_t s)
{
    const cache_problem *p = problem;
    return header_of(p, s)->length + n_new(p, s);
}

/* ---- Checks ---- */

/* The pages that the sequence's new length needs exist, and those that will be written are named once. */
static nsa_status check_pages(const cache_problem *p, int32_t s)
{
    const nsa_cache_args *args = p->args;
    const int64_t page_size = p->cache->page_size;
    const int64_t length = new_length(p, s);
    const int64_t n_pages = (length + page_size - 1) / page_size;
    NSA_REQUIRE(length <= INT32_MAX, "sequence %d would hold %lld tokens, at most 2^31-1 are possible", s,
                (long long)length);
    NSA_REQUIRE(n_pages <= args->pages_per_seq,
                "args.pages_per_seq is %d, but sequence %d needs %lld pages for its %lld tokens", args->pages_per_seq,
                s, (long long)n_pages, (long long)length);
    if (n_pages == 0)
        return NSA_OK;
    NSA_REQUIRE(args->page_table != NULL, "args.page_table is NULL");
    const int32_t *table = table_of(p, s);
    for (int64_t i = 0; i < n_pages; i++)
        NSA_REQUIRE(table[i] >= 0 && table[i] < p->cache->n_pages,
                    "args.page_table[%d][%lld] is %d, must be 0 .. cache.n_pages - 1 = %lld", s, (long long)i, table[i],
                    (long long)p->cache->n_pages - 1);
    if (n_new(p, s) > 0)
        for (int64_t i = header_of(p, s)->length / page_size; i < n_pages; i++)
            for (int64_t j = 0; j < i; j++)
                NSA_REQUIRE(table[i] != table[j], "args.page_table[%d] names page %d twice, at %lld and %lld", s,
                            table[i], (long long)j, (long long)i);
    return NSA_OK;
}

/* Pages that one sequence writes are no other's to write. */
static nsa_status check_written_apart(const cache_problem *p, int32_t r, int32_t s)
{
    const int64_t page_size = p->cache->page_size;
    const int32_t *table_r = table_of(p, r), *table_s = table_of(p, s);
    if (n_new(p, r) == 0 || n_new(p, s) == 0)
        return NSA_OK;
    for (int64_t i = header_of(p, r)->length / page_size; i * page_size < new_length(p, r); i++)
        for (int64_t j = header_of(p, s)->length / page_size; j * page_size < new_length(p, s); j++)
            NSA_REQUIRE(table_r[i] != table_s[j], "args.page_table: sequences %d and %d would both write page %d", r, s,
                        table_s[j]);
    return NSA_OK;
}

static nsa_status check_sequences(const cache_problem *p)
{
    const nsa_cache_args *args = p->args;
    NSA_REQUIRE(args->n_seqs == 0 || args->states != NULL, "args.states is NULL");
    for (int32_t s = 0; s < args->n_seqs; s++) {
        NSA_TRY(check_state_of(field("args.", "states", s).text, args->states[s], &p->layout));
        for (int32_t r = 0; r < s; r++)
            NSA_REQUIRE(args->states[r] != args->states[s], "args.states[%d] and args.states[%d] are the same", r, s);
        NSA_TRY(check_pages(p, s));
        for (int32_t r = 0; r < s; r++)
            NSA_TRY(check_written_apart(p, r, s));
    }
    return NSA_OK;
}

/* What can be said without reading device memory. */
static nsa_status check_on_device(const cache_problem *p)
{
    const nsa_cache_args *args = p->args;
    NSA_TRY(check_cu("args.cu_seqlens", "args.total", args->cu_seqlens, args->n_seqs, args->total));
    NSA_REQUIRE(args->n_seqs == 0 || args->states != NULL, "args.states is NULL");
    if (args->total == 0)
        return NSA_OK;
    NSA_REQUIRE(p->cache->n_pages > 0, "cache.n_pages is 0");
    NSA_REQUIRE(args->pages_per_seq > 0, "args.pages_per_seq is 0");
    NSA_REQUIRE(args->page_table != NULL, "args.page_table is NULL");
    return NSA_OK;
}

static nsa_status check_tensors(const cache_problem *p)
{
    const nsa_cache_args *args = p->args;
    const nsa_config *cfg = p->cfg;
    const int dtype = (int)p->cache->dtype;
    int64_t max_new = cache_max_new(args);
    if (!p->ctx->cuda) {
        max_new = 0;
        for (int32_t s = 0; s < args->n_seqs; s++)
            max_new = max_i64(max_new, n_new(p, s));
        NSA_REQUIRE(max_new <= cache_max_new(args), "args.max_seqlen is %d, but a sequence has %lld new tokens",
                    args->max_seqlen, (long long)max_new);
    }
    const extent q = {args->n_seqs, args->total, max_new, cfg->n_heads_q, cfg->d_qk};
    const extent k = {args->n_seqs, args->total, max_new, cfg->n_heads_kv, cfg->d_qk};
    const extent v = {args->n_seqs, args->total, max_new, cfg->n_heads_kv, cfg->d_v};
    const extent o = {args->n_seqs, args->total, max_new, cfg->n_heads_q, cfg->d_v};
    const extent gate = {args->n_seqs, args->total, max_new, cfg->n_heads_q, NSA_N_BRANCHES};
    const extent slc_idx = {args->n_seqs, args->total, max_new, cfg->n_heads_kv, cfg->slc_topk};
    for (int b = 0; b < NSA_N_BRANCHES; b++) {
        NSA_TRY(check_input(field("args.", "q", b).text, &args->q[b], q, dtype));
        if (b > 0 && p->cache->shared_kv != 0)
            continue;
        NSA_TRY(check_input(field("args.", "k", b).text, &args->k[b], k, dtype));
        NSA_TRY(check_input(field("args.", "v", b).text, &args->v[b], v, dtype));
    }
    NSA_TRY(check_gate("args.gate", &args->gate, gate, p->cache->dtype, false));
    NSA_TRY(check_phi("args.phi_k", args->phi_k, p->cache->dtype));
    NSA_TRY(check_phi("args.phi_v", args->phi_v, p->cache->dtype));
    NSA_TRY(check_output("args.o", &args->o, o, dtype));
    if (args->slc_idx.data != NULL)
        NSA_TRY(check_output("args.slc_idx", &args->slc_idx, slc_idx, NSA_I32));
    const named_output outputs[] = {{"args.o", args->o.data}, {"args.slc_idx", args->slc_idx.data}};
    return check_distinct(outputs, sizeof outputs / sizeof *outputs);
}

static nsa_status make_problem(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_cache *cache,
                               const nsa_cache_args *args, cache_problem *p)
{
    NSA_TRY(check_cache(ctx, cfg, cache));
    NSA_REQUIRE(args != NULL, "args is NULL");
    *p = (cache_problem){ctx, cfg, cache, args, cache_layout_of(cfg, cache)};
    NSA_REQUIRE(cache->n_pages == 0 || cache->pages != NULL, "cache.pages is NULL");
    NSA_REQUIRE((uintptr_t)cache->pages % ARENA_ALIGN == 0, "cache.pages is not aligned to %d bytes", ARENA_ALIGN);
    NSA_REQUIRE(args->n_seqs >= 0, "args.n_seqs is %d, must be >= 0", args->n_seqs);
    NSA_REQUIRE(args->pages_per_seq >= 0, "args.pages_per_seq is %d, must be >= 0", args->pages_per_seq);
    NSA_REQUIRE(args->max_seqlen >= 0, "args.max_seqlen is %d, must be >= 0", args->max_seqlen);
    if (ctx->cuda) {
        NSA_TRY(check_on_device(p));
    } else {
        NSA_TRY(check_cu_seqlens("args.cu_seqlens", "args.total", args->cu_seqlens, args->n_seqs, args->total));
        NSA_TRY(check_sequences(p));
    }
    return check_tensors(p);
}

/* ---- Where rows lie ---- */

static void locate(const void *problem, int part, int32_t s, int32_t head, rows *out)
{
    const cache_problem *p = problem;
    const cache_layout *l = &p->layout;
    if (part < CACHE_N_PAGE_PARTS) {
        out->split = INT64_MAX;
        out->pages = p->cache->pages;
        out->table = table_of(p, s);
        out->page_bytes = l->page_bytes;
        out->page_rows = l->rows[part];
        if (part == CACHE_K_CMP || part == CACHE_V_CMP) /* with the last stride of tokens of their blocks */
            out->page_skip = p->cfg->cmp_block / p->cfg->cmp_stride - 1;
        out->offset = head * l->page_head_bytes + l->offset[part];
    } else {
        out->split = header_of(p, s)->length;
        out->ring = (const char *)p->args->states[s] + head * l->state_head_bytes + l->offset[part];
        out->ring_rows = l->rows[part];
    }
}

static row_source source(const cache_problem *p, cache_part part)
{
    const nsa_cache_args *args = p->args;
    if (p->cache->shared_kv != 0 && part >= CACHE_N_PAGE_PARTS)
        part = part % 2 == 0 ? CACHE_SLC_K : CACHE_SLC_V;
    row_source src = {
        .dtype = p->cache->dtype,
        .d = part % 2 == 0 ? p->cfg->d_qk : p->cfg->d_v,
        .start_div = 1,
        .cu = args->cu_seqlens,
        .locate = locate,
        .cache = p,
        .part = (int)part,
    };
    switch (part) { /* a ring goes on in the new tokens */
    case CACHE_RAW_K: src.tensor = args->k[NSA_CMP]; break;
    case CACHE_RAW_V: src.tensor = args->v[NSA_CMP]; break;
    case CACHE_WIN_K: src.tensor = args->k[NSA_WIN]; break;
    case CACHE_WIN_V: src.tensor = args->v[NSA_WIN]; break;
    default: break;
    }
    return src;
}

/* ---- The steps ---- */

/* Copies rows first .. end-1 of sequence s and a head to where `part` keeps them: from x, whose row 0 is row x_first.
 */
static void store_rows(const cache_problem *p, cache_part part, int32_t s, int32_t head, int64_t first, int64_t end,
                       const nsa_tensor *x, int64_t x_start, int64_t x_first)
{
    rows to = {.row_bytes = (part % 2 == 0 ? p->cfg->d_qk : p->cfg->d_v) * (int64_t)dtype_size(p->cache->dtype)};
    locate(p, (int)part, s, head, &to);
    to.split = INT64_MAX; /* rings, too, hold what is stored */
    for (int64_t r = first; r < end; r++)
        memcpy((void *)(uintptr_t)rows_at(&to, r), tensor_at(x, s, x_start, r - x_first, head), (size_t)to.row_bytes);
}

enum { TILE = 64 };

/* That copy the new tokens: one wakes no other for less than a tile. */
static int copying_threads(const cache_problem *p)
{
    return (int)min_i64(p->ctx->n_threads, max_i64(1, n_tiles(p->args->total, p->args->n_seqs, TILE)));
}

static void append_to_pages(const cache_problem *p)
{
    const nsa_cache_args *args = p->args;
    const int b = p->cache->shared_kv != 0 ? 0 : NSA_SLC;
    const int32_t *cu = args->cu_seqlens;
#pragma omp parallel for num_threads(copying_threads(p)) schedule(static)
    for (int64_t i = 0; i < n_tiles(args->total, args->n_seqs, TILE); i++) {
        int32_t s;
        int64_t first;
        if (!tile_at(cu, args->n_seqs, TILE, i, &s, &first))
            continue;
        const int64_t old = header_of(p, s)->length;
        const int64_t end = old + min_i64(first + TILE, n_new(p, s));
        for (int32_t h = 0; h < p->cfg->n_heads_kv; h++) {
            store_rows(p, CACHE_SLC_K, s, h, old + first, end, &args->k[b], cu[s], old);
            store_rows(p, CACHE_SLC_V, s, h, old + first, end, &args->v[b], cu[s], old);
        }
    }
}

typedef struct one_seq {
    const cache_problem *p;
    int32_t s;
} one_seq;

static int64_t one_length(const void *one, int32_t s)
{
    const one_seq *o = one;
    (void)s;
    return new_length(o->p, o->s);
}

static void locate_one(const void *one, int part, int32_t s, int32_t head, rows *out)
{
    const one_seq *o = one;
    (void)s;
    locate(o->p, part, o->s, head, out);
}

/* The blocks of sequence s that the new tokens complete, of K or of V, into its pages. */
static void compress_new(const cache_problem *p, int32_t s, bool value, arena *ws)
{
    const nsa_config *cfg = p->cfg;
    const int64_t old = header_of(p, s)->length;
    const int64_t first = nsa_n_cmp(cfg, old), n = nsa_n_cmp(cfg, old + n_new(p, s)) - first;
    if (n == 0)
        return;
    const size_t mark = ws->used;
    const int32_t d = value ? cfg->d_v : cfg->d_qk;
    const nsa_tensor none = {.data = NULL};
    const nsa_tensor y = tensor_or_scratch(&none, ws, n, p->cache->dtype, cfg->n_heads_kv, d);

    const one_seq one = {p, s};
    const int32_t first_block = (int32_t)first, y_row = 0;
    const int32_t cu[2] = {p->args->cu_seqlens[s], p->args->cu_seqlens[s + 1]};
    compress_problem c = {
        .ctx = p->ctx,
        .cfg = cfg,
        .seqs = {.n = 1, .len_k = one_length, .cache = &one},
        .d = d,
        .phi = value ? *p->args->phi_v : *p->args->phi_k,
        .x = source(p, value ? CACHE_RAW_V : CACHE_RAW_K),
        .y = y,
        .first = &first_block,
        .y_row = &y_row,
    };
    c.x.locate = locate_one;
    c.x.cache = &one;
    c.x.cu = cu;
    if (c.x.tensor.data != NULL)
        c.x.tensor.data = tensor_at(&c.x.tensor, s, 0, 0, 0); /* of sequence 0, to compress */
    compress_choose(&c)->forward(&c, ws);
    if (!arena_counts(ws))
        for (int32_t h = 0; h < cfg->n_heads_kv; h++)
            store_rows(p, value ? CACHE_V_CMP : CACHE_K_CMP, s, h, first, first + n, &y, 0, first);
    arena_release(ws, mark);
}

/* The rings take up the new tokens; only now, since the branches read what these overwrite. */
static void append_to_rings(const cache_problem *p)
{
    const nsa_cache_args *args = p->args;
    const int32_t *cu = args->cu_seqlens;
    const nsa_tensor *from[] = {&args->k[NSA_CMP], &args->v[NSA_CMP], &args->k[NSA_WIN], &args->v[NSA_WIN]};
#pragma omp parallel for collapse(2) num_threads(copying_threads(p)) schedule(static)
    for (int32_t s = 0; s < args->n_seqs; s++)
        for (int32_t h = 0; h < p->cfg->n_heads_kv; h++) {
            const int64_t old = header_of(p, s)->length, length = new_length(p, s);
            for (int part = CACHE_RAW_K; part < CACHE_N_PARTS; part++)
                store_rows(p, (cache_part)part, s, h, max_i64(old, length - p->layout.rows[part]), length,
                           from[part - CACHE_RAW_K], cu[s], old);
        }
}

static void cache_op(const void *problem, arena *ws)
{
    const cache_problem *p = problem;
    const nsa_cache_args *args = p->args;

    if (!arena_counts(ws))
        append_to_pages(p);
    for (int32_t s = 0; s < args->n_seqs; s++) {
        compress_new(p, s, false, ws);
        compress_new(p, s, true, ws);
    }
    static const cache_part parts[NSA_N_BRANCHES] = {CACHE_K_CMP, CACHE_SLC_K, CACHE_WIN_K};
    pipeline pipe = {
        .ctx = p->ctx,
        .cfg = p->cfg,
        .dtype = p->cache->dtype,
        .gate = args->gate,
        .slc_idx = args->slc_idx,
        .o = args->o,
    };
    const seqs all = {
        .n = args->n_seqs, .total_q = args->total, .cu_q = args->cu_seqlens, .len_k = new_length, .cache = p};
    for (int b = 0; b < NSA_N_BRANCHES; b++) {
        pipe.seqs[b] = all;
        pipe.q[b] = args->q[b];
        pipe.k[b] = source(p, parts[b]);
        pipe.v[b] = source(p, (cache_part)(parts[b] + 1));
    }
    pipeline_run(&pipe, ws);
    if (arena_counts(ws))
        return;
    if (p->cache->shared_kv == 0)
        append_to_rings(p);
    for (int32_t s = 0; s < args->n_seqs; s++) {
        cache_header *h = header_of(p, s);
        h->length = new_length(p, s);
        h->longest = max_i64(h->longest, h->length);
    }
}

/* ---- The implementations: fastest first */

static bool on_cpu(const cache_problem *p)
{
    return !p->ctx->cuda;
}

static const cache_impl prefill_impls[] = {
    {"cpu", on_cpu, cache_op},
#ifdef NSA_CUDA
    {"gathered", cache_gathered_supports, cache_gathered},
#endif
    {NULL, NULL, NULL},
};

static const cache_impl decode_impls[] = {
    {"cpu", on_cpu, cache_op},
#ifdef NSA_CUDA
    {"sm90", decode_sm90_supports, decode_sm90_run},
    {"gathered", cache_gathered_supports, cache_gathered},
#endif
    {NULL, NULL, NULL},
};

static nsa_status choose(const cache_impl *impls, const cache_problem *p, op_fn **op)
{
    while (impls->name != NULL && !impls->supports(p))
        impls++;
    if (impls->name == NULL)
        return nsa_fail(NSA_ERR_UNSUPPORTED,
                        "args.n_seqs is %d, with room for %lld tokens each: with CUDA a call has room for 2^31-1",
                        p->args->n_seqs, (long long)cache_room(p->cache, p->args));
    *op = impls->run;
    return NSA_OK;
}

static nsa_status cache_workspace(const cache_impl *impls, const nsa_ctx *ctx, const nsa_config *cfg,
                                  const nsa_cache *cache, const nsa_cache_args *args, size_t *bytes)
{
    cache_problem p;
    op_fn *op = NULL;
    NSA_TRY(make_problem(ctx, cfg, cache, args, &p));
    NSA_TRY(choose(impls, &p, &op));
    return op_workspace(op, &p, bytes);
}

static nsa_status cache_run(const cache_impl *impls, const nsa_ctx *ctx, const nsa_config *cfg, const nsa_cache *cache,
                            const nsa_cache_args *args, void *workspace, size_t workspace_bytes, nsa_stream stream)
{
    cache_problem p;
    op_fn *op = NULL;
    NSA_TRY(make_problem(ctx, cfg, cache, args, &p));
    NSA_TRY(choose(impls, &p, &op));
    return op_run(ctx, op, &p, workspace, workspace_bytes, stream);
}

nsa_status nsa_prefill_workspace(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_cache *cache,
                                 const nsa_cache_args *args, size_t *bytes)
{
    return cache_workspace(prefill_impls, ctx, cfg, cache, args, bytes);
}

nsa_status nsa_prefill(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_cache *cache, const nsa_cache_args *args,
                       void *workspace, size_t workspace_bytes, nsa_stream stream)
{
    return cache_run(prefill_impls, ctx, cfg, cache, args, workspace, workspace_bytes, stream);
}

nsa_status nsa_decode_workspace(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_cache *cache,
                                const nsa_cache_args *args, size_t *bytes)
{
    return cache_workspace(decode_impls, ctx, cfg, cache, args, bytes);
}

nsa_status nsa_decode(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_cache *cache, const nsa_cache_args *args,
                      void *workspace, size_t workspace_bytes, nsa_stream stream)
{
    return cache_run(decode_impls, ctx, cfg, cache, args, workspace, workspace_bytes, stream);
}
