/*
 * Attention over selected blocks, forward, on Hopper.
 *
 *     s = scale q k^T    p = exp(s - max)    o = p v / sum p    lse = max + ln sum p    over the blocks of slc_idx[t]
 *
 * Grid    a block of threads for each SM, which takes tiles of consecutive tokens, kv head slowest: the K and V that
 *         all SMs read at a time are those of one kv head and stay in L2. A tile reads each block that any of its
 *         tokens selected once: slc_attn_fwd_sm90.cuh.
 * Warp    16 rows: 16 heads of one token, or all heads of the `together` tokens of a small group. Three warpgroups of
 *         them multiply (two at d 256), two warps make lists, one brings keys, one values.
 * Alone   a warp multiplies by mma.sync only the blocks that its tokens selected, with its own softmax.
 * Jointly where the warps of a warpgroup have enough blocks in common, the four multiply each block that any of them
 *         wants as one, by wgmma: p is 0 in warps that do not want it. Fragments are the same, and so are the bits of
 *         the results.
 *
 *     gQ -> rQ, or sQ if jointly           once a tile
 *     gK -> sK[slot]  gV -> sV[slot]       tensor maps, boxes of KEYS keys x 64 channels
 *     sK -> rS = q k^T -> rP (bf16)        ldmatrix or wgmma, registers of the warp
 *     sV -> rO += rP v                     ldmatrix, transposed, or wgmma
 *     rO -> gO, lse
 *
 * Masks   a row has `seen` of the KEYS keys: none if it did not select the block, some in the block of its position.
 * NaN     scores are masked by select, but p = 0 times v = NaN is NaN. If a result of the tile is not finite, the tile
 *         is done again when all others are done, token after token, with V zeroed where the token does not see it.
 *         The other results keep their bits: what they do not see added 0.
 * Numbers max is in units of log2. It follows the largest score only when that has grown by 2^8: the same sums, fewer
 *         multiplications. p is rounded to bf16 for the product, not for its sum.
 *
 * H200, 2026-11-28 (41d92a6), 64/4 heads, d 128, 16 of blocks of 64: 12.5 ms at 64k where tokens choose at random (the
 * union of a tile is 12.1 blocks a token, 104 GB through L2), 7.4 ms where neighbours share 85 % of their free blocks
 * (3.0 TFLOP of wgmma); 1.16 and 0.80 ms at 8k. Without warps that make lists and bring items, two blocks of 6 warps on
 * an SM, always alone, it was 12.9, 9.3; 1.32, 1.05. Where all tokens of a tile select the same it took 5.3 ms: a
 * warpgroup takes 2 us for an item, most of it in its own chain of scores, softmax and values.
 *
 * Tried (ms at 64k, random and shared): the last reader fills a slot again, jointly where that pays 14.4, 8.7; that
 * with two warpgroups 15.3, 10.7. Two warpgroups, with warps that bring items, 13.6, 8.2. All alone 12.1, 8.0; all
 * jointly 15.3, 7.2, and slots given back as soon as what was read has come 14.8, 6.8 (spills). Each warpgroup of a
 * tile decides for itself whether to multiply as one: 8k at random 1.43, since the others wait. Jointly q does not fit
 * into registers. H100, as it was before: items of 32 keys 15.3, 11.5 instead of 13.8, 9.3; of 16 keys 18.8, 14.1.
 */
#include "ops/slc_attn/slc_attn_fwd_sm90.cuh"

enum {
    AHEAD = 3, /* operands on their way from shared memory */
    GROWTH = 8 /* log2: of the largest score, before max follows */
};

/* ---- Arithmetic of a warp */

template <int D_V> struct fragments {
    float o[D_V / 2], max[2], sum[2]; /* of rows lane/4 and lane/4 + 8; sum: this lane's columns */
};

