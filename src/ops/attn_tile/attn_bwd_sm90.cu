/*
 * Backward of attention over an interval of keys: dq, dk, dv with five products, no atomics on floats, one order of
 * every sum. Here for d 64 and 128; attn_bwd_192_sm90.cu and attn_bwd_256_sm90.cu have other steps for larger ones.
 *
 *     s = q k^T    dp = d_o v^T    p = g exp2(scale' s - lse')    ds = p scale (dp - delta)    (delta = d_o . o,
 * without g) dv += p^T d_o    dk += ds^T q    dq += ds k              (g in lse', scale in delta: bwd_stats)
 *
 * A block owns a key tile (128 keys of a kv head): k and v stay in shared memory, dk and dv in registers. It walks the
 * row tiles (64 rows: so many tokens times the heads of the group) that see its keys, a step for each. Consumer
 * warpgroups take 64 keys each, with keys as rows of s^T = k q^T, so that p^T and ds^T are in registers what the
 * products for dv and dk want as their first operand:
 *
 *     gK, gV -> sK, sV                once
 *     gQ, gdO, stats -> sQ, sdO ...   a ring of STAGES: barriers full, empty
 *     sK sQ -> rS -> rP               sV sdO -> rdP -> rdS
 *     rP sdO -> rdV                   rdS sQ -> rdK
 *     rdS -> sdS                      [key][row]; DS_BAR: both halves of the keys are there
 *     sdS sK -> rdQ -> sdQ -> gdQ     half of the channels by each warpgroup; a ring of BUFFERS: dq_full, dq_empty
 *
 * One warp of the fourth warpgroup loads, and one for each buffer has the copy engine add a step's dq to float32 in
 * global memory, when it is the tile's turn: all key tiles that see a row tile add to it in rising order, which a
 * counter for each row tile keeps. The first one stores, unless dq is added to. Blocks take their work in the same
 * order (a ticket), so that they wait for such only as took theirs before, and all end. The pieces of a walk (divide in
 * attn_bwd_sm90.c) add to dk and dv in turns too, the last tokens' first. Walks begin at row tiles that are the same
 * modulo a period and go through it downwards and round (first_step): blocks that run at the same time are at the same
 * row tile at the same time, find it in L2, and none has to wait for one that comes there much later.
 *
 * Masks: a step whose rows do not all see all keys selects p and ds; where none of a warpgroup's keys is seen it
 * multiplies half as much (half_step). What else could bring an unseen NaN or infinity into a product is zeroed in
 * shared memory: rows of k and v once; rows of q and d_o in such steps, if an element of s is not finite (a row of q
 * that is not makes its whole column of s so) or the row tile is not `plain` (bwd_stats). lse or delta of a row that is
 * not finite itself makes NaN of all that it sees.
 *
 * Numerics: p and ds are rounded to bf16, d_o is not multiplied by the gate before it is used; all else is float32.
 *
 * Cost: a step of d 128 is 5.2 M multiply-adds, 2560 cycles of an SM's tensor cores, and moves about 370 KB through
 * shared memory (2900 cycles at 128 bytes), which binds; through L2 it brings 32 KB and adds 32 KB to dq.
 *
 * Measured on an H200, 2026-11-28, medians, 64/4 heads, d 128, random normal inputs, the walks (and all launches of the
 * backward together), ms; TFLOP/s of the walks by five products:
 *
 *     dense, 8k     5.45 (5.59)   505        cmp, 8k     0.62 (0.75)        cmp, 64k    21.6 (22.3)   509
 *     win 512, 8k   0.81 (0.95)   409        win, 64k    6.20 (7.37)  443
 *
 * Before that, on the same card: win 1.39 and 8.02, cmp 0.70 and 22.7, with walks of a window that began one after
 * another, each at its first token; with rows of q and d_o looked at in shared memory at each masked step; and with
 * both warpgroups at work at the edges of masks.
 *
 * Cycles of a step that both warpgroups see (dense, 8k; clock in one thread of each, which slows all by 5%): 4580, of
 * which 455 wait for q and d_o, 790-1060 for s, 900-1120 are exponentials, 30-80 wait for dp, 560-610 are ds, 80-160
 * the fence and DS_BAR, 770-800 wait for dq, 155-305 for its buffer, 290-415 store it, 40-50 wait for dk.
 * No faster: s of the next step under way while dq is stored, with a third stage of q (5.68 ms dense 8k, 22.6 cmp 64k).
 * dq stored without bank conflicts, gates in lse and scale in delta came together and left dense at 8k where it was
 * (5.61 ms before); what each does was not measured.
 *
 * Found by leaving parts out (dense, 8k): that dq is added costs 0.6 ms, its way through shared memory 0.7 ms; turns,
 * exponentials and DS_BAR nothing. Tried and no faster: dq a step later, for the warpgroups to drift apart; p rounded
 * before ds, for its registers. Slower: three stages and one buffer of dq (by 14%); all walks of a window from the last
 * token in rows that differ at any time (13.7 ms on an H100), which find nothing in L2.
 */
