/*
 * What the walks of attn_bwd_sm90.cu, attn_bwd_192_sm90.cu and attn_bwd_256_sm90.cu share: a block's shared memory, the
 * warps that load and that add to dq, the parts of a step.
 *
 * All of them end up adding 1.6 to 1.7 TB/s to dq (H200, 64k and 8k tokens): what L2 takes of float32 additions. A step
 * of rows adds d_qk floats for each, however many keys its tile has. Not tried: clusters of two blocks with
 * neighbouring key tiles, which sum their dq in shared memory and add it once.
 */
#ifndef NSA_OPS_ATTN_BWD_WALK_SM90_CUH
#define NSA_OPS_ATTN_BWD_WALK_SM90_CUH

#include "ops/attn_tile/attn_bwd_sm90.cuh"

enum {
    THREADS = CONSUMERS + WARPGROUP,
    TILE_BAR = 1, /* barriers of the consumers */
    DS_BAR = 2,
    OR_BAR = 3
};

/* Positions from `from` on and before `past`: those that see some or all of a number of keys. */
typedef struct seers {
    int32_t from, past;
} seers;

/* ---- Shared memory */

template <int D_QK, int D_V> struct stage {
    bf16 q[D_QK / 64][ROWS][64], d_o[D_V / 64][ROWS][64];
};

/* Of a block; KEYS are p.keys. */
template <int D_QK_, int D_V_, int KEYS_, int STAGES_, int BUFFERS_> struct tiles {
    enum { D_QK = D_QK_, D_V = D_V_, KEYS = KEYS_, STAGES = STAGES_, BUFFERS = BUFFERS_ };
    bf16 k[D_QK / 64][KEYS][64], v[D_V / 64][KEYS][64];
    stage<D_QK, D_V> in[STAGES];
    bf16 ds[BUFFERS][KEYS][64];             /* by turns; [key][row] */
    float dq[BUFFERS][D_QK / 32][ROWS][32]; /* by turns */
    bwd_stats stats[STAGES];
    int32_t token[ROWS]; /* of each row of a tile */
    key_walk walk;
    seers some[2], all;
    bool found;
    uint64_t kv_full, full[STAGES], empty[STAGES], dq_full[BUFFERS], dq_empty[BUFFERS];

    __device__ void init_own() /* barriers that a file adds */
    {
    }
};

/* Where a box of k lies. Of 192 channels one warpgroup makes dq of 0-95, the other of 128-191 and 96-127: of a box and
 * half of the middle one, which one wgmma takes if it comes after the box, at any distance. */
template <int D> static __device__ constexpr int k_box(int box)
{
    return D == 192 ? (3 - box) % 3 : box;
}

/* The first channel of the box of dq at 32 times its number. */
template <int D> static __device__ constexpr int dq_channel(int at)
{
    return D != 192 || at < 96 ? at : at < 160 ? at + 32 : 96;
}

/* ---- Copies */

/* A row of a sequence as a map's coordinates. */
static __device__ int32_t row_in(const nsa_tensor &t, int32_t start, int32_t row)
{
    return t.stride_seq == 0 ? start + row : row;
}

static __device__ int32_t seq_in(const nsa_tensor &t, int32_t s)
{
    return t.stride_seq == 0 ? 0 : s;
}

