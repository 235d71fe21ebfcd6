/* Which shapes `nsa bench` measures. What returns an int returns the exit code. */
#ifndef CLI_BENCH_SUITE_H
#define CLI_BENCH_SUITE_H

#include "cli/args.h"
#include "cli/bench_report.h"

typedef struct bench_run {
    const nsa_ctx *ctx;
    const bench_device *device;
    bench_report *report;
    bool ops[BENCH_N_OPS], attentions[BENCH_N_ATTENTIONS]; /* what is wanted */
    bench_effort effort;
    double onednn_seconds; /* what a repetition by oneDNN may take; at great lengths longer ones are left out */
    int64_t onednn_block;  /* 0: not chosen yet */
    int64_t seed;
} bench_run;

/* A line of the table. */
typedef struct bench_item {
    bench_op op;
    bench_attention attention;
} bench_item;

/* Those of a shape that are wanted, in their order. What a GPU has no memory or no kernel for is left out and told. */
int bench_items(bench_run *r, const bench_shape *shape, const bench_item *items, int n);

/* The same for a decoded token. */
int bench_decode_item(bench_run *r, const bench_shape *shape, bench_attention attention);

/* Batch 1, mean phi, the paper's blocks. */
bench_shape bench_shape_of(const bench_run *r, int32_t heads_q, int32_t heads_kv, int32_t d_qk, int32_t d_v,
                           nsa_dtype dtype, int32_t seqlen);

/* One shape at some lengths: forward, backward, prefill, decode. */
int bench_shape_by_length(bench_run *r, bench_shape shape, const int_list *lengths);

/* All that the project promises about speed. */
int bench_suite(bench_run *r);

/* The same on a GPU (bench_gpu.c, in builds with CUDA). */
int bench_gpu_by_length(bench_run *r, bench_shape shape, const int_list *lengths);
int bench_gpu_suite(bench_run *r);

#endif
