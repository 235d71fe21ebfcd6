/*
 * The backward of slc_attn for Hopper: what its kernels and their host side share.
 *
 *     values    slc_attn_dq_sm90.cu       of each (token, head)
 *     lists     slc_attn_lists_sm90.cu    the tokens that have selected a block, in rising order
 *     dk, dv    slc_attn_dkdv_sm90.cu     a block walks its list, and leaves dS of each (token, block)
 *     dq        slc_attn_dq_sm90.cu       a token walks the blocks that it has selected: one product of dS and k
 *
 * dS is what q, k, v and dO have to be multiplied for once only: 2 KB for 16 heads of a token and a block, where k and
 * v of the block are 32. So that it does not grow with the batch, tokens come in rounds: lists, dkdv and dq of some
 * tokens, then of the next. With more than one, dk and dv are summed in float32 in between.
 */
#ifndef NSA_OPS_SLC_ATTN_BWD_SM90_H
#define NSA_OPS_SLC_ATTN_BWD_SM90_H

#include "cuda/tensor_map_sm90.h"
#include "ops/attn_tile/attn_simt.h"
#include "ops/slc_attn/slc_attn_lists_sm90.h"

enum { KEYS = 64 /* of a block that are worked on together: rows of a product */ };
enum { HEADS = 16 /* of a token that dS is kept of together, where there are so many */ };

/* Of a (token, head): 16 bytes, which the copy engine can bring. */
typedef struct slc_values {
    float lse; /* in units of ln 2 */
    float delta, gate, unused;
} slc_values;

typedef struct slc_backward {
    attn_simt attn;     /* without delta */
    slc_values *values; /* [total_q][n_heads_q] */
    slc_round round;
    int32_t n_rounds;
    int64_t round_tokens; /* of each but the last */
    slc_lists lists;
    int32_t box_heads;  /* of the boxes of q and d_o by which dk and dv are made */
    int32_t n_tiles;    /* of KEYS keys in a block */
    int32_t units;      /* of HEADS heads in a group */
    int32_t unit_heads; /* HEADS, or a smaller group's: a power of two */
    uint16_t *ds;       /* bf16 [place][unit][n_tiles], each of unit_heads x KEYS: see slc_unit */
    float *parts;       /* [part][n_tiles]: dk [KEYS][d_qk], dv [KEYS][d_v] of an item */
    nsa_tensor dk, dv;  /* sums of several rounds */
} slc_backward;

/*
 * How dS of unit_heads heads and KEYS keys lies in memory: as the lanes of a warp have it in registers, so that stores
 * and loads are whole lines. Matrices of 8 heads x 8 keys: element (head, key) belongs to the lane
 * key%8 * head_pairs + head%8 / 2. For each 16 keys, a lane has as many pairs of heads (4 bytes) together as there are
 * matrices. A single head has halfwords in the place of pairs.
 */
typedef struct slc_unit {
    int32_t head_pairs; /* of 8 heads at most */
    int32_t matrices;   /* 8 keys further, then 8 heads further */
} slc_unit;

typedef struct slc_maps {
    CUtensorMap q, d_o, k, v;
} slc_maps;

/* Columns of a stage of dk and dv. */
static inline int32_t slc_stage_columns(const nsa_config *c)
{
    return c->d_qk > 128 ? 32 : 64;
}

NSA_LAUNCH launch_slc_values(const slc_backward *p, nsa_stream stream);
NSA_LAUNCH launch_slc_dkdv(const slc_backward *p, const slc_maps *maps, nsa_stream stream);
NSA_LAUNCH launch_slc_dq(const slc_backward *p, const slc_maps *maps, nsa_stream stream);
NSA_LAUNCH launch_slc_sums(const slc_backward *p, nsa_stream stream); /* of several rounds to dk and dv */

#endif
