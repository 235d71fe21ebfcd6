/*
 * Attention over selected blocks, forward, on Hopper, block-major: where groups are small.
 *
 *     partial of (row, block b)    s = scale q k^T    lse_b = ln sum exp(s)    o_b = softmax(s) v
 *     row (token, head)            lse = ln sum_b exp(lse_b)    o = sum_b exp(lse_b - lse) o_b
 *
 * A block of K and V is 32 KB (d 128), which token-major a token reads for the sake of 256 bytes of q for each head of
 * its group. Here the rows come to the block: slc_attn_lists_sm90.cu lists the tokens that have selected it, a CTA
 * takes one block and a piece of its list (an item), gathers the rows of q and leaves a partial of each; then a warp
 * for each row adds up the partials of its blocks, in the order of slc_idx.
 *
 *     gK, gV -> sK, sV (once)    gQ -> sQ (ROWS rows, the next while these are multiplied by V)
 *     sQ sK -> rS -> rP (bf16)    rP sV -> rO -> gPartial (f16)
 *
 * A partial's o is kept as f16, times the power of two that brings the largest of the row below 2^15: within 2^-11 of
 * the row's largest, an eighth of what rounding p to bf16 costs. A list's partials follow each other in memory; where a
 * token finds its own, the lists say. Channels lie as the accumulator has them: see channel_of.
 *
 * Masks: only tokens of the block itself do not see all of its keys. They are the first of the list. p = 0 times v =
 * NaN is NaN, so where there are such tokens, what is not finite is taken out of V (to 0), and each row that sees it
 * adds it again.
 *
 * Cost at 64k tokens, 32 heads, d 128, whatever the group: 33.5 M pairs of a row and a block; 1.1 TFLOP (2 ms); 8.6 GB
 * of q through the L2 cache; 8.6 GB of partials to memory and back (4 ms). One H200, 2026-11-28, ms with random blocks,
 * in brackets with neighbours that share 80 % of them:
 *
 *     tokens    group    this           token-major
 *     64k       1        8.9  (8.4)     48.4  (17.5)
 *     64k       2        8.9  (8.6)     30.3  (10.7)
 *     64k       4        9.0  (8.7)     17.8  (7.3)
 *     64k       8        8.6  (8.4)     10.3  (5.6)
 *     32k       1        4.2  (4.0)     18.4  (7.5)
 *     32k       4        4.3  (4.1)     7.7   (3.5)
 *     8k        1        1.08 (1.04)    2.22  (1.37)
 *     8k        4        0.95 (0.92)    1.30  (0.77)
 *     8k        8        0.97 (0.94)    0.89  (0.64)
 *
 * 64 heads in groups of 16: 16.8, token-major 11.6. d 64, 64k: 6.0 and 25.2 in groups of 1, 5.4 and 8.9 of 4. At 1k
 * tokens the launches count: 0.155, 0.084. Of 8.9 ms 2.8 put partials together; of the rest about 4.7 make them.
 *
 * Tried there (64k, group 1): rounds of 512 MB of partials 10.8, of 256 MB 14.6: lists of one kv head do not fill the
 * machine. Partials by three CTAs on an SM with two stages of q, whose addresses took 21 instructions for 16 bytes, 5.1
 * instead of 4.7; rows put together by 20 warps on an SM, with more registers, 3.9 instead of 2.8.
 */
#include "cuda/sm90.cuh"
#include "ops/slc_attn/slc_attn_fwd_blocks_sm90.h"
#include "ops/slc_attn/slc_attn_lists_sm90.cuh"

enum { KEYS = SLC_FWD_KEYS, ROWS = 64, THREADS = WARPGROUP };

template <int D_QK, int D_V> struct blocks_shared {
    bf16 k[D_QK / 64][KEYS][64], v[D_V / 64][KEYS][64];
    bf16 q[D_QK / 64][ROWS][64];
    const bf16 *rows[SLC_ITEM_ROWS]; /* of q; past the last the same again, to whole ROWS */
    uint64_t loaded;
    uint32_t unfit[KEYS / 32]; /* a bit for each key of which something was taken out of v */
};

/* What a CTA does. */
typedef struct block_item {
    int32_t s, kv_head;
    seq_range q, k;
    int64_t key; /* the first of the block */
    const int32_t *tokens;
    int32_t n_rows;
    int64_t first_row; /* of the partials */
} block_item;

