/*
 * The walks of attn_bwd_sm90.cu for d_qk 192 and d_v 128. dk and dv of 128 keys take 160 of a thread's 240 registers,
 * k, v and two stages of rows 160 of 227 KiB: there is no room for s, dp and p at once, nor for a second dq. So a step
 * goes one thing after the other, and begins while the one before it ends:
 *
 *     sK sQ -> rS -> rP               under way since the step before: after its dk
 *     sV sdO -> rdP    rP sdO -> rdV
 *     rdP rP -> rdS -> sdS            of p rounded to bf16; DS_BAR: both halves of the keys are there
 *     sdS sK -> rdQ -> sdQ -> gdQ     half of the channels by each warpgroup: k_box
 *     sdS sQ -> rdK                   dS from shared memory, for its registers
 *
 *     ds_empty     a lane of each consumer warp: it has made its part of dq
 *
 * Both warpgroups multiply in every step, with p = 0 where nothing is seen.
 *
 * Cost: 2 (3 192 + 2 128) = 1664 operations for each pair of row and key. A step is 6.8 M multiply-adds, 3330 cycles of
 * an SM's tensor cores, and moves 490 KB through shared memory (3810 cycles); through L2 it brings 40 KB and adds 48 KB
 * to dq.
 *
 * Measured on an H200, 2026-11-28, medians of all launches of the backward, 64/4 heads, ms; TFLOP/s:
 *
 *     cmp, 64k    30.5  469     win 512, 64k    9.4-9.7     dense, 8k    7.8  457
 *
 * The additions to dq bind (attn_bwd_walk_sm90.cuh): with half of them left out 25.3 and 6.1 ms, with all 25.8 and 6.0.
 *
 * Tried: the step of d 128, with p and dS in registers 16 rows at a time, spills 700 bytes, and ptxas makes wgmma wait
 * for each other (C7512).
 */
#include "ops/attn_tile/attn_bwd_walk_sm90.cuh"

enum { D_QK = 192, D_V = 128, KEYS = 128, STAGES = 2, BUFFERS = 1 };

struct tiles_192 : tiles<D_QK, D_V, KEYS, STAGES, BUFFERS> {
    uint64_t ds_empty; /* warps have made their part of dq */

    __device__ void init_own()
    {
        mbar_init(&ds_empty, CONSUMERS / WARP);
    }
};

/* ---- Products */

/* s of step i, under way. */
static __device__ void begin_step(float (&s)[ROWS / 2], tiles_192 &x, int32_t i, int wg)
{
    mbar_wait(&x.full[i % STAGES], i / STAGES & 1);
    wgmma_fence();
    multiply<D_QK, KEYS>(s, x.k[0][64 * wg], x.in[i % STAGES].q[0][0]);
}

/* ds of rounded p and dp. */
static __device__ void differences(uint32_t (&ds)[ROWS / 4], const float (&dp)[ROWS / 2], const uint32_t (&p)[ROWS / 4],
                                   const bwd_stats &stats, float scale)
{
#pragma unroll
    for (int i = 0; i < ROWS / 8; i++) {
        const float2 delta = *(const float2 *)&stats.delta[8 * i + 2 * (lane_index() % 4)];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float2 prob = __bfloat1622float2(*(const __nv_bfloat162 *)&p[2 * i + r]);
            const float x = prob.x * fmaf(dp[4 * i + 2 * r], scale, -delta.x);
            const float y = prob.y * fmaf(dp[4 * i + 2 * r + 1], scale, -delta.y);
            ds[2 * i + r] = pack2(prob.x == 0.0F ? 0.0F : x, prob.y == 0.0F ? 0.0F : y);
        }
    }
}

/* acc[64 keys][D] += ds[64 keys][ROWS] rows[ROWS][D], ds from shared memory */
template <int D> static __device__ void accumulate(float (&acc)[D / 2], const bf16 *ds, const bf16 *rows)
{
#pragma unroll
    for (int j = 0; j < ROWS; j += 16)
        wgmma<D, 0, 1>(acc, further(along_k(ds), j * 2), further(along_mn(rows, ROWS * BOX_ROW), j * BOX_ROW), 1);
    wgmma_commit();
}

