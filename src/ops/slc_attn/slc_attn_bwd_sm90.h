/*
 * The backward of slc_attn for Hopper: what its kernels and their host side share.
 *
 *     values    slc_attn_dq_sm90.cu       of each (token, head)
 *     dq        slc_attn_dq_sm90.cu       a token walks the blocks that it has selected
 *     lists     slc_attn_lists_sm90.cu    the tokens that have selected a block, in rising order
 *     dk, dv    slc_attn_dkdv_sm90.cu     a block walks its list
 */
#ifndef NSA_OPS_SLC_ATTN_BWD_SM90_H
#define NSA_OPS_SLC_ATTN_BWD_SM90_H

#include "cuda/tensor_map_sm90.h"
#include "ops/attn_tile/attn_simt.h"

enum { KEYS = 64 /* of a block that are worked on together: rows of a product */ };

/* Of a (token, head): 16 bytes, which the copy engine can bring. */
typedef struct slc_values {
    float lse; /* in units of ln 2 */
    float delta, gate, unused;
} slc_values;

enum { SEGMENTS = 8 /* of a list, made side by side */ };

/* The part of a list that one block of threads does. */
typedef struct slc_item {
    int32_t list, first, n; /* tokens first .. first + n - 1 of the list */
    int32_t part;           /* where in parts its sums go; -1: it is the whole list, and they go to dk and dv */
} slc_item;

/* A list for each (kv head, selection block): list kv_head * n_blocks + number of the block, where blocks are numbered
 * through all sequences as find_tile has it. */
typedef struct slc_lists {
    int64_t n_blocks, n_lists;
    int64_t room;         /* of tokens */
    int32_t *tokens;      /* rows of their sequence */
    int64_t *begin;       /* [n_lists] in tokens */
    int32_t *count;       /* [n_lists] */
    int32_t *segments;    /* [n_lists][SEGMENTS]: tokens of each; then where it begins in the list */
    int32_t *parts_begin; /* [n_lists] of those with more than one item */

    int32_t item_tokens; /* of an item at most */
    int64_t max_items;
    int32_t *n_items; /* [1] */
    slc_item *items;  /* [max_items] */
} slc_lists;

typedef struct slc_backward {
    attn_simt attn;     /* without delta */
    slc_values *values; /* [total_q][n_heads_q] */
    slc_lists lists;
    int32_t box_heads; /* of the boxes of q and d_o by which dk and dv are made */
    int32_t n_tiles;   /* of KEYS keys in a block */
    float *parts;      /* [part][n_tiles]: dk [KEYS][d_qk], dv [KEYS][d_v] of an item */
} slc_backward;

typedef struct slc_maps {
    CUtensorMap q, d_o, k, v;
} slc_maps;

enum { DQ_HEADS = 16 /* of the boxes of q and d_o by which dq is made */ };

/* Columns of a stage of dk and dv. */
static inline int32_t slc_stage_columns(const nsa_config *c)
{
    return c->d_qk > 128 ? 32 : 64;
}

NSA_LAUNCH launch_slc_values(const slc_backward *p, nsa_stream stream);
NSA_LAUNCH launch_slc_dq(const slc_backward *p, const slc_maps *maps, nsa_stream stream);
NSA_LAUNCH launch_slc_lists(const slc_backward *p, nsa_stream stream);
NSA_LAUNCH launch_slc_dkdv(const slc_backward *p, const slc_maps *maps, nsa_stream stream);

#endif
