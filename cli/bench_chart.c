#include "cli/bench_chart.h"

#include "cli/args.h"
#include "cli/chart.h"
#include "cli/cli.h"
#include "cli/draw.h"
#include "lm/error.h"
#include "lm/json.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_PANELS = 4, MAX_SERIES = PALETTE_SIZE, MAX_NAME = 64, MAX_LINE = 4096 };

/* Ours, in the order of their colours; baselines follow as they come. */
static const char *const names[] = {"NSA", "NSA, clustered", "NSA, shared K and V", "dense", "dense by oneDNN"};

void bench_chart_add(bench_chart *c, const bench_point *point)
{
    if (c->n < BENCH_MAX_POINTS)
        c->points[c->n++] = *point;
}

void bench_point_name(bench_point *point, const char *attention, bool clustered, bool shared_kv)
{
    const char *name = attention;
    if (strcmp(attention, "nsa") == 0)
        name = names[clustered ? 1 : shared_kv ? 2 : 0];
    else if (strcmp(attention, "onednn") == 0)
        name = names[4];
    snprintf(point->name, sizeof point->name, "%s", name);
}

/* ---- Files ------------------------------------------------------------------------------------------------------- */

static void copy_word(char *to, size_t size, const cJSON *object, const char *key)
{
    const char *word = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(object, key));
    snprintf(to, size, "%s", word != NULL ? word : "");
}

static int32_t int_of(const cJSON *object, const char *key)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    return cJSON_IsNumber(item) ? item->valueint : 0; /* which is clamped */
}

static int read_line(bench_chart *c, const char *path, const char *text, int line)
{
    char where[MAX_LINE], attention[48], selection[16];
    snprintf(where, sizeof where, "%.*s: line %d", MAX_LINE - 32, path, line);
    cJSON *object = json_parse(where, text, " \t\r\n");
    if (object == NULL)
        return cli_fail("%s", lm_error());
    bench_point p = {.threads = int_of(object, "threads"),
                     .heads_q = int_of(object, "heads_q"),
                     .heads_kv = int_of(object, "heads_kv"),
                     .d_qk = int_of(object, "d_qk"),
                     .d_v = int_of(object, "d_v"),
                     .batch = int_of(object, "batch"),
                     .seqlen = int_of(object, "seqlen")};
    const cJSON *ms = cJSON_GetObjectItemCaseSensitive(object, "ms");
    p.ms = cJSON_IsNumber(ms) ? ms->valuedouble : 0;
    copy_word(p.op, sizeof p.op, object, "op");
    copy_word(p.machine, sizeof p.machine, object, "gpu");
    if (p.machine[0] != '\0')
        p.threads = 0;
    else
        copy_word(p.machine, sizeof p.machine, object, "cpu");
    copy_word(p.date, sizeof p.date, object, "date");
    copy_word(p.isa, sizeof p.isa, object, "isa");
    copy_word(p.dtype, sizeof p.dtype, object, "dtype");
    copy_word(attention, sizeof attention, object, "attention");
    copy_word(selection, sizeof selection, object, "selection");
    bench_point_name(&p, attention, strcmp(selection, "clustered") == 0,
                     cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(object, "shared_kv")));
    cJSON_Delete(object);
    if (p.op[0] == '\0' || p.name[0] == '\0' || p.seqlen <= 0 || !(p.ms > 0))
        return cli_fail("%s: is not that of nsa bench --json", where);
    if (strcmp(selection, "given") != 0)
        bench_chart_add(c, &p);
    return CLI_OK;
}

int bench_chart_read(bench_chart *c, const char *path)
{
    FILE *file = fopen(path, "r");
    if (file == NULL)
        return cli_fail("%s: %s", path, strerror(errno));
    char text[MAX_LINE];
    int exit_code = CLI_OK;
    for (int line = 1; exit_code == CLI_OK && fgets(text, sizeof text, file) != NULL; line++)
        exit_code = read_line(c, path, text, line);
    if (exit_code == CLI_OK && ferror(file))
        exit_code = cli_fail("%s: %s", path, strerror(errno));
    fclose(file);
    return exit_code;
}

