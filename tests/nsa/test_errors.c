/*
 * Bad input to every public function: the status, a message that names the argument, and outputs left alone.
 *
 * A case is a line: the words that the message must hold, the field of the world that goes bad, its bad value.
 */
#include "testlib/testlib.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* All arguments of all functions, valid as world_init leaves them. */
typedef struct world {
    const nsa_ctx *ctx;
    const nsa_config *cfg_arg;
    const nsa_batch *batch_arg;
    nsa_config cfg;
    nsa_batch batch;
    int32_t cu_q[4], cu_k[4];
    int32_t no_args; /* not 0: args is NULL */
    nsa_attn_args attn;
    nsa_attn_backward_args attn_backward;
    nsa_select_args select;
    nsa_gate_args gate;
    nsa_gate_backward_args gate_backward;
    void *workspace;
    size_t workspace_bytes;
    size_t *bytes_arg;
    size_t bytes;

    test_tensor outputs[16];
    int n_outputs;
} world;

static nsa_tensor input(const world *w, side on, int32_t n_heads, int32_t d, nsa_dtype dtype)
{
    const test_tensor x = tensor_new(&w->cfg, &w->batch, on, n_heads, d, dtype, LAYOUT_THD);
    tensor_fill_normal(&x, &(rng){1}, 0.1);
    return x.t;
}

static nsa_tensor output(world *w, side on, int32_t n_heads, int32_t d, nsa_dtype dtype)
{
    const test_tensor x = tensor_new(&w->cfg, &w->batch, on, n_heads, d, dtype, LAYOUT_THD);
    assert_true((size_t)w->n_outputs < sizeof w->outputs / sizeof *w->outputs);
    w->outputs[w->n_outputs++] = x;
    return x.t;
}

/* keys: SIDE_CMP for cmp_attn, else SIDE_K. */
static void world_init(world *w, const nsa_ctx *ctx, side keys)
{
    enum { HQ = 4, HK = 2, D = 8, DV = 6, TOPK = 3 };
    testlib_reset();
    *w = (world){.ctx = ctx, .cfg_arg = &w->cfg, .batch_arg = &w->batch, .bytes_arg = &w->bytes};
    w->cfg = (nsa_config){sizeof w->cfg, HQ, HK, D, DV, 4, 2, 4, TOPK, 1, 1, 5, 0.0};
    const int32_t cu_q[] = {0, 5, 5, 17}, cu_k[] = {0, 9, 12, 24};
    memcpy(w->cu_q, cu_q, sizeof cu_q);
    memcpy(w->cu_k, cu_k, sizeof cu_k);
    w->batch = (nsa_batch){3, 12, 12, 17, 24, w->cu_q, w->cu_k};
    w->workspace_bytes = (size_t)1 << 20;
    w->workspace = guarded(w->workspace_bytes, FLUSH_RIGHT);

    const nsa_tensor q = input(w, SIDE_Q, HQ, D, NSA_F32), o = input(w, SIDE_Q, HQ, DV, NSA_F32);
    const nsa_tensor k = input(w, keys, HK, D, NSA_F32), v = input(w, keys, HK, DV, NSA_F32);
    const nsa_tensor idx = input(w, SIDE_Q, HK, TOPK, NSA_I32), lse = input(w, SIDE_Q, HQ, 1, NSA_F32);
    const nsa_tensor gate = input(w, SIDE_Q, HQ, NSA_N_BRANCHES, NSA_F32);
    const nsa_tensor o_out = output(w, SIDE_Q, HQ, DV, NSA_F32);
    w->attn = (nsa_attn_args){q, k, v, idx, o_out, output(w, SIDE_Q, HQ, 1, NSA_F32)};
    w->attn_backward = (nsa_attn_backward_args){{q, k, v, idx, o, lse},
                                                o,
                                                output(w, SIDE_Q, HQ, D, NSA_F32),
                                                output(w, keys, HK, D, NSA_F32),
                                                output(w, keys, HK, DV, NSA_F32)};
    w->select = (nsa_select_args){q, input(w, SIDE_CMP, HK, D, NSA_F32), lse, output(w, SIDE_Q, HK, TOPK, NSA_I32)};
    w->gate = (nsa_gate_args){gate, {o, o, o}, o_out};
    w->gate_backward =
        (nsa_gate_backward_args){gate,
                                 {o, o, o},
                                 o,
                                 output(w, SIDE_Q, HQ, NSA_N_BRANCHES, NSA_F32),
                                 {o_out, output(w, SIDE_Q, HQ, DV, NSA_F32), output(w, SIDE_Q, HQ, DV, NSA_F32)}};
}

