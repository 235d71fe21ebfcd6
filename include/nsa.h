/*
 * libnsa - Native Sparse Attention (Yuan et al., arXiv 2502.11089) as a C library.
 *
 * Read from top to bottom: a context, a problem (config + batch), tensors, then the operations. NSA replaces attention
 * over all keys by three branches, each with its own keys, values and softmax, and adds them with learned gates:
 *
 *     o[t][h] = sum over c in {cmp, slc, win} of gate[t][h][c] * attn(q_c[t][h], K_c(t), V_c(t))
 *
 *     cmp  every block of cmp_block tokens, squeezed into one key and one value by phi
 *     slc  the slc_topk blocks of slc_block tokens that the cmp branch's probabilities call most important
 *     win  the last win_size tokens
 *
 * Every function checks all that it can see before it writes anything, returns a status and leaves a message that names
 * the argument in nsa_last_error(). None allocates (but for nsa_ctx_create), prints, exits or keeps state between
 * calls. Results are bit-equal from run to run and for any number of threads.
 *
 * Positions and indices are 0-based and count from the start of their sequence. A sequence with T_q queries and T_k
 * keys is aligned at its end: query row r stands at position t = r + T_k - T_q. Rows with t < 0 are empty.
 * An empty row (nothing to attend to) has o = 0, lse = -inf and gradients of 0.
 *
 * The mathematics is in docs/nsa.md, the rounding in docs/numerics.md.
 */
#ifndef NSA_H
#define NSA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define NSA_API __attribute__((visibility("default")))
#else
#define NSA_API
#endif

#define NSA_VERSION_MAJOR 0
#define NSA_VERSION_MINOR 1
#define NSA_VERSION_PATCH 0

/* "0.1.0": the version of the library that runs, which may differ from the header's. */
NSA_API const char *nsa_version(void);

/* ---- Status ------------------------------------------------------------------------------------------------------ */

typedef enum nsa_status {
    NSA_OK = 0,
    NSA_ERR_INVALID_ARGUMENT, /* a size, stride, pointer, dtype, cu_seqlens or page that cannot be */
    NSA_ERR_UNSUPPORTED,      /* valid, but not on this device or build */
    NSA_ERR_WORKSPACE,        /* the workspace is too small; the message says how many bytes are needed */
    NSA_ERR_OUT_OF_MEMORY,
    NSA_ERR_NO_DEVICE
} nsa_status;

/* A constant string such as "invalid argument"; never NULL. */
NSA_API const char *nsa_status_string(nsa_status status);

/* The message of the last call that failed on this thread: argument, value, what is allowed. "" if none has. */
NSA_API const char *nsa_last_error(void);

/* ---- Context ----------------------------------------------------------------------------------------------------- */

typedef struct nsa_ctx nsa_ctx; /* immutable after creation: one context serves any number of threads */

typedef enum nsa_device { NSA_DEVICE_CPU = 0 } nsa_device;

typedef struct nsa_ctx_options {
    uint32_t struct_size; /* sizeof(nsa_ctx_options) */
    nsa_device device;
    int32_t n_threads; /* of one call; 0 = as many as OpenMP would use */
    int32_t
        reference; /* not 0: run every operation by its oracle: slow, double accumulators. f64 tensors do so always */
} nsa_ctx_options;

/* options may be NULL: CPU, all threads. The instruction set is the best of what the CPU and the OS support, less those
 * in the environment variable NSA_DISABLE_CPU, comma-separated (an unknown name is an error). */
NSA_API nsa_status nsa_ctx_create(nsa_ctx **ctx, const nsa_ctx_options *options);
NSA_API void nsa_ctx_destroy(nsa_ctx *ctx); /* NULL is fine */

NSA_API int32_t nsa_ctx_threads(const nsa_ctx *ctx);
NSA_API const char *nsa_ctx_isa(const nsa_ctx *ctx); /* "avx2", "scalar", "ref": the kernels that ctx runs */

typedef struct CUstream_st *nsa_stream; /* the same type as cudaStream_t; ignored by a CPU context */

/* ---- The problem ------------------------------------------------------------------------------------------------- */

