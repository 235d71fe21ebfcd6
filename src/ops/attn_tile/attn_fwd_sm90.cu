/*
 * The forward pass of cmp and win: attention over an interval of keys, which for win may be all of them; and with win,
 * if it is wanted, the gated sum of the branches.
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
 *     gQ, gK -> sQ, sK -> rS -> rP (bf16)     gV -> sV     rP, sV -> rO -> sO (bf16) -> gO
 *
 * A consumer starts s of a tile of keys together with p v of the tile before it, and makes p of s while p v runs. The
 * two take turns in starting theirs, so that one's softmax meets the other's products. Tiles have 128 keys or 176,
 * whatever is cheaper: a window of 512 and 8 tokens is three tiles of 176.
 *
 * The gated sum needs o_cmp, o_slc and the gates of the tile's rows. They come into registers, which s has left, while
 * the last product runs. o is rounded first: the sum has the bits that op gate makes of the three, whether o of win is
 * kept or not.
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
 * Measured on one H200 (CUDA 13.0, 2026-11-28), 64 query and 4 kv heads, medians after 250 ms of the same, when the
 * clock has fallen; in brackets the fastest before:
 *
 *     d 128, dense 8k            1.83 (1.57) ms    601 (700) TFLOP/s
 *     d 128, cmp 64k             7.67 (6.6) ms     573 (667) TFLOP/s
 *     d 128, win 64k             2.26 (1.95) ms    485 (564) TFLOP/s
 *     and the gated sum          3.32 (2.80) ms; 2.83 (2.60) where o of win is not kept. Op gate alone: 1.15
 *     d 64 / 192 and 128 / 256, dense 8k, on one H100: 1.42 / 1.96 / 3.22 ms    389 / 703 / 684 TFLOP/s
 *
 * Since then the first K of a tile is asked for ahead of its q (1% to 3% less before the clock falls; win by itself 1%
 * more), and a tile's bounds are read once: in `nsa bench` dense 8k takes 1.73 ms, cmp 7.4, win 2.27 (41d92a6).
 *
 * By the clock of an SM a tile of win takes 17000 cycles, 8400 of them products: s and p v of 176 keys take 1250 to
 * start, for a warpgroup waits until the last one runs; then softmax 1500 to 2100 (500 instructions; slower while the
 * other's products run), rounding and turns 500. The end of a tile takes 2000 more, its start 700. Loads are not waited
 * for. So instructions count: rows' places are looked up, not divided out (ends of tiles took 2800, starts 900), rows
 * are turned in shared memory, masks look at 32 columns at a time.
 *
 * Lost: to start the next tile's s before o is stored (K at hand: win 4% slower, dense 8k 2% faster); o_cmp and o_slc
 * brought to the second-level cache at a tile's start, and K at hand (2% slower); two stages of q; the next tile drawn
 * ahead of time; q in registers (1% behind tiles of 176 keys). To leave storing to the producer's idle warps there is
 * no room: 16 KB more.
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

/* Where the first row of a tile lies in the tensors that consumers read or write. */
typedef struct tile_offsets {
    int64_t o, lse, gate, o_cmp, o_slc, gated;
} tile_offsets;

typedef struct tile {
    place at; /* of its first row */
    tile_offsets from;
    int32_t n_tokens;   /* 0: there are no more tiles */
    int32_t t;          /* position of the first token */
    int32_t n_keys;     /* of the sequence */
    key_range any, all; /* the keys that some token sees, that all tokens see */
    int32_t again;      /* the one token that is to be done again; -1: all are done */
    int64_t index;      /* of attn_fwd_sm90.again */
} tile;

/* A row of every tile: which of its tokens, and which head of the group. */
typedef struct tile_row {
    int16_t token, head;
} tile_row;

