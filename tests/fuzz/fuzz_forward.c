/*
 * nsa_forward and nsa_backward of any small configuration, batch, phi and layout: nothing out of bounds, a selection
 * that obeys its rules, and all else, given that selection, as the oracle has it.
 */
#include "fuzz/close.h"
#include "fuzz/fuzz.h"
#include "testlib/nsa_case.h"

static const nsa_ctx oracle_ctx = {.n_threads = 1, .reference = true};

/* ---- The problem */

static nsa_config draw_config(fuzz_input *in)
{
    nsa_config cfg;
    nsa_config_init(&cfg);
    cfg.cmp_stride = fuzz_range(in, 1, 6);
    const int32_t per_block = fuzz_range(in, 1, 4);
    cfg.cmp_block = cfg.cmp_stride * per_block;
    cfg.slc_block = cfg.cmp_stride * (per_block + fuzz_range(in, 0, 4));
    cfg.slc_n_init = fuzz_range(in, 0, 2);
    cfg.slc_n_local = fuzz_range(in, 0, 2);
    cfg.slc_topk = cfg.slc_n_init + cfg.slc_n_local + fuzz_range(in, 0, 4);
    cfg.slc_topk = cfg.slc_topk == 0 ? 1 : cfg.slc_topk;
    cfg.win_size = fuzz_range(in, 1, 80);
    return cfg;
}

static nsa_batch draw_batch(fuzz_input *in)
{
    seq_lengths lengths[2];
    const int32_t n = fuzz_range(in, 0, 2);
    for (int32_t s = 0; s < n; s++) {
        lengths[s].k = fuzz_range(in, 0, 48);
        lengths[s].q = fuzz_range(in, 0, 3) > 0 ? fuzz_range(in, 0, 9) : lengths[s].k;
    }
    return batch_of(lengths, n);
}

static nsa_shape draw_shape(fuzz_input *in)
{
    return (nsa_shape){
        .group = fuzz_range(in, 1, 3),
        .n_heads_kv = fuzz_range(in, 1, 2),
        .d_qk = fuzz_range(in, 1, 9),
        .d_v = fuzz_range(in, 1, 9),
        .dtype = (nsa_dtype)fuzz_range(in, NSA_F32, NSA_F16),
        .as = (layout)fuzz_range(in, 0, N_OUTPUT_LAYOUTS - 1),
        .shared = fuzz_range(in, 0, 1) != 0,
        .token_gate = fuzz_range(in, 0, 1) != 0,
        .phi = (nsa_phi_kind)fuzz_range(in, NSA_PHI_MEAN, NSA_PHI_MLP),
        .per_head = fuzz_range(in, 0, 1) != 0,
    };
}

/* ---- The selection */

static void check_row(const nsa_config *cfg, const int32_t *idx, int64_t t)
{
    const int64_t own = t < 0 ? -1 : t / cfg->slc_block, n = min_i64(cfg->slc_topk, own + 1);
    bool has_init = false, has_own = false;
    for (int64_t i = 0; i < cfg->slc_topk; i++) {
        FUZZ_CHECK(i < n ? idx[i] >= 0 && idx[i] <= own : idx[i] == -1);
        FUZZ_CHECK(i == 0 || i >= n || idx[i] > idx[i - 1]);
        has_init |= idx[i] == 0;
        has_own |= idx[i] == own;
    }
    FUZZ_CHECK(n == 0 || cfg->slc_n_init == 0 || has_init);
    FUZZ_CHECK(n == 0 || cfg->slc_n_local == 0 || has_own);
}

static void check_selection(const nsa_case *c)
{
    const test_tensor *x = &c->slc_idx;
    for (int32_t s = 0; s < x->e.n_seqs; s++) {
        const int64_t t_k = c->batch.cu_seqlens_k[s + 1] - c->batch.cu_seqlens_k[s];
        for (int64_t row = 0; row < tensor_rows(x, s); row++)
            for (int32_t h = 0; h < x->e.n_heads; h++)
                check_row(&c->cfg, (const int32_t *)x->t.data + tensor_index(x, s, row, h, 0),
                          row + t_k - tensor_rows(x, s));
    }
}

/* ---- Against the oracle */

