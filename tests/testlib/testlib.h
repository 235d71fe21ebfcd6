/*
 * What the tests share: seeded random problems in guarded memory, and comparison by row.
 *
 * Memory comes from a pool that testlib_reset() empties: call it between cases. Every buffer is filled with 0xff bytes
 * (NaN in every float type, -1 as i32) and touches an unmapped page with its one end or the other; a tensor's
 * elements beyond its sequences' rows stay so, for reads of them to show.
 */
#ifndef NSA_TESTLIB_H
#define NSA_TESTLIB_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "core/arena.h"
#include "core/check.h"
#include "core/config.h"
#include "core/ctx.h"
#include "core/dtype.h"
#include "core/rows.h"

/* What a failure should tell: implementation, seed, case. Printed before the message of the assertion. */
void test_note(const char *format, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void test_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- Random numbers: the same on every machine */

typedef struct rng {
    uint64_t state;
} rng;

rng rng_new(void); /* NSA_TEST_SEED, or 1; part of test_fail's message */
uint64_t rng_bits(rng *r);
int32_t rng_range(rng *r, int32_t lo, int32_t hi); /* lo .. hi, both included */
double rng_normal(rng *r);

/* ---- Memory */

enum { POISON_BYTE = 0xff };

typedef enum flush { FLUSH_RIGHT = 0, FLUSH_LEFT } flush; /* which end touches the unmapped page */

void *guarded(size_t bytes, flush at);
void testlib_reset(void);

/* Counts op's workspace, gives it just that, full of NaN, and runs it. */
void run_op(op_fn *op, const void *problem);

/* ---- Contexts: one for every row of simd_table that this CPU runs */

enum { MAX_CONTEXTS = 8 };

int test_contexts(nsa_ctx contexts[MAX_CONTEXTS], int32_t n_threads);

/* ---- Batches */

typedef struct seq_lengths {
    int32_t q, k;
} seq_lengths;

nsa_batch batch_of(const seq_lengths *lengths, int32_t n_seqs);

/* The lengths that break things, for blocks of `block` tokens: 0, 1, block +- 1, primes up to max; T_q != T_k. */
nsa_batch batch_ragged(int32_t block, int32_t max);

/* ---- Tensors */

typedef enum side { SIDE_Q, SIDE_K, SIDE_CMP } side; /* rows are query tokens, key tokens, compressed blocks */

typedef enum layout {
    LAYOUT_THD = 0,
    LAYOUT_HTD,
    LAYOUT_BSHD,
    LAYOUT_BHSD,
    LAYOUT_GAPS, /* THD with unused elements between heads and between tokens */
    N_OUTPUT_LAYOUTS,
    LAYOUT_ONE_HEAD = N_OUTPUT_LAYOUTS, /* a stride of 0 over the heads; inputs only */
    LAYOUT_ONE_TOKEN,                   /* over the tokens */
    N_LAYOUTS
} layout;

typedef struct test_tensor {
    nsa_tensor t;
    extent e;
    side side;
    const nsa_config *cfg;
    const nsa_batch *batch;
    layout layout;
    int64_t n; /* elements allocated */
} test_tensor;

test_tensor tensor_new(const nsa_config *cfg, const nsa_batch *batch, side on, int32_t n_heads, int32_t d,
                       nsa_dtype dtype, layout as);
test_tensor tensor_like(const test_tensor *x, nsa_dtype dtype); /* same shape and layout, poisoned */
test_tensor tensor_copy(const test_tensor *x, nsa_dtype dtype); /* and the same elements, converted */

int64_t tensor_rows(const test_tensor *x, int32_t s); /* of sequence s */
int64_t tensor_index(const test_tensor *x, int32_t s, int64_t row, int32_t head, int32_t c);
double tensor_get(const test_tensor *x, int32_t s, int64_t row, int32_t head, int32_t c);
void tensor_set(const test_tensor *x, int32_t s, int64_t row, int32_t head, int32_t c, double value);

void tensor_fill_normal(const test_tensor *x, rng *r, double sigma);

/* ---- Comparison */

/* Row by row: max|got - exact| <= 2 max|rounded - exact| + 4 ulp of max|exact| (of got's dtype) + 4 float32 ulp of the
 * tensor's max|exact| (a row that cancels to 0 keeps the rounding of its terms); NaN and inf, with its sign, in the
 * same places. In float32, where one row's error is one throw of the dice, a row may also err twice as much as the
 * rounded reference does in its worst row. */
void assert_close(const char *what, const test_tensor *got, const test_tensor *exact, const test_tensor *rounded);

void assert_same_bits(const char *what, const test_tensor *got, const test_tensor *expected);
bool row_same_bits(const test_tensor *a, const test_tensor *b, int32_t s, int64_t row, int32_t head);

/* Nothing was written outside the rows of x. */
void assert_padding_intact(const char *what, const test_tensor *x);

#endif
