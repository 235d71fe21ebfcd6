/* The oracle of attention: the softmax over a list of keys. Which keys those are is what each X_ref.c says. */
#ifndef NSA_OPS_ATTN_REF_H
#define NSA_OPS_ATTN_REF_H

#include "ops/attn_tile/attn.h"

/* Token r of sequence s, at position t (negative: before the first key), for the heads of one kv head. */
typedef struct attn_row {
    int32_t s, kv_head;
    seq seq;
    int64_t r, t;
} attn_row;

/* A branch: how many key rows a sequence of t_k tokens has, and which of them a query row attends to. `keys` writes
 * their numbers, distinct, and returns how many. */
typedef struct attn_branch {
    int64_t (*n_keys)(const nsa_config *cfg, int64_t t_k);
    int64_t (*keys)(const attn_problem *p, const attn_row *row, int32_t *keys);
} attn_branch;

int64_t attn_n_tokens(const nsa_config *cfg, int64_t t_k); /* n_keys of a branch whose keys are the tokens: t_k */

void attn_ref_forward(const attn_problem *p, arena *ws, const attn_branch *branch);
void attn_ref_backward(const attn_problem *p, arena *ws, const attn_branch *branch);

bool attn_ref_supports(const attn_problem *p); /* always, on the CPU */

#endif
