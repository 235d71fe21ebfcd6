#include "ops/attn_tile/key_blocks.h"

const simd_attn *attn_operands(const attn_problem *p)
{
    const bool all_bf16 = p->q.dtype == NSA_BF16 && p->k.dtype == NSA_BF16 && p->v.dtype == NSA_BF16 &&
                          (p->d_o.data == NULL || p->d_o.dtype == NSA_BF16);
    const simd_kernels *simd = p->ctx->simd;
    return all_bf16 && simd->bf16.pack != 0 ? &simd->bf16 : &simd->f32;
}

void load_units(const nsa_ctx *ctx, const simd_attn *attn, float *y, const void *x, nsa_dtype dtype, int64_t n,
                int64_t units)
{
    if (attn->pack == 1)
        ctx->simd->load_row(y, x, dtype, n);
    else
        memcpy(y, x, (size_t)n * sizeof(uint16_t));
    const size_t elements = (size_t)(units * attn->pack), size = sizeof(float) / (size_t)attn->pack;
    memset((char *)y + (size_t)n * size, 0, (elements - (size_t)n) * size);
}

/* ---- Layout ------------------------------------------------------------------------------------------------------ */

static int64_t pad_rows(int64_t n)
{
    const int64_t pad = INT64_C(2) * SIMD_PAD;
    return (n + pad - 1) / pad * pad;
}

/* An odd number of cache lines, so that a column of a matrix spreads over all sets of the cache. */
static int64_t spread(int64_t n)
{
    return pad_rows(n) | SIMD_PAD;
}

span key_blocks_keys(const key_blocks *kb, int32_t s)
{
    const seq q = seq_at(&kb->p->seqs, s);
    const int64_t end = kb->visible(kb->p->cfg, q.t_k - 1).hi;
    if (kb->pass == TILE_BACKWARD)
        return (span){0, end};
    if (q.t_q == 0 || end == 0)
        return (span){0, 0};
    return (span){kb->visible(kb->p->cfg, max_i64(0, q.t_k - q.t_q)).lo, end};
}

seq_blocks key_blocks_seen(const key_blocks *kb, int32_t s)
{
    const span keys = key_blocks_keys(kb, s);
    if (keys.lo >= keys.hi)
        return (seq_blocks){0, 0, 0};
    return (seq_blocks){0, block_of_key(kb, keys.lo), block_of_key(kb, keys.hi - 1) + 1};
}

static size_t form_bytes(int64_t n_rows, int64_t ld)
{
    return (size_t)(n_rows * ld) * sizeof(float);
}

key_blocks key_blocks_carve(const attn_problem *p, tile_pass pass, visible_fn *visible, int64_t period, bool ahead,
                            arena *ws)
{
    const simd_attn *attn = attn_operands(p);
    key_blocks kb = {.p = p, .attn = attn, .pass = pass, .visible = visible, .period = period, .ahead = ahead};
    kb.per_period = (period + KEY_BLOCK - 1) / KEY_BLOCK;
    if (p->branch == NSA_CMP)
        kb.skip = (p->cfg->cmp_block / p->cfg->cmp_stride - 1) % KEY_BLOCK;
    kb.lanes = pad_rows(min_i64(period, KEY_BLOCK));
    kb.units_qk = (p->cfg->d_qk + attn->pack - 1) / attn->pack;
    kb.units_v = (p->cfg->d_v + attn->pack - 1) / attn->pack;
    kb.ld_k = spread(p->cfg->d_qk);
    kb.ld_v = spread(p->cfg->d_v);
    kb.v_lanes = form_bytes(ahead ? kb.units_qk : pad_rows(kb.units_qk), kb.lanes);
    kb.k_rows = kb.v_lanes + (pass == TILE_BACKWARD ? form_bytes(kb.units_v, kb.lanes) : 0);
    kb.v_rows = kb.k_rows + (pass == TILE_BACKWARD ? form_bytes(kb.lanes / attn->pack, kb.ld_k) : 0);
    kb.bytes = kb.v_rows + (pass == TILE_FORWARD ? form_bytes(kb.lanes / attn->pack, kb.ld_v) : 0);
    kb.of_seq = arena_take(ws, p->seqs.n, sizeof *kb.of_seq);
    for (int32_t i = 0; i < p->seqs.n; i++) {
        seq_blocks blocks = key_blocks_seen(&kb, i);
        blocks.start = kb.n_blocks;
        if (!arena_counts(ws))
            kb.of_seq[i] = blocks;
        kb.n_blocks += blocks.hi - blocks.lo;
    }
    if (ahead)
        kb.packed = arena_take(ws, i64_mul(kb.n_blocks, p->cfg->n_heads_kv), kb.bytes);
    return kb;
}