template <int D_QK>
static __device__ void load_q(const slc_fwd_sm90 &p, const deal &d, const place_of_tile &at, uint32_t (&x)[D_QK / 4])
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const warp_row row = row_of(p, d, at, lane_index() / 4 + 8 * r);
        const bf16 *q = (const bf16 *)p.q.data + offset_of(p.q, at.s, at.q.start, row.row, row.head);
#pragma unroll
        for (int i = 0; i < D_QK / 8; i++)
            x[2 * i + r] = row.used ? *(const uint32_t *)(q + 8 * i + lane_index() % 4 * 2) : 0;
    }
}

/* s[16][KEYS] = q k^T. Operands are loaded some products ahead. */
template <int D_QK, int KEYS>
static __device__ void multiply_k(const uint32_t (&q)[D_QK / 4], uint32_t k, float (&s)[KEYS / 2])
{
    const int lane = lane_index(), steps = D_QK / 16 * (KEYS / 16);
    const uint32_t row = k + (uint32_t)(lane / 16 * 8 + lane % 8) * BOX_ROW;
    const uint32_t column = (uint32_t)((lane / 8 % 2 ^ lane % 8) * 16);
    const auto load = [&](uint32_t b[4], int i) {
        const int c = i / (KEYS / 16) * 16, j = i % (KEYS / 16) * 16;
        load_matrices(b, row + (column ^ (uint32_t)(c % BOX_CHANNELS * 2)) +
                             (uint32_t)((c / BOX_CHANNELS * KEYS + j) * BOX_ROW));
    };
    uint32_t b[AHEAD][4];
#pragma unroll
    for (int i = 0; i < AHEAD; i++)
        load(b[i], i);
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++)
        s[i] = 0.0F;
#pragma unroll
    for (int i = 0; i < steps; i++) {
        const int c = i / (KEYS / 16) * 16, j = i % (KEYS / 16) * 16;
        mma_16x8(s + j / 2, q + c / 4, b[i % AHEAD]);
        mma_16x8(s + j / 2 + 4, q + c / 4, b[i % AHEAD] + 2);
        if (i + AHEAD < steps)
            load(b[i % AHEAD], i + AHEAD);
    }
}

/* o += p v. */
template <int D_V, int KEYS>
static __device__ void multiply_v(fragments<D_V> *x, uint32_t v, const uint32_t (&p)[KEYS / 4])
{
    const int lane = lane_index(), steps = D_V / 16 * (KEYS / 16);
    const uint32_t row = v + (uint32_t)(lane % 16) * BOX_ROW;
    const uint32_t column = (uint32_t)((lane / 16 ^ lane % 8) * 16);
    const auto load = [&](uint32_t b[4], int i) {
        const int j = i / (D_V / 16) * 16, c = i % (D_V / 16) * 16;
        load_matrices_transposed(b, row + (column ^ (uint32_t)(c % BOX_CHANNELS * 2)) +
                                        (uint32_t)((c / BOX_CHANNELS * KEYS + j) * BOX_ROW));
    };
    uint32_t b[AHEAD][4];
#pragma unroll
    for (int i = 0; i < AHEAD; i++)
        load(b[i], i);
#pragma unroll
    for (int i = 0; i < steps; i++) {
        const int j = i / (D_V / 16) * 16, c = i % (D_V / 16) * 16;
        uint32_t *now = b[i % AHEAD];
        mma_16x8(x->o + c / 2, p + j / 4, now);
        mma_16x8(x->o + c / 2 + 4, p + j / 4, now + 2);
        if (i + AHEAD < steps)
            load(now, i + AHEAD);
    }
}

/* Compares with constants: the columns of a lane would take registers. */
template <int N> static __device__ void mask_scores(float (&s)[N], const int seen[2])
{
    const int left[2] = {seen[0] - lane_index() % 4 * 2, seen[1] - lane_index() % 4 * 2};
#pragma unroll
    for (int i = 0; i < N; i++)
        s[i] = i / 4 * 8 + i % 2 < left[i / 2 % 2] ? s[i] : -INFINITY;
}

