#include "core/ctx.h"
#include "core/cpu.h"

#include <omp.h>
#include <stdlib.h>

enum { MAX_THREADS = 1024 };

nsa_status nsa_ctx_create(nsa_ctx **out, const nsa_ctx_options *options)
{
    NSA_REQUIRE(out != NULL, "ctx is NULL");
    *out = NULL;
    nsa_ctx_options o = {sizeof o, NSA_DEVICE_CPU, 0, 0};
    if (options != NULL) {
        NSA_REQUIRE(options->struct_size == sizeof o,
                    "options.struct_size is %u, must be sizeof(nsa_ctx_options) = %zu", options->struct_size, sizeof o);
        o = *options;
    }
    if (o.device != NSA_DEVICE_CPU)
        return nsa_fail(NSA_ERR_NO_DEVICE, "options.device is %d; this build has the CPU (0) only", (int)o.device);
    NSA_REQUIRE(o.n_threads >= 0 && o.n_threads <= MAX_THREADS, "options.n_threads is %d, must be 0 (all) .. %d",
                o.n_threads, MAX_THREADS);
    uint32_t features = 0;
    NSA_TRY(cpu_features(&features));
    nsa_ctx *ctx = malloc(sizeof *ctx);
    if (ctx == NULL)
        return nsa_fail(NSA_ERR_OUT_OF_MEMORY, "out of memory for a context");
    const int all = omp_get_max_threads();
    ctx->n_threads = o.n_threads > 0 ? o.n_threads : all < MAX_THREADS ? all : MAX_THREADS;
    ctx->reference = o.reference != 0;
    ctx->simd = simd_choose(features);
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

const char *nsa_ctx_isa(const nsa_ctx *ctx)
{
    return ctx == NULL ? "" : ctx->reference ? "ref" : ctx->simd->name;
}

nsa_status check_ctx(const nsa_ctx *ctx)
{
    NSA_REQUIRE(ctx != NULL, "ctx is NULL");
    return NSA_OK;
}
