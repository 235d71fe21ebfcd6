#include "cli/bench_suite.h"

#include "cli/bench_chart.h"
#include "cli/bench_cuda.h"
#include "cli/cli.h"
#include "cli/draw.h"
#include "lm/error.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

typedef struct bench_options {
    int32_t device, heads_q, heads_kv, d_qk, d_v, dtype, phi, batch, threads, selection;
    int64_t seed;
    int_list lengths;
    string_list ops, attentions, from;
    struct { /* on the command line? */
        bool lengths, heads_q, heads_kv, d_qk, d_v, dtype, phi, batch, selection, threads;
    } given;
    bool quick, json;
    const char *chart;
} bench_options;

enum { CPU, CUDA };
static const char devices[] = "cpu|cuda", dtypes[] = "f32|bf16|f16", selections[] = "random|clustered",
                  phis[] = "mean|linear|gated_token|gated_channel|mlp";

/* What the command line leaves open is on a GPU of a GPU's size. */
static void set_gpu_defaults(bench_options *o)
{
    if (!o->given.heads_q)
        o->heads_q = 64;
    if (!o->given.heads_kv)
        o->heads_kv = 4;
    if (!o->given.d_qk)
        o->d_qk = 128;
    if (!o->given.d_v)
        o->d_v = 128;
    if (!o->given.dtype)
        o->dtype = NSA_BF16;
    if (!o->given.phi)
        o->phi = NSA_PHI_MEAN;
    if (!o->given.lengths)
        o->lengths = (int_list){6, {4096, 8192, 16384, 32768, 65536, 131072}};
}

static bool own_shape(const bench_options *o)
{
    return o->given.lengths || o->given.heads_q || o->given.heads_kv || o->given.d_qk || o->given.d_v ||
           o->given.dtype || o->given.phi || o->given.batch || o->given.selection || o->quick;
}

static bench_shape shape_of(const bench_options *o)
{
    bench_shape shape = {.dtype = (nsa_dtype)o->dtype,
                         .batch = o->batch,
                         .phi = (nsa_phi_kind)o->phi,
                         .seed = o->seed,
                         .clustered = o->selection == 1};
    nsa_config_init(&shape.cfg);
    shape.cfg.n_heads_q = o->heads_q;
    shape.cfg.n_heads_kv = o->heads_kv;
    shape.cfg.d_qk = o->d_qk;
    shape.cfg.d_v = o->d_v;
    return shape;
}

/* Which of the names are in the list; all, if it is empty. False: *unknown is not among them. */
static bool choose(const string_list *list, int n, const char *const *names, bool *chosen, const char **unknown)
{
    for (int i = 0; i < n; i++)
        chosen[i] = list->n == 0;
    for (int j = 0; j < list->n; j++) {
        bool known = false;
        for (int i = 0; i < n; i++)
            if (strcmp(list->item[j], names[i]) == 0)
                chosen[i] = known = true;
        if (!known) {
            *unknown = list->item[j];
            return false;
        }
    }
    return true;
}

static int choose_lines(const arg_table *table, const bench_options *o, bench_run *run)
{
    const char *unknown;
    if (!choose(&o->ops, BENCH_N_OPS, bench_op_names, run->ops, &unknown))
        return args_fail(table, "--op",
                         "is '%.100s', must be of forward, backward, prefill, decode, compress, cmp_attn, select, "
                         "slc_attn, win_attn, gate, train_step",
                         unknown);
    if (!choose(&o->attentions, BENCH_N_ATTENTIONS, bench_attention_names, run->attentions, &unknown))
        return args_fail(table, "--attention", "is '%.100s', must be of nsa, dense, onednn", unknown);
    return CLI_OK;
}

static int check_options(const arg_table *table, bench_options *o)
{
    if (o->device == CUDA)
        set_gpu_defaults(o);
    if (o->quick && !o->given.lengths)
        o->lengths = (int_list){3, {2048, 4096, 8192}};
    if (o->device == CUDA && o->given.threads)
        return args_fail(table, "--threads", "is for the CPU");
    if (o->heads_q % o->heads_kv != 0)
        return args_fail(table, "--heads-kv", "is %d, must divide --heads-q (%d)", o->heads_kv, o->heads_q);
    for (int i = 0; i < o->lengths.n; i++)
        if (o->lengths.item[i] * o->batch >= INT32_MAX)
            return args_fail(table, "--batch", "is %d, times the length %lld must be below 2^31", o->batch,
                             (long long)o->lengths.item[i]);
    if (o->from.n > 0 && o->chart == NULL)
        return args_fail(table, "--chart", "is missing, where to draw the results of --from");
    if (o->chart != NULL && !canvas_path_valid(o->chart))
        return args_fail(table, "--chart", "is '%.200s', must end in .png or .svg", o->chart);
    return CLI_OK;
}

/* ---- Devices ----------------------------------------------------------------------------------------------------- */

static int create_ctx(nsa_ctx **ctx, nsa_device device, int32_t threads)
{
    const nsa_ctx_options options = {.struct_size = sizeof options, .device = device, .n_threads = threads};
    return nsa_ctx_create(ctx, &options) == NSA_OK ? CLI_OK : cli_fail("%s", nsa_last_error());
}

static int run_cpu(const bench_options *o, bench_run *run, nsa_ctx **ctx)
{
    const int exit_code = create_ctx(ctx, NSA_DEVICE_CPU, o->threads);
    if (exit_code != CLI_OK)
        return exit_code;
    run->ctx = *ctx;
    run->device = &bench_cpu;
    run->effort = (bench_effort){o->quick ? 0.3 : 1.5, o->quick ? 1 : 3};
    run->onednn_seconds = o->quick ? 6 : 40;
    omp_set_num_threads(nsa_ctx_threads(run->ctx)); /* oneDNN, the training step */
    bench_report_start(run->report, run->ctx, NULL, o->json);
    return own_shape(o) ? bench_shape_by_length(run, shape_of(o), &o->lengths) : bench_suite(run);
}

