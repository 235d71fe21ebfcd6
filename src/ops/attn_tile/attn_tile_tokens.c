/* What a tile takes from the tensors of its tokens, and which of them are at work. */
#include "ops/attn_tile/attn_tile.h"

#include <math.h>

void tile_enter(attn_tile *t, int32_t s, int32_t head)
{
    t->s = s;
    t->head = head;
    t->seq = seq_at(&t->p->seqs, s);
    t->k = rows_of(&t->p->k, s, head);
    t->v = rows_of(&t->p->v, s, head);
    const int64_t skipped = t->v_from * (int64_t)dtype_size(t->v.dtype);
    if (t->v.plain != NULL)
        t->v.plain += skipped;
    if (t->v.ring != NULL)
        t->v.ring += skipped;
    t->v.offset += skipped;
}

/* All rows of x, a query tensor; a token's rows are fetched while those of the ones before it are loaded. */
static void load_rows(const attn_tile *t, float *to, int64_t ld, const nsa_tensor *x, int64_t d)
{
    enum { AHEAD = 4 };
    const int64_t bytes = d * (int64_t)dtype_size(x->dtype);
    for (int64_t i = 0; i < t->n_tokens; i++)
        for (int64_t h = 0; h < t->group; h++) {
            if (i + AHEAD < t->n_tokens) {
                const char *later = tile_query_at(t, x, i + AHEAD, h);
                for (int64_t at = 0; at < bytes; at += SIMD_PAD_BYTES)
                    __builtin_prefetch(later + at);
            }
            load_units(t->p->ctx, t->attn, to + (i * t->group + h) * ld, tile_query_at(t, x, i, h), x->dtype, d, ld);
        }
}

/* delta = gate * (do . o): the diagonal of a product, by the kernel that makes dp, so that in a row with a single key,
 * where o is that key's v, dp - delta is 0. */
static void load_delta(attn_tile *t)
{
    const attn_problem *p = t->p;
    const int64_t n_rows = t->n_tokens * t->group, units = t->keys->units_v;
    for (int64_t r0 = 0; r0 < n_rows; r0 += SIMD_PAD) {
        const int64_t n = min_i64(SIMD_PAD, n_rows - r0);
        float *o = t->scratch, *o_lanes = o + SIMD_PAD * t->ld_do;
        float product[SIMD_PAD][SIMD_PAD];
        for (int64_t i = 0; i < n; i++) {
            const int64_t token = (r0 + i) / t->group, h = (r0 + i) % t->group;
            load_units(p->ctx, t->attn, o + i * t->ld_do, tile_query_at(t, &p->o, token, h), p->o.dtype, p->cfg->d_v,
                       t->ld_do);
        }
        p->ctx->simd->transpose(o_lanes, SIMD_PAD, o, t->ld_do, n, units);
        t->attn->product(&(simd_product){.c = product[0],
                                         .ldc = SIMD_PAD,
                                         .a = t->d_o + r0 * t->ld_do,
                                         .a_row = t->ld_do,
                                         .a_col = 1,
                                         .b = o_lanes,
                                         .ldb = SIMD_PAD,
                                         .m = n,
                                         .n = n,
                                         .k = units});
        for (int64_t i = 0; i < n; i++)
            t->delta[r0 + i] = t->gate[r0 + i] * product[i][i];
    }
}

static void load_gradient(attn_tile *t)
{
    const attn_problem *p = t->p;
    for (int64_t r = 0; r < t->n_tokens * t->group; r++) {
        const int64_t token = r / t->group, h = r % t->group;
        memcpy(&t->lse[r], tile_query_at(t, &p->lse, token, h), sizeof(float));
        t->gate[r] = p->gate.data == NULL
                         ? 1.0F
                         : (float)dtype_get(tile_query_at(t, &p->gate, token, h), p->gate.dtype, p->branch);
    }
    load_rows(t, t->d_o, t->ld_do, &p->d_o, p->cfg->d_v);
    load_delta(t);
    memset(t->acc, 0, (size_t)(t->n_tokens * t->group * t->keys->ld_k) * sizeof *t->acc);
}

