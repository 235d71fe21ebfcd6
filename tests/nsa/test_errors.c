/* Bad input to every function that takes a batch, and to the small ones; the cache's are in test_errors_cache.c. */
#include "testlib/unit.h"
#include "testlib/bad_args.h"

#include <stdlib.h>
#include <string.h>

/* ---- The functions */

typedef struct function {
    const char *name;
    bool reads_q, reads_k; /* of the batch */
    call_fn *size;         /* NULL: takes no workspace */
    call_fn *run;
} function;

#define DEFINE_CALLS(op, member)                                                                                       \
    static nsa_status size_##op(world *w)                                                                              \
    {                                                                                                                  \
        return nsa_##op##_workspace(w->ctx, w->cfg_arg, w->batch_arg, w->no_args ? NULL : &w->member, w->bytes_arg);   \
    }                                                                                                                  \
    static nsa_status run_##op(world *w)                                                                               \
    {                                                                                                                  \
        return nsa_##op(w->ctx, w->cfg_arg, w->batch_arg, w->no_args ? NULL : &w->member, w->workspace,                \
                        w->workspace_bytes, NULL);                                                                     \
    }
DEFINE_CALLS(cmp_attn, cmp_attn)
DEFINE_CALLS(slc_attn, attn)
DEFINE_CALLS(win_attn, attn)
DEFINE_CALLS(cmp_attn_backward, cmp_attn_backward)
DEFINE_CALLS(slc_attn_backward, attn_backward)
DEFINE_CALLS(win_attn_backward, attn_backward)
DEFINE_CALLS(select, select)
DEFINE_CALLS(compress, compress)
DEFINE_CALLS(compress_backward, compress_backward)
DEFINE_CALLS(forward, forward)
DEFINE_CALLS(backward, backward)

static nsa_status run_gate(world *w)
{
    return nsa_gate(w->ctx, w->cfg_arg, w->batch_arg, w->no_args ? NULL : &w->gate, NULL);
}

static nsa_status run_gate_backward(world *w)
{
    return nsa_gate_backward(w->ctx, w->cfg_arg, w->batch_arg, w->no_args ? NULL : &w->gate_backward, NULL);
}

enum {
    CMP_ATTN,
    SLC_ATTN,
    WIN_ATTN,
    CMP_ATTN_BACKWARD,
    SLC_ATTN_BACKWARD,
    WIN_ATTN_BACKWARD,
    SELECT,
    GATE,
    GATE_BACKWARD,
    COMPRESS,
    COMPRESS_BACKWARD,
    FORWARD,
    BACKWARD,
    N_FUNCTIONS
};

static const function functions[N_FUNCTIONS] = {
    {"nsa_cmp_attn", true, true, size_cmp_attn, run_cmp_attn},
    {"nsa_slc_attn", true, true, size_slc_attn, run_slc_attn},
    {"nsa_win_attn", true, true, size_win_attn, run_win_attn},
    {"nsa_cmp_attn_backward", true, true, size_cmp_attn_backward, run_cmp_attn_backward},
    {"nsa_slc_attn_backward", true, true, size_slc_attn_backward, run_slc_attn_backward},
    {"nsa_win_attn_backward", true, true, size_win_attn_backward, run_win_attn_backward},
    {"nsa_select", true, true, size_select, run_select},
    {"nsa_gate", true, false, NULL, run_gate},
    {"nsa_gate_backward", true, false, NULL, run_gate_backward},
    {"nsa_compress", false, true, size_compress, run_compress},
    {"nsa_compress_backward", false, true, size_compress_backward, run_compress_backward},
    {"nsa_forward", true, true, size_forward, run_forward},
    {"nsa_backward", true, true, size_backward, run_backward},
};

/* ---- What every function takes */

static const bad bad_batch[] = {
    BAD("batch is NULL", batch_arg, 0),
    BAD("args is NULL", no_args, 1),
    BAD("batch.n_seqs", batch.n_seqs, -1),
};

static const bad bad_batch_q[] = {
    BAD("batch.total_q", batch.total_q, -1),           BAD("batch.total_q", batch.total_q, 0x1p40),
    BAD("batch.total_q", batch.total_q, 16),           BAD("batch.cu_seqlens_q", batch.cu_seqlens_q, 0),
    BAD("batch.cu_seqlens_q", batch.cu_seqlens_q, 2),  BAD("batch.cu_seqlens_q[0]", cu_q[0], 1),
    BAD("batch.cu_seqlens_q[0]", cu_q[0], -5),         BAD("batch.cu_seqlens_q[2]", cu_q[2], 4),
    BAD("batch.cu_seqlens_q[3]", cu_q[3], INT32_MIN),  BAD("batch.max_seqlen_q", batch.max_seqlen_q, 11),
    BAD("batch.max_seqlen_q", batch.max_seqlen_q, -1),
};

