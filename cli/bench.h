/*
 * nsa bench. What is measured: one shape's operations (bench_case.c), a decoded token over many caches
 * (bench_decode.c), oneDNN's dense attention (bench_onednn.c), a training step (bench_train.c); how often
 * (bench_time.c) and against which ceiling (bench_peak.c, bench_work.c); how it is told (bench_report.c); which shapes
 * there are without arguments (bench_suite.c; on a GPU bench_gpu.c). What a GPU needs of the CUDA runtime is in
 * bench_cuda.c, its kernels in bench_cuda.cu; a build for the CPU only has neither them nor bench_gpu.c.
 */
#ifndef CLI_BENCH_H
#define CLI_BENCH_H

#include <nsa.h>

#include "cli/bench_random.h"

#include <stddef.h>

/* Dot products of all threads in registers, GFLOP/s: the ceiling of kernels of the instruction set `isa` (nsa_ctx_isa)
 * over tensors of that dtype. */
double bench_peak_gflops(const char *isa, nsa_dtype dtype, int32_t n_threads);

typedef struct bench_shape {
    nsa_config cfg;
    nsa_dtype dtype;
    int32_t batch, seqlen;
    nsa_phi_kind phi;
    int64_t seed;
    bool clustered; /* queries turn slowly from token to token, so that neighbours select much the same */
    bool shared_kv; /* of a cache: its branches share one K and one V */
} bench_shape;

typedef enum bench_op {
    BENCH_FORWARD,
    BENCH_BACKWARD,
    BENCH_PREFILL,
    BENCH_DECODE,
    BENCH_FORWARD_GIVEN, /* forward with slc_idx as an input: all but the selection */
    BENCH_COMPRESS,
    BENCH_CMP_ATTN,
    BENCH_SELECT, /* makes the scores of cmp_attn anew */
    BENCH_SLC_ATTN,
    BENCH_WIN_ATTN,
    BENCH_GATE,
    BENCH_TRAIN_STEP,
    BENCH_N_OPS
} bench_op;

typedef enum bench_attention { BENCH_NSA, BENCH_DENSE, BENCH_ONEDNN, BENCH_N_ATTENTIONS } bench_attention;

extern const char *const bench_op_names[BENCH_N_OPS];
extern const char *const bench_attention_names[BENCH_N_ATTENTIONS];

/* 2 (d_qk + d_v) per query head and attended pair of cmp, slc and win, or of dense attention; 2.5 times that for
 * backward. Nothing else counts: not phi, not the selection, not what a kernel computes twice. 0: no such pairs. */
double bench_flop(const bench_shape *shape, bench_op op, bench_attention attention);

/* What an operation cannot do without: that arithmetic and the selection's scores, and each input and output once. */
typedef struct bench_work {
    double flop, bytes;
} bench_work;
bench_work bench_least_work(const bench_shape *shape, bench_op op, bench_attention attention);

/* Of the selected blocks that are not forced, the share that the token before has selected, too; -1: no token has any.
 * slc_idx: packed, of one sequence. */
double bench_overlap(const nsa_config *cfg, const int32_t *slc_idx, int64_t n_tokens);

/* ---- How often --------------------------------------------------------------------------------------------------- */

typedef struct bench_effort {
    double seconds; /* repetitions take about as long as this together */
    int min_reps;   /* but there are at least as many */
} bench_effort;

typedef struct bench_time {
    double ms; /* median */
    int reps;
} bench_time;

/* Functions that return bool: false after a failure, of which lm_error() tells. */
typedef bool bench_step(void *self);

/* Times run(self) after prepare(self), which may be NULL and is not timed. */
bool bench_repeat(void *self, bench_step *prepare, bench_step *run, const bench_effort *effort, bench_time *time);

/* ---- Where ------------------------------------------------------------------------------------------------------- */

/* Memory that a context's kernels reach, and how time is taken there. */
typedef struct bench_device {
    int n_sets;                  /* sets of inputs that a repetition takes in turn */
    int32_t page_size;           /* of caches */
    nsa_stream stream;           /* of the calls */
    void *(*take)(size_t bytes); /* zeroed; NULL: it does not fit */
    void (*release)(void *p);
    bool (*fill)(void *p, nsa_dtype dtype, int64_t count, const bench_random *random);
    bool (*copy)(void *to, const void *from, size_t bytes); /* ordinary memory or its own */
    bool (*repeat)(void *self, bench_step *prepare, bench_step *run, const bench_effort *effort, bench_time *time);
    /* A graph of what step(self) puts on the stream, to be launched as often as one likes. All NULL: there are none. */
    bool (*record)(void *self, bench_step *step, void **graph);
    bool (*launch)(void *graph);
    void (*forget)(void *graph);
} bench_device;

extern const bench_device bench_cpu;

/* ---- What -------------------------------------------------------------------------------------------------------- */

/* The tensors of one shape and all that its operations need but those of decode. NULL: no memory. */
typedef struct bench_case bench_case;
bench_case *bench_case_create(const nsa_ctx *ctx, const bench_device *device, const bench_shape *shape);
void bench_case_destroy(bench_case *b);

/* Leaves what backward and others need, unless a measurement has. They do this themselves. */
bool bench_case_forward(bench_case *b, bench_attention attention);

/* By the library, of BENCH_NSA or BENCH_DENSE. */
bool bench_measure(bench_case *b, bench_op op, bench_attention attention, const bench_effort *effort, bench_time *time);

/* Of the last measurement: bytes of workspace; of the q, k, v and o that a forward by its attention takes; of what its
 * forward leaves for backward. */
size_t bench_case_workspace(const bench_case *b);
size_t bench_case_tensors(const bench_case *b);
size_t bench_case_residuals(const bench_case *b);

/* Sets of inputs: as many as the device wants, or one if there is no memory for more. */
int bench_case_sets(const bench_case *b);

/* bench_overlap of what a forward has selected. */
bool bench_case_overlap(const bench_case *b, double *overlap);

/* Whether the last measurement failed because memory or the operation is not there. */
bool bench_case_lacks(const bench_case *b);

/* What oneDNN computes in where the tensors are of that dtype: bf16 if the CPU multiplies it, else f32. */
nsa_dtype bench_onednn_dtype(nsa_dtype dtype);

/* The dense forward by oneDNN, which must agree with that of the library, made before. *block: query tokens at a
 * time; 0 tries some and tells the fastest. */
bool bench_measure_onednn(const bench_case *b, int64_t *block, const bench_effort *effort, bench_time *time);

/* A token after seqlen tokens, on a GPU as a graph. Equal caches are used in turn, so that none is still in the
 * processor's when its turn comes again; *rotated: the bytes that a round reads. *lacks: as bench_case_lacks. */
bool bench_measure_decode(const nsa_ctx *ctx, const bench_device *device, const bench_shape *shape,
                          bench_attention attention, const bench_effort *effort, bench_time *time, int64_t *rotated,
                          bool *lacks);

/* A step of `nsa train` with its default model on one sequence of `context` random bytes. *shape: its attention's. */
bool bench_measure_train(int32_t context, bench_attention attention, const bench_effort *effort, bench_shape *shape,
                         bench_time *time);

#endif
