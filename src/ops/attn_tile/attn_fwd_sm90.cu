/*
 * The forward pass of cmp and win: attention over an interval of keys, which for win may be all of them.
 *
 *     o[t][h] = sum over lo(t) <= j < hi(t) of softmax(scale q[t][h] . k[j]) v[j]
 *
 * A tile is 128 rows, (token, head of a group): all heads of 128/group tokens, so K and V are read once for a group.
 * Blocks are persistent, one for each SM, and draw tiles from a counter: kv heads one after the other, so that their K
 * and V stay in L2, and in each the late tokens first, which see most.
 *
 *     warps 0-3     producer: one thread finds tiles and has the copy engine bring q, and K and V into rings of stages
 *     warps 4-11    two warpgroups of consumers, 64 rows each, in registers s, p, o:
 *
 *     gQ, gK -> sQ, sK -> rS -> rP (bf16)     gV -> sV     rP, sV -> rO -> gO
 *
 * A consumer starts s of a tile of keys together with p v of the tile before it, and makes p of s while p v runs. The
 * two take turns in starting theirs, so that one's softmax meets the other's products. Tiles have 128 keys or 176,
 * whatever is cheaper: a window of 512 and 8 tokens is three tiles of 176.
 *
 * Barriers: q_full, q_empty; k_full, k_empty, v_full, v_empty of each stage; named ones, TURN (+ warpgroup) and
 * CLEANED.
 *
 * Masks: only tiles of keys that a token does not see whole are masked, by a select. Behind the mask p is 0, but 0
 * times a V that is not finite is not 0. So V beyond the end of the sequence is zeroed in shared memory; and a tile
 * with a result that is not finite is done again by a second launch, for one token at a time, with all V that the
 * token does not see zeroed. Its results have the bits that any other V there gives.
 *
 * Numerics: s, o and sums in float32, exponentials of base 2 with the scale folded in, p rounded to bf16 after it was
 * summed. The maximum that s is taken relative to stays until a later one is 2^8 times as large. A row without keys has
 * o = 0, lse = -inf.
 *
 * Cost: 2 (d_qk + d_v) operations per (row, key) against 990 TFLOP/s, and at d 128 as long for its exponential.
 * Measured on one H100 (CUDA 13.0, 2026-11-24), 64 query and 4 kv heads, medians of runs back to back, in brackets the
 * fastest, before the clock falls:
 *
 *     d 128, dense 8k    1.76 (1.60) ms    626 (688) TFLOP/s
 *     d 128, cmp 64k     7.42 (7.05) ms    593 (624) TFLOP/s
 *     d 128, win 64k     2.41 (2.14) ms    455 (511) TFLOP/s
 *     d 64 / 192 and 128 / 256, dense 8k    1.42 / 1.96 / 3.22 ms    389 / 703 / 684 TFLOP/s
 *
 * Lost: to start the next tile's s before o is stored (win 5% slower: it waits for K in front of the stores); two
 * stages of q; the next tile drawn ahead of time; q in registers (1% behind tiles of 176 keys).
 */
#include "cuda/sm90.cuh"
#include "ops/attn_tile/attn_sm90.h"

enum {
    CONSUMERS = 2, /* warpgroups */
    CONSUMER_WARPS = CONSUMERS * WARPGROUP / WARP,
    THREADS = (CONSUMERS + 1) * WARPGROUP,
    Q_BOX_BYTES = FWD_ROWS * BOX_ROW,
    TURN = 1, /* named barriers: of warpgroup 0; of warpgroup 1 */
    CLEANED = TURN + CONSUMERS,
    TILES = 3
};

/* Keys lo .. hi - 1 of a sequence. */
typedef struct key_range {
    int32_t lo, hi;
} key_range;

typedef struct tile {
    place at;           /* of its first row */
    int32_t n_tokens;   /* 0: there are no more tiles */
    int32_t t;          /* position of the first token */
    int32_t n_keys;     /* of the sequence */
    key_range any, all; /* the keys that some token sees, that all tokens see */
    int32_t again;      /* the one token that is to be done again; -1: all are done */
    int64_t index;      /* of attn_fwd_sm90.again */
} tile;