static const bad bad_batch_k[] = {
    BAD("batch.total_k", batch.total_k, -1),          BAD("batch.total_k", batch.total_k, 25),
    BAD("batch.cu_seqlens_k", batch.cu_seqlens_k, 0), BAD("batch.cu_seqlens_k", batch.cu_seqlens_k, 1),
    BAD("batch.cu_seqlens_k[0]", cu_k[0], 1),         BAD("batch.cu_seqlens_k[1]", cu_k[1], -1),
    BAD("batch.cu_seqlens_k[2]", cu_k[2], 8),         BAD("batch.max_seqlen_k", batch.max_seqlen_k, 11),
};

static void run_on_new_world(const function *f, const bad *cases, size_t n)
{
    world w;
    world_init(&w);
    run_cases(&w, f->name, f->size, f->run, cases, n);
}

#define RUN(function, cases) run_on_new_world(&functions[function], cases, sizeof(cases) / sizeof *(cases))

static void test_config_and_batch(void **state)
{
    (void)state;
    for (int f = 0; f < N_FUNCTIONS; f++) {
        run_on_new_world(&functions[f], bad_cfg, n_bad_cfg);
        RUN(f, bad_batch);
        if (functions[f].reads_q)
            RUN(f, bad_batch_q);
        if (functions[f].reads_k)
            RUN(f, bad_batch_k);
    }
}

static void test_workspace(void **state)
{
    (void)state;
    for (int f = 0; f < N_FUNCTIONS; f++) {
        if (functions[f].size == NULL)
            continue;
        world w;
        world_init(&w);
        run_workspace_cases(&w, functions[f].name, functions[f].size, functions[f].run);
    }
}

/* ---- Tensors */

#define BAD_ATTN(field)                                                                                                \
    BAD_INPUT("args.q", field.q), BAD("args.q.dtype", field.q.dtype, NSA_I32),                                         \
        BAD("args.k.dtype", field.q.dtype, NSA_BF16) /* the others no longer agree with q */,                          \
        BAD_OTHER("args.k", field.k), BAD_OTHER("args.v", field.v), BAD("args.v.dtype", field.v.dtype, NSA_F16),       \
        BAD_OUTPUT("args.o", field.o), BAD_OUTPUT("args.lse", field.lse),                                              \
        BAD("args.lse.dtype", field.lse.dtype, NSA_BF16)

#define BAD_ATTN_BACKWARD(field)                                                                                       \
    BAD_INPUT("args.fwd.q", field.fwd.q), BAD_OTHER("args.fwd.k", field.fwd.k), BAD_OTHER("args.fwd.v", field.fwd.v),  \
        BAD_OTHER("args.fwd.o", field.fwd.o), BAD_OTHER("args.fwd.lse", field.fwd.lse),                                \
        BAD_OTHER("args.d_o", field.d_o), BAD_OUTPUT("args.dq", field.dq), BAD_OUTPUT("args.dk", field.dk),            \
        BAD_OUTPUT("args.dv", field.dv)

static const bad bad_cmp_attn[] = {BAD_ATTN(cmp_attn)};
static const bad bad_attn[] = {BAD_ATTN(attn)};
static const bad bad_cmp_attn_backward[] = {BAD_ATTN_BACKWARD(cmp_attn_backward)};
static const bad bad_attn_backward[] = {BAD_ATTN_BACKWARD(attn_backward)};
static const bad bad_slc_idx[] = {BAD_OTHER("args.slc_idx", attn.slc_idx)};
static const bad bad_slc_idx_backward[] = {BAD_OTHER("args.fwd.slc_idx", attn_backward.fwd.slc_idx)};

static const bad bad_select[] = {
    BAD_INPUT("args.q", select.q),
    BAD_OTHER("args.k_cmp", select.k_cmp),
    BAD_OTHER("args.lse", select.lse),
    BAD_OUTPUT("args.slc_idx", select.slc_idx),
    BAD("args.slc_idx.dtype", select.slc_idx.dtype, NSA_F32),
};

