#include "core/check.h"
#include "core/config.h"
#include "core/ctx.h"
#include "core/dtype.h"
#include "core/size.h"

nsa_status check_cu(const char *name, const char *total_name, const int32_t *cu, int32_t n_seqs, int64_t total)
{
    NSA_REQUIRE(total >= 0 && total <= INT32_MAX, "%s is %lld, must be 0 .. 2^31-1", total_name, (long long)total);
    if (n_seqs == 0) {
        NSA_REQUIRE(total == 0, "%s is %lld, must be 0 without sequences", total_name, (long long)total);
        return NSA_OK;
    }
    NSA_REQUIRE(cu != NULL, "%s is NULL", name);
    NSA_REQUIRE((uintptr_t)cu % sizeof *cu == 0, "%s is not aligned to 4 bytes", name);
    return NSA_OK;
}

nsa_status check_cu_seqlens(const char *name, const char *total_name, const int32_t *cu, int32_t n_seqs, int64_t total)
{
    NSA_TRY(check_cu(name, total_name, cu, n_seqs, total));
    if (n_seqs == 0)
        return NSA_OK;
    NSA_REQUIRE(cu[0] == 0, "%s[0] is %d, must be 0", name, cu[0]);
    for (int32_t s = 0; s < n_seqs; s++)
        NSA_REQUIRE(cu[s + 1] >= cu[s], "%s[%d] is %d, must not be below the entry before it, %d", name, s + 1,
                    cu[s + 1], cu[s]);
    NSA_REQUIRE(cu[n_seqs] == total, "%s[%d] is %d, must equal %s = %lld", name, n_seqs, cu[n_seqs], total_name,
                (long long)total);
    return NSA_OK;
}

static nsa_status check_max_seqlen(const char *name, int32_t max_seqlen, const int32_t *cu, int32_t n_seqs)
{
    for (int32_t s = 0; s < n_seqs; s++)
        NSA_REQUIRE(cu[s + 1] - cu[s] <= max_seqlen, "%s is %d, but sequence %d has %d tokens", name, max_seqlen, s,
                    cu[s + 1] - cu[s]);
    return NSA_OK;
}

nsa_status check_batch_q(const nsa_ctx *ctx, const nsa_batch *b)
{
    NSA_REQUIRE(b != NULL, "batch is NULL");
    NSA_REQUIRE(b->n_seqs >= 0, "batch.n_seqs is %d, must be >= 0", b->n_seqs);
    NSA_REQUIRE(b->max_seqlen_q >= 0, "batch.max_seqlen_q is %d, must be >= 0", b->max_seqlen_q);
    if (ctx->cuda)
        return check_cu("batch.cu_seqlens_q", "batch.total_q", b->cu_seqlens_q, b->n_seqs, b->total_q);
    NSA_TRY(check_cu_seqlens("batch.cu_seqlens_q", "batch.total_q", b->cu_seqlens_q, b->n_seqs, b->total_q));
    return check_max_seqlen("batch.max_seqlen_q", b->max_seqlen_q, b->cu_seqlens_q, b->n_seqs);
}

nsa_status check_batch_k(const nsa_ctx *ctx, const nsa_batch *b)
{
    NSA_REQUIRE(b != NULL, "batch is NULL");
    NSA_REQUIRE(b->n_seqs >= 0, "batch.n_seqs is %d, must be >= 0", b->n_seqs);
    NSA_REQUIRE(b->max_seqlen_k >= 0, "batch.max_seqlen_k is %d, must be >= 0", b->max_seqlen_k);
    if (ctx->cuda)
        return check_cu("batch.cu_seqlens_k", "batch.total_k", b->cu_seqlens_k, b->n_seqs, b->total_k);
    NSA_TRY(check_cu_seqlens("batch.cu_seqlens_k", "batch.total_k", b->cu_seqlens_k, b->n_seqs, b->total_k));
    return check_max_seqlen("batch.max_seqlen_k", b->max_seqlen_k, b->cu_seqlens_k, b->n_seqs);
}

nsa_status check_batch(const nsa_ctx *ctx, const nsa_batch *b)
{
    NSA_TRY(check_batch_q(ctx, b));
    return check_batch_k(ctx, b);
}

extent extent_q(const nsa_config *cfg, const nsa_batch *b, int32_t d)
{
    return (extent){b->n_seqs, b->total_q, b->max_seqlen_q, cfg->n_heads_q, d};
}

extent extent_k(const nsa_config *cfg, const nsa_batch *b, int32_t d)
{
    return (extent){b->n_seqs, b->total_k, b->max_seqlen_k, cfg->n_heads_kv, d};
}

