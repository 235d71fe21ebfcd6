#include "testlib/testlib.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Failures */

static char note[256];
static uint64_t seed;

void test_note(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(note, sizeof note, format, args);
    va_end(args);
}

void test_fail(const char *format, ...)
{
    char message[512];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    char whole[1024];
    snprintf(whole, sizeof whole, "[%s, seed %llu] %s", note, (unsigned long long)seed, message);
    end_test(whole);
}

void assert_ok(nsa_status status)
{
    if (status != NSA_OK)
        test_fail("%s: %s", nsa_status_string(status), nsa_last_error());
}

/* ---- Random numbers */

rng rng_new(void)
{
    const char *given = getenv("NSA_TEST_SEED");
    seed = given == NULL ? 1 : strtoull(given, NULL, 10);
    return (rng){seed};
}

uint64_t rng_bits(rng *r) /* splitmix64 */
{
    uint64_t z = r->state += 0x9e3779b97f4a7c15U;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9U;
    z = (z ^ z >> 27) * 0x94d049bb133111ebU;
    return z ^ z >> 31;
}

int32_t rng_range(rng *r, int32_t lo, int32_t hi)
{
    const uint64_t n = (uint64_t)((int64_t)hi - lo + 1);
    return (int32_t)(lo + (int64_t)(rng_bits(r) % n));
}

double rng_normal(rng *r)
{
    const double u = ((double)(rng_bits(r) >> 11) + 0.5) * 0x1p-53;
    const double angle = 6.283185307179586 * (double)(rng_bits(r) >> 11) * 0x1p-53;
    return sqrt(-2.0 * log(u)) * cos(angle);
}

/* ---- Memory and calls */

void *elements(int64_t n, nsa_dtype dtype)
{
    static rng places = {0};
    const size_t size = dtype_size(dtype), bytes = (size_t)n * size;
    switch (rng_range(&places, 0, 2)) {
    case 0: return guarded(bytes, FLUSH_LEFT);
    case 1: return guarded(bytes, FLUSH_RIGHT);
    default: return guarded_within(bytes, size * (2 * (size_t)rng_range(&places, 0, 15) + 1));
    }
}

void *workspace(size_t bytes)
{
    static unsigned turn;
    return guarded(bytes, turn++ % 2 == 0 ? FLUSH_RIGHT : FLUSH_LEFT);
}

void run_op(const nsa_ctx *ctx, op_fn *op, const void *problem, size_t size)
{
    size_t bytes = 0;
    assert_ok(op_workspace(op, problem, &bytes));
    void *ws = begin_call(ctx, bytes), *there = malloc(size);
    require(there != NULL);
    memcpy(there, problem, size);
    args_on_device(ctx, there, size);
    const nsa_status status = op_run(ctx, op, there, ws, bytes, NULL);
    free(there);
    assert_ok(status);
    end_call(ctx);
    assert_slack_intact();
}

/* ---- Batches */

nsa_batch batch_of(const seq_lengths *lengths, int32_t n_seqs)
{
    const size_t bytes = (size_t)(n_seqs + 1) * sizeof(int32_t);
    int32_t *cu_q = guarded(bytes, FLUSH_RIGHT), *cu_k = guarded(bytes, FLUSH_RIGHT);
    nsa_batch b = {.n_seqs = n_seqs, .cu_seqlens_q = cu_q, .cu_seqlens_k = cu_k};
    cu_q[0] = cu_k[0] = 0;
    for (int32_t s = 0; s < n_seqs; s++) {
        cu_q[s + 1] = cu_q[s] + lengths[s].q;
        cu_k[s + 1] = cu_k[s] + lengths[s].k;
        b.max_seqlen_q = lengths[s].q > b.max_seqlen_q ? lengths[s].q : b.max_seqlen_q;
        b.max_seqlen_k = lengths[s].k > b.max_seqlen_k ? lengths[s].k : b.max_seqlen_k;
    }
    b.total_q = cu_q[n_seqs];
    b.total_k = cu_k[n_seqs];
    return b;
}

nsa_batch batch_ragged(int32_t block, int32_t max)
{
    const seq_lengths lengths[] = {
        {0, 0},
        {1, 1},
        {block - 1, block - 1},
        {block, block},
        {block + 1, block + 1},
        {max, max},
        {3, 0},
        {0, 7},
        {1, max},
        {7, 3},
        {block + 3, block - 1},
        {5, block + 5},
        {13, 13},
        {0, 0},
    };
    return batch_of(lengths, sizeof lengths / sizeof *lengths);
}

/* ---- Tensors */