typedef struct nsa_config {
    uint32_t struct_size; /* set by nsa_config_init */
    int32_t n_heads_q;    /* a multiple of n_heads_kv; their ratio is the group, any ratio >= 1 */
    int32_t n_heads_kv;
    int32_t d_qk, d_v;   /* head dimensions, 1 .. 256 each */
    int32_t cmp_block;   /* tokens in a compression block */
    int32_t cmp_stride;  /* tokens between their starts; divides cmp_block and slc_block */
    int32_t slc_block;   /* tokens in a selection block, >= cmp_block */
    int32_t slc_topk;    /* blocks selected per token and kv head, the forced ones counted in */
    int32_t slc_n_init;  /* forced blocks at the start of the sequence */
    int32_t slc_n_local; /* forced blocks at the query, its own counted in */
    int32_t win_size;    /* the window, the query's own token counted in; >= T_k is dense causal attention */
    double scale;        /* of the logits in every branch and in selection; 0 = 1/sqrt(d_qk) */
} nsa_config;

/* The paper's values: 64/4 heads, d 192/128, 32/16 compression, 16 blocks of 64 (1 + 2 forced), window 512. */
NSA_API void nsa_config_init(nsa_config *cfg);

/* Sequences of any lengths, zero included, packed one after the other. Sequence s owns query tokens
 * cu_seqlens_q[s] .. cu_seqlens_q[s+1]-1 and key tokens cu_seqlens_k[s] .. cu_seqlens_k[s+1]-1. */
typedef struct nsa_batch {
    int32_t n_seqs;                     /* >= 0 */
    int32_t max_seqlen_q, max_seqlen_k; /* >= the longest of each */
    int64_t total_q, total_k;           /* = cu_seqlens_q[n_seqs], cu_seqlens_k[n_seqs] */
    const int32_t *cu_seqlens_q;        /* [n_seqs + 1], from 0, never falling */
    const int32_t *cu_seqlens_k;        /* [n_seqs + 1]; may be the same array */
} nsa_batch;

/* Compressed blocks of a sequence of n_tokens: 0 below cmp_block, else (n_tokens - cmp_block)/cmp_stride + 1. */
NSA_API int64_t nsa_n_cmp(const nsa_config *cfg, int64_t n_tokens);

typedef enum nsa_dtype {
    NSA_F32 = 0,
    NSA_BF16,
    NSA_F16,
    NSA_F64, /* by the oracle only: gradient checks, golden values */
    NSA_I32  /* slc_idx */
} nsa_dtype;

/* [token][head][channel], channels contiguous; strides in elements, >= 0. An input may broadcast with a stride of 0;
 * no two elements of an output may coincide. stride_seq = 0: sequence s starts at token cu_seqlens[s] (THD).
 * Otherwise it starts at s * stride_seq (BSHD, BHSD, padded batches). */
typedef struct nsa_tensor {
    void *data;
    nsa_dtype dtype;
    int64_t stride_seq, stride_token, stride_head;
} nsa_tensor;

/* A packed tensor [token][n_heads][d]. */
static inline nsa_tensor nsa_packed(void *data, nsa_dtype dtype, int32_t n_heads, int32_t d)
{
    nsa_tensor t;
    t.data = data;
    t.dtype = dtype;
    t.stride_seq = 0;
    t.stride_token = (int64_t)n_heads * d;
    t.stride_head = d;
    return t;
}

/*
 * The tensors below, by the names of their fields. Where nothing else is said their dtype is that of q.
 *
 *     q         [total_q][n_heads_q][d_qk]           o, d_o    [total_q][n_heads_q][d_v]
 *     k         [total_k][n_heads_kv][d_qk]          v         [total_k][n_heads_kv][d_v]
 *     k_cmp     [rows][n_heads_kv][d_qk]             v_cmp     [rows][n_heads_kv][d_v]
 *               packed: the rows of sequence s start at cu_seqlens_k[s]/cmp_stride; rows = total_k/cmp_stride is enough
 *     gate      [total_q][n_heads_q][3]              f32 or q's dtype, after the sigmoid, order cmp, slc, win;
 *               stride_head 0 makes it a gate per token
 *     lse       [total_q][n_heads_q][1]              f32 (f64 with f64 tensors): ln sum exp(scale * q.k), natural
 *     slc_idx   [total_q][n_heads_kv][slc_topk]      i32: selected blocks, ascending, then -1
 */

enum { NSA_CMP = 0, NSA_SLC = 1, NSA_WIN = 2, NSA_N_BRANCHES = 3 };

/* ---- Compression: k_cmp[i] = phi_k(k[i*cmp_stride .. +cmp_block-1]), v_cmp likewise (paper eq. 7) ------------------
 */