/* ---- The functions */

typedef nsa_status call_fn(world *w);

typedef struct function {
    const char *name;
    side keys;
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
DEFINE_CALLS(cmp_attn, attn)
DEFINE_CALLS(slc_attn, attn)
DEFINE_CALLS(win_attn, attn)
DEFINE_CALLS(cmp_attn_backward, attn_backward)
DEFINE_CALLS(slc_attn_backward, attn_backward)
DEFINE_CALLS(win_attn_backward, attn_backward)
DEFINE_CALLS(select, select)

static nsa_status run_gate(world *w)
{
    return nsa_gate(w->ctx, w->cfg_arg, w->batch_arg, w->no_args ? NULL : &w->gate, NULL);
}

static nsa_status run_gate_backward(world *w)
{
    return nsa_gate_backward(w->ctx, w->cfg_arg, w->batch_arg, w->no_args ? NULL : &w->gate_backward, NULL);
}

static const function functions[] = {
    {"cmp_attn", SIDE_CMP, true, true, size_cmp_attn, run_cmp_attn},
    {"slc_attn", SIDE_K, true, true, size_slc_attn, run_slc_attn},
    {"win_attn", SIDE_K, true, true, size_win_attn, run_win_attn},
    {"cmp_attn_backward", SIDE_CMP, true, true, size_cmp_attn_backward, run_cmp_attn_backward},
    {"slc_attn_backward", SIDE_K, true, true, size_slc_attn_backward, run_slc_attn_backward},
    {"win_attn_backward", SIDE_K, true, true, size_win_attn_backward, run_win_attn_backward},
    {"select", SIDE_CMP, true, true, size_select, run_select},
    {"gate", SIDE_K, true, false, NULL, run_gate},
    {"gate_backward", SIDE_K, true, false, NULL, run_gate_backward},
};
enum { N_FUNCTIONS = sizeof functions / sizeof *functions };

/* ---- Running a table of cases */

typedef struct bad {
    const char *words;
    size_t offset, size;
    bool is_double;
    double value;
} bad;

#define BAD(words, field, value)                                                                                       \
    {                                                                                                                  \
        words, offsetof(world, field), sizeof((world *)0)->field,                                                      \
            _Generic(((world *)0)->field, double                                                                       \
                     : true, default                                                                                   \
                     : false),                                                                                         \
            value                                                                                                      \
    }

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

static void expect_failure(world *w, call_fn *call, nsa_status status, const char *words)
{
    const nsa_status got = call(w);
    if (got != status)
        test_fail("expected '%s' about '%s', got '%s'", nsa_status_string(status), words, nsa_status_string(got));
    if (strstr(nsa_last_error(), words) == NULL)
        test_fail("the message '%s' does not say '%s'", nsa_last_error(), words);
    for (int i = 0; i < w->n_outputs; i++)
        assert_untouched(words, w->outputs[i].t.data, (size_t)w->outputs[i].n * dtype_size(w->outputs[i].t.dtype));
    assert_int_equal(w->bytes, 0);
}

static void run_cases(const nsa_ctx *ctx, const function *f, const bad *cases, size_t n)
{
    world w;
    world_init(&w, ctx, f->keys);
    for (size_t i = 0; i < n; i++) {
        char saved[sizeof(double)];
        test_note("nsa_%s, case %zu (%s = %g)", f->name, i, cases[i].words, cases[i].value);
        memcpy(saved, (char *)&w + cases[i].offset, cases[i].size);
        set_field(&w, &cases[i]);
        if (f->size != NULL)
            expect_failure(&w, f->size, NSA_ERR_INVALID_ARGUMENT, cases[i].words);
        expect_failure(&w, f->run, NSA_ERR_INVALID_ARGUMENT, cases[i].words);
        memcpy((char *)&w + cases[i].offset, saved, cases[i].size);
    }
    test_note("nsa_%s, valid", f->name);
    if (f->run(&w) != NSA_OK)
        test_fail("refused a valid call: %s", nsa_last_error());
}

#define RUN_CASES(ctx, f, cases) run_cases(ctx, f, cases, sizeof(cases) / sizeof *(cases))

static const nsa_ctx *any_ctx(void)
{
    static nsa_ctx contexts[MAX_CONTEXTS];
    test_contexts(contexts, 1);
    return contexts;
}

/* ---- What every function takes */

static const bad bad_cfg[] = {
    BAD("ctx is NULL", ctx, 0),
    BAD("cfg is NULL", cfg_arg, 0),
    BAD("batch is NULL", batch_arg, 0),
    BAD("args is NULL", no_args, 1),
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

static void test_config_and_batch(void **state)
{
    (void)state;
    for (const function *f = functions; f < functions + N_FUNCTIONS; f++) {
        RUN_CASES(any_ctx(), f, bad_cfg);
        if (f->reads_q)
            RUN_CASES(any_ctx(), f, bad_batch_q);
        if (f->reads_k)
            RUN_CASES(any_ctx(), f, bad_batch_k);
    }
}

static void test_workspace(void **state)
{
    (void)state;
    for (const function *f = functions; f < functions + N_FUNCTIONS; f++) {
        if (f->size == NULL)
            continue;
        world w;
        world_init(&w, any_ctx(), f->keys);
        test_note("nsa_%s, workspace", f->name);
        assert_int_equal(f->size(&w), NSA_OK);
        const size_t bytes = w.bytes;
        void *const workspace = w.workspace;
        w.bytes = 0;
        w.bytes_arg = NULL;
        expect_failure(&w, f->size, NSA_ERR_INVALID_ARGUMENT, "bytes is NULL");
        if (bytes > 0) {
            w.workspace_bytes = bytes - 1;
            expect_failure(&w, f->run, NSA_ERR_WORKSPACE, "workspace_bytes");
            w.workspace_bytes = bytes;
            w.workspace = NULL;
            expect_failure(&w, f->run, NSA_ERR_INVALID_ARGUMENT, "workspace is NULL");
        }
        w.workspace = workspace;
        w.workspace_bytes = bytes;
        assert_int_equal(f->run(&w), NSA_OK);
    }
}

/* ---- Tensors. A bad value for each field of an input, and what an output adds to them. */

#define BAD_TENSOR(name, field)                                                                                        \
    BAD(name ".data", field.data, 0), BAD(name ".data", field.data, 2), BAD(name ".dtype", field.dtype, 99),           \
        BAD(name ".dtype", field.dtype, -1), BAD(name, field.stride_seq, -1), BAD(name, field.stride_token, -4),       \
        BAD(name, field.stride_head, -1), BAD(name, field.stride_seq, 0x1p61), BAD(name, field.stride_token, 0x1p61),  \
        BAD(name, field.stride_head, 0x1p62)

/* Not of q's dtype. */
#define BAD_OTHER(name, field) BAD_TENSOR(name, field), BAD(name ".dtype", field.dtype, NSA_F64)

#define BAD_OUTPUT(name, field)                                                                                        \
    BAD_OTHER(name, field), BAD(name, field.stride_token, 0), BAD(name, field.stride_token, 1),                        \
        BAD(name, field.stride_seq, 1)

#define BAD_HEADS(name, field) BAD(name, field.stride_head, 0)

static const bad bad_attn[] = {
    BAD_TENSOR("args.q", attn.q),
    BAD("args.q.dtype", attn.q.dtype, NSA_I32),
    BAD("args.k.dtype", attn.q.dtype, NSA_BF16), /* the others no longer agree with q */
    BAD_OTHER("args.k", attn.k),
    BAD_OTHER("args.v", attn.v),
    BAD("args.v.dtype", attn.v.dtype, NSA_F16),
    BAD_OUTPUT("args.o", attn.o),
    BAD_HEADS("args.o", attn.o),
    BAD_OUTPUT("args.lse", attn.lse),
    BAD_HEADS("args.lse", attn.lse),
    BAD("args.lse.dtype", attn.lse.dtype, NSA_BF16),
};

static const bad bad_slc_idx[] = {BAD_OTHER("args.slc_idx", attn.slc_idx)};

static const bad bad_attn_backward[] = {
    BAD_TENSOR("args.fwd.q", attn_backward.fwd.q),    BAD_OTHER("args.fwd.k", attn_backward.fwd.k),
    BAD_OTHER("args.fwd.v", attn_backward.fwd.v),     BAD_OTHER("args.fwd.o", attn_backward.fwd.o),
    BAD_OTHER("args.fwd.lse", attn_backward.fwd.lse), BAD_OTHER("args.d_o", attn_backward.d_o),
    BAD_OUTPUT("args.dq", attn_backward.dq),          BAD_HEADS("args.dq", attn_backward.dq),
    BAD_OUTPUT("args.dk", attn_backward.dk),          BAD_HEADS("args.dk", attn_backward.dk),
    BAD_OUTPUT("args.dv", attn_backward.dv),          BAD_HEADS("args.dv", attn_backward.dv),
};

static const bad bad_slc_idx_backward[] = {BAD_OTHER("args.fwd.slc_idx", attn_backward.fwd.slc_idx)};

static const bad bad_select[] = {
    BAD_TENSOR("args.q", select.q),
    BAD_OTHER("args.k_cmp", select.k_cmp),
    BAD_OTHER("args.lse", select.lse),
    BAD_OUTPUT("args.slc_idx", select.slc_idx),
    BAD_HEADS("args.slc_idx", select.slc_idx),
    BAD("args.slc_idx.dtype", select.slc_idx.dtype, NSA_F32),
};

static const bad bad_gate[] = {
    BAD_OTHER("args.gate", gate.gate),
    BAD("args.gate.dtype", gate.gate.dtype, NSA_BF16),
    BAD_TENSOR("args.o_branch[0]", gate.o_branch[0]),
    BAD_OTHER("args.o_branch[1]", gate.o_branch[1]),
    BAD_OTHER("args.o_branch[2]", gate.o_branch[2]),
    BAD_OUTPUT("args.o", gate.o),
    BAD_HEADS("args.o", gate.o),
};

static const bad bad_gate_backward[] = {
    BAD_OTHER("args.gate", gate_backward.gate),
    BAD_TENSOR("args.o_branch[0]", gate_backward.o_branch[0]),
    BAD_OTHER("args.o_branch[1]", gate_backward.o_branch[1]),
    BAD_OTHER("args.o_branch[2]", gate_backward.o_branch[2]),
    BAD_OTHER("args.d_o", gate_backward.d_o),
    BAD_OUTPUT("args.dgate", gate_backward.dgate),
    BAD_HEADS("args.dgate", gate_backward.dgate),
    BAD_OUTPUT("args.do_branch[0]", gate_backward.do_branch[0]),
    BAD_OUTPUT("args.do_branch[1]", gate_backward.do_branch[1]),
    BAD_OUTPUT("args.do_branch[2]", gate_backward.do_branch[2]),
};

static void test_tensors(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++) {
        RUN_CASES(any_ctx(), &functions[i], bad_attn);
        RUN_CASES(any_ctx(), &functions[3 + i], bad_attn_backward);
    }
    RUN_CASES(any_ctx(), &functions[1], bad_slc_idx);
    RUN_CASES(any_ctx(), &functions[4], bad_slc_idx_backward);
    RUN_CASES(any_ctx(), &functions[6], bad_select);
    RUN_CASES(any_ctx(), &functions[7], bad_gate);
    RUN_CASES(any_ctx(), &functions[8], bad_gate_backward);
}

/* Outputs that are the same memory. */
static void test_distinct_outputs(void **state)
{
    (void)state;
    const struct {
        int function;
        size_t one, other;
        const char *words;
    } cases[] = {
        {0, offsetof(world, attn.o.data), offsetof(world, attn.lse.data), "args.lse"},
        {3, offsetof(world, attn_backward.dq.data), offsetof(world, attn_backward.dk.data), "args.dk"},
        {4, offsetof(world, attn_backward.dk.data), offsetof(world, attn_backward.dv.data), "args.dv"},
        {5, offsetof(world, attn_backward.dq.data), offsetof(world, attn_backward.dv.data), "args.dv"},
        {8, offsetof(world, gate_backward.do_branch[0].data), offsetof(world, gate_backward.do_branch[2].data),
         "args.do_branch[2]"},
        {8, offsetof(world, gate_backward.do_branch[1].data), offsetof(world, gate_backward.dgate.data), "args.dgate"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const function *f = &functions[cases[i].function];
        world w;
        world_init(&w, any_ctx(), f->keys);
        test_note("nsa_%s, same memory", f->name);
        memcpy((char *)&w + cases[i].one, (char *)&w + cases[i].other, sizeof(void *));
        expect_failure(&w, f->run, NSA_ERR_INVALID_ARGUMENT, cases[i].words);
    }
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
        {{0, NSA_DEVICE_CPU, 0, 0}, NSA_ERR_INVALID_ARGUMENT, "options.struct_size"},
        {{sizeof(nsa_ctx_options), (nsa_device)7, 0, 0}, NSA_ERR_NO_DEVICE, "options.device"},
        {{sizeof(nsa_ctx_options), NSA_DEVICE_CPU, -1, 0}, NSA_ERR_INVALID_ARGUMENT, "options.n_threads"},
        {{sizeof(nsa_ctx_options), NSA_DEVICE_CPU, INT32_MAX, 0}, NSA_ERR_INVALID_ARGUMENT, "options.n_threads"},
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
    assert_int_equal(setenv("NSA_DISABLE_CPU", "avx2", 1), 0);
    assert_int_equal(nsa_ctx_create(&ctx, NULL), NSA_OK);
    assert_string_equal(nsa_ctx_isa(ctx), "scalar");
    assert_true(nsa_ctx_threads(ctx) >= 1);
    nsa_ctx_destroy(ctx);
    assert_int_equal(unsetenv("NSA_DISABLE_CPU"), 0);

    const nsa_ctx_options reference = {sizeof reference, NSA_DEVICE_CPU, 3, 1};
    assert_int_equal(nsa_ctx_create(&ctx, &reference), NSA_OK);
    assert_string_equal(nsa_ctx_isa(ctx), "ref");
    assert_int_equal(nsa_ctx_threads(ctx), 3);
    nsa_ctx_destroy(ctx);
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
        cmocka_unit_test(test_no_error_yet),     cmocka_unit_test(test_config_and_batch),
        cmocka_unit_test(test_workspace),        cmocka_unit_test(test_tensors),
        cmocka_unit_test(test_distinct_outputs), cmocka_unit_test(test_context),
        cmocka_unit_test(test_null_is_harmless), cmocka_unit_test(test_n_cmp),
        cmocka_unit_test(test_status_strings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