int64_t tensor_rows(const test_tensor *x, int32_t s)
{
    const int32_t *cu = x->side == SIDE_Q ? x->batch->cu_seqlens_q : x->batch->cu_seqlens_k;
    const int64_t n = cu[s + 1] - cu[s];
    return x->side == SIDE_CMP ? nsa_n_cmp(x->cfg, n) : n;
}

int64_t tensor_index(const test_tensor *x, int32_t s, int64_t row, int32_t head, int32_t c)
{
    const int64_t start = x->side == SIDE_Q   ? x->batch->cu_seqlens_q[s]
                          : x->side == SIDE_K ? x->batch->cu_seqlens_k[s]
                                              : x->batch->cu_seqlens_k[s] / x->cfg->cmp_stride;
    const int64_t first = x->t.stride_seq != 0 ? s * x->t.stride_seq : start * x->t.stride_token;
    return first + row * x->t.stride_token + head * x->t.stride_head + c;
}

double tensor_get(const test_tensor *x, int32_t s, int64_t row, int32_t head, int32_t c)
{
    return dtype_get(x->t.data, x->t.dtype, tensor_index(x, s, row, head, c));
}

void tensor_set(const test_tensor *x, int32_t s, int64_t row, int32_t head, int32_t c, double value)
{
    dtype_set(x->t.data, x->t.dtype, tensor_index(x, s, row, head, c), value);
}

/* What n rows, heads or sequences are further apart than they need be: more than 2^32 bytes, and the last from the
 * first more than 2^32 elements. The thread sanitizer leaves no room for that, and qemu needs memory for every page
 * that is mapped. */
static int64_t far_stride(int64_t n, nsa_dtype dtype)
{
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
    return 0;
#endif
#endif
#if defined(EMULATED)
    return 0;
#endif
    const int64_t size = (int64_t)dtype_size(dtype);
    return n < 2 ? 0 : ((int64_t)1 << 32) / min_i64(n - 1, size);
}

/* At either end, so on whole 16 bytes, where kernels for tensor cores could take the tensor. */
static void *tensor_elements(const test_tensor *x)
{
    if (x->t.dtype != NSA_BF16 || x->e.d % 64 != 0 || x->layout == LAYOUT_GAPS)
        return elements(x->n, x->t.dtype);
    static unsigned turn;
    return guarded((size_t)x->n * dtype_size(NSA_BF16), turn++ % 2 == 0 ? FLUSH_RIGHT : FLUSH_LEFT);
}

test_tensor tensor_new(const nsa_config *cfg, const nsa_batch *batch, side on, int32_t n_heads, int32_t d,
                       nsa_dtype dtype, layout as)
{
    test_tensor x = {.side = on, .cfg = cfg, .batch = batch, .layout = as};
    x.e = on == SIDE_Q   ? extent_q(cfg, batch, d)
          : on == SIDE_K ? extent_k(cfg, batch, d)
                         : extent_cmp(&tensor_ctx, cfg, batch, d);
    x.e.n_heads = n_heads;
    const int64_t max = x.e.max_seqlen;
    x.t = nsa_packed(NULL, dtype, n_heads, d);
    switch (as) {
    case LAYOUT_HTD: x.t.stride_head = x.e.total * d, x.t.stride_token = d; break;
    case LAYOUT_BSHD: x.t.stride_seq = max * n_heads * d; break;
    case LAYOUT_BHSD: x.t.stride_seq = max * n_heads * d, x.t.stride_head = max * d, x.t.stride_token = d; break;
    case LAYOUT_GAPS: x.t.stride_head = d + 3, x.t.stride_token = n_heads * (d + 3) + 5; break;
    case LAYOUT_FAR_TOKENS: x.t.stride_token += far_stride(x.e.total, dtype); break;
    case LAYOUT_FAR_HEADS: x.t.stride_head = x.e.total * d + far_stride(n_heads, dtype), x.t.stride_token = d; break;
    case LAYOUT_FAR_SEQS: x.t.stride_seq = max * n_heads * d + far_stride(x.e.n_seqs, dtype); break;
    case LAYOUT_ONE_HEAD: x.t.stride_head = 0, x.t.stride_token = d; break;
    case LAYOUT_ONE_TOKEN: x.t.stride_token = 0; break;
    default: break;
    }
    const int64_t n_rows = x.t.stride_seq == 0 ? x.e.total : max;
    if (n_rows > 0 && x.e.n_seqs > 0)
        x.n = (x.e.n_seqs - 1) * x.t.stride_seq + (n_rows - 1) * x.t.stride_token + (n_heads - 1) * x.t.stride_head + d;
    x.t.data = tensor_elements(&x);
    return x;
}

