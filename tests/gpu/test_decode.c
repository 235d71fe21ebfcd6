/* nsa_decode by its own kernels against nsa_prefill by those of any shape: the same outputs, to rounding, the same
 * selection, and bit for bit the same pages, rings and lengths. Memory that was never written is NaN. */
#include "gpu/device.h"

#include <cuda_runtime_api.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_SEQS = 64, MAX_NEW = 8, GUARD = 4096 };

typedef struct decode_shape {
    int32_t n_heads_q, n_heads_kv;
    int32_t cmp_block, cmp_stride, slc_block, slc_topk, slc_n_init, slc_n_local, win_size;
    int32_t page_size, pages_per_seq, max_draft, shared_kv;
    nsa_phi_kind phi;
    int32_t n_seqs, longest; /* tokens to begin with */
    int32_t max_new, n_steps;
    int32_t d_qk, d_v;
} decode_shape;

static const decode_shape shapes[] = {
    {32, 2, 32, 16, 64, 16, 1, 2, 512, 256, 16, 2, 0, NSA_PHI_MEAN, 2, 3000, 1, 20, 128, 128},
    {64, 4, 32, 16, 64, 16, 1, 2, 512, 256, 16, 2, 1, NSA_PHI_MEAN, 2, 1500, 1, 20, 128, 128},
    {16, 1, 32, 16, 64, 16, 1, 2, 512, 64, 24, 0, 0, NSA_PHI_MEAN, 3, 1200, 1, 40, 128, 128},
    {8, 2, 8, 4, 16, 4, 1, 1, 13, 32, 8, 5, 0, NSA_PHI_MEAN, 3, 20, 5, 30, 128, 128},
    {8, 2, 8, 4, 16, 4, 1, 1, 13, 32, 8, 5, 1, NSA_PHI_MEAN, 3, 0, 5, 30, 128, 128},
    {3, 1, 8, 4, 16, 4, 1, 1, 13, 32, 12, 0, 0, NSA_PHI_GATED_CHANNEL, 3, 60, 8, 24, 128, 128},
    {12, 2, 8, 8, 32, 5, 0, 0, 40, 64, 6, 3, 1, NSA_PHI_LINEAR, 3, 100, 3, 24, 128, 128},
    {30, 2, 32, 8, 48, 6, 2, 1, 100, 96, 12, 8, 0, NSA_PHI_MEAN, 20, 500, 8, 6, 128, 128},
    {4, 2, 32, 16, 64, 16, 1, 2, 512, 128, 40, 1, 1, NSA_PHI_MEAN, 60, 1500, 2, 6, 128, 128},
    {32, 2, 32, 16, 64, 4, 1, 2, 1 << 30, 128, 16, 1, 1, NSA_PHI_MEAN, 8, 700, 2, 6, 128, 128},
    {64, 4, 32, 16, 64, 16, 1, 2, 512, 256, 16, 2, 0, NSA_PHI_MEAN, 3, 3000, 2, 12, 64, 64},
    {8, 2, 8, 4, 16, 4, 1, 1, 13, 32, 8, 5, 1, NSA_PHI_MEAN, 3, 20, 5, 20, 64, 64},
    {32, 2, 32, 16, 64, 16, 1, 2, 512, 256, 16, 2, 0, NSA_PHI_MEAN, 3, 3000, 2, 12, 192, 128},
    {8, 2, 8, 4, 16, 4, 1, 1, 13, 32, 8, 5, 1, NSA_PHI_MEAN, 3, 20, 5, 20, 192, 128},
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static void cuda_ok(cudaError_t error)
{
    if (error != cudaSuccess)
        test_fail("CUDA: %s", cudaGetErrorString(error));
}

/* ---- Memory that a case takes, filled with NaN, with a guard behind each piece */

static struct {
    char *at[64];
    size_t bytes[64];
    int n;
} taken;

static void *take(size_t bytes)
{
    char *p = NULL;
    require(taken.n < 64);
    cuda_ok(cudaMalloc((void **)&p, bytes + GUARD));
    cuda_ok(cudaMemset(p, POISON_BYTE, bytes + GUARD));
    taken.at[taken.n] = p;
    taken.bytes[taken.n++] = bytes;
    return p;
}

static void check_guards(void)
{
    static unsigned char guard[GUARD];
    for (int i = 0; i < taken.n; i++) {
        cuda_ok(cudaMemcpy(guard, taken.at[i] + taken.bytes[i], GUARD, cudaMemcpyDeviceToHost));
        for (int k = 0; k < GUARD; k++)
            if (guard[k] != POISON_BYTE)
                test_fail("written behind buffer %d of %d, of %zu bytes", i, taken.n, taken.bytes[i]);
    }
}

static void give_back(void)
{
    while (taken.n > 0)
        cuda_ok(cudaFree(taken.at[--taken.n]));
}

static void upload(void *to, const void *from, size_t bytes)
{
    cuda_ok(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice));
}