typedef enum nsa_phi_kind {
    NSA_PHI_MEAN = 0,      /* the average */
    NSA_PHI_LINEAR,        /* (x + pe) flattened, times w1 */
    NSA_PHI_GATED_TOKEN,   /* sum_r a_r x_r,        a = softmax over r of (x_r . w1 + b1_r) */
    NSA_PHI_GATED_CHANNEL, /* sum_r a[r][c] x[r][c], a = softmax over r of (x_r w1 + b1_r)[c] */
    NSA_PHI_MLP            /* GELU((x + pe) flattened, times w1, + b1) times w2 + b2; GELU with erf (the paper's) */
} nsa_phi_kind;

/* Weights are row-major [in][out], d the head dimension of what is compressed:
 *
 *     kind            pe          w1                      b1          w2              b2
 *     mean            -           -                       -           -               -
 *     linear          [block][d]  [block*d][d]            -           -               -
 *     gated_token     -           [d]                     [block]     -               -
 *     gated_channel   -           [d][d]                  [block][d]  -               -
 *     mlp             [block][d]  [block*d][d_hidden]     [d_hidden]  [d_hidden][d]   [d]
 *
 * pe of linear and mlp, b1 and b2 of mlp may be NULL (zero); the others must be given, and '-' must be NULL. The same
 * struct with the same members set takes the gradients, overwritten. */
typedef struct nsa_phi {
    nsa_phi_kind kind;
    nsa_dtype dtype;  /* of the parameters and of their gradients: that of the tokens, or f32 */
    int32_t per_head; /* 0: all kv heads share one set; 1: every member has a leading dimension [n_heads_kv] */
    int32_t d_hidden; /* mlp only, 1 .. 65536 */
    void *pe, *w1, *b1, *w2, *b2;
} nsa_phi;

typedef struct nsa_compress_args {
    int32_t d; /* channels of x: d_qk for keys, d_v for values */
    nsa_phi phi;
    nsa_tensor x; /* [total_k][n_heads_kv][d] */
    nsa_tensor y; /* out: [rows][n_heads_kv][d], as k_cmp */
} nsa_compress_args;

typedef struct nsa_compress_backward_args {
    int32_t d;
    nsa_phi phi;
    nsa_tensor x;
    nsa_tensor dy; /* as y */
    nsa_tensor dx; /* out: as x; tokens in no block get 0 */
    nsa_phi dphi;  /* out */
} nsa_compress_backward_args;

/* Of batch only the key side is read. */
NSA_API nsa_status nsa_compress_workspace(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                          const nsa_compress_args *args, size_t *bytes);
NSA_API nsa_status nsa_compress(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                const nsa_compress_args *args, void *workspace, size_t workspace_bytes,
                                nsa_stream stream);
NSA_API nsa_status nsa_compress_backward_workspace(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                                   const nsa_compress_backward_args *args, size_t *bytes);
NSA_API nsa_status nsa_compress_backward(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                         const nsa_compress_backward_args *args, void *workspace,
                                         size_t workspace_bytes, nsa_stream stream);

/* ---- Attention, one branch at a time --------------------------------------------------------------------------- */

typedef struct nsa_attn_args {
    nsa_tensor q;
    nsa_tensor k, v;    /* for cmp_attn: k_cmp, v_cmp */
    nsa_tensor slc_idx; /* for slc_attn only: in any order; entries < 0 or past the last block are skipped,
                           the others must be distinct in a row */
    nsa_tensor o;       /* out */
    nsa_tensor lse;     /* out; in for backward */
} nsa_attn_args;

typedef struct nsa_attn_backward_args {
    nsa_attn_args fwd; /* as the forward call left it */
    nsa_tensor d_o;    /* gradient of o ('do' is a C keyword) */
    nsa_tensor dq;     /* out: as q */
    nsa_tensor dk, dv; /* out: as k, v, summed over the group's heads */
} nsa_attn_backward_args;

/* cmp: the compressed blocks whose last token is at or before t: i*cmp_stride + cmp_block - 1 <= t.
 * slc: the keys at or before t of the blocks in slc_idx.
 * win: the keys max(0, t - win_size + 1) .. t. With win_size >= max_seqlen_k: dense causal attention. */
