/* A random problem of nsa_forward and nsa_backward, through the public functions. */
#ifndef NSA_TESTLIB_NSA_CASE_H
#define NSA_TESTLIB_NSA_CASE_H

#include "testlib/testlib.h"

typedef struct nsa_shape {
    int32_t group, n_heads_kv, d_qk, d_v;
    nsa_dtype dtype;
    layout as;       /* of every tensor */
    bool shared;     /* one q, k, v for the branches, and one gradient of each */
    bool token_gate; /* a gate per token: stride 0 over the heads */
    nsa_phi_kind phi;
    bool per_head;
} nsa_shape;

typedef struct nsa_case {
    nsa_config cfg;
    nsa_batch batch;
    nsa_shape shape;
    nsa_phi phi_k, phi_v, dphi_k, dphi_v;
    int64_t dphi_k_bytes, dphi_v_bytes; /* of all members, which lie one after the other from the first that is set */
    test_tensor q[NSA_N_BRANCHES], k[NSA_N_BRANCHES], v[NSA_N_BRANCHES], gate, d_o;
    test_tensor o, k_cmp, v_cmp, slc_idx, o_branch[NSA_N_BRANCHES], lse[NSA_N_BRANCHES];
    test_tensor dq[NSA_N_BRANCHES], dk[NSA_N_BRANCHES], dv[NSA_N_BRANCHES], dgate;
    nsa_forward_args fwd; /* all of the above */
    nsa_backward_args bwd;
} nsa_case;

/* The case must not be moved. The same rng state and shape but for `as` give the same numbers. */
void nsa_case_init(nsa_case *c, const nsa_config *blocks, const nsa_batch *batch, const nsa_shape *shape, rng *r);

/* With a workspace of just the size asked for, full of NaN and guarded. */
void run_forward(const nsa_ctx *ctx, const nsa_case *c, const nsa_forward_args *args);
void run_backward(const nsa_ctx *ctx, const nsa_case *c, const nsa_backward_args *args);

/* Same bits in all that forward, or backward, has written. */
void assert_same_forward(const nsa_case *a, const nsa_case *b);
void assert_same_backward(const nsa_case *a, const nsa_case *b);

#endif
