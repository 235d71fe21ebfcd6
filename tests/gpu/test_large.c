/*
 * Attention on Hopper at the sizes that it is for: thousands of turns of each ring of buffers, with memory as busy as
 * it gets. A race that shows once in a million products is not seen in the small cases of the other suites. Results
 * must be the same bits in every run, and near those of the kernels without tensor cores where these are not too slow
 * for that.
 */
#include "gpu/device.h"
#include "testlib/attn_case.h"

#include <cuda_runtime_api.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LARGE = 65536, MEDIUM = 4096, NOISE = (1 << 20) + 7 /* elements: rows repeat nowhere near each other */ };

static void cuda_ok(cudaError_t error)
{
    if (error != cudaSuccess)
        test_fail("CUDA: %s (%s)", cudaGetErrorName(error), cudaGetErrorString(error));
}

static char *on_device(size_t bytes)
{
    char *p = NULL;
    cuda_ok(cudaMalloc((void **)&p, bytes));
    return p;
}

typedef struct grads {
    char *data[3]; /* dq, dk, dv */
    size_t bytes[3];
} grads;

typedef struct large {
    nsa_config cfg;
    int32_t tokens;
    int32_t *cu;
    char *noise, *q, *k, *v, *d_o, *o, *lse, *slc_idx;
    attn_problem p;
} large;

static char *fill(const large *x, int64_t n)
{
    char *p = on_device((size_t)n * 2);
    for (int64_t at = 0; at < n; at += NOISE)
        cuda_ok(cudaMemcpy(p + at * 2, x->noise, (size_t)min_i64(NOISE, n - at) * 2, cudaMemcpyDeviceToDevice));
    return p;
}

static char *copy_of(const void *host, size_t bytes)
{
    char *p = on_device(bytes);
    cuda_ok(cudaMemcpy(p, host, bytes, cudaMemcpyHostToDevice));
    return p;
}

static char *noise(rng *r)
{
    uint16_t *x = malloc(NOISE * sizeof *x);
    require(x != NULL);
    for (int i = 0; i < NOISE; i++)
        dtype_set(x, NSA_BF16, i, rng_normal(r));
    char *p = copy_of(x, NOISE * sizeof *x);
    free(x);
    return p;
}

/* The first block, the token's own and that before, and others at random, some of them twice. like_before: in per cent,
 * how many of the others are those of the token before. */
static char *selection(const large *x, rng *r, int32_t like_before)
{
    const int32_t topk = x->cfg.slc_topk;
    const size_t n = (size_t)x->tokens * (size_t)(x->cfg.n_heads_kv * topk);
    int32_t *idx = malloc(n * sizeof *idx);
    require(idx != NULL);
    for (size_t i = 0; i < n; i++) {
        const int32_t entry = (int32_t)(i % (size_t)topk), token = (int32_t)(i / (size_t)topk) / x->cfg.n_heads_kv;
        const int32_t own = token / x->cfg.slc_block;
        idx[i] = entry == 0 ? 0 : entry < 3 ? own + 1 - entry : rng_range(r, 0, own);
        if (entry >= 3 && token > 0 && rng_range(r, 0, 99) < like_before)
            idx[i] = idx[i - (size_t)(x->cfg.n_heads_kv * topk)];
    }
    char *p = copy_of(idx, n * sizeof *idx);
    free(idx);
    return p;
}