/* max follows s, and so does sum; o is to be multiplied by `keep`. scale: to units of log2. */
template <int D_V, int N>
static __device__ void follow_max(fragments<D_V> *x, const float (&s)[N], float scale, float keep[2])
{
    float max[2][2]; /* [row][halves, side by side] */
#pragma unroll
    for (int i = 0; i < N; i++) {
        float &m = max[i / 2 % 2][i % 2];
        m = i < 4 ? s[i] : fmaxf(m, s[i]);
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float largest = quad_max(fmaxf(max[r][0], max[r][1])) * scale;
        keep[r] = 1.0F;
        if (largest > x->max[r] + GROWTH) {
            keep[r] = exp2_fast(x->max[r] - largest);
            x->max[r] = largest;
            x->sum[r] *= keep[r];
        }
    }
}

/* s becomes p = exp(s - max), which sum takes in. */
template <int D_V, int N> static __device__ void exponentials(fragments<D_V> *x, float (&s)[N], float scale)
{
    float base[2], sum[2][2] = {{0.0F, 0.0F}, {0.0F, 0.0F}}; /* [row][halves, side by side] */
#pragma unroll
    for (int r = 0; r < 2; r++)
        base[r] = x->max[r] == -INFINITY ? 0.0F : -x->max[r];
#pragma unroll
    for (int i = 0; i < N; i++) {
        s[i] = exp2_fast(fmaf(s[i], scale, base[i / 2 % 2]));
        sum[i / 2 % 2][i % 2] += s[i];
    }
#pragma unroll
    for (int r = 0; r < 2; r++)
        x->sum[r] += sum[r][0] + sum[r][1];
}

template <int D_V> static __device__ void rescale(fragments<D_V> *x, const float keep[2])
{
    if (__any_sync(~0U, keep[0] != 1.0F || keep[1] != 1.0F)) {
#pragma unroll
        for (int i = 0; i < D_V / 2; i++)
            x->o[i] *= keep[i / 2 % 2];
    }
}

template <int N> static __device__ void round_to(uint32_t (&p)[N / 2], const float (&s)[N])
{
#pragma unroll
    for (int i = 0; i < N / 2; i++)
        p[i] = pack2(s[2 * i], s[2 * i + 1]);
}

/* ---- The items of a warp */

/* Where one token counts alone: V of item i is 0 from the key on that it does not see. Its warps all do this. */
FWD_TEMPLATE static __device__ void clean_values(const FWD_WORK &x, uint32_t i)
{
    const uint32_t n = i - x.list.first_item, parts = (uint32_t)x.d.parts;
    const int key = (int)(n % parts) * KEYS;
    const int seen = keys_seen(x, (int)(x.list.entry[n / parts] % WINDOW), key, x.list.only);
    uint4 *const v = (uint4 *)x.shared->v[i % STAGES];
    enum { CHUNKS = BOX_ROW / 16 };
    for (int at = lane_index(); at < D_V / BOX_CHANNELS * KEYS * CHUNKS; at += WARP)
        if (at / CHUNKS % KEYS >= seen)
            v[at] = make_uint4(0, 0, 0, 0);
    fence_async();
    __syncwarp();
}

/* Each by itself. An arrival that follows ldmatrix at once may be issued while that is still under way, and the copy
 * engine then overtakes it: keys are given back after a branch that depends on their scores, values after the step to
 * the next item, when all products have been issued. */
