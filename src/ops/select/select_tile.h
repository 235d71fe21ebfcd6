/* From the scores of a tile's tokens to their selected blocks, for whoever has made the scores: select, cmp_attn. */
#ifndef NSA_OPS_SELECT_TILE_H
#define NSA_OPS_SELECT_TILE_H

#include "ops/attn_tile/attn_tile.h"

/* The compressed blocks that position t sees: what cmp_attn attends to and select scores. */
span cmp_visible(const nsa_config *cfg, int64_t t);

/* Bytes that select_finish takes of `extra`. */
size_t select_extra_bytes(const attn_problem *p);

/* p->select of the tile's tokens. */
tile_finish_fn select_finish;

#endif