static __device__ bool find_item(const slc_fwd_blocks &p, int64_t i, block_item *x)
{
    if (i >= *p.lists.n_items)
        return false;
    const slc_item item = p.lists.items[i];
    const simt_seqs &seqs = p.attn.seqs;
    const int32_t slc_block = p.attn.cfg.c.slc_block, group = p.attn.cfg.group;
    const int64_t place = p.lists.begin[item.list] + item.first;
    x->kv_head = (int32_t)(item.list / p.lists.n_blocks);
    x->key = find_tile(seqs.cu_k, seqs.n, 1, slc_block, item.list % p.lists.n_blocks, &x->s);
    x->q = seq_q(seqs, x->s);
    x->k = seq_k(seqs, x->s);
    x->tokens = p.lists.tokens + place;
    x->n_rows = item.n * group;
    x->first_row = place * group;
    return x->key >= 0 && x->key < x->k.n;
}

/* A row's token sees keys 0 .. of the block; all, where there is no row. */
static __device__ int last_seen(const slc_fwd_blocks &p, const block_item &item, int row)
{
    const int32_t last = p.attn.cfg.c.slc_block - 1;
    if (row >= item.n_rows)
        return last;
    const int64_t t = __ldg(item.tokens + row / p.attn.cfg.group) + item.k.n - item.q.n;
    return (int)min64(t - item.key, last);
}

/* ---- Into shared memory */

/* A list has other tokens than those of its sequence only where cu_seqlens are not sound. */
template <typename S> static __device__ void find_rows(const slc_fwd_blocks &p, const block_item &item, S *x)
{
    const int group = p.attn.cfg.group;
    for (int i = (int)threadIdx.x; i < (item.n_rows + ROWS - 1) / ROWS * ROWS; i += THREADS) {
        const int row = min(i, item.n_rows - 1);
        const int32_t token = __ldg(item.tokens + row / group);
        const bool exists = token >= 0 && token < item.q.n;
        x->rows[i] =
            (const bf16 *)p.attn.q.data +
            (exists ? offset_of(p.attn.q, item.s, item.q.start, token, item.kv_head * group + row % group) : 0);
    }
}

/* ROWS rows, by all threads: a thread has the same 16 bytes of each STEP-th. */
template <int D> static __device__ void gather(const bf16 *const *rows, bf16 (*to)[ROWS][64])
{
    enum { OF_ROW = D / 8, STEP = THREADS / OF_ROW };
    const int row = (int)threadIdx.x / OF_ROW, channel = (int)threadIdx.x % OF_ROW * 8;
    const uint32_t at = shared_address(to[channel / 64]) + (uint32_t)in_box(row, channel % 64);
#pragma unroll
    for (int i = 0; i < ROWS / STEP; i++)
        copy_16(at + (uint32_t)(i * STEP * BOX_ROW), rows[row + i * STEP] + channel, true);
    copies_commit();
}

static __device__ bool is_finite(uint32_t bits)
{
    return (bits & 0x7f80U) != 0x7f80U;
}

/* Takes out of V what is not finite. */
template <int D_QK, int D_V> static __device__ void clean(blocks_shared<D_QK, D_V> *x)
{
    for (int i = (int)threadIdx.x; i < D_V / 8 * KEYS; i += THREADS) {
        uint32_t *words = (uint32_t *)x->v + 4 * i;
        const int key = i / 8 % KEYS;
        for (int j = 0; j < 4; j++) {
            const uint32_t keep = (is_finite(words[j]) ? 0xffffU : 0) | (is_finite(words[j] >> 16) ? 0xffff0000U : 0);
            if (keep == ~0U)
                continue;
            words[j] &= keep;
            atomicOr(&x->unfit[key / 32], 1U << key % 32);
        }
    }
    fence_async();
}

/* ---- ROWS rows */

static __device__ void mask_scores(float (&s)[KEYS / 2], const int last[2])
{
    const int left[2] = {last[0] - lane_index() % 4 * 2, last[1] - lane_index() % 4 * 2};
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++)
        s[i] = i / 4 * 8 + i % 2 <= left[i / 2 % 2] ? s[i] : -INFINITY;
}

