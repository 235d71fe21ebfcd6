/*
 * The walks of attn_bwd_sm90.cu for d 256. A key tile is 64 keys, whose dk and dv take 128 registers of a thread: each
 * warpgroup has half of the channels, and for s and dp half of the rows. p and ds are in shared memory for both.
 *
 *     sK sQ -> rS -> rP -> sP         32 rows by each warpgroup
 *     sV sdO -> rdP -> rdS -> sdS     DS_BAR: all rows are there
 *     sP sdO -> rdV    sdS sQ -> rdK    sdS sK -> rdQ -> sdQ -> gdQ    128 channels by each
 *
 *     ds_empty     a lane of each consumer warp: it has made its part of dq
 *
 * There is room for one stage of rows: the next come while dq is made and stored.
 *
 * Cost: a step (64 rows, 64 keys) is 5.2 M multiply-adds, 2560 cycles of an SM's tensor cores, and moves 544 KB through
 * shared memory (4250 cycles); through L2 it brings 64 KB and adds 64 KB to dq, twice as much for each key as others.
 *
 * Measured on an H200, 2026-11-28, medians of all launches of the backward, 64/4 heads, ms; TFLOP/s:
 *
 *     cmp, 64k    88  249     win 512, 64k    20.7     dense, 8k    20.3  271
 *
 * The additions to dq bind (attn_bwd_walk_sm90.cuh): with half of them left out 54 and 14.1 ms, with all 50 and 12.7.
 */
#include "ops/attn_tile/attn_bwd_walk_sm90.cuh"

enum { D = 256, KEYS = 64, STAGES = 1, BUFFERS = 1, HALF = ROWS / 2 };

struct tiles_256 : tiles<D, D, KEYS, STAGES, BUFFERS> {
    __align__(1024) bf16 p[KEYS][64]; /* [key][row] */
    uint64_t ds_empty;                /* warps have made their part of dq */

    __device__ void init_own()
    {
        mbar_init(&ds_empty, CONSUMERS / WARP);
    }
};

/* ---- Products */

/* s[64 keys][HALF] = keys . rows */
static __device__ void multiply(float (&s)[HALF / 2], const bf16 *keys, const bf16 *rows)
{
#pragma unroll
    for (int c = 0; c < D; c += 16)
        wgmma<HALF>(s, further(along_k(keys), c / 64 * KEYS * BOX_ROW + c % 64 * 2),
                    further(along_k(rows), c / 64 * ROWS * BOX_ROW + c % 64 * 2), c > 0);
    wgmma_commit();
}

/* acc[64 keys][D/2] += p[64 keys][ROWS] rows[ROWS][D/2] */
static __device__ void accumulate(float (&acc)[D / 4], const bf16 *p, const bf16 *rows)
{
#pragma unroll
    for (int j = 0; j < ROWS; j += 16)
        wgmma<D / 2, 0, 1>(acc, further(along_k(p), j * 2), further(along_mn(rows, ROWS * BOX_ROW), j * BOX_ROW), 1);
    wgmma_commit();
}

/* dq[64 rows][D/2] = ds^T k */
static __device__ void multiply_dq(float (&dq)[D / 4], const bf16 *ds, const bf16 *k)
{
#pragma unroll
    for (int j = 0; j < KEYS; j += 16)
        wgmma<D / 2, 1, 1>(dq, further(along_mn(ds, KEYS * BOX_ROW), j * BOX_ROW),
                           further(along_mn(k, KEYS * BOX_ROW), j * BOX_ROW), j > 0);
    wgmma_commit();
}

static __device__ void whole_step(const attn_bwd_sm90 &p, tiles_256 &x, consumer<tiles_256> &c, int32_t i, int32_t t)
{
    const stage<D, D> &in = x.in[0];
    const bool masked = t < x.all.from || t + p.tokens > x.all.past || !x.stats[0].plain;
    const int first = HALF * c.wg, box = 2 * c.wg;
    float s[HALF / 2], dp[HALF / 2], dq[D / 4];
    wgmma_fence();
    multiply(s, x.k[0][0], in.q[0][first]);
    multiply(dp, x.v[0][0], in.d_o[0][first]);
    wgmma_wait<1>();
    pin(s);
    if (masked) {
        if (bar_or(OR_BAR, CONSUMERS, any_not_finite(s) || !x.stats[0].plain)) {
            wgmma_wait<0>();
            clean_rows(x, 0, (x.walk.n_k - t) * p.heads);
        }
        probabilities<true>(s, x.stats[0], c.scale * LOG2_E, x.token, t, c.see, first);
    } else {
        probabilities<false>(s, x.stats[0], c.scale * LOG2_E, x.token, t, c.see, first);
    }
    uint32_t prob[HALF / 4], ds[HALF / 4];
    pack(prob, s);
    if (i > 0)
        mbar_wait(&x.ds_empty, i - 1 & 1);
    store_ds(x.p, prob, c.key, first);
    wgmma_wait<0>();
    pin(dp);
    if (masked)
        differences<true>(dp, s, x.stats[0], c.scale, first);
    else
        differences<false>(dp, s, x.stats[0], c.scale, first);
    pack(ds, dp);
    store_ds(x.ds[0], ds, c.key, first);
    fence_async();
    bar_sync(DS_BAR, CONSUMERS);
    wgmma_fence();
    accumulate(c.dv, x.p[0], in.d_o[box][0]);
    accumulate(c.dk, x.ds[0][0], in.q[box][0]);
    multiply_dq(dq, x.ds[0][0], x.k[box][0]);
    wgmma_wait<1>();
    pin(c.dv), pin(c.dk);
    if (lane_index() == 0)
        mbar_arrive(&x.empty[0]);
    wgmma_wait<0>();
    pin(dq);
    if (lane_index() == 0)
        mbar_arrive(&x.ds_empty);
    send_dq(x, dq, i, c.wg);
}

static __device__ void multiply_tiles(const attn_bwd_sm90 &p, tiles_256 &x)
{
    const key_walk &w = x.walk;
    consumer<tiles_256> c;
    begin(p, w, c);
    mbar_wait(&x.kv_full, 0);
    clean_keys(p, x);
    step at = first_step(p, w);
    for (int32_t i = 0, n = n_steps(p, w); i < n; i++, next_step(p, w, &at)) {
        mbar_wait(&x.full[0], i & 1);
        whole_step(p, x, c, i, at.tile * p.tokens + w.shift);
    }
    end(p, w, c);
}

int launch_attn_bwd_256_walks(const attn_bwd_sm90 *p, const attn_bwd_maps *maps, nsa_stream stream)
{
    return launch_walks<tiles_256>(p, maps, stream);
}
