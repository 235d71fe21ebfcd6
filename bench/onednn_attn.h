/*
 * Dense causal attention made of oneDNN's matrix products: the best that packaged libraries offer on a CPU, and the
 * baseline of `nsa bench`. For each block of query tokens
 *
 *     S = scale * Q K^T      Q: the heads of the block's tokens that share a K as rows, K: the keys up to its last
 * token P = softmax(S)         whole rows at once, what comes after a token masked first O = P V
 *
 * In bf16 all tensors, S and P among them, are bf16 and sums are float.
 */
#ifndef BENCH_ONEDNN_ATTN_H
#define BENCH_ONEDNN_ATTN_H

#include <stdbool.h>
#include <stdint.h>

/* q [batch][n_q][group][d_qk]   k [batch][n_k][d_qk]   v [batch][n_k][d_v]   o [batch][n_q][group][d_v], all packed:
 * the layout that suits the products. Queries are the last n_q of the n_k tokens. */
typedef struct onednn_problem {
    bool bf16;     /* or f32 */
    int64_t batch; /* sequences times kv heads */
    int64_t group, n_q, n_k, d_qk, d_v;
    int64_t block; /* query tokens at a time */
} onednn_problem;

/* Does oneDNN multiply bf16 by instructions of its own here? */
bool onednn_has_bf16(void);

/* Makes the primitives of all blocks: slow. They run with as many threads as OpenMP has now. NULL: lm_error() tells. */
typedef struct onednn_attn onednn_attn;
onednn_attn *onednn_attn_create(const onednn_problem *p);
void onednn_attn_destroy(onednn_attn *a); /* NULL is fine */

bool onednn_attn_run(onednn_attn *a, void *q, void *k, void *v, void *o);

#endif