/* p = exp(s - max) as operands a. scale: to units of log2, as max is. */
static __device__ void softmax(const float (&s)[KEYS / 2], float scale, float max[2], float sum[2],
                               uint32_t (&p)[KEYS / 4])
{
    float m[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++)
        m[i / 2 % 2] = fmaxf(m[i / 2 % 2], s[i]);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        max[r] = quad_max(m[r]) * scale;
        sum[r] = 0.0F;
    }
#pragma unroll
    for (int i = 0; i < KEYS / 4; i++) {
        const float lo = exp2_fast(fmaf(s[2 * i], scale, -max[i % 2]));
        const float hi = exp2_fast(fmaf(s[2 * i + 1], scale, -max[i % 2]));
        sum[i % 2] += lo + hi;
        p[i] = pack2(lo, hi);
    }
    sum[0] = quad_sum(sum[0]);
    sum[1] = quad_sum(sum[1]);
}

/* To o what clean() has taken out, of the keys that the rows see. */
template <int D_V>
static __device__ void add_unfit(const slc_fwd_blocks &p, const block_item &item, const uint32_t *unfit,
                                 const int last[2], float (&o)[D_V / 2])
{
    for (int key = 0; key < KEYS; key++) {
        if ((unfit[key / 32] >> key % 32 & 1) == 0 || item.key + key >= item.k.n)
            continue;
        const bf16 *v = (const bf16 *)p.attn.v.data +
                        offset_of(p.attn.v, item.s, item.k.start, item.key + key, item.kv_head) + lane_index() % 4 * 2;
#pragma unroll
        for (int i = 0; i < D_V / 2; i++) {
            const float x = to_float(v[i / 4 * 8 + i % 2]);
            o[i] += key <= last[i / 2 % 2] && !isfinite(x) ? x : 0.0F;
        }
    }
}

/* The channel of element c (0 to 7) of a row's i-th 16 bytes: a lane of the product stores what it has, four times. */
static __device__ int channel_of(int i, int c)
{
    return i / 4 * 32 + c / 2 * 8 + i % 4 * 2 + c % 2;
}

/* Row r of the two that this thread's four lanes have. */
template <int D_V>
static __device__ void store_partial(const slc_fwd_blocks &p, int64_t row, bool exists, int r,
                                     const float (&o)[D_V / 2], float row_max, float row_sum)
{
    float largest = 0.0F;
#pragma unroll
    for (int i = 0; i < D_V / 2; i++)
        if (i / 2 % 2 == r)
            largest = fmaxf(largest, fabsf(o[i]));
    if (__any_sync(~0U, largest == INFINITY)) {
        largest = 0.0F;
#pragma unroll
        for (int i = 0; i < D_V / 2; i++)
            if (i / 2 % 2 == r)
                largest = fmaxf(largest, isfinite(o[i]) ? fabsf(o[i]) : 0.0F);
    }
    largest = quad_max(largest);
    /* 2^(14 - e), of 2^e <= largest < 2^(e + 1), and its inverse: by their exponents. */
    const int up = 268 - max(__float_as_int(largest) >> 23, 28);
    const float scale = __int_as_float(up << 23), inverse = __int_as_float((254 - up) << 23);
    if (!exists)
        return;
    uint4 *to = (uint4 *)(p.o + row * D_V) + lane_index() % 4;
#pragma unroll
    for (int i = 0; i < D_V / 32; i++) {
        uint32_t w[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int at = 16 * i + 4 * j + 2 * r;
            const __half2 y = __floats2half2_rn(o[at] * scale, o[at + 1] * scale);
            w[j] = *(const uint32_t *)&y;
        }
        __stcs(to + 4 * i, make_uint4(w[0], w[1], w[2], w[3]));
    }
    const slc_partial partial = {row_max + log2f(row_sum), inverse / row_sum};
    if (lane_index() % 4 == 0)
        p.partials[row] = partial;
}

