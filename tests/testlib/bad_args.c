#include "testlib/unit.h"
#include "testlib/bad_args.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N_Q = 4, N_KV = 2, D_QK = 8, D_V = 6, BLOCK = 4, TOPK = 3, PAGE = 8 };

/* ---- The world */

static void watch(world *w, void *data, size_t bytes)
{
    assert_true((size_t)w->n_watched < sizeof w->watched / sizeof *w->watched);
    void *copy = guarded(bytes, FLUSH_RIGHT);
    memcpy(copy, data, bytes);
    w->watched[w->n_watched++] = (watched){data, copy, bytes};
}

static nsa_tensor input(const world *w, side on, int32_t n_heads, int32_t d, nsa_dtype dtype)
{
    const test_tensor x = tensor_new(&w->cfg, &w->batch, on, n_heads, d, dtype, LAYOUT_THD);
    tensor_fill_normal(&x, &(rng){1}, 0.1);
    return x.t;
}

static nsa_tensor output(world *w, side on, int32_t n_heads, int32_t d, nsa_dtype dtype)
{
    const test_tensor x = tensor_new(&w->cfg, &w->batch, on, n_heads, d, dtype, LAYOUT_THD);
    watch(w, x.t.data, (size_t)x.n * dtype_size(dtype));
    return x.t;
}

/* A linear phi for rows of d channels; as an output if `grad`. */
static nsa_phi phi_of(world *w, int32_t d, bool grad)
{
    const size_t pe = (size_t)(BLOCK * d) * sizeof(float), w1 = pe * (size_t)d;
    nsa_phi phi = {NSA_PHI_LINEAR, NSA_F32, 0, 0, guarded(pe, FLUSH_RIGHT), guarded(w1, FLUSH_RIGHT), NULL, NULL, NULL};
    if (grad) {
        watch(w, phi.pe, pe);
        watch(w, phi.w1, w1);
    } else {
        memset(phi.pe, 0, pe);
        memset(phi.w1, 0, w1);
    }
    return phi;
}

static void init_ops(world *w)
{
    const nsa_tensor q = input(w, SIDE_Q, N_Q, D_QK, NSA_F32), o = input(w, SIDE_Q, N_Q, D_V, NSA_F32);
    const nsa_tensor k = input(w, SIDE_K, N_KV, D_QK, NSA_F32), v = input(w, SIDE_K, N_KV, D_V, NSA_F32);
    const nsa_tensor k_cmp = input(w, SIDE_CMP, N_KV, D_QK, NSA_F32), v_cmp = input(w, SIDE_CMP, N_KV, D_V, NSA_F32);
    const nsa_tensor idx = input(w, SIDE_Q, N_KV, TOPK, NSA_I32), lse = input(w, SIDE_Q, N_Q, 1, NSA_F32);
    const nsa_tensor gate = input(w, SIDE_Q, N_Q, NSA_N_BRANCHES, NSA_F32);
    nsa_tensor o_out[4], lse_out[3], dq[3], dk[3], dv[3];
    o_out[3] = output(w, SIDE_Q, N_Q, D_V, NSA_F32);
    for (int b = 0; b < NSA_N_BRANCHES; b++) {
        o_out[b] = output(w, SIDE_Q, N_Q, D_V, NSA_F32);
        lse_out[b] = output(w, SIDE_Q, N_Q, 1, NSA_F32);
        dq[b] = output(w, SIDE_Q, N_Q, D_QK, NSA_F32);
        dk[b] = output(w, SIDE_K, N_KV, D_QK, NSA_F32);
        dv[b] = output(w, SIDE_K, N_KV, D_V, NSA_F32);
    }
    const nsa_tensor k_cmp_out = output(w, SIDE_CMP, N_KV, D_QK, NSA_F32);
    const nsa_tensor v_cmp_out = output(w, SIDE_CMP, N_KV, D_V, NSA_F32);
    const nsa_tensor idx_out = output(w, SIDE_Q, N_KV, TOPK, NSA_I32);
    const nsa_tensor dgate = output(w, SIDE_Q, N_Q, NSA_N_BRANCHES, NSA_F32);
    w->phi_k = phi_of(w, D_QK, false);
    w->phi_v = phi_of(w, D_V, false);
    w->dphi_k = phi_of(w, D_QK, true);
    w->dphi_v = phi_of(w, D_V, true);

    w->attn = (nsa_attn_args){q, k, v, idx, o_out[0], lse_out[0]};
    w->cmp_attn = (nsa_attn_args){q, k_cmp, v_cmp, idx, o_out[0], lse_out[0]};
    w->attn_backward = (nsa_attn_backward_args){{q, k, v, idx, o, lse}, o, dq[0], dk[0], dv[0]};
    w->cmp_attn_backward = (nsa_attn_backward_args){{q, k_cmp, v_cmp, idx, o, lse}, o, dq[0], k_cmp_out, v_cmp_out};
    w->select = (nsa_select_args){q, k_cmp, lse, idx_out};
    w->gate = (nsa_gate_args){gate, {o, o, o}, o_out[3]};
    w->gate_backward = (nsa_gate_backward_args){gate, {o, o, o}, o, dgate, {o_out[0], o_out[1], o_out[2]}};
    w->compress = (nsa_compress_args){D_QK, w->phi_k, k, k_cmp_out};
    w->compress_backward = (nsa_compress_backward_args){D_QK, w->phi_k, k, k_cmp, dk[0], w->dphi_k};
    w->forward = (nsa_forward_args){
        .q = {q, q, q},
        .k = {k, k, k},
        .v = {v, v, v},
        .gate = gate,
        .phi_k = &w->phi_k,
        .phi_v = &w->phi_v,
        .o = o_out[3],
        .k_cmp = k_cmp_out,
        .v_cmp = v_cmp_out,
        .slc_idx = idx_out,
        .o_branch = {o_out[0], o_out[1], o_out[2]},
        .lse = {lse_out[0], lse_out[1], lse_out[2]},
    };
    w->backward = (nsa_backward_args){
        .fwd = w->forward,
        .d_o = o,
        .dq = {dq[0], dq[1], dq[2]},
        .dk = {dk[0], dk[1], dk[2]},
        .dv = {dv[0], dv[1], dv[2]},
        .dgate = dgate,
        .dphi_k = &w->dphi_k,
        .dphi_v = &w->dphi_v,
    };
    w->backward.fwd.k_cmp = k_cmp;
    w->backward.fwd.v_cmp = v_cmp;
    w->backward.fwd.slc_idx = idx;
    for (int b = 0; b < NSA_N_BRANCHES; b++) {
        w->backward.fwd.o_branch[b] = o;
        w->backward.fwd.lse[b] = lse;
    }
}

