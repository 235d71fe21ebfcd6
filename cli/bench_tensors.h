/* Memory of a measurement: tensors of random numbers, phi's parameters, caches. What does not fit sets out_of_memory.
 */
#ifndef CLI_BENCH_TENSORS_H
#define CLI_BENCH_TENSORS_H

#include "cli/bench.h"

#include <stddef.h>

enum { BENCH_MAX_BUFFERS = 640 }; /* a decoded token has 256 caches of K and V at most */

typedef struct bench_tensors {
    void *buffers[BENCH_MAX_BUFFERS];
    int n_buffers;
    bool out_of_memory;
    uint64_t random;
    const bench_device *device; /* where they are */
} bench_tensors;

/* `count` elements of `size` bytes, zeroed: touched before the clock runs. */
void *bench_take(bench_tensors *m, int64_t count, size_t size);

/* The array [n + 1] of 0, step, 2 step ... */
int32_t *bench_take_cu(bench_tensors *m, int32_t n, int32_t step);
void bench_tensors_free(bench_tensors *m);

size_t bench_element_size(nsa_dtype dtype);

/* What a forward leaves for backward. */
double bench_residual_bytes(const bench_shape *shape, bench_attention attention);

nsa_tensor bench_tensor(bench_tensors *m, int64_t rows, nsa_dtype dtype, int32_t heads, int32_t d);

/* Variance 1, so that the logits' is too. */
nsa_tensor bench_random_tensor(bench_tensors *m, int64_t rows, nsa_dtype dtype, int32_t heads, int32_t d);

/* Queries: those of clustered shapes turn slowly. */
nsa_tensor bench_random_q(bench_tensors *m, int64_t rows, const bench_shape *shape);

/* Gates in [0, 1). */
nsa_tensor bench_random_gate(bench_tensors *m, int64_t rows, int32_t heads);

/* One set of parameters for all heads, f32; their gradients in dphi (may be NULL). An mlp is d wide inside. */
void bench_make_phi(bench_tensors *m, const bench_shape *shape, int32_t d, nsa_phi *phi, nsa_phi *dphi);

/* Caches of `n` sequences of up to shape->seqlen + 1 tokens, empty: states [n], table [n][pages_per_seq]. */
typedef struct bench_caches {
    nsa_cache pool;
    int32_t pages_per_seq;
    size_t page_bytes, state_bytes;
    void **states; /* where kernels read it, as the table */
    int32_t *table;
    char *first_state; /* state_bytes before the next */
} bench_caches;

static inline void *bench_state(const bench_caches *c, int32_t s)
{
    return c->first_state + (size_t)s * c->state_bytes;
}

nsa_status bench_make_caches(bench_tensors *m, const nsa_ctx *ctx, const bench_shape *shape, int32_t n,
                             bench_caches *caches);

#endif