#include "ops/attn_tile/attn_bwd_walk_sm90.cuh"

enum { KEYS = 128, STAGES = 2, BUFFERS = 2 /* of ds and dq */ };
template <int D> using tiles_of = tiles<D, D, KEYS, STAGES, BUFFERS>;

/* ---- Products */

/* dq[64 rows][N channels] = ds^T k over N_KEYS keys, from a channel of k on */
template <int N, int N_KEYS>
static __device__ void multiply_dq(float (&dq)[N / 2], const bf16 *ds, const bf16 *k, int channel)
{
    const uint64_t b = further(along_mn(k, KEYS * BOX_ROW), channel / 64 * KEYS * BOX_ROW + channel % 64 * 2);
#pragma unroll
    for (int j = 0; j < N_KEYS; j += 16)
        wgmma<N, 1, 1>(dq, further(along_mn(ds, KEYS * BOX_ROW), j * BOX_ROW), further(b, j * BOX_ROW), j > 0);
    wgmma_commit();
}

/* A step of which both warpgroups see some rows. */
template <typename TILES>
static __device__ void whole_step(const attn_bwd_sm90 &p, TILES &x, consumer<TILES> &c, int32_t i, int32_t t)
{
    enum { D_QK = TILES::D_QK, D_V = TILES::D_V };
    const int st = i % STAGES;
    const stage<D_QK, D_V> &in = x.in[st];
    const bool masked = t < x.all.from || t + p.tokens > x.all.past || !x.stats[st].plain;
    float s[ROWS / 2], dp[ROWS / 2], dq[D_QK / 4];
    wgmma_fence();
    multiply<D_QK, KEYS>(s, x.k[0][64 * c.wg], in.q[0][0]);
    multiply<D_V, KEYS>(dp, x.v[0][64 * c.wg], in.d_o[0][0]);
    wgmma_wait<1>();
    pin(s);
    if (masked) {
        if (bar_or(OR_BAR, CONSUMERS, any_not_finite(s) || !x.stats[st].plain)) {
            wgmma_wait<0>();
            clean_rows(x, st, (x.walk.n_k - t) * p.heads);
        }
        probabilities<true>(s, x.stats[st], c.scale * LOG2_E, x.token, t, c.see);
    } else {
        probabilities<false>(s, x.stats[st], c.scale * LOG2_E, x.token, t, c.see);
    }
    uint32_t prob[ROWS / 4], ds[ROWS / 4];
    pack(prob, s);
    wgmma_wait<0>();
    pin(dp);
    wgmma_fence();
    accumulate<D_V>(c.dv, prob, in.d_o[0][0]);
    if (masked)
        differences<true>(dp, s, x.stats[st], c.scale);
    else
        differences<false>(dp, s, x.stats[st], c.scale);
    pack(ds, dp);
    store_ds(x.ds[i % 2], ds, c.key);
    fence_async();
    bar_sync(DS_BAR, CONSUMERS);
    wgmma_fence();
    multiply_dq<D_QK / 2, KEYS>(dq, x.ds[i % 2][0], x.k[0][0], c.wg * D_QK / 2);
    accumulate<D_QK>(c.dk, ds, in.q[0][0]);
    wgmma_wait<1>();
    pin(c.dv), pin(dq);
    send_dq(x, dq, i, c.wg);
    wgmma_wait<0>();
    pin(c.dk);
}

