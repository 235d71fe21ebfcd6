#include "cli/bench_suite.h"

#include "cli/cli.h"
#include "cli/draw.h"

#include <omp.h>
#include <stdlib.h>

typedef struct bench_options {
    int32_t device, heads_q, heads_kv, d_qk, d_v, dtype, phi, batch, threads;
    int64_t seed;
    int_list lengths;
    bool lengths_given, own_shape, quick, json;
    const char *chart;
} bench_options;

static const char dtypes[] = "f32|bf16|f16", phis[] = "mean|linear|gated_token|gated_channel|mlp";

static bench_shape own_shape(const bench_options *o)
{
    bench_shape shape = {.dtype = (nsa_dtype)o->dtype, .batch = o->batch, .phi = (nsa_phi_kind)o->phi, .seed = o->seed};
    nsa_config_init(&shape.cfg);
    shape.cfg.n_heads_q = o->heads_q;
    shape.cfg.n_heads_kv = o->heads_kv;
    shape.cfg.d_qk = o->d_qk;
    shape.cfg.d_v = o->d_v;
    return shape;
}

static int run_bench(const bench_options *o, const nsa_ctx *ctx, bench_report *report)
{
    bench_run run = {.ctx = ctx,
                     .report = report,
                     .effort = {o->quick ? 0.3 : 1.5, o->quick ? 1 : 3},
                     .onednn_seconds = o->quick ? 6 : 40,
                     .seed = o->seed};
    omp_set_num_threads(nsa_ctx_threads(ctx)); /* oneDNN, the training step */
    bench_report_start(report, ctx, o->json);
    const int exit_code = o->own_shape || o->lengths_given || o->quick
                              ? bench_shape_by_length(&run, own_shape(o), &o->lengths)
                              : bench_suite(&run);
    return exit_code == CLI_OK && o->chart != NULL ? bench_report_chart(report, o->chart) : exit_code;
}

static int check_options(const arg_table *table, bench_options *o)
{
    if (o->quick && !o->lengths_given)
        o->lengths = (int_list){3, {2048, 4096, 8192}};
    if (o->heads_q % o->heads_kv != 0)
        return args_fail(table, "--heads-kv", "is %d, must divide --heads-q (%d)", o->heads_kv, o->heads_q);
    for (int i = 0; i < o->lengths.n; i++)
        if (o->lengths.item[i] * o->batch >= INT32_MAX)
            return args_fail(table, "--batch", "is %d, times the length %lld must be below 2^31", o->batch,
                             (long long)o->lengths.item[i]);
    if (o->chart != NULL && !canvas_path_valid(o->chart))
        return args_fail(table, "--chart", "is '%.200s', must end in .png or .svg", o->chart);
    return CLI_OK;
}

int cmd_bench(int argc, char **argv)
{
    bench_options o = {.chart = NULL};
    const arg args[] = {
        arg_choice("device", &o.device, "cpu", "cpu", "where to run"),
        arg_flag("quick", &o.quick, "lengths 2048,4096,8192 and fewer repetitions: within a minute"),
        arg_flag("json", &o.json, "JSON lines on stdout, one per measurement; the table goes to stderr"),
        arg_string("chart", &o.chart, "FILE", NULL, "draw ms over length (.png or .svg)"),
        arg_given(arg_ints("lengths", &o.lengths, 1, 1 << 24, "2048,4096,8192,16384", "tokens in a sequence"),
                  &o.lengths_given),
        arg_given(arg_i32("batch", &o.batch, 1, 4096, "1", "sequences"), &o.own_shape),
        arg_given(arg_i32("heads-q", &o.heads_q, 1, 1024, "16", "query heads"), &o.own_shape),
        arg_given(arg_i32("heads-kv", &o.heads_kv, 1, 1024, "1", "key and value heads"), &o.own_shape),
        arg_given(arg_i32("d-qk", &o.d_qk, 1, 256, "64", "channels of a query and a key"), &o.own_shape),
        arg_given(arg_i32("d-v", &o.d_v, 1, 256, "64", "channels of a value"), &o.own_shape),
        arg_given(arg_choice("dtype", &o.dtype, dtypes, "f32", "of q, k, v and the outputs"), &o.own_shape),
        arg_given(arg_choice("phi", &o.phi, phis, "mlp", "the compression"), &o.own_shape),
        arg_i32("threads", &o.threads, 0, 1024, "0", "0 = all cores"),
        arg_i64("seed", &o.seed, 0, 9007199254740992, "0", "of the random inputs"),
    };
    const arg_table table = {
        "bench",
        "Times NSA beside dense causal attention, by this library and by oneDNN, in one run. Without arguments: all "
        "that\n"
        "the project promises about speed, in about ten minutes. With a shape: its training forward with all that\n"
        "backward needs, backward, prefill, and decoding one token, by length. Blocks, top-k and window are the "
        "paper's.\n"
        "GFLOP/s counts 2 (d_qk + d_v) per attended pair and query head, 2.5 times that in backward; the peak is\n"
        "measured in the same run, dot products in registers. Dense attention is the window branch with an endless\n"
        "window; oneDNN's is made of matrix products and softmax, in bf16 where the CPU multiplies it.",
        args, ARGS_COUNT(args)};
    int exit_code;
    if (!args_parse(&table, argc, argv, &exit_code) || (exit_code = check_options(&table, &o)) != CLI_OK)
        return exit_code;

    bench_report *report = calloc(1, sizeof *report);
    if (report == NULL)
        return cli_fail("out of memory");
    const nsa_ctx_options options = {.struct_size = sizeof options, .device = NSA_DEVICE_CPU, .n_threads = o.threads};
    nsa_ctx *ctx = NULL;
    exit_code =
        nsa_ctx_create(&ctx, &options) == NSA_OK ? run_bench(&o, ctx, report) : cli_fail("%s", nsa_last_error());
    nsa_ctx_destroy(ctx);
    free(report);
    return exit_code;
}