/* ---- Panels ------------------------------------------------------------------------------------------------------ */

typedef struct panel_data {
    const bench_point *first;
    int n[MAX_SERIES], n_lengths;
    double lengths[ARGS_MAX_LIST], x[MAX_SERIES][ARGS_MAX_LIST], y[MAX_SERIES][ARGS_MAX_LIST];
    char labels[ARGS_MAX_LIST][16], title[160];
    const char *label[ARGS_MAX_LIST];
    chart_series series[MAX_SERIES];
} panel_data;

/* The chart while it is put together. */
typedef struct drawing {
    const bench_chart *chart;
    const bench_point *first; /* of the first panel: its machine is the chart's */
    int n_series, n_panels;
    char name[MAX_SERIES][MAX_NAME];
    panel_data data[MAX_PANELS];
    chart_panel panels[MAX_PANELS];
} drawing;

/* "H200" of "NVIDIA H200", "A100" of "NVIDIA A100-SXM4-80GB". */
static void short_machine(const char *machine, char *out, size_t size)
{
    const char *model = strncmp(machine, "NVIDIA ", 7) == 0 ? machine + 7 : machine;
    snprintf(out, size, "%.*s", (int)strcspn(model, " -"), model);
}

static bool foreign(const drawing *d, const bench_point *p)
{
    return strcmp(p->machine, d->first->machine) != 0;
}

static void full_name(const drawing *d, const bench_point *p, char name[MAX_NAME])
{
    char machine[12];
    short_machine(p->machine, machine, sizeof machine);
    if (foreign(d, p))
        snprintf(name, MAX_NAME, "%s (%s)", p->name, machine);
    else
        snprintf(name, MAX_NAME, "%s", p->name);
}

static int series_of(const drawing *d, const bench_point *p)
{
    char name[MAX_NAME];
    full_name(d, p, name);
    for (int i = 0; i < d->n_series; i++)
        if (strcmp(d->name[i], name) == 0)
            return i;
    return -1;
}

/* A batch may fill the same memory at each length. */
static bool same_batch(const bench_point *a, const bench_point *b)
{
    return a->batch == b->batch || (int64_t)a->batch * a->seqlen == (int64_t)b->batch * b->seqlen;
}

static bool comparable(const bench_point *p, const bench_point *first)
{
    return strcmp(p->op, first->op) == 0 && p->heads_q == first->heads_q && p->heads_kv == first->heads_kv &&
           p->d_qk == first->d_qk && p->d_v == first->d_v && same_batch(p, first) &&
           (p->threads == first->threads || p->threads == 0) &&
           (p->isa[0] == '\0' || (strcmp(p->isa, first->isa) == 0 && strcmp(p->dtype, first->dtype) == 0));
}

static const bench_point *first_of(const bench_chart *c, const char *op)
{
    for (int i = 0; i < c->n; i++)
        if (strcmp(c->points[i].op, op) == 0 && c->points[i].isa[0] != '\0')
            return &c->points[i];
    return NULL;
}

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

/* Where the line has its points in order. Of a length that was measured twice the first counts: it has its baselines
 * beside it. */
static void add_point(panel_data *p, int s, const bench_point *point)
{
    int at = 0;
    while (at < p->n[s] && p->x[s][at] < point->seqlen)
        at++;
    if (p->n[s] == ARGS_MAX_LIST || (at < p->n[s] && (int32_t)p->x[s][at] == point->seqlen))
        return;
    const size_t moved = (size_t)(p->n[s] - at) * sizeof p->x[s][0];
    memmove(&p->x[s][at + 1], &p->x[s][at], moved);
    memmove(&p->y[s][at + 1], &p->y[s][at], moved);
    p->x[s][at] = point->seqlen;
    p->y[s][at] = point->ms;
    p->n[s]++;
    add_length(p, point->seqlen);
}