static void init_cache(world *w)
{
    w->cache = (nsa_cache){PAGE, 2, 0, NSA_F32, 6, NULL};
    size_t page_bytes = 0, state_bytes = 0;
    assert_int_equal(nsa_cache_page_bytes(w->ctx, &w->cfg, &w->cache, &page_bytes), NSA_OK);
    assert_int_equal(nsa_cache_state_bytes(w->ctx, &w->cfg, &w->cache, &state_bytes), NSA_OK);
    w->cache.pages = guarded((size_t)w->cache.n_pages * page_bytes, FLUSH_LEFT);
    for (int32_t s = 0; s < 3; s++) {
        w->states[s] = guarded(state_bytes, FLUSH_LEFT);
        assert_int_equal(nsa_cache_reset(w->ctx, &w->cfg, &w->cache, w->states[s], NULL), NSA_OK);
        w->page_table[s][0] = 5 - s;
        w->page_table[s][1] = s;
    }
    nsa_cache_args *a = &w->cache_args;
    *a = (nsa_cache_args){.n_seqs = 3, .total = 3, .cu_seqlens = w->cu_q};
    a->states = w->states;
    a->page_table = w->page_table[0];
    a->pages_per_seq = 2;
    for (int b = 0; b < NSA_N_BRANCHES; b++) {
        a->q[b] = input(w, SIDE_Q, N_Q, D_QK, NSA_F32);
        a->k[b] = input(w, SIDE_Q, N_KV, D_QK, NSA_F32);
        a->v[b] = input(w, SIDE_Q, N_KV, D_V, NSA_F32);
    }
    a->gate = w->gate.gate;
    a->phi_k = &w->phi_k;
    a->phi_v = &w->phi_v;
    a->o = w->forward.o;
    a->slc_idx = w->forward.slc_idx;

    const int32_t first_three[] = {0, 3, 3, 3};
    nsa_cache_args first = *a;
    first.cu_seqlens = first_three;
    first.o = tensor_new(&w->cfg, &w->batch, SIDE_Q, N_Q, D_V, NSA_F32, LAYOUT_THD).t;
    first.slc_idx.data = NULL;
    assert_int_equal(nsa_prefill(w->ctx, &w->cfg, &w->cache, &first, w->workspace, w->workspace_bytes, NULL), NSA_OK);
    a->total = w->batch.total_q;
    watch(w, w->cache.pages, (size_t)w->cache.n_pages * page_bytes);
    for (int32_t s = 0; s < 3; s++)
        watch(w, w->states[s], state_bytes);
    w->cache_arg = &w->cache;
    w->state_arg = w->states[0];
    w->n_tokens = 2;
    w->n_tokens_arg = &w->n_tokens;
}

void world_init(world *w)
{
    static nsa_ctx contexts[MAX_CONTEXTS];
    testlib_reset();
    test_contexts(contexts, 1);
    *w = (world){.ctx = contexts, .cfg_arg = &w->cfg, .batch_arg = &w->batch, .bytes_arg = &w->bytes};
    w->cfg = (nsa_config){sizeof w->cfg, N_Q, N_KV, D_QK, D_V, BLOCK, 2, 4, TOPK, 1, 1, 5, 0.0};
    const int32_t cu_q[] = {0, 5, 5, 17}, cu_k[] = {0, 9, 12, 24};
    memcpy(w->cu_q, cu_q, sizeof cu_q);
    memcpy(w->cu_k, cu_k, sizeof cu_k);
    w->batch = (nsa_batch){3, 12, 12, 17, 24, w->cu_q, w->cu_k};
    w->workspace_bytes = (size_t)1 << 20;
    w->workspace = guarded(w->workspace_bytes, FLUSH_RIGHT);
    init_ops(w);
    init_cache(w);
}

