/* A random problem of compression, and the runs that tests make of it. */
#ifndef NSA_TESTLIB_COMPRESS_CASE_H
#define NSA_TESTLIB_COMPRESS_CASE_H

#include "ops/compress/compress.h"
#include "testlib/testlib.h"

enum { PHI_PE, PHI_W1, PHI_B1, PHI_W2, PHI_B2, N_PHI_MEMBERS };

extern const char *const phi_member_names[N_PHI_MEMBERS]; /* of gradients: "dpe" ... */

typedef struct compress_shape {
    nsa_phi_kind kind;
    int32_t block, stride, max; /* max: longest sequence */
    int32_t n_heads, d, hidden;
    bool per_head, bare; /* bare: without the members that may be NULL */
    nsa_dtype dtype, phi_dtype;
    layout x, out;
} compress_shape;

/* Parameters, or their gradients: every member as rows of a tensor of its own, to be compared by row. */
typedef struct phi_case {
    nsa_batch batch[N_PHI_MEMBERS];
    test_tensor m[N_PHI_MEMBERS];
    bool given[N_PHI_MEMBERS];
    nsa_phi phi;
} phi_case;

typedef struct compress_case {
    nsa_config cfg;
    nsa_batch batch;
    compress_shape shape;
    test_tensor x, dy;
    phi_case phi;
} compress_case;

typedef struct compress_grads {
    test_tensor dx;
    phi_case dphi;
} compress_grads;

void phi_case_init(phi_case *c, const compress_shape *sh, const nsa_config *cfg, nsa_dtype dtype);

/* The case must not be moved: its tensors point into it. */
void compress_case_init(compress_case *c, const compress_shape *sh, const nsa_batch *batch, rng *r);

compress_problem compress_problem_of(const compress_case *c, const nsa_ctx *ctx, ref_rounding rounding);

test_tensor compress_run_forward(const compress_case *c, const nsa_ctx *ctx, const compress_impl *impl,
                                 ref_rounding rounding, nsa_dtype dtype);

/* start: what to add to, or NULL. dtype: of dx. */
void compress_run_backward(const compress_case *c, const nsa_ctx *ctx, const compress_impl *impl, ref_rounding rounding,
                           const test_tensor *start, nsa_dtype dtype, nsa_dtype phi_dtype, compress_grads *g);

const compress_impl *compress_oracle(void);

/* The sizes of y and of the gradients, as assert_close takes them: float64. start: what dx is added to, or NULL. */
void compress_sizes(const compress_case *c, const test_tensor *start, test_tensor *y, compress_grads *g);

#endif
