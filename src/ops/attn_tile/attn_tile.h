/*
 * The tile that the fast drivers of cmp_attn, slc_attn, win_attn and select share: online softmax over blocks of keys
 * for the heads of some query tokens, and its backward. The branches differ in which blocks they walk and in the
 * interval of keys that a token sees; all else is here.
 *
 * A tile serves one kv head of one sequence. Its rows are (token, head) pairs, the group's heads of a token side by
 * side; `picked` tokens are at work together, so that many rows share a block of keys whatever the group. Keys are the
 * lanes of scores, channels those of values; the small operands q, p, ds are read where they lie.
 *
 *     forward    S [rows][keys] = Q K^T                  O  [rows][d_v]  = keep O + P V
 *     backward   S = Q K^T   dP = dO V^T                 dQ [rows][d_qk] += dS K
 *                                                        dK [keys][d_qk] += dS^T Q      dV [keys][d_v] += P^T dO
 *
 * Backward makes P once for all three gradients. dQ is the tile's own; dK and dV are sums over tiles, which take turns
 * at each block of keys in the order of their tokens. So sums depend on shapes alone, not on the number of threads, and
 * a row's result takes no notice of the rows beside it: it is the same in every tile, batch and chunk.
 *
 * Where threads outnumber tiles, as in decoding, `members` of them share one: each makes the scores of some blocks,
 * then, when all are there, the softmax of every row and some columns of O. No sum is split, so the bits are the same.
 *
 * What a row does not see weighs 0, but 0 * NaN is NaN: where a block is masked in part and holds a NaN or an infinity,
 * the products are taken token by token (key by key), with zeros for what is not seen.
 */
#ifndef NSA_OPS_ATTN_TILE_H
#define NSA_OPS_ATTN_TILE_H

#include "ops/attn_tile/key_blocks.h"

enum { TILE_ROWS = 64 }; /* rows at work together: 64 by 64 scores stay in the first-level cache */

typedef struct attn_tile attn_tile;

/* Lets the tile's tokens attend to the blocks of keys that they see. extra is the thread's own. */
typedef void tile_walk_fn(attn_tile *t, void *extra);

/* Takes up a tile that has made its o and lse, or in a pass of scores only those, and has kept its scores. */
typedef void tile_finish_fn(const attn_tile *t, void *extra);

typedef struct tile_run {
    const attn_problem *p;
    tile_pass pass;
    visible_fn *visible;
    int64_t period; /* of key blocks */
    int64_t tokens; /* of a tile, at most */
    tile_walk_fn *walk;
    tile_finish_fn *finish; /* NULL: scores are not kept */
    size_t extra_bytes;     /* per thread */
    int64_t token_blocks;   /* that a token attends to, at most; 0: all */
} tile_run;

/* What tile_attend does: all, or in a tile that is shared first the one and then the other. */
typedef enum tile_step { STEP_ALL, STEP_SCORES, STEP_VALUES } tile_step;

struct attn_tile {
    const attn_problem *p;
    const tile_run *run;
    const key_blocks *keys;
    const simd_attn *attn;
    float scale;
    int64_t group;
    int64_t ld_q, ld_do, ld_s; /* units, units, floats */

    int32_t s, head; /* sequence, kv head */
    seq seq;
    rows k, v;

    int64_t first, n_tokens; /* query rows of the sequence */
    _Atomic int64_t *turn,
        *turn_before;          /* backward: blocks below are done, by this tile and the one before (or NULL) */
    span *sees;                /* [token] keys */
    float *max, *sum;          /* [row] forward: state of the softmax */
    float *lse, *delta, *gate; /* [row] backward */
    float *q, *d_o;            /* [row] units */
    float *acc;                /* [row][keys->ld_v] o; backward [row][keys->ld_k] dq */
    float *kept; /* [block - kept_from][row][KEY_BLOCK] scores, if run->finish; else [attended] if shared */
    int64_t kept_from, attended;
    tile_step step;
    int64_t member, members;   /* of those who share the tile */
    int64_t v_from, v_columns; /* its part of d_v */

