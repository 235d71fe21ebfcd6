#include "cli/bench_report.h"

#include "cli/bench_chart.h"
#include "cli/cli.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *const dtype_names[] = {[NSA_F32] = "f32", [NSA_BF16] = "bf16", [NSA_F16] = "f16"};
static const char *const phi_names[] = {"mean", "linear", "gated_token", "gated_channel", "mlp"};

/* With --json standard output has JSON alone. */
static FILE *table(const bench_report *r)
{
    return r->json ? stderr : stdout;
}

/* ---- Peaks ------------------------------------------------------------------------------------------------------- */

/* Measured once. Only instruction sets with products of bf16 have another peak for it. */
static double peak_of(bench_report *r, const nsa_ctx *ctx, nsa_dtype dtype)
{
    const char *isa = nsa_ctx_isa(ctx);
    if (r->gpu != NULL)
        return dtype != NSA_F32 ? r->gpu->peak_gflops : 0; /* f16 has the rate of bf16 */
    const bool has_bf16 = strstr(isa, "bf16") != NULL || strcmp(isa, "amx") == 0;
    dtype = dtype == NSA_BF16 && has_bf16 ? NSA_BF16 : NSA_F32;
    const int32_t threads = nsa_ctx_threads(ctx);
    for (int i = 0; i < r->n_peaks; i++)
        if (strcmp(r->peaks[i].isa, isa) == 0 && r->peaks[i].dtype == dtype && r->peaks[i].threads == threads)
            return r->peaks[i].gflops;
    const double gflops = bench_peak_gflops(isa, dtype, threads);
    if (r->n_peaks < BENCH_MAX_PEAKS)
        r->peaks[r->n_peaks++] = (bench_peak){isa, dtype, threads, gflops};
    return gflops;
}

/* ---- Rows -------------------------------------------------------------------------------------------------------- */

static bool on_terminal(void)
{
    return isatty(STDERR_FILENO) == 1;
}

static void clear_doing(void)
{
    if (on_terminal())
        fputs("\r\033[K", stderr);
}

static void print_machine(bench_report *r, const nsa_ctx *ctx)
{
    const bench_gpu *gpu = r->gpu;
    if (gpu == NULL)
        fprintf(table(r), "%s (%s), %d threads; peak, GFLOP/s: %.1f of f32, %.1f of bf16\n\n", r->cpu, r->isa,
                nsa_ctx_threads(ctx), peak_of(r, ctx, NSA_F32), peak_of(r, ctx, NSA_BF16));
    else
        fprintf(table(r), "%s (%s), driver %s, CUDA %s; peak, GFLOP/s: %.0f of bf16; copies, GB/s: %.0f\n\n", gpu->name,
                r->isa, gpu->driver, gpu->cuda, gpu->peak_gflops, gpu->copy_gbs);
}

void bench_report_start(bench_report *r, const nsa_ctx *ctx, const bench_gpu *gpu, bool json)
{
    r->json = json;
    r->gpu = gpu;
    r->isa = nsa_ctx_isa(ctx);
    cli_cpu_model(r->cpu, sizeof r->cpu);
    print_machine(r, ctx);
    fprintf(table(r), "%-10s %-9s %-4s %-10s %3s %7s %7s %8s %4s %11s %8s %6s\n", "op", "attention", "type", "isa",
            "thr", "heads", "d", "tokens", "reps", "ms", "GFLOP/s", "peak");
    fflush(table(r));
}

void bench_report_section(bench_report *r, const char *title)
{
    r->section = title;
}

static void print_section(bench_report *r)
{
    clear_doing();
    if (r->section != NULL)
        fprintf(table(r), "\n%s\n", r->section);
    r->section = NULL;
}

void bench_report_end(const bench_report *r, double seconds)
{
    clear_doing();
    fprintf(table(r), "\nIn %.0f s\n", seconds);
}

/* "nsa", "dense", "onednn"; forward with slc_idx given is "nsa given". */
static const char *attention_word(bench_op op, bench_attention attention)
{
    return op == BENCH_FORWARD_GIVEN ? "nsa given" : bench_attention_names[attention];
}