static const bad bad_gate[] = {
    BAD_OTHER("args.gate", gate.gate),
    BAD("args.gate.dtype", gate.gate.dtype, NSA_BF16),
    BAD_INPUT("args.o_branch[0]", gate.o_branch[0]),
    BAD_OTHER("args.o_branch[1]", gate.o_branch[1]),
    BAD_OTHER("args.o_branch[2]", gate.o_branch[2]),
    BAD_OUTPUT("args.o", gate.o),
};

static const bad bad_gate_backward[] = {
    BAD_OTHER("args.gate", gate_backward.gate),
    BAD_INPUT("args.o_branch[0]", gate_backward.o_branch[0]),
    BAD_OTHER("args.o_branch[1]", gate_backward.o_branch[1]),
    BAD_OTHER("args.o_branch[2]", gate_backward.o_branch[2]),
    BAD_OTHER("args.d_o", gate_backward.d_o),
    BAD_OUTPUT("args.dgate", gate_backward.dgate),
    BAD_OUTPUT("args.do_branch[0]", gate_backward.do_branch[0]),
    BAD_OUTPUT("args.do_branch[1]", gate_backward.do_branch[1]),
    BAD_OUTPUT("args.do_branch[2]", gate_backward.do_branch[2]),
};

/* The world's phi are linear: pe and w1. */
#define BAD_PHI(name, field)                                                                                           \
    BAD(name ".kind", field.kind, -1), BAD(name ".kind", field.kind, NSA_PHI_MLP + 1),                                 \
        BAD(name ".d_hidden", field.kind, NSA_PHI_MLP), BAD(name ".pe", field.kind, NSA_PHI_MEAN),                     \
        BAD(name ".dtype", field.dtype, NSA_BF16), BAD(name ".dtype", field.dtype, 99), BAD(name ".w1", field.w1, 0),  \
        BAD(name ".w1", field.w1, 2), BAD(name ".pe", field.pe, 1), BAD(name ".b1", field.b1, 64),                     \
        BAD(name ".w2", field.w2, 64), BAD(name ".b2", field.b2, 64)

#define BAD_DPHI(name, field)                                                                                          \
    BAD(name, field.kind, NSA_PHI_MEAN), BAD(name, field.dtype, NSA_BF16), BAD(name, field.per_head, 1),               \
        BAD(name, field.d_hidden, 3), BAD(name ".pe", field.pe, 0), BAD(name ".w1", field.w1, 0),                      \
        BAD(name ".w1", field.w1, 2), BAD(name ".b1", field.b1, 64)

static const bad bad_compress[] = {
    BAD("args.d", compress.d, 0),    BAD("args.d", compress.d, 257),   BAD_PHI("args.phi", compress.phi),
    BAD_INPUT("args.x", compress.x), BAD_OUTPUT("args.y", compress.y),
};

static const bad bad_compress_backward[] = {
    BAD("args.d", compress_backward.d, -1),      BAD_PHI("args.phi", compress_backward.phi),
    BAD_INPUT("args.x", compress_backward.x),    BAD_OTHER("args.dy", compress_backward.dy),
    BAD_OUTPUT("args.dx", compress_backward.dx), BAD_DPHI("args.dphi", compress_backward.dphi),
};

static void test_ops(void **state)
{
    (void)state;
    RUN(CMP_ATTN, bad_cmp_attn);
    RUN(SLC_ATTN, bad_attn);
    RUN(SLC_ATTN, bad_slc_idx);
    RUN(WIN_ATTN, bad_attn);
    RUN(CMP_ATTN_BACKWARD, bad_cmp_attn_backward);
    RUN(SLC_ATTN_BACKWARD, bad_attn_backward);
    RUN(SLC_ATTN_BACKWARD, bad_slc_idx_backward);
    RUN(WIN_ATTN_BACKWARD, bad_attn_backward);
    RUN(SELECT, bad_select);
    RUN(GATE, bad_gate);
    RUN(GATE_BACKWARD, bad_gate_backward);
    RUN(COMPRESS, bad_compress);
    RUN(COMPRESS_BACKWARD, bad_compress_backward);
}

#define BAD_3(kind, name, field) kind(name "[0]", field[0]), kind(name "[1]", field[1]), kind(name "[2]", field[2])

