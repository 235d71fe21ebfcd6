/* The tensors of a bench_case, for the baseline that works on the same. */
#ifndef CLI_BENCH_CASE_H
#define CLI_BENCH_CASE_H

#include "cli/bench_tensors.h"

struct bench_case {
    const nsa_ctx *ctx;
    const bench_device *device;
    bench_shape shape;
    nsa_config dense; /* cfg with a window without end */
    nsa_batch batch;
    int32_t *cu;

    nsa_phi phi[2], dphi[2]; /* of keys, of values */
    nsa_forward_args forward;
    nsa_backward_args backward;
    nsa_attn_args dense_forward;
    nsa_attn_backward_args dense_backward;
    bench_caches caches;
    nsa_cache_args prefill;

    bench_op op; /* being measured */
    bench_attention attention;
    void *workspace;
    size_t workspace_bytes, asked_bytes;
    bench_tensors memory;

    bench_case *other; /* the same with other numbers and no workspace of its own, in turn; NULL: none */
    bool turn;         /* whether it was the other's */
    bool lacks;        /* see bench_case_lacks */
    bool forward_done[BENCH_N_ATTENTIONS];
};

#endif
