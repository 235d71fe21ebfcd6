#include "nsa/kv_cache.h"
#include "core/arena.h"
#include "core/ctx.h"
#include "cuda/device.h"
#include "nsa/cache_device.h"

static int64_t align_up(int64_t bytes)
{
    const int64_t up = i64_add(bytes, ARENA_ALIGN - 1);
    return up == INT64_MAX ? INT64_MAX : up / ARENA_ALIGN * ARENA_ALIGN;
}

cache_layout cache_layout_of(const nsa_config *cfg, const nsa_cache *cache)
{
    const int64_t size = (int64_t)dtype_size(cache->dtype);
    const bool rings = cache->shared_kv == 0;
    const int64_t raw = rings ? (int64_t)cfg->cmp_block - 1 + cache->max_draft : 0;
    const int64_t win = rings ? (int64_t)cfg->win_size - 1 + cache->max_draft : 0;
    const int64_t page = cache->page_size, cmp = page / cfg->cmp_stride;

    cache_layout l = {.rows = {page, page, cmp, cmp, raw, raw, win, win}};
    int64_t at = 0;
    for (int part = 0; part < CACHE_N_PARTS; part++) {
        if (part == CACHE_N_PAGE_PARTS) {
            l.page_head_bytes = at;
            at = 0;
        }
        const int32_t d = part % 2 == 0 ? cfg->d_qk : cfg->d_v;
        l.offset[part] = at;
        at = i64_add(at, align_up(i64_mul(i64_mul(l.rows[part], d), size)));
    }
    l.state_head_bytes = at;
    l.page_bytes = i64_mul(cfg->n_heads_kv, l.page_head_bytes);
    l.state_bytes = i64_add(align_up(sizeof(cache_header)), i64_mul(cfg->n_heads_kv, l.state_head_bytes));
    for (int part = CACHE_N_PAGE_PARTS; part < CACHE_N_PARTS; part++)
        l.offset[part] += align_up(sizeof(cache_header));
    return l;
}

nsa_status check_cache(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_cache *cache)
{
    NSA_TRY(check_ctx(ctx));
    NSA_TRY(check_config(cfg));
    NSA_REQUIRE(cache != NULL, "cache is NULL");
    NSA_REQUIRE(cache->page_size >= 1 && cache->page_size % cfg->slc_block == 0 &&
                    cache->page_size % cfg->cmp_stride == 0,
                "cache.page_size is %d, must be a multiple of cfg.slc_block = %d and cfg.cmp_stride = %d",
                cache->page_size, cfg->slc_block, cfg->cmp_stride);
    NSA_REQUIRE(cache->max_draft >= 0, "cache.max_draft is %d, must be >= 0", cache->max_draft);
    NSA_REQUIRE(dtype_is_float(cache->dtype), "cache.dtype is %d (%s), must be f32, bf16, f16 or f64",
                (int)cache->dtype, dtype_name(cache->dtype));
    NSA_TRY(check_ctx_dtype(ctx, "cache", cache->dtype));
    NSA_REQUIRE(cache->n_pages >= 0 && cache->n_pages <= INT32_MAX, "cache.n_pages is %lld, must be 0 .. 2^31-1",
                (long long)cache->n_pages);
    const cache_layout layout = cache_layout_of(cfg, cache);
    NSA_REQUIRE(i64_mul(layout.page_bytes, cache->n_pages) < PTRDIFF_MAX,
                "cache.n_pages is %lld: that many pages pass the address space", (long long)cache->n_pages);
    NSA_REQUIRE(layout.state_bytes < PTRDIFF_MAX, "cache.max_draft is %d: a state passes the address space",
                cache->max_draft);
    return NSA_OK;
}

static nsa_status check_state_pointer(const char *name, const void *state)
{
    NSA_REQUIRE(state != NULL, "%s is NULL", name);
    NSA_REQUIRE((uintptr_t)state % ARENA_ALIGN == 0, "%s is not aligned to %d bytes", name, ARENA_ALIGN);
    return NSA_OK;
}

