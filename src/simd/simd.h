/*
 * The inner loops that depend on the instruction set: one table, one row per set. Dispatch picks the first row whose
 * needs are met; tests run every row against the scalar one and the oracles.
 *
 * Contract of every kernel: an output element is the same chain of operations wherever it lies (edges are computed like
 * the middle), so results do not depend on tile shapes, and equal inputs give equal bits.
 *
 * Products multiply units of 32 bits: a float, or, where the set can multiply them, a pair of bf16. Matrices of units
 * are float arrays; in a row of pairs the elements lie as they do in a tensor.
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

/* Memory that will be wanted soon: products fetch it into the second-level cache line by line, spread over their inner
 * loop, and move next up to end. */
typedef struct simd_ahead {
    const char *next, *end;
} simd_ahead;

/* C[i][j] = start + sum over p ascending of A[i*a_row + p*a_col] . B[p*ldb + j], i < m, j < n, p < k units; by FMA
 * where the set has it, by tiles in steps of SIMD_PAD units from p = 0 on. start is 0, with `add` C[i][j], with `keep`
 * keep[i] * C[i][j]. With c_rows row c_rows[i] of C is meant instead of row i, with a_rows row a_rows[i] of A. a_col is
 * 1, or else (without a_rows) a_row is, or m. B and C are readable, and C writable, up to the next multiple of SIMD_PAD
 * columns; what lies there in C afterwards is unspecified. */
typedef struct simd_product {
    float *c;
    int64_t ldc;
    const int32_t *c_rows; /* may be NULL */
    const float *keep;     /* may be NULL */
    int add;
    const float *a;
    int64_t a_row, a_col;
    const int32_t *a_rows; /* may be NULL */
    const float *b;
    int64_t ldb;
    int64_t m, n, k;
    simd_ahead *ahead; /* may be NULL */
} simd_product;

/* Which columns of row i are there: lo .. hi-1; to the others kernels give the weight 0, whatever their bits. */
typedef struct simd_span {
    int32_t lo, hi;
} simd_span;

/* A step of an online softmax along the rows of s [m][ld_s], n columns, a multiple of SIMD_PAD. With r = rows[i] and
 * M = max(max[r], s[i][lo .. hi-1]):
 *     keep[i] = exp(scale * (max[r] - M))      p[i][j] = exp(scale * (s[i][j] - M))
 *     sum[r] = sum[r] * keep[i] + sum over j of p[i][j] (before rounding to bf16)      max[r] = M
 * A row without columns leaves max and sum as they are and keeps 1, or 0 while max is -inf. max starts at -inf, sum at
 * 0. p has rows of units, ld_p apart, and is written up to a multiple of 2*SIMD_PAD elements. */
typedef struct simd_softmax {
    const float *s;
    int64_t ld_s;
    float *p;
    int64_t ld_p;
    int64_t m, n;
    const simd_span *sees; /* [m]; NULL: all columns */
    const int32_t *rows;   /* [m] */
    float scale;
    float *max, *sum, *keep;
} simd_softmax;

/* Its backward: p = exp(scale*s - lse), ds = p * (gate*dp - delta) * scale for s, dp [m][ld_s], n columns, a multiple
 * of SIMD_PAD; lse, delta, gate [m]. Written as A of three products, rows in units of ld_s:
 *     ds    [m][elements]          dq += ds k
 *     ds_t  [m/pack][n] units      dk += ds^T q     (units of `pack` rows)
 *     p_t   [m/pack][n] units      dv += (gate*p)^T do
 * Of floats ds_t is ds and is not written again. Written up to a multiple of 2*SIMD_PAD elements. */
typedef struct simd_softmax_grad {
    const float *s, *dp;
    int64_t ld_s;
    int64_t m, n;
    const simd_span *sees; /* [m]; NULL: all columns */
    const float *lse, *delta, *gate;
    float scale;
    float *ds, *ds_t, *p_t;
} simd_softmax_grad;

/* What attention runs on, by the type of its operands. */
typedef struct simd_attn {
    int32_t pack; /* elements in a unit; 0: this set has none of these */
    void (*product)(const simd_product *x);
    void (*softmax)(const simd_softmax *x);
    void (*softmax_grad)(const simd_softmax_grad *x);
} simd_attn;

typedef struct simd_kernels {
    const char *name;
    uint32_t needs; /* CPU_... flags */

    simd_attn f32, bf16;

    void (*release)(void); /* NULL, or called by each thread after its last product of bf16 */

    /* y[j] += exp(x[j] * scale - shift), j < n. Exponentials below 2^-126 are 0; within 2 ulp; NaN stays NaN. x and y
     * are readable and y writable up to a multiple of SIMD_PAD; what lies there in y stays. */
    void (*add_exp)(float *y, const float *x, int64_t n, float scale, float shift);

    /* How many of x[0 .. n-1] are >= bound. */
    int64_t (*count_from)(const float *x, int64_t n, float bound);

    /* Sum of x[0 .. n-1] in an order that depends on n alone. n a multiple of SIMD_PAD. */
    float (*sum_row)(const float *x, int64_t n);

    /* One step of an online softmax down the columns j < n of x [m][ldx]: with M = max(max[j], x[0][j] .. x[m-1][j])
     *     keep[j] = exp(scale * (max[j] - M))      x[i][j] = exp(scale * (x[i][j] - M))
     *     sum[j] = sum[j] * keep[j] + sum over i of x[i][j]      max[j] = M
     * -inf in x is an absent element: 0; a column of them leaves max and sum as they are and keep 1, or 0 while max is
     * -inf. max starts at -inf, sum at 0. All arrays are padded like C of a product. */
    void (*softmax_step)(float *x, int64_t ldx, int64_t m, int64_t n, float scale, float *max, float *sum, float *keep);

    /* y[j][i] = x[i][j] for i < m, 0 from m to the next multiple of SIMD_PAD; j < n. Rows of x are readable, those of y
     * writable up to a multiple of SIMD_PAD columns. */
    void (*transpose)(float *y, int64_t ldy, const float *x, int64_t ldx, int64_t m, int64_t n);

    /* bf16: unit y[i][j] = (x[2i][j], x[2i+1][j]) for i < m/2, j < n; m even. Rows of x are ldx units apart; rows of x
     * are readable and those of y writable up to a multiple of 2*SIMD_PAD elements. */
    void (*pair_rows)(float *y, int64_t ldy, const float *x, int64_t ldx, int64_t m, int64_t n);

    /* Not 0 if an element of x [n] units, `pack` in each, is infinite or NaN. */
    int (*has_nonfinite)(const float *x, int64_t n, int32_t pack);

    /* dtype_load_row and dtype_store_row (core/dtype.h). */
    void (*load_row)(float *y, const void *x, nsa_dtype t, int64_t n);
    void (*store_row)(void *y, nsa_dtype t, const float *x, int64_t n);
} simd_kernels;

extern const simd_kernels *const simd_table[]; /* fastest first, ends with NULL; the last row needs nothing */

const simd_kernels *simd_choose(uint32_t features);

/* C (+)= A B in floats. */
static inline void simd_matmul(const simd_kernels *simd, float *c, int64_t ldc, const float *a, int64_t a_row,
                               int64_t a_col, const float *b, int64_t ldb, int64_t m, int64_t n, int64_t k, int add)
{
    simd->f32.product(&(simd_product){.c = c,
                                      .ldc = ldc,
                                      .add = add,
                                      .a = a,
                                      .a_row = a_row,
                                      .a_col = a_col,
                                      .b = b,
                                      .ldb = ldb,
                                      .m = m,
                                      .n = n,
                                      .k = k});
}

#endif
