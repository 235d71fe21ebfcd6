#include "core/arena.h"
#include "core/ctx.h"
#include "core/dtype.h"
#include "cuda/device.h"

void *arena_take(arena *a, int64_t count, size_t size)
{
    const size_t end = size_add(a->used, size_round_up(size_of(count, size), ARENA_ALIGN));
    if (end == SIZE_MAX) {
        a->used = a->peak = SIZE_MAX;
        return NULL;
    }
    void *p = a->base == NULL ? NULL : a->base + a->used;
    a->used = end;
    if (end > a->peak)
        a->peak = end;
    return p;
}

nsa_tensor tensor_or_scratch(const nsa_tensor *t, arena *ws, int64_t n_rows, nsa_dtype dtype, int32_t n_heads,
                             int32_t d)
{
    if (t->data != NULL)
        return *t;
    void *data = arena_take(ws, i64_mul(n_rows, n_heads), (size_t)d * dtype_size(dtype));
    return nsa_packed(data, dtype, n_heads, d);
}

nsa_status op_workspace(op_fn *op, const void *problem, size_t *bytes)
{
    NSA_REQUIRE(bytes != NULL, "bytes is NULL");
    arena count = {.base = NULL};
    op(problem, &count);
    /* Any address may be given: room to align it. */
    *bytes = size_add(count.peak, count.peak == 0 ? 0 : ARENA_ALIGN - 1);
    NSA_REQUIRE(*bytes < SIZE_MAX, "the problem is too large: its workspace passes SIZE_MAX bytes");
    return NSA_OK;
}

nsa_status op_run(const nsa_ctx *ctx, op_fn *op, const void *problem, void *workspace, size_t workspace_bytes,
                  nsa_stream stream)
{
    size_t bytes = 0;
    NSA_TRY(op_workspace(op, problem, &bytes));
    if (bytes > workspace_bytes)
        return nsa_fail(NSA_ERR_WORKSPACE, "workspace_bytes is %zu, needed are %zu", workspace_bytes, bytes);
    NSA_REQUIRE(bytes == 0 || workspace != NULL, "workspace is NULL, needed are %zu bytes", bytes);
    /* An operation that needs no workspace still has to run, so its arena must not look like one that counts. */
    static char nothing[1];
    char *base =
        bytes == 0 ? nothing : (char *)(((uintptr_t)workspace + ARENA_ALIGN - 1) & ~(uintptr_t)(ARENA_ALIGN - 1));
    arena a = {.base = base, .stream = stream};
    if (!ctx->cuda) {
        op(problem, &a);
        return a.status;
    }
    int caller_device = 0;
    NSA_TRY(cuda_enter(ctx->device_index, &caller_device));
    op(problem, &a);
    cuda_leave(ctx->device_index, caller_device);
    return a.status;
}
