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
 * Positions and indices are 0-based and count from the start of their sequence. A sequence with T_q queries and T_k
 * keys is aligned at its end: query row r stands at position t = r + T_k - T_q. Rows with t < 0 are empty.
 * An empty row (nothing to attend to) has o = 0, lse = -inf and gradients of 0.
 *
 * What holds for every call:
 *
 * - Sizes, strides, pointers and lengths are checked before anything is written. A call that fails has written nothing
 *   but its message: nsa_last_error() names the argument, its value and what is allowed.
 * - Memory is the caller's. Only nsa_ctx_create allocates. Pointers are used during the call and not kept. An array is
 *   aligned to its elements; a workspace may lie anywhere, and what a call leaves there is of no use.
 * - With a context for a CUDA device all arrays lie in memory that the device reaches: tensors, cu_seqlens, parameters,
 *   workspace; the structs themselves are the host's. A call puts work on `stream` and returns. It does not wait, it
 *   reads none of those arrays on the host, and it may be captured in a graph. So what cu_seqlens holds is not checked:
 *   where it is not what nsa_batch says, results are unspecified, but no access leaves its tensor.
 * - nsa_X_workspace checks the arguments of nsa_X as that does and says how many bytes of workspace it needs: 0 where
 *   none, and then workspace may be NULL. It reads no tensor. More than is needed is fine: one buffer may serve all.
 * - Inputs may overlap each other. Outputs and workspace must overlap nothing else that the call reads or writes: two
 *   outputs that start at one address are an error, other overlaps are not seen.
 * - Nothing prints, exits or keeps state between calls. Any number of threads may call at once, with one context, as
 *   long as none writes what another uses. On the CPU a call runs on up to nsa_ctx_threads() threads and returns when
 *   done.
 * - Results are bit-equal from run to run and for any number of threads.
 * - Tensors' contents are data, whatever they are. A key that a row does not attend to has no influence on it. A row
 *   with an infinite or NaN logit gets NaN or unspecified values, and so do the gradients that it adds to; no index
 *   leaves its bounds.
 *
 * The mathematics is in docs/nsa.md, the rounding in docs/numerics.md, what is trusted in SECURITY.md.
 */
#ifndef NSA_H
#define NSA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define NSA_API __attribute__((visibility("default"))) /* a function that libnsa exports */
#else
#define NSA_API
#endif

/* ---- Version ----------------------------------------------------------------------------------------------------- */

#define NSA_VERSION_MAJOR 0 /* grows with a change that programs must follow; below 1 the minor version does, too */
#define NSA_VERSION_MINOR 1 /* grows with an addition */
#define NSA_VERSION_PATCH 0 /* grows with a correction */

/* "0.1.0": the version of the library that runs, which may differ from the header's. */
NSA_API const char *nsa_version(void);

/* ---- Status ------------------------------------------------------------------------------------------------------ */

/* What every function that can fail returns. */
typedef enum nsa_status {
    NSA_OK = 0,               /* done */
    NSA_ERR_INVALID_ARGUMENT, /* a size, stride, pointer, dtype, cu_seqlens or page that cannot be */
    NSA_ERR_UNSUPPORTED,      /* valid, but not on this device or build; the CPU supports all that is valid */
    NSA_ERR_WORKSPACE,        /* the workspace is too small; the message says how many bytes are needed */
    NSA_ERR_OUT_OF_MEMORY,    /* from nsa_ctx_create only */
    NSA_ERR_NO_DEVICE,        /* from nsa_ctx_create only: this build or machine lacks the device */
    NSA_ERR_DEVICE            /* CUDA did not start all of the work; the message has its error */
} nsa_status;

/* A constant string such as "invalid argument"; never NULL. */
NSA_API const char *nsa_status_string(nsa_status status);

/* The message of the last call that failed on this thread: argument, value, what is allowed. "" if none has. Never
 * NULL; valid until a call fails on this thread again. */
