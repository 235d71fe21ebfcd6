#include "cli/bench.h"

#include "cli/args.h"
#include "cli/chart.h"
#include "cli/cli.h"
#include "cli/draw.h"

#include <stdio.h>

typedef struct bench_options {
    int32_t device, heads_q, heads_kv, d_qk, d_v, dtype, phi, batch, threads;
    int64_t seed;
    int_list lengths;
    bool lengths_given, quick, json;
    const char *chart;
} bench_options;

static const char dtypes[] = "f32|bf16|f16", phis[] = "mean|linear|gated_token|gated_channel|mlp";
static const char *const dtype_names[] = {"f32", "bf16", "f16"};
static const char *const phi_names[] = {"mean", "linear", "gated_token", "gated_channel", "mlp"};

/* One length: all that was measured. */
typedef struct bench_row {
    bench_time time[BENCH_N_OPS][BENCH_N_ATTENTIONS];
    double gflops[BENCH_N_OPS][BENCH_N_ATTENTIONS];
} bench_row;

static void print_json(const bench_options *o, const bench_shape *shape, const nsa_ctx *ctx, double peak, bench_op op,
                       bench_attention attention, const bench_row *row)
{
    const bench_time time = row->time[op][attention];
    const double gflops = row->gflops[op][attention];
    const char *quote = *cli_commit() != '\0' ? "\"" : "";
    printf("{\"op\":\"%s\",\"attention\":\"%s\",\"phi\":%s%s%s,\"device\":\"cpu\",\"dtype\":\"%s\",\"batch\":%d,"
           "\"seqlen\":%d,\"heads_q\":%d,\"heads_kv\":%d,\"d_qk\":%d,\"d_v\":%d,\"threads\":%d,\"isa\":\"%s\","
           "\"selection\":%s,\"reps\":%d,\"ms\":%.6g,\"gflops\":%.6g,\"peak_fraction\":%.4g,"
           "\"version\":\"%s\",\"commit\":%s%s%s}\n",
           bench_op_names[op], bench_attention_names[attention], attention == BENCH_NSA ? "\"" : "",
           attention == BENCH_NSA ? phi_names[o->phi] : "null", attention == BENCH_NSA ? "\"" : "",
           dtype_names[o->dtype], shape->batch, shape->seqlen, o->heads_q, o->heads_kv, o->d_qk, o->d_v,
           nsa_ctx_threads(ctx), nsa_ctx_isa(ctx), attention == BENCH_NSA ? "\"random\"" : "null", time.reps, time.ms,
           gflops, gflops / peak, nsa_version(), quote, *quote != '\0' ? cli_commit() : "null", quote);
}

static void print_row(FILE *out, const bench_shape *shape, double peak, bench_op op, const bench_row *row)
{
    const double nsa = row->time[op][BENCH_NSA].ms, dense = row->time[op][BENCH_DENSE].ms;
    const double *gflops = row->gflops[op];
    fprintf(out, "%-9s %8d %11.3f %11.3f %8.2fx %9.1f %5.1f%% %9.1f %5.1f%%\n", bench_op_names[op], shape->seqlen, nsa,
            dense, dense / nsa, gflops[BENCH_NSA], 100 * gflops[BENCH_NSA] / peak, gflops[BENCH_DENSE],
            100 * gflops[BENCH_DENSE] / peak);
}

static int measure_length(const bench_options *o, const bench_shape *shape, const nsa_ctx *ctx, double peak,
                          bench_row *row)
{
    bench_case *b = bench_case_create(ctx, shape);
    if (b == NULL)
        return cli_fail("--lengths %d: no memory for its tensors", shape->seqlen);
    const double seconds = o->quick ? 0.3 : 1.5;
    int exit_code = CLI_OK;
    for (int op = 0; op < BENCH_N_OPS && exit_code == CLI_OK; op++) {
        for (int a = 0; a < BENCH_N_ATTENTIONS && exit_code == CLI_OK; a++) {
            const nsa_status status = bench_measure(b, (bench_op)op, (bench_attention)a, seconds, &row->time[op][a]);
            if (status != NSA_OK) {
                const bool memory =
                    status == NSA_ERR_OUT_OF_MEMORY; /* the workspace's, of which the library knows not */
                exit_code =
                    cli_fail("%s %s at length %d: %s%s%s", bench_attention_names[a], bench_op_names[op], shape->seqlen,
                             nsa_status_string(status), memory ? "" : ": ", memory ? "" : nsa_last_error());
                break;
            }
            row->gflops[op][a] = bench_flop(shape, (bench_op)op, (bench_attention)a) / (1e6 * row->time[op][a].ms);
            if (o->json)
                print_json(o, shape, ctx, peak, (bench_op)op, (bench_attention)a, row);
        }
        if (exit_code == CLI_OK)
            print_row(o->json ? stderr : stdout, shape, peak, (bench_op)op, row);
        fflush(stdout);
    }
    bench_case_destroy(b);
    return exit_code;
}