extent extent_cmp(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *b, int32_t d)
{
    if (ctx->cuda)
        return (extent){b->n_seqs, b->total_k / cfg->cmp_stride, nsa_n_cmp(cfg, b->max_seqlen_k), cfg->n_heads_kv, d};
    /* The last sequence may end before total_k/cmp_stride; nobody reads or writes past its own rows. */
    int64_t rows = 0;
    for (int32_t s = 0; s < b->n_seqs; s++) {
        const int64_t n = nsa_n_cmp(cfg, b->cu_seqlens_k[s + 1] - b->cu_seqlens_k[s]);
        if (n > 0)
            rows = b->cu_seqlens_k[s] / cfg->cmp_stride + n;
    }
    return (extent){b->n_seqs, rows, nsa_n_cmp(cfg, b->max_seqlen_k), cfg->n_heads_kv, d};
}

extent extent_slc_idx(const nsa_config *cfg, const nsa_batch *b)
{
    return (extent){b->n_seqs, b->total_q, b->max_seqlen_q, cfg->n_heads_kv, cfg->slc_topk};
}

/* Whether distinct indices reach distinct elements. Each dimension, taken by rising stride, must step over all that the
 * ones before it cover. */
static bool is_disjoint(const nsa_tensor *t, extent e)
{
    int64_t strides[3] = {t->stride_head, t->stride_token, t->stride_seq};
    int64_t counts[3] = {e.n_heads, t->stride_seq == 0 ? e.total : e.max_seqlen, t->stride_seq == 0 ? 1 : e.n_seqs};
    for (int i = 0; i < 2; i++) /* sort three */
        for (int j = 0; j < 2 - i; j++)
            if (strides[j] > strides[j + 1]) {
                const int64_t stride = strides[j], count = counts[j];
                strides[j] = strides[j + 1], counts[j] = counts[j + 1];
                strides[j + 1] = stride, counts[j + 1] = count;
            }
    int64_t covered = e.d;
    for (int i = 0; i < 3; i++) {
        if (counts[i] <= 1)
            continue;
        if (strides[i] < covered)
            return false;
        covered += strides[i] * (counts[i] - 1); /* cannot overflow: check_tensor has bounded the span */
    }
    return true;
}

static nsa_status check_tensor(const char *name, const nsa_tensor *t, extent e, int dtype, bool output)
{
    if (dtype < 0)
        NSA_REQUIRE(dtype_is_float(t->dtype), "%s.dtype is %d (%s), must be f32, bf16, f16 or f64", name, (int)t->dtype,
                    dtype_name(t->dtype));
    else
        NSA_REQUIRE((int)t->dtype == dtype, "%s.dtype is %d (%s), must be %s", name, (int)t->dtype,
                    dtype_name(t->dtype), dtype_name((nsa_dtype)dtype));
    const int64_t rows = t->stride_seq == 0 ? e.total : e.max_seqlen;
    if (rows == 0 || e.n_seqs == 0)
        return NSA_OK;
    NSA_REQUIRE(t->data != NULL, "%s.data is NULL", name);
    NSA_REQUIRE((uintptr_t)t->data % dtype_size(t->dtype) == 0, "%s.data is not aligned to its %s elements", name,
                dtype_name(t->dtype));
    NSA_REQUIRE(t->stride_seq >= 0 && t->stride_token >= 0 && t->stride_head >= 0,
                "%s has a negative stride (seq %lld, token %lld, head %lld)", name, (long long)t->stride_seq,
                (long long)t->stride_token, (long long)t->stride_head);
    int64_t span = i64_add(i64_mul(t->stride_seq, e.n_seqs - 1), i64_mul(t->stride_token, rows - 1));
    span = i64_add(i64_add(span, i64_mul(t->stride_head, e.n_heads - 1)), e.d);
    NSA_REQUIRE(span <= PTRDIFF_MAX / 8, "%s: its strides (seq %lld, token %lld, head %lld) pass the address space",
                name, (long long)t->stride_seq, (long long)t->stride_token, (long long)t->stride_head);
    NSA_REQUIRE(
        !output || is_disjoint(t, e),
        "%s is an output and overlaps itself: strides seq %lld, token %lld, head %lld for %lld tokens, %d heads "
        "of %d channels",
        name, (long long)t->stride_seq, (long long)t->stride_token, (long long)t->stride_head, (long long)rows,
        e.n_heads, e.d);
    return NSA_OK;
}

nsa_status check_input(const char *name, const nsa_tensor *t, extent e, int dtype)
{
    return check_tensor(name, t, e, dtype, false);
}

nsa_status check_output(const char *name, const nsa_tensor *t, extent e, int dtype)
{
    return check_tensor(name, t, e, dtype, true);
}