NSA_API const char *nsa_last_error(void);

/* ---- Context ----------------------------------------------------------------------------------------------------- */

/* A device, its kernels and a number of threads. Immutable: one context serves any number of threads. */
typedef struct nsa_ctx nsa_ctx;

/* Where calls run. */
typedef enum nsa_device {
    NSA_DEVICE_CPU = 0, /* this machine's CPU */
    NSA_DEVICE_CUDA = 1 /* an NVIDIA GPU of compute capability 8.0 or higher, in a build with CUDA */
} nsa_device;

/* What nsa_ctx_create can be told. */
typedef struct nsa_ctx_options {
    uint32_t struct_size; /* sizeof(nsa_ctx_options) */
    nsa_device device;    /* where to run */
    int32_t n_threads;    /* of one call, 0 .. 1024; 0 = as many as OpenMP would use (OMP_NUM_THREADS, or all cores).
                             0 for CUDA */
    int32_t reference;    /* not 0: every operation by its oracle, slow, in double. f64 tensors do so always. CPU only,
                             and so are f64 tensors */
    int32_t device_index; /* which CUDA device, 0 ..; 0 for the CPU */
} nsa_ctx_options;

/* A new context in *ctx, NULL if it fails. options may be NULL: CPU, all threads. The instruction set is the best of
 * what the CPU and the OS support, less those in the environment variable NSA_DISABLE_CPU, comma-separated (an unknown
 * name is an error). On Linux and a CPU with AMX the first context asks the OS for its tiles, for the process and for
 * good: from then on sigaltstack() refuses stacks of less than about 12 KiB. NSA_DISABLE_CPU=amx avoids that. */
NSA_API nsa_status nsa_ctx_create(nsa_ctx **ctx, const nsa_ctx_options *options);

/* Frees it; no call may use it any more. NULL is fine. */
NSA_API void nsa_ctx_destroy(nsa_ctx *ctx);

/* Threads of a call at most; 1 for CUDA, 0 for NULL. */
NSA_API int32_t nsa_ctx_threads(const nsa_ctx *ctx);

/* "avx512", "avx2", "scalar", "ref" ..., or "sm_90" ...: what the kernels that ctx runs are made for; "" for NULL. */
NSA_API const char *nsa_ctx_isa(const nsa_ctx *ctx);

/* The same type as cudaStream_t: a stream of the context's device, NULL for its default stream. A CPU context ignores
 * it. */
typedef struct CUstream_st *nsa_stream;

/* ---- The problem ------------------------------------------------------------------------------------------------- */

/* The sizes of an attention layer. Start from nsa_config_init. */
typedef struct nsa_config {
    uint32_t struct_size; /* set by nsa_config_init */
    int32_t n_heads_q;    /* query heads, 1 .. 65536: a multiple of n_heads_kv; their ratio is the group, any >= 1 */
    int32_t n_heads_kv;   /* key and value heads; query head h reads kv head h / group */
    int32_t d_qk;         /* channels of a query and of a key, 1 .. 256 */
    int32_t d_v;          /* channels of a value, 1 .. 256 */
    int32_t cmp_block;    /* tokens in a compression block, 1 .. 65536 */
    int32_t cmp_stride;   /* tokens between their starts; divides cmp_block and slc_block */
    int32_t slc_block;    /* tokens in a selection block, cmp_block .. 65536 */
    int32_t slc_topk;     /* blocks selected per token and kv head, the forced ones counted in, 1 .. 65536 */
    int32_t slc_n_init;   /* forced blocks at the start of the sequence, >= 0; with slc_n_local at most slc_topk */
    int32_t slc_n_local;  /* forced blocks at the query, its own counted in, >= 0 */
    int32_t win_size;     /* the window, the query's own token counted in, >= 1; >= T_k is dense causal attention */
    double scale;         /* of the logits in every branch and in selection; 0 = 1/sqrt(d_qk) */
} nsa_config;

