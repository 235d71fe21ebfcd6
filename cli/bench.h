/* nsa bench: what is measured (bench_case.c), against which ceiling (bench_peak.c), and how it is told (bench.c). */
#ifndef CLI_BENCH_H
#define CLI_BENCH_H

#include <nsa.h>

#include <stdbool.h>

/* Multiply-adds of all threads in registers, GFLOP/s, in the instruction set `isa` (nsa_ctx_isa). */
double bench_peak_gflops(const char *isa, int32_t n_threads);

typedef struct bench_shape {
    nsa_config cfg;
    nsa_dtype dtype;
    int32_t batch, seqlen;
    nsa_phi_kind phi;
    int64_t seed;
} bench_shape;

typedef enum bench_op { BENCH_FORWARD, BENCH_BACKWARD, BENCH_PREFILL, BENCH_DECODE, BENCH_N_OPS } bench_op;
typedef enum bench_attention { BENCH_NSA, BENCH_DENSE, BENCH_N_ATTENTIONS } bench_attention;

extern const char *const bench_op_names[BENCH_N_OPS];
extern const char *const bench_attention_names[BENCH_N_ATTENTIONS];

/* 2 (d_qk + d_v) per query head and attended pair of cmp, slc and win, or of dense attention; 2.5 times that for
 * backward. Nothing else counts: not phi, not the selection, not what a kernel computes twice. */
double bench_flop(const bench_shape *shape, bench_op op, bench_attention attention);

/* The tensors of one shape and all that its operations need. NULL: no memory. */
typedef struct bench_case bench_case;
bench_case *bench_case_create(const nsa_ctx *ctx, const bench_shape *shape);
void bench_case_destroy(bench_case *b);

typedef struct bench_time {
    double ms; /* median */
    int reps;
} bench_time;

/* Runs for about `seconds` and at least once. In this order: backward needs what forward left, decode what prefill. */
nsa_status bench_measure(bench_case *b, bench_op op, bench_attention attention, double seconds, bench_time *time);

#endif
