/*
 * Attention on Hopper's tensor cores: bf16, d_qk/d_v of 64, 128, 192/128 or 256, up to 128 heads in a group. Equations:
 * ops/attn_tile/attn.h.
 *
 *     forward of cmp and win    attn_fwd_sm90.cu
 *     their backward            attn_bwd_sm90.h; the same d, any group
 */
#ifndef NSA_OPS_ATTN_SM90_H
#define NSA_OPS_ATTN_SM90_H

#include "cuda/simt.h"

enum {
    FWD_ROWS = 128,   /* of a tile of the forward pass: (token, head of the group) */
    MAX_GATED_D = 128 /* d_v for which there are registers for the other branches' rows */
};

/* Zeroed before the first launch. */
typedef struct attn_fwd_state {
    unsigned long long next_tile[2]; /* of the launch, and of that which does tiles again */
    int32_t any_again;
} attn_fwd_state;

/* The gated sum of the branches, made where win's o is: gate.data may be NULL. */
typedef struct attn_gates {
    nsa_tensor gate, o_cmp, o_slc, o;
} attn_gates;

typedef struct attn_fwd_sm90 {
    simt_config cfg;
    int32_t branch;
    simt_seqs seqs;
    nsa_tensor q, k, v, o, lse; /* o.data may be NULL: only the gated sum is wanted */
    attn_gates gates;
    int32_t tile_tokens;
    int64_t n_tiles; /* of a kv head: numbers of tiles, of which some are not used */
    attn_fwd_state *state;
    unsigned char *again; /* [n_heads_kv][n_tiles]: tiles with a result that is not finite */
} attn_fwd_sm90;

/* Clears state and again, which lie together, does all tiles, and does some again. */
NSA_LAUNCH launch_attn_fwd_sm90(const attn_fwd_sm90 *p, nsa_stream stream);

#endif
