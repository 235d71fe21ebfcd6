#include "cli/bench_suite.h"

#include "cli/cli.h"
#include "cli/progress.h"
#include "lm/error.h"

#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- One measurement --------------------------------------------------------------------------------------------- */

static bool wanted(const bench_run *r, bench_op op, bench_attention attention)
{
    return r->ops[op] && r->attentions[attention];
}

bool bench_line(bench_run *r, bench_case *b, const bench_shape *shape, bench_op op, bench_attention attention)
{
    bench_record x = {.op = op, .attention = attention, .shape = *shape, .overlap = -1};
    if (!wanted(r, op, attention))
        return true;
    bench_report_doing(r->report, shape, op, attention);
    if (!bench_measure(b, op, attention, &r->effort, &x.time)) {
        if (r->device == &bench_cpu || !bench_case_lacks(b))
            return false;
        bench_report_left_out(r->report, shape, op, attention, lm_error());
        return true;
    }
    x.workspace = bench_case_workspace(b);
    x.tensors = bench_case_tensors(b);
    if (r->device != &bench_cpu)
        x.sets = bench_case_sets(b);
    if (op == BENCH_FORWARD)
        x.residuals = bench_case_residuals(b);
    const bool selects = attention == BENCH_NSA && (op == BENCH_FORWARD || op == BENCH_SELECT);
    if (selects && (shape->clustered || r->device != &bench_cpu))
        LM_TRY(bench_case_overlap(b, &x.overlap));
    bench_report_add(r->report, r->ctx, x);
    return true;
}

/* After dense attention, whose time tells what oneDNN may take at lengths where that can be very long. */
static bool measure_onednn(bench_run *r, bench_case *b, const bench_shape *shape)
{
    enum { MAX_SLOWER = 4, SHORT = 8192, USUAL_BLOCK = 64 };
    bench_record x = {.op = BENCH_FORWARD, .attention = BENCH_ONEDNN, .shape = *shape, .overlap = -1};
    if (!wanted(r, x.op, x.attention))
        return true;
    x.isa = r->report->isa;
    const bench_record *dense = bench_report_find(r->report, &x, BENCH_FORWARD, BENCH_DENSE, nsa_ctx_threads(r->ctx));
    const double seconds = dense != NULL ? 1e-3 * MAX_SLOWER * dense->time.ms : 0;
    if (shape->seqlen > SHORT && seconds > r->onednn_seconds) {
        char why[64];
        snprintf(why, sizeof why, "a repetition may take %.0f s", seconds);
        bench_report_left_out(r->report, shape, x.op, x.attention, why);
        return true;
    }
    LM_TRY(bench_case_forward(b, BENCH_DENSE));
    if (r->onednn_block == 0 && shape->seqlen > SHORT)
        r->onednn_block = USUAL_BLOCK;
    bench_report_doing(r->report, shape, x.op, x.attention);
    LM_TRY(bench_measure_onednn(b, &r->onednn_block, &r->effort, &x.time));
    x.shape.dtype = bench_onednn_dtype(shape->dtype);
    bench_report_add(r->report, r->ctx, x);
    return true;
}

bool bench_decode_line(bench_run *r, const bench_shape *shape, bench_attention attention)
{
    bench_record x = {.op = BENCH_DECODE, .attention = attention, .shape = *shape, .overlap = -1};
    bool lacks = false;
    if (!wanted(r, x.op, attention))
        return true;
    bench_report_doing(r->report, shape, x.op, attention);
    if (!bench_measure_decode(r->ctx, r->device, shape, attention, &r->effort, &x.time, &x.rotated, &lacks)) {
        if (r->device == &bench_cpu || !lacks)
            return false;
        bench_report_left_out(r->report, shape, x.op, attention, lm_error());
        return true;
    }
    if (attention == BENCH_ONEDNN)
        x.shape.dtype = bench_onednn_dtype(shape->dtype);
    bench_report_add(r->report, r->ctx, x);
    return true;
}