static void init(large *x, const nsa_ctx *ctx, int branch, int32_t tokens, int32_t n_heads_kv, int32_t group,
                 int32_t d_qk, int32_t d_v)
{
    rng r = rng_new();
    *x = (large){.tokens = tokens};
    nsa_config_init(&x->cfg);
    x->cfg.n_heads_kv = n_heads_kv;
    x->cfg.n_heads_q = group * n_heads_kv;
    x->cfg.d_qk = d_qk;
    x->cfg.d_v = d_v;
    const int32_t cu[] = {0, tokens}, n_q = x->cfg.n_heads_q;
    x->cu = (int32_t *)copy_of(cu, sizeof cu);
    x->noise = noise(&r);
    x->q = fill(x, (int64_t)tokens * n_q * d_qk);
    x->k = fill(x, (int64_t)tokens * n_heads_kv * d_qk);
    x->v = fill(x, (int64_t)tokens * n_heads_kv * d_v);
    x->d_o = fill(x, (int64_t)tokens * n_q * d_v);
    x->o = on_device((size_t)tokens * (size_t)(n_q * d_v) * 2);
    x->lse = on_device((size_t)tokens * (size_t)n_q * sizeof(float));
    x->slc_idx = selection(x, &r, 0);
    const nsa_tensor k = nsa_packed(x->k, NSA_BF16, n_heads_kv, d_qk), v = nsa_packed(x->v, NSA_BF16, n_heads_kv, d_v);
    const int32_t start_div = branch == NSA_CMP ? x->cfg.cmp_stride : 1;
    x->p = (attn_problem){
        .ctx = ctx,
        .branch = branch,
        .cfg = &x->cfg,
        .seqs = {.n = 1,
                 .total_q = tokens,
                 .total_k = tokens,
                 .max_q = tokens,
                 .max_k = tokens,
                 .cu_q = x->cu,
                 .cu_k = x->cu},
        .q = nsa_packed(x->q, NSA_BF16, n_q, d_qk),
        .k = rows_from_tensor(&k, d_qk, x->cu, start_div),
        .v = rows_from_tensor(&v, d_v, x->cu, start_div),
        .slc_idx = nsa_packed(x->slc_idx, NSA_I32, n_heads_kv, x->cfg.slc_topk),
        .o = nsa_packed(x->o, NSA_BF16, n_q, d_v),
        .lse = nsa_packed(x->lse, NSA_F32, n_q, 1),
    };
}

static void destroy(large *x)
{
    void *const all[] = {x->cu, x->noise, x->q, x->k, x->v, x->d_o, x->o, x->lse, x->slc_idx};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        cuda_ok(cudaFree(all[i]));
}

static void run(op_fn *op, const attn_problem *p)
{
    size_t bytes = 0;
    assert_ok(op_workspace(op, p, &bytes));
    char *ws = on_device(bytes + 1);
    assert_ok(op_run(p->ctx, op, p, ws, bytes, NULL));
    cuda_ok(cudaDeviceSynchronize());
    cuda_ok(cudaFree(ws));
}

static grads run_backward(const large *x, const attn_impl *impl)
{
    const int64_t tokens = x->tokens, n_q = x->cfg.n_heads_q, n_kv = x->cfg.n_heads_kv;
    const int64_t n_keys = x->p.branch == NSA_CMP ? nsa_n_cmp(&x->cfg, x->tokens) : tokens;
    grads g = {.bytes = {(size_t)(tokens * n_q * x->cfg.d_qk) * 2, (size_t)(n_keys * n_kv * x->cfg.d_qk) * 2,
                         (size_t)(n_keys * n_kv * x->cfg.d_v) * 2}};
    for (int i = 0; i < 3; i++) {
        g.data[i] = on_device(g.bytes[i]);
        cuda_ok(cudaMemset(g.data[i], POISON_BYTE, g.bytes[i]));
    }
    attn_problem p = x->p;
    p.d_o = nsa_packed(x->d_o, NSA_BF16, x->cfg.n_heads_q, x->cfg.d_v);
    p.dq = nsa_packed(g.data[0], NSA_BF16, x->cfg.n_heads_q, x->cfg.d_qk);
    p.dk = nsa_packed(g.data[1], NSA_BF16, x->cfg.n_heads_kv, x->cfg.d_qk);
    p.dv = nsa_packed(g.data[2], NSA_BF16, x->cfg.n_heads_kv, x->cfg.d_v);
    require(impl->supports(&p));
    run(impl->backward, &p);
    return g;
}

static void destroy_grads(grads *g)
{
    for (int i = 0; i < 3; i++)
        cuda_ok(cudaFree(g->data[i]));
}

/* Two buffers of the device, a piece at a time. */
typedef void compare_fn(const char *what, const uint16_t *x, const uint16_t *y, size_t n);

