/* From a problem to what the kernels of slc_attn for Hopper take. */
#ifndef NSA_OPS_SLC_ATTN_SM90_ARGS_H
#define NSA_OPS_SLC_ATTN_SM90_ARGS_H

#include "ops/attn_tile/attn.h"
#include "ops/slc_attn/slc_attn_lists_sm90.h"
#include "ops/slc_attn/slc_attn_sm90.h"

slc_fwd_sm90 slc_fwd_sm90_of(const attn_problem *p);

/* Blocks that a token can have selected, and (token, block) pairs of a round, at most. */
int64_t slc_most_blocks(const attn_problem *p);
int64_t slc_lists_room(const attn_problem *p, int64_t round_tokens);

slc_lists slc_lists_take(const attn_problem *p, int64_t round_tokens, int64_t item_tokens, arena *ws);

/* Whether launch_slc_lists takes them: grids have room for 2^31 blocks of threads, and places are int32_t. */
bool slc_lists_fit(const slc_lists *x, const nsa_config *cfg);

#endif
