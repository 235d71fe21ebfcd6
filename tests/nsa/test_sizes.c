/* The largest problems that the configuration allows: sizes are counted right or refused, and nothing is touched. */
#include "testlib/unit.h"
#include "testlib/testlib.h"

enum { MAX_SIZE = 65536, TOPK = 128, HIDDEN = 512, DUMMIES = 64 };

/* Tensors of the largest problem: their memory is never read or written. */
typedef struct giant {
    nsa_config cfg;
    nsa_batch batch;
    int32_t cu[2];
    nsa_phi phi, dphi;
    nsa_forward_args forward;
    nsa_backward_args backward;
    int64_t dummy[DUMMIES];
    int n_dummies;
} giant;

static void *dummy(giant *g)
{
    assert_true(g->n_dummies < DUMMIES);
    return &g->dummy[g->n_dummies++];
}

static nsa_tensor tensor_of(giant *g, nsa_dtype dtype, int32_t n_heads, int32_t d)
{
    return nsa_packed(dummy(g), dtype, n_heads, d);
}

static nsa_phi phi_of(giant *g, nsa_phi_kind kind, nsa_dtype dtype)
{
    nsa_phi phi = {.kind = kind, .dtype = dtype, .per_head = 1, .d_hidden = kind == NSA_PHI_MLP ? HIDDEN : 0};
    if (kind != NSA_PHI_MEAN)
        phi.w1 = dummy(g);
    if (kind == NSA_PHI_LINEAR || kind == NSA_PHI_MLP)
        phi.pe = dummy(g);
    if (kind != NSA_PHI_MEAN && kind != NSA_PHI_LINEAR)
        phi.b1 = dummy(g);
    if (kind == NSA_PHI_MLP)
        phi.w2 = dummy(g), phi.b2 = dummy(g);
    return phi;
}

static void init(giant *g, nsa_phi_kind kind, nsa_dtype dtype)
{
    *g = (giant){.cu = {0, INT32_MAX}};
    nsa_config_init(&g->cfg);
    nsa_config *c = &g->cfg;
    c->n_heads_q = c->n_heads_kv = MAX_SIZE;
    c->d_qk = c->d_v = MAX_HEAD_DIM;
    c->cmp_block = c->slc_block = MAX_SIZE;
    c->slc_topk = TOPK;
    c->cmp_stride = 1;
    c->slc_n_init = c->slc_n_local = TOPK / 2;
    c->win_size = INT32_MAX;
    g->batch = (nsa_batch){1, INT32_MAX, INT32_MAX, INT32_MAX, INT32_MAX, g->cu, g->cu};

    const int32_t d = MAX_HEAD_DIM;
    const nsa_dtype f32 = dtype == NSA_F64 ? NSA_F64 : NSA_F32;
    g->phi = phi_of(g, kind, dtype);
    g->dphi = phi_of(g, kind, dtype);
    nsa_forward_args *f = &g->forward;
    nsa_backward_args *b = &g->backward;
    *f = (nsa_forward_args){.gate = tensor_of(g, dtype, MAX_SIZE, NSA_N_BRANCHES), .phi_k = &g->phi, .phi_v = &g->phi};
    for (int i = 0; i < NSA_N_BRANCHES; i++)
        f->q[i] = f->k[i] = f->v[i] = tensor_of(g, dtype, MAX_SIZE, d);
    f->o = tensor_of(g, dtype, MAX_SIZE, d);
    b->fwd = *f; /* with all that backward needs; forward makes it in its workspace */
    b->fwd.k_cmp = tensor_of(g, dtype, MAX_SIZE, d);
    b->fwd.v_cmp = tensor_of(g, dtype, MAX_SIZE, d);
    b->fwd.slc_idx = tensor_of(g, NSA_I32, MAX_SIZE, TOPK);
    for (int i = 0; i < NSA_N_BRANCHES; i++) {
        b->fwd.o_branch[i] = tensor_of(g, dtype, MAX_SIZE, d);
        b->fwd.lse[i] = tensor_of(g, f32, MAX_SIZE, 1);
        b->dk[i] = tensor_of(g, dtype, MAX_SIZE, d);
        b->dv[i] = tensor_of(g, dtype, MAX_SIZE, d);
    }
    b->d_o = tensor_of(g, dtype, MAX_SIZE, d);
    b->dgate = tensor_of(g, dtype, MAX_SIZE, NSA_N_BRANCHES);
    b->dq[0] = b->dq[1] = b->dq[2] = tensor_of(g, dtype, MAX_SIZE, d);
    b->dphi_k = b->dphi_v = &g->dphi;
}