template <int D_QK, int D_V, int KEYS, int STAGES> struct fwd_shared {
    bf16 q[D_QK / BOX_CHANNELS][FWD_ROWS][BOX_CHANNELS];
    bf16 k[STAGES][D_QK / BOX_CHANNELS][KEYS][BOX_CHANNELS];
    bf16 v[STAGES][D_V / BOX_CHANNELS][KEYS][BOX_CHANNELS];
    tile tiles[TILES]; /* by turns: the one whose o is stored, the one whose q is there, the next */
    uint64_t q_full, q_empty, k_full[STAGES], k_empty[STAGES], v_full[STAGES], v_empty[STAGES];
};

#define FWD_TEMPLATE template <int D_QK, int D_V, int KEYS, int STAGES>
#define FWD_SHARED fwd_shared<D_QK, D_V, KEYS, STAGES>

/* ---- Tiles */

static __device__ key_range keys_seen(const attn_fwd_sm90 &p, int64_t t)
{
    const nsa_config &c = p.cfg.c;
    const int64_t lo = p.branch == NSA_WIN ? max64(0, t - c.win_size + 1) : 0;
    const int64_t hi = p.branch == NSA_WIN ? max64(0, t + 1) : n_cmp_seen(c, t);
    const key_range x = {(int32_t)lo, (int32_t)hi};
    return x;
}

/* Number i of a kv head; false if no token has it. Sequence s has the numbers cu[s]/tile_tokens + s and up. */
static __device__ bool find_tile(const attn_fwd_sm90 &p, int32_t kv_head, int64_t i, tile *x)
{
    const simt_seqs &seqs = p.seqs;
    int32_t lo = 0, hi = seqs.n;
    while (hi - lo > 1) {
        const int32_t mid = lo + (hi - lo) / 2;
        if ((int64_t)seqs.cu_q[mid] / p.tile_tokens + mid <= i)
            lo = mid;
        else
            hi = mid;
    }
    x->at.s = lo;
    x->at.head = kv_head * p.cfg.group;
    x->at.seq = seq_q(seqs, lo);
    x->at.row = (i - (x->at.seq.start / p.tile_tokens + lo)) * p.tile_tokens;
    if (x->at.row < 0 || x->at.row >= x->at.seq.n)
        return false;
    x->n_tokens = (int32_t)min64(p.tile_tokens, x->at.seq.n - x->at.row);
    const seq_range k = seq_k(seqs, lo);
    x->n_keys = (int32_t)(p.branch == NSA_CMP ? n_cmp_seen(p.cfg.c, k.n - 1) : k.n);
    x->t = (int32_t)(x->at.row + k.n - x->at.seq.n);
    const key_range first = keys_seen(p, x->t), last = keys_seen(p, (int64_t)x->t + x->n_tokens - 1);
    x->any = {first.lo, last.hi};
    x->all = {last.lo, first.hi};
    return true;
}

/* The next tile to do after `last`, whose n_tokens is 0 at first. */
static __device__ void next_tile(const attn_fwd_sm90 &p, bool again, const tile *last, tile *x)
{
    if (again && last->n_tokens > 0 && last->again + 1 < last->n_tokens) {
        *x = *last;
        x->again++;
        return;
    }
    do {
        x->index = (int64_t)atomicAdd(&p.state->next_tile[again], 1ULL);
        x->n_tokens = 0;
        x->any = {0, 0};
        if (x->index >= p.n_tiles * p.cfg.c.n_heads_kv)
            return;
    } while ((again && !p.again[x->index]) ||
             !find_tile(p, (int32_t)(x->index / p.n_tiles), p.n_tiles - 1 - x->index % p.n_tiles, x));
    x->again = again ? 0 : -1;
}

template <int KEYS> static __device__ int n_key_tiles(const tile &x)
{
    return (max(0, x.any.hi - x.any.lo) + KEYS - 1) / KEYS;
}

