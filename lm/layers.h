/* The parts of a layer that are neither a matrix product nor attention: rows of floats, forward and backward.
 * Rows are shared out to threads; sums over rows run per column in the order of the rows, so that results do not depend
 * on the number of threads. */
#ifndef LM_LAYERS_H
#define LM_LAYERS_H

#include <stdbool.h>
#include <stdint.h>

/* y = x * rstd * gain, rstd = 1 / sqrt(mean(x^2) + 1e-5), kept for backward. */
void rmsnorm_forward(float *y, float *rstd, const float *x, const float *gain, int64_t rows, int64_t d);

/* dx += the gradient of x. */
void rmsnorm_backward(float *dx, float *dgain, const float *dy, const float *x, const float *rstd, const float *gain,
                      int64_t rows, int64_t d);

/* Sines and cosines of positions 0 .. n_positions-1: table[position][d/2][cos, sin]. */
void rope_table(float *table, int64_t n_positions, int64_t d, double theta);

/* Rotates channels (c, c + d/2) of every head; row r stands at position first + r % seqlen. backward rotates back.
 * dst is overwritten or, with add, added to. */
typedef struct rope {
    const float *table;
    int64_t first, seqlen;
    int32_t d;
    bool backward, add;
} rope;

void rope_rotate(const rope *r, float *dst, int64_t ld_dst, const float *src, int64_t ld_src, int64_t rows,
                 int32_t n_heads);

/* act = silu(a) * b, where a row of pre is [a | b]. */
void swiglu_forward(float *act, const float *pre, int64_t rows, int64_t d_ff);
void swiglu_backward(float *dpre, const float *dact, const float *pre, int64_t rows, int64_t d_ff);

/* pre += bias, hidden = silu(pre). */
void bias_silu_forward(float *hidden, float *pre, const float *bias, int64_t rows, int64_t n);
void silu_backward(float *dpre, const float *dhidden, const float *pre, int64_t rows, int64_t n);

/* y = sigmoid(y + bias); backward: dy *= y (1 - y). */
void bias_sigmoid_forward(float *y, const float *bias, int64_t rows, int64_t n);
void sigmoid_backward(float *dy, const float *y, int64_t rows, int64_t n);

/* sum[c] = sum over rows of x[r][c]. */
void sum_rows(float *sum, const float *x, int64_t rows, int64_t n);

/* loss[r] = -ln softmax(logits[r])[target[r]]; with grad_scale != 0 the logits become their gradient times it. */
void cross_entropy(float *loss, float *logits, const uint8_t *target, int64_t rows, int64_t n, float grad_scale);

#endif