static void add_panel(drawing *d, const char *op, const char *what)
{
    panel_data *p = &d->data[d->n_panels];
    p->first = first_of(d->chart, op);
    if (p->first == NULL)
        return;
    for (int i = 0; i < d->chart->n; i++) {
        const bench_point *point = &d->chart->points[i];
        const int s = series_of(d, point);
        if (s >= 0 && comparable(point, p->first))
            add_point(p, s, point);
    }
    for (int s = 0; s < d->n_series; s++)
        p->series[s] = (chart_series){d->name[s], s, CHART_MARKED, p->n[s], p->x[s], p->y[s]};
    const int used = snprintf(p->title, sizeof p->title, "%s: %d/%d heads, d %d/%d", what, p->first->heads_q,
                              p->first->heads_kv, p->first->d_qk, p->first->d_v);
    if (p->first->batch != d->first->batch)
        snprintf(p->title + used, sizeof p->title - (size_t)used, ", %lldk tokens in all",
                 (long long)p->first->batch * p->first->seqlen / 1024);
    const chart_axis x = {"tokens", true, p->n_lengths, p->lengths, p->label}, y = {.label = "ms", .log = true};
    d->panels[d->n_panels++] = (chart_panel){p->title, x, y, d->n_series, p->series};
}

static void add_series(drawing *d, const bench_point *p)
{
    if (d->n_series < MAX_SERIES && series_of(d, p) < 0)
        full_name(d, p, d->name[d->n_series++]);
}

/* Lines of all panels, since they share one legend: ours by colour, then the others. */
static void name_series(drawing *d, int n_ops, const char *const *ops)
{
    for (int round = 0; round <= ARGS_COUNT(names); round++)
        for (int o = 0; o < n_ops; o++) {
            const bench_point *first = first_of(d->chart, ops[o]);
            for (int i = 0; i < d->chart->n && first != NULL; i++) {
                const bench_point *p = &d->chart->points[i];
                if (comparable(p, first) && (round == ARGS_COUNT(names) || strcmp(p->name, names[round]) == 0))
                    add_series(d, p);
            }
        }
}

static void write_subtitle(const drawing *d, char *out, size_t size)
{
    const bench_point *x = d->first;
    int used = snprintf(out, size, "%s (%s)", x->machine, x->isa);
    if (x->threads > 0)
        used += snprintf(out + used, size - (size_t)used, ", %d threads", x->threads);
    used += snprintf(out + used, size - (size_t)used, ", %s, batch %d, causal", x->dtype, x->batch);
    for (int i = 0; i < d->chart->n; i++) {
        const bench_point *p = &d->chart->points[i];
        if (foreign(d, p) && series_of(d, p) >= 0) {
            snprintf(out + used, size - (size_t)used, "; others: %s, %s", p->machine, p->date);
            return;
        }
    }
}

int bench_chart_draw(const bench_chart *c, const char *path)
{
    static const char *const ops[MAX_PANELS] = {"forward", "backward", "prefill", "decode"};
    static const char *const whats[MAX_PANELS] = {"forward (training)", "backward", "prefill", "decode, one token"};
    char subtitle[400] = "";
    drawing *d = calloc(1, sizeof *d);
    if (d == NULL)
        return cli_fail("out of memory");
    d->chart = c;
    for (int i = 0; i < MAX_PANELS && d->first == NULL; i++)
        d->first = first_of(c, ops[i]);
    if (d->first != NULL) {
        name_series(d, MAX_PANELS, ops);
        for (int i = 0; i < MAX_PANELS; i++)
            add_panel(d, ops[i], whats[i]);
        write_subtitle(d, subtitle, sizeof subtitle);
    }
    const line_chart chart = {"Time by length: NSA against dense attention", subtitle, d->n_panels, 2, d->panels};
    const int exit_code = chart_lines(path, &chart);
    free(d);
    return exit_code;
}
