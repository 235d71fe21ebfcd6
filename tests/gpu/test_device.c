/* What only a device has: graphs, streams, lies in cu_seqlens; and nsa_forward and nsa_backward against the oracle. */
#include "gpu/device.h"
#include "testlib/nsa_case.h"

#include <cuda_runtime_api.h>

#include <math.h>

static const nsa_config blocks = {sizeof(nsa_config), 0, 0, 0, 0, 8, 4, 16, 4, 1, 1, 13, 0.0};
static const nsa_ctx oracle = {.n_threads = 1, .reference = true};

static const nsa_shape shapes[] = {
    {4, 2, 16, 16, NSA_F32, LAYOUT_THD, false, false, NSA_PHI_MLP, false},
    {3, 2, 24, 8, NSA_BF16, LAYOUT_BHSD, true, true, NSA_PHI_GATED_CHANNEL, true},
    {16, 1, 64, 64, NSA_F16, LAYOUT_THD, false, false, NSA_PHI_GATED_TOKEN, false},
    {2, 2, 192, 128, NSA_BF16, LAYOUT_GAPS, false, false, NSA_PHI_LINEAR, false},
    {5, 1, 5, 7, NSA_F32, LAYOUT_THD, true, false, NSA_PHI_MEAN, false},
    {4, 1, 64, 64, NSA_BF16, LAYOUT_THD, false, false, NSA_PHI_MEAN, false}, /* for tensor cores */
    {4, 1, 64, 64, NSA_BF16, LAYOUT_THD, false, false, NSA_PHI_MLP, false},  /* and phi's */
    {3, 2, 128, 128, NSA_BF16, LAYOUT_THD, false, false, NSA_PHI_LINEAR, true},
    {1, 2, 64, 64, NSA_BF16, LAYOUT_THD, false, false, NSA_PHI_MEAN,
     false}, /* the same, block-major if there are many */
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes, MANY_BLOCKS = 20 * 16 /* tokens */ };

static nsa_batch batch_for(int shape, int32_t max)
{
    return batch_ragged(blocks.slc_block, shape == N_SHAPES - 1 ? MANY_BLOCKS : max);
}

/* Row by row; the ops' own suites have the exact bounds. */
static void assert_near(const char *what, const test_tensor *got, const test_tensor *want)
{
    const nsa_dtype t = got->t.dtype;
    const double relative = t == NSA_F32 ? 0x1p-12 : t == NSA_F16 ? 0x1p-6 : 0x1p-4;
    for (int32_t s = 0; s < got->e.n_seqs; s++)
        for (int64_t row = 0; row < tensor_rows(got, s); row++)
            for (int32_t h = 0; h < got->e.n_heads; h++) {
                double most = 0.0, off = 0.0;
                for (int32_t c = 0; c < got->e.d; c++) {
                    const double x = tensor_get(got, s, row, h, c), y = tensor_get(want, s, row, h, c);
                    if (x == y) /* infinities, too */
                        continue;
                    most = fmax(most, fabs(y));
                    off = fmax(off, isnan(x) || isnan(y) ? INFINITY : fabs(x - y));
                }
                if (!(off <= relative * (1.0 + most)))
                    test_fail("%s: seq %d, row %lld, head %d is off by %g, the largest is %g", what, s, (long long)row,
                              h, off, most);
            }
}

/* The oracle goes on from the GPU's k_cmp, v_cmp and slc_idx, and in backward from its o and lse: neighbours may differ
 * in the last bit of a score. */