#define NSA_DECLARE_ATTN(op)                                                                                           \
    NSA_API nsa_status nsa_##op##_workspace(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,         \
                                            const nsa_attn_args *args, size_t *bytes);                                 \
    NSA_API nsa_status nsa_##op(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,                     \
                                const nsa_attn_args *args, void *workspace, size_t workspace_bytes,                    \
                                nsa_stream stream);                                                                    \
    NSA_API nsa_status nsa_##op##_backward_workspace(const nsa_ctx *ctx, const nsa_config *cfg,                        \
                                                     const nsa_batch *batch, const nsa_attn_backward_args *args,       \
                                                     size_t *bytes);                                                   \
    NSA_API nsa_status nsa_##op##_backward(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,          \
                                           const nsa_attn_backward_args *args, void *workspace,                        \
                                           size_t workspace_bytes, nsa_stream stream);
NSA_DECLARE_ATTN(cmp_attn)
NSA_DECLARE_ATTN(slc_attn)
NSA_DECLARE_ATTN(win_attn)

/* ---- Selection (paper eq. 8 to 12): the cmp branch's probabilities, summed over the group's heads and gathered onto
 *      selection blocks by the tokens they share; the largest win, ties go to the lower block ------------------------
 */

typedef struct nsa_select_args {
    nsa_tensor q; /* that of the cmp branch */
    nsa_tensor k_cmp;
    nsa_tensor lse;     /* that of the cmp branch */
    nsa_tensor slc_idx; /* out: min(slc_topk, t/slc_block + 1) blocks, ascending, then -1 */
} nsa_select_args;

NSA_API nsa_status nsa_select_workspace(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                        const nsa_select_args *args, size_t *bytes);
NSA_API nsa_status nsa_select(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                              const nsa_select_args *args, void *workspace, size_t workspace_bytes, nsa_stream stream);

/* ---- Gate: o = sum over branches of gate[c] * o_branch[c] -------------------------------------------------------- */

typedef struct nsa_gate_args {
    nsa_tensor gate;
    nsa_tensor o_branch[NSA_N_BRANCHES];
    nsa_tensor o; /* out */
} nsa_gate_args;

typedef struct nsa_gate_backward_args {
    nsa_tensor gate;
    nsa_tensor o_branch[NSA_N_BRANCHES];
    nsa_tensor d_o;
    nsa_tensor dgate;                     /* out: gate's dtype, always per head */
    nsa_tensor do_branch[NSA_N_BRANCHES]; /* out: gate[c] * d_o */
} nsa_gate_backward_args;

/* No workspace. Of batch only the query side is read. */
NSA_API nsa_status nsa_gate(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                            const nsa_gate_args *args, nsa_stream stream);
NSA_API nsa_status nsa_gate_backward(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                     const nsa_gate_backward_args *args, nsa_stream stream);

/* ---- The whole -------------------------------------------------------------------------------------------------- */

typedef struct nsa_forward_args {
    nsa_tensor q[NSA_N_BRANCHES]; /* usually the same tensor three times */
    nsa_tensor k[NSA_N_BRANCHES]; /* the paper has a K and a V for each branch; the same three times shares them */
    nsa_tensor v[NSA_N_BRANCHES];
    nsa_tensor gate;
    const nsa_phi *phi_k, *phi_v; /* both NULL: k_cmp and v_cmp are inputs, made by the caller's own phi;
                                     k[NSA_CMP] and v[NSA_CMP] are then not read */
    int32_t slc_idx_given;        /* not 0: slc_idx is an input, the caller's own selection */
    nsa_tensor o;                 /* out */

    /* What backward needs, kept by the caller. In inference any of them may have data = NULL (unless it is an input).
     */
    nsa_tensor k_cmp, v_cmp;
    nsa_tensor slc_idx;
    nsa_tensor o_branch[NSA_N_BRANCHES]; /* like o */
    nsa_tensor lse[NSA_N_BRANCHES];
} nsa_forward_args;

typedef struct nsa_backward_args {
    nsa_forward_args fwd; /* as the forward call left it, all that backward needs present; fwd.o is not read */
    nsa_tensor d_o;
    /* Out. Branches given the same output (data) get their sum, added in the order cmp, slc, win. */
    nsa_tensor dq[NSA_N_BRANCHES];
    nsa_tensor dk[NSA_N_BRANCHES], dv[NSA_N_BRANCHES];
    nsa_tensor dgate;               /* gate's dtype, [total_q][n_heads_q][3]: always per head */
    const nsa_phi *dphi_k, *dphi_v; /* with phi: gradients of its parameters */
    nsa_tensor dk_cmp, dv_cmp;      /* without: gradients of k_cmp, v_cmp; dk[NSA_CMP], dv[NSA_CMP] are not written */
} nsa_backward_args;