nsa_status check_distinct(const named_output *outputs, int n)
{
    for (int i = 0; i < n; i++)
        for (int j = i + 1; j < n; j++)
            NSA_REQUIRE(outputs[i].data == NULL || outputs[i].data != outputs[j].data,
                        "%s and %s are the same memory, outputs must be distinct", outputs[i].name, outputs[j].name);
    return NSA_OK;
}

nsa_dtype lse_dtype(nsa_dtype dtype)
{
    return dtype == NSA_F64 ? NSA_F64 : NSA_F32;
}

nsa_status check_gate(const char *name, const nsa_tensor *t, extent e, nsa_dtype dtype, bool output)
{
    NSA_REQUIRE(t->dtype == NSA_F32 || t->dtype == dtype, "%s.dtype is %d (%s), must be f32 or q's, %s", name,
                (int)t->dtype, dtype_name(t->dtype), dtype_name(dtype));
    return check_tensor(name, t, e, (int)t->dtype, output);
}

/* Which members a kind has: 'y' must, 'm' may, '-' must not; in the order pe, w1, b1, w2, b2. */
static const char *const phi_members[] = {
    [NSA_PHI_MEAN] = "-----",          [NSA_PHI_LINEAR] = "my---", [NSA_PHI_GATED_TOKEN] = "-yy--",
    [NSA_PHI_GATED_CHANNEL] = "-yy--", [NSA_PHI_MLP] = "mymym",
};

static const char *const phi_member_names[] = {"pe", "w1", "b1", "w2", "b2"};

nsa_status check_phi(const char *name, const nsa_phi *phi, nsa_dtype tokens)
{
    NSA_REQUIRE(phi != NULL, "%s is NULL", name);
    NSA_REQUIRE((int)phi->kind >= NSA_PHI_MEAN && phi->kind <= NSA_PHI_MLP, "%s.kind is %d, must be 0 .. %d", name,
                (int)phi->kind, NSA_PHI_MLP);
    if (phi->kind != NSA_PHI_MEAN)
        NSA_REQUIRE(phi->dtype == tokens || (phi->dtype == NSA_F32 && tokens != NSA_F64),
                    "%s.dtype is %d (%s), must be f32 or that of the tokens, %s", name, (int)phi->dtype,
                    dtype_name(phi->dtype), dtype_name(tokens));
    NSA_REQUIRE(phi->kind != NSA_PHI_MLP || (phi->d_hidden >= 1 && phi->d_hidden <= 65536),
                "%s.d_hidden is %d, must be 1 .. 65536", name, phi->d_hidden);
    const void *members[] = {phi->pe, phi->w1, phi->b1, phi->w2, phi->b2};
    for (int i = 0; i < 5; i++) {
        const char rule = phi_members[phi->kind][i];
        NSA_REQUIRE(rule != 'y' || members[i] != NULL, "%s.%s is NULL, its kind needs it", name, phi_member_names[i]);
        NSA_REQUIRE(rule != '-' || members[i] == NULL, "%s.%s is given, its kind has none", name, phi_member_names[i]);
        NSA_REQUIRE((uintptr_t)members[i] % dtype_size(phi->dtype) == 0, "%s.%s is not aligned to its %s elements",
                    name, phi_member_names[i], dtype_name(phi->dtype));
    }
    return NSA_OK;
}

nsa_status check_dphi(const char *name, const nsa_phi *dphi, const nsa_phi *of)
{
    NSA_REQUIRE(dphi != NULL, "%s is NULL", name);
    NSA_REQUIRE(dphi->kind == of->kind && (dphi->per_head != 0) == (of->per_head != 0) &&
                    dphi->d_hidden == of->d_hidden && (of->kind == NSA_PHI_MEAN || dphi->dtype == of->dtype),
                "%s differs from the phi that it takes the gradients of in kind, dtype, per_head or d_hidden", name);
    const void *grads[] = {dphi->pe, dphi->w1, dphi->b1, dphi->w2, dphi->b2};
    const void *members[] = {of->pe, of->w1, of->b1, of->w2, of->b2};
    for (int i = 0; i < 5; i++) {
        NSA_REQUIRE((grads[i] != NULL) == (members[i] != NULL), "%s.%s is %s, unlike the parameter", name,
                    phi_member_names[i], grads[i] == NULL ? "NULL" : "given");
        NSA_REQUIRE((uintptr_t)grads[i] % dtype_size(dphi->dtype) == 0, "%s.%s is not aligned to its %s elements", name,
                    phi_member_names[i], dtype_name(dphi->dtype));
    }
    return NSA_OK;
}
