/* Matrix products of compression on Hopper: compress_product_sm90.cu. */
#ifndef NSA_OPS_COMPRESS_PRODUCT_SM90_H
#define NSA_OPS_COMPRESS_PRODUCT_SM90_H

#include "cuda/simt.h"

enum { PRODUCT_COLUMNS = 64 }; /* columns of a matrix come in runs of so many, which lie in one segment */

/* Where a row lies: column c of it, in segment i = c / segment, is element at + i step + c % segment. It has the
 * segments first .. end - 1, elsewhere it is 0. */
typedef struct product_line {
    int64_t at;
    int32_t first, end;
} product_line;

/* A matrix of each set. Operands are bf16, in one or in three planes that add up to the number. */
typedef struct product_matrix {
    void *data;
    const product_line *lines; /* row r of set s: lines[s set + r row] */
    int64_t set, row;          /* without lines it starts at element s set + r row and has all segments */
    int32_t n_segments, segment;
    int64_t step;
    int64_t plane; /* elements from a plane to the next */
} product_matrix;

/* to[m][n] = a[m][k] b[k][n] of each set. Along k an operand's rows are m or n and its columns k; along mn its rows are
 * k. The sum over k comes in parts, which are the planes of `to`. */
typedef struct product {
    product_matrix a, b, to;
    bool a_along_m, b_along_n;
    int32_t a_planes, b_planes; /* 1 or 3 */
    int64_t m, n, k;
    int32_t n_sets, n_parts;
    nsa_dtype dtype; /* of `to` */
    bool by_pairs;   /* two elements of `to` can be written at once */
    bool add;        /* to what is there */
} product;

NSA_LAUNCH launch_product_sm90(const product *p, nsa_stream stream);

#endif