static void test_whole_against_oracle(void **state)
{
    (void)state;
    for (int i = 0; i < N_SHAPES; i++) {
        testlib_reset();
        test_note("shape %d", i);
        rng r = rng_new();
        const nsa_batch batch = batch_for(i, 130);
        nsa_case got, want;
        nsa_case_init(&got, &blocks, &batch, &shapes[i], &r);
        nsa_case_as(&want, &got, shapes[i].as);
        run_forward(gpu_context(), &got, &got.fwd);
        run_backward(gpu_context(), &got, &got.bwd);

        nsa_forward_args fwd = want.fwd;
        run_forward(&oracle, &want, &fwd);
        assert_near("k_cmp", &got.k_cmp, &want.k_cmp);
        assert_near("v_cmp", &got.v_cmp, &want.v_cmp);
        fwd.phi_k = fwd.phi_v = NULL;
        fwd.k_cmp = got.k_cmp.t, fwd.v_cmp = got.v_cmp.t;
        fwd.slc_idx_given = 1;
        fwd.slc_idx = got.slc_idx.t;
        run_forward(&oracle, &want, &fwd);
        assert_near("o", &got.o, &want.o);

        nsa_backward_args bwd = want.bwd;
        bwd.fwd.k_cmp = got.k_cmp.t, bwd.fwd.v_cmp = got.v_cmp.t;
        bwd.fwd.slc_idx = got.slc_idx.t;
        for (int b = 0; b < NSA_N_BRANCHES; b++) {
            assert_near("o_branch", &got.o_branch[b], &want.o_branch[b]);
            assert_near("lse", &got.lse[b], &want.lse[b]);
            bwd.fwd.o_branch[b] = got.o_branch[b].t, bwd.fwd.lse[b] = got.lse[b].t;
        }
        run_backward(&oracle, &want, &bwd);
        for (int b = 0; b < NSA_N_BRANCHES; b++) {
            assert_near("dq", &got.dq[b], &want.dq[b]);
            assert_near("dk", &got.dk[b], &want.dk[b]);
            assert_near("dv", &got.dv[b], &want.dv[b]);
        }
        assert_near("dgate", &got.dgate, &want.dgate);
    }
}

/* Whatever cu_seqlens hold, nothing is written outside of the tensors (and compute-sanitizer sees what is read). */
static void test_bad_cu_seqlens(void **state)
{
    (void)state;
    static const int32_t lies[] = {-1, 0, 5, 1000, INT32_MIN, INT32_MAX};
    rng r = rng_new();
    for (int i = 0; i < 8 * N_SHAPES; i++) {
        testlib_reset();
        test_note("case %d", i);
        nsa_shape shape = shapes[i % N_SHAPES];
        if (i / N_SHAPES % 2 == 0)
            shape.as = LAYOUT_BSHD;
        const nsa_batch batch = batch_for(i % N_SHAPES, 50);
        nsa_case c;
        nsa_case_init(&c, &blocks, &batch, &shape, &r);
        for (int k = 0; k < 3; k++) { /* of the memory that batch points to */
            ((int32_t *)(uintptr_t)batch.cu_seqlens_q)[rng_range(&r, 0, batch.n_seqs)] = lies[rng_range(&r, 0, 5)];
            ((int32_t *)(uintptr_t)batch.cu_seqlens_k)[rng_range(&r, 0, batch.n_seqs)] = lies[rng_range(&r, 0, 5)];
        }
        size_t bytes = 0;
        assert_ok(nsa_forward_workspace(gpu_context(), &c.cfg, &c.batch, &c.fwd, &bytes));
        void *ws = begin_call(gpu_context(), bytes);
        nsa_batch there = c.batch;
        nsa_forward_args fwd = c.fwd;
        nsa_phi phi[2] = {c.phi_k, c.phi_v};
        fwd.phi_k = &phi[0], fwd.phi_v = &phi[1];
        args_on_device(gpu_context(), &there, sizeof there);
        args_on_device(gpu_context(), &fwd, sizeof fwd);
        args_on_device(gpu_context(), phi, sizeof phi);
        assert_ok(nsa_forward(gpu_context(), &c.cfg, &there, &fwd, ws, bytes, NULL));
        end_call(gpu_context());

        nsa_phi dphi[4] = {c.phi_k, c.phi_v, c.dphi_k, c.dphi_v};
        nsa_backward_args bwd = c.bwd;
        assert_ok(nsa_backward_workspace(gpu_context(), &c.cfg, &c.batch, &bwd, &bytes));
        ws = begin_call(gpu_context(), bytes);
        there = c.batch;
        bwd.fwd.phi_k = &dphi[0], bwd.fwd.phi_v = &dphi[1], bwd.dphi_k = &dphi[2], bwd.dphi_v = &dphi[3];
        args_on_device(gpu_context(), &there, sizeof there);
        args_on_device(gpu_context(), &bwd, sizeof bwd);
        args_on_device(gpu_context(), dphi, sizeof dphi);
        assert_ok(nsa_backward(gpu_context(), &c.cfg, &there, &bwd, ws, bytes, NULL));
        end_call(gpu_context());
        assert_slack_intact();
    }
}

