/*
 * Tables of bad arguments. A case is a line: words that the message must hold, a field of the world, its bad value.
 *
 * The world holds valid arguments of every public function, float32, three sequences of which one has no queries.
 */
#ifndef NSA_TESTLIB_BAD_ARGS_H
#define NSA_TESTLIB_BAD_ARGS_H

#include "testlib/testlib.h"

/* Memory that a call which fails must leave as it is: outputs (full of NaN), pages, states. */
typedef struct watched {
    void *data, *copy;
    size_t bytes;
} watched;

typedef struct world {
    const nsa_ctx *ctx;
    const nsa_config *cfg_arg;
    const nsa_batch *batch_arg;
    nsa_config cfg;
    nsa_batch batch;
    int32_t cu_q[4], cu_k[4];
    int32_t no_args; /* not 0: args is NULL */
    nsa_attn_args cmp_attn, attn;
    nsa_attn_backward_args cmp_attn_backward, attn_backward;
    nsa_select_args select;
    nsa_gate_args gate;
    nsa_gate_backward_args gate_backward;
    nsa_compress_args compress;
    nsa_compress_backward_args compress_backward;
    nsa_phi phi_k, phi_v, dphi_k, dphi_v;
    nsa_forward_args forward;
    nsa_backward_args backward;

    /* The cache has 2 pages of 8 tokens for each of the batch's sequences, which append their q side's tokens; the
     * first holds 3 tokens already. */
    const nsa_cache *cache_arg;
    nsa_cache cache;
    nsa_cache_args cache_args;
    void *states[3];
    int32_t page_table[3][2];
    void *state_arg;
    int64_t n_tokens;
    int64_t *n_tokens_arg;

    void *workspace;
    size_t workspace_bytes;
    size_t *bytes_arg;
    size_t bytes;

    watched watched[64];
    int n_watched;
} world;

void world_init(world *w); /* calls testlib_reset */

typedef nsa_status call_fn(world *w);

typedef struct bad {
    const char *words;
    size_t offset, size;
    bool is_double;
    double value;
} bad;

#define BAD(words, field, value)                                                                                       \
    {                                                                                                                  \
        words, offsetof(world, field), sizeof((world *)0)->field,                                                      \
            _Generic(((world *)0)->field, double                                                                       \
                     : true, default                                                                                   \
                     : false),                                                                                         \
            value                                                                                                      \
    }

/* A bad value for each member of an input. */
#define BAD_LAYOUT(name, field)                                                                                        \
    BAD(name ".data", field.data, 2), BAD(name ".dtype", field.dtype, 99), BAD(name ".dtype", field.dtype, -1),        \
        BAD(name, field.stride_seq, -1), BAD(name, field.stride_token, -4), BAD(name, field.stride_head, -1),          \
        BAD(name, field.stride_seq, 0x1p61), BAD(name, field.stride_token, 0x1p61),                                    \
        BAD(name, field.stride_head, 0x1p62)
#define BAD_INPUT(name, field) BAD_LAYOUT(name, field), BAD(name ".data", field.data, 0)

/* The dtype follows from another tensor's. */
#define BAD_OTHER(name, field) BAD_INPUT(name, field), BAD(name ".dtype", field.dtype, NSA_F64)

/* Outputs overlap themselves, too. */
#define BAD_OPTIONAL(name, field)                                                                                      \
    BAD_LAYOUT(name, field), BAD(name ".dtype", field.dtype, NSA_F64), BAD(name, field.stride_token, 0),               \
        BAD(name, field.stride_token, 1), BAD(name, field.stride_head, 0), BAD(name, field.stride_seq, 1)
#define BAD_OUTPUT(name, field) BAD_OPTIONAL(name, field), BAD(name ".data", field.data, 0)

/* call gives status, a message with these words, and writes nothing. */
void expect_failure(world *w, call_fn *call, nsa_status status, const char *words);

/* Each case in turn is an invalid argument to both calls (size may be NULL); without them run is fine. */
void run_cases(world *w, const char *name, call_fn *size, call_fn *run, const bad *cases, size_t n);

#define RUN_CASES(w, name, size, run, cases) run_cases(w, name, size, run, cases, sizeof(cases) / sizeof *(cases))

/* Workspaces: bytes NULL, one byte too few, NULL. */
void run_workspace_cases(world *w, const char *name, call_fn *size, call_fn *run);

extern const bad bad_cfg[]; /* ctx and cfg, for every function */
extern const size_t n_bad_cfg;

#endif