    int64_t n_picked;
    int32_t *picked;                       /* tokens at work, as indices into the tile */
    int32_t *picked_rows;                  /* [row at work] the tile's row */
    const float *q_rows, *do_rows;         /* backward: q and d_o of the rows at work, side by side */
    float *q_apart, *do_apart;             /* [row at work] copies, where they do not lie so */
    float *q_lanes, *scores_t;             /* keys not packed: [unit], [key] of the rows at work, padded */
    float *q_pairs, *do_pairs;             /* [row at work/2] pairs, as keys->k_rows and v_rows */
    float *row_lse, *row_delta, *row_gate; /* [row at work] */
    simd_span *spans;                      /* [row at work] columns of the block */
    float *keep;                           /* [row at work] */
    float *scores, *dp;                    /* [row at work][ld_s] */
    float *prob, *ds, *ds_t;               /* units, ld_s apart */

    float *dk, *dv; /* backward: [kv head][block number][lanes][ld_k], [..][ld_v] sums of the whole call */

    simd_ahead ahead[2]; /* keys and values of the block after this one */
    char *own_block;     /* keys->bytes */
    float *scratch;      /* of packing, and careful products */
};

/* Tokens that can be picked together. */
int64_t tile_lane_tokens(const attn_problem *p);

/* Takes what the run needs from ws and, unless ws counts, walks all tiles. */
void tile_run_all(const tile_run *run, arena *ws);

/* The tile is of this sequence and kv head; and of n of its tokens, from `first` on: loads their rows. */
void tile_enter(attn_tile *t, int32_t s, int32_t head);
void tile_load(attn_tile *t, int64_t first, int64_t n);

/* Puts n tokens of the tile to work, at most tile_lane_tokens: list[0 .. n-1], ascending indices, or (NULL) from `from`
 * on. */
void tile_pick(attn_tile *t, const int32_t *list, int64_t from, int64_t n);

/* Those at work attend to the block, while `next` (or -1) is fetched, the block that will be wanted after it. */
void tile_attend(attn_tile *t, int64_t block, int64_t next);

/* Before a block's first tile_attend in backward: waits until the tiles before this one, of the same sequence and kv
 * head, are done with it and all before it. Blocks are walked upwards. */
void tile_wait_turn(attn_tile *t, int64_t block);

/* After its last. */
void tile_pass_turn(attn_tile *t, int64_t block);

/* A query tensor's row of the tile's i-th token and the h-th head of the group. */
static inline void *tile_query_at(const attn_tile *t, const nsa_tensor *x, int64_t i, int64_t h)
{
    return tensor_at(x, t->s, t->seq.q0, t->first + i, t->head * t->group + h);
}

/* Position of the tile's i-th token. */
static inline int64_t tile_position(const attn_tile *t, int64_t i)
{
    return t->first + i + t->seq.t_k - t->seq.t_q;
}

/* Scores of row r with the keys of a block, and how many rows the tile has kept. */
static inline const float *tile_kept(const attn_tile *t, int64_t block, int64_t r)
{
    return t->kept + ((block - t->kept_from) * t->n_tokens * t->group + r) * KEY_BLOCK;
}

/* What the tile takes: no f64 tensors, and a context that is not the oracle's. */
bool tile_supports(const attn_problem *p);

/* The drivers of branches where a token sees one interval of keys. */
void interval_forward(const attn_problem *p, arena *ws, visible_fn *visible);
void interval_backward(const attn_problem *p, arena *ws, visible_fn *visible);

/* Forward, or (pass) its scores alone, then finish for each tile. */
void interval_finish(const attn_problem *p, arena *ws, tile_pass pass, visible_fn *visible, tile_finish_fn *finish,
                     size_t extra_bytes);

#endif