/* ---- Producer */

/* Stage i%STAGES, where users of both kinds count i up. */
template <int STAGES> static __device__ void wait_full(uint64_t *full, uint32_t i)
{
    mbar_wait(full + i % STAGES, i / STAGES & 1);
}

template <int STAGES> static __device__ void wait_empty(uint64_t *empty, uint32_t i)
{
    mbar_wait(empty + i % STAGES, (i / STAGES & 1) ^ 1);
}

/* A tile of K or of V into stage i. */
template <int D, int KEYS, int STAGES>
static __device__ void fill_stage(bf16 (*stages)[D / BOX_CHANNELS][KEYS][BOX_CHANNELS], uint64_t *full, uint64_t *empty,
                                  uint32_t i, const CUtensorMap *map, int head, int row, int s)
{
    wait_empty<STAGES>(empty, i);
    mbar_arrive_expect(full + i % STAGES, KEYS * D * sizeof(bf16));
    copy_tile<D>(stages[i % STAGES], KEYS * BOX_ROW, map, full + i % STAGES, head, row, s);
}

FWD_TEMPLATE static __device__ void produce(const attn_fwd_sm90 &p, bool again, const CUtensorMap *q_map,
                                            const CUtensorMap *k_map, const CUtensorMap *v_map, FWD_SHARED *x)
{
    const bool q_packed = p.q.stride_seq == 0, k_packed = p.k.stride_seq == 0, v_packed = p.v.stride_seq == 0;
    uint32_t i = 0; /* tiles of keys so far */
    x->tiles[TILES - 1].n_tokens = 0;
    for (uint32_t n = 0;; n++) {
        tile &t = x->tiles[n % TILES];
        next_tile(p, again, &x->tiles[(n + TILES - 1) % TILES], &t);
        wait_empty<1>(&x->q_empty, n);
        if (t.n_tokens == 0) {
            mbar_arrive(&x->q_full);
            return;
        }
        mbar_arrive_expect(&x->q_full, (uint32_t)(p.tile_tokens * p.cfg.group * D_QK * (int)sizeof(bf16)));
        copy_tile<D_QK>(x->q, Q_BOX_BYTES, q_map, &x->q_full, t.at.head,
                        (int)((q_packed ? t.at.seq.start : 0) + t.at.row), q_packed ? 0 : t.at.s);
        const int head = t.at.head / p.cfg.group, n_tiles = n_key_tiles<KEYS>(t);
        const int k_s = k_packed ? 0 : t.at.s, v_s = v_packed ? 0 : t.at.s;
        const int start = (int)seq_k(p.seqs, t.at.s).start / (p.branch == NSA_CMP ? p.cfg.c.cmp_stride : 1);
        int k_row = (k_packed ? start : 0) + t.any.lo, v_row = (v_packed ? start : 0) + t.any.lo;
        for (int j = 0; j <= n_tiles; j++) { /* in the order of their use */
            if (j < n_tiles)
                fill_stage<D_QK, KEYS, STAGES>(x->k, x->k_full, x->k_empty, i + j, k_map, head, k_row + j * KEYS, k_s);
            if (j > 0)
                fill_stage<D_V, KEYS, STAGES>(x->v, x->v_full, x->v_empty, i + j - 1, v_map, head,
                                              v_row + (j - 1) * KEYS, v_s);
        }
        i += n_tiles;
    }
}

/* ---- Consumers. A thread has two rows of a tile, and of each a quarter of the columns: sm90.cuh */

typedef struct softmax_rows {
    key_range keys[2]; /* that the rows see */
    float max[2], sum[2];
} softmax_rows;

/* Of warpgroups: the same for all threads of a warp, and the compiler is to know it. */
static __device__ int consumer_index()
{
    return __shfl_sync(~0U, (int)threadIdx.x / WARPGROUP, 0) - 1;
}

static __device__ int row_of_thread(int r)
{
    return (int)(threadIdx.x - WARPGROUP) / WARP * 16 + lane_index() / 4 + 8 * r;
}