static const bad bad_forward[] = {
    BAD_INPUT("args.q[0]", forward.q[0]),
    BAD_OTHER("args.q[1]", forward.q[1]),
    BAD_OTHER("args.q[2]", forward.q[2]),
    BAD_3(BAD_OTHER, "args.k", forward.k),
    BAD_3(BAD_OTHER, "args.v", forward.v),
    BAD_OTHER("args.gate", forward.gate),
    BAD("args.phi_k", forward.phi_k, 0),
    BAD("args.phi_v", forward.phi_v, 0),
    BAD_PHI("args.phi_k", phi_k),
    BAD_PHI("args.phi_v", phi_v),
    BAD_OUTPUT("args.o", forward.o),
    BAD_OPTIONAL("args.k_cmp", forward.k_cmp),
    BAD_OPTIONAL("args.v_cmp", forward.v_cmp),
    BAD_OPTIONAL("args.slc_idx", forward.slc_idx),
    BAD_3(BAD_OPTIONAL, "args.o_branch", forward.o_branch),
    BAD_3(BAD_OPTIONAL, "args.lse", forward.lse),
};

static const bad bad_backward[] = {
    BAD_INPUT("args.fwd.q[0]", backward.fwd.q[0]),
    BAD_OTHER("args.fwd.q[1]", backward.fwd.q[1]),
    BAD_OTHER("args.fwd.q[2]", backward.fwd.q[2]),
    BAD_3(BAD_OTHER, "args.fwd.k", backward.fwd.k),
    BAD_3(BAD_OTHER, "args.fwd.v", backward.fwd.v),
    BAD_OTHER("args.fwd.gate", backward.fwd.gate),
    BAD("args.fwd.phi_k", backward.fwd.phi_k, 0),
    BAD("args.fwd.phi_v", backward.fwd.phi_v, 0),
    BAD_PHI("args.fwd.phi_k", phi_k),
    BAD_PHI("args.fwd.phi_v", phi_v),
    BAD_OTHER("args.fwd.k_cmp", backward.fwd.k_cmp),
    BAD_OTHER("args.fwd.v_cmp", backward.fwd.v_cmp),
    BAD_OTHER("args.fwd.slc_idx", backward.fwd.slc_idx),
    BAD_3(BAD_OTHER, "args.fwd.o_branch", backward.fwd.o_branch),
    BAD_3(BAD_OTHER, "args.fwd.lse", backward.fwd.lse),
    BAD_OTHER("args.d_o", backward.d_o),
    BAD_3(BAD_OUTPUT, "args.dq", backward.dq),
    BAD_3(BAD_OUTPUT, "args.dk", backward.dk),
    BAD_3(BAD_OUTPUT, "args.dv", backward.dv),
    BAD_OUTPUT("args.dgate", backward.dgate),
    BAD("args.dphi_k", backward.dphi_k, 0),
    BAD("args.dphi_v", backward.dphi_v, 0),
    BAD_DPHI("args.dphi_k", dphi_k),
    BAD_DPHI("args.dphi_v", dphi_v),
};

/* The caller's own k_cmp and v_cmp, and its own selection. */
static const bad bad_own_forward[] = {
    BAD_OTHER("args.k_cmp", forward.k_cmp),
    BAD_OTHER("args.v_cmp", forward.v_cmp),
    BAD_OTHER("args.slc_idx", forward.slc_idx),
};

static const bad bad_own_backward[] = {
    BAD_OUTPUT("args.dk_cmp", backward.dk_cmp),
    BAD_OUTPUT("args.dv_cmp", backward.dv_cmp),
};

static void test_whole(void **state)
{
    (void)state;
    RUN(FORWARD, bad_forward);
    RUN(BACKWARD, bad_backward);
    world w;
    world_init(&w);
    w.forward.phi_k = w.forward.phi_v = NULL;
    w.forward.k_cmp = w.cmp_attn.k;
    w.forward.v_cmp = w.cmp_attn.v;
    w.forward.slc_idx_given = 1;
    w.forward.slc_idx = w.attn.slc_idx;
    RUN_CASES(&w, "nsa_forward, own k_cmp", size_forward, run_forward, bad_own_forward);
    world_init(&w);
    w.backward.fwd.phi_k = w.backward.fwd.phi_v = NULL;
    w.backward.dk_cmp = w.cmp_attn_backward.dk;
    w.backward.dv_cmp = w.cmp_attn_backward.dv;
    RUN_CASES(&w, "nsa_backward, own k_cmp", size_backward, run_backward, bad_own_backward);
}

/* ---- Outputs that are the same memory */