/* The paper's values: 64/4 heads, d 192/128, 32/16 compression, 16 blocks of 64 (1 + 2 forced), window 512. */
NSA_API void nsa_config_init(nsa_config *cfg);

/* Sequences of any lengths, zero included, packed one after the other. Sequence s owns query tokens
 * cu_seqlens_q[s] .. cu_seqlens_q[s+1]-1 and key tokens cu_seqlens_k[s] .. cu_seqlens_k[s+1]-1. */
typedef struct nsa_batch {
    int32_t n_seqs;              /* sequences, >= 0; with none the arrays may be NULL */
    int32_t max_seqlen_q;        /* >= the most query tokens of a sequence */
    int32_t max_seqlen_k;        /* >= the most key tokens of a sequence */
    int64_t total_q;             /* = cu_seqlens_q[n_seqs], at most 2^31 - 1 */
    int64_t total_k;             /* = cu_seqlens_k[n_seqs], at most 2^31 - 1 */
    const int32_t *cu_seqlens_q; /* [n_seqs + 1], from 0, never falling */
    const int32_t *cu_seqlens_k; /* [n_seqs + 1], from 0, never falling; may be the same array */
} nsa_batch;

/* Compressed blocks of a sequence of n_tokens: 0 below cmp_block, else (n_tokens - cmp_block)/cmp_stride + 1. */
NSA_API int64_t nsa_n_cmp(const nsa_config *cfg, int64_t n_tokens);

/* ---- Tensors -----------------------------------------------------------------------------------------------------
 *
 * The tensors below go by the names of their fields. Where nothing else is said their dtype is that of q.
 *
 *     q         [total_q][n_heads_q][d_qk]           o, d_o    [total_q][n_heads_q][d_v]
 *     k         [total_k][n_heads_kv][d_qk]          v         [total_k][n_heads_kv][d_v]
 *     k_cmp     [rows][n_heads_kv][d_qk]             v_cmp     [rows][n_heads_kv][d_v]
 *               packed: the rows of sequence s start at cu_seqlens_k[s]/cmp_stride; rows = total_k/cmp_stride is enough
 *               (and what CUDA calls want, since they do not see how many there are)
 *     gate      [total_q][n_heads_q][3]              f32 or q's dtype, after the sigmoid, order cmp, slc, win;
 *               stride_head 0 makes it a gate per token
 *     lse       [total_q][n_heads_q][1]              f32 (f64 with f64 tensors): ln sum exp(scale * q.k), natural
 *     slc_idx   [total_q][n_heads_kv][slc_topk]      i32: selected blocks, ascending, then -1
 *
 * A gradient dx has the shape and the dtype of its x.
 */

/* Types of elements. */
typedef enum nsa_dtype {
    NSA_F32 = 0, /* float */
    NSA_BF16,    /* the upper half of a float */
    NSA_F16,     /* IEEE 754 half precision */
    NSA_F64,     /* double; by the oracle only: gradient checks, golden values */
    NSA_I32      /* int32_t; slc_idx only */
} nsa_dtype;

/* [token][head][channel], channels contiguous. Strides are in elements and >= 0. An input may broadcast with a stride
 * of 0; no two elements of an output may coincide. A tensor without rows may have data = NULL. */