static __device__ softmax_rows start_rows(const attn_fwd_sm90 &p, const tile &t)
{
    softmax_rows x;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        x.keys[r] = keys_seen(p, t.t + row_of_thread(r) / p.cfg.group);
        x.max[r] = -INFINITY;
        x.sum[r] = 0.0F;
    }
    return x;
}

/* Scores of keys from `first` on that lie before those that a row sees, or behind them: -inf. */
template <int N> static __device__ void mask_before(float (&s)[N], const softmax_rows &x, int first)
{
#pragma unroll
    for (int i = 0; i < N; i++)
        if (i / 4 * 8 + i % 2 < x.keys[i / 2 % 2].lo - first - lane_index() % 4 * 2)
            s[i] = -INFINITY;
}

template <int N> static __device__ void mask_behind(float (&s)[N], const softmax_rows &x, int first)
{
#pragma unroll
    for (int i = 0; i < N; i++)
        if (i / 4 * 8 + i % 2 >= x.keys[i / 2 % 2].hi - first - lane_index() % 4 * 2)
            s[i] = -INFINITY;
}

/* s becomes p = exp(s - max); the rows' sums so far count `keep` times. max stays while no s is far above it: then
 * there is nothing to multiply, and p is at most 2^FAR. scale: times log2(e). */
template <int N> static __device__ void softmax(float (&s)[N], softmax_rows *x, float keep[2], float scale)
{
    constexpr float FAR = 8.0F;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float top[2] = {x->max[r], s[2 * r]};
#pragma unroll
        for (int i = 0; i < N / 4; i++)
#pragma unroll
            for (int c = 0; c < 2; c++)
                top[c] = fmaxf(top[c], s[4 * i + 2 * r + c]);
        float max = fmaxf(top[0], top[1]);
        max = fmaxf(max, __shfl_xor_sync(~0U, max, 1));
        max = fmaxf(max, __shfl_xor_sync(~0U, max, 2));
        const bool moves = max * scale > fmaf(x->max[r], scale, FAR);
        keep[r] = moves ? exp2_fast((x->max[r] - max) * scale) : 1.0F;
        x->max[r] = moves ? max : x->max[r];
        const float shift = x->max[r] == -INFINITY ? 0.0F : x->max[r] * scale;
        float sum[2] = {x->sum[r] * keep[r], 0.0F};
#pragma unroll
        for (int i = 0; i < N / 4; i++)
#pragma unroll
            for (int c = 0; c < 2; c++) {
                float &e = s[4 * i + 2 * r + c];
                e = exp2_fast(fmaf(e, scale, -shift));
                sum[c] += e;
            }
        x->sum[r] = sum[0] + sum[1];
    }
}

/* Starts s = q k of stage i, once it is there. */
FWD_TEMPLATE static __device__ void start_scores(float (&s)[KEYS / 2], FWD_SHARED *x, uint32_t i)
{
    const int group = consumer_index();
    wait_full<STAGES>(x->k_full, i);
    wgmma_fence();
#pragma unroll
    for (int c = 0; c < D_QK; c += 16)
        wgmma<KEYS>(s, further(along_k(x->q[c / BOX_CHANNELS][group * 64]), c % BOX_CHANNELS * 2),
                    further(along_k(x->k[i % STAGES][c / BOX_CHANNELS]), c % BOX_CHANNELS * 2), c > 0);
    wgmma_commit();
}

/* Starts o += p v of stage i, once it is there. */
FWD_TEMPLATE static __device__ void start_values(float (&o)[D_V / 2], const uint32_t (&p)[KEYS / 4], FWD_SHARED *x,
                                                 uint32_t i)
{
    wait_full<STAGES>(x->v_full, i);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < KEYS; j += 16)
        wgmma<D_V, 1>(o, p + j / 4, further(along_mn(x->v[i % STAGES], KEYS * BOX_ROW), j * BOX_ROW), 1);
    wgmma_commit();
}