template <int D_QK, int D_V, int CTAS>
static __global__ __launch_bounds__(THREADS, CTAS) void partials_kernel(const __grid_constant__ slc_fwd_blocks p,
                                                                        const __grid_constant__ CUtensorMap k_map,
                                                                        const __grid_constant__ CUtensorMap v_map)
{
    extern __shared__ __align__(1024) unsigned char memory[];
    blocks_shared<D_QK, D_V> *x = (blocks_shared<D_QK, D_V> *)memory;
    const slc_fwd_sm90 &a = p.attn;
    block_item item;
    if (!find_item(p, blockIdx.x, &item))
        return;
    if (threadIdx.x == 0) {
        mbar_init(&x->loaded, 1);
        x->unfit[0] = x->unfit[1] = 0;
        fence_mbar_init();
        mbar_arrive_expect(&x->loaded, sizeof x->k + sizeof x->v);
        copy_tile<D_QK>(x->k, sizeof x->k[0], &k_map, &x->loaded, item.kv_head, map_row(a.k, item.k, item.key),
                        map_seq(a.k, item.s));
        copy_tile<D_V>(x->v, sizeof x->v[0], &v_map, &x->loaded, item.kv_head, map_row(a.v, item.k, item.key),
                       map_seq(a.v, item.s));
    }
    find_rows(p, item, x);
    __syncthreads();
    gather<D_QK>(x->rows, x->q);
    mbar_wait(&x->loaded, 0);
    const bool some_masked = last_seen(p, item, 0) < KEYS - 1;
    if (some_masked)
        clean(x);

    const float scale = a.cfg.scale * LOG2_E;
    const int my_row = (int)threadIdx.x / WARP * 16 + lane_index() / 4;
    for (int first = 0; first < item.n_rows; first += ROWS) {
        copies_wait<0>();
        fence_async();
        __syncthreads();
        float s[KEYS / 2];
        wgmma_fence();
#pragma unroll
        for (int c = 0; c < D_QK; c += 16)
            wgmma<KEYS>(s, further(along_k(x->q[c / 64]), c % 64 * 2), further(along_k(x->k[c / 64]), c % 64 * 2),
                        c > 0);
        wgmma_commit();
        const bool masked = some_masked && last_seen(p, item, first) < KEYS - 1;
        int last[2] = {KEYS - 1, KEYS - 1};
        if (masked)
            for (int r = 0; r < 2; r++)
                last[r] = last_seen(p, item, first + my_row + 8 * r);
        wgmma_wait<0>();
        pin(s);
        __syncthreads();
        if (first + ROWS < item.n_rows)
            gather<D_QK>(x->rows + first + ROWS, x->q);
        if (masked)
            mask_scores(s, last);
        float max[2], sum[2];
        uint32_t prob[KEYS / 4];
        softmax(s, scale, max, sum, prob);
        float o[D_V / 2];
        pin(prob);
        wgmma_fence();
#pragma unroll
        for (int j = 0; j < KEYS; j += 16)
            wgmma<D_V, 1>(o, prob + j / 4, further(along_mn(x->v[0], sizeof x->v[0]), j * BOX_ROW), j > 0);
        wgmma_commit();
        wgmma_wait<0>();
        pin(o);
        if ((x->unfit[0] | x->unfit[1]) != 0)
            add_unfit<D_V>(p, item, x->unfit, last, o);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int row = first + my_row + 8 * r;
            store_partial<D_V>(p, item.first_row + row, row < item.n_rows, r, o, max[r], sum[r]);
        }
    }
}

/* ---- Rows put their partials together */

static __device__ void add_halves(float (&o)[8], uint4 x, float weight)
{
    const uint32_t words[] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 y = __half22float2(*(const __half2 *)&words[i]);
        o[2 * i] = fmaf(y.x, weight, o[2 * i]);
        o[2 * i + 1] = fmaf(y.y, weight, o[2 * i + 1]);
    }
}

