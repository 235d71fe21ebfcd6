/* The oracle of selection: plain loops, the logits in double, P and the scores in float32 as the specification says. */
#include "ops/select/select.h"

#include <math.h>

static double dot(const nsa_tensor *q, int64_t q_at, const rows *k, int64_t i, int64_t d)
{
    double sum = 0.0;
    for (int64_t c = 0; c < d; c++)
        sum += dtype_get(q->data, q->dtype, q_at + c) * dtype_get(rows_at(k, i), k->dtype, c);
    return sum;
}

/* P[i] of one (token, kv head) for the n visible blocks. */
static void importance(const select_problem *p, int32_t s, int64_t q0, int64_t row, int32_t head_kv, const rows *k,
                       int64_t n, float *sum)
{
    const int32_t group = config_group(p->cfg);
    const double scale = config_scale(p->cfg);
    for (int64_t i = 0; i < n; i++)
        sum[i] = 0.0F;
    for (int32_t g = 0; g < group; g++) {
        const int64_t head = (int64_t)head_kv * group + g;
        const int64_t q_at = tensor_offset(&p->q, s, q0, row, head);
        const double lse = dtype_get(p->lse.data, p->lse.dtype, tensor_offset(&p->lse, s, q0, row, head));
        for (int64_t i = 0; i < n; i++) {
            const float prob = (float)exp(scale * dot(&p->q, q_at, k, i, p->cfg->d_qk) - lse);
            sum[i] += prob < 0x1p-126F ? 0.0F : prob;
        }
    }
}

/* The paper's equation 9, 0-based. */
static float block_score(const nsa_config *cfg, const float *sum, int64_t n, int64_t j)
{
    const int64_t per_slc = cfg->slc_block / cfg->cmp_stride;
    const int64_t per_cmp = cfg->cmp_block / cfg->cmp_stride;
    float score = 0.0F;
    for (int64_t a = 0; a < per_slc; a++)
        for (int64_t b = 0; b < per_cmp; b++) {
            const int64_t i = per_slc * j + a - b;
            score += i >= 0 && i < n ? sum[i] : 0.0F;
        }
    return score;
}

static bool is_forced(const nsa_config *cfg, int64_t j, int64_t cur)
{
    return j < cfg->slc_n_init || j > cur - cfg->slc_n_local;
}

/* The candidate not yet taken that comes first: forced before free, then the higher score, then the lower block. */
static int64_t next_block(const nsa_config *cfg, const float *score, const bool *taken, int64_t cur)
{
    int64_t best = -1;
    for (int64_t j = 0; j <= cur; j++) {
        if (taken[j])
            continue;
        if (is_forced(cfg, j, cur))
            return j;
        if (best < 0 || score[j] > score[best] || (isnan(score[best]) && !isnan(score[j])))
            best = j;
    }
    return best;
}

void select_ref(const void *problem, arena *ws)
{
    const select_problem *p = problem;
    const nsa_config *cfg = p->cfg;
    int64_t longest = 0;
    for (int32_t s = 0; s < p->seqs.n; s++)
        longest = max_i64(longest, seq_at(&p->seqs, s).t_k);
    float *sum = arena_take(ws, n_cmp_visible(cfg, longest - 1), sizeof *sum);
    float *score = arena_take(ws, n_slc_blocks(cfg, longest), sizeof *score);
    bool *taken = arena_take(ws, n_slc_blocks(cfg, longest), sizeof *taken);
    if (arena_counts(ws))
        return;

    for (int32_t s = 0; s < p->seqs.n; s++) {
        const seq q = seq_at(&p->seqs, s);
        for (int32_t head = 0; head < cfg->n_heads_kv; head++) {
            const rows k = rows_of(&p->k_cmp, s, head);
            for (int64_t row = 0; row < q.t_q; row++) {
                int32_t *out = tensor_at(&p->slc_idx, s, q.q0, row, head);
                for (int32_t i = 0; i < cfg->slc_topk; i++)
                    out[i] = -1;
                const int64_t t = row + q.t_k - q.t_q;
                if (t < 0)
                    continue;
                const int64_t cur = t / cfg->slc_block;
                const int64_t n = n_cmp_visible(cfg, t);
                importance(p, s, q.q0, row, head, &k, n, sum);
                for (int64_t j = 0; j <= cur; j++) {
                    score[j] = block_score(cfg, sum, n, j);
                    taken[j] = false;
                }
                for (int64_t left = min_i64(cfg->slc_topk, cur + 1); left > 0; left--)
                    taken[next_block(cfg, score, taken, cur)] = true;
                for (int64_t j = 0, i = 0; j <= cur; j++)
                    if (taken[j])
                        out[i++] = (int32_t)j;
            }
        }
    }
}
