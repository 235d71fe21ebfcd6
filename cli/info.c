/* nsa info: what this build is and what it would run on this machine. */
#include "cli/args.h"
#include "cli/cli.h"

#include <nsa.h>

#include <stdio.h>

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

    nsa_ctx_options options = {.struct_size = sizeof options, .device = NSA_DEVICE_CPU, .n_threads = threads};
    nsa_ctx *ctx = NULL;
    if (nsa_ctx_create(&ctx, &options) != NSA_OK)
        return cli_fail("%s", nsa_last_error());
    printf("version   %s\n", nsa_version());
    printf("device    cpu\n");
    printf("threads   %d\n", nsa_ctx_threads(ctx));
    printf("kernels   %s\n", nsa_ctx_isa(ctx));
    nsa_ctx_destroy(ctx);
    return CLI_OK;
}