static void *download(const void *from, size_t bytes)
{
    void *to = malloc(bytes + 1);
    require(to != NULL);
    cuda_ok(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost));
    return to;
}

/* ---- A case: two caches that get the same tokens */

typedef struct one_cache {
    nsa_cache pool;
    char *states[MAX_SEQS];
    void **pointers;
    size_t page_bytes, state_bytes;
} one_cache;

typedef struct decode_case {
    const decode_shape *shape;
    nsa_config cfg;
    nsa_phi phi;
    one_cache caches[2];
    int32_t *table;
    int64_t held[MAX_SEQS], longest[MAX_SEQS];
    int64_t room; /* rows of the call's tensors */
    void *q[3], *k[3], *v[3], *gate, *o[2], *slc_idx[2];
    int32_t *cu;
    void *workspace;
    size_t workspace_bytes;
} decode_case;

/* Random numbers of variance sigma^2, four of each draw. */
static void fill(void *to, int64_t n, nsa_dtype dtype, double sigma, rng *r)
{
    void *x = malloc((size_t)(n + 4) * dtype_size(dtype));
    require(x != NULL);
    for (int64_t i = 0; i < n; i += 4) {
        const uint64_t bits = rng_bits(r);
        for (int k = 0; k < 4; k++)
            dtype_set(x, dtype, i + k, sigma * sqrt(12.0) * ((double)(bits >> 16 * k & 0xffff) * 0x1p-16 - 0.5));
    }
    upload(to, x, (size_t)n * dtype_size(dtype));
    free(x);
}

/* From 0.2 to 1, so that the branches do not cancel. */
static void fill_gates(void *to, int64_t n, rng *r)
{
    float *x = malloc((size_t)n * sizeof *x);
    require(x != NULL);
    for (int64_t i = 0; i < n; i++)
        x[i] = 0.2F + 0.8F * (float)(rng_bits(r) >> 40) * 0x1p-24F;
    upload(to, x, (size_t)n * sizeof *x);
    free(x);
}

static void *random_numbers(int64_t n, nsa_dtype dtype, double sigma, rng *r)
{
    void *p = take((size_t)n * dtype_size(dtype));
    fill(p, n, dtype, sigma, r);
    return p;
}

static void make_phi(decode_case *c, rng *r)
{
    const int64_t block = c->cfg.cmp_block, d = c->cfg.d_qk;
    require(c->shape->phi == NSA_PHI_MEAN || d == c->cfg.d_v);
    c->phi = (nsa_phi){.kind = c->shape->phi, .dtype = NSA_F32};
    if (c->phi.kind == NSA_PHI_LINEAR) {
        c->phi.pe = random_numbers(block * d, NSA_F32, 1.0, r);
        c->phi.w1 = random_numbers(block * d * d, NSA_F32, 1.0 / sqrt((double)(block * d)), r);
    }
    if (c->phi.kind == NSA_PHI_GATED_CHANNEL) {
        c->phi.w1 = random_numbers(d * d, NSA_F32, 1.0 / sqrt((double)d), r);
        c->phi.b1 = random_numbers(block * d, NSA_F32, 1.0, r);
    }
}

static void make_cache(decode_case *c, one_cache *x)
{
    const decode_shape *s = c->shape;
    void *states[MAX_SEQS];
    x->pool = (nsa_cache){.page_size = s->page_size,
                          .max_draft = s->max_draft,
                          .shared_kv = s->shared_kv,
                          .dtype = NSA_BF16,
                          .n_pages = (int64_t)s->n_seqs * s->pages_per_seq + 3};
    assert_ok(nsa_cache_page_bytes(gpu_context(), &c->cfg, &x->pool, &x->page_bytes));
    assert_ok(nsa_cache_state_bytes(gpu_context(), &c->cfg, &x->pool, &x->state_bytes));
    x->pool.pages = take((size_t)x->pool.n_pages * x->page_bytes);
    char *first = take((size_t)s->n_seqs * x->state_bytes);
    for (int i = 0; i < s->n_seqs; i++) {
        states[i] = x->states[i] = first + (size_t)i * x->state_bytes;
        assert_ok(nsa_cache_reset(gpu_context(), &c->cfg, &x->pool, states[i], NULL));
    }
    x->pointers = take((size_t)s->n_seqs * sizeof *x->pointers);
    upload(x->pointers, states, (size_t)s->n_seqs * sizeof *states);
}

