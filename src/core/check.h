/* Checks of batches and tensors: all that the host can see, before anything is written. */
#ifndef NSA_CORE_CHECK_H
#define NSA_CORE_CHECK_H

#include "core/status.h"

#include <stdbool.h>

nsa_status check_batch(const nsa_ctx *ctx, const nsa_batch *batch);
nsa_status check_batch_q(const nsa_ctx *ctx, const nsa_batch *batch); /* for ops that read one side only */
nsa_status check_batch_k(const nsa_ctx *ctx, const nsa_batch *batch);

/* What can be said of cu without reading it; the names are the caller's. */
nsa_status check_cu(const char *name, const char *total_name, const int32_t *cu, int32_t n_seqs, int64_t total);

/* cu[0 .. n_seqs] from 0, never falling, up to total. */
nsa_status check_cu_seqlens(const char *name, const char *total_name, const int32_t *cu, int32_t n_seqs, int64_t total);

/* The extent of a tensor: which tokens, heads, channels. */
typedef struct extent {
    int32_t n_seqs;
    int64_t total;      /* rows of a packed tensor */
    int64_t max_seqlen; /* rows of a sequence of a padded one */
    int32_t n_heads;
    int32_t d;
} extent;

extent extent_q(const nsa_config *cfg, const nsa_batch *batch, int32_t d); /* n_heads_q heads */
extent extent_k(const nsa_config *cfg, const nsa_batch *batch, int32_t d); /* n_heads_kv heads */
/* Compressed rows: as many as the sequences have, or where the host cannot see these as many as they can have. */
extent extent_cmp(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch, int32_t d);
extent extent_slc_idx(const nsa_config *cfg, const nsa_batch *batch);

/* name as the caller knows it ("args.q"). An output must not overlap itself. dtype -1: f32, bf16, f16 or f64. */
nsa_status check_input(const char *name, const nsa_tensor *t, extent e, int dtype);
nsa_status check_output(const char *name, const nsa_tensor *t, extent e, int dtype);

/* Outputs of one call must be distinct: the first two of n equal (and not NULL) pointers are an error. */
typedef struct named_output {
    const char *name;
    const void *data;
} named_output;

nsa_status check_distinct(const named_output *outputs, int n);

/* lse and gate: f32 (f64 if dtype is f64) and f32 or dtype. */
nsa_dtype lse_dtype(nsa_dtype dtype);
nsa_status check_gate(const char *name, const nsa_tensor *t, extent e, nsa_dtype dtype, bool output);

/* n_heads_kv and block sizes of cfg; writes nothing to phi. name: "args.phi". grad: the struct that takes gradients of
 * `of`. */
nsa_status check_phi(const char *name, const nsa_phi *phi, nsa_dtype tokens);
nsa_status check_dphi(const char *name, const nsa_phi *dphi, const nsa_phi *of);

#endif