typedef struct nsa_tensor {
    void *data;           /* element [0][0][0], aligned to its type */
    nsa_dtype dtype;      /* of the elements */
    int64_t stride_seq;   /* 0: sequence s starts at token cu_seqlens[s] (THD); else at s * stride_seq (BSHD, BHSD) */
    int64_t stride_token; /* from a token to the next */
    int64_t stride_head;  /* from a head to the next */
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

/* The order of the branches in every array of three. */
enum {
    NSA_CMP = 0,       /* compressed blocks */
    NSA_SLC = 1,       /* selected blocks */
    NSA_WIN = 2,       /* the sliding window */
    NSA_N_BRANCHES = 3 /* how many */
};

/* ---- Compression: k_cmp[i] = phi_k(k[i*cmp_stride .. +cmp_block-1]), v_cmp likewise (paper eq. 7) ---------------- */

/* How a block of tokens becomes one row; x_r is row r of the block. */
typedef enum nsa_phi_kind {
    NSA_PHI_MEAN = 0,      /* the average */
    NSA_PHI_LINEAR,        /* (x + pe) flattened, times w1 */
    NSA_PHI_GATED_TOKEN,   /* sum_r a_r x_r,         a = softmax over r of (x_r . w1 + b1_r) */
    NSA_PHI_GATED_CHANNEL, /* sum_r a[r][c] x[r][c], a = softmax over r of (x_r w1 + b1_r)[c] */
    NSA_PHI_MLP            /* GELU((x + pe) flattened, times w1, + b1) times w2 + b2; GELU with erf (the paper's) */
} nsa_phi_kind;

/*
 * The parameters of phi, contiguous. Weights are row-major [in][out], d is the head dimension of what is compressed:
 *
 *     kind            pe          w1                      b1          w2              b2
 *     mean            -           -                       -           -               -
 *     linear          [block][d]  [block*d][d]            -           -               -
 *     gated_token     -           [d]                     [block]     -               -
 *     gated_channel   -           [d][d]                  [block][d]  -               -
 *     mlp             [block][d]  [block*d][d_hidden]     [d_hidden]  [d_hidden][d]   [d]
 *
 * pe of linear and mlp, b1 and b2 of mlp may be NULL (zero); the others must be given, and '-' must be NULL. The same
 * struct with the same members set takes the gradients, overwritten.
 */
typedef struct nsa_phi {
    nsa_phi_kind kind; /* which of the five */
    nsa_dtype dtype;   /* of the parameters and of their gradients: that of the tokens, or f32 */
    int32_t per_head;  /* 0: all kv heads share one set; 1: every member has a leading dimension [n_heads_kv] */
    int32_t d_hidden;  /* mlp only, 1 .. 65536 */
    void *pe;          /* position encoding, added to the block */
    void *w1;          /* first weights */
    void *b1;          /* first bias */
    void *w2;          /* second weights */
    void *b2;          /* second bias */
} nsa_phi;

/* Arguments of nsa_compress. */
typedef struct nsa_compress_args {
    int32_t d;    /* channels of x, 1 .. 256: d_qk for keys, d_v for values */
    nsa_phi phi;  /* its parameters are read only */
    nsa_tensor x; /* [total_k][n_heads_kv][d] */
    nsa_tensor y; /* out: [rows][n_heads_kv][d], as k_cmp */
} nsa_compress_args;

/* Arguments of nsa_compress_backward. */
typedef struct nsa_compress_backward_args {
    int32_t d;     /* as forward */
    nsa_phi phi;   /* as forward */
    nsa_tensor x;  /* as forward */
    nsa_tensor dy; /* as y */
    nsa_tensor dx; /* out: as x; tokens in no block get 0 */
    nsa_phi dphi;  /* out: the struct's pointers are where the gradients go */
} nsa_compress_backward_args;

/* Bytes that nsa_compress needs. Of batch only the key side is read, by all four. */
NSA_API nsa_status nsa_compress_workspace(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                          const nsa_compress_args *args, size_t *bytes);

/* y = phi of every block of x. */
NSA_API nsa_status nsa_compress(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                const nsa_compress_args *args, void *workspace, size_t workspace_bytes,
                                nsa_stream stream);

/* Bytes that nsa_compress_backward needs. */
NSA_API nsa_status nsa_compress_backward_workspace(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                                   const nsa_compress_backward_args *args, size_t *bytes);

/* dx and dphi from dy. */
NSA_API nsa_status nsa_compress_backward(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                         const nsa_compress_backward_args *args, void *workspace,
                                         size_t workspace_bytes, nsa_stream stream);

/* ---- Attention, one branch at a time (paper eq. 5) ---------------------------------------------------------------
 *
 * o = softmax(scale * q.k) v over the keys that a row sees:
 *
 *     cmp  the compressed blocks whose last token is at or before t: i*cmp_stride + cmp_block - 1 <= t
 *     slc  the keys at or before t of the blocks in slc_idx
 *     win  the keys max(0, t - win_size + 1) .. t; with win_size >= max_seqlen_k that is dense causal attention
 *
 * Each branch is four functions of one shape.
 */

/* Arguments of nsa_cmp_attn, nsa_slc_attn and nsa_win_attn. */
typedef struct nsa_attn_args {
    nsa_tensor q;       /* queries */
    nsa_tensor k;       /* keys; for cmp_attn: k_cmp */
    nsa_tensor v;       /* values; for cmp_attn: v_cmp */
    nsa_tensor slc_idx; /* for slc_attn only: in any order; entries < 0 or past the row's own block are skipped, and so
                           is a second entry for a block */
    nsa_tensor o;       /* out; in for backward */
    nsa_tensor lse;     /* out; in for backward */
} nsa_attn_args;

/* Arguments of their backward functions. */
typedef struct nsa_attn_backward_args {
    nsa_attn_args fwd; /* as the forward call left it */
    nsa_tensor d_o;    /* gradient of o ('do' is a C keyword) */
    nsa_tensor dq;     /* out: as q */
    nsa_tensor dk;     /* out: as k, summed over the group's heads */
    nsa_tensor dv;     /* out: as v, summed over the group's heads */
} nsa_attn_backward_args;

/* Bytes that nsa_cmp_attn needs. */
NSA_API nsa_status nsa_cmp_attn_workspace(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                          const nsa_attn_args *args, size_t *bytes);

/* o and lse over the compressed blocks. */
NSA_API nsa_status nsa_cmp_attn(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                const nsa_attn_args *args, void *workspace, size_t workspace_bytes, nsa_stream stream);

/* Bytes that nsa_cmp_attn_backward needs. */
NSA_API nsa_status nsa_cmp_attn_backward_workspace(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                                   const nsa_attn_backward_args *args, size_t *bytes);

/* dq, and as dk and dv the gradients of k_cmp and v_cmp. */
NSA_API nsa_status nsa_cmp_attn_backward(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                         const nsa_attn_backward_args *args, void *workspace, size_t workspace_bytes,
                                         nsa_stream stream);

/* Bytes that nsa_slc_attn needs. */
NSA_API nsa_status nsa_slc_attn_workspace(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                          const nsa_attn_args *args, size_t *bytes);

/* o and lse over the selected blocks. */
NSA_API nsa_status nsa_slc_attn(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                const nsa_attn_args *args, void *workspace, size_t workspace_bytes, nsa_stream stream);

/* Bytes that nsa_slc_attn_backward needs. */
NSA_API nsa_status nsa_slc_attn_backward_workspace(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                                   const nsa_attn_backward_args *args, size_t *bytes);

/* dq, dk and dv. There is no gradient through the choice of blocks. */
NSA_API nsa_status nsa_slc_attn_backward(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                         const nsa_attn_backward_args *args, void *workspace, size_t workspace_bytes,
                                         nsa_stream stream);

/* Bytes that nsa_win_attn needs. */
NSA_API nsa_status nsa_win_attn_workspace(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                          const nsa_attn_args *args, size_t *bytes);

/* o and lse over the window. */
NSA_API nsa_status nsa_win_attn(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                const nsa_attn_args *args, void *workspace, size_t workspace_bytes, nsa_stream stream);

/* Bytes that nsa_win_attn_backward needs. */
NSA_API nsa_status nsa_win_attn_backward_workspace(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                                   const nsa_attn_backward_args *args, size_t *bytes);

/* dq, dk and dv. */
NSA_API nsa_status nsa_win_attn_backward(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                         const nsa_attn_backward_args *args, void *workspace, size_t workspace_bytes,
                                         nsa_stream stream);

/* ---- Selection (paper eq. 8 to 12) -------------------------------------------------------------------------------
 *
 * The cmp branch's probabilities, summed over the group's heads and gathered onto selection blocks by the tokens they
 * share; the largest win, ties go to the lower block. A block that is forced is selected whatever its score.
 */

/* Arguments of nsa_select. */
typedef struct nsa_select_args {
    nsa_tensor q;       /* that of the cmp branch */
    nsa_tensor k_cmp;   /* that of the cmp branch */
    nsa_tensor lse;     /* that of the cmp branch, as nsa_cmp_attn made it */
    nsa_tensor slc_idx; /* out: min(slc_topk, t/slc_block + 1) blocks, ascending, then -1; only -1 where t < 0 */
} nsa_select_args;

/* Bytes that nsa_select needs. */
NSA_API nsa_status nsa_select_workspace(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                        const nsa_select_args *args, size_t *bytes);

/* slc_idx: which blocks each query and kv head attends to. */
NSA_API nsa_status nsa_select(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                              const nsa_select_args *args, void *workspace, size_t workspace_bytes, nsa_stream stream);

/* ---- Gate: o = sum over branches of gate[c] * o_branch[c] (paper eq. 5) ------------------------------------------ */

/* Arguments of nsa_gate. */
typedef struct nsa_gate_args {
    nsa_tensor gate;                     /* any finite numbers; a model's are in 0 .. 1 */
    nsa_tensor o_branch[NSA_N_BRANCHES]; /* as o */
    nsa_tensor o;                        /* out */
} nsa_gate_args;

/* Arguments of nsa_gate_backward. */
typedef struct nsa_gate_backward_args {
    nsa_tensor gate;                      /* as forward */
    nsa_tensor o_branch[NSA_N_BRANCHES];  /* as forward */
    nsa_tensor d_o;                       /* gradient of o */
    nsa_tensor dgate;                     /* out: gate's dtype, always per head */
    nsa_tensor do_branch[NSA_N_BRANCHES]; /* out: gate[c] * d_o, as o */
} nsa_gate_backward_args;

/* The gated sum. No workspace. Of batch only the query side is read, by both. */
NSA_API nsa_status nsa_gate(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                            const nsa_gate_args *args, nsa_stream stream);

/* dgate and do_branch from d_o. No workspace. */
NSA_API nsa_status nsa_gate_backward(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                     const nsa_gate_backward_args *args, nsa_stream stream);

/* ---- The whole -------------------------------------------------------------------------------------------------- */

/* Arguments of nsa_forward. From k_cmp on: what backward needs, kept by the caller. In inference any of those may have
 * data = NULL, unless it is an input. */
typedef struct nsa_forward_args {
    nsa_tensor q[NSA_N_BRANCHES]; /* usually the same tensor three times */
    nsa_tensor k[NSA_N_BRANCHES]; /* the paper has a K and a V for each branch; the same three times shares them */
    nsa_tensor v[NSA_N_BRANCHES]; /* as k */
    nsa_tensor gate;              /* the weights of the branches */
    const nsa_phi *phi_k;  /* phi of the keys. NULL, as phi_v: k_cmp and v_cmp are inputs, made by the caller's own
                              phi; k[NSA_CMP] and v[NSA_CMP] are then not read */
    const nsa_phi *phi_v;  /* phi of the values */
    int32_t slc_idx_given; /* not 0: slc_idx is an input, the caller's own selection */
    nsa_tensor o;          /* out */

    nsa_tensor k_cmp;                    /* out, or in: see phi_k */
    nsa_tensor v_cmp;                    /* out, or in: see phi_k */
    nsa_tensor slc_idx;                  /* out, or in: see slc_idx_given */
    nsa_tensor o_branch[NSA_N_BRANCHES]; /* out: as o */
    nsa_tensor lse[NSA_N_BRANCHES];      /* out */
} nsa_forward_args;

/* Arguments of nsa_backward. Branches given the same output (data) get their sum, added in the order cmp, slc, win. */
typedef struct nsa_backward_args {
    nsa_forward_args fwd;          /* as the forward call left it, all that backward needs present; fwd.o is not read */
    nsa_tensor d_o;                /* gradient of o */
    nsa_tensor dq[NSA_N_BRANCHES]; /* out: as q */
    nsa_tensor dk[NSA_N_BRANCHES]; /* out: as k; without phi dk[NSA_CMP] is not written */
    nsa_tensor dv[NSA_N_BRANCHES]; /* out: as v; without phi dv[NSA_CMP] is not written */
    nsa_tensor dgate;              /* out: gate's dtype, [total_q][n_heads_q][3]: always per head */
    const nsa_phi *dphi_k;         /* with phi: where the gradients of phi_k's parameters go */
    const nsa_phi *dphi_v;         /* with phi: where the gradients of phi_v's parameters go */
    nsa_tensor dk_cmp;             /* out, without phi: gradient of k_cmp */
    nsa_tensor dv_cmp;             /* out, without phi: gradient of v_cmp */
} nsa_backward_args;

/* Bytes that nsa_forward needs. */
NSA_API nsa_status nsa_forward_workspace(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                         const nsa_forward_args *args, size_t *bytes);

/* compress, cmp_attn, select, slc_attn, win_attn and gate. */
NSA_API nsa_status nsa_forward(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                               const nsa_forward_args *args, void *workspace, size_t workspace_bytes,
                               nsa_stream stream);

/* Bytes that nsa_backward needs. */
NSA_API nsa_status nsa_backward_workspace(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                          const nsa_backward_args *args, size_t *bytes);

/* The gradients of all that nsa_forward read, slc_idx excepted. */
NSA_API nsa_status nsa_backward(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                const nsa_backward_args *args, void *workspace, size_t workspace_bytes,
                                nsa_stream stream);

/* ---- Generation over a KV cache ----------------------------------------------------------------------------------
 *
 * Memory is the caller's: a pool of pages, each holding page_size tokens of one sequence (slc K and V, and the
 * compressed rows whose blocks end there; opaque inside), an int32 page table per sequence, and for each sequence a
 * small state (its length; the last win_size - 1 + max_draft window rows and cmp_block - 1 + max_draft uncompressed
 * rows). Neither holds addresses: both may be copied and moved, and pages that are full may be shared by sequences that
 * start alike. Token by token, chunk by chunk and one nsa_forward over the whole give the same outputs to rounding.
 *
 * With CUDA pages, states, page tables and the array `states` lie in memory that the device reaches. A sequence's
 * length is in its state and grows there: a call that was captured in a graph appends the next tokens each time that
 * the graph is launched. The host does not see lengths, so work and workspace go by the longest that the page tables
 * have room for, pages_per_seq * page_size tokens; and what the CPU finds wrong in lengths, pages and states is not
 * found: a sequence without a sound state, or without room for its new tokens, gets none and has unspecified results;
 * an entry of the page table is taken for the nearest page that there is. That the states of a call are distinct is the
 * caller's promise there: a kernel may hang or fault where two sequences share one.
 */

/* A pool of pages and what its sequences have in common. */
typedef struct nsa_cache {
    int32_t page_size; /* tokens; a multiple of slc_block and of cmp_stride */
    int32_t max_draft; /* most tokens that can be dropped below the longest length a sequence has had; >= 0 */
    int32_t shared_kv; /* not 0: the branches share one K and one V; they are stored once and k[0], v[0] are read */
    nsa_dtype dtype;   /* of q, k, v and of what is stored */
    int64_t n_pages;   /* pages in the pool, 0 .. 2^31 - 1 */
    void *pages;       /* n_pages times nsa_cache_page_bytes, 64-byte aligned; need not be cleared */
} nsa_cache;

/* Bytes of a page. cache->pages is not read, here and where nothing is prefilled or decoded. */
NSA_API nsa_status nsa_cache_page_bytes(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_cache *cache,
                                        size_t *bytes);

/* Bytes of a sequence's state. */
NSA_API nsa_status nsa_cache_state_bytes(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_cache *cache,
                                         size_t *bytes);

/* Makes the state (64-byte aligned) that of an empty sequence. To be called before its first use. */
NSA_API nsa_status nsa_cache_reset(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_cache *cache, void *state,
                                   nsa_stream stream);

/* Tokens held. With CUDA n_tokens, too, lies in memory that the device reaches; -1 of what is no state. */
NSA_API nsa_status nsa_cache_length(const nsa_ctx *ctx, const void *state, int64_t *n_tokens, nsa_stream stream);

/* Drops the tokens from n_tokens on, as if they had never been given. n_tokens below the longest length that the
 * sequence has had, less max_draft, is an error and changes nothing; so is one above the tokens held. With CUDA it
 * changes nothing, too, but is not seen. */
NSA_API nsa_status nsa_cache_drop(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_cache *cache, void *state,
                                  int64_t n_tokens, nsa_stream stream);

/* New tokens of some sequences: sequence s appends tokens cu_seqlens[s] .. cu_seqlens[s+1]-1 (any number, 0 included)
 * of k and v to its cache, and its queries attend to all that it then holds. Pages and states are written, too; no two
 * sequences of a call may write one page. */
typedef struct nsa_cache_args {
    int32_t n_seqs;               /* sequences, >= 0 */
    int32_t max_seqlen;           /* >= the most new tokens of a sequence; 0: total, which always is */
    int64_t total;                /* = cu_seqlens[n_seqs]; the tensors have this many rows */
    const int32_t *cu_seqlens;    /* [n_seqs + 1], from 0, never falling */
    void *const *states;          /* [n_seqs], distinct */
    const int32_t *page_table;    /* [n_seqs][pages_per_seq]: page of tokens p*page_size .. of sequence s */
    int32_t pages_per_seq;        /* of a row of page_table; only the entries that the new length needs are read */
    nsa_tensor q[NSA_N_BRANCHES]; /* queries of the new tokens */
    nsa_tensor k[NSA_N_BRANCHES]; /* their keys; with shared_kv only k[0] is read */
    nsa_tensor v[NSA_N_BRANCHES]; /* their values; with shared_kv only v[0] is read */
    nsa_tensor gate;              /* the weights of the branches */
    const nsa_phi *phi_k;         /* phi of the keys, the same at every call; not NULL */
    const nsa_phi *phi_v;         /* phi of the values, the same at every call; not NULL */
    nsa_tensor o;                 /* out */
    nsa_tensor slc_idx;           /* out; data may be NULL */
} nsa_cache_args;

/* Bytes that nsa_prefill needs. They grow with the lengths that the sequences will have: ask before each call, or once
 * for the longest. With CUDA they grow with what the page tables have room for. */
NSA_API nsa_status nsa_prefill_workspace(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_cache *cache,
                                         const nsa_cache_args *args, size_t *bytes);

/* Many new tokens per sequence; work is split over them. A call that fails appends nothing. */
NSA_API nsa_status nsa_prefill(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_cache *cache,
                               const nsa_cache_args *args, void *workspace, size_t workspace_bytes, nsa_stream stream);

/* Bytes that nsa_decode needs; as nsa_prefill_workspace. */
NSA_API nsa_status nsa_decode_workspace(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_cache *cache,
                                        const nsa_cache_args *args, size_t *bytes);

/* One new token per sequence or a few (drafts). The results are those of nsa_prefill. */
NSA_API nsa_status nsa_decode(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_cache *cache,
                              const nsa_cache_args *args, void *workspace, size_t workspace_bytes, nsa_stream stream);

#ifdef __cplusplus
}
#endif

#endif /* NSA_H */
