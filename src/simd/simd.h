/*
 * The inner loops that depend on the instruction set: one table, one row per set. Dispatch picks the first row whose
 * needs are met; tests run every row against the scalar one and the oracles.
 *
 * Contract of every kernel: an output element is the same chain of operations wherever it lies (edges are computed like
 * the middle), so results do not depend on tile shapes, and equal inputs give equal bits.
 */
#ifndef NSA_SIMD_SIMD_H
#define NSA_SIMD_SIMD_H

#include <nsa.h>

enum {
    SIMD_PAD = 16, /* floats: rows of B and C are padded to a multiple of this */
    SIMD_PAD_BYTES = 64
};

static inline int64_t simd_pad(int64_t n)
{
    return (n + SIMD_PAD - 1) / SIMD_PAD * SIMD_PAD;
}

typedef struct simd_kernels {
    const char *name;
    uint32_t needs; /* CPU_... flags */

    /* C[i][j] = (add ? C[i][j] : 0) + sum over p ascending of A[i*a_row + p*a_col] * B[p*ldb + j], by FMA where the set
     * has it. i < m, j < n, p < k. B and C are readable, and C writable, up to the next multiple of SIMD_PAD columns;
     * what lies there in C afterwards is unspecified. */
    void (*matmul)(float *c, int64_t ldc, const float *a, int64_t a_row, int64_t a_col, const float *b, int64_t ldb,
                   int64_t m, int64_t n, int64_t k, int add);

    /* x[j] = exp(x[j] * scale - shift) for lo <= j < hi, 0 elsewhere in 0 .. n-1. Results below 2^-126 are 0.
     * n a multiple of SIMD_PAD. Within 2 ulp. NaN stays NaN. */
    void (*exp_row)(float *x, int64_t n, int64_t lo, int64_t hi, float scale, float shift);

    /* The largest of x[lo .. hi-1], -inf if there is none. NaNs are passed over. */
    float (*max_row)(const float *x, int64_t lo, int64_t hi);

    /* Sum of x[0 .. n-1] in an order that depends on n alone. n a multiple of SIMD_PAD. */
    float (*sum_row)(const float *x, int64_t n);

    /* One step of an online softmax down the columns j < n of x [m][ldx]: with M = max(max[j], x[0][j] .. x[m-1][j])
     *     keep[j] = exp(scale * (max[j] - M))      x[i][j] = exp(scale * (x[i][j] - M))
     *     sum[j] = sum[j] * keep[j] + sum over i of x[i][j]      max[j] = M
     * -inf in x is an absent element: 0; a column of them leaves max and sum as they are and keep 1, or 0 while max is
     * -inf. max starts at -inf, sum at 0. All arrays are padded like C of matmul. */
    void (*softmax_step)(float *x, int64_t ldx, int64_t m, int64_t n, float scale, float *max, float *sum, float *keep);

    /* Backward of softmax: s = p = exp(scale*s - lse) and dp = ds = p * (dp - delta) * scale, elements of [m][ld], n
     * columns padded like C of matmul. lse and delta belong to the columns if by_column, else to the rows. */
    void (*softmax_grad)(float *s, float *dp, int64_t ld, int64_t m, int64_t n, float scale, const float *lse,
                         const float *delta, int by_column);

    /* y[j][i] = x[pick[i]][j] for i < m, 0 from m to the next multiple of SIMD_PAD; j < n; pick = NULL: row i. Rows of
     * x are readable, those of y writable up to a multiple of SIMD_PAD columns. */
    void (*transpose)(float *y, int64_t ldy, const float *x, int64_t ldx, const int32_t *pick, int64_t m, int64_t n);

    /* dtype_load_row and dtype_store_row (core/dtype.h). */
    void (*load_row)(float *y, const void *x, nsa_dtype t, int64_t n);
    void (*store_row)(void *y, nsa_dtype t, const float *x, int64_t n);
} simd_kernels;

extern const simd_kernels *const simd_table[]; /* fastest first, ends with NULL; the last row needs nothing */

const simd_kernels *simd_choose(uint32_t features);

#endif