nsa_status check_state(const char *name, const void *state)
{
    NSA_TRY(check_state_pointer(name, state));
    const cache_header *h = state;
    NSA_REQUIRE(h->magic == CACHE_MAGIC, "%s is no state: call nsa_cache_reset first", name);
    NSA_REQUIRE(h->length >= 0 && h->length <= h->longest && h->longest <= INT32_MAX,
                "%s is damaged: it would hold %lld tokens, and %lld at most before", name, (long long)h->length,
                (long long)h->longest);
    return NSA_OK;
}

nsa_status check_state_of(const char *name, const void *state, const cache_layout *layout)
{
    NSA_TRY(check_state(name, state));
    NSA_REQUIRE(((const cache_header *)state)->bytes == layout->state_bytes,
                "%s was reset for another configuration: its size was %lld bytes, now it would be %lld", name,
                (long long)((const cache_header *)state)->bytes, (long long)layout->state_bytes);
    return NSA_OK;
}

nsa_status nsa_cache_page_bytes(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_cache *cache, size_t *bytes)
{
    NSA_TRY(check_cache(ctx, cfg, cache));
    NSA_REQUIRE(bytes != NULL, "bytes is NULL");
    *bytes = (size_t)cache_layout_of(cfg, cache).page_bytes;
    return NSA_OK;
}

nsa_status nsa_cache_state_bytes(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_cache *cache, size_t *bytes)
{
    NSA_TRY(check_cache(ctx, cfg, cache));
    NSA_REQUIRE(bytes != NULL, "bytes is NULL");
    *bytes = (size_t)cache_layout_of(cfg, cache).state_bytes;
    return NSA_OK;
}

nsa_status nsa_cache_reset(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_cache *cache, void *state,
                           nsa_stream stream)
{
    NSA_TRY(check_cache(ctx, cfg, cache));
    NSA_TRY(check_state_pointer("state", state));
    const int64_t bytes = cache_layout_of(cfg, cache).state_bytes;
    if (ctx->cuda)
        return cache_device_reset(ctx, state, bytes, stream);
    *(cache_header *)state = (cache_header){CACHE_MAGIC, bytes, 0, 0, 0};
    return NSA_OK;
}

nsa_status nsa_cache_length(const nsa_ctx *ctx, const void *state, int64_t *n_tokens, nsa_stream stream)
{
    NSA_TRY(check_ctx(ctx));
    NSA_TRY(ctx->cuda ? check_state_pointer("state", state) : check_state("state", state));
    NSA_REQUIRE(n_tokens != NULL, "n_tokens is NULL");
    if (ctx->cuda)
        return cache_device_length(ctx, state, n_tokens, stream);
    *n_tokens = ((const cache_header *)state)->length;
    return NSA_OK;
}

nsa_status nsa_cache_drop(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_cache *cache, void *state,
                          int64_t n_tokens, nsa_stream stream)
{
    NSA_TRY(check_cache(ctx, cfg, cache));
    const cache_layout layout = cache_layout_of(cfg, cache);
    if (ctx->cuda) {
        NSA_TRY(check_state_pointer("state", state));
        return cache_device_drop(ctx, state, layout.state_bytes, cache->max_draft, n_tokens, stream);
    }
    NSA_TRY(check_state_of("state", state, &layout));
    cache_header *h = state;
    const int64_t lowest = max_i64(0, h->longest - cache->max_draft);
    NSA_REQUIRE(
        n_tokens >= lowest && n_tokens <= h->length,
        "n_tokens is %lld, must be %lld (the longest length had, %lld, less cache.max_draft = %d) .. %lld (held)",
        (long long)n_tokens, (long long)lowest, (long long)h->longest, cache->max_draft, (long long)h->length);
    h->length = n_tokens;
    return NSA_OK;
}