static void make_case(decode_case *c, const decode_shape *s, rng *r)
{
    *c = (decode_case){.shape = s,
                       .cfg = {sizeof(nsa_config), s->n_heads_q, s->n_heads_kv, s->d_qk, s->d_v, s->cmp_block,
                               s->cmp_stride, s->slc_block, s->slc_topk, s->slc_n_init, s->slc_n_local, s->win_size,
                               0.0}};
    make_phi(c, r);
    make_cache(c, &c->caches[0]);
    make_cache(c, &c->caches[1]);
    const int32_t n = s->n_seqs * s->pages_per_seq;
    int32_t *table = malloc((size_t)n * sizeof *table);
    require(table != NULL);
    for (int32_t i = 0; i < n; i++)
        table[i] = i + 3;
    for (int32_t i = n - 1; i > 0; i--) {
        const int32_t j = rng_range(r, 0, i), page = table[i];
        table[i] = table[j], table[j] = page;
    }
    c->table = take((size_t)n * sizeof *table);
    upload(c->table, table, (size_t)n * sizeof *table);
    free(table);
    c->cu = take(((size_t)s->n_seqs + 1) * sizeof *c->cu);
    c->room = max_i64((int64_t)s->n_seqs * s->longest, (int64_t)s->n_seqs * MAX_NEW);
    for (int b = 0; b < 3; b++) {
        c->q[b] = take((size_t)(c->room * s->n_heads_q * s->d_qk * 2));
        c->k[b] = take((size_t)(c->room * s->n_heads_kv * s->d_qk * 2));
        c->v[b] = take((size_t)(c->room * s->n_heads_kv * s->d_v * 2));
    }
    c->gate = take((size_t)(c->room * s->n_heads_q * 3 * 4));
    for (int i = 0; i < 2; i++) {
        c->o[i] = take((size_t)(c->room * s->n_heads_q * s->d_v * 2));
        c->slc_idx[i] = take((size_t)(c->room * s->n_heads_kv * s->slc_topk * 4));
    }
}

typedef nsa_status sizing(const nsa_ctx *, const nsa_config *, const nsa_cache *, const nsa_cache_args *, size_t *);
typedef nsa_status appending(const nsa_ctx *, const nsa_config *, const nsa_cache *, const nsa_cache_args *, void *,
                             size_t, nsa_stream);

static void call(decode_case *c, int which, nsa_cache_args a, sizing *size, appending *run)
{
    size_t bytes = 0;
    a.states = c->caches[which].pointers;
    a.o.data = c->o[which];
    a.slc_idx.data = c->slc_idx[which];
    assert_ok(size(gpu_context(), &c->cfg, &c->caches[which].pool, &a, &bytes));
    if (bytes > c->workspace_bytes) {
        cuda_ok(cudaFree(c->workspace));
        cuda_ok(cudaMalloc(&c->workspace, bytes));
        c->workspace_bytes = bytes;
    }
    assert_ok(run(gpu_context(), &c->cfg, &c->caches[which].pool, &a, c->workspace, c->workspace_bytes, NULL));
}