static void cuda_ok(cudaError_t error)
{
    if (error != cudaSuccess)
        test_fail("CUDA: %s", cudaGetErrorString(error));
}

/* A captured call has not run; its graph gives what a plain call gives. */
static void capture(int which)
{
    const nsa_shape *shape = &shapes[which];
    testlib_reset();
    test_note("graph");
    rng r = rng_new();
    const nsa_batch batch = batch_for(which, 130);
    nsa_case plain, captured;
    nsa_case_init(&plain, &blocks, &batch, shape, &r);
    nsa_case_as(&captured, &plain, LAYOUT_THD);
    run_forward(gpu_context(), &plain, &plain.fwd);

    size_t bytes = 0;
    assert_ok(nsa_forward_workspace(gpu_context(), &captured.cfg, &captured.batch, &captured.fwd, &bytes));
    void *ws = begin_call(gpu_context(), bytes);
    nsa_batch there = captured.batch;
    nsa_forward_args fwd = captured.fwd;
    nsa_phi phi[2] = {captured.phi_k, captured.phi_v};
    fwd.phi_k = &phi[0], fwd.phi_v = &phi[1];
    args_on_device(gpu_context(), &there, sizeof there);
    args_on_device(gpu_context(), &fwd, sizeof fwd);
    args_on_device(gpu_context(), phi, sizeof phi);

    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cuda_ok(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    cuda_ok(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    assert_ok(nsa_forward(gpu_context(), &captured.cfg, &there, &fwd, ws, bytes, stream));
    cuda_ok(cudaStreamEndCapture(stream, &graph));
    cuda_ok(cudaGraphInstantiate(&exec, graph, 0));
    cuda_ok(cudaGraphLaunch(exec, stream));
    cuda_ok(cudaStreamSynchronize(stream));
    end_call(gpu_context());
    assert_same_forward(&captured, &plain);
    cuda_ok(cudaGraphExecDestroy(exec));
    cuda_ok(cudaGraphDestroy(graph));
    cuda_ok(cudaStreamDestroy(stream));
}

static void test_graph(void **state)
{
    (void)state;
    capture(0);
    capture(N_SHAPES - 2);
    capture(N_SHAPES - 1);
}

static void test_unsupported(void **state)
{
    (void)state;
    testlib_reset();
    rng r = rng_new();
    const nsa_shape shape = {2, 1, 8, 8, NSA_F64, LAYOUT_THD, true, false, NSA_PHI_MEAN, false};
    const nsa_batch batch = batch_ragged(blocks.slc_block, 40);
    nsa_case c;
    nsa_case_init(&c, &blocks, &batch, &shape, &r);
    size_t bytes = 0;
    require(nsa_forward_workspace(gpu_context(), &c.cfg, &c.batch, &c.fwd, &bytes) == NSA_ERR_UNSUPPORTED);
    require(strstr(nsa_last_error(), "args.q[0].dtype") != NULL);
    const nsa_cache cache = {.page_size = 16, .dtype = NSA_F64};
    require(nsa_cache_page_bytes(gpu_context(), &c.cfg, &cache, &bytes) == NSA_ERR_UNSUPPORTED);
    const nsa_ctx_options beyond = {.struct_size = sizeof beyond, .device = NSA_DEVICE_CUDA, .device_index = 4096};
    nsa_ctx *ctx = NULL;
    require(nsa_ctx_create(&ctx, &beyond) == NSA_ERR_NO_DEVICE);
    require(strstr(nsa_last_error(), "options.device_index is 4096") != NULL);
}

const test_case test_cases[] = {
    TEST(test_whole_against_oracle), TEST(test_bad_cu_seqlens), TEST(test_graph),
    TEST(test_unsupported),          {NULL, NULL, NULL},
};