static bool measure_decode(bench_run *r, const bench_shape *shape)
{
    return bench_decode_line(r, shape, BENCH_ONEDNN) && bench_decode_line(r, shape, BENCH_DENSE) &&
           bench_decode_line(r, shape, BENCH_NSA);
}

/* Prefill by dense attention is forward by it, without a cache to fill. */
static void repeat_as_prefill(bench_run *r, const bench_shape *shape, bench_attention attention)
{
    const bench_record like = {.shape = *shape, .isa = r->report->isa};
    const bench_record *forward =
        bench_report_find(r->report, &like, BENCH_FORWARD, attention, nsa_ctx_threads(r->ctx));
    if (forward == NULL || !wanted(r, BENCH_PREFILL, attention))
        return;
    bench_record x = *forward;
    x.op = BENCH_PREFILL;
    x.residuals = 0;
    bench_report_add(r->report, r->ctx, x);
}

/* ---- A shape of the user ----------------------------------------------------------------------------------------- */

static bool measure_length(bench_run *r, bench_case *b, const bench_shape *shape)
{
    LM_TRY(bench_line(r, b, shape, BENCH_FORWARD, BENCH_DENSE));
    LM_TRY(measure_onednn(r, b, shape));
    LM_TRY(bench_line(r, b, shape, BENCH_FORWARD, BENCH_NSA));
    LM_TRY(bench_line(r, b, shape, BENCH_BACKWARD, BENCH_DENSE));
    LM_TRY(bench_line(r, b, shape, BENCH_BACKWARD, BENCH_NSA));
    repeat_as_prefill(r, shape, BENCH_ONEDNN);
    repeat_as_prefill(r, shape, BENCH_DENSE);
    return bench_line(r, b, shape, BENCH_PREFILL, BENCH_NSA);
}

static int failed(const bench_shape *shape)
{
    return cli_fail("length %d: %s", shape->seqlen, lm_error());
}

int bench_shape_by_length(bench_run *r, bench_shape shape, const int_list *lengths)
{
    for (int i = 0; i < lengths->n; i++) {
        shape.seqlen = (int32_t)lengths->item[i];
        bench_case *b = bench_case_create(r->ctx, r->device, &shape);
        if (b == NULL)
            return failed(&shape);
        const bool measured = measure_length(r, b, &shape);
        bench_case_destroy(b);
        if (!measured || !measure_decode(r, &shape))
            return failed(&shape);
    }
    return CLI_OK;
}

/* ---- The suite --------------------------------------------------------------------------------------------------- */

bench_shape bench_shape_of(const bench_run *r, int32_t heads_q, int32_t heads_kv, int32_t d_qk, int32_t d_v,
                           nsa_dtype dtype, int32_t seqlen)
{
    bench_shape s = {.dtype = dtype, .batch = 1, .seqlen = seqlen, .phi = NSA_PHI_MEAN, .seed = r->seed};
    nsa_config_init(&s.cfg);
    s.cfg.n_heads_q = heads_q;
    s.cfg.n_heads_kv = heads_kv;
    s.cfg.d_qk = d_qk;
    s.cfg.d_v = d_v;
    return s;
}

/* Some operations of NSA alone, in their order. */
static int measure_ops(bench_run *r, const bench_shape *shape, int n, const bench_op *ops)
{
    bench_case *b = bench_case_create(r->ctx, r->device, shape);
    if (b == NULL)
        return failed(shape);
    bool measured = true;
    for (int i = 0; i < n && measured; i++)
        measured = bench_line(r, b, shape, ops[i], BENCH_NSA);
    bench_case_destroy(b);
    return measured ? CLI_OK : failed(shape);
}

