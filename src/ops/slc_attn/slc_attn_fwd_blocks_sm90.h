/*
 * The forward of slc_attn for Hopper where groups are small, block-major: what its kernels and their host side share.
 * bf16, d 64 and 128, blocks of at most 64 keys.
 *
 *     lists      slc_attn_lists_sm90.cu         the tokens that have selected a block
 *     partials   slc_attn_fwd_blocks_sm90.cu    each block attends for the rows of its tokens
 *     o, lse     slc_attn_fwd_blocks_sm90.cu    a row puts the partials of its blocks together
 *
 * So that partials do not grow with the batch, heads and tokens come in rounds.
 */
#ifndef NSA_OPS_SLC_ATTN_FWD_BLOCKS_SM90_H
#define NSA_OPS_SLC_ATTN_FWD_BLOCKS_SM90_H

#include "ops/slc_attn/slc_attn_lists_sm90.h"
#include "ops/slc_attn/slc_attn_sm90.h"

enum { SLC_FWD_KEYS = 64 /* of a block, at most */, SLC_ITEM_ROWS = 512 /* (token, head) of an item */ };

/* Attention of a row to a block: o = scale * what is kept of it. */
typedef struct slc_partial {
    float lse; /* in units of ln 2 */
    float scale;
} slc_partial;

typedef struct slc_fwd_blocks {
    slc_fwd_sm90 attn; /* the heads of the round */
    slc_round round;
    slc_lists lists;
    uint16_t *o;           /* f16 [place][head of the group][d_v]: see channel_of */
    slc_partial *partials; /* [place][head of the group] */
} slc_fwd_blocks;

NSA_LAUNCH launch_slc_partials(const slc_fwd_blocks *p, nsa_stream stream);
NSA_LAUNCH launch_slc_combine(const slc_fwd_blocks *p, nsa_stream stream);

#endif