template <typename TILES> static __device__ void load_tiles(const attn_bwd_sm90 &p, const attn_bwd_maps &maps, TILES &x)
{
    enum { D_QK = TILES::D_QK, D_V = TILES::D_V, KEYS = TILES::KEYS, STAGES = TILES::STAGES };
    const key_walk &w = x.walk;
    const attn_simt &a = p.a;
    mbar_arrive_expect(&x.kv_full, sizeof x.k + sizeof x.v);
#pragma unroll
    for (int box = 0; box < D_QK / BOX_CHANNELS; box++)
        copy_box(x.k[k_box<D_QK>(box)], &maps.k, &x.kv_full, box * BOX_CHANNELS, w.head,
                 row_in(a.k, w.k_start, w.first), seq_in(a.k, w.s));
    copy_tile<D_V>(x.v, KEYS * BOX_ROW, &maps.v, &x.kv_full, w.head, row_in(a.v, w.k_start, w.first), seq_in(a.v, w.s));
    const uint32_t bytes = (uint32_t)((D_QK + D_V) * 2 * p.tokens * p.heads + sizeof x.stats[0]);
    step at = first_step(p, w);
    for (int32_t i = 0, n = n_steps(p, w); i < n; i++, next_step(p, w, &at)) {
        const int st = i % STAGES;
        const int32_t head = w.head * a.cfg.group + at.part * p.heads, row = at.tile * p.tokens;
        if (i >= STAGES)
            mbar_wait(&x.empty[st], i / STAGES - 1 & 1);
        mbar_arrive_expect(&x.full[st], bytes);
        copy_tile<D_QK>(x.in[st].q, ROWS * BOX_ROW, &maps.q, &x.full[st], head, row_in(a.q, w.q_start, row),
                        seq_in(a.q, w.s));
        copy_tile<D_V>(x.in[st].d_o, ROWS * BOX_ROW, &maps.d_o, &x.full[st], head, row_in(a.d_o, w.q_start, row),
                       seq_in(a.d_o, w.s));
        copy_bytes(&x.stats[st], &p.stats[row_index(p, w.q_base + at.tile, w.head, at.part)], sizeof x.stats[0],
                   &x.full[st]);
    }
}

static __device__ void wait_turn(const uint32_t *turn, uint32_t mine)
{
    uint32_t now;
    do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(turn) : "memory");
    } while (now < mine);
    fence_async_global();
}

static __device__ void end_turn(uint32_t *turn)
{
    fence_async_global();
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(turn) : "memory");
}

/* Boxes to dq; of a sequence's last tokens, which may not fill them, one by one. */
template <int D_QK>
static __device__ void add_boxes(const attn_bwd_sm90 &p, const attn_bwd_maps &maps, const key_walk &w,
                                 const float *boxes, const step &at, bool stores)
{
    const int32_t left = w.n_q - at.tile * p.tokens, n = left < p.tokens ? left : 1;
    const CUtensorMap *map = left < p.tokens ? &maps.dq_token : &maps.dq;
    const int32_t head = w.head * p.a.cfg.group + at.part * p.heads, s = seq_in(p.dq, w.s);
    int32_t row = row_in(p.dq, w.q_start, at.tile * p.tokens);
#pragma unroll 1
    for (int32_t end = row + n; row < end; row++, boxes += p.heads * 32)
#pragma unroll 1
        for (int c = 0; c < D_QK; c += 32)
            if (stores)
                store_box(map, boxes + c * ROWS, dq_channel<D_QK>(c), head, row, s);
            else
                add_box(map, boxes + c * ROWS, dq_channel<D_QK>(c), head, row, s);
}

/* What this block adds to dq, every BUFFERS-th step from `buffer` on: each row tile in its turn. */
template <typename TILES>
static __device__ void add_dq(const attn_bwd_sm90 &p, const attn_bwd_maps &maps, TILES &x, int buffer)
{
    enum { BUFFERS = TILES::BUFFERS };
    const key_walk &w = x.walk;
    step at = first_step(p, w);
    for (int32_t i = 0, n = n_steps(p, w); i < n; i++, next_step(p, w, &at)) {
        if (i % BUFFERS != buffer)
            continue;
        const int64_t row = row_index(p, w.q_base + at.tile, w.head, at.part);
        const int32_t mine = w.tile - p.stats[row].first;
        uint32_t *turn = p.turn + row;
        if (mine > 0)
            wait_turn(turn, (uint32_t)mine);
        mbar_wait(&x.dq_full[buffer], i / BUFFERS & 1);
        add_boxes<TILES::D_QK>(p, maps, w, x.dq[buffer][0][0], at, mine == 0 && !p.add_dq);
        stores_commit();
        stores_wait_read();
        mbar_arrive(&x.dq_empty[buffer]);
        stores_wait();
        end_turn(turn);
    }
}

