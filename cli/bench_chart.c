#include "cli/bench_report.h"

#include "cli/args.h"
#include "cli/chart.h"

#include <stdio.h>

enum { MAX_PANELS = 4 };

typedef struct panel_data {
    const bench_record *first;
    int n[BENCH_N_ATTENTIONS], n_lengths;
    double lengths[ARGS_MAX_LIST], x[BENCH_N_ATTENTIONS][ARGS_MAX_LIST], y[BENCH_N_ATTENTIONS][ARGS_MAX_LIST];
    char labels[ARGS_MAX_LIST][16], title[80];
    const char *label[ARGS_MAX_LIST];
    chart_series series[BENCH_N_ATTENTIONS];
} panel_data;

static void add_length(panel_data *p, int32_t length)
{
    for (int i = 0; i < p->n_lengths; i++)
        if ((int32_t)p->lengths[i] == length)
            return;
    if (p->n_lengths == ARGS_MAX_LIST)
        return;
    const int i = p->n_lengths++;
    p->lengths[i] = length;
    snprintf(p->labels[i], sizeof p->labels[i], length % 1024 == 0 ? "%dk" : "%d",
             length % 1024 == 0 ? length / 1024 : length);
    p->label[i] = p->labels[i];
}

/* Of a length that was measured twice the first counts: it has its baselines beside it. */
static void add_point(panel_data *p, const bench_record *x)
{
    const bench_attention a = x->attention;
    for (int i = 0; i < p->n[a]; i++)
        if ((int32_t)p->x[a][i] == x->shape.seqlen)
            return;
    if (p->n[a] == ARGS_MAX_LIST)
        return;
    add_length(p, x->shape.seqlen);
    p->x[a][p->n[a]] = x->shape.seqlen;
    p->y[a][p->n[a]++] = x->time.ms;
}

/* All lengths of the first shape that the operation was measured with. False: it was not. */
static bool collect(const bench_report *r, bench_op op, panel_data *p)
{
    for (int i = 0; i < r->n && p->first == NULL; i++)
        if (r->records[i].op == op && r->records[i].attention != BENCH_ONEDNN)
            p->first = &r->records[i];
    for (int i = 0; i < r->n && p->first != NULL; i++) {
        const bench_record *x = &r->records[i];
        if (x->op == op && x->threads == p->first->threads && x->shape.clustered == p->first->shape.clustered &&
            bench_report_comparable(r, x, p->first))
            add_point(p, x);
    }
    return p->first != NULL;
}

static chart_panel make_panel(panel_data *p, const char *what)
{
    static const char *const names[] = {"NSA", "dense", "dense by oneDNN"};
    const bench_shape *s = &p->first->shape;
    for (int a = 0; a < BENCH_N_ATTENTIONS; a++)
        p->series[a] = (chart_series){names[a], a, CHART_MARKED, p->n[a], p->x[a], p->y[a]};
    snprintf(p->title, sizeof p->title, "%s: %d/%d heads, d %d/%d", what, s->cfg.n_heads_q, s->cfg.n_heads_kv,
             s->cfg.d_qk, s->cfg.d_v);
    const chart_axis x = {"tokens", true, p->n_lengths, p->lengths, p->label}, y = {.label = "ms", .log = true};
    return (chart_panel){p->title, x, y, BENCH_N_ATTENTIONS, p->series};
}

int bench_report_chart(const bench_report *r, const char *path)
{
    static const bench_op ops[MAX_PANELS] = {BENCH_FORWARD, BENCH_BACKWARD, BENCH_PREFILL, BENCH_DECODE};
    static const char *const whats[MAX_PANELS] = {"forward (training)", "backward", "prefill", "decode, one token"};
    static panel_data data[MAX_PANELS];
    chart_panel panels[MAX_PANELS];
    char subtitle[200] = "";
    int n = 0;
    for (int i = 0; i < MAX_PANELS; i++)
        if (collect(r, ops[i], &data[n])) {
            panels[n] = make_panel(&data[n], whats[i]);
            n++;
        }
    if (n > 0) {
        const bench_record *x = data[0].first;
        const char *dtype = x->shape.dtype == NSA_F32 ? "f32" : x->shape.dtype == NSA_BF16 ? "bf16" : "f16";
        if (r->gpu != NULL)
            snprintf(subtitle, sizeof subtitle, "%s, %s, batch %d, causal", r->gpu->name, dtype, x->shape.batch);
        else
            snprintf(subtitle, sizeof subtitle, "CPU (%s), %d threads, %s, batch %d, causal", x->isa, x->threads, dtype,
                     x->shape.batch);
    }
    const line_chart chart = {"Time by length: NSA against dense attention", subtitle, n, 2, panels};
    return chart_lines(path, &chart);
}
