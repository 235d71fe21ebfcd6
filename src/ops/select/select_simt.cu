/*
 * Selection, a warp for each (token, kv head), with scratch for one row:
 *
 *     lanes as compressed blocks: p of each of the group's heads -> P       lanes as selection blocks: scores, slc_idx
 *
 * Each block's P and score is made by the same chain of operations, so equal inputs tie exactly.
 */
#include "ops/select/select_simt.h"
#include "cuda/simt.cuh"
#include "ops/select/block_score.cuh"

/* P of the n visible blocks. */
static __device__ void sum_heads(const select_simt_args &p, const query &x, float *q, float *sum, int64_t n)
{
    const int d = p.cfg.c.d_qk;
    const int64_t k_at = offset_of(p.k_cmp, x.at.s, x.k.start / p.cfg.c.cmp_stride, 0, x.at.head);
    for (int g = 0; g < p.cfg.group; g++) {
        const int64_t head = (int64_t)x.at.head * p.cfg.group + g;
        const int64_t q_at = offset_at(p.q, x.at, head);
        const float lse = load(p.lse, offset_at(p.lse, x.at, head));
        for (int c = lane_index(); c < d; c += WARP)
            q[c] = load(p.q, q_at + c);
        __syncwarp();
        for (int64_t i = lane_index(); i < n; i += WARP) {
            float s = 0.0F;
            for (int c = 0; c < d; c++)
                s = fmaf(q[c], load(p.k_cmp, k_at + i * p.k_cmp.stride_token + c), s);
            const float prob = expf(p.cfg.scale * s - lse);
            sum[i] = (g == 0 ? 0.0F : sum[i]) + (prob < 0x1p-126F ? 0.0F : prob);
        }
        __syncwarp();
    }
}

/* NaN goes below all. */
static __device__ float score_of(const nsa_config &c, const float *sum, int64_t n, int64_t j)
{
    const float score = block_score(c, sum, n, j);
    return score >= 0.0F ? score : -1.0F;
}

static __device__ int count_from(const float *score, int64_t n, float bound)
{
    int count = 0;
    for (int64_t i = lane_index(); i < n; i += WARP)
        count += score[i] >= bound;
    return __reduce_add_sync(~0U, count);
}

/* The largest score, or a bound below it, that at least k of the n reach: built bit by bit, since the bits of floats
 * that are not negative order like the numbers. */
static __device__ float kth_score(const float *score, int64_t n, int k)
{
    if (count_from(score, n, 0.0F) < k)
        return -1.0F;
    unsigned bound = 0;
    for (unsigned bit = 1U << 30; bit > 0; bit >>= 1) {
        const int count = count_from(score, n, __uint_as_float(bound | bit));
        if (count >= k)
            bound |= bit;
        if (count == k)
            break;
    }
    return __uint_as_float(bound);
}

/* More than slc_topk candidates: the forced ones at both ends, and of those between the highest scores. */
static __device__ void choose(const nsa_config &c, const float *score, int64_t cur, int32_t *out)
{
    const int64_t from = c.slc_n_init, to = cur + 1 - c.slc_n_local;
    const int n_free = c.slc_topk - c.slc_n_init - c.slc_n_local;
    const float bound = kth_score(score + from, to - from, n_free);
    int above = 0;
    for (int64_t j = from + lane_index(); j < to; j += WARP)
        above += score[j] > bound;
    int ties = n_free - __reduce_add_sync(~0U, above), n = 0; /* ties still to take, blocks written */
    for (int64_t first = 0; first <= cur; first += WARP) {
        const int64_t j = first + lane_index();
        const bool forced = j <= cur && (j < from || j >= to), is_free = j <= cur && !forced;
        const unsigned all_ties = __ballot_sync(~0U, is_free && score[j] == bound);
        const bool tie = is_free && score[j] == bound && lanes_before(all_ties) < ties;
        const bool take = forced || tie || (is_free && score[j] > bound);
        const unsigned taken = __ballot_sync(~0U, take);
        if (take && n + lanes_before(taken) < c.slc_topk)
            out[n + lanes_before(taken)] = (int32_t)j;
        ties = max(0, ties - __popc(all_ties));
        n += __popc(taken);
    }
}

static __global__ __launch_bounds__(WARP *WARPS) void select_kernel(const __grid_constant__ select_simt_args p)
{
    __shared__ float q_rows[WARPS][MAX_D];
    const nsa_config &c = p.cfg.c;
    const int64_t warp = first_item();
    if (warp >= p.n_warps)
        return;
    float *sum = p.sum + warp * p.n_cmp, *score = p.score + warp * p.n_slc;
    for (int64_t i = warp; i < p.seqs.total_q * c.n_heads_kv; i += p.n_warps) {
        query x; /* of a kv head */
        if (!find_query(p.seqs, c.n_heads_kv, i, &x))
            continue;
        int32_t *out = (int32_t *)p.slc_idx.data + offset_at(p.slc_idx, x.at, x.at.head);
        const int64_t cur = x.t < 0 ? -1 : x.t / c.slc_block;
        if (cur < c.slc_topk) { /* no more candidates than are selected */
            for (int j = lane_index(); j < c.slc_topk; j += WARP)
                out[j] = j <= cur ? j : -1;
            continue;
        }
        const int64_t n = n_cmp_seen(c, x.t);
        sum_heads(p, x, q_rows[threadIdx.x / WARP], sum, n);
        for (int64_t j = lane_index(); j <= cur; j += WARP)
            score[j] = score_of(c, sum, n, j);
        __syncwarp();
        choose(c, score, cur, out);
        __syncwarp();
    }
}

int launch_select(const select_simt_args *p, nsa_stream stream)
{
    LAUNCH_WARPS(select_kernel, p->n_warps, stream, *p);
    return cudaGetLastError();
}
