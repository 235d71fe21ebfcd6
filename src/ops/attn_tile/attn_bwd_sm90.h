/*
 * Backward of attention over an interval of keys, for Hopper: what attn_bwd_sm90.c and .cu know of each other.
 *
 * A key tile is `keys` keys of a kv head: 128, of d 256 64. A row tile is `tokens` tokens times `heads` query heads;
 * `parts` of them make up a group. Tiles never cross a sequence and are numbered as core/rows.h numbers them.
 */
#ifndef NSA_OPS_ATTN_BWD_SM90_H
#define NSA_OPS_ATTN_BWD_SM90_H

#include "cuda/tensor_map_sm90.h"
#include "ops/attn_tile/attn_simt.h"

enum { BWD_ROWS = 64 };

/* Of the rows of a tile. */
typedef struct bwd_stats {
    float lse[BWD_ROWS];                   /* in log2, less log2 |gate|; infinity: no probability is above 0 */
    float delta[BWD_ROWS], sign[BWD_ROWS]; /* delta times scale, before the gate; the gate's sign */
    int32_t first;                         /* the first key tile that it sees; they add to dq in rising order */
    int32_t plain;                         /* all rows are there, their gates not below 0, their d_o finite */
    int32_t unused[2];                     /* whole 16 bytes */
} bwd_stats;

typedef struct attn_bwd_sm90 {
    attn_simt a;   /* without delta */
    nsa_tensor dq; /* float32 that sums are added to: a.dq itself, or packed in the workspace */
    bool add_dq;

    int32_t keys, heads, tokens, parts;
    int32_t q_tiles, k_tiles; /* at most */
    int32_t chunk, n_chunks;  /* row tiles of a walk's piece, and pieces of the longest walk */
    int32_t period;           /* walks are at the same row tile, modulo this, at the same time */

    bwd_stats *stats; /* [q_tiles][kv head][part] */
    float *sums;      /* [k_tiles][kv head]: dk and dv, as registers hold them */
    uint32_t *turn;   /* [q_tiles][kv head][part]: key tiles that have added to dq */
    uint32_t *k_turn; /* [k_tiles][kv head]: pieces of its walk that have added to sums */
    uint32_t *ticket, *unsound;
    size_t cleared; /* bytes from turn on, to the end of unsound */
} attn_bwd_sm90;

typedef struct attn_bwd_maps {
    CUtensorMap q, d_o, k, v, dq, dq_token; /* dq_token: boxes of one token */
} attn_bwd_maps;

/* In this order. */
NSA_LAUNCH launch_attn_bwd_rows(const attn_bwd_sm90 *p, nsa_stream stream);
NSA_LAUNCH launch_attn_bwd_walks(const attn_bwd_sm90 *p, const attn_bwd_maps *maps, nsa_stream stream);
NSA_LAUNCH launch_attn_bwd_192_walks(const attn_bwd_sm90 *p, const attn_bwd_maps *maps, nsa_stream stream);
NSA_LAUNCH launch_attn_bwd_256_walks(const attn_bwd_sm90 *p, const attn_bwd_maps *maps, nsa_stream stream);
NSA_LAUNCH launch_attn_bwd_results(const attn_bwd_sm90 *p, nsa_stream stream);

#endif