FWD_TEMPLATE static __device__ void attend_alone(const FWD_WORK &x, fragments<D_V> *f, float scale)
{
    uint32_t q[D_QK / 4];
    load_q<D_QK>(x.p, x.d, x.list.at, q);
    walk at = start_walk();
    for (bool more = step(x, &at); more;) {
        const uint32_t slot = at.i % STAGES;
        int seen[2];
        rows_seen(x, at, seen);
        wait_for<STAGES>(x.shared->k_full, x.shared->k_item, at.i);
        float s[KEYS / 2], keep[2];
        multiply_k<D_QK, KEYS>(q, shared_address(x.shared->k[slot]), s);
        if (__any_sync(~0U, seen[0] < KEYS || seen[1] < KEYS))
            mask_scores(s, seen);
        follow_max(f, s, scale, keep);
        rescale(f, keep);
        give_back(&x.shared->k_empty[slot]);
        exponentials(f, s, scale);
        uint32_t prob[KEYS / 4];
        round_to(prob, s);
        wait_for<STAGES>(x.shared->v_full, x.shared->v_item, at.i);
        if (x.list.only >= 0)
            clean_values(x, at.i);
        multiply_v<D_V, KEYS>(f, shared_address(x.shared->v[slot]), prob);
        more = step(x, &at);
        give_back(&x.shared->v_empty[slot]);
    }
}

/* The number of this thread's warpgroup; the compiler is to know that it is the same for all of a warp. */
static __device__ int warpgroup_index()
{
    return __shfl_sync(~0U, (int)threadIdx.x / WARPGROUP, 0);
}

/* All rows of the warpgroup to shared memory, where there is room for them: registers have none. */
FWD_TEMPLATE static __device__ void share_q(const FWD_WORK &x)
{
    uint32_t q[D_QK / 4];
    load_q<D_QK>(x.p, x.d, x.list.at, q);
    bar_sync(SHARED + warpgroup_index(), WARPGROUP); /* the tile before has been multiplied */
    unsigned char *const to = (unsigned char *)x.shared->q[warpgroup_index()];
    const int row = (int)threadIdx.x % WARPGROUP / WARP * HEADS + lane_index() / 4;
#pragma unroll
    for (int i = 0; i < D_QK / 4; i++) {
        const int c = i / 2 * 8 + lane_index() % 4 * 2;
        *(uint32_t *)(to + c / BOX_CHANNELS * sizeof x.shared->q[0][0] + in_box(row + i % 2 * 8, c % BOX_CHANNELS)) =
            q[i];
    }
    fence_async();
    bar_sync(SHARED + warpgroup_index(), WARPGROUP);
}

/* The slot of item i; the compiler is to know that it is the same for all of a warp. */
template <int STAGES> static __device__ uint32_t slot_of(uint32_t i)
{
    return __shfl_sync(~0U, i % STAGES, 0);
}

FWD_TEMPLATE static __device__ void start_scores(const FWD_WORK &x, uint32_t i, float (&s)[KEYS / 2])
{
    const auto &q = x.shared->q[warpgroup_index()];
    const auto &k = x.shared->k[slot_of<STAGES>(i)];
    wait_for<STAGES>(x.shared->k_full, x.shared->k_item, i);
    wgmma_fence();
#pragma unroll
    for (int c = 0; c < D_QK; c += 16)
        wgmma<KEYS>(s, further(along_k(q[c / BOX_CHANNELS]), c % BOX_CHANNELS * 2),
                    further(along_k(k[c / BOX_CHANNELS]), c % BOX_CHANNELS * 2), c > 0);
    wgmma_commit();
}

FWD_TEMPLATE static __device__ void start_values(const FWD_WORK &x, fragments<D_V> *f, uint32_t i,
                                                 const uint32_t (&prob)[KEYS / 4])
{
    const auto &v = x.shared->v[slot_of<STAGES>(i)];
    wait_for<STAGES>(x.shared->v_full, x.shared->v_item, i);
    if (x.list.only >= 0) {
        clean_values(x, i);
        bar_sync(SHARED + warpgroup_index(), WARPGROUP);
    }
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < KEYS; j += 16)
        wgmma<D_V, 1>(f->o, prob + j / 4, further(along_mn(v, KEYS * BOX_ROW), j * BOX_ROW), 1);
    wgmma_commit();
}

