/*
 * The KV cache's memory. A page holds page_size tokens of one sequence, for each kv head in turn:
 *
 *     slc K [page_size][d_qk]   slc V [page_size][d_v]   k_cmp [page_size/stride][d_qk]   v_cmp [page_size/stride][d_v]
 *
 * A compressed row lives in the page where its block ends: what a full page holds depends on no token after it, so that
 * sequences which go different ways can share it. The state of a sequence is a header and, unless the
 * branches share K and V, for each kv head the rings (row of token t: t % rows)
 *
 *     raw K [cmp_block - 1 + max_draft][d_qk]   raw V [...][d_v]   win K [win_size - 1 + max_draft][d_qk]   win V
 * [...][d_v]
 *
 * A call reads the rings before it writes over them, so that they need not hold its new tokens; max_draft more rows
 * than the next token needs are what dropping can go back to. Branches that share K and V read them from the pages.
 *
 * C11 and CUDA C++ both read this file.
 */
#ifndef NSA_NSA_CACHE_LAYOUT_H
#define NSA_NSA_CACHE_LAYOUT_H

#include <stdint.h>

enum cache_part {
    CACHE_SLC_K,
    CACHE_SLC_V,
    CACHE_K_CMP,
    CACHE_V_CMP,
    CACHE_N_PAGE_PARTS,
    CACHE_RAW_K = CACHE_N_PAGE_PARTS,
    CACHE_RAW_V,
    CACHE_WIN_K,
    CACHE_WIN_V,
    CACHE_N_PARTS
};
typedef enum cache_part cache_part;

/* offset of a part of head h: h * head_bytes + part[...]; of pages up to CACHE_N_PAGE_PARTS, of states after that. */
typedef struct cache_layout {
    int64_t rows[CACHE_N_PARTS], offset[CACHE_N_PARTS];
    int64_t page_head_bytes, state_head_bytes;
    int64_t page_bytes, state_bytes;
} cache_layout;

/* At the start of a state. */
typedef struct cache_header {
    uint64_t magic;
    int64_t bytes;    /* of the state that it was made as: tells one of another configuration */
    int64_t length;   /* tokens held */
    int64_t longest;  /* the most it has ever held */
    uint32_t arrived; /* with CUDA, during a call: how many of the sequence's units of work have read what they read */
} cache_header;

/* "nsacache" in ASCII: tells a state from memory that nsa_cache_reset has never seen. */
#define CACHE_MAGIC UINT64_C(0x6568636163617367)

#endif