static void must(nsa_status status)
{
    if (status != NSA_OK)
        test_fail("%s", nsa_last_error());
}

static void assert_untouched(const giant *g)
{
    for (int i = 0; i < DUMMIES; i++)
        assert_true(g->dummy[i] == 0);
}

static void test_largest_problem(void **state)
{
    (void)state;
    static const nsa_dtype dtypes[] = {NSA_F32, NSA_BF16, NSA_F64};
    static giant g;
    nsa_ctx *ctx = NULL;
    assert_int_equal(nsa_ctx_create(&ctx, &(nsa_ctx_options){sizeof(nsa_ctx_options), NSA_DEVICE_CPU, 1024, 0, 0}),
                     NSA_OK);
    for (int kind = NSA_PHI_MEAN; kind <= NSA_PHI_MLP; kind++)
        for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
            const nsa_dtype dtype = dtypes[i];
            char workspace[64];
            size_t bytes = 0;
            init(&g, (nsa_phi_kind)kind, dtype);
            test_note("phi %d, %s", kind, dtype_name(dtype));
            /* The branches' outputs, their lse, the compressed rows and the selection are made in the workspace. */
            const double head_rows = (double)INT32_MAX * MAX_SIZE, size = (double)dtype_size(dtype);
            const double forward = head_rows * (3 * MAX_HEAD_DIM * size + 3 * (double)dtype_size(lse_dtype(dtype)) +
                                                2 * MAX_HEAD_DIM * size + 4.0 * TOPK);
            must(nsa_forward_workspace(ctx, &g.cfg, &g.batch, &g.forward, &bytes));
            assert_true((double)bytes > 0.99 * forward && (double)bytes < 0x1p63);
            assert_int_equal(nsa_forward(ctx, &g.cfg, &g.batch, &g.forward, workspace, sizeof workspace, NULL),
                             NSA_ERR_WORKSPACE);
            /* The gradients of k_cmp and v_cmp. */
            must(nsa_backward_workspace(ctx, &g.cfg, &g.batch, &g.backward, &bytes));
            assert_true((double)bytes > head_rows * 2 * MAX_HEAD_DIM * 4 && (double)bytes < 0x1p63);
            assert_int_equal(nsa_backward(ctx, &g.cfg, &g.batch, &g.backward, workspace, sizeof workspace, NULL),
                             NSA_ERR_WORKSPACE);
            assert_untouched(&g);
        }
    nsa_ctx_destroy(ctx);
}

/* 2^31 tokens, 2^16 heads, 2^16 blocks of 4 bytes each: 2^65. */
static void test_past_the_address_space(void **state)
{
    (void)state;
    static giant g;
    nsa_ctx *ctx = NULL;
    size_t bytes = 0;
    char workspace[64];
    must(nsa_ctx_create(&ctx, NULL));
    init(&g, NSA_PHI_MEAN, NSA_F32);
    g.cfg.slc_topk = MAX_SIZE;
    assert_int_equal(nsa_forward_workspace(ctx, &g.cfg, &g.batch, &g.forward, &bytes), NSA_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(nsa_last_error(), "too large"));
    assert_int_equal(nsa_forward(ctx, &g.cfg, &g.batch, &g.forward, workspace, SIZE_MAX, NULL),
                     NSA_ERR_INVALID_ARGUMENT);
    g.backward.fwd.slc_idx = nsa_packed(g.backward.fwd.slc_idx.data, NSA_I32, MAX_SIZE, MAX_SIZE);
    assert_int_equal(nsa_backward_workspace(ctx, &g.cfg, &g.batch, &g.backward, &bytes), NSA_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(nsa_last_error(), "args.fwd.slc_idx")); /* its strides pass the address space, too */
    assert_untouched(&g);
    nsa_ctx_destroy(ctx);
}