/* ---- Parts of a step */

/* Of a row of n boxes of n_rows rows, every `every`-th 16 bytes from `first` on: whether one is not finite. */
static __device__ bool row_not_finite(const uint4 *boxes, int n, int n_rows, int row, int first, int every)
{
    bool bad = false;
    for (int i = first; i < n * 8; i += every) {
        const uint4 x = boxes[(i / 8 * n_rows + row) * 8 + i % 8];
        bad |= not_finite(x.x) || not_finite(x.y) || not_finite(x.z) || not_finite(x.w);
    }
    return bad;
}

static __device__ void clear_row(uint4 *boxes, int n, int n_rows, int row, int first, int every)
{
    for (int i = first; i < n * 8; i += every)
        boxes[(i / 8 * n_rows + row) * 8 + i % 8] = make_uint4(0, 0, 0, 0);
}

static __device__ int32_t from_of(const attn_simt &a, int64_t key)
{
    return (int32_t)min64(first_seer(a, key), INT32_MAX);
}

/* Positions that see keys of each warpgroup; those that see all of the tile and have a row. */
template <typename TILES> static __device__ void find_seers(const attn_bwd_sm90 &p, TILES &x)
{
    enum { KEYS = TILES::KEYS };
    const key_walk &w = x.walk;
    for (int i = 0; i < 2; i++) {
        const int32_t key = w.first + 64 * i;
        x.some[i].from = key < w.n_keys ? from_of(p.a, key) : INT32_MAX;
        x.some[i].past = (int32_t)past_seer(p.a, key + 63);
    }
    x.all.from = w.first + KEYS <= w.n_keys ? from_of(p.a, w.first + KEYS - 1) : INT32_MAX;
    x.all.past = (int32_t)min64(past_seer(p.a, w.first), w.n_k);
}

/* Once: rows of k and v that are not finite or not the sequence's become zeros, and rows of q and d_o that no box
 * fills. */
template <typename TILES> static __device__ void clean_keys(const attn_bwd_sm90 &p, TILES &x)
{
    enum { D_QK = TILES::D_QK, D_V = TILES::D_V, KEYS = TILES::KEYS, PARTS = CONSUMERS / KEYS };
    const int key = (int)threadIdx.x / PARTS, part = (int)threadIdx.x % PARTS;
    uint4 *const boxes[] = {(uint4 *)x.k, (uint4 *)x.v};
    const int n[] = {D_QK / 64, D_V / 64};
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int bad = row_not_finite(boxes[i], n[i], KEYS, key, part, PARTS);
#pragma unroll
        for (int other = 1; other < PARTS; other *= 2)
            bad |= __shfl_xor_sync(~0U, bad, other);
        if (bad || x.walk.first + key >= x.walk.n_keys)
            clear_row(boxes[i], n[i], KEYS, key, part, PARTS);
    }
    for (int row = p.tokens * p.heads + threadIdx.x / WARP; row < ROWS; row += CONSUMERS / WARP)
        for (int st = 0; st < TILES::STAGES; st++)
            clear_row((uint4 *)&x.in[st], (D_QK + D_V) / 64, ROWS, row, lane_index(), WARP);
    for (int r = threadIdx.x; r < ROWS; r += CONSUMERS)
        x.token[r] = r / p.heads;
    if (threadIdx.x == 0)
        find_seers(p, x);
    fence_async();
    bar_sync(TILE_BAR, CONSUMERS);
}

/* Whether an element is not, which 0 times it tells. */
template <int N> static __device__ bool any_not_finite(const float (&s)[N])
{
    float zero[4] = {0.0F, 0.0F, 0.0F, 0.0F};
#pragma unroll
    for (int i = 0; i < N; i++)
        zero[i % 4] = fmaf(s[i], 0.0F, zero[i % 4]);
    return zero[0] + zero[1] + (zero[2] + zero[3]) != 0.0F;
}