/* The oracle's outputs of the same inputs and the same selection. */
static void check_forward(const nsa_case *c)
{
    nsa_forward_args args = c->fwd;
    const test_tensor o = tensor_like(&c->o, c->o.t.dtype), k_cmp = tensor_like(&c->k_cmp, c->k_cmp.t.dtype),
                      v_cmp = tensor_like(&c->v_cmp, c->v_cmp.t.dtype);
    test_tensor o_branch[NSA_N_BRANCHES], lse[NSA_N_BRANCHES];
    args.slc_idx_given = 1;
    args.o = o.t, args.k_cmp = k_cmp.t, args.v_cmp = v_cmp.t;
    for (int b = 0; b < NSA_N_BRANCHES; b++) {
        o_branch[b] = tensor_like(&c->o_branch[b], c->o.t.dtype);
        lse[b] = tensor_like(&c->lse[b], c->lse[b].t.dtype);
        args.o_branch[b] = o_branch[b].t, args.lse[b] = lse[b].t;
    }
    run_forward(&oracle_ctx, c, &args);
    fuzz_check_close("k_cmp", &c->k_cmp, &k_cmp, c->shape.dtype);
    fuzz_check_close("v_cmp", &c->v_cmp, &v_cmp, c->shape.dtype);
    for (int b = 0; b < NSA_N_BRANCHES; b++) {
        fuzz_check_close("o_branch", &c->o_branch[b], &o_branch[b], c->shape.dtype);
        fuzz_check_close("lse", &c->lse[b], &lse[b], c->shape.dtype);
    }
    fuzz_check_close("o", &c->o, &o, c->shape.dtype);
}

/* The oracle's gradients of the same outputs. Those of phi sum over all blocks, as far as the tensors go. */
static void check_backward(const nsa_case *c)
{
    nsa_backward_args args = c->bwd;
    const test_tensor dgate = tensor_like(&c->dgate, c->dgate.t.dtype);
    test_tensor dq[NSA_N_BRANCHES], dk[NSA_N_BRANCHES], dv[NSA_N_BRANCHES];
    args.dgate = dgate.t;
    for (int b = 0; b < NSA_N_BRANCHES; b++) {
        const bool copy = b > 0 && c->shape.shared;
        dq[b] = copy ? dq[0] : tensor_like(&c->dq[b], c->dq[b].t.dtype);
        dk[b] = copy ? dk[0] : tensor_like(&c->dk[b], c->dk[b].t.dtype);
        dv[b] = copy ? dv[0] : tensor_like(&c->dv[b], c->dv[b].t.dtype);
        args.dq[b] = dq[b].t, args.dk[b] = dk[b].t, args.dv[b] = dv[b].t;
    }
    run_backward(&oracle_ctx, c, &args);
    for (int b = 0; b < NSA_N_BRANCHES; b++) {
        fuzz_check_close("dq", &c->dq[b], &dq[b], c->shape.dtype);
        fuzz_check_close("dk", &c->dk[b], &dk[b], c->shape.dtype);
        fuzz_check_close("dv", &c->dv[b], &dv[b], c->shape.dtype);
    }
    fuzz_check_close("dgate", &c->dgate, &dgate, c->shape.dtype);
}

static void check_padding(const nsa_case *c)
{
    const test_tensor *outputs[] = {&c->o, &c->k_cmp, &c->v_cmp, &c->slc_idx, &c->dgate};
    for (size_t i = 0; i < sizeof outputs / sizeof *outputs; i++)
        assert_padding_intact("an output", outputs[i]);
    for (int b = 0; b < NSA_N_BRANCHES; b++) {
        assert_padding_intact("o_branch", &c->o_branch[b]);
        assert_padding_intact("lse", &c->lse[b]);
        assert_padding_intact("dq", &c->dq[b]);
        assert_padding_intact("dk", &c->dk[b]);
        assert_padding_intact("dv", &c->dv[b]);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_input in = {data, size};
    testlib_reset();
    nsa_ctx contexts[MAX_CONTEXTS];
    const int n_contexts = test_contexts(contexts, 1);
    const nsa_ctx *ctx = &contexts[fuzz_range(&in, 0, n_contexts - 1)];
    const nsa_config cfg = draw_config(&in);
    const nsa_batch batch = draw_batch(&in);
    const nsa_shape shape = draw_shape(&in);
    rng r = {fuzz_byte(&in)};

    nsa_case c;
    nsa_case_init(&c, &cfg, &batch, &shape, &r);
    run_forward(ctx, &c, &c.fwd);
    run_backward(ctx, &c, &c.bwd);
    check_padding(&c);
    check_selection(&c);
    check_forward(&c);
    check_backward(&c);
    return 0;
}