/* A size just past what is allowed is refused by name, however large. */
static void test_larger_is_refused(void **state)
{
    (void)state;
    static giant g;
    nsa_ctx *ctx = NULL;
    must(nsa_ctx_create(&ctx, NULL));
    int32_t *const fields[] = {&g.cfg.n_heads_q,  &g.cfg.n_heads_kv,  &g.cfg.d_qk,      &g.cfg.d_v,
                               &g.cfg.cmp_block,  &g.cfg.cmp_stride,  &g.cfg.slc_block, &g.cfg.slc_topk,
                               &g.cfg.slc_n_init, &g.cfg.slc_n_local, &g.phi.d_hidden};
    static const int32_t values[] = {MAX_SIZE + 1, INT32_MAX, INT32_MIN, -1};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
            size_t bytes = 0;
            init(&g, NSA_PHI_MLP, NSA_F32);
            *fields[i] = values[v];
            test_note("field %zu, value %d", i, values[v]);
            assert_int_equal(nsa_forward_workspace(ctx, &g.cfg, &g.batch, &g.forward, &bytes),
                             NSA_ERR_INVALID_ARGUMENT);
        }
    init(&g, NSA_PHI_MLP, NSA_F32);
    int64_t *const strides[] = {&g.forward.q[0].stride_token, &g.forward.q[0].stride_head, &g.forward.q[0].stride_seq};
    for (size_t i = 0; i < 2; i++) { /* the stride of one sequence is not stepped */
        const int64_t kept = *strides[i];
        size_t bytes = 0;
        *strides[i] = INT64_MAX;
        assert_int_equal(nsa_forward_workspace(ctx, &g.cfg, &g.batch, &g.forward, &bytes), NSA_ERR_INVALID_ARGUMENT);
        assert_non_null(strstr(nsa_last_error(), "args.q[0]"));
        *strides[i] = kept;
    }
    nsa_ctx_destroy(ctx);
}

static void test_largest_cache(void **state)
{
    (void)state;
    nsa_config cfg;
    nsa_ctx *ctx = NULL;
    size_t page = 0, held = 0;
    must(nsa_ctx_create(&ctx, NULL));
    nsa_config_init(&cfg);
    cfg.n_heads_q = cfg.n_heads_kv = MAX_SIZE;
    cfg.d_qk = cfg.d_v = MAX_HEAD_DIM;
    cfg.cmp_stride = 1;
    cfg.win_size = INT32_MAX;
    nsa_cache cache = {.page_size = INT32_MAX / 64 * 64, .max_draft = INT32_MAX, .dtype = NSA_F64, .n_pages = 1};
    must(nsa_cache_page_bytes(ctx, &cfg, &cache, &page));
    must(nsa_cache_state_bytes(ctx, &cfg, &cache, &held));
    const double row = (double)MAX_SIZE * MAX_HEAD_DIM * 8;
    assert_true((double)page >= row * 4 * cache.page_size && (double)page < row * 4.001 * cache.page_size);
    assert_true((double)held >= row * 6 * INT32_MAX && (double)held < row * 6.001 * INT32_MAX);
    cache.n_pages = INT32_MAX;
    assert_int_equal(nsa_cache_page_bytes(ctx, &cfg, &cache, &page), NSA_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(nsa_last_error(), "cache.n_pages"));
    nsa_ctx_destroy(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_largest_problem),
        cmocka_unit_test(test_past_the_address_space),
        cmocka_unit_test(test_larger_is_refused),
        cmocka_unit_test(test_largest_cache),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