NSA_API nsa_status nsa_forward_workspace(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                         const nsa_forward_args *args, size_t *bytes);
NSA_API nsa_status nsa_forward(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                               const nsa_forward_args *args, void *workspace, size_t workspace_bytes,
                               nsa_stream stream);
NSA_API nsa_status nsa_backward_workspace(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                          const nsa_backward_args *args, size_t *bytes);
NSA_API nsa_status nsa_backward(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                const nsa_backward_args *args, void *workspace, size_t workspace_bytes,
                                nsa_stream stream);

/* ---- Generation over a KV cache ----------------------------------------------------------------------------------
 *
 * Memory is the caller's: a pool of pages, each holding page_size tokens of one sequence (slc K and V, and the
 * compressed rows whose blocks end there; opaque inside), an int32 page table per sequence, and for each sequence a
 * small state (its length; the last win_size - 1 + max_draft window rows and cmp_block - 1 + max_draft uncompressed
 * rows). Pages may be copied, moved and, once full, shared between sequences that start alike.
 * Token by token, chunk by chunk and one nsa_forward over the whole give the same outputs to rounding.
 */

typedef struct nsa_cache {
    int32_t page_size; /* tokens; a multiple of slc_block and of cmp_stride */
    int32_t max_draft; /* most tokens that can be dropped below the longest length a sequence has had; >= 0 */
    int32_t shared_kv; /* not 0: the branches share one K and one V; they are stored once and k[0], v[0] are read */
    nsa_dtype dtype;   /* of q, k, v and of what is stored */
    int64_t n_pages;
    void *pages; /* n_pages times nsa_cache_page_bytes, 64-byte aligned */
} nsa_cache;

NSA_API nsa_status nsa_cache_page_bytes(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_cache *cache,
                                        size_t *bytes);
NSA_API nsa_status nsa_cache_state_bytes(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_cache *cache,
                                         size_t *bytes);

/* Makes the state (64-byte aligned) that of an empty sequence. To be called before its first use. */
NSA_API nsa_status nsa_cache_reset(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_cache *cache, void *state);

/* Tokens held. */
NSA_API nsa_status nsa_cache_length(const nsa_ctx *ctx, const void *state, int64_t *n_tokens);

/* Drops the tokens from n_tokens on, as if they had never been given. n_tokens below the longest length that the
 * sequence has had, less max_draft, is an error and changes nothing. */
NSA_API nsa_status nsa_cache_drop(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_cache *cache, void *state,
                                  int64_t n_tokens);

/* New tokens of some sequences: sequence s appends tokens cu_seqlens[s] .. cu_seqlens[s+1]-1 (any number, 0 included)
 * of k and v to its cache, and its queries attend to all that it then holds. */
typedef struct nsa_cache_args {
    int32_t n_seqs;
    int64_t total;             /* = cu_seqlens[n_seqs] */
    const int32_t *cu_seqlens; /* [n_seqs + 1] */
    void *const *states;       /* [n_seqs], distinct */
    const int32_t *page_table; /* [n_seqs][pages_per_seq]: page of tokens p*page_size .. of sequence s */
    int32_t pages_per_seq;     /* only the entries that the new length needs are read */
    nsa_tensor q[NSA_N_BRANCHES], k[NSA_N_BRANCHES], v[NSA_N_BRANCHES];
    nsa_tensor gate;
    const nsa_phi *phi_k, *phi_v;
    nsa_tensor o;       /* out */
    nsa_tensor slc_idx; /* out; data may be NULL */
} nsa_cache_args;

/* prefill: many new tokens per sequence, work is split over them. decode: one or a few (drafts). Same results.
 * The workspace grows with the lengths that the sequences will have: ask before each call, or once for the longest. */
NSA_API nsa_status nsa_prefill_workspace(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_cache *cache,
                                         const nsa_cache_args *args, size_t *bytes);
NSA_API nsa_status nsa_prefill(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_cache *cache,
                               const nsa_cache_args *args, void *workspace, size_t workspace_bytes, nsa_stream stream);
NSA_API nsa_status nsa_decode_workspace(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_cache *cache,
                                        const nsa_cache_args *args, size_t *bytes);
NSA_API nsa_status nsa_decode(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_cache *cache,
                              const nsa_cache_args *args, void *workspace, size_t workspace_bytes, nsa_stream stream);

#ifdef __cplusplus
}
#endif

#endif /* NSA_H */