static bool training_at(bench_run *r, bench_case *b, const bench_shape *shape, bool dense, bool parts)
{
    static const bench_op ops[] = {BENCH_FORWARD_GIVEN, BENCH_COMPRESS, BENCH_CMP_ATTN, BENCH_SELECT,
                                   BENCH_SLC_ATTN,      BENCH_WIN_ATTN, BENCH_GATE};
    enum { MAX_BACKWARD = 32768 };
    if (dense) {
        LM_TRY(bench_line(r, b, shape, BENCH_FORWARD, BENCH_DENSE));
        LM_TRY(measure_onednn(r, b, shape));
    }
    LM_TRY(bench_line(r, b, shape, BENCH_FORWARD, BENCH_NSA));
    for (int i = 0; i < ARGS_COUNT(ops) && parts; i++)
        LM_TRY(bench_line(r, b, shape, ops[i], BENCH_NSA));
    return shape->seqlen > MAX_BACKWARD || bench_line(r, b, shape, BENCH_BACKWARD, BENCH_NSA);
}

/* Dense attention at each length, or at the ends alone. */
static int training(bench_run *r, int32_t d_qk, int32_t d_v, bool all)
{
    static const int32_t lengths[] = {8192, 16384, 32768, 65536};
    for (int i = 0; i < ARGS_COUNT(lengths); i++) {
        const bench_shape shape = bench_shape_of(r, 16, 1, d_qk, d_v, NSA_BF16, lengths[i]);
        bench_case *b = bench_case_create(r->ctx, r->device, &shape);
        if (b == NULL)
            return failed(&shape);
        const bool measured = training_at(r, b, &shape, all || i == 0 || i == ARGS_COUNT(lengths) - 1, all);
        bench_case_destroy(b);
        if (!measured)
            return failed(&shape);
    }
    return CLI_OK;
}

static int decoding(bench_run *r, int32_t d_qk, int32_t d_v)
{
    static const int32_t lengths[] = {8192, 16384, 32768, 65536};
    for (int i = 0; i < ARGS_COUNT(lengths); i++) {
        const bench_shape shape = bench_shape_of(r, 64, 4, d_qk, d_v, NSA_BF16, lengths[i]);
        if (!measure_decode(r, &shape))
            return failed(&shape);
    }
    return CLI_OK;
}

/* Runs `body` with a context of its own; restores r->ctx. */
static int with_ctx(bench_run *r, int32_t threads, int (*body)(bench_run *))
{
    const nsa_ctx_options options = {.struct_size = sizeof options, .device = NSA_DEVICE_CPU, .n_threads = threads};
    const nsa_ctx *outer = r->ctx;
    nsa_ctx *ctx = NULL;
    if (nsa_ctx_create(&ctx, &options) != NSA_OK)
        return cli_fail("%s", nsa_last_error());
    r->ctx = ctx;
    const int exit_code = body(r);
    r->ctx = outer;
    nsa_ctx_destroy(ctx);
    return exit_code;
}

static int forward_16k(bench_run *r)
{
    static const bench_op forward[] = {BENCH_FORWARD};
    const bench_shape bf16 = bench_shape_of(r, 16, 1, 128, 128, NSA_BF16, 16384);
    const bench_shape f32 = bench_shape_of(r, 16, 1, 128, 128, NSA_F32, 16384);
    const int exit_code = measure_ops(r, &bf16, 1, forward);
    return exit_code == CLI_OK ? measure_ops(r, &f32, 1, forward) : exit_code;
}

/* From the best instruction set down, by NSA_DISABLE_CPU, which every new context reads. */
static int instruction_sets(bench_run *r)
{
    static const char *const sets[] = {
#if defined(__aarch64__)
        "neonbf16",
        "neon",
#else
        "avx512bf16",
        "avx512",
        "avx2",
#endif
        "scalar",
    };
    const char *initial = getenv("NSA_DISABLE_CPU");
    const int32_t threads = nsa_ctx_threads(r->ctx);
    char disabled[256], before[256];
    snprintf(before, sizeof before, "%s", initial != NULL ? initial : "");
    snprintf(disabled, sizeof disabled, "%s", before);
    int first = 0, exit_code = CLI_OK;
    while (first < ARGS_COUNT(sets) - 1 && strcmp(sets[first], nsa_ctx_isa(r->ctx)) != 0)
        first++;
    for (int i = first; i < ARGS_COUNT(sets) && exit_code == CLI_OK; i++) {
        setenv("NSA_DISABLE_CPU", disabled, 1);
        exit_code = with_ctx(r, threads, forward_16k);
        const size_t used = strlen(disabled);
        snprintf(disabled + used, sizeof disabled - used, "%s%s", used > 0 ? "," : "", sets[i]);
    }
    if (initial != NULL)
        setenv("NSA_DISABLE_CPU", before, 1);
    else
        unsetenv("NSA_DISABLE_CPU");
    return exit_code;
}