/* Zeroes V of stage i, keys `first` and up, where it lies outside the sequence, or outside of what the token that is
 * done again sees. */
FWD_TEMPLATE static __device__ void clean_values(const attn_fwd_sm90 &p, const tile &t, FWD_SHARED *x, uint32_t i,
                                                 int first)
{
    const key_range keep = t.again < 0 ? (key_range){0, t.n_keys} : keys_seen(p, t.t + t.again);
    if (first >= keep.lo && first + KEYS <= keep.hi)
        return;
    wait_full<STAGES>(x->v_full, i);
    enum { CHUNKS = BOX_ROW / 16 };
    for (int at = (int)threadIdx.x - WARPGROUP; at < D_V / BOX_CHANNELS * KEYS * CHUNKS; at += CONSUMERS * WARPGROUP) {
        const int key = first + at / CHUNKS % KEYS;
        if (key < keep.lo || key >= keep.hi)
            ((uint4 *)x->v[i % STAGES])[at] = make_uint4(0, 0, 0, 0);
    }
    fence_async();
    bar_sync(CLEANED, CONSUMERS * WARPGROUP);
}

/* After wgmma_wait, in each warp: the copy engine may fill it again. */
static __device__ void release(uint64_t *empty)
{
    __syncwarp();
    if (lane_index() == 0)
        mbar_arrive(empty);
}

template <int N> static __device__ void round_to(uint32_t (&p)[N / 2], const float (&s)[N])
{
#pragma unroll
    for (int i = 0; i < N / 2; i++)
        p[i] = pack2(s[2 * i], s[2 * i + 1]);
}

/* o and the sums of softmax over n tiles of keys, which are stages i and up. */
FWD_TEMPLATE static __device__ void attend(const attn_fwd_sm90 &p, const tile &t, FWD_SHARED *x, uint32_t i, int n,
                                           softmax_rows *rows, float (&o)[D_V / 2])
{
    const int group = consumer_index();
    const float scale = p.cfg.scale * 1.44269504F;
    float s[KEYS / 2], keep[2];
    uint32_t probs[KEYS / 4];
    start_scores<D_QK, D_V, KEYS, STAGES>(s, x, i);
    wgmma_wait<0>();
    pin(s);
    for (int j = 0;; j++) {
        const int first = t.any.lo + j * KEYS;
        release(&x->k_empty[(i + j) % STAGES]);
        if (j == n - 1)
            release(&x->q_empty);
        if (first < t.all.lo)
            mask_before(s, *rows, first);
        if (first + KEYS > t.all.hi)
            mask_behind(s, *rows, first);
        softmax(s, rows, keep, scale);
        if (j > 0) {
            wgmma_wait<0>();
            pin(o);
            pin(probs);
            release(&x->v_empty[(i + j - 1) % STAGES]);
            if (__any_sync(~0U, keep[0] != 1.0F || keep[1] != 1.0F)) {
#pragma unroll
                for (int c = 0; c < D_V / 2; c++)
                    o[c] *= keep[c / 2 % 2];
            }
        }
        round_to(probs, s);
        clean_values<D_QK, D_V, KEYS, STAGES>(p, t, x, i + j, first);
        if (j == n - 1)
            break;
        bar_sync(TURN + group, CONSUMERS * WARPGROUP);
        start_scores<D_QK, D_V, KEYS, STAGES>(s, x, i + j + 1);
        start_values<D_QK, D_V, KEYS, STAGES>(o, probs, x, i + j);
        bar_arrive(TURN + (group ^ 1), CONSUMERS * WARPGROUP);
        wgmma_wait<1>();
        pin(s);
    }
    start_values<D_QK, D_V, KEYS, STAGES>(o, probs, x, i + n - 1);
    wgmma_wait<0>();
    pin(o);
    release(&x->v_empty[(i + n - 1) % STAGES]);
}