static void test_distinct_outputs(void **state)
{
    (void)state;
#define SAME(function, field, as, words)                                                                               \
    {                                                                                                                  \
        function, offsetof(world, field), offsetof(world, as), words                                                   \
    }
    static const struct {
        int function;
        size_t one, other;
        const char *words;
    } cases[] = {
        SAME(SLC_ATTN, attn.o.data, attn.lse.data, "args.lse"),
        SAME(CMP_ATTN_BACKWARD, cmp_attn_backward.dq.data, cmp_attn_backward.dk.data, "args.dk"),
        SAME(SLC_ATTN_BACKWARD, attn_backward.dk.data, attn_backward.dv.data, "args.dv"),
        SAME(WIN_ATTN_BACKWARD, attn_backward.dq.data, attn_backward.dv.data, "args.dv"),
        SAME(GATE_BACKWARD, gate_backward.do_branch[0].data, gate_backward.do_branch[2].data, "args.do_branch[2]"),
        SAME(GATE_BACKWARD, gate_backward.do_branch[1].data, gate_backward.dgate.data, "args.dgate"),
        SAME(COMPRESS_BACKWARD, compress_backward.dphi.pe, compress_backward.dphi.w1, "args.dphi.w1"),
        SAME(COMPRESS_BACKWARD, compress_backward.dx.data, compress_backward.dphi.w1, "args.dphi.w1"),
        SAME(FORWARD, forward.o.data, forward.o_branch[1].data, "args.o_branch[1]"),
        SAME(FORWARD, forward.lse[0].data, forward.lse[2].data, "args.lse[2]"),
        SAME(FORWARD, forward.k_cmp.data, forward.v_cmp.data, "args.v_cmp"),
        SAME(BACKWARD, backward.dq[0].data, backward.dk[1].data, "args.dk[1]"),
        SAME(BACKWARD, backward.dgate.data, backward.dv[2].data, "args.dgate"),
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const function *f = &functions[cases[i].function];
        world w;
        world_init(&w);
        test_note("%s, same memory, case %zu", f->name, i);
        memcpy((char *)&w + cases[i].one, (char *)&w + cases[i].other, sizeof(void *));
        expect_failure(&w, f->run, NSA_ERR_INVALID_ARGUMENT, cases[i].words);
    }

    world w; /* branches may share a gradient, but then its layout too */
    world_init(&w);
    w.backward.dk[2].data = w.backward.dk[0].data;
    w.backward.dk[2].stride_token++;
    expect_failure(&w, run_backward, NSA_ERR_INVALID_ARGUMENT, "args.dk[2]");
    w.backward.dk[2].stride_token--;
    assert_int_equal(run_backward(&w), NSA_OK);
}

/* ---- Contexts and the small functions */

