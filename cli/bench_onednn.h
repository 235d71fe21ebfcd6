/* Dense attention by oneDNN over the tensors of a measurement. */
#ifndef CLI_BENCH_ONEDNN_H
#define CLI_BENCH_ONEDNN_H

#include "cli/bench_tensors.h"

#include "bench/onednn_attn.h"

/* A packed tensor as oneDNN gets it: [sequence][head / group][token][head % group][d], in bf16 or f32. NULL: no memory.
 */
void *bench_onednn_pack(bench_tensors *m, const bench_shape *shape, const nsa_tensor *x, int64_t tokens, int32_t group);

/* The same problem with `n_q` queries. NULL: lm_error() tells. */
onednn_attn *bench_onednn_create(const bench_shape *shape, int64_t n_q, int64_t block);

/* Is o, laid out as above, `expected` but for rounding? */
bool bench_onednn_check(const bench_shape *shape, const void *o, const nsa_tensor *expected, int64_t n_q);

#endif