/* Lane l of four had words [0 .. 3] of column l of a 4x4 matrix: it gets those of row l. */
static __device__ void transpose4(uint32_t (&w)[4])
{
#pragma unroll
    for (int bit = 1; bit <= 2; bit *= 2) {
        const bool upper = lane_index() & bit;
#pragma unroll
        for (int i = 0; i < 4; i++)
            if ((i & bit) == 0) {
                const uint32_t other = __shfl_xor_sync(~0U, upper ? w[i] : w[i + bit], bit);
                w[i] = upper ? other : w[i];
                w[i + bit] = upper ? w[i + bit] : other;
            }
    }
}

/* Rows of o, divided by their sums, 16 bytes at a time, and of lse. */
template <int D_V>
static __device__ void store_rows(const attn_fwd_sm90 &p, const tile &t, const softmax_rows &x,
                                  const float (&o)[D_V / 2])
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = row_of_thread(r), token = row / p.cfg.group, head = row % p.cfg.group;
        const bool stores = token < t.n_tokens && (t.again < 0 || t.again == token);
        place at = t.at;
        at.row += token;
        at.head += head;
        float sum = x.sum[r];
        sum += __shfl_xor_sync(~0U, sum, 1);
        sum += __shfl_xor_sync(~0U, sum, 2);
        const bool empty = sum == 0.0F;
        const float factor = empty ? 0.0F : 1.0F / sum;
        bf16 *to = (bf16 *)p.o.data + offset_at(p.o, at, at.head) + lane_index() % 4 * 8;
        float finite = 0.0F; /* NaN if a result is not */
#pragma unroll
        for (int i = 0; i < D_V / 32; i++) {
            uint32_t w[4];
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const float lo = o[4 * (4 * i + c) + 2 * r] * factor, hi = o[4 * (4 * i + c) + 2 * r + 1] * factor;
                finite = fmaf(lo, 0.0F, fmaf(hi, 0.0F, finite));
                w[c] = empty ? 0 : pack2(lo, hi);
            }
            transpose4(w);
            if (stores)
                *(uint4 *)(to + 32 * i) = make_uint4(w[0], w[1], w[2], w[3]);
        }
        if (stores && lane_index() % 4 == 0)
            ((float *)p.lse.data)[offset_at(p.lse, at, at.head)] =
                empty ? -INFINITY : 0.69314718F * fmaf(x.max[r], p.cfg.scale * 1.44269504F, log2f(sum));
        if (stores && !empty && finite != 0.0F)
            p.again[t.index] = 1, p.state->any_again = 1;
    }
}

FWD_TEMPLATE static __device__ void consume(const attn_fwd_sm90 &p, FWD_SHARED *x)
{
    const int group = consumer_index();
    if (group == 1)
        bar_arrive(TURN, CONSUMERS * WARPGROUP);
    uint32_t i = 0; /* tiles of keys so far */
    for (uint32_t n = 0;; n++) {
        mbar_wait(&x->q_full, n & 1);
        const tile &t = x->tiles[n % TILES];
        if (t.n_tokens == 0)
            return;
        const int n_tiles = n_key_tiles<KEYS>(t);
        softmax_rows rows = start_rows(p, t);
        float o[D_V / 2];
#pragma unroll
        for (int c = 0; c < D_V / 2; c++)
            o[c] = 0.0F;
        if (n_tiles > 0)
            attend<D_QK, D_V, KEYS, STAGES>(p, t, x, i, n_tiles, &rows, o);
        else
            release(&x->q_empty);
        store_rows<D_V>(p, t, rows, o);
        i += n_tiles;
    }
}

/* ---- The kernel */