test_tensor tensor_like(const test_tensor *x, nsa_dtype dtype)
{
    test_tensor y = *x;
    y.t.dtype = dtype;
    y.t.data = tensor_elements(&y);
    return y;
}

/* for (row_at at = {0, -1, 0}; next_row(x, &at);) every (sequence, row, head) of x. */
typedef struct row_at {
    int32_t s;
    int64_t row;
    int32_t head;
} row_at;

static const row_at before_first = {0, 0, -1};

static bool next_row(const test_tensor *x, row_at *at)
{
    if (++at->head == x->e.n_heads)
        at->head = 0, at->row++;
    while (at->s < x->e.n_seqs && at->row >= tensor_rows(x, at->s))
        at->row = 0, at->s++;
    return at->s < x->e.n_seqs;
}

test_tensor tensor_copy(const test_tensor *x, nsa_dtype dtype)
{
    test_tensor y = tensor_like(x, dtype);
    for (row_at a = before_first; next_row(x, &a);)
        for (int32_t c = 0; c < x->e.d; c++)
            tensor_set(&y, a.s, a.row, a.head, c, tensor_get(x, a.s, a.row, a.head, c));
    return y;
}

test_tensor tensor_as(const test_tensor *x, layout as)
{
    test_tensor y = tensor_new(x->cfg, x->batch, x->side, x->e.n_heads, x->e.d, x->t.dtype, as);
    const int64_t size = (int64_t)dtype_size(x->t.dtype);
    for (row_at a = before_first; next_row(x, &a);)
        memcpy((char *)y.t.data + tensor_index(&y, a.s, a.row, a.head, 0) * size,
               (char *)x->t.data + tensor_index(x, a.s, a.row, a.head, 0) * size, (size_t)(x->e.d * size));
    return y;
}

void tensor_add(const test_tensor *x, int32_t s, int64_t row, int32_t head, int32_t c, double value)
{
    tensor_set(x, s, row, head, c, tensor_get(x, s, row, head, c) + value);
}

void tensor_fill_normal(const test_tensor *x, rng *r, double sigma)
{
    for (row_at a = before_first; next_row(x, &a);)
        for (int32_t c = 0; c < x->e.d; c++)
            tensor_set(x, a.s, a.row, a.head, c, sigma * rng_normal(r));
}

void tensor_fill_abs(const test_tensor *x, const test_tensor *of)
{
    for (row_at a = before_first; next_row(x, &a);)
        for (int32_t c = 0; c < x->e.d; c++)
            tensor_set(x, a.s, a.row, a.head, c, of == NULL ? 0.0 : fabs(tensor_get(of, a.s, a.row, a.head, c)));
}

void tensor_fill_slc_idx(const test_tensor *x, rng *r)
{
    for (int32_t s = 0; s < x->batch->n_seqs; s++) {
        const int64_t t_k = x->batch->cu_seqlens_k[s + 1] - x->batch->cu_seqlens_k[s];
        const int32_t n_blocks = (int32_t)n_slc_blocks(x->cfg, t_k);
        const int32_t skipped[] = {INT32_MIN, -1, n_blocks, n_blocks + 1, INT32_MAX, INT32_MAX / 2};
        for (int64_t row = 0; row < tensor_rows(x, s); row++)
            for (int32_t h = 0; h < x->e.n_heads; h++) {
                int32_t *idx = (int32_t *)x->t.data + tensor_index(x, s, row, h, 0);
                int32_t block = n_blocks == 0 ? 0 : rng_range(r, 0, n_blocks - 1), left = n_blocks;
                for (int32_t i = 0; i < x->e.d; i++) {
                    const bool valid = left > 0 && rng_range(r, 0, 3) > 0;
                    const bool twice = i > 0 && rng_range(r, 0, 3) == 0;
                    idx[i] = valid ? block : twice ? idx[rng_range(r, 0, i - 1)] : skipped[rng_range(r, 0, 5)];
                    if (valid)
                        block = (block + 1) % n_blocks, left--;
                }
                for (int32_t i = x->e.d - 1; i > 0; i--) { /* shuffle */
                    const int32_t j = rng_range(r, 0, i), swap = idx[i];
                    idx[i] = idx[j], idx[j] = swap;
                }
            }
    }
}

/* ---- Comparison */

static double ulp(double x, nsa_dtype t)
{
    const int bits = t == NSA_F64 ? 52 : t == NSA_F32 ? 23 : t == NSA_F16 ? 10 : 7;
    const int lowest = t == NSA_F64 ? -1022 : t == NSA_F16 ? -14 : -126;
    const int exponent = x == 0.0 || ilogb(x) < lowest ? lowest : ilogb(x);
    return ldexp(1.0, exponent - bits);
}

