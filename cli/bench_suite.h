/* Which shapes `nsa bench` measures. Both return the exit code. */
#ifndef CLI_BENCH_SUITE_H
#define CLI_BENCH_SUITE_H

#include "cli/args.h"
#include "cli/bench_report.h"

typedef struct bench_run {
    const nsa_ctx *ctx;
    bench_report *report;
    bench_effort effort;
    double onednn_seconds; /* what a repetition by oneDNN may take; at great lengths longer ones are left out */
    int64_t onednn_block;  /* 0: not chosen yet */
    int64_t seed;
} bench_run;

/* One shape at some lengths: forward, backward, prefill, decode. */
int bench_shape_by_length(bench_run *r, bench_shape shape, const int_list *lengths);

/* All that the project promises about speed. */
int bench_suite(bench_run *r);

#endif