/* p of an item of which s has come; 0 if the warp sees nothing of it. */
template <int D_V, int KEYS>
static __device__ void make_p(fragments<D_V> *f, bool sees, const int seen[2], float scale, float (&s)[KEYS / 2],
                              float keep[2])
{
    if (sees) {
        if (__any_sync(~0U, seen[0] < KEYS || seen[1] < KEYS))
            mask_scores(s, seen);
        follow_max(f, s, scale, keep);
        exponentials(f, s, scale);
    } else {
        keep[0] = keep[1] = 1.0F;
#pragma unroll
        for (int i = 0; i < KEYS / 2; i++)
            s[i] = 0.0F;
    }
}

/* A warpgroup as one: the scores of an item and the values of the item before it are multiplied at a time. Not if the
 * two are far apart: keys may then wait for slots that the values before them keep from others. */
FWD_TEMPLATE static __device__ void attend_jointly(const FWD_WORK &x, fragments<D_V> *f, float scale)
{
    walk at = start_walk();
    bool more = step(x, &at);
    if (more)
        share_q(x);
    while (more) {
        float s[KEYS / 2], keep[2];
        uint32_t prob[KEYS / 4], now = at.i, last;
        int seen[2];
        start_scores(x, now, s);
        bool sees = rows_seen(x, at, seen);
        wgmma_wait<0>();
        pin(s);
        give_back(&x.shared->k_empty[now % STAGES]);
        make_p<D_V, KEYS>(f, sees, seen, scale, s, keep);
        rescale(f, keep);
        round_to(prob, s);
        for (;;) {
            last = now;
            more = step(x, &at);
            if (!more || at.i - last > STAGES)
                break;
            now = at.i;
            start_scores(x, now, s);
            start_values(x, f, last, prob);
            sees = rows_seen(x, at, seen);
            wgmma_wait<1>();
            pin(s);
            give_back(&x.shared->k_empty[now % STAGES]);
            make_p<D_V, KEYS>(f, sees, seen, scale, s, keep);
            wgmma_wait<0>();
            pin(f->o);
            pin(prob);
            give_back(&x.shared->v_empty[last % STAGES]);
            rescale(f, keep);
            round_to(prob, s);
        }
        start_values(x, f, last, prob);
        wgmma_wait<0>();
        pin(f->o);
        give_back(&x.shared->v_empty[last % STAGES]);
    }
}

/* ---- Results */

/* Lane i of four gets word i of all four lanes. */
static __device__ void transpose_quad(uint32_t w[4])
{
    const int lane = lane_index();
#pragma unroll
    for (int step = 1; step <= 2; step++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            uint32_t &lo = w[step == 1 ? 2 * i : i], &hi = w[step == 1 ? 2 * i + 1 : i + 2];
            const uint32_t got = __shfl_xor_sync(~0U, lane & step ? lo : hi, step);
            (lane & step ? lo : hi) = got;
        }
    }
}

/* Writes the rows of token `only` of the tile, or of all if it is -1; whether a result is not finite. */
template <int D_V>
static __device__ bool store_rows(const slc_fwd_sm90 &p, const deal &d, const place_of_tile &at, int only,
                                  fragments<D_V> *x)
{
    bool finite = true;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const warp_row row = row_of(p, d, at, lane_index() / 4 + 8 * r);
        const bool writes = row.used && (only < 0 || row.row == at.first + only);
        const float sum = quad_sum(x->sum[r]), one_over = sum == 0.0F ? 0.0F : 1.0F / sum;
        bf16 *o = (bf16 *)p.o.data + offset_of(p.o, at.s, at.q.start, row.row, row.head);
#pragma unroll
        for (int c = 0; c < D_V; c += 32) {
            uint32_t w[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float lo = x->o[c / 2 + 4 * i + 2 * r], hi = x->o[c / 2 + 4 * i + 2 * r + 1];
                finite &= isfinite(lo) && isfinite(hi);
                w[i] = sum == 0.0F ? 0 : pack2(lo * one_over, hi * one_over);
            }
            transpose_quad(w);
            if (writes)
                *(uint4 *)(o + c + lane_index() % 4 * 8) = make_uint4(w[0], w[1], w[2], w[3]);
        }
        const float ln2 = 0.693147180559945309F;
        if (writes && lane_index() % 4 == 0)
            store(p.lse, offset_of(p.lse, at.s, at.q.start, row.row, row.head),
                  sum == 0.0F ? -INFINITY : fmaf(x->max[r], ln2, logf(sum)));
        finite &= isfinite(sum);
    }
    return !finite;
}

