/* A call that appends to a cache: the problem of nsa_prefill and nsa_decode, and what solves it. */
#ifndef NSA_NSA_DECODE_H
#define NSA_NSA_DECODE_H

#include "core/arena.h"
#include "core/ctx.h"
#include "nsa/cache_simt.h"
#include "nsa/kv_cache.h"

typedef struct cache_problem {
    const nsa_ctx *ctx;
    const nsa_config *cfg;
    const nsa_cache *cache;
    const nsa_cache_args *args;
    cache_layout layout;
} cache_problem;

typedef struct cache_impl {
    const char *name;
    bool (*supports)(const cache_problem *p);
    op_fn *run; /* of a cache_problem */
} cache_impl;

/* On CUDA, any shape: cache_simt.c. */
bool cache_gathered_supports(const cache_problem *p);
op_fn cache_gathered;

/* Decoding on Hopper, in one launch where phi is mean: decode_sm90.c. */
bool decode_sm90_supports(const cache_problem *p);
op_fn decode_sm90_run;

/* What the two share: the call as kernels see it; and the blocks that the new tokens complete, into pages. */
cache_simt cache_simt_of(const cache_problem *p);
void cache_compress_new(const cache_problem *p, const cache_simt *a, arena *ws);

/* New tokens of a sequence, at most. */
static inline int64_t cache_max_new(const nsa_cache_args *args)
{
    return args->max_seqlen == 0 ? args->total : min_i64(args->max_seqlen, args->total);
}

/* Tokens that a row of the page table has room for. */
static inline int64_t cache_room(const nsa_cache *cache, const nsa_cache_args *args)
{
    return min_i64((int64_t)args->pages_per_seq * cache->page_size, INT32_MAX);
}

#endif
