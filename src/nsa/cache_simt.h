/*
 * The KV cache on CUDA: what its kernels and its host side share. Sequences' lengths are in their states, on the
 * device: kernels read them there, and the last one of a call writes the new ones.
 */
#ifndef NSA_NSA_CACHE_SIMT_H
#define NSA_NSA_CACHE_SIMT_H

#include "cuda/simt.h"
#include "nsa/cache_layout.h"

/* A call, without its queries. */
typedef struct cache_simt {
    simt_config cfg;
    bool shared_kv;
    int32_t element; /* bytes of one */
    int32_t n_seqs, max_new, page_size, pages_per_seq, n_pages;
    int64_t total;
    const int32_t *cu, *table;
    void *const *states;
    char *pages;
    cache_layout layout;
    nsa_tensor k[NSA_N_BRANCHES], v[NSA_N_BRANCHES];
} cache_simt;

/* Rows of a call's sequences, gathered into packed tensors: of sequence s from cu[s] on, rows of NSA_CMP from
 * cu[s]/cmp_stride on. */
typedef enum gathered {
    GATHER_CMP, /* all compressed rows */
    GATHER_SLC, /* all tokens */
    GATHER_WIN, /* the tokens that the new ones see: win_size - 1 old ones at most */
    GATHER_RAW  /* the tokens of the blocks that the new ones complete */
} gathered;

typedef struct gather_simt {
    gathered what;
    int64_t total; /* rows at most */
    const int32_t *cu;
    nsa_tensor k, v;
} gather_simt;

/* The arrays cu, [n_seqs + 1] each. */
typedef struct cache_cu {
    int32_t *all, *win, *raw; /* of GATHER_CMP and GATHER_SLC; of GATHER_WIN; of GATHER_RAW */
} cache_cu;

NSA_LAUNCH launch_cache_append(const cache_simt *p, nsa_stream stream); /* slc K and V of the new tokens, into pages */
NSA_LAUNCH launch_cache_cu(const cache_simt *p, const cache_cu *cu, nsa_stream stream);
NSA_LAUNCH launch_cache_gather(const cache_simt *p, const gather_simt *to, nsa_stream stream);
/* Compressed rows of GATHER_RAW, into pages. */
NSA_LAUNCH launch_cache_scatter(const cache_simt *p, const gather_simt *from, nsa_stream stream);
NSA_LAUNCH launch_cache_finish(const cache_simt *p,
                               nsa_stream stream); /* rings and lengths: after all that reads them */

NSA_LAUNCH launch_cache_reset(void *state, int64_t bytes, nsa_stream stream);
NSA_LAUNCH launch_cache_length(const void *state, int64_t *n_tokens, nsa_stream stream);
NSA_LAUNCH launch_cache_drop(void *state, int64_t bytes, int32_t max_draft, int64_t n_tokens, nsa_stream stream);

#endif