/* ---- The kernel */

FWD_TEMPLATE static __device__ void consume(FWD_SHARED *shared, const slc_fwd_sm90 &p, const deal &d)
{
    const float scale = p.cfg.scale * LOG2_E;
    const int row = lane_index() / 4;
    const uint32_t tokens = (uint32_t)first_token(d, (int)threadIdx.x / WARP) | (uint32_t)token_of_row(p, d, row) << 8 |
                            (uint32_t)token_of_row(p, d, row + 8) << 16;
    fragments<D_V> f;
    for (uint32_t n_lists = 0;; n_lists++) {
        const block_list &list = shared->lists[n_lists % LISTS];
        mbar_wait(&shared->list_full[n_lists % LISTS], n_lists / LISTS % 2);
        if (list.n < 0)
            return;
        if (list.begin == 0) {
#pragma unroll
            for (int i = 0; i < D_V / 2; i++)
                f.o[i] = 0.0F;
            f.max[0] = f.max[1] = -INFINITY;
            f.sum[0] = f.sum[1] = 0.0F;
        }
        const FWD_WORK x = {p, d, shared, list, tokens};
        if (is_joint(list))
            attend_jointly(x, &f, scale);
        else
            attend_alone(x, &f, scale);
        if (list.last && store_rows(p, d, list.at, list.only, &f) && list.only < 0)
            atomicOr(&shared->again[list.tile / 32 % AGAIN_WORDS], 1U << list.tile % 32);
        give_back(&shared->list_empty[n_lists % LISTS]);
    }
}

template <int D_QK, int D_V, int KEYS, int GROUPS, int STAGES, int REGISTERS, int PRODUCER_REGISTERS>
static __global__ __launch_bounds__((GROUPS + 1) * WARPGROUP,
                                    1) void forward_kernel(const __grid_constant__ slc_fwd_sm90 p,
                                                           const __grid_constant__ deal d,
                                                           const __grid_constant__ CUtensorMap k_map,
                                                           const __grid_constant__ CUtensorMap v_map)
{
    extern __shared__ __align__(1024) unsigned char memory[];
    FWD_SHARED *const shared = (FWD_SHARED *)memory;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            mbar_init(&shared->k_full[i], 1);
            mbar_init(&shared->v_full[i], 1);
            mbar_init(&shared->k_empty[i], (uint32_t)d.warps);
            mbar_init(&shared->v_empty[i], (uint32_t)d.warps);
            shared->k_item[i] = shared->v_item[i] = ~0U;
        }
        for (int i = 0; i < LISTS; i++) {
            mbar_init(&shared->list_full[i], 1);
            mbar_init(&shared->list_empty[i], (uint32_t)d.warps + 2); /* and who brings keys and values */
        }
        fence_mbar_init();
    }
    for (int i = (int)threadIdx.x; i < AGAIN_WORDS; i += (int)blockDim.x)
        shared->again[i] = 0;
    __syncthreads();
    if (threadIdx.x < GROUPS * WARPGROUP) {
        registers_up<REGISTERS>();
        consume<D_QK, D_V, KEYS, GROUPS, STAGES>(shared, p, d);
    } else {
        registers_down<PRODUCER_REGISTERS>();
        const int warp = (int)threadIdx.x / WARP - GROUPS * TOGETHER;
        if (warp < MAKERS)
            make_all_lists<D_QK, D_V, KEYS, GROUPS, STAGES>(shared, p, d);
        else if (warp == MAKERS && lane_index() == 0)
            produce<D_QK, KEYS, STAGES>(shared, shared->k, shared->k_full, shared->k_empty, shared->k_item, &k_map,
                                        p.k.stride_seq == 0, d);
        else if (warp == MAKERS + 1 && lane_index() == 0)
            produce<D_V, KEYS, STAGES>(shared, shared->v, shared->v_full, shared->v_empty, shared->v_item, &v_map,
                                       p.v.stride_seq == 0, d);
    }
}

