/*
 * Selection by tiles: the attention tile of cmp_attn, scores alone, and then for each token
 *
 *     p = exp(scale * s - lse) -> P += p over the heads -> score -> slc_idx
 *
 * A row with no more candidates than slc_topk takes them all and needs no scores.
 */
#include "ops/select/select_tile.h"
#include "ops/select/select.h"

span cmp_visible(const nsa_config *cfg, int64_t t)
{
    return (span){0, n_cmp_visible(cfg, t)};
}

typedef struct scratch {
    float *weight; /* [strides that P's blocks share with a selection block] */
    float *sum;    /* P: per_cmp - 1 zeros, the compressed blocks, zeros */
    float *score;  /* [n_slc]; NaN is -1 */
} scratch;

/* slc_block and cmp_block in strides. */
static int64_t per_slc(const nsa_config *cfg)
{
    return cfg->slc_block / cfg->cmp_stride;
}

static int64_t per_cmp(const nsa_config *cfg)
{
    return cfg->cmp_block / cfg->cmp_stride;
}

static scratch carve(const attn_problem *p, arena *a)
{
    const nsa_config *cfg = p->cfg;
    int64_t n_slc = 0;
    for (int32_t s = 0; s < p->seqs.n; s++)
        n_slc = max_i64(n_slc, n_slc_blocks(cfg, seq_at(&p->seqs, s).t_k));
    scratch x;
    x.weight = arena_take(a, per_slc(cfg) + per_cmp(cfg) - 1, sizeof *x.weight);
    x.sum = arena_take(a, per_cmp(cfg) - 1 + n_slc * per_slc(cfg) + SIMD_PAD, sizeof *x.sum);
    x.score = arena_take(a, n_slc, sizeof *x.score);
    return x;
}

size_t select_extra_bytes(const attn_problem *p)
{
    arena count = {.base = NULL};
    carve(p, &count);
    return count.peak;
}

/* P of the tile's i-th token. */
static void sum_heads(const attn_tile *t, int64_t i, int64_t n_slc, const scratch *x)
{
    const attn_problem *p = t->p;
    const int64_t before = per_cmp(p->cfg) - 1, visible = t->sees[i].hi;
    memset(x->sum, 0, (size_t)(before + n_slc * per_slc(p->cfg) + SIMD_PAD) * sizeof *x->sum);
    const int64_t end = visible == 0 ? 0 : block_of_key(t->keys, visible - 1) + 1;
    for (int64_t h = 0; h < t->group; h++) {
        const float *lse = tile_query_at(t, &p->lse, i, h);
        for (int64_t b = 0; b < end; b++) {
            const int64_t first = first_key(t->keys, b), from = max_i64(0, -first);
            p->ctx->simd->add_exp(x->sum + before + first + from, tile_kept(t, b, i * t->group + h) + from,
                                  min_i64(KEY_BLOCK, visible - first) - from, t->scale, *lse);
        }
    }
}

/* Equation 9 as a weighted sum over the compressed blocks that share tokens with block j. NaN goes below all. */
static float score_of(const nsa_config *cfg, const scratch *x, int64_t j)
{
    float score = 0.0F;
    for (int64_t e = 0; e < per_slc(cfg) + per_cmp(cfg) - 1; e++)
        score += x->weight[e] * x->sum[per_slc(cfg) * j + e];
    return score >= 0.0F ? score : -1.0F;
}

/* The largest score, or a bound below it, that at least k of the n reach: built bit by bit, since the bits of floats
 * that are not negative order like the numbers. k <= n. */
static float kth_score(const simd_kernels *simd, const float *score, int64_t n, int64_t k)
{
    if (simd->count_from(score, n, 0.0F) < k)
        return -1.0F;
    uint32_t bound = 0;
    for (uint32_t bit = 1U << 30; bit > 0; bit >>= 1) {
        const int64_t count = simd->count_from(score, n, bits_float(bound | bit));
        if (count >= k)
            bound |= bit;
        if (count == k)
            break;
    }
    return bits_float(bound);
}

/* More than slc_topk candidates: the forced ones at both ends, and of those between the highest scores. */
static void choose(const attn_tile *t, const float *score, int64_t cur, int32_t *out)
{
    const nsa_config *cfg = t->p->cfg;
    const int64_t from = cfg->slc_n_init, to = cur + 1 - cfg->slc_n_local;
    const int64_t n_free = cfg->slc_topk - cfg->slc_n_init - cfg->slc_n_local;
    const float bound = kth_score(t->p->ctx->simd, score + from, to - from, n_free);
    int64_t ties = n_free;
    for (int64_t j = from; j < to; j++)
        ties -= score[j] > bound;
    for (int64_t j = 0; j <= cur; j++) {
        const bool tie = score[j] == bound && ties > 0;
        const bool forced = j < from || j >= to;
        if (forced || score[j] > bound || tie) {
            *out++ = (int32_t)j;
            ties -= !forced && score[j] == bound;
        }
    }
}

/* Positions before it see no more blocks than are selected. */
static int64_t early(const nsa_config *cfg)
{
    return (int64_t)cfg->slc_topk * cfg->slc_block;
}

void select_finish(const attn_tile *t, void *extra)
{
    const nsa_config *cfg = t->p->cfg;
    arena own = {.base = extra};
    const scratch x = carve(t->p, &own);
    const int64_t n_weights = per_slc(cfg) + per_cmp(cfg) - 1;
    for (int64_t e = 0; e < n_weights; e++)
        x.weight[e] = (float)min_i64(min_i64(e + 1, n_weights - e), per_cmp(cfg));
    for (int64_t i = 0; i < t->n_tokens; i++) {
        int32_t *out = tensor_at(&t->p->select, t->s, t->seq.q0, t->first + i, t->head);
        const int64_t pos = tile_position(t, i), cur = pos < 0 ? -1 : pos / cfg->slc_block;
        if (pos < early(cfg)) {
            for (int64_t j = 0; j < cfg->slc_topk; j++)
                out[j] = j <= cur ? (int32_t)j : -1;
            continue;
        }
        sum_heads(t, i, cur + 1, &x);
        for (int64_t j = 0; j <= cur; j++)
            x.score[j] = score_of(cfg, &x, j);
        choose(t, x.score, cur, out);
    }
}

void select_tiled(const void *problem, arena *ws)
{
    const select_problem *s = problem;
    const attn_problem p = {.ctx = s->ctx,
                            .cfg = s->cfg,
                            .seqs = s->seqs,
                            .q = s->q,
                            .k = s->k_cmp,
                            .v = s->k_cmp,
                            .lse = s->lse,
                            .select = s->slc_idx};
    interval_finish(&p, ws, TILE_SCORES, cmp_visible, select_finish, select_extra_bytes(&p));
}