static void compare(const char *what, const char *x, const char *y, size_t bytes, compare_fn *same)
{
    enum { PIECE = 1 << 26 };
    char *a = malloc(PIECE), *b = malloc(PIECE);
    require(a != NULL && b != NULL);
    for (size_t at = 0; at < bytes; at += PIECE) {
        const size_t n = bytes - at < PIECE ? bytes - at : PIECE;
        cuda_ok(cudaMemcpy(a, x + at, n, cudaMemcpyDeviceToHost));
        cuda_ok(cudaMemcpy(b, y + at, n, cudaMemcpyDeviceToHost));
        same(what, (const uint16_t *)a, (const uint16_t *)b, n / 2);
    }
    free(a);
    free(b);
}

static void compare_grads(const grads *x, const grads *y, compare_fn *same)
{
    static const char *const names[] = {"dq", "dk", "dv"};
    for (int i = 0; i < 3; i++)
        compare(names[i], x->data[i], y->data[i], x->bytes[i], same);
}

static void same_bits(const char *what, const uint16_t *x, const uint16_t *y, size_t n)
{
    if (memcmp(x, y, n * sizeof *x) != 0)
        test_fail("%s is not the same in two runs", what);
}

/* In the mean square; of rows, the small cases have the exact bounds. */
static void near(const char *what, const uint16_t *x, const uint16_t *y, size_t n)
{
    double off = 0.0, all = 0.0;
    for (size_t i = 0; i < n; i++) {
        const double a = dtype_get(x, NSA_BF16, (int64_t)i), b = dtype_get(y, NSA_BF16, (int64_t)i);
        off += (a - b) * (a - b);
        all += b * b;
    }
    if (!(off <= 0x1p-16 * all)) /* p, ds and results are rounded to bf16: 2^-17.2 in measurements */
        test_fail("%s is off by %g of its size", what, sqrt(off / all));
}

static const attn_impl *impl_named(int branch, const char *name)
{
    static const attn_impl *const impls[] = {cmp_attn_impls, slc_attn_impls, win_attn_impls};
    const attn_impl *x = impls[branch];
    while (x->name != NULL && strcmp(x->name, name) != 0)
        x++;
    require(x->name != NULL);
    return x;
}

static void test_same_bits(void **state)
{
    (void)state;
    const nsa_ctx *ctx = gpu_context();
    if (!ctx_is_sm90(ctx))
        return;
    static const int32_t shapes[][2] = {{128, 128}, {192, 128}, {256, 256}}; /* d_qk, d_v */
    for (int i = 0; i < 3 * NSA_N_BRANCHES; i++) {
        const int branch = i % NSA_N_BRANCHES;
        const int32_t *shape = shapes[i / NSA_N_BRANCHES];
        if (branch == NSA_SLC && shape[0] == 256) /* has no kernel */
            continue;
        large x;
        init(&x, ctx, branch, LARGE, 4, 16, shape[0], shape[1]);
        const attn_impl *impl = impl_named(branch, "sm90");
        run(impl->forward, &x.p);
        grads first = run_backward(&x, impl);
        for (int n = 0; n < 3; n++) {
            grads again = run_backward(&x, impl);
            compare_grads(&again, &first, same_bits);
            destroy_grads(&again);
        }
        destroy_grads(&first);
        destroy(&x);
    }
}

/* slc's forward, where so many per cent of a token's blocks are those of the token before. */
static void compare_slc_forward(const nsa_ctx *ctx, int32_t tokens, int32_t like_before, const char *with, int times,
                                compare_fn *same)
{
    large x;
    init(&x, ctx, NSA_SLC, tokens, 4, 16, 128, 128);
    rng r = rng_new();
    cuda_ok(cudaFree(x.slc_idx));
    x.slc_idx = selection(&x, &r, like_before);
    x.p.slc_idx.data = x.slc_idx;
    const size_t bytes = (size_t)x.tokens * (size_t)(x.cfg.n_heads_q * x.cfg.d_v) * 2;
    attn_problem p = x.p;
    char *want = p.o.data = on_device(bytes);
    run(impl_named(NSA_SLC, with)->forward, &p);
    for (int i = 0; i < times; i++) {
        run(impl_named(NSA_SLC, "sm90")->forward, &x.p);
        compare("o", x.o, want, bytes, same);
    }
    cuda_ok(cudaFree(want));
    destroy(&x);
}

