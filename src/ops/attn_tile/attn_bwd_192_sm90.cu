/*
 * TODO
 */
#include "ops/attn_tile/attn_bwd_walk_sm90.cuh"

enum { D_QK = 192, D_V = 128, KEYS = 128, STAGES = 2, BUFFERS = 1 };

struct tiles_192 : tiles<D_QK, D_V, KEYS, STAGES, BUFFERS> {
    uint64_t ds_empty; /* warps have made their part of dq */
};

/* ---- Products */

/* s of a step */
static __device__ void begin_step(float (&s)[ROWS / 2], tiles_192 &x, int32_t i, int wg)
{
    mbar_wait(&x.full[i % STAGES], i / STAGES & 1);
    wgmma_fence();
    multiply<D_QK, KEYS>(s, x.k[0][64 * wg], x.in[i % STAGES].q[0][0]);
}

/* ds of which p is rounded, of what is dp. */
static __device__ void differences(uint32_t (&ds)[ROWS / 4], float (&dp)[ROWS / 2], const uint32_t (&p)[ROWS / 4],
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
        wgmma_wait<1>();
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

static __global__ __launch_bounds__(THREADS, 1) void walk_192_kernel(const __grid_constant__ attn_bwd_sm90 p,
                                                                     const __grid_constant__ attn_bwd_maps maps)
{
    extern __shared__ __align__(1024) unsigned char shared[];
    tiles_192 &x = *(tiles_192 *)shared;
    if (threadIdx.x == 0) {
        mbar_init(&x.ds_empty, CONSUMERS / WARP);
        find_walk(p, x);
    }
    __syncthreads();
    if (!x.found)
        return;
    if (threadIdx.x < CONSUMERS) {
        registers_up<240>();
        multiply_tiles(p, x);
    } else {
        registers_down<24>();
        copy_walk(p, maps, x);
    }
}

/* ---- Launches: all instantiations */

int launch_attn_bwd_192_walks(const attn_bwd_sm90 *p, const attn_bwd_maps *maps, nsa_stream stream)
{
    return launch_walks(walk_192_kernel, sizeof(tiles_192), p, maps, stream);
}