/* A step that sees keys of one warpgroup only, `seen`: at the edges of masks. */
template <typename TILES>
static __device__ void half_step(const attn_bwd_sm90 &p, TILES &x, consumer<TILES> &c, int32_t i, int32_t t, int seen)
{
    enum { D_QK = TILES::D_QK, D_V = TILES::D_V };
    const int st = i % STAGES;
    const stage<D_QK, D_V> &in = x.in[st];
    const bool unclean = !x.stats[st].plain;
    const int32_t n = (x.walk.n_k - t) * p.heads;
    if (c.wg == seen) {
        float s[ROWS / 2], dp[ROWS / 2];
        wgmma_fence();
        multiply<D_QK, KEYS>(s, x.k[0][64 * c.wg], in.q[0][0]);
        multiply<D_V, KEYS>(dp, x.v[0][64 * c.wg], in.d_o[0][0]);
        wgmma_wait<0>();
        pin(s), pin(dp);
        if (bar_or(OR_BAR, CONSUMERS, unclean || any_not_finite(s)))
            clean_rows(x, st, n);
        uint32_t prob[ROWS / 4], ds[ROWS / 4];
        probabilities<true>(s, x.stats[st], c.scale * LOG2_E, x.token, t, c.see);
        pack(prob, s);
        differences<true>(dp, s, x.stats[st], c.scale);
        pack(ds, dp);
        store_ds(x.ds[i % 2], ds, c.key);
        fence_async();
        wgmma_fence();
        accumulate<D_V>(c.dv, prob, in.d_o[0][0]);
        accumulate<D_QK>(c.dk, ds, in.q[0][0]);
        wgmma_wait<0>();
        pin(c.dv), pin(c.dk);
    } else if (bar_or(OR_BAR, CONSUMERS, unclean)) {
        clean_rows(x, st, n);
    }
    float dq[D_QK / 4];
    bar_sync(DS_BAR, CONSUMERS);
    wgmma_fence();
    multiply_dq<D_QK / 2, 64>(dq, x.ds[i % 2][64 * seen], x.k[0][64 * seen], c.wg * D_QK / 2);
    wgmma_wait<0>();
    pin(dq);
    send_dq(x, dq, i, c.wg);
}

template <typename TILES> static __device__ void multiply_tiles(const attn_bwd_sm90 &p, TILES &x)
{
    const key_walk &w = x.walk;
    consumer<TILES> c;
    begin(p, w, c);
    mbar_wait(&x.kv_full, 0);
    clean_keys(p, x);
    step at = first_step(p, w);
    for (int32_t i = 0, n = n_steps(p, w); i < n; i++, next_step(p, w, &at)) {
        const int32_t t = at.tile * p.tokens + w.shift;
        mbar_wait(&x.full[i % STAGES], i / STAGES & 1);
        const bool first = sees(x.some[0], t, p.tokens);
        if (first && sees(x.some[1], t, p.tokens))
            whole_step(p, x, c, i, t);
        else
            half_step(p, x, c, i, t, first ? 0 : 1);
        if (lane_index() == 0)
            mbar_arrive(&x.empty[i % STAGES]);
    }
    end(p, w, c);
}

/* ---- Launches: all instantiations */

int launch_attn_bwd_walks(const attn_bwd_sm90 *p, const attn_bwd_maps *maps, nsa_stream stream)
{
    return p->a.cfg.c.d_qk == 64 ? launch_walks<tiles_of<64>>(p, maps, stream)
                                 : launch_walks<tiles_of<128>>(p, maps, stream);
}