/* New random tokens, n_new[s] of each sequence; by nsa_decode into the first cache, if so wanted. */
static void append(decode_case *c, const int32_t n_new[], bool decode, rng *r)
{
    const decode_shape *s = c->shape;
    int32_t cu[MAX_SEQS + 1] = {0}, most = 0;
    for (int i = 0; i < s->n_seqs; i++) {
        cu[i + 1] = cu[i] + n_new[i];
        most = n_new[i] > most ? n_new[i] : most;
    }
    const int64_t total = cu[s->n_seqs];
    upload(c->cu, cu, ((size_t)s->n_seqs + 1) * sizeof *cu);
    nsa_cache_args a = {.n_seqs = s->n_seqs,
                        .max_seqlen = most,
                        .total = total,
                        .cu_seqlens = c->cu,
                        .page_table = c->table,
                        .pages_per_seq = s->pages_per_seq,
                        .gate = nsa_packed(c->gate, NSA_F32, s->n_heads_q, 3),
                        .phi_k = &c->phi,
                        .phi_v = &c->phi,
                        .o = nsa_packed(NULL, NSA_BF16, s->n_heads_q, s->d_v),
                        .slc_idx = nsa_packed(NULL, NSA_I32, s->n_heads_kv, s->slc_topk)};
    for (int b = 0; b < 3; b++) {
        fill(c->q[b], total * s->n_heads_q * s->d_qk, NSA_BF16, 1.5, r);
        fill(c->k[b], total * s->n_heads_kv * s->d_qk, NSA_BF16, 1.0, r);
        fill(c->v[b], total * s->n_heads_kv * s->d_v, NSA_BF16, 1.0, r);
        a.q[b] = nsa_packed(c->q[b], NSA_BF16, s->n_heads_q, s->d_qk);
        a.k[b] = nsa_packed(c->k[b], NSA_BF16, s->n_heads_kv, s->d_qk);
        a.v[b] = nsa_packed(c->v[b], NSA_BF16, s->n_heads_kv, s->d_v);
    }
    fill_gates(c->gate, total * s->n_heads_q * 3, r);
    if (decode)
        call(c, 0, a, nsa_decode_workspace, nsa_decode);
    else
        call(c, 0, a, nsa_prefill_workspace, nsa_prefill);
    call(c, 1, a, nsa_prefill_workspace, nsa_prefill);
    cuda_ok(cudaDeviceSynchronize());
    for (int i = 0; i < s->n_seqs; i++) {
        c->held[i] += n_new[i];
        c->longest[i] = max_i64(c->longest[i], c->held[i]);
    }
    check_guards();

    const int64_t n_idx = total * s->n_heads_kv * s->slc_topk, n_o = total * s->n_heads_q * s->d_v;
    int32_t *idx[2] = {download(c->slc_idx[0], (size_t)n_idx * 4), download(c->slc_idx[1], (size_t)n_idx * 4)};
    for (int64_t i = 0; i < n_idx; i++)
        if (idx[0][i] != idx[1][i])
            test_fail("slc_idx of token %lld of %lld, kv head %lld: entry %lld is %d, not %d",
                      (long long)(i / s->slc_topk / s->n_heads_kv), (long long)total,
                      (long long)(i / s->slc_topk % s->n_heads_kv), (long long)(i % s->slc_topk), idx[0][i], idx[1][i]);
    void *o[2] = {download(c->o[0], (size_t)n_o * 2), download(c->o[1], (size_t)n_o * 2)};
    for (int64_t row = 0; row < total * s->n_heads_q; row++) {
        double most_o = 0.0, off = 0.0;
        for (int64_t i = row * s->d_v; i < (row + 1) * s->d_v; i++) {
            const double x = dtype_get(o[0], NSA_BF16, i), y = dtype_get(o[1], NSA_BF16, i);
            most_o = fmax(most_o, fabs(y));
            off = fmax(off, isnan(x) || isnan(y) ? INFINITY : fabs(x - y));
        }
        if (!(off <= 0x1p-6 * most_o))
            test_fail("o of token %lld of %lld, head %lld is off by %g, the largest is %g",
                      (long long)(row / s->n_heads_q), (long long)total, (long long)(row % s->n_heads_q), off, most_o);
    }
    for (int i = 0; i < 2; i++)
        free(idx[i]), free(o[i]);
}

static void assert_same_bytes(const char *what, const void *a, const void *b, size_t bytes)
{
    char *x = download(a, bytes), *y = download(b, bytes);
    for (size_t i = 0; i < bytes; i++)
        if (x[i] != y[i])
            test_fail("%s differ at byte %zu of %zu: %d, %d", what, i, bytes, x[i], y[i]);
    free(x), free(y);
}

static void assert_same_caches(const decode_case *c)
{
    const one_cache *x = c->caches;
    assert_same_bytes("pages", x[0].pool.pages, x[1].pool.pages, (size_t)x->pool.n_pages * x->page_bytes);
    assert_same_bytes("states", x[0].states[0], x[1].states[0], (size_t)c->shape->n_seqs * x->state_bytes);
}

static void drop_some(decode_case *c, rng *r)
{
    const int s = rng_range(r, 0, c->shape->n_seqs - 1);
    const int64_t lowest = max_i64(0, c->longest[s] - c->shape->max_draft);
    if (lowest > c->held[s])
        return;
    c->held[s] = rng_range(r, (int32_t)lowest, (int32_t)c->held[s]);
    for (int i = 0; i < 2; i++)
        assert_ok(nsa_cache_drop(gpu_context(), &c->cfg, &c->caches[i].pool, c->caches[i].states[s], c->held[s], NULL));
}

static void test_against_prefill(void **state)
{
    (void)state;
    for (int i = 0; i < N_SHAPES; i++) {
        static decode_case c;
        const decode_shape *s = &shapes[i];
        rng r = rng_new();
        int32_t n_new[MAX_SEQS];
        test_note("shape %d", i);
        make_case(&c, s, &r);
        for (int k = 0; k < s->n_seqs; k++)
            n_new[k] = k == 0 ? s->longest : rng_range(&r, 0, s->longest);
        append(&c, n_new, false, &r);
        for (int step = 0; step < s->n_steps; step++) {
            test_note("shape %d, step %d, first sequence of %lld", i, step, (long long)c.held[0]);
            for (int k = 0; k < s->n_seqs; k++)
                n_new[k] = s->max_new == 1 ? 1 : rng_range(&r, step % 2, s->max_new);
            append(&c, n_new, true, &r);
            assert_same_caches(&c);
            if (rng_range(&r, 0, 1) == 0)
                drop_some(&c, &r);
        }
        cuda_ok(cudaFree(c.workspace));
        give_back();
    }
}

const test_case test_cases[] = {TEST(test_against_prefill), {NULL, NULL, NULL}};
