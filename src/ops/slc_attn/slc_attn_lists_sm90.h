/*
 * From tokens and the blocks they have selected to blocks and their tokens: what block-major kernels of slc_attn for
 * Hopper walk. Equations: ops/slc_attn/slc_attn.h.
 */
#ifndef NSA_OPS_SLC_ATTN_LISTS_SM90_H
#define NSA_OPS_SLC_ATTN_LISTS_SM90_H

#include "cuda/simt.h"

enum {
    OWNED = 1024, /* lists that are made together */
    SEGMENTS = 64 /* of a list, made side by side, at most */
};

/* The part of a list that one block of threads does. */
typedef struct slc_item {
    int32_t list, first, n; /* tokens first .. first + n - 1 of the list */
    int32_t part;           /* number among the items of all lists that have several; -1: it is the whole list */
} slc_item;

/* A list for each (kv head, selection block), of tokens of the round: list kv_head * n_blocks + number of the block,
 * where blocks are numbered through all sequences as find_tile has it. */
typedef struct slc_lists {
    int64_t n_blocks, n_lists;
    int64_t room;    /* of tokens */
    int32_t *tokens; /* rows of their sequence */
    int64_t *begin;  /* [n_lists] in tokens */
    int32_t *count;  /* [n_lists] */
    int32_t n_segments;
    int32_t *segments;    /* [n_segments][n_lists]: tokens of each; then where it begins in the list */
    int32_t *parts_begin; /* [n_lists] of those with more than one item */
    int32_t *places; /* [kv head][token of the round][entry of slc_idx]: where in tokens it lies; -1: it is no block
                        that the token sees, or one that an entry before has named */

    int32_t item_tokens; /* of an item at most */
    int64_t max_items;
    int32_t *n_items; /* [1] */
    slc_item *items;  /* [max_items] */
} slc_lists;

/* Packed rows of the batch. */
typedef struct slc_round {
    int64_t first, n;
} slc_round;

/* What lists are made of. */
typedef struct slc_listing {
    nsa_config cfg;
    simt_seqs seqs;
    nsa_tensor slc_idx;
    slc_round round;
    bool empty_items; /* a block without tokens has an item, too */
    slc_lists lists;
} slc_listing;

NSA_LAUNCH launch_slc_lists(const slc_listing *p, nsa_stream stream);

#endif
