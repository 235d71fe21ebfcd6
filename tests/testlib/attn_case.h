/* A random problem of one attention op, and the runs that tests make of it. */
#ifndef NSA_TESTLIB_ATTN_CASE_H
#define NSA_TESTLIB_ATTN_CASE_H

#include "ops/attn_tile/attn.h"
#include "testlib/testlib.h"

typedef struct attn_op {
    const char *name;
    int branch;
    side keys; /* what the rows of k and v are */
    const attn_impl *impls;
} attn_op;

extern const attn_op attn_ops[NSA_N_BRANCHES];

const attn_impl *attn_oracle(const attn_op *op);

typedef struct attn_shape {
    int32_t group, n_heads_kv, d_qk, d_v;
    nsa_dtype dtype;
    layout q, kv, out; /* of q and d_o; of k and v; of all outputs */
    bool gate;
    double scale; /* as in nsa_config */
} attn_shape;

typedef struct attn_case {
    const attn_op *op;
    nsa_config cfg;
    nsa_batch batch;
    test_tensor q, k, v, slc_idx, d_o, gate;
    test_tensor o, lse; /* by the oracle */
} attn_case;

/* blocks: the sizes of blocks and window; the rest of the configuration comes from shape. The case must not be moved:
 * its tensors point into it. */
void attn_case_init(attn_case *c, const attn_op *op, const nsa_config *blocks, const nsa_batch *batch,
                    const attn_shape *shape, rng *r);

/* The same without o and lse. */
void attn_case_inputs(attn_case *c, const attn_op *op, const nsa_config *blocks, const nsa_batch *batch,
                      const attn_shape *shape, rng *r);

/* Whether query row `row` of sequence s, seen by kv_head, attends to key j: the masks once more, from their page. */
bool attn_attends(const attn_case *c, int32_t s, int64_t row, int32_t kv_head, int64_t j);

typedef struct attn_out {
    test_tensor o, lse;
} attn_out;

typedef struct attn_grads {
    test_tensor dq, dk, dv;
} attn_grads;

attn_out attn_out_new(const attn_case *c, nsa_dtype dtype, layout as);
attn_grads attn_grads_new(const attn_case *c, nsa_dtype dtype, layout as);

bool attn_takes(const attn_case *c, const nsa_ctx *ctx, const attn_impl *impl); /* the case, on ctx */

void attn_run_forward(const attn_case *c, const nsa_ctx *ctx, op_fn *op, ref_rounding rounding, const attn_out *out);
/* add: to what is in grads. */
void attn_run_backward(const attn_case *c, const nsa_ctx *ctx, op_fn *op, ref_rounding rounding,
                       const attn_grads *grads, bool add);

/* Adds to float64 tensors of the results' shapes what rounding errors are in proportion to: the terms of each sum, in
 * absolute value. An error of a logit is one of the same size, in relation, of its probability, and so is one of lse.
 */
void attn_add_sizes(const attn_case *c, const attn_out *out, const attn_grads *grads);

/* The rounding that a kernel for dtype may do. */
ref_rounding attn_fair_rounding(nsa_dtype dtype);

#endif