static int forward_backward_16k(bench_run *r)
{
    static const bench_op ops[] = {BENCH_FORWARD, BENCH_BACKWARD};
    const bench_shape shape = bench_shape_of(r, 16, 1, 128, 128, NSA_BF16, 16384);
    return measure_ops(r, &shape, 2, ops);
}

static int one_and_two_threads(bench_run *r)
{
    const int exit_code = with_ctx(r, 1, forward_backward_16k);
    return exit_code == CLI_OK ? with_ctx(r, 2, forward_backward_16k) : exit_code;
}

static int groups(bench_run *r)
{
    static const int32_t ds[] = {64, 128}, sizes[] = {16, 7, 4, 2, 1};
    static const bench_op forward[] = {BENCH_FORWARD};
    int exit_code = CLI_OK;
    for (int i = 0; i < ARGS_COUNT(ds); i++)
        for (int j = 0; j < ARGS_COUNT(sizes) && exit_code == CLI_OK; j++) {
            const bench_shape shape = bench_shape_of(r, 2 * sizes[j], 2, ds[i], ds[i], NSA_BF16, 16384);
            exit_code = measure_ops(r, &shape, 1, forward);
        }
    return exit_code;
}

static int train_steps(bench_run *r)
{
    static const int32_t contexts[] = {4096, 8192, 16384};
    static const bench_attention order[] = {BENCH_DENSE, BENCH_NSA};
    for (int i = 0; i < ARGS_COUNT(contexts); i++)
        for (int j = 0; j < ARGS_COUNT(order); j++) {
            bench_record x = {.op = BENCH_TRAIN_STEP, .attention = order[j], .overlap = -1};
            if (!wanted(r, x.op, x.attention))
                continue;
            if (!bench_measure_train(contexts[i], order[j], &r->effort, &x.shape, &x.time))
                return cli_fail("train_step at length %d: %s", contexts[i], lm_error());
            bench_report_add(r->report, r->ctx, x);
        }
    return CLI_OK;
}

static int training_128(bench_run *r)
{
    return training(r, 128, 128, true);
}

static int training_192(bench_run *r)
{
    return training(r, 192, 128, false);
}

static int decoding_128(bench_run *r)
{
    return decoding(r, 128, 128);
}

static int decoding_192(bench_run *r)
{
    return decoding(r, 192, 128);
}

int bench_suite(bench_run *r)
{
    static const struct {
        const char *title;
        int (*run)(bench_run *);
        bool two_threads;
    } sections[] = {
        {"Forward with all that backward needs, its parts, backward", training_128, false},
        {"One decoded token; a round over equal caches reads 128 MB or more", decoding_128, false},
        {"d_qk 192, d_v 128", training_192, false},
        {"d_qk 192, d_v 128: one decoded token", decoding_192, false},
        {"Each instruction set that the CPU has, bf16 and f32", instruction_sets, false},
        {"One thread and two", one_and_two_threads, true},
        {"Groups of 16, 7, 4, 2 and 1 query heads per key head", groups, false},
        {"A training step of the default model of nsa train, batch 1", train_steps, false},
    };
    const double start = seconds_now();
    char end[32];
    int exit_code = CLI_OK;
    for (int i = 0; i < ARGS_COUNT(sections) && exit_code == CLI_OK; i++) {
        if (sections[i].two_threads && omp_get_num_procs() < 2)
            continue;
        bench_report_section(r->report, sections[i].title);
        exit_code = sections[i].run(r);
    }
    snprintf(end, sizeof end, "In %.0f s", seconds_now() - start);
    bench_report_section(r->report, end);
    return exit_code;
}