/* ---- Packing ----------------------------------------------------------------------------------------------------- */

/* A matrix of units. */
typedef struct units {
    const float *x;
    int64_t ld;
} units;

/* The rows where they lie, if that is as units, all of them valid, and the kernels may read as far as they do. */
static bool units_in_place(const key_blocks *kb, const rows *from, int64_t first, span valid, int64_t d, units *out)
{
    int64_t stride = 0;
    const bool whole = first >= valid.lo && first + kb->lanes <= valid.hi && d % (INT64_C(2) * SIMD_PAD) == 0;
    const bool as_units = from->dtype == (kb->attn->pack == 1 ? NSA_F32 : NSA_BF16);
    if (!whole || !as_units)
        return false;
    out->x = rows_run(from, first, kb->lanes, &stride);
    out->ld = stride / (int64_t)sizeof *out->x;
    return out->x != NULL && stride % (int64_t)sizeof *out->x == 0 && (uintptr_t)out->x % sizeof *out->x == 0;
}

/* The keys from `first` on, as many as there are lanes; zeros for those that are not valid. */
static void copy_units(const key_blocks *kb, const rows *from, int64_t first, span valid, int64_t d, float *to,
                       int64_t ld)
{
    for (int64_t j = 0; j < kb->lanes; j++) {
        if (first + j >= valid.lo && first + j < valid.hi)
            load_units(kb->p->ctx, kb->attn, to + j * ld, rows_at(from, first + j), from->dtype, d, ld);
        else
            memset(to + j * ld, 0, (size_t)ld * sizeof *to);
    }
}

/* In one form or both. */
static void pack(const key_blocks *kb, const rows *from, int64_t first, span valid, int64_t d, int64_t n_units,
                 float *lanes, float *pairs, int64_t ld, float *scratch)
{
    const simd_kernels *simd = kb->p->ctx->simd;
    units x;
    if (kb->attn->pack == 1 && pairs != NULL) { /* rows of floats are their own form */
        copy_units(kb, from, first, valid, d, pairs, ld);
        x = (units){pairs, ld};
    } else if (!units_in_place(kb, from, first, valid, d, &x)) {
        x = (units){scratch, pad_rows(n_units)};
        copy_units(kb, from, first, valid, d, scratch, x.ld);
    }
    if (lanes != NULL)
        simd->transpose(lanes, kb->lanes, x.x, x.ld, kb->lanes, n_units);
    if (pairs != NULL && kb->attn->pack > 1)
        simd->pair_rows(pairs, ld, x.x, x.ld, kb->lanes, d);
}

/* Those of the sequence, up to the end of block b. */
static span valid_keys(const key_blocks *kb, int32_t s, int64_t b)
{
    const span keys = key_blocks_keys(kb, s);
    return (span){keys.lo, min_i64(keys.hi, first_key(kb, b) + keys_in_block(kb, b))};
}

static float *form_at(char *block, size_t from, size_t to)
{
    return from == to ? NULL : (float *)(void *)(block + from);
}

static void pack_block(const key_blocks *kb, int32_t s, const rows *k, const rows *v, int64_t b, char *to,
                       float *scratch)
{
    const nsa_config *cfg = kb->p->cfg;
    const int64_t first = first_key(kb, b);
    const span valid = valid_keys(kb, s, b);
    pack(kb, k, first, valid, cfg->d_qk, kb->units_qk, form_at(to, 0, kb->v_lanes), form_at(to, kb->k_rows, kb->v_rows),
         kb->ld_k, scratch);
    if (kb->k_rows > kb->v_lanes || kb->bytes > kb->v_rows)
        pack(kb, v, first, valid, cfg->d_v, kb->units_v, form_at(to, kb->v_lanes, kb->k_rows),
             form_at(to, kb->v_rows, kb->bytes), kb->ld_v, scratch);
}

static char *packed_at(const key_blocks *kb, int32_t s, int32_t head, int64_t b)
{
    const int64_t number = kb->of_seq[s].start + b - kb->of_seq[s].lo;
    return kb->packed + (size_t)(head * kb->n_blocks + number) * kb->bytes;
}