/* ---- Running tables */

static void set_field(world *w, const bad *b)
{
    char *at = (char *)w + b->offset;
    const int64_t wide = b->is_double ? 0 : (int64_t)b->value;
    const int32_t narrow = (int32_t)wide;
    if (b->is_double)
        memcpy(at, &b->value, sizeof b->value);
    else if (b->size == sizeof narrow)
        memcpy(at, &narrow, sizeof narrow);
    else
        memcpy(at, &wide, sizeof wide);
}

void expect_failure(world *w, call_fn *call, nsa_status status, const char *words)
{
    const nsa_status got = call(w);
    if (got != status)
        test_fail("expected '%s' about '%s', got '%s'", nsa_status_string(status), words, nsa_status_string(got));
    if (strstr(nsa_last_error(), words) == NULL)
        test_fail("the message '%s' does not say '%s'", nsa_last_error(), words);
    for (int i = 0; i < w->n_watched; i++)
        if (memcmp(w->watched[i].data, w->watched[i].copy, w->watched[i].bytes) != 0)
            test_fail("refused, yet wrote to buffer %d", i);
    assert_int_equal(w->bytes, 0);
}

void run_cases(world *w, const char *name, call_fn *size, call_fn *run, const bad *cases, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        char saved[sizeof(double)];
        test_note("%s, case %zu (%s = %g)", name, i, cases[i].words, cases[i].value);
        memcpy(saved, (char *)w + cases[i].offset, cases[i].size);
        set_field(w, &cases[i]);
        if (size != NULL)
            expect_failure(w, size, NSA_ERR_INVALID_ARGUMENT, cases[i].words);
        expect_failure(w, run, NSA_ERR_INVALID_ARGUMENT, cases[i].words);
        memcpy((char *)w + cases[i].offset, saved, cases[i].size);
    }
    test_note("%s, valid", name);
    if (run(w) != NSA_OK)
        test_fail("refused a valid call: %s", nsa_last_error());
}

void run_workspace_cases(world *w, const char *name, call_fn *size, call_fn *run)
{
    test_note("%s, workspace", name);
    assert_int_equal(size(w), NSA_OK);
    const size_t bytes = w->bytes;
    void *const workspace = w->workspace;
    w->bytes = 0;
    w->bytes_arg = NULL;
    expect_failure(w, size, NSA_ERR_INVALID_ARGUMENT, "bytes is NULL");
    if (bytes > 0) {
        w->workspace_bytes = bytes - 1;
        expect_failure(w, run, NSA_ERR_WORKSPACE, "workspace_bytes");
        w->workspace_bytes = bytes;
        w->workspace = NULL;
        expect_failure(w, run, NSA_ERR_INVALID_ARGUMENT, "workspace is NULL");
    }
    w->workspace = workspace;
    w->workspace_bytes = bytes;
    assert_int_equal(run(w), NSA_OK);
}

const bad bad_cfg[] = {
    BAD("ctx is NULL", ctx, 0),
    BAD("cfg is NULL", cfg_arg, 0),
    BAD("cfg.struct_size", cfg.struct_size, 0),
    BAD("cfg.n_heads_q", cfg.n_heads_q, 0),
    BAD("cfg.n_heads_q", cfg.n_heads_q, 5),
    BAD("cfg.n_heads_q", cfg.n_heads_q, INT32_MAX),
    BAD("cfg.n_heads_kv", cfg.n_heads_kv, -2),
    BAD("cfg.d_qk", cfg.d_qk, 0),
    BAD("cfg.d_qk", cfg.d_qk, 257),
    BAD("cfg.d_v", cfg.d_v, 0),
    BAD("cfg.d_v", cfg.d_v, INT32_MIN),
    BAD("cfg.cmp_block", cfg.cmp_block, 0),
    BAD("cfg.cmp_block", cfg.cmp_block, 6), /* > slc_block */
    BAD("cfg.cmp_stride", cfg.cmp_stride, 0),
    BAD("cfg.cmp_stride", cfg.cmp_stride, 3),
    BAD("cfg.slc_block", cfg.slc_block, -1),
    BAD("cfg.slc_block", cfg.slc_block, 5), /* no multiple of the stride */
    BAD("cfg.slc_topk", cfg.slc_topk, 0),
    BAD("cfg.slc_topk", cfg.slc_topk, 1), /* < 1 + 1 forced */
    BAD("cfg.slc_n_init", cfg.slc_n_init, -1),
    BAD("cfg.slc_n_init", cfg.slc_n_init, INT32_MAX),
    BAD("cfg.slc_n_local", cfg.slc_n_local, -1),
    BAD("cfg.win_size", cfg.win_size, 0),
    BAD("cfg.scale", cfg.scale, -1.0),
    BAD("cfg.scale", cfg.scale, INFINITY),
    BAD("cfg.scale", cfg.scale, NAN),
};
const size_t n_bad_cfg = sizeof bad_cfg / sizeof *bad_cfg;
