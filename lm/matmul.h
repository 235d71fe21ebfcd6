/* Products of float matrices: the one place where oneDNN is used. */
#ifndef LM_MATMUL_H
#define LM_MATMUL_H

#include <stdbool.h>
#include <stdint.h>

/* A row-major matrix whose rows start ld floats apart, as it is or transposed. */
typedef struct matrix {
    const float *data;
    int64_t ld;
    bool transposed;
} matrix;

static inline matrix plain(const float *data, int64_t ld)
{
    return (matrix){data, ld, false};
}

static inline matrix transposed(const float *data, int64_t ld)
{
    return (matrix){data, ld, true};
}

/* C = A B, or C += A B. C is [m][n], A [m][k], B [k][n] (after their transposition). m = 0 is allowed.
 * Bit-equal for any number of threads: C is cut into tiles by its shape alone and one thread makes a tile. */
bool matmul(float *c, int64_t ldc, matrix a, matrix b, int64_t m, int64_t n, int64_t k, bool add);

#endif