/* The same as clean_keys for a step's rows, of which n are there: those that are not finite give NaN where they see
 * keys. */
template <typename TILES> static __device__ void clean_rows(TILES &x, int st, int n)
{
    enum { BOXES = (TILES::D_QK + TILES::D_V) / 64 };
    const int row = (int)threadIdx.x / 4, quarter = (int)threadIdx.x % 4;
    int bad = row_not_finite((uint4 *)&x.in[st], BOXES, ROWS, row, quarter, 4);
    bad |= __shfl_xor_sync(~0U, bad, 1);
    bad |= __shfl_xor_sync(~0U, bad, 2);
    if (bad || row >= n)
        clear_row((uint4 *)&x.in[st], BOXES, ROWS, row, quarter, 4);
    if (bad && row < n)
        x.stats[st].lse[row] = NAN;
    fence_async();
    bar_sync(TILE_BAR, CONSUMERS);
}

/* s[64 keys][ROWS] = keys . rows, of boxes of KEYS keys */
template <int D, int KEYS> static __device__ void multiply(float (&s)[ROWS / 2], const bf16 *keys, const bf16 *rows)
{
#pragma unroll
    for (int c = 0; c < D; c += 16)
        wgmma<ROWS>(s, further(along_k(keys), k_box<D>(c / 64) * KEYS * BOX_ROW + c % 64 * 2),
                    further(along_k(rows), c / 64 * ROWS * BOX_ROW + c % 64 * 2), c > 0);
    wgmma_commit();
}

/* acc[64 keys][D] += p[64 keys][ROWS] rows[ROWS][D] */
template <int D> static __device__ void accumulate(float (&acc)[D / 2], const uint32_t (&p)[ROWS / 4], const bf16 *rows)
{
#pragma unroll
    for (int j = 0; j < ROWS; j += 16)
        wgmma<D, 1>(acc, p + j / 4, further(along_mn(rows, ROWS * BOX_ROW), j * BOX_ROW), 1);
    wgmma_commit();
}

/* s becomes gate p. Rows lie along the columns of s, from a first one on; a thread has two keys. */
template <bool MASKED, int N>
static __device__ void probabilities(float (&s)[N], const bwd_stats &stats, float scale, const int32_t *token,
                                     int32_t t, const seers (&see)[2], int first = 0)
{
#pragma unroll
    for (int i = 0; i < N / 4; i++) {
        const int row = first + 8 * i + 2 * (lane_index() % 4);
        const float2 lse = *(const float2 *)&stats.lse[row];
        const float2 sign = MASKED ? *(const float2 *)&stats.sign[row] : make_float2(1.0F, 1.0F);
        const int2 at = MASKED ? *(const int2 *)&token[row] : make_int2(0, 0);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float e = exp2_fast(fmaf(s[4 * i + j], scale, j % 2 == 0 ? -lse.x : -lse.y));
            const int32_t pos = t + (j % 2 == 0 ? at.x : at.y);
            if (MASKED)
                s[4 * i + j] =
                    pos >= see[j / 2].from && pos < see[j / 2].past ? e * (j % 2 == 0 ? sign.x : sign.y) : 0.0F;
            else
                s[4 * i + j] = e;
        }
    }
}

/* dp becomes ds. */
template <bool MASKED, int N>
static __device__ void differences(float (&dp)[N], const float (&p)[N], const bwd_stats &stats, float scale,
                                   int first = 0)
{
#pragma unroll
    for (int i = 0; i < N / 4; i++) {
        const float2 delta = *(const float2 *)&stats.delta[first + 8 * i + 2 * (lane_index() % 4)];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float prob = p[4 * i + j];
            const float ds = prob * fmaf(dp[4 * i + j], scale, j % 2 == 0 ? -delta.x : -delta.y);
            dp[4 * i + j] = MASKED && prob == 0.0F ? 0.0F : ds;
        }
    }
}