static void test_context(void **state)
{
    (void)state;
    const struct {
        nsa_ctx_options options;
        nsa_status status;
        const char *words;
    } cases[] = {
        {{0, NSA_DEVICE_CPU, 0, 0, 0}, NSA_ERR_INVALID_ARGUMENT, "options.struct_size"},
        {{sizeof(nsa_ctx_options), (nsa_device)7, 0, 0, 0}, NSA_ERR_NO_DEVICE, "options.device"},
        {{sizeof(nsa_ctx_options), NSA_DEVICE_CPU, -1, 0, 0}, NSA_ERR_INVALID_ARGUMENT, "options.n_threads"},
        {{sizeof(nsa_ctx_options), NSA_DEVICE_CPU, INT32_MAX, 0, 0}, NSA_ERR_INVALID_ARGUMENT, "options.n_threads"},
        {{sizeof(nsa_ctx_options), NSA_DEVICE_CPU, 0, 0, 1}, NSA_ERR_INVALID_ARGUMENT, "options.device_index"},
        {{sizeof(nsa_ctx_options), NSA_DEVICE_CUDA, 1, 0, 0}, NSA_ERR_INVALID_ARGUMENT, "options.n_threads"},
        {{sizeof(nsa_ctx_options), NSA_DEVICE_CUDA, 0, 0, -1}, NSA_ERR_INVALID_ARGUMENT, "options.device_index"},
        {{sizeof(nsa_ctx_options), NSA_DEVICE_CUDA, 0, 1, 0}, NSA_ERR_UNSUPPORTED, "options.reference"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        nsa_ctx *ctx = (nsa_ctx *)state;
        assert_int_equal(nsa_ctx_create(&ctx, &cases[i].options), cases[i].status);
        assert_null(ctx);
        assert_non_null(strstr(nsa_last_error(), cases[i].words));
    }
    assert_int_equal(nsa_ctx_create(NULL, NULL), NSA_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(nsa_last_error(), "ctx is NULL"));

    nsa_ctx *ctx = NULL;
    assert_int_equal(setenv("NSA_DISABLE_CPU", "avx2,avx3", 1), 0);
    assert_int_equal(nsa_ctx_create(&ctx, NULL), NSA_ERR_INVALID_ARGUMENT);
    assert_null(ctx);
    assert_non_null(strstr(nsa_last_error(), "'avx3'"));
    assert_int_equal(setenv("NSA_DISABLE_CPU", "avx2,neon", 1), 0);
    assert_int_equal(nsa_ctx_create(&ctx, NULL), NSA_OK);
    assert_string_equal(nsa_ctx_isa(ctx), "scalar");
    assert_true(nsa_ctx_threads(ctx) >= 1);
    nsa_ctx_destroy(ctx);
    assert_int_equal(unsetenv("NSA_DISABLE_CPU"), 0);

    const nsa_ctx_options reference = {sizeof reference, NSA_DEVICE_CPU, 3, 1, 0};
    assert_int_equal(nsa_ctx_create(&ctx, &reference), NSA_OK);
    assert_string_equal(nsa_ctx_isa(ctx), "ref");
    assert_int_equal(nsa_ctx_threads(ctx), 3);
    nsa_ctx_destroy(ctx);
}

/* Whatever is missing, the message says it; a machine that lacks nothing has a context. */
static void test_cuda_context(void **state)
{
    (void)state;
    static const char *const missing[] = {"for the CPU only", "no CUDA driver", "driver is for CUDA", "no CUDA device",
                                          "compute capability"};
    const nsa_ctx_options options = {.struct_size = sizeof options, .device = NSA_DEVICE_CUDA};
    nsa_ctx *ctx = NULL;
    const nsa_status status = nsa_ctx_create(&ctx, &options);
    if (status == NSA_OK) {
        assert_int_equal(strncmp(nsa_ctx_isa(ctx), "sm_", 3), 0);
        assert_int_equal(nsa_ctx_threads(ctx), 1);
        nsa_ctx_destroy(ctx);
        return;
    }
    assert_int_equal(status, NSA_ERR_NO_DEVICE);
    assert_null(ctx);
    bool said = false;
    for (size_t i = 0; i < sizeof missing / sizeof *missing; i++)
        said |= strstr(nsa_last_error(), missing[i]) != NULL;
    assert_true(said);
}

static void test_null_is_harmless(void **state)
{
    (void)state;
    nsa_ctx_destroy(NULL);
    nsa_config_init(NULL);
    assert_int_equal(nsa_ctx_threads(NULL), 0);
    assert_string_equal(nsa_ctx_isa(NULL), "");
    assert_int_equal(nsa_n_cmp(NULL, 100), 0);
}

static void test_n_cmp(void **state)
{
    (void)state;
    nsa_config cfg;
    nsa_config_init(&cfg);
    const int64_t cases[][2] = {{-5, 0}, {0, 0}, {31, 0}, {32, 1}, {47, 1}, {48, 2}, {65536, 4095}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(nsa_n_cmp(&cfg, cases[i][0]), cases[i][1]);
}

static void test_status_strings(void **state)
{
    (void)state;
    for (int a = NSA_OK; a <= NSA_ERR_NO_DEVICE; a++)
        for (int b = a + 1; b <= NSA_ERR_NO_DEVICE + 1; b++)
            assert_string_not_equal(nsa_status_string((nsa_status)a), nsa_status_string((nsa_status)b));
    assert_non_null(nsa_status_string((nsa_status)-1));
}

/* Runs first: before anything has failed on this thread. */
static void test_no_error_yet(void **state)
{
    (void)state;
    assert_string_equal(nsa_last_error(), "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_error_yet),
        cmocka_unit_test(test_config_and_batch),
        cmocka_unit_test(test_workspace),
        cmocka_unit_test(test_ops),
        cmocka_unit_test(test_whole),
        cmocka_unit_test(test_distinct_outputs),
        cmocka_unit_test(test_context),
        cmocka_unit_test(test_cuda_context),
        cmocka_unit_test(test_null_is_harmless),
        cmocka_unit_test(test_n_cmp),
        cmocka_unit_test(test_status_strings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