/* ---- Launches: all instantiations */

static deal deal_out(const slc_fwd_sm90 &p, int warps, int keys)
{
    deal d;
    d.warps = warps;
    d.together = 1;
    while (2 * d.together * p.cfg.group <= HEADS)
        d.together *= 2;
    d.splits = (p.cfg.group + HEADS - 1) / HEADS;
    d.rounds = (d.splits + warps - 1) / warps;
    d.splits = (d.splits + d.rounds - 1) / d.rounds;
    d.tile = warps / d.splits * d.together;
    d.log_bits = 3;
    while (1 << d.log_bits < d.tile)
        d.log_bits++;
    d.window = min(WINDOW, WANTED_WORDS * 32 >> d.log_bits);
    d.parts = p.cfg.c.slc_block / keys;
    d.n_tiles = p.seqs.total_q / d.tile + p.seqs.n;
    return d;
}

template <int D_QK, int D_V, int KEYS, int GROUPS, int STAGES, int REGISTERS, int PRODUCER_REGISTERS>
static int launch(const slc_fwd_sm90 &p, nsa_stream stream)
{
    const map_rows k = {p.seqs.n, p.seqs.max_k, p.seqs.total_k, p.cfg.c.n_heads_kv, D_QK},
                   v = {p.seqs.n, p.seqs.max_k, p.seqs.total_k, p.cfg.c.n_heads_kv, D_V};
    CUtensorMap k_map, v_map;
    const auto kernel = forward_kernel<D_QK, D_V, KEYS, GROUPS, STAGES, REGISTERS, PRODUCER_REGISTERS>;
    const int bytes = sizeof(FWD_SHARED);
    int device, n_sms, error = tensor_map(&k_map, &p.k, &k, 1, KEYS);
    if (error == cudaSuccess)
        error = tensor_map(&v_map, &p.v, &v, 1, KEYS);
    if (error == cudaSuccess)
        error = cudaGetDevice(&device);
    if (error == cudaSuccess)
        error = cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, device);
    if (error == cudaSuccess)
        error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess)
        return error;
    const deal d = deal_out(p, GROUPS * TOGETHER, KEYS);
    const int64_t n_tiles = d.n_tiles * p.cfg.c.n_heads_kv * d.rounds;
    kernel<<<(unsigned)(n_tiles < n_sms ? n_tiles : n_sms), (GROUPS + 1) * WARPGROUP, bytes, stream>>>(p, d, k_map,
                                                                                                       v_map);
    return cudaGetLastError();
}

/* Blocks of whole 64 (or 32) keys, and others. */
int launch_slc_attn_fwd_sm90(const slc_fwd_sm90 *p, nsa_stream stream)
{
    const nsa_config &c = p->cfg.c;
    switch (c.d_qk) {
    case 64:
        return c.slc_block % 64 == 0 ? launch<64, 64, 64, 3, 8, 160, 32>(*p, stream)
                                     : launch<64, 64, 16, 3, 16, 160, 32>(*p, stream);
    case 128:
        return c.slc_block % 64 == 0 ? launch<128, 128, 64, 3, 5, 160, 32>(*p, stream)
                                     : launch<128, 128, 16, 3, 16, 160, 32>(*p, stream);
    case 192:
        return c.slc_block % 32 == 0 ? launch<192, 128, 32, 3, 6, 160, 32>(*p, stream)
                                     : launch<192, 128, 16, 3, 12, 160, 32>(*p, stream);
    default:
        return c.slc_block % 32 == 0 ? launch<256, 256, 32, 2, 4, 232, 40>(*p, stream)
                                     : launch<256, 256, 16, 2, 8, 232, 40>(*p, stream);
    }
}
