/*
 * Any configuration, batch, tensors and phi into every function that has a workspace. The size query says what the call
 * says; a refusal has a message; a workspace of one byte too few is refused. No tensor is ever touched: all of them lie
 * in poisoned memory, so that their sizes and strides may be anything.
 */
#include "fuzz/fuzz.h"
#include "nsa/kv_cache.h"
#include "testlib/testlib.h"

enum { MAX_SEQS = 3 };

static char *nowhere;

/* ---- Arguments: mostly such as fit each other, now and then anything */

/* factor times x, or where that would not be a size anything. */
static int32_t draw_multiple(fuzz_input *in, int32_t x, int32_t max_factor)
{
    const bool fits = x >= 1 && x <= 65536 && fuzz_range(in, 0, 15) > 0;
    return fits ? x * fuzz_range(in, 1, max_factor) : fuzz_hostile(in, 1, 32);
}

static nsa_config draw_config(fuzz_input *in)
{
    nsa_config c;
    nsa_config_init(&c);
    c.struct_size = fuzz_range(in, 0, 31) > 0 ? c.struct_size : fuzz_byte(in);
    c.n_heads_kv = fuzz_hostile(in, 1, 4);
    c.n_heads_q = draw_multiple(in, c.n_heads_kv, 4);
    c.d_qk = fuzz_hostile(in, 1, 239);
    c.d_v = fuzz_hostile(in, 1, 239);
    c.cmp_stride = fuzz_hostile(in, 1, 8);
    c.cmp_block = draw_multiple(in, c.cmp_stride, 2);
    c.slc_block = draw_multiple(in, c.cmp_block, 2);
    c.slc_topk = fuzz_hostile(in, 1, 20);
    c.slc_n_init = fuzz_hostile(in, 0, 1);
    c.slc_n_local = fuzz_hostile(in, 0, 1);
    c.win_size = fuzz_hostile(in, 1, 100);
    static const double scales[] = {0.0, 1.0, -1.0, 1e308, 0x1p-1074, -0.0, 1e300 * 1e300};
    c.scale = scales[fuzz_range(in, 0, 6)];
    return c;
}

/* n_seqs + 1 entries. */
static const int32_t *draw_cu(fuzz_input *in, int32_t n_seqs, int32_t *max)
{
    int32_t *cu = guarded((size_t)(n_seqs + 1) * sizeof *cu, FLUSH_RIGHT);
    *max = 0;
    for (int32_t s = 0; s <= n_seqs; s++) {
        const bool fits = s > 0 && cu[s - 1] >= 0 && cu[s - 1] < INT32_MAX - 256 && fuzz_range(in, 0, 15) > 0;
        const int32_t length = fuzz_byte(in);
        cu[s] = s == 0 && fuzz_range(in, 0, 31) > 0 ? 0 : fits ? cu[s - 1] + length : fuzz_hostile(in, 0, 200);
        *max = fits && length > *max ? length : *max;
    }
    return fuzz_range(in, 0, 63) > 0 ? cu : NULL;
}

static nsa_batch draw_batch(fuzz_input *in)
{
    const int32_t n_seqs = fuzz_range(in, 0, MAX_SEQS);
    nsa_batch b = {.n_seqs = fuzz_range(in, 0, 31) > 0 ? n_seqs : -fuzz_byte(in)};
    b.cu_seqlens_q = draw_cu(in, n_seqs, &b.max_seqlen_q);
    b.cu_seqlens_k = fuzz_range(in, 0, 1) == 0 ? b.cu_seqlens_q : draw_cu(in, n_seqs, &b.max_seqlen_k);
    b.max_seqlen_k = b.cu_seqlens_k == b.cu_seqlens_q ? b.max_seqlen_q : b.max_seqlen_k;
    b.max_seqlen_q = fuzz_range(in, 0, 15) > 0 ? b.max_seqlen_q : fuzz_hostile(in, 0, 200);
    b.max_seqlen_k = fuzz_range(in, 0, 15) > 0 ? b.max_seqlen_k : fuzz_hostile(in, 0, 200);
    const bool known_q = b.cu_seqlens_q != NULL && fuzz_range(in, 0, 15) > 0;
    const bool known_k = b.cu_seqlens_k != NULL && fuzz_range(in, 0, 15) > 0;
    b.total_q = known_q ? b.cu_seqlens_q[n_seqs] : fuzz_hostile64(in, 0, 200);
    b.total_k = known_k ? b.cu_seqlens_k[n_seqs] : fuzz_hostile64(in, 0, 200);
    return b;
}

