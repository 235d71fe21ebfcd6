/*
 * The tile that the fast drivers of cmp_attn, slc_attn and win_attn share: online softmax over blocks of keys for the
 * heads of some query tokens, in float32, and its backward. The branches differ in which blocks they walk and in the
 * interval of keys that a token sees; all else is here.
 *
 * A tile serves one kv head of one sequence. Its rows are (token, head) pairs, the group's heads of a token side by
 * side. Forward and the dq pass keep scores as [key][row]: K is read as it lies in memory, nothing is transposed per
 * key block, and the softmax runs down columns, many rows abreast. For dk and dv the key block is transposed once and
 * stays while query rows stream past it.
 *
 *     forward   S^T [keys][rows] = K Q^T                          O  [rows][d_v]  += P V
 *     dq        S^T = K Q^T, dP^T = V dO'^T                       dQ [rows][d_qk] += dS K
 *     dk, dv    S [rows][keys] = Q K^T, dP = dO' V^T              dK [keys][d_qk] += dS^T Q, dV [keys][d_v] += P^T dO'
 *
 * Both backward passes compute P anew. No two threads add to the same gradient, so there are no atomics, and no sum
 * depends on their number. The bounds between key blocks depend on the branch alone, and a row's sums take no notice of
 * the rows beside it: its result is the same in every tile, batch and chunk.
 *
 * What a row does not see weighs 0, but 0 * NaN is NaN: where a block is masked in part and holds a NaN or an infinity,
 * the products are taken token by token (key by key), each over the span that it sees.
 */
#ifndef NSA_OPS_ATTN_TILE_H
#define NSA_OPS_ATTN_TILE_H

#include "ops/attn_tile/attn.h"

enum {
    TILE_ROWS = 64, /* rows abreast: 64 rows by 64 keys of scores stay in the first-level cache */
    KEY_BLOCK = 64
};

typedef struct span {
    int64_t lo, hi; /* lo .. hi-1 */
} span;

/* The keys that a token at position t sees, were it not for a selection. Neither end falls as t grows. */
typedef span visible_fn(const nsa_config *cfg, int64_t t);

typedef enum tile_pass { TILE_FORWARD, TILE_DQ, TILE_DKV } tile_pass;

/* Rows of tile arrays are padded for the kernels of simd.h: ld_qk, ld_v floats, ld_s for those whose columns are lanes
 * (rows, in the dk dv pass keys). */
typedef struct attn_tile {
    const attn_problem *p;
    tile_pass pass;
    visible_fn *visible;
    float scale;
    int64_t group;
    int64_t ld_qk, ld_v, ld_s;

    int32_t s, head; /* sequence, kv head */
    seq seq;
    rows k, v;

    int64_t n_tokens;
    int32_t *token;     /* query row in the sequence, ascending */
    span *sees;         /* [token] keys */
    float *q, *d_o;     /* [row][ld_qk], [row][ld_v]; d_o has been multiplied by the gate */
    float *max, *sum;   /* [row] state of the softmax */
    float *lse, *delta; /* [row] */
    float *o, *dq;      /* [row][ld_v], [row][ld_qk] sums */
    float *all_delta;   /* [total_q][n_heads_q]: the dq pass leaves it for the dk dv pass */

    int64_t n_picked;
    int32_t *picked;            /* tokens at work, as indices into the tile; row h of the i-th is lane i*group + h */
    int32_t *picked_rows;       /* [lane] */
    float *q_lanes, *d_o_lanes; /* [d_qk][ld_s], [d_v][ld_s] */
    float *max_lanes, *sum_lanes, *keep_lanes; /* [lane] */
    float *lse_lanes, *delta_lanes;            /* [lane] */

    float *scores, *dp;       /* [key][ld_s], in the dk dv pass [row][ld_s] */
    float *k_copy, *v_copy;   /* [key][ld_qk], [key][ld_v], for rows that are not read in place */
    float *k_lanes, *v_lanes; /* [d_qk][ld_s], [d_v][ld_s]: keys as lanes */
    float *dk, *dv;           /* [key][ld_qk], [key][ld_v] sums */
    float *row;               /* [max(ld_qk, ld_v)] */
    span *keys_of;            /* [picked token]: what it sees of the key block */
    span *lanes_of;           /* [key]: the rows that see it */
} attn_tile;

/* Tokens that can be picked together. */
int64_t tile_lane_tokens(const attn_problem *p);

/* One unit of a pass's work; extra is the thread's own. */
typedef void tile_unit_fn(attn_tile *t, int64_t unit, const void *shared, void *extra);

typedef struct tile_run {
    const attn_problem *p;
    tile_pass pass;
    visible_fn *visible;
    int64_t max_tokens; /* of a tile */
    float *all_delta;   /* backward */
    int64_t units;
    tile_unit_fn *unit;
    const void *shared;
    size_t extra_bytes; /* per thread */
} tile_run;

/* Takes a tile per thread from ws and, unless ws counts, does all units, in order as far as threads allow. */
void tile_run_units(const tile_run *run, arena *ws);

/* Goes to a sequence and kv head. */
void tile_enter(attn_tile *t, int32_t s, int32_t head);

/* Takes n tokens, those listed or (NULL) from `first` on, loads what the pass reads of them and clears their sums. */
void tile_load(attn_tile *t, const int32_t *list, int64_t first, int64_t n);

/* Forward and dq. Puts n tokens of the tile to work, at most tile_lane_tokens, by ascending index or (NULL) the first
 * n; lets them attend to keys k0 .. k0 + n - 1, n <= KEY_BLOCK; puts their state back. */
void tile_pick(attn_tile *t, const int32_t *list, int64_t n);
void tile_attend(attn_tile *t, int64_t k0, int64_t n);
void tile_unpick(attn_tile *t);

/* Forward: o and lse of the tile's tokens. dq: dq. */
void tile_store(const attn_tile *t);

/* dk, dv of the keys k0 .. k0 + n - 1: take the keys, add what each load of tokens gives, store. */
void tile_load_keys(attn_tile *t, int64_t k0, int64_t n);
void tile_attend_keys(attn_tile *t, int64_t k0, int64_t n);
void tile_store_keys(const attn_tile *t, int64_t k0, int64_t n);

/* What the tile takes: no f64 tensors, and a context that is not the oracle's. */
bool tile_supports(const attn_problem *p);

/* The drivers of branches where a token sees one interval of keys. */
void interval_forward(const attn_problem *p, arena *ws, visible_fn *visible);
void interval_backward(const attn_problem *p, arena *ws, visible_fn *visible);

#endif
