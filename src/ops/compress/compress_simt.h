/* Compression on CUDA. Equations: ops/compress/compress.h. */
#ifndef NSA_OPS_COMPRESS_SIMT_H
#define NSA_OPS_COMPRESS_SIMT_H

#include "cuda/simt.h"

/* Block i of sequence s, whose packed tokens start at `start`; s < 0: no sequence has this row. */
typedef struct cmp_row {
    int32_t s, start, i;
} cmp_row;

/* Token t of sequence s. The blocks that hold it are rows first_row .. first_row + n_rows - 1; in the first it is
 * number `place`, in each that follows cmp_stride less. */
typedef struct cmp_token {
    int32_t s, start, t;
    int32_t first_row, n_rows, place;
} cmp_token;

typedef struct compress_simt_args {
    simt_config cfg;
    simt_seqs seqs;
    int32_t d;
    int32_t width; /* columns of w1: d, d_hidden or (gated_token) 1 */
    int32_t n_sets;
    nsa_phi phi, dphi;
    nsa_tensor x, y, dy, dx;
    bool add_dx;
    bool whole; /* mean: all rows are whole chunks */

    int64_t n_rows;    /* of a packed y */
    cmp_row *rows;     /* [n_rows] */
    cmp_token *tokens; /* [total_k] */
    float *z, *h;      /* mlp: [n_rows][head][width] before and after GELU */
    float *dz;         /* linear, mlp: [n_rows][head][width] */
    float *dz_sum;     /* linear, mlp: [set][width] */
    float *logits;     /* gated: [total_k][head][width] x w1 */
    float *dots;       /* gated_token: [n_rows][head][block] x . dy */
    float *stats;      /* gated: [n_rows][head][width][3] largest logit, sum of exponentials, sum of a da */
    float *dlogits;    /* gated: [total_k][head][width] summed over the blocks */
    float *sums;       /* of the gradient of one parameter: [part][element] */
} compress_simt_args;

/* The gradient of a parameter is a sum over all rows, or tokens. They are dealt out to parts that are summed side by
 * side, and the parts added up in order. */
enum { SUMS_AT_ONCE = 1 << 19, MOST_PARTS = 256, ROWS_PER_PART = 64 };

static NSA_BOTH_SIDES inline int64_t compress_parts(int64_t n_elements, int64_t n_rows)
{
    const int64_t by_elements = SUMS_AT_ONCE / n_elements, by_rows = n_rows / ROWS_PER_PART, most = MOST_PARTS;
    const int64_t n = by_elements < by_rows ? by_elements : by_rows;
    return n < 1 ? 1 : n < most ? n : most;
}

NSA_LAUNCH launch_compress_tables(const compress_simt_args *p,
                                  nsa_stream stream); /* rows and tokens: before all others */

NSA_LAUNCH launch_compress_mean(const compress_simt_args *p, nsa_stream stream); /* needs no tables */
NSA_LAUNCH launch_compress_mean_backward(const compress_simt_args *p, nsa_stream stream);

NSA_LAUNCH launch_compress_dense(const compress_simt_args *p, nsa_stream stream);
NSA_LAUNCH launch_compress_dense_backward(const compress_simt_args *p, nsa_stream stream);

NSA_LAUNCH launch_compress_pool(const compress_simt_args *p, nsa_stream stream);
NSA_LAUNCH launch_compress_pool_backward(const compress_simt_args *p, nsa_stream stream);

#endif
