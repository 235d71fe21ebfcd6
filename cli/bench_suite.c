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

/* By the library. */
static bool measure(bench_run *r, bench_case *b, const bench_shape *shape, bench_op op, bench_attention attention)
{
    bench_record x = {.op = op, .attention = attention, .shape = *shape, .overlap = -1};
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

/* Prefill by dense attention is forward by it, without a cache to fill. */
static void repeat_as_prefill(bench_run *r, const bench_shape *shape, bench_attention attention)
{
    const bench_record like = {.shape = *shape, .isa = r->report->isa};
    const bench_record *forward =
        bench_report_find(r->report, &like, BENCH_FORWARD, attention, nsa_ctx_threads(r->ctx));
    if (forward == NULL)
        return;
    bench_record x = *forward;
    x.op = BENCH_PREFILL;
    x.residuals = 0;
    bench_report_add(r->report, r->ctx, x);
}

static bool any_wanted(const bench_run *r, const bench_item *items, int n)
{
    bool any = false;
    for (int i = 0; i < n; i++)
        any |= wanted(r, items[i].op, items[i].attention);
    return any;
}

static bool measure_item(bench_run *r, bench_case *b, const bench_shape *shape, const bench_item *item)
{
    if (!wanted(r, item->op, item->attention))
        return true;
    if (item->op == BENCH_PREFILL && item->attention != BENCH_NSA) {
        repeat_as_prefill(r, shape, item->attention);
        return true;
    }
    return item->attention == BENCH_ONEDNN ? measure_onednn(r, b, shape)
                                           : measure(r, b, shape, item->op, item->attention);
}

static int failed(const bench_shape *shape)
{
    return cli_fail("length %d: %s", shape->seqlen, lm_error());
}

int bench_items(bench_run *r, const bench_shape *shape, const bench_item *items, int n)
{
    if (!any_wanted(r, items, n))
        return CLI_OK;
    bench_case *b = bench_case_create(r->ctx, r->device, shape);
    if (b == NULL && r->device == &bench_cpu)
        return failed(shape);
    if (b == NULL)
        bench_report_left_out(r->report, shape, items[0].op, items[0].attention, lm_error());
    bool measured = true;
    for (int i = 0; i < n && b != NULL && measured; i++)
        measured = measure_item(r, b, shape, &items[i]);
    bench_case_destroy(b);
    return measured ? CLI_OK : failed(shape);
}

static bool measure_decode(bench_run *r, const bench_shape *shape, bench_attention attention)
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

int bench_decode_item(bench_run *r, const bench_shape *shape, bench_attention attention)
{
    return measure_decode(r, shape, attention) ? CLI_OK : failed(shape);
}

/* ---- A shape of the user ----------------------------------------------------------------------------------------- */

/* By oneDNN, by dense attention, by NSA. */
static int measure_decodes(bench_run *r, const bench_shape *shape)
{
    static const bench_attention order[] = {BENCH_ONEDNN, BENCH_DENSE, BENCH_NSA};
    int exit_code = CLI_OK;
    for (int i = 0; i < ARGS_COUNT(order) && exit_code == CLI_OK; i++)
        exit_code = bench_decode_item(r, shape, order[i]);
    return exit_code;
}

int bench_shape_by_length(bench_run *r, bench_shape shape, const int_list *lengths)
{
    static const bench_item items[] = {
        {BENCH_FORWARD, BENCH_DENSE},  {BENCH_FORWARD, BENCH_ONEDNN}, {BENCH_FORWARD, BENCH_NSA},
        {BENCH_BACKWARD, BENCH_DENSE}, {BENCH_BACKWARD, BENCH_NSA},   {BENCH_PREFILL, BENCH_ONEDNN},
        {BENCH_PREFILL, BENCH_DENSE},  {BENCH_PREFILL, BENCH_NSA},
    };
    int exit_code = CLI_OK;
    for (int i = 0; i < lengths->n && exit_code == CLI_OK; i++) {
        shape.seqlen = (int32_t)lengths->item[i];
        exit_code = bench_items(r, &shape, items, ARGS_COUNT(items));
        if (exit_code == CLI_OK)
            exit_code = measure_decodes(r, &shape);
    }
    return exit_code;
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

typedef struct items_at {
    int32_t seqlen;
    const bench_item *items;
    int n;
} items_at;

/* Of 16/1 heads. */
static int training(bench_run *r, int32_t d_qk, int32_t d_v, const items_at *at, int n)
{
    int exit_code = CLI_OK;
    for (int i = 0; i < n && exit_code == CLI_OK; i++) {
        const bench_shape shape = bench_shape_of(r, 16, 1, d_qk, d_v, NSA_BF16, at[i].seqlen);
        exit_code = bench_items(r, &shape, at[i].items, at[i].n);
    }
    return exit_code;
}

/* Dense attention, a minute at 64k, takes most of the time: what nothing is compared with is left out there. */
static int training_128(bench_run *r)
{
    static const bench_item all[] = {
        {BENCH_FORWARD, BENCH_DENSE},     {BENCH_FORWARD, BENCH_ONEDNN}, {BENCH_FORWARD, BENCH_NSA},
        {BENCH_FORWARD_GIVEN, BENCH_NSA}, {BENCH_COMPRESS, BENCH_NSA},   {BENCH_CMP_ATTN, BENCH_NSA},
        {BENCH_SELECT, BENCH_NSA},        {BENCH_SLC_ATTN, BENCH_NSA},   {BENCH_WIN_ATTN, BENCH_NSA},
        {BENCH_GATE, BENCH_NSA},          {BENCH_BACKWARD, BENCH_NSA},
    };
    static const bench_item forward[] = {
        {BENCH_FORWARD, BENCH_DENSE}, {BENCH_FORWARD, BENCH_NSA}, {BENCH_FORWARD_GIVEN, BENCH_NSA}};
    static const items_at at[] = {{8192, all, ARGS_COUNT(all)},
                                  {16384, all, ARGS_COUNT(all)},
                                  {32768, all, ARGS_COUNT(all)},
                                  {65536, forward, ARGS_COUNT(forward)}};
    return training(r, 128, 128, at, ARGS_COUNT(at));
}

static int training_192(bench_run *r)
{
    static const bench_item all[] = {{BENCH_FORWARD, BENCH_DENSE},
                                     {BENCH_FORWARD, BENCH_ONEDNN},
                                     {BENCH_FORWARD, BENCH_NSA},
                                     {BENCH_BACKWARD, BENCH_NSA}};
    static const bench_item both[] = {{BENCH_FORWARD, BENCH_NSA}, {BENCH_BACKWARD, BENCH_NSA}};
    static const items_at at[] = {{8192, all, ARGS_COUNT(all)},
                                  {16384, both, ARGS_COUNT(both)},
                                  {32768, both, ARGS_COUNT(both)},
                                  {65536, both, 1}};
    return training(r, 192, 128, at, ARGS_COUNT(at));
}

static int decoding(bench_run *r, int32_t d_qk, int32_t d_v)
{
    static const int32_t lengths[] = {8192, 16384, 32768, 65536};
    int exit_code = CLI_OK;
    for (int i = 0; i < ARGS_COUNT(lengths) && exit_code == CLI_OK; i++) {
        const bench_shape shape = bench_shape_of(r, 64, 4, d_qk, d_v, NSA_BF16, lengths[i]);
        exit_code = measure_decodes(r, &shape);
    }
    return exit_code;
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
    static const bench_item forward = {BENCH_FORWARD, BENCH_NSA};
    const bench_shape bf16 = bench_shape_of(r, 16, 1, 128, 128, NSA_BF16, 16384);
    const bench_shape f32 = bench_shape_of(r, 16, 1, 128, 128, NSA_F32, 16384);
    const int exit_code = bench_items(r, &bf16, &forward, 1);
    return exit_code == CLI_OK ? bench_items(r, &f32, &forward, 1) : exit_code;
}

/* From the best instruction set down, by NSA_DISABLE_CPU, which every new context reads. */
static int instruction_sets(bench_run *r)
{
    static const char *const sets[] = {
#if defined(__aarch64__)
        "neonbf16",
        "neon",
#else
        "amx",
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
    static const bench_item items[] = {{BENCH_FORWARD, BENCH_NSA}, {BENCH_BACKWARD, BENCH_NSA}};
    const bench_shape shape = bench_shape_of(r, 16, 1, 128, 128, NSA_BF16, 16384);
    return bench_items(r, &shape, items, 2);
}

static int one_and_two_threads(bench_run *r)
{
    const int exit_code = with_ctx(r, 1, forward_backward_16k);
    return exit_code == CLI_OK ? with_ctx(r, 2, forward_backward_16k) : exit_code;
}

static int groups(bench_run *r)
{
    static const int32_t ds[] = {64, 128}, sizes[] = {16, 7, 4, 2, 1};
    static const bench_item forward = {BENCH_FORWARD, BENCH_NSA};
    int exit_code = CLI_OK;
    for (int i = 0; i < ARGS_COUNT(ds); i++)
        for (int j = 0; j < ARGS_COUNT(sizes) && exit_code == CLI_OK; j++) {
            const bench_shape shape = bench_shape_of(r, 2 * sizes[j], 2, ds[i], ds[i], NSA_BF16, 16384);
            exit_code = bench_items(r, &shape, &forward, 1);
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
    int exit_code = CLI_OK;
    for (int i = 0; i < ARGS_COUNT(sections) && exit_code == CLI_OK; i++) {
        if (sections[i].two_threads && omp_get_num_procs() < 2)
            continue;
        bench_report_section(r->report, sections[i].title);
        exit_code = sections[i].run(r);
    }
    bench_report_end(r->report, seconds_now() - start);
    return exit_code;
}
