/*
 * Keys and values as the products of simd.h take them: blocks of at most KEY_BLOCK keys, each packed in the forms that
 * a pass multiplies by. Units are floats, or pairs of bf16 (simd.h); `pack` elements in each.
 *
 *     k_lanes  [d_qk/pack][lanes]     B of s = q k^T
 *     v_lanes  [d_v/pack][lanes]      B of dp = do v^T        (backward)
 *     k_rows   [lanes/pack][ld_k]     B of dq += ds k         (backward)
 *     v_rows   [lanes/pack][ld_v]     B of o += p v           (forward)
 *
 * Where several tiles of queries read a block, all are packed ahead. Else it is not worth while (decoding): keys and
 * values are read where they lie if that is as units, or copied, and of keys that is the A of s^T = k q^T:
 *
 *     k_units  [lanes][ld_units]
 *
 * Bounds between blocks are multiples of `period` and of KEY_BLOCK within each period, less `skip`: of the branch, not
 * of a tile or chunk. Compressed keys lie in a cache's pages after page_skip others (core/rows.h); as many are left out
 * of the first block of cmp, so that a block does not lie in two pages.
 */
#ifndef NSA_OPS_KEY_BLOCKS_H
#define NSA_OPS_KEY_BLOCKS_H

#include "ops/attn_tile/attn.h"

enum { KEY_BLOCK = 64 };

typedef struct span {
    int64_t lo, hi; /* lo .. hi-1 */
} span;

/* The keys that a token at position t sees, were it not for a selection. Neither end falls as t grows. */
typedef span visible_fn(const nsa_config *cfg, int64_t t);

typedef enum tile_pass { TILE_FORWARD, TILE_SCORES, TILE_BACKWARD } tile_pass;

/* The blocks of a sequence that its queries see: lo .. hi-1; packed ahead they have the numbers start .. */
typedef struct seq_blocks {
    int64_t start, lo, hi;
} seq_blocks;

typedef struct key_blocks {
    const attn_problem *p;
    const simd_attn *attn;
    tile_pass pass;
    visible_fn *visible;
    int64_t period, per_period; /* keys, blocks */
    int64_t skip;
    int64_t lanes;
    int64_t units_qk, units_v;             /* of a row */
    int64_t ld_k, ld_v;                    /* of rows: at least a multiple of 2*SIMD_PAD */
    size_t v_lanes, k_rows, v_rows, bytes; /* offsets in a block, and its size; k_lanes is at 0 */
    seq_blocks *of_seq;                    /* [n_seqs] */
    int64_t n_blocks;                      /* of all sequences */
    bool ahead;                            /* all blocks are packed before any is used: */
    char *packed;                          /* [kv head][n_blocks] */
} key_blocks;

typedef struct key_block {
    int64_t first, n;                                           /* keys */
    const float *k_lanes, *v_lanes, *k_rows, *v_rows, *k_units; /* NULL: not in this form */
    int64_t ld_v, ld_units;                                     /* of v_rows and k_units */
} key_block;

/* The operands that p runs on: pairs of bf16 if all of q, k, v (and d_o) are bf16 and the set has them, else floats. */
const simd_attn *attn_operands(const attn_problem *p);

/* Takes what is needed from ws. */
key_blocks key_blocks_carve(const attn_problem *p, tile_pass pass, visible_fn *visible, int64_t period, bool ahead,
                            arena *ws);

static inline int64_t block_of_key(const key_blocks *kb, int64_t key)
{
    const int64_t i = key + kb->skip;
    return i / kb->period * kb->per_period + i % kb->period / KEY_BLOCK;
}

/* Below 0 for the first block where there is a skip. */
static inline int64_t first_key(const key_blocks *kb, int64_t block)
{
    return block / kb->per_period * kb->period + block % kb->per_period * KEY_BLOCK - kb->skip;
}

static inline int64_t keys_in_block(const key_blocks *kb, int64_t block)
{
    return kb->period - block % kb->per_period * KEY_BLOCK < KEY_BLOCK ? kb->period - block % kb->per_period * KEY_BLOCK
                                                                       : KEY_BLOCK;
}

/* The keys of a sequence that are in blocks, and those blocks: in backward all keys, else those that its queries see.
 */
span key_blocks_keys(const key_blocks *kb, int32_t s);
seq_blocks key_blocks_seen(const key_blocks *kb, int32_t s);

/* Finds the sequence and block with a number below n_blocks. */
void key_blocks_find(const key_blocks *kb, int64_t number, int32_t *s, int64_t *block);

/* Packs ahead the i-th block of n_blocks * n_heads_kv. scratch: lanes rows as long as the longer of ld_k and ld_v. */
void key_blocks_pack(const key_blocks *kb, int64_t i, float *scratch);

/* What is wanted of a block that is not packed ahead: keys or not, so many columns of values. */
typedef struct key_parts {
    bool keys;
    int64_t columns;
} key_parts;

/* Block b of a sequence and kv head, whose rows are k and v: packed ahead, or as they lie, or now in `own`
 * (kb->bytes). */
key_block key_block_get(const key_blocks *kb, int32_t s, int32_t head, const rows *k, const rows *v, int64_t b,
                        key_parts wanted, char *own, float *scratch);

/* Its memory as far as that is in one piece, of the keys and of the values: packed ahead, or as rows. Nothing if there
 * is no such block. */
void key_block_ahead(const key_blocks *kb, int32_t s, int32_t head, const rows *k, const rows *v, int64_t b,
                     simd_ahead ahead[2]);

/* A row of n elements as units, zeros up to `units` of them. */
void load_units(const nsa_ctx *ctx, const simd_attn *attn, float *y, const void *x, nsa_dtype dtype, int64_t n,
                int64_t units);

#endif
