/* Any slc_idx, of any small shape and layout, forward and backward: nothing is read or written out of bounds, and the
 * oracle gives the same. */
#include "fuzz/close.h"
#include "fuzz/fuzz.h"
#include "testlib/attn_case.h"

static const nsa_ctx oracle_ctx = {.n_threads = 1, .reference = true};

typedef struct results {
    attn_out out;
    attn_grads grads;
} results;

/* ---- The problem */

static nsa_config draw_config(fuzz_input *in)
{
    static const int32_t blocks[] = {1, 2, 3, 5, 8, 16, 63, 64, 65, 100};
    nsa_config cfg;
    nsa_config_init(&cfg);
    cfg.slc_block = blocks[fuzz_range(in, 0, 9)];
    cfg.cmp_block = cfg.cmp_stride = cfg.slc_block;
    cfg.slc_topk = fuzz_range(in, 1, 8);
    cfg.slc_n_init = cfg.slc_n_local = 0;
    return cfg;
}

static nsa_batch draw_batch(fuzz_input *in)
{
    seq_lengths lengths[2];
    const int32_t n = fuzz_range(in, 0, 2);
    for (int32_t s = 0; s < n; s++) {
        lengths[s].q = fuzz_range(in, 0, 12);
        lengths[s].k = fuzz_range(in, 0, 140);
    }
    return batch_of(lengths, n);
}

static attn_shape draw_shape(fuzz_input *in)
{
    static const int32_t groups[] = {1, 2, 3, 5};
    static const nsa_dtype dtypes[] = {NSA_F32, NSA_BF16, NSA_F16};
    return (attn_shape){
        .group = groups[fuzz_range(in, 0, 3)],
        .n_heads_kv = fuzz_range(in, 1, 2),
        .d_qk = fuzz_range(in, 1, 17),
        .d_v = fuzz_range(in, 1, 17),
        .dtype = dtypes[fuzz_range(in, 0, 2)],
        .q = (layout)fuzz_range(in, 0, N_LAYOUTS - 1),
        .kv = (layout)fuzz_range(in, 0, N_LAYOUTS - 1),
        .out = (layout)fuzz_range(in, 0, N_OUTPUT_LAYOUTS - 1),
    };
}

static void draw_slc_idx(fuzz_input *in, const test_tensor *x)
{
    for (int32_t s = 0; s < x->e.n_seqs; s++) {
        const int32_t t_k = x->batch->cu_seqlens_k[s + 1] - x->batch->cu_seqlens_k[s];
        const int32_t n_blocks = (int32_t)n_slc_blocks(x->cfg, t_k);
        for (int64_t row = 0; row < tensor_rows(x, s); row++)
            for (int32_t h = 0; h < x->e.n_heads; h++)
                for (int32_t i = 0; i < x->e.d; i++)
                    *((int32_t *)x->t.data + tensor_index(x, s, row, h, i)) = fuzz_hostile(in, -1, n_blocks);
    }
}

/* ---- The runs */

static results new_results(const attn_case *c, nsa_dtype dtype, layout as)
{
    return (results){attn_out_new(c, dtype, as), attn_grads_new(c, dtype, as)};
}

static void run_public(const nsa_ctx *ctx, const attn_case *c, const results *x)
{
    const nsa_attn_args forward = {c->q.t, c->k.t, c->v.t, c->slc_idx.t, x->out.o.t, x->out.lse.t};
    size_t bytes = 0;
    FUZZ_CHECK(nsa_slc_attn_workspace(ctx, &c->cfg, &c->batch, &forward, &bytes) == NSA_OK);
    FUZZ_CHECK(nsa_slc_attn(ctx, &c->cfg, &c->batch, &forward, guarded(bytes, FLUSH_RIGHT), bytes, NULL) == NSA_OK);

    nsa_attn_backward_args backward = {forward, c->d_o.t, x->grads.dq.t, x->grads.dk.t, x->grads.dv.t};
    FUZZ_CHECK(nsa_slc_attn_backward_workspace(ctx, &c->cfg, &c->batch, &backward, &bytes) == NSA_OK);
    FUZZ_CHECK(nsa_slc_attn_backward(ctx, &c->cfg, &c->batch, &backward, guarded(bytes, FLUSH_RIGHT), bytes, NULL) ==
               NSA_OK);
}

static void check_padding(const results *x)
{
    assert_padding_intact("o", &x->out.o);
    assert_padding_intact("lse", &x->out.lse);
    assert_padding_intact("dq", &x->grads.dq);
    assert_padding_intact("dk", &x->grads.dk);
    assert_padding_intact("dv", &x->grads.dv);
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
    const attn_shape shape = draw_shape(&in);
    rng r = {fuzz_byte(&in)};

    attn_case c;
    const attn_op *op = &attn_ops[NSA_SLC];
    attn_case_inputs(&c, op, &cfg, &batch, &shape, &r);
    draw_slc_idx(&in, &c.slc_idx);
    const results got = new_results(&c, shape.dtype, shape.out);
    run_public(ctx, &c, &got);
    check_padding(&got);
    const results exact = new_results(&c, NSA_F64, LAYOUT_THD);
    c.o = got.out.o; /* both gradients of the same o and lse */
    c.lse = got.out.lse;
    attn_run_forward(&c, &oracle_ctx, attn_oracle(op)->forward, REF_EXACT, &exact.out);
    attn_run_backward(&c, &oracle_ctx, attn_oracle(op)->backward, REF_EXACT, &exact.grads, false);
    fuzz_check_close("o", &got.out.o, &exact.out.o, shape.dtype);
    fuzz_check_close("lse", &got.out.lse, &exact.out.lse, shape.dtype);
    fuzz_check_close("dq", &got.grads.dq, &exact.grads.dq, shape.dtype);
    fuzz_check_close("dk", &got.grads.dk, &exact.grads.dk, shape.dtype);
    fuzz_check_close("dv", &got.grads.dv, &exact.grads.dv, shape.dtype);
    return 0;
}
