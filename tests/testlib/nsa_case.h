/* A random problem of nsa_forward and nsa_backward, through the public functions. */
#ifndef NSA_TESTLIB_NSA_CASE_H
#define NSA_TESTLIB_NSA_CASE_H

#include "testlib/testlib.h"

typedef struct nsa_shape {
    int32_t group, n_heads_kv, d_qk, d_v;
    nsa_dtype dtype;
    layout as;       /* of every input; outputs as output_layout says */
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
    test_tensor q[NSA_N_BRANCHES], k[NSA_N_BRANCHES], v[NSA_N_BRANCHES], gate, d_o;
    test_tensor o, k_cmp, v_cmp, slc_idx, o_branch[NSA_N_BRANCHES], lse[NSA_N_BRANCHES];
    test_tensor dq[NSA_N_BRANCHES], dk[NSA_N_BRANCHES], dv[NSA_N_BRANCHES], dgate;
    nsa_forward_args fwd; /* all of the above */
    nsa_backward_args bwd;
} nsa_case;

/* The case must not be moved. The same rng state and shape give the same numbers. */
void nsa_case_init(nsa_case *c, const nsa_config *blocks, const nsa_batch *batch, const nsa_shape *shape, rng *r);

/* The same inputs, laid out otherwise; outputs of its own, without what `from` has in them. */
void nsa_case_as(nsa_case *c, const nsa_case *from, layout as);

/* Those of test_contexts; on the CPU the oracle, too. */
int nsa_contexts(nsa_ctx contexts[MAX_CONTEXTS], int32_t n_threads);

/* Members of a phi, pe, w1, b1, w2, b2, and how many elements each has for rows of d channels; 0: it is NULL. */
enum { N_MEMBERS = 5 };
void **phi_member(nsa_phi *phi, int m);
int64_t phi_member_size(const nsa_case *c, int32_t d, int m);

/* phi with its members on the device, in *there; NULL stays NULL. */
const nsa_phi *phi_on_device(const nsa_ctx *ctx, const nsa_phi *phi, nsa_phi *there);

/* With a workspace of just the size asked for, full of NaN and guarded. No output is written outside its rows. */
void run_forward(const nsa_ctx *ctx, const nsa_case *c, const nsa_forward_args *args);
void run_backward(const nsa_ctx *ctx, const nsa_case *c, const nsa_backward_args *args);

/* Same bits in all that forward, or backward, has written. */
void assert_same_forward(const nsa_case *a, const nsa_case *b);
void assert_same_backward(const nsa_case *a, const nsa_case *b);

#endif
