/* What was measured, told as it comes: a row of a table, a line of JSON; at the end a chart. */
#ifndef CLI_BENCH_REPORT_H
#define CLI_BENCH_REPORT_H

#include "cli/bench.h"

enum { BENCH_MAX_RECORDS = 512, BENCH_MAX_PEAKS = 32 };

typedef struct bench_record {
    bench_op op;
    bench_attention attention;
    bench_shape shape; /* dtype: what the attention computes in */
    const char *isa;   /* NULL: oneDNN's own choice */
    int32_t threads;
    bench_time time;
    double gflops, peak;       /* gflops 0: not counted; peak 0: not known */
    double floor_ms;           /* 0: not known */
    size_t workspace, tensors; /* bytes; tensors 0: neither is known */
    size_t residuals;          /* bytes; 0: not a forward */
    double overlap;            /* bench_overlap; < 0: not known */
    int sets;                  /* of inputs, in turn; 0: not told */
    int64_t rotated;           /* bytes; 0: not decode */
} bench_record;

typedef struct bench_peak {
    const char *isa;
    nsa_dtype dtype;
    int32_t threads;
    double gflops;
} bench_peak;

/* A GPU, and what is measured of it: bf16 products, and copies from its memory to its memory, read and written. */
typedef struct bench_gpu {
    char name[128], driver[32], cuda[16];
    double peak_gflops; /* 0: not known of this GPU */
    double copy_gbs;
} bench_gpu;

typedef struct bench_report {
    bool json;
    char cpu[128];
    const bench_gpu *gpu; /* NULL: the CPU is measured */
    const char *isa;      /* of the context at the start */
    const char *section;  /* not told yet; NULL: none */
    int n, n_peaks;
    bench_record records[BENCH_MAX_RECORDS];
    bench_peak peaks[BENCH_MAX_PEAKS];
} bench_report;

/* The heading, with the peaks of the context. */
void bench_report_start(bench_report *r, const nsa_ctx *ctx, const bench_gpu *gpu, bool json);

/* A line above the rows that follow, if any do. */
void bench_report_section(bench_report *r, const char *title);

/* A line below them. */
void bench_report_end(const bench_report *r, double seconds);

/* On a terminal: what is being measured. */
void bench_report_doing(const bench_report *r, const bench_shape *shape, bench_op op, bench_attention attention);

/* Adds isa, threads, gflops, peak and floor to the record, keeps it, tells it. */
void bench_report_add(bench_report *r, const nsa_ctx *ctx, bench_record record);

/* Tells that something was not measured. */
void bench_report_left_out(bench_report *r, const bench_shape *shape, bench_op op, bench_attention attention,
                           const char *why);

/* Have both the same shape but for the length, and the same kernels? oneDNN's compare with the best of the library. */
bool bench_report_comparable(const bench_report *r, const bench_record *x, const bench_record *like);

/* The last record that compares with `like` at its length, with that many threads. NULL: none. */
const bench_record *bench_report_find(const bench_report *r, const bench_record *like, bench_op op,
                                      bench_attention attention, int32_t threads);

/* ms over length, a panel per operation, each of the first shape that was measured. Returns the exit code. */
int bench_report_chart(const bench_report *r, const char *path);

#endif