/* Not NULL, aligned, and at a place of its own. */
static void *draw_pointer(fuzz_input *in)
{
    static size_t next;
    next = (next + ARENA_ALIGN) % 65536;
    const uint8_t kind = fuzz_byte(in);
    return kind < 248 ? nowhere + next : kind < 251 ? NULL : nowhere + kind - 250;
}

static nsa_tensor draw_tensor(fuzz_input *in, nsa_dtype dtype, int32_t n_heads, int32_t d)
{
    const uint8_t kind = fuzz_byte(in);
    nsa_tensor t = nsa_packed(draw_pointer(in), dtype, n_heads, d);
    if (kind < 200)
        return t;
    if (kind < 210)
        t.stride_head = t.stride_token, t.stride_token = d;
    if (kind >= 210 && kind < 230)
        t.stride_seq = fuzz_hostile64(in, 0, 200);
    if (kind >= 220 && kind < 240)
        t.stride_token = fuzz_hostile64(in, 0, 200);
    if (kind >= 230 && kind < 250)
        t.stride_head = fuzz_hostile64(in, 0, 200);
    if (kind >= 250)
        t.dtype = (nsa_dtype)fuzz_hostile(in, -1, 5);
    return t;
}

/* A phi that its kind allows but for a member now and then. */
static nsa_phi draw_phi(fuzz_input *in, nsa_dtype dtype)
{
    static const char *const members[] = {"-----", "xx---", "-xx--", "-xx--", "xxxxx"};
    nsa_phi phi = {.kind = (nsa_phi_kind)fuzz_range(in, 0, 4), .dtype = dtype, .per_head = fuzz_range(in, 0, 1)};
    phi.d_hidden = fuzz_hostile(in, 1, 100);
    void **pointers[] = {&phi.pe, &phi.w1, &phi.b1, &phi.w2, &phi.b2};
    for (int i = 0; i < 5; i++)
        *pointers[i] = (members[phi.kind][i] == 'x') == (fuzz_range(in, 0, 31) > 0) ? draw_pointer(in) : NULL;
    if (fuzz_range(in, 0, 31) == 0)
        phi.kind = (nsa_phi_kind)fuzz_hostile(in, -1, 6);
    if (fuzz_range(in, 0, 31) == 0)
        phi.dtype = (nsa_dtype)fuzz_hostile(in, -1, 6);
    return phi;
}

typedef struct problem {
    nsa_ctx *ctx;
    nsa_config cfg;
    nsa_batch batch;
    nsa_dtype dtype;
    nsa_phi phi_k, phi_v, dphi_k, dphi_v;
    fuzz_input *in;
} problem;

static nsa_tensor of_q(const problem *p, int32_t d)
{
    return draw_tensor(p->in, p->dtype, p->cfg.n_heads_q, d);
}

static nsa_tensor of_kv(const problem *p, int32_t d)
{
    return draw_tensor(p->in, p->dtype, p->cfg.n_heads_kv, d);
}

static nsa_tensor lse_of(const problem *p)
{
    return draw_tensor(p->in, lse_dtype(p->dtype), p->cfg.n_heads_q, 1);
}

static nsa_tensor slc_idx_of(const problem *p)
{
    return draw_tensor(p->in, NSA_I32, p->cfg.n_heads_kv, p->cfg.slc_topk);
}

static nsa_attn_args attn_args(const problem *p)
{
    const int32_t d_qk = p->cfg.d_qk, d_v = p->cfg.d_v;
    return (nsa_attn_args){of_q(p, d_qk), of_kv(p, d_qk), of_kv(p, d_v), slc_idx_of(p), of_q(p, d_v), lse_of(p)};
}

static nsa_attn_backward_args attn_backward_args(const problem *p)
{
    const int32_t d_qk = p->cfg.d_qk, d_v = p->cfg.d_v;
    return (nsa_attn_backward_args){attn_args(p), of_q(p, d_v), of_q(p, d_qk), of_kv(p, d_qk), of_kv(p, d_v)};
}