template <int D_QK, int D_V, int KEYS, int STAGES> struct fwd_shared {
    bf16 q[D_QK / BOX_CHANNELS][FWD_ROWS][BOX_CHANNELS];
    bf16 k[STAGES][D_QK / BOX_CHANNELS][KEYS][BOX_CHANNELS];
    bf16 v[STAGES][D_V / BOX_CHANNELS][KEYS][BOX_CHANNELS];
    bf16 o[CONSUMER_WARPS][16][BOX_CHANNELS]; /* of a warp's rows, on their way out */
    tile_row rows[FWD_ROWS];
    tile tiles[TILES]; /* by turns: the one whose o is stored, the one whose q is there, the next */
    uint64_t q_full, q_empty, k_full[STAGES], k_empty[STAGES], v_full[STAGES], v_empty[STAGES];
};

#define FWD_TEMPLATE template <int D_QK, int D_V, int KEYS, int STAGES>
#define FWD_SHARED fwd_shared<D_QK, D_V, KEYS, STAGES>

/* ---- Tiles */

static __device__ key_range keys_seen(const attn_fwd_sm90 &p, int32_t t)
{
    const nsa_config &c = p.cfg.c;
    if (p.branch == NSA_WIN)
        return {t < c.win_size ? 0 : t - c.win_size + 1, max(0, t + 1)};
    return {0, t < c.cmp_block - 1 ? 0 : (int32_t)((uint32_t)(t - c.cmp_block + 1) / (uint32_t)c.cmp_stride) + 1};
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
    const key_range first = keys_seen(p, x->t), last = keys_seen(p, x->t + x->n_tokens - 1);
    x->any = {first.lo, last.hi};
    x->all = {last.lo, first.hi};
    x->from = {
        offset_at(p.o, x->at, x->at.head),           offset_at(p.lse, x->at, x->at.head),
        offset_at(p.gates.gate, x->at, x->at.head),  offset_at(p.gates.o_cmp, x->at, x->at.head),
        offset_at(p.gates.o_slc, x->at, x->at.head), offset_at(p.gates.o, x->at, x->at.head),
    };
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

/* Where no key is seen one tile is masked whole. */
template <int KEYS> static __device__ int n_key_tiles(const tile &x)
{
    return max(1, (x.any.hi - x.any.lo + KEYS - 1) / KEYS);
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
        if (t.n_tokens == 0) {
            wait_empty<1>(&x->q_empty, n); /* or q_full would be two tiles ahead */
            mbar_arrive(&x->q_full);
            return;
        }
        const int head = t.at.head / p.cfg.group, n_tiles = n_key_tiles<KEYS>(t);
        const int k_s = k_packed ? 0 : t.at.s, v_s = v_packed ? 0 : t.at.s;
        const int start = (int)seq_k(p.seqs, t.at.s).start / (p.branch == NSA_CMP ? p.cfg.c.cmp_stride : 1);
        const int k_row = (k_packed ? start : 0) + t.any.lo, v_row = (v_packed ? start : 0) + t.any.lo;
        fill_stage<D_QK, KEYS, STAGES>(x->k, x->k_full, x->k_empty, i, k_map, head, k_row, k_s);
        wait_empty<1>(&x->q_empty, n);
        mbar_arrive_expect(&x->q_full, (uint32_t)(p.tile_tokens * p.cfg.group * D_QK * (int)sizeof(bf16)));
        copy_tile<D_QK>(x->q, Q_BOX_BYTES, q_map, &x->q_full, t.at.head,
                        (int)((q_packed ? t.at.seq.start : 0) + t.at.row), q_packed ? 0 : t.at.s);
        for (int j = 0; j <= n_tiles; j++) { /* in the order of their use */
            if (0 < j && j < n_tiles)
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

/* The first of a warp's 16 rows; the two of a thread among them, r 0 and 1. */
static __device__ int first_row()
{
    return (int)(threadIdx.x - WARPGROUP) / WARP * 16;
}

static __device__ int row_of_thread(int r)
{
    return first_row() + lane_index() / 4 + 8 * r;
}

static __device__ softmax_rows start_rows(const attn_fwd_sm90 &p, const tile &t, const tile_row *tile_rows)
{
    softmax_rows x;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        x.keys[r] = keys_seen(p, t.t + min(tile_rows[row_of_thread(r)].token, t.n_tokens - 1));
        x.max[r] = -INFINITY;
        x.sum[r] = 0.0F;
    }
    return x;
}

/* Scores of keys from `first` on that lie before those that a row sees, or behind them: -inf. All rows see the keys of
 * `all`: of 32 columns within it none is looked at. */
template <int N> static __device__ void mask_before(float (&s)[N], const softmax_rows &x, int first, key_range all)
{
#pragma unroll
    for (int g = 0; g < N; g += 16)
        if (first + 2 * g < all.lo)
#pragma unroll
            for (int i = g; i < g + 16 && i < N; i++)
                if (i / 4 * 8 + i % 2 < x.keys[i / 2 % 2].lo - first - lane_index() % 4 * 2)
                    s[i] = -INFINITY;
}

template <int N> static __device__ void mask_behind(float (&s)[N], const softmax_rows &x, int first, key_range all)
{
#pragma unroll
    for (int g = 0; g < N; g += 16)
        if (first + 2 * g + 32 > all.hi)
#pragma unroll
            for (int i = g; i < g + 16 && i < N; i++)
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
        const float max = quad_max(fmaxf(top[0], top[1]));
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

/* Zeroes V of stage i, keys `first` and up, but for those in `keep`. */
FWD_TEMPLATE static __device__ void clean_values(FWD_SHARED *x, uint32_t i, int first, key_range keep)
{
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

/* o and the sums of softmax over n tiles of keys, which are stages i and up. The last product is still under
 * way. */
FWD_TEMPLATE static __device__ void attend(const attn_fwd_sm90 &p, const tile &t, FWD_SHARED *x, uint32_t i, int n,
                                           softmax_rows *rows, float (&o)[D_V / 2])
{
    const int group = consumer_index();
    const float scale = p.cfg.scale * 1.44269504F;
    /* Once for all tiles of keys. Of V is kept what lies in the sequence, or what the token sees that is done again. */
    const key_range any = t.any, all = t.all,
                    kept = t.again < 0 ? (key_range){0, t.n_keys} : keys_seen(p, t.t + t.again);
    float s[KEYS / 2], keep[2];
    uint32_t probs[KEYS / 4];
    start_scores<D_QK, D_V, KEYS, STAGES>(s, x, i);
    wgmma_wait<0>();
    pin(s);
    for (int j = 0;; j++) {
        const int first = any.lo + j * KEYS;
        release(&x->k_empty[(i + j) % STAGES]);
        if (j == n - 1)
            release(&x->q_empty);
        if (first < all.lo)
            mask_before(s, *rows, first, all);
        if (first + KEYS > all.hi)
            mask_behind(s, *rows, first, all);
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
        clean_values<D_QK, D_V, KEYS, STAGES>(x, i + j, first, kept);
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
}

/* ---- The end of a tile. Rows go out by way of shared memory, 64 channels of a warp's 16 rows at a time: a thread has
 * 8 channels, from 8 (l%8) on, of rows l/8 + 4 i */

/* Of those rows, the gates and the other branches. */
template <int D_V> struct other_branches {
    float gate[4][NSA_N_BRANCHES];
    uint4 cmp[4][D_V / BOX_CHANNELS], slc[4][D_V / BOX_CHANNELS];
};

static __device__ int64_t offset_of_row(const nsa_tensor &x, tile_row row)
{
    return (int64_t)((uint32_t)row.token * (uint64_t)x.stride_token + (uint32_t)row.head * (uint64_t)x.stride_head);
}

/* The thread's channels of a row of a tensor whose tile starts at `from`. */
static __device__ uint4 *chunks_at(const nsa_tensor &x, int64_t from, tile_row row)
{
    return (uint4 *)((bf16 *)x.data + from + offset_of_row(x, row)) + lane_index() % 8;
}

static __device__ bool is_stored(const tile &t, tile_row row)
{
    return row.token < t.n_tokens && (t.again < 0 || t.again == row.token);
}

template <int D_V>
static __device__ void load_others(const attn_fwd_sm90 &p, const tile &t, const tile_row (&rows)[4],
                                   other_branches<D_V> *x)
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const tile_row row = {(int16_t)min(rows[i].token, t.n_tokens - 1), rows[i].head};
        const uint4 *cmp = chunks_at(p.gates.o_cmp, t.from.o_cmp, row),
                    *slc = chunks_at(p.gates.o_slc, t.from.o_slc, row);
#pragma unroll
        for (int c = 0; c < D_V / BOX_CHANNELS; c++) {
            x->cmp[i][c] = __ldcs(cmp + 8 * c);
            x->slc[i][c] = __ldcs(slc + 8 * c);
        }
        const int64_t gate = t.from.gate + offset_of_row(p.gates.gate, row);
        if (p.gates.gate.dtype == NSA_BF16)
#pragma unroll
            for (int b = 0; b < NSA_N_BRANCHES; b++)
                x->gate[i][b] = __bfloat162float(((const bf16 *)p.gates.gate.data)[gate + b]);
        else
#pragma unroll
            for (int b = 0; b < NSA_N_BRANCHES; b++)
                x->gate[i][b] = ((const float *)p.gates.gate.data)[gate + b];
    }
}

static __device__ uint32_t gated(uint32_t cmp, uint32_t slc, uint32_t win, const float (&gate)[NSA_N_BRANCHES])
{
    const float2 x = unpack2(cmp), y = unpack2(slc), z = unpack2(win);
    return pack2(fmaf(gate[NSA_WIN], z.x, fmaf(gate[NSA_SLC], y.x, gate[NSA_CMP] * x.x)),
                 fmaf(gate[NSA_WIN], z.y, fmaf(gate[NSA_SLC], y.y, gate[NSA_CMP] * x.y)));
}

/* o divided by the rows' sums, as bf16; lse is stored. */
template <int D_V>
static __device__ void normalize(const attn_fwd_sm90 &p, const tile &t, const tile_row (&rows)[2],
                                 const softmax_rows &x, float (&o)[D_V / 2], uint32_t (&result)[D_V / 4])
{
    float sums[2], factor[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float sum = quad_sum(x.sum[r]);
        sums[r] = sum;
        factor[r] = sum == 0.0F ? 0.0F : reciprocal_fast(sum);
    }
    const bool second = lane_index() % 2 == 1; /* of four lanes the first stores lse of row 0, the second of row 1 */
    const tile_row row = second ? rows[1] : rows[0];
    const float max = second ? x.max[1] : x.max[0], sum = second ? sums[1] : sums[0];
    if (is_stored(t, row) && lane_index() % 4 < 2)
        ((float *)p.lse.data)[t.from.lse + offset_of_row(p.lse, row)] =
            sum == 0.0F ? -INFINITY : 0.69314718F * fmaf(max, p.cfg.scale * 1.44269504F, log2f(sum));
#pragma unroll
    for (int i = 0; i < D_V / 2; i++)
        o[i] *= factor[i / 2 % 2];
    if (__any_sync(~0U, factor[0] == 0.0F || factor[1] == 0.0F)) { /* 0 also where V is not finite */
#pragma unroll
        for (int i = 0; i < D_V / 2; i++)
            o[i] = factor[i / 2 % 2] == 0.0F ? 0.0F : o[i];
    }
    round_to(result, o);
    __nv_bfloat162 finite[2] = {{0, 0}, {0, 0}}; /* NaN if a result of the row is not */
    const __nv_bfloat162 zero = {0, 0};
#pragma unroll
    for (int i = 0; i < D_V / 4; i++)
        finite[i % 2] = __hfma2(*(const __nv_bfloat162 *)&result[i], zero, finite[i % 2]);
#pragma unroll
    for (int r = 0; r < 2; r++)
        if (is_stored(t, rows[r]) && !__hbeq2(finite[r], zero))
            p.again[t.index] = 1, p.state->any_again = 1;
}

/* Stores o, and the gated sum, from o as it was rounded: the bits of op gate. */
template <int D_V, bool GATES>
static __device__ void store_rows(const attn_fwd_sm90 &p, const tile &t, const tile_row (&rows)[4], bf16 *staged,
                                  const uint32_t (&o)[D_V / 4], const other_branches<D_V> &others)
{
    const int lane = lane_index();
    const uint32_t in = shared_address(staged) + in_box(lane % 16, lane / 16 * 8);
    const char *out[4];
    uint4 *to[4], *to_gated[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        out[i] = (const char *)staged + in_box(lane / 8 + 4 * i, lane % 8 * 8);
        to[i] = chunks_at(p.o, t.from.o, rows[i]);
        to_gated[i] = chunks_at(p.gates.o, t.from.gated, rows[i]);
    }
#pragma unroll
    for (int c = 0; c < D_V / BOX_CHANNELS; c++) {
#pragma unroll
        for (int i = 0; i < BOX_CHANNELS / 16; i++) /* matrices: 8 channels of rows 0-7, of 8-15; the next 8 channels */
            store_matrices(in ^ i * 32, o + BOX_CHANNELS / 4 * c + 4 * i);
        __syncwarp();
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint4 w = *(const uint4 *)out[i];
            const bool stored = is_stored(t, rows[i]);
            if (stored && (!GATES || p.o.data != NULL))
                to[i][8 * c] = w;
            if (GATES) {
                const uint4 x = others.cmp[i][c], y = others.slc[i][c];
                const float(&g)[NSA_N_BRANCHES] = others.gate[i];
                const uint4 sum = make_uint4(gated(x.x, y.x, w.x, g), gated(x.y, y.y, w.y, g), gated(x.z, y.z, w.z, g),
                                             gated(x.w, y.w, w.w, g));
                if (stored)
                    to_gated[i][8 * c] = sum;
            }
        }
        __syncwarp();
    }
}

/* The end of a tile whose last stage is i: the other branches' rows come while the last product runs, when there are
 * registers for them. */
template <int D_QK, int D_V, int KEYS, int STAGES, bool GATES>
static __device__ void finish(const attn_fwd_sm90 &p, const tile t, FWD_SHARED *x, uint32_t i, const softmax_rows &sums,
                              float (&o)[D_V / 2])
{
    const tile_row own[2] = {x->rows[row_of_thread(0)], x->rows[row_of_thread(1)]};
    tile_row rows[4];
#pragma unroll
    for (int j = 0; j < 4; j++)
        rows[j] = x->rows[first_row() + lane_index() / 8 + 4 * j];
    other_branches<D_V> others;
    if (GATES)
        load_others<D_V>(p, t, rows, &others);
    wgmma_wait<0>();
    pin(o);
    release(&x->v_empty[i % STAGES]);
    uint32_t result[D_V / 4];
    normalize<D_V>(p, t, own, sums, o, result);
    store_rows<D_V, GATES>(p, t, rows, x->o[first_row() / 16][0], result, others);
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
        softmax_rows rows = start_rows(p, t, x->rows);
        float o[D_V / 2];
#pragma unroll
        for (int c = 0; c < D_V / 2; c++)
            o[c] = 0.0F;
        attend<D_QK, D_V, KEYS, STAGES>(p, t, x, i, n_tiles, &rows, o);
        i += n_tiles;
        if (D_V <= MAX_GATED_D && p.gates.gate.data != NULL)
            finish<D_QK, D_V, KEYS, STAGES, true>(p, t, x, i - 1, rows, o);
        else
            finish<D_QK, D_V, KEYS, STAGES, false>(p, t, x, i - 1, rows, o);
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
    if (threadIdx.x < FWD_ROWS)
        x->rows[threadIdx.x] = {(int16_t)(threadIdx.x / p.cfg.group), (int16_t)(threadIdx.x % p.cfg.group)};
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
