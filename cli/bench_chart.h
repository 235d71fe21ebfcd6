/* Milliseconds over length, a panel per operation: of a run, or of files that runs have left. */
#ifndef CLI_BENCH_CHART_H
#define CLI_BENCH_CHART_H

#include <stdbool.h>
#include <stdint.h>

enum { BENCH_MAX_POINTS = 1024 };

/* A measurement. What is compared has the same heads, channels, kernels, type and threads; baselines have no isa. */
typedef struct bench_point {
    char op[16], name[48];       /* name: of its line in the chart */
    char machine[128], date[16]; /* the CPU or the GPU */
    char isa[16], dtype[8];
    int32_t heads_q, heads_kv, d_qk, d_v, batch, seqlen;
    int32_t threads; /* 0: of a GPU */
    double ms;
} bench_point;

/* Its name, from what the lines of nsa bench say. */
void bench_point_name(bench_point *point, const char *attention, bool clustered, bool shared_kv);

typedef struct bench_chart {
    int n;
    bench_point points[BENCH_MAX_POINTS];
} bench_chart;

void bench_chart_add(bench_chart *c, const bench_point *point);

/* Both return the exit code. The lines of a file are those of nsa bench --json; attentions that it does not know are
 * baselines, called as they are there. */
int bench_chart_read(bench_chart *c, const char *path);

/* Each panel has the first shape that the operation was measured with. What ran on another machine than the first says
 * so. */
int bench_chart_draw(const bench_chart *c, const char *path);

#endif