static nsa_forward_args forward_args(const problem *p)
{
    nsa_forward_args a = {.gate = of_q(p, NSA_N_BRANCHES), .o = of_q(p, p->cfg.d_v), .slc_idx = slc_idx_of(p)};
    for (int b = 0; b < NSA_N_BRANCHES; b++) {
        a.q[b] = of_q(p, p->cfg.d_qk);
        a.k[b] = of_kv(p, p->cfg.d_qk);
        a.v[b] = of_kv(p, p->cfg.d_v);
        a.o_branch[b] = of_q(p, p->cfg.d_v);
        a.lse[b] = lse_of(p);
    }
    a.k_cmp = of_kv(p, p->cfg.d_qk);
    a.v_cmp = of_kv(p, p->cfg.d_v);
    const uint8_t kind = fuzz_byte(p->in);
    a.phi_k = (kind & 1) == 0 ? &p->phi_k : NULL;
    a.phi_v = (kind & 3) == 0 ? &p->phi_v : NULL;
    a.slc_idx_given = kind >> 7;
    return a;
}

static nsa_backward_args backward_args(const problem *p)
{
    nsa_backward_args a = {.fwd = forward_args(p), .d_o = of_q(p, p->cfg.d_v), .dgate = of_q(p, NSA_N_BRANCHES)};
    for (int b = 0; b < NSA_N_BRANCHES; b++) {
        const bool shared = b > 0 && fuzz_range(p->in, 0, 1) != 0;
        a.dq[b] = shared ? a.dq[0] : of_q(p, p->cfg.d_qk);
        a.dk[b] = shared ? a.dk[0] : of_kv(p, p->cfg.d_qk);
        a.dv[b] = shared ? a.dv[0] : of_kv(p, p->cfg.d_v);
    }
    a.dphi_k = &p->dphi_k;
    a.dphi_v = &p->dphi_v;
    a.dk_cmp = of_kv(p, p->cfg.d_qk);
    a.dv_cmp = of_kv(p, p->cfg.d_v);
    return a;
}

/* ---- Calls */

static void check_refused(nsa_status status)
{
    FUZZ_CHECK(status == NSA_ERR_INVALID_ARGUMENT);
    FUZZ_CHECK(strlen(nsa_last_error()) > 0);
}

/* `query` with bytes, and `run` with nowhere and a size, are the two functions with their other arguments. A call that
 * needs no workspace would run, and touch its tensors. */
#define CHECK_CALL(query, run)                                                                                         \
    do {                                                                                                               \
        size_t bytes = 0, n = SIZE_MAX;                                                                                \
        const nsa_status status = query;                                                                               \
        if (status != NSA_OK) {                                                                                        \
            check_refused(status);                                                                                     \
            check_refused(run);                                                                                        \
        } else if (bytes > 0) {                                                                                        \
            n = bytes - 1;                                                                                             \
            FUZZ_CHECK((run) == NSA_ERR_WORKSPACE);                                                                    \
        }                                                                                                              \
    } while (0)