/* dq[64 rows][N channels] = ds^T k: a warpgroup's half of the channels, as they lie in k's boxes */
template <int N> static __device__ void multiply_dq(float (&dq)[N / 2], const bf16 *ds, const bf16 *k, int wg)
{
    enum { BOX = KEYS * BOX_ROW };
    const uint64_t b = wg == 0 ? along_mn(k, 2 * BOX) : further(along_mn(k, BOX + BOX_ROW / 2), BOX);
#pragma unroll
    for (int j = 0; j < KEYS; j += 16)
        wgmma<N, 1, 1>(dq, further(along_mn(ds, KEYS * BOX_ROW), j * BOX_ROW), further(b, j * BOX_ROW), j > 0);
    wgmma_commit();
}

static __device__ void multiply_tiles(const attn_bwd_sm90 &p, tiles_192 &x)
{
    const key_walk &w = x.walk;
    consumer<tiles_192> c;
    begin(p, w, c);
    mbar_wait(&x.kv_full, 0);
    clean_keys(p, x);
    step at = first_step(p, w);
    const int32_t n = n_steps(p, w);
    float s[ROWS / 2];
    begin_step(s, x, 0, c.wg);
    for (int32_t i = 0;; i++, next_step(p, w, &at)) {
        const int st = i % STAGES;
        const int32_t t = at.tile * p.tokens + w.shift;
        const bool masked = t < x.all.from || t + p.tokens > x.all.past || !x.stats[st].plain;
        const bf16 *q = x.in[st].q[0][0], *d_o = x.in[st].d_o[0][0];
        wgmma_wait<1>(); /* dk of the step before */
        pin(c.dk);
        if (i > 0 && lane_index() == 0)
            mbar_arrive(&x.empty[(i - 1) % STAGES]);
        wgmma_wait<0>();
        pin(s);
        if (masked) {
            if (bar_or(OR_BAR, CONSUMERS, any_not_finite(s) || !x.stats[st].plain))
                clean_rows(x, st, (w.n_k - t) * p.heads);
            probabilities<true>(s, x.stats[st], c.scale * LOG2_E, x.token, t, c.see);
        } else {
            probabilities<false>(s, x.stats[st], c.scale * LOG2_E, x.token, t, c.see);
        }
        uint32_t prob[ROWS / 4], ds[ROWS / 4];
        float dp[ROWS / 2], dq[D_QK / 4];
        pack(prob, s);
        wgmma_fence();
        multiply<D_V, KEYS>(dp, x.v[0][64 * c.wg], d_o);
        accumulate<D_V>(c.dv, prob, d_o);
        wgmma_wait<1>();
        pin(dp);
        differences(ds, dp, prob, x.stats[st], c.scale);
        if (i > 0)
            mbar_wait(&x.ds_empty, i - 1 & 1);
        store_ds(x.ds[0], ds, c.key);
        fence_async();
        bar_sync(DS_BAR, CONSUMERS);
        wgmma_wait<0>();
        pin(c.dv);
        wgmma_fence();
        multiply_dq<D_QK / 2>(dq, x.ds[0][0], x.k[0][0], c.wg);
        accumulate<D_QK>(c.dk, x.ds[0][64 * c.wg], q);
        wgmma_wait<1>();
        pin(dq);
        if (lane_index() == 0)
            mbar_arrive(&x.ds_empty);
        send_dq(x, dq, i, c.wg);
        if (i + 1 == n)
            break;
        begin_step(s, x, i + 1, c.wg);
    }
    wgmma_wait<0>();
    pin(c.dk);
    end(p, w, c);
}

int launch_attn_bwd_192_walks(const attn_bwd_sm90 *p, const attn_bwd_maps *maps, nsa_stream stream)
{
    return launch_walks<tiles_192>(p, maps, stream);
}
