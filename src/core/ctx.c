#include "core/ctx.h"
#include "core/cpu.h"
#include "cuda/device.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_THREADS = 1024 };

static nsa_status open_cpu(const nsa_ctx_options *o, nsa_ctx *ctx)
{
    NSA_REQUIRE(o->n_threads >= 0 && o->n_threads <= MAX_THREADS, "options.n_threads is %d, must be 0 (all) .. %d",
                o->n_threads, MAX_THREADS);
    NSA_REQUIRE(o->device_index == 0, "options.device_index is %d, must be 0 for the CPU", o->device_index);
    uint32_t features = 0;
    NSA_TRY(cpu_features(&features));
    const int all = omp_get_max_threads();
    ctx->n_threads = o->n_threads > 0 ? o->n_threads : all < MAX_THREADS ? all : MAX_THREADS;
    ctx->reference = o->reference != 0;
    ctx->simd = simd_choose(features);
    return NSA_OK;
}

static nsa_status open_cuda(const nsa_ctx_options *o, nsa_ctx *ctx)
{
    NSA_REQUIRE(o->n_threads == 0, "options.n_threads is %d, must be 0 for CUDA", o->n_threads);
    NSA_REQUIRE(o->device_index >= 0, "options.device_index is %d, must be >= 0", o->device_index);
    if (o->reference != 0)
        return nsa_fail(NSA_ERR_UNSUPPORTED, "options.reference is set: the oracles run on the CPU only");
    ctx->cuda = true;
    ctx->n_threads = 1;
    ctx->device_index = o->device_index;
    return cuda_open(o->device_index, ctx->isa, sizeof ctx->isa);
}

nsa_status nsa_ctx_create(nsa_ctx **out, const nsa_ctx_options *options)
{
    NSA_REQUIRE(out != NULL, "ctx is NULL");
    *out = NULL;
    nsa_ctx_options o = {.struct_size = sizeof o, .device = NSA_DEVICE_CPU};
    if (options != NULL) {
        NSA_REQUIRE(options->struct_size == sizeof o,
                    "options.struct_size is %u, must be sizeof(nsa_ctx_options) = %zu", options->struct_size, sizeof o);
        o = *options;
    }
    nsa_ctx made = {0};
    switch (o.device) {
    case NSA_DEVICE_CPU: NSA_TRY(open_cpu(&o, &made)); break;
    case NSA_DEVICE_CUDA: NSA_TRY(open_cuda(&o, &made)); break;
    default:
        return nsa_fail(NSA_ERR_NO_DEVICE, "options.device is %d; there are the CPU (0) and CUDA (1)", (int)o.device);
    }
    nsa_ctx *ctx = malloc(sizeof *ctx);
    if (ctx == NULL)
        return nsa_fail(NSA_ERR_OUT_OF_MEMORY, "out of memory for a context");
    *ctx = made;
    *out = ctx;
    return NSA_OK;
}

void nsa_ctx_destroy(nsa_ctx *ctx)
{
    free(ctx);
}

int32_t nsa_ctx_threads(const nsa_ctx *ctx)
{
    return ctx == NULL ? 0 : ctx->n_threads;
}

bool ctx_is_sm90(const nsa_ctx *ctx)
{
    return ctx->cuda && strcmp(ctx->isa, "sm_90") == 0;
}

const char *nsa_ctx_isa(const nsa_ctx *ctx)
{
    return ctx == NULL ? "" : ctx->cuda ? ctx->isa : ctx->reference ? "ref" : ctx->simd->name;
}

nsa_status check_ctx(const nsa_ctx *ctx)
{
    NSA_REQUIRE(ctx != NULL, "ctx is NULL");
    return NSA_OK;
}

nsa_status check_ctx_dtype(const nsa_ctx *ctx, const char *name, nsa_dtype dtype)
{
    if (ctx->cuda && dtype == NSA_F64)
        return nsa_fail(NSA_ERR_UNSUPPORTED, "%s.dtype is f64, which only CPU contexts take", name);
    return NSA_OK;
}