template <int N> static __device__ void pack(uint32_t (&to)[N / 2], const float (&from)[N])
{
#pragma unroll
    for (int i = 0; i < N / 2; i++)
        to[i] = pack2(from[2 * i], from[2 * i + 1]);
    pin(to);
}

/* To shared memory as [key][row], from `key` and a first row on. */
template <int N> static __device__ void store_ds(bf16 (*box)[64], const uint32_t (&ds)[N], int key, int first = 0)
{
    const int lane = lane_index();
    const uint32_t at = shared_address(box) + in_box(key + lane / 8 % 2 * 8 + lane % 8, lane / 16 * 8);
#pragma unroll
    for (int i = 0; i < N / 4; i++)
        store_matrices(at ^ (first / 16 + i) * 32, ds + 4 * i);
}

/* From that channel on, into boxes of 32. Half a warp stores four rows at a time: that these meet in no bank, odd rows
 * go through their channels in another order. */
template <int N> static __device__ void store_dq(float (*boxes)[ROWS][32], const float (&dq)[N / 2], int channel)
{
    const int lane = lane_index(), row = (int)threadIdx.x % WARPGROUP / WARP * 16 + lane / 4;
    const bool odd = row % 2 != 0;
    const uint32_t at = shared_address(boxes[channel / 32]) + (in_box(row, lane % 4 * 4) ^ (odd ? 64 : 0));
#pragma unroll
    for (int i = 0; i < N / 8; i++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float *even_from = dq + 4 * i + 2 * r, *odd_from = dq + 4 * (i ^ 2) + 2 * r;
            asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"((at ^ i % 4 * 32) + (i / 4 * ROWS + 8 * r) * BOX_ROW),
                         "f"(odd ? odd_from[0] : even_from[0]), "f"(odd ? odd_from[1] : even_from[1])
                         : "memory");
        }
}

template <int N> static __device__ void add_sums(float4 *sums, const float (&acc)[N], bool first)
{
#pragma unroll
    for (int i = 0; i < N / 4; i++) {
        float4 x = make_float4(acc[4 * i], acc[4 * i + 1], acc[4 * i + 2], acc[4 * i + 3]);
        if (!first) {
            const float4 y = __ldcg(sums + i * CONSUMERS);
            x = make_float4(x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w);
        }
        sums[i * CONSUMERS] = x;
    }
}

/* A step's dq to those that add it. */
template <typename TILES>
static __device__ void send_dq(TILES &x, const float (&dq)[TILES::D_QK / 4], int32_t i, int wg)
{
    enum { N = TILES::D_QK / 2, BUFFERS = TILES::BUFFERS };
    const int buffer = i % BUFFERS;
    if (i >= BUFFERS)
        mbar_wait(&x.dq_empty[buffer], i / BUFFERS - 1 & 1);
    store_dq<N>(x.dq[buffer], dq, wg * N);
    fence_async();
    __syncwarp();
    if (lane_index() == 0)
        mbar_arrive(&x.dq_full[buffer]);
}

static __device__ bool sees(const seers &x, int32_t t, int32_t n)
{
    return t + n > x.from && t < x.past;
}

/* What a consumer keeps during a walk. */
template <typename TILES> struct consumer {
    float dk[TILES::KEYS * TILES::D_QK / CONSUMERS], dv[TILES::KEYS * TILES::D_V / CONSUMERS];
    seers see[2]; /* the thread's two keys */
    float scale;
    int wg, key; /* key: the warp's first */
};