/* A panel per operation: ms over length. */
static int draw_chart(const bench_options *o, const nsa_ctx *ctx, const bench_row *rows)
{
    const int n = o->lengths.n;
    double lengths[ARGS_MAX_LIST], ms[BENCH_N_OPS][BENCH_N_ATTENTIONS][ARGS_MAX_LIST];
    char label_text[ARGS_MAX_LIST][16], subtitle[160];
    const char *labels[ARGS_MAX_LIST];
    chart_series series[BENCH_N_OPS][BENCH_N_ATTENTIONS];
    chart_panel panels[BENCH_N_OPS];
    static const char *const titles[] = {"forward (training)", "backward", "prefill", "decode, one token"};
    static const char *const names[] = {"NSA", "dense"};

    for (int i = 0; i < n; i++) {
        const int64_t length = o->lengths.item[i];
        lengths[i] = (double)length;
        snprintf(label_text[i], sizeof label_text[i], length % 1024 == 0 ? "%lldk" : "%lld",
                 (long long)(length % 1024 == 0 ? length / 1024 : length));
        labels[i] = label_text[i];
    }
    for (int op = 0; op < BENCH_N_OPS; op++) {
        for (int a = 0; a < BENCH_N_ATTENTIONS; a++) {
            for (int i = 0; i < n; i++)
                ms[op][a][i] = rows[i].time[op][a].ms;
            series[op][a] = (chart_series){names[a], a, CHART_MARKED, n, lengths, ms[op][a]};
        }
        const chart_axis x = {"tokens", true, n, lengths, labels}, y = {.label = "ms", .log = true};
        panels[op] = (chart_panel){titles[op], x, y, BENCH_N_ATTENTIONS, series[op]};
    }
    snprintf(subtitle, sizeof subtitle, "CPU (%s), %d threads, %s, %d/%d heads, d %d/%d, batch %d, causal",
             nsa_ctx_isa(ctx), nsa_ctx_threads(ctx), dtype_names[o->dtype], o->heads_q, o->heads_kv, o->d_qk, o->d_v,
             o->batch);
    const line_chart chart = {"Time by length: NSA against dense attention", subtitle, BENCH_N_OPS, 2, panels};
    return chart_lines(o->chart, &chart);
}

static int run_bench(bench_options *o, const nsa_ctx *ctx)
{
    static bench_row rows[ARGS_MAX_LIST];
    const double peak = bench_peak_gflops(nsa_ctx_isa(ctx), nsa_ctx_threads(ctx));
    bench_shape shape = {.dtype = (nsa_dtype)o->dtype, .batch = o->batch, .phi = (nsa_phi_kind)o->phi, .seed = o->seed};
    nsa_config_init(&shape.cfg);
    shape.cfg.n_heads_q = o->heads_q;
    shape.cfg.n_heads_kv = o->heads_kv;
    shape.cfg.d_qk = o->d_qk;
    shape.cfg.d_v = o->d_v;
    FILE *out = o->json ? stderr : stdout;
    fprintf(out, "cpu (%s), %d threads, peak %.1f GFLOP/s measured; %s, %d/%d heads, d %d/%d, batch %d, phi %s\n",
            nsa_ctx_isa(ctx), nsa_ctx_threads(ctx), peak, dtype_names[o->dtype], o->heads_q, o->heads_kv, o->d_qk,
            o->d_v, o->batch, phi_names[o->phi]);
    fprintf(out, "%-9s %8s %11s %11s %9s %9s %6s %9s %6s\n", "op", "tokens", "nsa ms", "dense ms", "speed-up",
            "nsa GF/s", "peak", "dense", "peak");
    for (int i = 0; i < o->lengths.n; i++) {
        shape.seqlen = (int32_t)o->lengths.item[i];
        const int exit_code = measure_length(o, &shape, ctx, peak, &rows[i]);
        if (exit_code != CLI_OK)
            return exit_code;
    }
    return o->chart != NULL ? draw_chart(o, ctx, rows) : CLI_OK;
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
        arg_i32("batch", &o.batch, 1, 4096, "1", "sequences"),
        arg_i32("heads-q", &o.heads_q, 1, 1024, "16", "query heads"),
        arg_i32("heads-kv", &o.heads_kv, 1, 1024, "1", "key and value heads"),
        arg_i32("d-qk", &o.d_qk, 1, 256, "64", "channels of a query and a key"),
        arg_i32("d-v", &o.d_v, 1, 256, "64", "channels of a value"),
        arg_choice("dtype", &o.dtype, dtypes, "f32", "of q, k, v and the outputs"),
        arg_choice("phi", &o.phi, phis, "mlp", "the compression"),
        arg_i32("threads", &o.threads, 0, 1024, "0", "0 = all cores"),
        arg_i64("seed", &o.seed, 0, 9007199254740992, "0", "of the random inputs"),
    };
    const arg_table table = {
        "bench",
        "Times NSA and dense causal attention side by side: the training forward with all that backward needs, "
        "backward,\n"
        "prefill of a whole sequence, and decoding one token after it. Blocks, top-k and window are the paper's.\n"
        "GFLOP/s counts 2 (d_qk + d_v) per attended pair and query head, 2.5 times that in backward; the peak is "
        "measured\n"
        "in the same run, multiply-adds in registers. Dense attention is the window branch with an endless window.",
        args, ARGS_COUNT(args)};
    int exit_code;
    if (!args_parse(&table, argc, argv, &exit_code) || (exit_code = check_options(&table, &o)) != CLI_OK)
        return exit_code;

    const nsa_ctx_options options = {.struct_size = sizeof options, .device = NSA_DEVICE_CPU, .n_threads = o.threads};
    nsa_ctx *ctx = NULL;
    if (nsa_ctx_create(&ctx, &options) != NSA_OK)
        return cli_fail("%s", nsa_last_error());
    exit_code = run_bench(&o, ctx);
    nsa_ctx_destroy(ctx);
    return exit_code;
}