/* A warp for each row; blockIdx.y: its head. A partial is D/8 lanes, several are loaded at a time. */
template <int D>
static __global__ __launch_bounds__(WARP *WARPS, 9) void combine_kernel(const __grid_constant__ slc_fwd_blocks p)
{
    enum { LANES = D / 8, AT_ONCE = WARP / LANES, STEPS = 4 };
    const slc_fwd_sm90 &a = p.attn;
    const int32_t group = a.cfg.group, topk = a.cfg.c.slc_topk, lane = lane_index();
    const int32_t kv_head = (int32_t)blockIdx.y / group, head = (int32_t)blockIdx.y % group;
    for (int64_t token = first_item(); token < p.round.n; token += item_stride()) {
        place x;
        if (!find_place(a.seqs.cu_q, a.seqs.n, a.seqs.total_q, a.seqs.max_q, 1, p.round.first + token, &x))
            continue;
        const int32_t *places = p.lists.places + (kv_head * p.round.n + token) * topk;
        float max = -INFINITY, sum = 0.0F, o[8] = {};
        for (int first = 0; first < topk; first += WARP) {
            const int32_t named = first + lane < topk ? places[first + lane] : -1;
            const int32_t place = named < p.lists.room ? named : -1; /* more where cu_seqlens are not sound */
            if (!__any_sync(~0U, place >= 0))
                continue;
            slc_partial partial = {-INFINITY, 0.0F};
            if (place >= 0)
                partial = p.partials[(int64_t)place * group + head];
            const float largest = fmaxf(max, warp_max(partial.lse));
            const float keep = exp2_fast(max - largest), weight = exp2_fast(partial.lse - largest);
            const float scaled = weight * partial.scale;
            max = largest;
            sum = fmaf(sum, keep, weight);
#pragma unroll
            for (int c = 0; c < 8; c++)
                o[c] *= keep;
            for (int at = 0; at < min(WARP, topk - first); at += AT_ONCE * STEPS) {
                uint4 y[STEPS];
#pragma unroll
                for (int j = 0; j < STEPS; j++) {
                    const int from = at + j * AT_ONCE + lane / LANES;
                    const int64_t row = (int64_t)__shfl_sync(~0U, place, from) * group + head;
                    y[j] = row >= 0 ? __ldcs((const uint4 *)(p.o + row * D) + lane % LANES) : make_uint4(0, 0, 0, 0);
                }
#pragma unroll
                for (int j = 0; j < STEPS; j++)
                    add_halves(o, y[j], __shfl_sync(~0U, scaled, at + j * AT_ONCE + lane / LANES));
            }
        }
        sum = warp_sum(sum);
        const float one_over = sum == 0.0F ? 0.0F : 1.0F / sum;
        bf16 *to = (bf16 *)a.o.data + offset_at(a.o, x, blockIdx.y);
#pragma unroll
        for (int c = 0; c < 8; c++)
            for (int step = LANES; step < WARP; step *= 2)
                o[c] += __shfl_xor_sync(~0U, o[c], step);
        if (lane < LANES)
#pragma unroll
            for (int c = 0; c < 8; c += 2)
                *(uint32_t *)(to + channel_of(lane, c)) = pack2(o[c] * one_over, o[c + 1] * one_over);
        const float ln2 = 0.693147180559945309F;
        if (lane == 0)
            store(a.lse, offset_at(a.lse, x, blockIdx.y), sum == 0.0F ? -INFINITY : fmaf(max, ln2, logf(sum)));
    }
}

/* ---- Launches: all instantiations */

template <int D_QK, int D_V, int CTAS> static int launch(const slc_fwd_blocks &p, nsa_stream stream)
{
    const slc_fwd_sm90 &a = p.attn;
    const map_rows k = {a.seqs.n, a.seqs.max_k, a.seqs.total_k, a.cfg.c.n_heads_kv, D_QK},
                   v = {a.seqs.n, a.seqs.max_k, a.seqs.total_k, a.cfg.c.n_heads_kv, D_V};
    CUtensorMap k_map, v_map;
    const auto kernel = partials_kernel<D_QK, D_V, CTAS>;
    const int bytes = sizeof(blocks_shared<D_QK, D_V>);
    int error = tensor_map(&k_map, &a.k, &k, 1, KEYS);
    if (error == cudaSuccess)
        error = tensor_map(&v_map, &a.v, &v, 1, KEYS);
    if (error == cudaSuccess)
        error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess || p.lists.max_items == 0)
        return error;
    kernel<<<(unsigned)p.lists.max_items, THREADS, bytes, stream>>>(p, k_map, v_map);
    return cudaGetLastError();
}

int launch_slc_partials(const slc_fwd_blocks *p, nsa_stream stream)
{
    return p->attn.cfg.c.d_qk == 64 ? launch<64, 64, 5>(*p, stream) : launch<128, 128, 4>(*p, stream);
}

int launch_slc_combine(const slc_fwd_blocks *p, nsa_stream stream)
{
    const dim3 grid(grid_of(p->round.n, WARPS), (unsigned)p->attn.cfg.c.n_heads_q);
    if (p->attn.cfg.c.d_v == 64)
        combine_kernel<64><<<grid, WARP * WARPS, 0, stream>>>(*p);
    else
        combine_kernel<128><<<grid, WARP * WARPS, 0, stream>>>(*p);
    return cudaGetLastError();
}