void key_blocks_find(const key_blocks *kb, int64_t number, int32_t *s, int64_t *block)
{
    int32_t lo = 0, hi = kb->p->seqs.n; /* the last sequence that starts at or before the number */
    while (hi - lo > 1) {
        const int32_t mid = lo + (hi - lo) / 2;
        if (kb->of_seq[mid].start <= number)
            lo = mid;
        else
            hi = mid;
    }
    *s = lo;
    *block = number - kb->of_seq[lo].start + kb->of_seq[lo].lo;
}

void key_blocks_pack(const key_blocks *kb, int64_t i, float *scratch)
{
    const attn_problem *p = kb->p;
    const int32_t head = (int32_t)(i / kb->n_blocks);
    int32_t s;
    int64_t b;
    key_blocks_find(kb, i % kb->n_blocks, &s, &b);
    const rows k = rows_of(&p->k, s, head), v = rows_of(&p->v, s, head);
    pack_block(kb, s, &k, &v, b, packed_at(kb, s, head, b), scratch);
}

/* As far as the rows lie side by side. */
static simd_ahead rows_ahead(const key_blocks *kb, const rows *from, int64_t b, int64_t d)
{
    int64_t stride = 0;
    const int64_t n = keys_in_block(kb, b);
    const char *first = rows_run(from, first_key(kb, b), n, &stride);
    const int64_t row = d * (int64_t)dtype_size(from->dtype);
    return stride == row ? (simd_ahead){first, first + n * row} : (simd_ahead){NULL, NULL};
}

void key_block_ahead(const key_blocks *kb, int32_t s, int32_t head, const rows *k, const rows *v, int64_t b,
                     simd_ahead ahead[2])
{
    ahead[0] = ahead[1] = (simd_ahead){NULL, NULL};
    if (b < kb->of_seq[s].lo || b >= kb->of_seq[s].hi)
        return;
    if (kb->ahead) {
        const char *block = packed_at(kb, s, head, b);
        ahead[0] = (simd_ahead){block, block + kb->v_lanes};
        ahead[1] = (simd_ahead){block + kb->v_lanes, block + kb->bytes};
    } else {
        ahead[0] = rows_ahead(kb, k, b, kb->p->cfg->d_qk);
        ahead[1] = rows_ahead(kb, v, b, kb->p->cfg->d_v);
    }
}

static key_block packed_block(const key_blocks *kb, char *block)
{
    return (key_block){.k_lanes = form_at(block, 0, kb->v_lanes),
                       .v_lanes = form_at(block, kb->v_lanes, kb->k_rows),
                       .k_rows = form_at(block, kb->k_rows, kb->v_rows),
                       .v_rows = form_at(block, kb->v_rows, kb->bytes),
                       .ld_v = kb->ld_v};
}

/* Keys as units, values as rows. */
static key_block own_block(const key_blocks *kb, int32_t s, const rows *k, const rows *v, int64_t b, key_parts wanted,
                           char *own, float *scratch)
{
    const int64_t d_qk = kb->p->cfg->d_qk, d_v = wanted.columns;
    const int64_t first = first_key(kb, b);
    const span valid = valid_keys(kb, s, b);
    key_block block = {.ld_v = spread(d_v)};
    units x = {NULL, 0};
    if (wanted.keys && !units_in_place(kb, k, first, valid, d_qk, &x)) {
        x = (units){form_at(own, 0, kb->v_lanes), pad_rows(kb->units_qk)};
        copy_units(kb, k, first, valid, d_qk, form_at(own, 0, kb->v_lanes), x.ld);
    }
    block.k_units = x.x;
    block.ld_units = x.ld;
    float *v_rows = form_at(own, kb->v_rows, kb->bytes);
    if (v_rows == NULL || d_v == 0)
        return block;
    block.v_rows = v_rows;
    if (kb->attn->pack == 1 && units_in_place(kb, v, first, valid, d_v, &x) && x.ld == d_v) {
        block.v_rows = x.x;
        block.ld_v = x.ld;
    } else {
        pack(kb, v, first, valid, d_v, (d_v + kb->attn->pack - 1) / kb->attn->pack, NULL, v_rows, block.ld_v, scratch);
    }
    return block;
}

key_block key_block_get(const key_blocks *kb, int32_t s, int32_t head, const rows *k, const rows *v, int64_t b,
                        key_parts wanted, char *own, float *scratch)
{
    key_block block =
        kb->ahead ? packed_block(kb, packed_at(kb, s, head, b)) : own_block(kb, s, k, v, b, wanted, own, scratch);
    block.first = first_key(kb, b);
    block.n = keys_in_block(kb, b);
    return block;
}