/* NaN 3, +inf 2, -inf 1, else 0: by bits, whatever the compiler thinks of NaN. */
static int class_of(double x)
{
    uint64_t u;
    memcpy(&u, &x, sizeof u);
    const uint64_t magnitude = u & 0x7fffffffffffffffU;
    if (magnitude < 0x7ff0000000000000U)
        return 0;
    return magnitude > 0x7ff0000000000000U ? 3 : u >> 63 ? 1 : 2;
}

/* Largest finite |x| of a row. */
static double row_max(const test_tensor *x, row_at a)
{
    double max = 0.0;
    for (int32_t c = 0; c < x->e.d; c++) {
        const double value = tensor_get(x, a.s, a.row, a.head, c);
        if (class_of(value) == 0)
            max = fmax(max, fabs(value));
    }
    return max;
}

/* max|rounded - exact| over a row. */
static double row_error(const test_tensor *rounded, const test_tensor *exact, row_at a)
{
    double max = 0.0;
    for (int32_t c = 0; c < exact->e.d; c++) {
        const double e = tensor_get(exact, a.s, a.row, a.head, c);
        if (class_of(e) == 0)
            max = fmax(max, fabs(tensor_get(rounded, a.s, a.row, a.head, c) - e));
    }
    return max;
}

void assert_close(const char *what, const test_tensor *got, const test_tensor *exact, const test_tensor *rounded,
                  const test_tensor *size)
{
    for (row_at a = before_first; next_row(got, &a);) {
        const double fair = row_error(rounded, exact, a);
        const double allowed = 2.0 * fair + 4.0 * ulp(row_max(exact, a), got->t.dtype) + CLOSE_SIZE * row_max(size, a);
        for (int32_t c = 0; c < got->e.d; c++) {
            const double x = tensor_get(got, a.s, a.row, a.head, c), e = tensor_get(exact, a.s, a.row, a.head, c);
            if (class_of(x) != class_of(e) || (class_of(x) == 0 && !(fabs(x - e) <= allowed)))
                test_fail("%s: seq %d, row %lld, head %d, channel %d: got %.9g, exact %.9g, off by %.3g, allowed %.3g "
                          "(rounded reference: %.3g, size: %.3g)",
                          what, a.s, (long long)a.row, a.head, c, x, e, fabs(x - e), allowed, fair, row_max(size, a));
        }
    }
}

bool row_same_bits(const test_tensor *a, const test_tensor *b, int32_t s, int64_t row, int32_t head)
{
    const size_t size = dtype_size(a->t.dtype);
    return memcmp((const char *)a->t.data + (size_t)tensor_index(a, s, row, head, 0) * size,
                  (const char *)b->t.data + (size_t)tensor_index(b, s, row, head, 0) * size,
                  (size_t)a->e.d * size) == 0;
}

void assert_same_bits(const char *what, const test_tensor *got, const test_tensor *expected)
{
    require(got->t.dtype == expected->t.dtype);
    for (row_at a = before_first; next_row(got, &a);) {
        if (row_same_bits(got, expected, a.s, a.row, a.head))
            continue;
        int32_t c = 0;
        while (c < got->e.d - 1 &&
               tensor_get(got, a.s, a.row, a.head, c) == tensor_get(expected, a.s, a.row, a.head, c))
            c++;
        test_fail("%s: seq %d, row %lld, head %d, channel %d: got %.17g, expected %.17g bit for bit", what, a.s,
                  (long long)a.row, a.head, c, tensor_get(got, a.s, a.row, a.head, c),
                  tensor_get(expected, a.s, a.row, a.head, c));
    }
}

void assert_padding_intact(const char *what, const test_tensor *x)
{
    if (is_sparse((size_t)x->n * dtype_size(x->t.dtype))) /* too many to look at */
        return;
    const int64_t size = (int64_t)dtype_size(x->t.dtype);
    unsigned char *copy = malloc((size_t)(x->n * size) + 1);
    require(copy != NULL);
    memcpy(copy, x->t.data, (size_t)(x->n * size));
    for (row_at a = before_first; next_row(x, &a);)
        memset(copy + tensor_index(x, a.s, a.row, a.head, 0) * size, POISON_BYTE, (size_t)(x->e.d * size));
    int64_t i = 0;
    while (i < x->n * size && copy[i] == POISON_BYTE)
        i++;
    free(copy);
    if (i < x->n * size)
        test_fail("%s: element %lld lies in no row, yet was written", what, (long long)(i / size));
}