static int run_cuda(const bench_options *o, bench_run *run, nsa_ctx **ctx)
{
#if defined(NSA_CUDA)
    static bench_gpu gpu; /* the chart names it */
    bench_device device;
    const int exit_code = create_ctx(ctx, NSA_DEVICE_CUDA, 0);
    if (exit_code != CLI_OK)
        return exit_code;
    if (!bench_cuda_open(&gpu, &device))
        return cli_fail("%s", lm_error());
    run->ctx = *ctx;
    run->device = &device;
    run->effort = (bench_effort){o->quick ? 0.1 : 0.5, o->quick ? 2 : 5};
    bench_report_start(run->report, run->ctx, &gpu, o->json);
    return own_shape(o) ? bench_gpu_by_length(run, shape_of(o), &o->lengths) : bench_gpu_suite(run);
#else
    (void)o, (void)run, (void)ctx;
    return cli_fail("--device cuda: this nsa is built for the CPU only; make cuda builds one for both");
#endif
}

static int run_bench(const bench_options *o, bench_run *run)
{
    nsa_ctx *ctx = NULL;
    int exit_code = o->device == CUDA ? run_cuda(o, run, &ctx) : run_cpu(o, run, &ctx);
    if (exit_code == CLI_OK && o->chart != NULL)
        exit_code = bench_report_chart(run->report, o->chart);
    nsa_ctx_destroy(ctx);
    return exit_code;
}

/* The results of other runs. */
static int draw_files(const bench_options *o)
{
    bench_chart *chart = calloc(1, sizeof *chart);
    if (chart == NULL)
        return cli_fail("out of memory");
    int exit_code = CLI_OK;
    for (int i = 0; i < o->from.n && exit_code == CLI_OK; i++)
        exit_code = bench_chart_read(chart, o->from.item[i]);
    if (exit_code == CLI_OK)
        exit_code = bench_chart_draw(chart, o->chart);
    free(chart);
    return exit_code;
}

int cmd_bench(int argc, char **argv)
{
    bench_options o = {.chart = NULL};
    const arg args[] = {
        arg_choice("device", &o.device, devices, "cpu", "where to run; cuda needs a build with it (make cuda)"),
        arg_flag("quick", &o.quick, "lengths 2048,4096,8192 and fewer repetitions: within a minute"),
        arg_flag("json", &o.json, "JSON lines on stdout, one per measurement; the table goes to stderr"),
        arg_string("chart", &o.chart, "FILE", NULL, "draw ms over length (.png or .svg)"),
        arg_strings("from", &o.from, "FILE", "measure nothing: draw what --json has written into these files"),
        arg_strings("op", &o.ops, "OP",
                    "only these lines: forward, backward, prefill, decode, compress,\n"
                    "cmp_attn, select, slc_attn, win_attn, gate, train_step"),
        arg_strings("attention", &o.attentions, "WHICH", "only these lines: nsa, dense, onednn"),
        arg_given(arg_ints("lengths", &o.lengths, 1, 1 << 24, "2048,4096,8192,16384",
                           "tokens in a sequence; cuda: 4096 to 131072"),
                  &o.given.lengths),
        arg_given(arg_i32("batch", &o.batch, 1, 4096, "1", "sequences"), &o.given.batch),
        arg_given(arg_i32("heads-q", &o.heads_q, 1, 1024, "16", "query heads; cuda: 64"), &o.given.heads_q),
        arg_given(arg_i32("heads-kv", &o.heads_kv, 1, 1024, "1", "key and value heads; cuda: 4"), &o.given.heads_kv),
        arg_given(arg_i32("d-qk", &o.d_qk, 1, 256, "64", "channels of a query and a key; cuda: 128"), &o.given.d_qk),
        arg_given(arg_i32("d-v", &o.d_v, 1, 256, "64", "channels of a value; cuda: 128"), &o.given.d_v),
        arg_given(arg_choice("dtype", &o.dtype, dtypes, "f32", "of q, k, v and the outputs; cuda: bf16"),
                  &o.given.dtype),
        arg_given(arg_choice("phi", &o.phi, phis, "mlp", "the compression; cuda: mean"), &o.given.phi),
        arg_given(arg_choice("selection", &o.selection, selections, "random",
                             "clustered: queries that turn slowly select what their\n"
                             "neighbours do"),
                  &o.given.selection),
        arg_given(arg_i32("threads", &o.threads, 0, 1024, "0", "0 = all cores"), &o.given.threads),
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
        "window; oneDNN's is made of matrix products and softmax, in bf16 where the CPU multiplies it.\n"
        "On a GPU: forward, its parts and backward, timed by CUDA events with two sets of inputs in turn. A line's "
        "floor is\n"
        "its arithmetic at the rate of matrix products or its bytes at that of copies, both measured in the same run.",
        args, ARGS_COUNT(args)};
    int exit_code;
    if (!args_parse(&table, argc, argv, &exit_code) || (exit_code = check_options(&table, &o)) != CLI_OK)
        return exit_code;
    if (o.from.n > 0)
        return draw_files(&o);

    bench_run run = {.seed = o.seed};
    if ((exit_code = choose_lines(&table, &o, &run)) != CLI_OK)
        return exit_code;
    run.report = calloc(1, sizeof *run.report);
    if (run.report == NULL)
        return cli_fail("out of memory");
    exit_code = run_bench(&o, &run);
    free(run.report);
    return exit_code;
}
