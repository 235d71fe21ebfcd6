/*
 * What the tests share: seeded random problems in guarded memory, and comparison by row. Nothing here needs cmocka:
 * where the problems run and what becomes of a failure is in unit.c for the CPU, and in tests/gpu for a GPU.
 */
#ifndef NSA_TESTLIB_H
#define NSA_TESTLIB_H

#include "core/arena.h"
#include "core/check.h"
#include "core/config.h"
#include "core/ctx.h"
#include "core/dtype.h"
#include "core/rows.h"

/* What a failure should tell: implementation, seed, case. Printed before the message of the assertion. */
void test_note(const char *format, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void test_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void end_test(const char *message); /* of test_fail: the test has failed */

#define require(condition)                                                                                             \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            test_fail("%s:%d: not so: %s", __FILE__, __LINE__, #condition);                                            \
    } while (0)

void assert_ok(nsa_status status);

/* ---- Suites that run on the CPU (suite.c) and on a GPU (gpu/main.c): each defines its table */

typedef struct test_case {
    const char *name;
    void (*run)(void **state);
    const void *state; /* *state at the start */
} test_case;

#define TEST(function)                                                                                                 \
    {                                                                                                                  \
#function, function, NULL                                                                                      \
    }

extern const test_case test_cases[]; /* ends with name = NULL */

/* ---- Random numbers: the same on every machine */

typedef struct rng {
    uint64_t state;
} rng;

rng rng_new(void); /* NSA_TEST_SEED, or 1; part of test_fail's message */
uint64_t rng_bits(rng *r);
int32_t rng_range(rng *r, int32_t lo, int32_t hi); /* lo .. hi, both included */
double rng_normal(rng *r);

/* ---- Memory
 *
 * It comes from a pool that testlib_reset() empties: call it between cases. Every buffer is filled with 0xff bytes (NaN
 * in every float type, -1 as i32), and so is what it leaves of its pages, between two pages that are not mapped. What
 * reaches for such a page stops the test; on the side where other bytes lie between, a read finds NaN, and
 * assert_slack_intact what was written. A tensor's elements beyond its sequences' rows stay NaN, for reads of them to
 * show. From 1 GiB on memory is sparse and zero instead: it takes no more than what is touched. */

enum { POISON_BYTE = 0xff };

typedef enum flush { FLUSH_RIGHT = 0, FLUSH_LEFT } flush; /* which end touches the unmapped page */

void *guarded(size_t bytes, flush at);
void *guarded_within(size_t bytes, size_t before); /* neither end; `before` bytes from the left one */
void assert_slack_intact(void);                    /* of all buffers; after a call of the library */
void testlib_reset(void);

static inline bool is_sparse(size_t bytes)
{
    return bytes >= (size_t)1 << 30;
}

void *elements(int64_t n, nsa_dtype dtype); /* either end, or neither and aligned to an element only: as it falls */
void *workspace(size_t bytes);              /* the one end and the other, by turns */

/* Counts op's workspace, gives it just that, full of NaN, and runs it on ctx: a problem of `size` bytes. */
void run_op(const nsa_ctx *ctx, op_fn *op, const void *problem, size_t size);

/* ---- Contexts: one for every row of simd_table that this CPU runs, or one for the GPU */

enum { MAX_CONTEXTS = 8 };

int test_contexts(nsa_ctx contexts[MAX_CONTEXTS], int32_t n_threads);

/* Around a call on ctx. For a GPU all guarded memory is copied there, args_on_device makes every pointer into it in a
 * struct one to its copy, pointers_on_device does so in the copy of an array in guarded memory, and all is copied back.
 * begin_call returns a workspace. */
void *begin_call(const nsa_ctx *ctx, size_t workspace_bytes);
void args_on_device(const nsa_ctx *ctx, void *args, size_t bytes);
void pointers_on_device(const nsa_ctx *ctx, const void *array, size_t bytes);
void end_call(const nsa_ctx *ctx);

/* The pages of every guarded buffer. */
void each_buffer(void (*visit)(void *to, char *first, size_t bytes), void *to);

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
    N_LAYOUTS,
    LAYOUT_FAR_TOKENS = N_LAYOUTS, /* offsets past 2^32 elements, by each of the strides */
    LAYOUT_FAR_HEADS,
    LAYOUT_FAR_SEQS,
    N_LAYOUTS_WITH_FAR
} layout;

int n_test_layouts(void); /* how many of the above: GPUs lack the memory for those that are far */

static inline bool layout_broadcasts(layout as)
{
    return as == LAYOUT_ONE_HEAD || as == LAYOUT_ONE_TOKEN;
}

/* Of the outputs that go with inputs laid out `as`. */
static inline layout output_layout(layout as)
{
    return layout_broadcasts(as) ? LAYOUT_GAPS : as;
}

typedef struct test_tensor {
    nsa_tensor t;
    extent e;
    side side;
    const nsa_config *cfg;
    const nsa_batch *batch;
    layout layout;
    int64_t n; /* elements allocated */
} test_tensor;

extern const nsa_ctx tensor_ctx; /* compressed rows are as many as it says */

test_tensor tensor_new(const nsa_config *cfg, const nsa_batch *batch, side on, int32_t n_heads, int32_t d,
                       nsa_dtype dtype, layout as);
test_tensor tensor_like(const test_tensor *x, nsa_dtype dtype); /* same shape and layout, poisoned */
test_tensor tensor_copy(const test_tensor *x, nsa_dtype dtype); /* and the same elements, converted */
test_tensor tensor_as(const test_tensor *x, layout as);         /* the same elements, laid out otherwise */

int64_t tensor_rows(const test_tensor *x, int32_t s); /* of sequence s */
int64_t tensor_index(const test_tensor *x, int32_t s, int64_t row, int32_t head, int32_t c);
double tensor_get(const test_tensor *x, int32_t s, int64_t row, int32_t head, int32_t c);
void tensor_set(const test_tensor *x, int32_t s, int64_t row, int32_t head, int32_t c, double value);

void tensor_add(const test_tensor *x, int32_t s, int64_t row, int32_t head, int32_t c, double value);

void tensor_fill_normal(const test_tensor *x, rng *r, double sigma);

void tensor_fill_abs(const test_tensor *x, const test_tensor *of); /* |of|; of = NULL: 0 */

/* Any number of blocks, the row's future ones too, in any order, some twice, among entries that must be skipped. */
void tensor_fill_slc_idx(const test_tensor *x, rng *r);

/* ---- Comparison */

/* Row by row:
 *
 *     max|got - exact| <= 2 max|rounded - exact| + 4 ulp of max|exact| (of got's dtype) + 4 float32 ulp of max(size)
 *
 * and NaN and inf, with its sign, stand in the same places. rounded is one draw of the rounding errors that are fair;
 * size (float64) is what they are in proportion to, lucky draw or not: the terms of the row's sums, in absolute value.
 */
#define CLOSE_SIZE 0x1p-21                    /* 4 float32 ulp of 1 */
#define CLOSE_FLUSHED (0x1p-126 / CLOSE_SIZE) /* the size of an exponential that may be 0 below 2^-126 */

void assert_close(const char *what, const test_tensor *got, const test_tensor *exact, const test_tensor *rounded,
                  const test_tensor *size);

void assert_same_bits(const char *what, const test_tensor *got, const test_tensor *expected);
bool row_same_bits(const test_tensor *a, const test_tensor *b, int32_t s, int64_t row, int32_t head);

/* Nothing was written outside the rows of x. */
void assert_padding_intact(const char *what, const test_tensor *x);

#endif