/* Nothing yet. */
template <typename TILES> static __device__ void begin(const attn_bwd_sm90 &p, const key_walk &w, consumer<TILES> &c)
{
    c.wg = __shfl_sync(~0U, (int)threadIdx.x / WARPGROUP, 0);
    c.key = (TILES::KEYS > 64 ? 64 * c.wg : 0) + 16 * ((int)threadIdx.x / WARP % 4);
    c.scale = p.a.cfg.scale;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int32_t key = w.first + c.key + lane_index() / 4 + 8 * r;
        c.see[r].from = key < w.n_keys ? from_of(p.a, key) : INT32_MAX;
        c.see[r].past = (int32_t)min64(past_seer(p.a, key), w.n_k);
    }
    for (float &y : c.dk)
        y = 0.0F;
    for (float &y : c.dv)
        y = 0.0F;
}

/* dk and dv to where the pieces of a walk meet, in turns. */
template <typename TILES>
static __device__ void end(const attn_bwd_sm90 &p, const key_walk &w, const consumer<TILES> &c)
{
    float4 *sums = sums_of<TILES::KEYS>(p, w);
    uint32_t *turn = p.k_turn + (int64_t)w.tile * p.a.cfg.c.n_heads_kv + w.head;
    if (w.turn > 0)
        wait_turn(turn, (uint32_t)w.turn);
    add_sums(sums, c.dk, w.turn == 0);
    add_sums(sums + TILES::KEYS * TILES::D_QK / 4, c.dv, w.turn == 0);
    bar_sync(TILE_BAR, CONSUMERS);
    if (threadIdx.x == 0)
        end_turn(turn);
}

/* ---- Walks */

/* By one thread, before all others. */
template <typename TILES> static __device__ void find_walk(const attn_bwd_sm90 &p, TILES &x)
{
    mbar_init(&x.kv_full, 1);
    for (int i = 0; i < TILES::STAGES; i++) {
        mbar_init(&x.full[i], 1);
        mbar_init(&x.empty[i], CONSUMERS / WARP);
    }
    for (int i = 0; i < TILES::BUFFERS; i++) {
        mbar_init(&x.dq_full[i], CONSUMERS / WARP);
        mbar_init(&x.dq_empty[i], 1);
    }
    x.init_own();
    fence_mbar_init();
    x.found = find_piece<TILES::KEYS>(p, atomicAdd(p.ticket, 1U), &x.walk) && *p.unsound == 0;
}

/* By the warpgroup that does not multiply. */
template <typename TILES> static __device__ void copy_walk(const attn_bwd_sm90 &p, const attn_bwd_maps &maps, TILES &x)
{
    registers_down<24>();
    const int warp = ((int)threadIdx.x - CONSUMERS) / WARP;
    if (lane_index() == 0) {
        if (warp == 0)
            load_tiles(p, maps, x);
        else if (warp <= TILES::BUFFERS)
            add_dq(p, maps, x, warp - 1);
    }
}

/* multiply_tiles: each file's own, by the other warpgroups. */
template <typename TILES>
static __global__ __launch_bounds__(THREADS, 1) void walk_kernel(const __grid_constant__ attn_bwd_sm90 p,
                                                                 const __grid_constant__ attn_bwd_maps maps)
{
    extern __shared__ __align__(1024) unsigned char shared[];
    TILES &x = *(TILES *)shared;
    if (threadIdx.x == 0)
        find_walk(p, x);
    __syncthreads();
    if (!x.found)
        return;
    if (threadIdx.x < CONSUMERS) {
        registers_up<240>();
        multiply_tiles(p, x);
    } else {
        copy_walk(p, maps, x);
    }
}

template <typename TILES>
static cudaError_t launch_walks(const attn_bwd_sm90 *p, const attn_bwd_maps *maps, cudaStream_t stream)
{
    const int bytes = sizeof(TILES);
    const cudaError_t error =
        cudaFuncSetAttribute(walk_kernel<TILES>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess)
        return error;
    const int64_t n_pieces = (int64_t)p->k_tiles * p->n_chunks * p->a.cfg.c.n_heads_kv;
    if (n_pieces > INT32_MAX)
        return cudaErrorInvalidConfiguration;
    walk_kernel<TILES><<<(unsigned)n_pieces, THREADS, bytes, stream>>>(*p, *maps);
    return cudaGetLastError();
}

#endif