FWD_TEMPLATE static __global__ __launch_bounds__(THREADS, 1) void forward_kernel(
    const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap k_map,
    const __grid_constant__ CUtensorMap v_map, const __grid_constant__ attn_fwd_sm90 p, bool again)
{
    extern __shared__ __align__(1024) unsigned char memory[];
    FWD_SHARED *x = (FWD_SHARED *)memory;
    if (again && p.state->any_again == 0)
        return;
    if (threadIdx.x == 0) {
        mbar_init(&x->q_full, 1);
        mbar_init(&x->q_empty, CONSUMER_WARPS);
        for (int i = 0; i < STAGES; i++) {
            mbar_init(&x->k_full[i], 1);
            mbar_init(&x->v_full[i], 1);
            mbar_init(&x->k_empty[i], CONSUMER_WARPS);
            mbar_init(&x->v_empty[i], CONSUMER_WARPS);
        }
        fence_mbar_init();
    }
    __syncthreads();
    if (threadIdx.x < WARPGROUP) {
        registers_down<40>();
        if (threadIdx.x == 0)
            produce<D_QK, D_V, KEYS, STAGES>(p, again, &q_map, &k_map, &v_map, x);
    } else {
        registers_up<232>();
        consume<D_QK, D_V, KEYS, STAGES>(p, x);
    }
}

FWD_TEMPLATE static int launch(const attn_fwd_sm90 *p, nsa_stream stream)
{
    const simt_seqs *seqs = &p->seqs;
    const nsa_config *c = &p->cfg.c;
    const bool cmp = p->branch == NSA_CMP;
    const map_rows q = {seqs->n, seqs->max_q, seqs->total_q, c->n_heads_q, D_QK};
    map_rows k = {seqs->n, seqs->max_k, seqs->total_k, c->n_heads_kv, D_QK};
    if (cmp) {
        k.max = nsa_n_cmp(c, k.max);
        k.total /= c->cmp_stride;
    }
    map_rows v = k;
    v.d = D_V;
    CUtensorMap q_map, k_map, v_map;
    const auto kernel = forward_kernel<D_QK, D_V, KEYS, STAGES>;
    const size_t bytes = sizeof(FWD_SHARED), state_bytes = (size_t)(p->again - (unsigned char *)p->state);
    const int64_t n_tiles = p->n_tiles * c->n_heads_kv;
    int error, device, n_sms;
    if ((error = tensor_map(&q_map, &p->q, &q, p->cfg.group, p->tile_tokens)) != 0 ||
        (error = tensor_map(&k_map, &p->k, &k, 1, KEYS)) != 0 ||
        (error = tensor_map(&v_map, &p->v, &v, 1, KEYS)) != 0 || (error = cudaGetDevice(&device)) != 0 ||
        (error = cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, device)) != 0 ||
        (error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes)) != 0 ||
        (error = cudaMemsetAsync(p->state, 0, state_bytes + (size_t)n_tiles, stream)) != 0)
        return error;
    const unsigned grid = (unsigned)(n_tiles < n_sms ? n_tiles : n_sms);
    for (int again = 0; again < 2; again++)
        kernel<<<grid, THREADS, bytes, stream>>>(q_map, k_map, v_map, *p, again);
    return cudaGetLastError();
}

/* What tiles of so many keys cost for the average tile of rows: each as much as its keys, and 16 more. */
static double cost(const attn_fwd_sm90 *p, int keys)
{
    const nsa_config *c = &p->cfg.c;
    const double all = p->branch == NSA_CMP ? (double)p->seqs.max_k / c->cmp_stride : (double)p->seqs.max_k;
    const bool slides = p->branch == NSA_WIN && c->win_size < p->seqs.max_k;
    const double n = slides ? ceil(((double)c->win_size + p->tile_tokens - 1) / keys) : all / 2 / keys + 0.5;
    return n * (keys + 16);
}

int launch_attn_fwd_sm90(const attn_fwd_sm90 *p, nsa_stream stream)
{
    const bool wide = cost(p, 176) < cost(p, 128);
    switch (p->cfg.c.d_qk) {
    case 64: return wide ? launch<64, 64, 176, 3>(p, stream) : launch<64, 64, 128, 4>(p, stream);
    case 128: return wide ? launch<128, 128, 176, 2>(p, stream) : launch<128, 128, 128, 2>(p, stream);
    case 192: return launch<192, 128, 128, 2>(p, stream);
    default: return launch<256, 256, 64, 2>(p, stream);
    }
}
