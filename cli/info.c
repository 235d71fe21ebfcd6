/* nsa info: what this build is and what it would run on this machine. */
#include "cli/args.h"
#include "cli/cli.h"

#include <nsa.h>

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void print_cpu_features(void)
{
    printf("features ");
#if defined(__x86_64__)
    __builtin_cpu_init();
#define PRINT_FEATURE(name) printf("%s", __builtin_cpu_supports(name) ? " " name : "")
    PRINT_FEATURE("sse4.2");
    PRINT_FEATURE("avx");
    PRINT_FEATURE("avx2");
    PRINT_FEATURE("fma");
    PRINT_FEATURE("avx512f");
    PRINT_FEATURE("avx512bw");
    PRINT_FEATURE("avx512vl");
    PRINT_FEATURE("avx512vnni");
    PRINT_FEATURE("avx512bf16");
#undef PRINT_FEATURE
#elif defined(__aarch64__)
    printf(" neon");
#endif
    const char *disabled = getenv("NSA_DISABLE_CPU");
    if (disabled != NULL && *disabled != '\0')
        printf(" (NSA_DISABLE_CPU=%s)", disabled);
    putchar('\n');
}

/* The CPU, and of a build with CUDA the GPU, or what is missing for it. */
static void print_devices(void)
{
    printf("devices   cpu");
#if defined(NSA_CUDA)
    const nsa_ctx_options options = {.struct_size = sizeof options, .device = NSA_DEVICE_CUDA};
    nsa_ctx *ctx = NULL;
    if (nsa_ctx_create(&ctx, &options) == NSA_OK)
        printf(", cuda (%s)", nsa_ctx_isa(ctx));
    else
        printf("; no cuda: %s", nsa_last_error());
    nsa_ctx_destroy(ctx);
#endif
    putchar('\n');
}

static void print_kernels(const char *isa)
{
    static const char *const ops[] = {"compress", "cmp_attn", "select", "slc_attn", "win_attn", "gate"};
    for (size_t i = 0; i < sizeof ops / sizeof ops[0]; i++)
        printf("%s%-9s %s (f32, bf16, f16), ref (f64)\n", i == 0 ? "kernels   " : "          ", ops[i], isa);
}

int cmd_info(int argc, char **argv)
{
    int32_t threads;
    const arg args[] = {
        arg_i32("threads", &threads, 0, 1024, "0", "threads of a call, 0 = all cores"),
    };
    const arg_table table = {"info", "Shows the version, the devices, the CPU's features and the kernels chosen.", args,
                             ARGS_COUNT(args)};
    int exit_code;
    if (!args_parse(&table, argc, argv, &exit_code))
        return exit_code;

    const nsa_ctx_options options = {.struct_size = sizeof options, .device = NSA_DEVICE_CPU, .n_threads = threads};
    nsa_ctx *ctx = NULL;
    if (nsa_ctx_create(&ctx, &options) != NSA_OK)
        return cli_fail("%s", nsa_last_error());
    printf("version   %s", nsa_version());
    printf(*cli_commit() != '\0' ? ", commit %s\n" : "%s\n", cli_commit());
    print_devices();
    char model[128];
    cli_cpu_model(model, sizeof model);
    printf("cpu       %s\n", model);
    print_cpu_features();
    printf("threads   %d of %ld cores\n", nsa_ctx_threads(ctx), sysconf(_SC_NPROCESSORS_ONLN));
    print_kernels(nsa_ctx_isa(ctx));
    nsa_ctx_destroy(ctx);
    return CLI_OK;
}