void bench_report_doing(const bench_report *r, const bench_shape *shape, bench_op op, bench_attention attention)
{
    (void)r;
    if (!on_terminal())
        return;
    fprintf(stderr, "\r\033[K... %s %s, %d/%d heads, d %d/%d, %d tokens", bench_op_names[op],
            attention_word(op, attention), shape->cfg.n_heads_q, shape->cfg.n_heads_kv, shape->cfg.d_qk, shape->cfg.d_v,
            shape->seqlen);
    fflush(stderr);
}

void bench_report_left_out(bench_report *r, const bench_shape *shape, bench_op op, bench_attention attention,
                           const char *why)
{
    char heads[16], d[16];
    print_section(r);
    snprintf(heads, sizeof heads, "%d/%d", shape->cfg.n_heads_q, shape->cfg.n_heads_kv);
    snprintf(d, sizeof d, "%d/%d", shape->cfg.d_qk, shape->cfg.d_v);
    fprintf(table(r), "%-10s %-9s %-4s %-10s %3s %7s %7s %8d  left out: %s\n", bench_op_names[op],
            attention_word(op, attention), "", "", "", heads, d, shape->seqlen, why);
    fflush(table(r));
}

static bool same_shape(const bench_shape *a, const bench_shape *b)
{
    return a->cfg.n_heads_q == b->cfg.n_heads_q && a->cfg.n_heads_kv == b->cfg.n_heads_kv &&
           a->cfg.d_qk == b->cfg.d_qk && a->cfg.d_v == b->cfg.d_v && a->batch == b->batch;
}

/* Dense attention takes the same time, whatever the queries, and has one K and V. */
static bool same_kind(const bench_record *a, const bench_record *b)
{
    return a->attention != BENCH_NSA || b->attention != BENCH_NSA ||
           (a->shape.clustered == b->shape.clustered && a->shape.shared_kv == b->shape.shared_kv);
}

bool bench_report_comparable(const bench_report *r, const bench_record *x, const bench_record *like)
{
    const bool onednn = x->attention == BENCH_ONEDNN;
    const char *isa = onednn ? r->isa : x->isa;
    const nsa_dtype dtype = onednn ? bench_onednn_dtype(like->shape.dtype) : like->shape.dtype;
    return same_shape(&x->shape, &like->shape) && x->shape.dtype == dtype && isa != NULL && like->isa != NULL &&
           strcmp(isa, like->isa) == 0;
}

const bench_record *bench_report_find(const bench_report *r, const bench_record *like, bench_op op,
                                      bench_attention attention, int32_t threads)
{
    for (int i = r->n - 1; i >= 0; i--) {
        const bench_record *x = &r->records[i];
        if (x->op == op && x->attention == attention && x->threads == threads &&
            x->shape.seqlen == like->shape.seqlen && same_kind(x, like) && bench_report_comparable(r, x, like))
            return x;
    }
    return NULL;
}

typedef struct notes {
    char text[240];
    size_t used;
} notes;