static void test_slc_forward_of_neighbours(void **state)
{
    (void)state;
    const nsa_ctx *ctx = gpu_context();
    if (!ctx_is_sm90(ctx))
        return;
    static const int32_t shares[] = {0, 60, 85, 100};
    for (size_t i = 0; i < sizeof shares / sizeof *shares; i++)
        compare_slc_forward(ctx, MEDIUM, shares[i], "simt", 1, near);
    compare_slc_forward(ctx, LARGE, 60, "sm90", 3, same_bits);
    compare_slc_forward(ctx, LARGE, 85, "sm90", 3, same_bits);
}

static void test_near_simt(void **state)
{
    (void)state;
    const nsa_ctx *ctx = gpu_context();
    if (!ctx_is_sm90(ctx))
        return;
    /* kv heads, d_qk, d_v; with many kv heads the backward of slc takes the tokens in two rounds. */
    static const int32_t shapes[][3] = {{2, 64, 64}, {2, 128, 128}, {2, 192, 128}, {16, 64, 64}, {1, 256, 256}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int branch = 0; branch < NSA_N_BRANCHES; branch++) {
            if (branch == NSA_SLC && shapes[i][1] == 256) /* has no kernel */
                continue;
            large x;
            init(&x, ctx, branch, MEDIUM, shapes[i][0], 16, shapes[i][1], shapes[i][2]);
            run(impl_named(branch, "simt")->forward, &x.p);
            grads got = run_backward(&x, impl_named(branch, "sm90")),
                  want = run_backward(&x, impl_named(branch, "simt"));
            compare_grads(&got, &want, near);
            destroy_grads(&got);
            destroy_grads(&want);
            destroy(&x);
        }
}

/* Of slc: rounds of heads, and with the larger group of tokens. */
static void test_small_groups(void **state)
{
    (void)state;
    const nsa_ctx *ctx = gpu_context();
    if (!ctx_is_sm90(ctx))
        return;
    static const int32_t shapes[][3] = {{4, 1, 128}, {2, 4, 128}}; /* kv heads, group, d */
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        large x;
        init(&x, ctx, NSA_SLC, LARGE, shapes[i][0], shapes[i][1], shapes[i][2], shapes[i][2]);
        const size_t n_rows = (size_t)x.tokens * (size_t)x.cfg.n_heads_q, bytes = n_rows * (size_t)x.cfg.d_v * 2;
        const attn_impl *impl = impl_named(NSA_SLC, "sm90-blocks");
        require(impl->supports(&x.p));
        run(impl_named(NSA_SLC, "sm90")->forward, &x.p);
        char *want = on_device(bytes), *lse = on_device(n_rows * sizeof(float));
        cuda_ok(cudaMemcpy(want, x.o, bytes, cudaMemcpyDeviceToDevice));
        for (int n = 0; n < 3; n++) {
            cuda_ok(cudaMemset(x.o, POISON_BYTE, bytes));
            run(impl->forward, &x.p);
            compare("o", x.o, want, bytes, n == 0 ? near : same_bits);
            if (n > 0)
                compare("lse", x.lse, lse, n_rows * sizeof(float), same_bits);
            cuda_ok(cudaMemcpy(want, x.o, bytes, cudaMemcpyDeviceToDevice));
            cuda_ok(cudaMemcpy(lse, x.lse, n_rows * sizeof(float), cudaMemcpyDeviceToDevice));
        }
        cuda_ok(cudaFree(want));
        cuda_ok(cudaFree(lse));
        destroy(&x);
    }
}

const test_case test_cases[] = {TEST(test_same_bits),
                                TEST(test_slc_forward_of_neighbours),
                                TEST(test_near_simt),
                                TEST(test_small_groups),
                                {NULL, NULL, NULL}};