void tile_load(attn_tile *t, int64_t first, int64_t n)
{
    t->first = first;
    t->n_tokens = n;
    t->n_picked = 0;
    load_rows(t, t->q, t->ld_q, &t->p->q, t->p->cfg->d_qk);
    for (int64_t i = 0; i < n; i++)
        t->sees[i] = t->run->visible(t->p->cfg, tile_position(t, i));
    if (t->run->finish != NULL)
        t->kept_from = t->keys->of_seq[t->s].lo;
    if (t->run->pass == TILE_FORWARD) {
        const int64_t n_rows = n * t->group;
        for (int64_t r = 0; r < n_rows; r++)
            t->max[r] = -INFINITY;
        memset(t->sum, 0, (size_t)n_rows * sizeof *t->sum);
        memset(t->acc, 0, (size_t)(n_rows * t->keys->ld_v) * sizeof *t->acc);
    } else if (t->run->pass == TILE_BACKWARD) {
        load_gradient(t);
    }
}

/* The rows at work of x [row][ld] side by side: where they lie, if they do and make whole units, else in `apart`, with
 * zeros after the last. */
static const float *side_by_side(const attn_tile *t, const float *x, int64_t ld, bool neighbours, float *apart)
{
    const int64_t token = t->group * ld;
    if (neighbours && t->n_picked * t->group % t->attn->pack == 0)
        return x + t->picked[0] * token;
    for (int64_t i = 0; i < t->n_picked; i++)
        memcpy(apart + i * token, x + t->picked[i] * token, (size_t)token * sizeof *x);
    memset(apart + t->n_picked * token, 0, (size_t)ld * sizeof *x);
    return apart;
}

static bool at_work_already(const attn_tile *t, const int32_t *list, int64_t from, int64_t n)
{
    bool same = n == t->n_picked;
    for (int64_t i = 0; same && i < n; i++)
        same = t->picked[i] == (list != NULL ? list[i] : (int32_t)(from + i));
    return same;
}

void tile_pick(attn_tile *t, const int32_t *list, int64_t from, int64_t n)
{
    const attn_problem *p = t->p;
    if (at_work_already(t, list, from, n))
        return;
    t->n_picked = n;
    for (int64_t i = 0; i < n; i++) {
        t->picked[i] = list != NULL ? list[i] : (int32_t)(from + i);
        for (int64_t h = 0; h < t->group; h++)
            t->picked_rows[i * t->group + h] = (int32_t)(t->picked[i] * t->group + h);
    }
    const int64_t m = n * t->group;
    if (!t->keys->ahead)
        p->ctx->simd->transpose(t->q_lanes, simd_pad(m), side_by_side(t, t->q, t->ld_q, list == NULL, t->q_apart),
                                t->ld_q, m, t->keys->units_qk);
    if (t->run->pass != TILE_BACKWARD)
        return;
    t->q_rows = side_by_side(t, t->q, t->ld_q, list == NULL, t->q_apart);
    t->do_rows = side_by_side(t, t->d_o, t->ld_do, list == NULL, t->do_apart);
    for (int64_t i = 0; i < m; i++) {
        t->row_lse[i] = t->lse[t->picked_rows[i]];
        t->row_delta[i] = t->delta[t->picked_rows[i]];
        t->row_gate[i] = t->gate[t->picked_rows[i]];
    }
    if (t->attn->pack > 1) {
        p->ctx->simd->pair_rows(t->q_pairs, t->keys->ld_k, t->q_rows, t->ld_q, m + m % 2, p->cfg->d_qk);
        p->ctx->simd->pair_rows(t->do_pairs, t->keys->ld_v, t->do_rows, t->ld_do, m + m % 2, p->cfg->d_v);
    }
}