#define CHECK_OP(op, args)                                                                                             \
    CHECK_CALL(nsa_##op##_workspace(p->ctx, &p->cfg, &p->batch, args, &bytes),                                         \
               nsa_##op(p->ctx, &p->cfg, &p->batch, args, nowhere, n, NULL))

static void call_compress(const problem *p)
{
    const int32_t d = fuzz_range(p->in, 0, 7) > 0 ? p->cfg.d_qk : fuzz_hostile(p->in, 1, 239);
    const nsa_compress_args forward = {d, p->phi_k, of_kv(p, d), of_kv(p, d)};
    const nsa_compress_backward_args backward = {d, p->phi_k, forward.x, forward.y, of_kv(p, d), p->dphi_k};
    CHECK_OP(compress, &forward);
    CHECK_OP(compress_backward, &backward);
}

static void call_attn(const problem *p)
{
    const nsa_attn_backward_args args = attn_backward_args(p);
    CHECK_OP(cmp_attn, &args.fwd);
    CHECK_OP(slc_attn, &args.fwd);
    CHECK_OP(win_attn, &args.fwd);
    CHECK_OP(cmp_attn_backward, &args);
    CHECK_OP(slc_attn_backward, &args);
    CHECK_OP(win_attn_backward, &args);
}

static void call_select(const problem *p)
{
    const nsa_select_args args = {of_q(p, p->cfg.d_qk), of_kv(p, p->cfg.d_qk), lse_of(p), slc_idx_of(p)};
    CHECK_OP(select, &args);
}

static void call_whole(const problem *p)
{
    const nsa_backward_args args = backward_args(p);
    CHECK_OP(forward, &args.fwd);
    CHECK_OP(backward, &args);
}

static nsa_cache draw_cache(const problem *p)
{
    fuzz_input *in = p->in;
    return (nsa_cache){
        .page_size = draw_multiple(in, p->cfg.slc_block, 4),
        .max_draft = fuzz_hostile(in, 0, 10),
        .shared_kv = fuzz_range(in, 0, 1),
        .dtype = fuzz_range(in, 0, 31) > 0 ? p->dtype : (nsa_dtype)fuzz_hostile(in, -1, 6),
        .n_pages = fuzz_hostile64(in, 0, 100),
        .pages = draw_pointer(in),
    };
}

/* States are real, as far as the header; nothing else of them is read by a check. */
static void call_cache(const problem *p)
{
    enum { PAGES_PER_SEQ = 4 };
    fuzz_input *in = p->in;
    const nsa_cache cache = draw_cache(p);
    nsa_forward_args f = forward_args(p);
    nsa_cache_args args = {.n_seqs = p->batch.n_seqs, .total = p->batch.total_q, .cu_seqlens = p->batch.cu_seqlens_q};
    void *states[MAX_SEQS];
    size_t state_bytes = 0;
    int64_t length = -1;
    for (int s = 0; s < MAX_SEQS; s++) {
        states[s] = guarded(sizeof(cache_header), FLUSH_LEFT);
        const nsa_status status = nsa_cache_reset(p->ctx, &p->cfg, &cache, states[s], NULL);
        FUZZ_CHECK(status == nsa_cache_state_bytes(p->ctx, &p->cfg, &cache, &state_bytes));
        FUZZ_CHECK(status != NSA_OK || state_bytes >= sizeof(cache_header));
        FUZZ_CHECK(status == nsa_cache_length(p->ctx, states[s], &length, NULL) && (status != NSA_OK || length == 0));
        const int64_t to = fuzz_hostile64(in, 0, 9);
        FUZZ_CHECK(nsa_cache_drop(p->ctx, &p->cfg, &cache, states[s], to, NULL) ==
                   (to == 0 ? status : NSA_ERR_INVALID_ARGUMENT));
    }
    int32_t *table = guarded(MAX_SEQS * PAGES_PER_SEQ * sizeof *table, FLUSH_RIGHT);
    for (int i = 0; i < MAX_SEQS * PAGES_PER_SEQ; i++)
        table[i] = fuzz_range(in, 0, 15) > 0 ? i : fuzz_hostile(in, 0, 100);
    args.states = states;
    args.page_table = table;
    args.pages_per_seq = fuzz_range(in, 0, 31) > 0 ? PAGES_PER_SEQ : -fuzz_byte(in);
    memcpy(args.q, f.q, sizeof f.q);
    memcpy(args.k, f.k, sizeof f.k);
    memcpy(args.v, f.v, sizeof f.v);
    args.gate = f.gate;
    args.phi_k = f.phi_k;
    args.phi_v = f.phi_v;
    args.o = f.o;
    args.slc_idx = f.slc_idx;
    CHECK_CALL(nsa_prefill_workspace(p->ctx, &p->cfg, &cache, &args, &bytes),
               nsa_prefill(p->ctx, &p->cfg, &cache, &args, nowhere, n, NULL));
    CHECK_CALL(nsa_decode_workspace(p->ctx, &p->cfg, &cache, &args, &bytes),
               nsa_decode(p->ctx, &p->cfg, &cache, &args, nowhere, n, NULL));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_input in = {data, size};
    testlib_reset();
    nowhere = guarded(0, FLUSH_RIGHT); /* nothing of it may be touched */
    problem p = {.in = &in, .dtype = (nsa_dtype)fuzz_hostile(&in, NSA_F32, NSA_F64)};
    const nsa_ctx_options options = {sizeof options, NSA_DEVICE_CPU, fuzz_hostile(&in, 0, 4), fuzz_range(&in, 0, 1), 0};
    if (nsa_ctx_create(&p.ctx, &options) != NSA_OK)
        return 0;
    const int32_t which = fuzz_range(&in, 0, 4);
    p.cfg = draw_config(&in);
    p.batch = draw_batch(&in);
    p.phi_k = draw_phi(&in, p.dtype);
    p.phi_v = draw_phi(&in, p.dtype);
    p.dphi_k = fuzz_range(&in, 0, 7) > 0 ? p.phi_k : draw_phi(&in, p.dtype);
    p.dphi_v = fuzz_range(&in, 0, 7) > 0 ? p.phi_v : draw_phi(&in, p.dtype);
    switch (which) {
    case 0: call_compress(&p); break;
    case 1: call_attn(&p); break;
    case 2: call_select(&p); break;
    case 3: call_whole(&p); break;
    default: call_cache(&p); break;
    }
    nsa_ctx_destroy(p.ctx);
    return 0;
}
