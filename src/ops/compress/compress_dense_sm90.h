/* linear and mlp on Hopper's tensor cores. Equations: ops/compress/compress_dense_simt.cu. */
#ifndef NSA_OPS_COMPRESS_DENSE_SM90_H
#define NSA_OPS_COMPRESS_DENSE_SM90_H

#include "ops/compress/compress_product_sm90.h"
#include "ops/compress/compress_simt.h"

typedef unsigned short bf16_bits;

/* Items are (packed row of y, head). A group is cmp_stride tokens of a sequence, which the same blocks hold: those of
 * sequence s have the numbers cu_seqlens[s] / cmp_stride + s and up. Planes, of whole matrices one behind the other,
 * add up to a float32. */
typedef struct compress_dense_sm90 {
    compress_simt_args a;
    int32_t width;    /* a.width, and zeros up to whole PRODUCT_COLUMNS */
    int32_t w_planes; /* of the parameters: 1 if they are bf16, else 3 */
    int64_t n_in;     /* block * d: rows of w1 */
    int64_t n_items, n_groups;

    product_line *x_lines, *y_lines;   /* [item]: a block's tokens; its row of y, or of dy */
    product_line *dz_lines, *dx_lines; /* [group][head]: rows of the blocks that hold it, the last first; its tokens */
    bf16_bits *ones;                   /* PRODUCT_COLUMNS */
    bf16_bits *pe, *w1, *w2;           /* planes of [set][n_in], [set][n_in][width], [set][a.width][d] */
    float *bias;                       /* [set][width]: b1 + pe w1 */
    float *z;                          /* mlp, backward: [item][width] */
    bf16_bits *h, *dz;                 /* mlp: three planes of [item][width] */
    float *dz_sum;                     /* [set][width] */
    bf16_bits *dz_sum_planes;          /* three of it */
    float *sums;                       /* what the last product has made: [part][set][row][column] */
} compress_dense_sm90;

/* A product that was made in p->sums. */
typedef struct dense_sums {
    const float *x;
    int32_t n_parts, n_columns; /* a row's, with those it is padded by */
    int64_t n_rows;             /* of a set */
} dense_sums;

NSA_LAUNCH launch_dense_lines(const compress_dense_sm90 *p, nsa_stream stream);

/* ones, and the planes of the parameters. */
NSA_LAUNCH launch_dense_planes(const compress_dense_sm90 *p, nsa_stream stream);

/* After a product: bias from pe w1, or without (NULL). */
NSA_LAUNCH launch_dense_bias(const compress_dense_sm90 *p, const dense_sums *sums, nsa_stream stream);

/* From x w1: h, or for backward z. */
NSA_LAUNCH launch_dense_hidden(const compress_dense_sm90 *p, const dense_sums *sums, nsa_stream stream);

/* From x w1 (linear) or h w2. */
NSA_LAUNCH launch_dense_y(const compress_dense_sm90 *p, const dense_sums *sums, nsa_stream stream);

/* From z and dy w2^T: h and dz. */
NSA_LAUNCH launch_dense_dz(const compress_dense_sm90 *p, const dense_sums *sums, nsa_stream stream);

/* dz_sum and db1. */
NSA_LAUNCH launch_dense_db1(const compress_dense_sm90 *p, const dense_sums *sums, nsa_stream stream);

/* From x^T dz and dz_sum. */
NSA_LAUNCH launch_dense_dw1(const compress_dense_sm90 *p, const dense_sums *sums, nsa_stream stream);

/* Those that are the sums as they are. */
NSA_LAUNCH launch_dense_dpe(const compress_dense_sm90 *p, const dense_sums *sums, nsa_stream stream);
NSA_LAUNCH launch_dense_dw2(const compress_dense_sm90 *p, const dense_sums *sums, nsa_stream stream);
NSA_LAUNCH launch_dense_db2(const compress_dense_sm90 *p, const dense_sums *sums, nsa_stream stream);

#endif