static void note(notes *n, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void note(notes *n, const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    if (n->used < sizeof n->text)
        n->used += (size_t)vsnprintf(n->text + n->used, sizeof n->text - n->used, format, ap);
    va_end(ap);
}

/* How it compares with what was measured before. */
static void compare(const bench_report *r, const bench_record *x, notes *n)
{
    const double ms = x->time.ms;
    for (int a = (int)x->attention + 1; a < BENCH_N_ATTENTIONS; a++) {
        const bench_record *y = bench_report_find(r, x, x->op, (bench_attention)a, x->threads);
        if (y != NULL)
            note(n, "  %.2fx %s", y->time.ms / ms, a == BENCH_DENSE ? "dense" : "oneDNN");
    }
    const bench_record *forward = bench_report_find(r, x, BENCH_FORWARD, x->attention, x->threads);
    if (x->op == BENCH_BACKWARD && forward != NULL)
        note(n, "  %.2f times forward", ms / forward->time.ms);
    if (x->op == BENCH_FORWARD_GIVEN && forward != NULL)
        note(n, "  selection is %.1f%% of forward", 100 * (1 - ms / forward->time.ms));
    const bench_record *one = x->threads > 1 ? bench_report_find(r, x, x->op, x->attention, 1) : NULL;
    if (one != NULL)
        note(n, "  %.2fx one thread", one->time.ms / ms);
    if (x->floor_ms > 0)
        note(n, "  floor %.3f ms, %.1f%%", x->floor_ms, 100 * x->floor_ms / ms);
    if (x->sets == 1)
        note(n, "  one set of inputs");
    if (x->overlap >= 0)
        note(n, "  %.1f%% of the free blocks were selected by the token before", 100 * x->overlap);
    if ((x->op == BENCH_FORWARD || x->op == BENCH_BACKWARD) && x->attention == BENCH_NSA)
        note(n, "  workspace %.1f MB, %.2f of q k v o", 1e-6 * (double)x->workspace,
             (double)x->workspace / (double)x->tensors);
    if (x->residuals > 0)
        note(n, "  residuals %.1f MB", 1e-6 * (double)x->residuals);
    if (x->shape.batch > 1)
        note(n, "  batch %d", x->shape.batch);
    if (x->shape.shared_kv)
        note(n, "  branches share K and V");
    if (x->op == BENCH_TRAIN_STEP)
        note(n, "  %.0f tokens/s", 1e3 * x->shape.seqlen * x->shape.batch / ms);
}

static void print_row(bench_report *r, const bench_record *x)
{
    const bench_shape *s = &x->shape;
    char heads[16], d[16], gflops[16] = "", peak[16] = "";
    notes n = {.used = 0};
    snprintf(heads, sizeof heads, "%d/%d", s->cfg.n_heads_q, s->cfg.n_heads_kv);
    snprintf(d, sizeof d, "%d/%d", s->cfg.d_qk, s->cfg.d_v);
    if (x->gflops > 0) {
        snprintf(gflops, sizeof gflops, "%.1f", x->gflops);
        if (x->peak > 0)
            snprintf(peak, sizeof peak, "%.1f%%", 100 * x->gflops / x->peak);
    }
    compare(r, x, &n);
    print_section(r);
    fprintf(table(r), "%-10s %-9s %-4s %-10s %3d %7s %7s %8d %4d %11.3f %8s %6s%s\n", bench_op_names[x->op],
            attention_word(x->op, x->attention), dtype_names[s->dtype], x->isa != NULL ? x->isa : "", x->threads, heads,
            d, s->seqlen, x->time.reps, x->time.ms, gflops, peak, n.text);
    fflush(table(r));
}

/* ---- JSON -------------------------------------------------------------------------------------------------------- */

static void print_word(const char *key, const char *word)
{
    const char *quote = word != NULL ? "\"" : "";
    printf("\"%s\":%s%s%s,", key, quote, word != NULL ? word : "null", quote);
}

/* 0 is "not known". */
static void print_number(const char *key, double value)
{
    if (value > 0)
        printf("\"%s\":%.6g,", key, value);
    else
        printf("\"%s\":null,", key);
}

static void print_json(const bench_report *r, const bench_record *x)
{
    const bench_shape *s = &x->shape;
    const bool nsa = x->attention == BENCH_NSA;
    const time_t now = time(NULL);
    struct tm utc;
    char date[16] = "";
    if (gmtime_r(&now, &utc) != NULL)
        (void)strftime(date, sizeof date, "%Y-%m-%d", &utc);
    putchar('{');
    print_word("op", bench_op_names[x->op]);
    print_word("attention", bench_attention_names[x->attention]);
    print_word("phi", nsa ? phi_names[s->phi] : NULL);
    print_word("device", r->gpu != NULL ? "cuda" : "cpu");
    print_word("cpu", r->cpu);
    if (r->gpu != NULL) {
        print_word("gpu", r->gpu->name);
        print_word("driver", r->gpu->driver);
        print_word("cuda", r->gpu->cuda);
    }
    print_word("dtype", dtype_names[s->dtype]);
    printf("\"batch\":%d,\"seqlen\":%d,\"heads_q\":%d,\"heads_kv\":%d,\"d_qk\":%d,\"d_v\":%d,\"threads\":%d,", s->batch,
           s->seqlen, s->cfg.n_heads_q, s->cfg.n_heads_kv, s->cfg.d_qk, s->cfg.d_v, x->threads);
    print_word("isa", x->isa);
    print_word("selection", !nsa                           ? NULL
                            : x->op == BENCH_FORWARD_GIVEN ? "given"
                            : s->clustered                 ? "clustered"
                                                           : "random");
    printf("\"reps\":%d,\"ms\":%.6g,", x->time.reps, x->time.ms);
    print_number("gflops", x->gflops);
    print_number("peak_fraction", x->peak > 0 ? x->gflops / x->peak : 0);
    if (r->gpu != NULL) {
        print_number("peak_gflops", r->gpu->peak_gflops);
        print_number("copy_gbs", r->gpu->copy_gbs);
        print_number("floor_ms", x->floor_ms);
        print_number("floor_fraction", x->floor_ms / x->time.ms);
    }
    if (x->sets > 0)
        printf("\"input_sets\":%d,", x->sets);
    if (x->overlap >= 0)
        printf("\"overlap\":%.4g,", x->overlap);
    if (x->tensors > 0)
        printf("\"workspace_bytes\":%zu,\"tensor_bytes\":%zu,", x->workspace, x->tensors);
    if (x->residuals > 0)
        printf("\"residual_bytes\":%zu,", x->residuals);
    if (x->op == BENCH_DECODE && nsa)
        printf("\"shared_kv\":%s,", s->shared_kv ? "true" : "false");
    if (x->rotated > 0)
        printf("\"rotated_bytes\":%lld,", (long long)x->rotated);
    if (x->op == BENCH_TRAIN_STEP)
        printf("\"tokens_per_s\":%.6g,", 1e3 * s->seqlen * s->batch / x->time.ms);
    print_word("date", date);
    print_word("version", nsa_version());
    const char *commit = *cli_commit() != '\0' ? cli_commit() : NULL;
    const char *quote = commit != NULL ? "\"" : "";
    printf("\"commit\":%s%s%s}\n", quote, commit != NULL ? commit : "null", quote);
    fflush(stdout);
}

/* Arithmetic at the rate of bf16 products or bytes at that of copies, whichever takes longer. */
static double floor_of(const bench_gpu *gpu, const bench_record *x)
{
    const bench_work least = bench_least_work(&x->shape, x->op, x->attention);
    const double arithmetic = x->peak > 0 ? least.flop / (1e6 * x->peak) : 0;
    const double bytes = least.bytes / (1e6 * gpu->copy_gbs);
    return arithmetic > bytes ? arithmetic : bytes;
}

void bench_report_add(bench_report *r, const nsa_ctx *ctx, bench_record x)
{
    x.threads = nsa_ctx_threads(ctx);
    x.isa = x.attention == BENCH_ONEDNN ? NULL : nsa_ctx_isa(ctx);
    x.peak = peak_of(r, ctx, x.shape.dtype);
    x.gflops = x.op == BENCH_TRAIN_STEP ? 0 : bench_flop(&x.shape, x.op, x.attention) / (1e6 * x.time.ms);
    x.floor_ms = r->gpu != NULL ? floor_of(r->gpu, &x) : 0;
    print_row(r, &x);
    if (r->json)
        print_json(r, &x);
    if (r->n < BENCH_MAX_RECORDS)
        r->records[r->n++] = x;
}

/* ---- Chart ------------------------------------------------------------------------------------------------------- */

static bench_point point_of(const bench_report *r, const bench_record *x)
{
    const nsa_config *cfg = &x->shape.cfg;
    bench_point p = {.heads_q = cfg->n_heads_q,
                     .heads_kv = cfg->n_heads_kv,
                     .d_qk = cfg->d_qk,
                     .d_v = cfg->d_v,
                     .batch = x->shape.batch,
                     .seqlen = x->shape.seqlen,
                     .threads = r->gpu != NULL ? 0 : x->threads,
                     .ms = x->time.ms};
    snprintf(p.op, sizeof p.op, "%s", bench_op_names[x->op]);
    snprintf(p.machine, sizeof p.machine, "%s", r->gpu != NULL ? r->gpu->name : r->cpu);
    snprintf(p.isa, sizeof p.isa, "%s", x->isa != NULL ? x->isa : "");
    snprintf(p.dtype, sizeof p.dtype, "%s", dtype_names[x->shape.dtype]);
    bench_point_name(&p, bench_attention_names[x->attention], x->shape.clustered, x->shape.shared_kv);
    return p;
}

int bench_report_chart(const bench_report *r, const char *path)
{
    bench_chart *chart = calloc(1, sizeof *chart);
    if (chart == NULL)
        return cli_fail("out of memory");
    for (int i = 0; i < r->n; i++)
        if (r->records[i].op != BENCH_FORWARD_GIVEN) {
            const bench_point point = point_of(r, &r->records[i]);
            bench_chart_add(chart, &point);
        }
    const int exit_code = bench_chart_draw(chart, path);
    free(chart);
    return exit_code;
}
