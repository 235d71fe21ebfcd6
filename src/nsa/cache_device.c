#include "nsa/cache_device.h"

#ifdef NSA_CUDA

#include "core/arena.h"
#include "cuda/device.h"
#include "nsa/cache_simt.h"

typedef struct state_call {
    void *state;
    const void *to_read;
    int64_t bytes, n_tokens, *length;
    int32_t max_draft;
} state_call;

static void reset(const void *problem, arena *ws)
{
    const state_call *c = problem;
    if (arena_launches(ws))
        cuda_launched(ws, "reset of a state", launch_cache_reset(c->state, c->bytes, ws->stream));
}

static void length(const void *problem, arena *ws)
{
    const state_call *c = problem;
    if (arena_launches(ws))
        cuda_launched(ws, "length of a sequence", launch_cache_length(c->to_read, c->length, ws->stream));
}

static void drop(const void *problem, arena *ws)
{
    const state_call *c = problem;
    if (arena_launches(ws))
        cuda_launched(ws, "drop", launch_cache_drop(c->state, c->bytes, c->max_draft, c->n_tokens, ws->stream));
}

nsa_status cache_device_reset(const nsa_ctx *ctx, void *state, int64_t bytes, nsa_stream stream)
{
    const state_call c = {.state = state, .bytes = bytes};
    return op_run(ctx, reset, &c, NULL, 0, stream);
}

nsa_status cache_device_length(const nsa_ctx *ctx, const void *state, int64_t *n_tokens, nsa_stream stream)
{
    const state_call c = {.to_read = state, .length = n_tokens};
    return op_run(ctx, length, &c, NULL, 0, stream);
}

nsa_status cache_device_drop(const nsa_ctx *ctx, void *state, int64_t bytes, int32_t max_draft, int64_t n_tokens,
                             nsa_stream stream)
{
    const state_call c = {.state = state, .bytes = bytes, .n_tokens = n_tokens, .max_draft = max_draft};
    return op_run(ctx, drop, &c, NULL, 0, stream);
}

#else

static nsa_status no_cuda(const nsa_ctx *ctx)
{
    return nsa_fail(NSA_ERR_DEVICE, "CUDA device %d in a build for the CPU only", ctx->device_index);
}

nsa_status cache_device_reset(const nsa_ctx *ctx, void *state, int64_t bytes, nsa_stream stream)
{
    (void)state, (void)bytes, (void)stream;
    return no_cuda(ctx);
}

nsa_status cache_device_length(const nsa_ctx *ctx, const void *state, int64_t *n_tokens, nsa_stream stream)
{
    (void)state, (void)n_tokens, (void)stream;
    return no_cuda(ctx);
}

nsa_status cache_device_drop(const nsa_ctx *ctx, void *state, int64_t bytes, int32_t max_draft, int64_t n_tokens,
                             nsa_stream stream)
{
    (void)state, (void)bytes, (void)max_draft, (void)n_tokens, (void)stream;
    return no_cuda(ctx);
}

#endif
