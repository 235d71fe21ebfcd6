/*
 * dk and dv of slc_attn on Hopper, block-major; and dS, of which dq is made.
 *
 *     S^T = k q^T    dP^T = v dO^T    P' = gate exp2(scale log2e S - log2e lse)    dS = P (gate dP - delta)
 *     dv += P'^T dO    dk += dS^T q
 *
 * A CTA takes an item: KEYS keys of a block and a piece of the list of tokens that have selected it. Producer warps
 * gather q and dO of the tokens into a ring of stages, N (token, head) columns each; a warpgroup multiplies. Two CTAs
 * on an SM: one multiplies while the other has its exponentials, or begins or ends. Sums go to dk and dv, or where the
 * list has several items to `parts`, which sum_parts_kernel adds in their order. Lists are in rising order of tokens,
 * and so is every sum.
 *
 *     gK, gV -> sK, sV (once)    gQ, gdO -> sQ, sdO (ring)
 *     sK sQ -> rS    sV sdO -> rdP    rS rdP -> rP, rdS -> gdS    rP sdO -> rdV    rdS sQ -> rdK -> gdK
 *
 *     filled[stage]      q, dO and the columns' values have come; each producer warp arrives
 *     emptied[stage]     a lane of each consumer warp: it has done with the stage
 *     loaded             K and V have come
 *     CONSUMERS_BAR      while they clean a stage
 *
 * Masks: only tokens of the block itself do not see all of its keys. Their dO and q are multiplied with the P = dS = 0
 * of keys that they do not see, so a NaN in them must go: where S or dP is not finite at the tile's first key, which
 * every row of the product has met, the column's q and dO are zeroed, and P and dS are NaN at the keys that the token
 * sees. Columns past the end of a list are boxes from outside of the tensor, zeros.
 *
 * Cost at 64k tokens, 64/4 heads, d 128: 4.4 TFLOP; 34 GB of q and dO; 8.6 GB of dS. A stage of 64 columns is 1024
 * cycles of the tensor cores, and as many of shared memory: half of them for K and V and q and dO as operands of the
 * first two products, a quarter each for the other two and for the copies that come in. One H200, 2026-11-28: 1.14 ms
 * at 8k tokens, 10.4 at 64k in rounds of 1 GiB of dS (9.6 in rounds of 2, 9.4 in one); 1.15 and 10.8 where neighbours
 * select much the same. dS is 0.14 and 1.2 of that.
 *
 * Tried there (ms at 8k, 64k): P and dS of all columns before the last two products begin 1.16, 10.7; stages of 32
 * columns, twice as many 1.26, 11.6; products of 128 channels in the place of twice 64 the same. Two warpgroups on the
 * same keys, one CTA on an SM, without dS 0.95, 8.0 (this 0.99, 9.2).
 *
 * Small boxes want hands: q and dO of a stage are 16 of them (1.65 ms at 8k tokens on an H100 with one producer warp,
 * 1.14 with four). What the producers load must not be looked at in the step that issues it: when they took lse, delta
 * and gate from their tensors by themselves, all waited for them (23 ms at 64k).
 */
#include "ops/slc_attn/slc_attn_bwd_sm90.cuh"

enum { PRODUCERS = 4 /* warps */ };
enum { THREADS = 2 * WARPGROUP, CONSUMERS_BAR = 1 };

template <int N> struct __align__(16) stage_columns
{
    slc_values values[N];
    int32_t sees[N];           /* rows 0 .. sees of the tile */
    int32_t masked[PRODUCERS]; /* some column of the warp's does not see all rows */
};

template <int D_QK, int D_V, int N, int STAGES> struct dkdv_shared {
    bf16 k[D_QK / 64][KEYS][64], v[D_V / 64][KEYS][64];
    bf16 q[STAGES][D_QK / 64][N][64], d_o[STAGES][D_V / 64][N][64];
    stage_columns<N> columns[STAGES];
    int32_t unfit[N];
    int32_t ds_at[N]; /* where dS of a column lies behind that of the stage's first: of small groups, -1 of no column */
    uint64_t filled[STAGES], emptied[STAGES], loaded;
};

/* What a CTA does. */
typedef struct dkdv_tile {
    int32_t s, kv_head;
    seq_range q, k;
    int64_t key;                     /* the first */
    int n_keys;                      /* of KEYS */
    int32_t tile;                    /* of the block */
    int32_t boxes_of_token, n_pairs; /* boxes of q; of a token and a box, in all */
    int32_t columns;                 /* of a stage that boxes fill */
    int64_t first_place;             /* of the item, in the lists */
} dkdv_tile;

static __device__ bool find_keys(const slc_backward &p, int64_t list, int tile, dkdv_tile *x)
{
    const int32_t slc_block = p.attn.cfg.c.slc_block;
    x->kv_head = (int32_t)(list / p.lists.n_blocks);
    const int64_t block = find_tile(p.attn.seqs.cu_k, p.attn.seqs.n, 1, slc_block, list % p.lists.n_blocks, &x->s);
    x->q = seq_q(p.attn.seqs, x->s);
    x->k = seq_k(p.attn.seqs, x->s);
    x->tile = tile;
    x->key = block + tile * KEYS;
    x->n_keys = (int)max64(0, min64(min64(KEYS, slc_block - tile * KEYS), x->k.n - x->key));
    return block >= 0 && x->n_keys > 0;
}

/* ---- Producer */

/* A stage is boxes one after the other, each of box_heads columns: the heads of one token, or some of them. A producer
 * warp looks after N/PRODUCERS columns, a lane after one, and brings the boxes that begin there. */
typedef struct stage_column {
    int32_t column, box; /* box: -1 past the last that fits, and of lanes without a column */
    bool first;          /* of its box */
} stage_column;

template <int N> static __device__ stage_column find_column(const slc_backward &p)
{
    const int lane = lane_index(), column = (int)threadIdx.x / WARP % PRODUCERS * (N / PRODUCERS) + lane;
    const int box = column / p.box_heads;
    const bool exists = lane < N / PRODUCERS && box < N / p.box_heads;
    const stage_column x = {column, exists ? box : -1, exists && column % p.box_heads == 0};
    return x;
}

/* The token of the column in the item's n-th stage, as it stands in the list: not looked at here, it has far to come.
 */
template <int N>
static __device__ int32_t token_at(const slc_backward &p, const dkdv_tile &tile, const int32_t *tokens, int n,
                                   const stage_column &x)
{
    const int pair = n * (N / p.box_heads) + x.box;
    return x.box >= 0 && pair < tile.n_pairs ? __ldg(tokens + pair / tile.boxes_of_token) : -1;
}

template <int D_QK, int D_V, int N, int STAGES>
static __device__ void load_box(const slc_backward &p, const slc_maps &maps, const dkdv_tile &tile, int32_t token,
                                int pair, int column, int stage, dkdv_shared<D_QK, D_V, N, STAGES> *x)
{
    const attn_simt &a = p.attn;
    const int head = tile.kv_head * a.cfg.group + pair % tile.boxes_of_token * p.box_heads;
    uint64_t *filled = &x->filled[stage];
    copy_tile<D_QK>(x->q[stage][0][column], N * BOX_ROW, &maps.q, filled, head,
                    token < 0 ? -1 : map_row(a.q, tile.q, token), map_seq(a.q, tile.s));
    copy_tile<D_V>(x->d_o[stage][0][column], N * BOX_ROW, &maps.d_o, filled, head,
                   token < 0 ? -1 : map_row(a.d_o, tile.q, token), map_seq(a.d_o, tile.s));
    copy_bytes(&x->columns[stage].values[column],
               p.values + (token < 0 ? 0 : tile.q.start + token) * a.cfg.c.n_heads_q + head,
               p.box_heads * (uint32_t)sizeof(slc_values), filled);
}

template <int D_QK, int D_V, int N, int STAGES>
static __device__ void produce(const slc_backward &p, const slc_maps &maps, const dkdv_tile &tile,
                               const int32_t *tokens, int n_stages, dkdv_shared<D_QK, D_V, N, STAGES> *x)
{
    const int lane = lane_index(), warp = (int)threadIdx.x / WARP % PRODUCERS;
    const int64_t t_of_row_0 = tile.k.n - tile.q.n;
    const stage_column mine = find_column<N>(p);
    const uint32_t bytes = (uint32_t)(__popc(__ballot_sync(~0U, mine.first)) * p.box_heads) *
                           ((D_QK + D_V) * (uint32_t)sizeof(bf16) + (uint32_t)sizeof(slc_values));
    int32_t next = token_at<N>(p, tile, tokens, 0, mine);
    for (int n = 0; n < n_stages; n++) {
        const int stage = n % STAGES;
        const int32_t token = next < tile.q.n ? next : -1;
        next = token_at<N>(p, tile, tokens, n + 1, mine);
        if (n >= STAGES)
            mbar_wait(&x->emptied[stage], (n / STAGES - 1) % 2);
        const int64_t sees = token < 0 ? -1 : token + t_of_row_0 - tile.key;
        if (lane < N / PRODUCERS)
            x->columns[stage].sees[mine.column] = (int32_t)min64(sees, KEYS);
        x->columns[stage].masked[warp] = __any_sync(~0U, lane < N / PRODUCERS && sees < tile.n_keys - 1);
        __syncwarp();
        if (lane == 0)
            mbar_arrive_expect(&x->filled[stage], bytes);
        if (mine.first)
            load_box(p, maps, tile, token, n * (N / p.box_heads) + mine.box, mine.column, stage, x);
    }
}

/* ---- Consumers */

/* Zeroes q and dO of the columns that must not be multiplied; of this thread's columns, which those are: column
 * 8 i + 2 (lane%4) + c at bit 2 i + c. */
template <int D_QK, int D_V, int N>
static __device__ unsigned clean(const float (&s)[N / 2], const float (&dp)[N / 2], bf16 (*q)[N][64],
                                 bf16 (*d_o)[N][64], int32_t *unfit)
{
    const int thread = (int)threadIdx.x, lane = lane_index();
    if (thread < 4) /* they have row 0 */
#pragma unroll
        for (int i = 0; i < N / 4; i++) {
            const int at = i / 2 * 4 + i % 2;
            unfit[i / 2 * 8 + lane * 2 + i % 2] = !isfinite(s[at]) || !isfinite(dp[at]);
        }
    bar_sync(CONSUMERS_BAR, WARPGROUP);
    unsigned mine = 0;
#pragma unroll
    for (int i = 0; i < N / 4; i++)
        mine |= unfit[i / 2 * 8 + lane % 4 * 2 + i % 2] != 0 ? 1U << i : 0U;
    for (int i = thread; i < N * 8; i += WARPGROUP) {
        if (unfit[i / 8] == 0)
            continue;
        for (int b = 0; b < D_QK / 64; b++)
            ((uint4 *)q[b][i / 8])[i % 8] = make_uint4(0, 0, 0, 0);
        for (int b = 0; b < D_V / 64; b++)
            ((uint4 *)d_o[b][i / 8])[i % 8] = make_uint4(0, 0, 0, 0);
    }
    fence_async();
    bar_sync(CONSUMERS_BAR, WARPGROUP);
    return mine;
}

/* P' and dS of 16 columns from `first` on, as operands a. */
template <int N>
static __device__ void gradients(const float (&s)[N / 2], const float (&dp)[N / 2], const slc_values (&values)[N],
                                 float scale, int first, uint32_t (&prob)[4], uint32_t (&ds)[4])
{
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int column = first + 8 * i + lane_index() % 4 * 2;
        const slc_values y0 = values[column], y1 = values[column + 1];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int at = first / 2 + 4 * i + 2 * r;
            const float p0 = exp2_fast(fmaf(s[at], scale, -y0.lse)), p1 = exp2_fast(fmaf(s[at + 1], scale, -y1.lse));
            prob[2 * i + r] = pack2(p0 * y0.gate, p1 * y1.gate);
            ds[2 * i + r] = pack2(p0 * fmaf(y0.gate, dp[at], -y0.delta), p1 * fmaf(y1.gate, dp[at + 1], -y1.delta));
        }
    }
}

/* Of these P' and dS: NaN in unfit columns, and 0 where the column's token does not see the key. */
template <int N>
static __device__ void mask(uint32_t (&prob)[4], uint32_t (&ds)[4], const int32_t (&sees)[N], unsigned unfit, int first)
{
    const int row = (int)threadIdx.x / WARP * 16 + lane_index() / 4;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int column = first + 8 * i + lane_index() % 4 * 2, bit = first / 4 + 2 * i;
        const uint32_t nan = (unfit >> bit & 1) * 0x7fffU | (unfit >> (bit + 1) & 1) * 0x7fff0000U;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const uint32_t seen =
                (row + 8 * r <= sees[column] ? 0xffffU : 0U) | (row + 8 * r <= sees[column + 1] ? 0xffff0000U : 0U);
            prob[2 * i + r] = (prob[2 * i + r] | nan) & seen;
            ds[2 * i + r] = (ds[2 * i + r] | nan) & seen;
        }
    }
}

/* ---- dS to memory */

/* Whether the columns of a token are whole units of HEADS heads, which follow each other in memory as in a stage. */
static __device__ bool whole_units(const slc_backward &p)
{
    return p.attn.cfg.group % HEADS == 0;
}

/* Of groups that are none: a stage has whole tokens. In halfwords. */
template <int N> static __device__ void find_ds_columns(const slc_backward &p, int columns, int32_t (&ds_at)[N])
{
    const int group = p.attn.cfg.group, heads = p.unit_heads, matrices = unit_of(heads).matrices;
    for (int i = (int)threadIdx.x; i < N; i += THREADS) {
        const int head = i % group, unit = i / group * p.units + head / HEADS;
        const int pair = head % 8 / 2 * matrices + head % HEADS / 8 * 2;
        ds_at[i] = i < columns ? unit * p.n_tiles * heads * KEYS + (heads == 1 ? 0 : 2 * pair + head % 2) : -1;
    }
}

/* Where dS of a stage goes, of this thread. */
typedef struct ds_stage {
    uint16_t *at;
    int64_t to_next; /* stage */
    int32_t unit;    /* from one to the next, in halfwords */
    int32_t columns; /* left of the item */
    bool whole_units;
} ds_stage;

static __device__ ds_stage first_ds_stage(const slc_backward &p, const dkdv_tile &tile)
{
    const int warp = (int)threadIdx.x / WARP, lane = lane_index(), heads = p.unit_heads, group = p.attn.cfg.group;
    const bool whole = whole_units(p);
    const int unit = p.n_tiles * heads * KEYS, units = whole ? tile.columns / HEADS : tile.columns / group * p.units;
    const int lane_at = unit_lane(heads, warp, lane / 4) + (whole ? lane % 4 * 8 : 0);
    const ds_stage x = {p.ds + tile.first_place * p.units * unit + tile.tile * heads * KEYS + lane_at,
                        (int64_t)units * unit, unit, tile.n_pairs * p.box_heads, whole};
    return x;
}

/* Of 16 columns of a stage, from `first` on. */
template <int N>
static __device__ void store_ds(const slc_backward &p, const dkdv_tile &tile, const ds_stage &stage,
                                const int32_t (&ds_at)[N], int first, const uint32_t (&ds)[4])
{
    if (stage.whole_units) {
        if (first < min(tile.columns, stage.columns))
            __stcs((uint4 *)(stage.at + first / HEADS * stage.unit), make_uint4(ds[0], ds[1], ds[2], ds[3]));
        return;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int column = first + 8 * i + lane_index() % 4 * 2;
        const int at0 = ds_at[column], at1 = ds_at[column + 1];
        const bool has0 = at0 >= 0 && column < stage.columns, has1 = at1 >= 0 && column + 1 < stage.columns;
        const uint32_t x = ds[2 * i], y = ds[2 * i + 1]; /* keys, and 8 further */
        if (p.attn.cfg.group % 2 == 0) {
            if (has0)
                __stcs((uint2 *)(stage.at + at0), make_uint2(x, y));
            continue;
        }
        const int to_y = p.unit_heads == 1 ? 1 : 2;
        if (has0)
            stage.at[at0] = (uint16_t)x, stage.at[at0 + to_y] = (uint16_t)y;
        if (has1)
            stage.at[at1] = (uint16_t)(x >> 16), stage.at[at1 + to_y] = (uint16_t)(y >> 16);
    }
}

template <int D_QK, int D_V, int N, int STAGES>
static __device__ void consume(const slc_backward &p, const dkdv_tile &tile, int n_stages,
                               dkdv_shared<D_QK, D_V, N, STAGES> *x, float (&dk)[D_QK / 64][32],
                               float (&dv)[D_V / 64][32])
{
    const float scale = p.attn.cfg.scale * LOG2_E;
    ds_stage ds_of_stage = first_ds_stage(p, tile);
    mbar_wait(&x->loaded, 0);
    for (int n = 0; n < n_stages; n++) {
        const int stage = n % STAGES;
        bf16(*q)[N][64] = x->q[stage], (*d_o)[N][64] = x->d_o[stage];
        mbar_wait(&x->filled[stage], n / STAGES % 2);
        float s[N / 2], dp[N / 2];
        wgmma_fence();
#pragma unroll
        for (int c = 0; c < D_QK; c += 16)
            wgmma<N>(s, further(along_k(x->k[c / 64]), c % 64 * 2), further(along_k(q[c / 64]), c % 64 * 2), c > 0);
#pragma unroll
        for (int c = 0; c < D_V; c += 16)
            wgmma<N>(dp, further(along_k(x->v[c / 64]), c % 64 * 2), further(along_k(d_o[c / 64]), c % 64 * 2), c > 0);
        wgmma_commit();
        wgmma_wait<0>();
        pin(s), pin(dp);
        const stage_columns<N> &columns = x->columns[stage];
        const bool masked = columns.masked[0] | columns.masked[1] | columns.masked[2] | columns.masked[3];
        unsigned unfit = 0;
        if (masked)
            unfit = clean<D_QK, D_V, N>(s, dp, q, d_o, x->unfit);
        uint32_t prob[N / 16][4], ds[N / 16][4];
#pragma unroll
        for (int j = 0; j < N / 16; j++) { /* 16 columns are multiplied while the next are made */
            gradients<N>(s, dp, columns.values, scale, 16 * j, prob[j], ds[j]);
            if (masked)
                mask<N>(prob[j], ds[j], columns.sees, unfit, 16 * j);
            store_ds<N>(p, tile, ds_of_stage, x->ds_at, 16 * j, ds[j]);
            pin(prob[j]), pin(ds[j]);
            wgmma_fence();
#pragma unroll
            for (int b = 0; b < D_V / 64; b++)
                wgmma<64, 1>(dv[b], prob[j], further(along_mn(d_o[b], 0), 16 * j * BOX_ROW), 1);
#pragma unroll
            for (int b = 0; b < D_QK / 64; b++)
                wgmma<64, 1>(dk[b], ds[j], further(along_mn(q[b], 0), 16 * j * BOX_ROW), 1);
            wgmma_commit();
        }
        ds_of_stage.at += ds_of_stage.to_next;
        ds_of_stage.columns -= tile.columns;
        wgmma_wait<0>();
#pragma unroll
        for (int b = 0; b < D_V / 64; b++)
            pin(dv[b]);
#pragma unroll
        for (int b = 0; b < D_QK / 64; b++)
            pin(dk[b]);
        __syncwarp();
        if (lane_index() == 0)
            mbar_arrive(&x->emptied[stage]);
    }
}

/* ---- Results */

/* Where dk or dv of a round goes. */
typedef struct sum_target {
    nsa_tensor t;
    bool add;
    float scale;
} sum_target;

static __device__ sum_target dk_target(const slc_backward &p)
{
    const sum_target result = {p.attn.dk, p.attn.add_dk, p.attn.cfg.scale}, sums = {p.dk, true, 1.0F};
    return p.n_rounds == 1 ? result : sums;
}

static __device__ sum_target dv_target(const slc_backward &p)
{
    const sum_target result = {p.attn.dv, p.attn.add_dv, 1.0F}, sums = {p.dv, true, 1.0F};
    return p.n_rounds == 1 ? result : sums;
}

/* To x, or to part: [KEYS][D]. */
template <int D>
static __device__ void store_keys(const sum_target &x, const dkdv_tile &tile, float *part,
                                  const float (&acc)[D / 64][32])
{
    enum { AT_ONCE = 8 };
    const int first_row = (int)threadIdx.x / WARP * 16 + lane_index() / 4, channel = lane_index() % 4 * 2;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = first_row + 8 * r;
        const int64_t at = offset_of(x.t, tile.s, tile.k.start, tile.key + row, tile.kv_head) + channel;
        if (row >= tile.n_keys)
            continue;
#pragma unroll
        for (int b = 0; b < D / 64; b++) {
            float2 sums[AT_ONCE];
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++)
                sums[i] = make_float2(acc[b][4 * i + 2 * r], acc[b][4 * i + 2 * r + 1]);
            if (part != NULL) {
#pragma unroll
                for (int i = 0; i < AT_ONCE; i++)
                    *(float2 *)&part[row * D + 64 * b + 8 * i + channel] = sums[i];
                continue;
            }
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++)
                sums[i].x *= x.scale, sums[i].y *= x.scale;
            put_pairs(x.t, at + 64 * b, sums, x.add);
        }
    }
}

static __device__ float *part_at(const slc_backward &p, int64_t part, int tile)
{
    return p.parts + (part * p.n_tiles + tile) * KEYS * (p.attn.cfg.c.d_qk + p.attn.cfg.c.d_v);
}

/* Columns that no box reaches. */
template <int D_QK, int D_V, int N, int STAGES>
static __device__ void zero_rest(int first, dkdv_shared<D_QK, D_V, N, STAGES> *x)
{
    bf16(*boxes)[N][64] = x->q[0]; /* and those of d_o behind them */
    for (int b = 0; b < STAGES * (D_QK + D_V) / 64; b++)
        for (int i = (int)threadIdx.x; i < (N - first) * 8; i += THREADS)
            ((uint4 *)boxes[b][first])[i] = make_uint4(0, 0, 0, 0);
    fence_async();
}

template <int D_QK, int D_V, int N, int STAGES>
static __global__ __launch_bounds__(THREADS, 2) void dkdv_kernel(const __grid_constant__ slc_backward p,
                                                                 const __grid_constant__ slc_maps maps)
{
    extern __shared__ __align__(1024) unsigned char shared[];
    dkdv_shared<D_QK, D_V, N, STAGES> *x = (dkdv_shared<D_QK, D_V, N, STAGES> *)shared;
    const attn_simt &a = p.attn;
    const int part_of_block = (int)(blockIdx.x % p.n_tiles);
    if (blockIdx.x / p.n_tiles >= *p.lists.n_items)
        return;
    const slc_item item = p.lists.items[blockIdx.x / p.n_tiles];
    dkdv_tile tile;
    if (!find_keys(p, item.list, part_of_block, &tile))
        return;
    const int boxes = N / p.box_heads;
    tile.boxes_of_token = a.cfg.group / p.box_heads;
    tile.n_pairs = item.n * tile.boxes_of_token;
    tile.columns = boxes * p.box_heads;
    tile.first_place = p.lists.begin[item.list] + item.first;
    const int n_stages = (tile.n_pairs + boxes - 1) / boxes;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            mbar_init(&x->filled[i], PRODUCERS);
            mbar_init(&x->emptied[i], WARPGROUP / WARP);
        }
        mbar_init(&x->loaded, 1);
        fence_mbar_init();
        mbar_arrive_expect(&x->loaded, sizeof x->k + sizeof x->v);
        copy_tile<D_QK>(x->k, sizeof x->k[0], &maps.k, &x->loaded, tile.kv_head, map_row(a.k, tile.k, tile.key),
                        map_seq(a.k, tile.s));
        copy_tile<D_V>(x->v, sizeof x->v[0], &maps.v, &x->loaded, tile.kv_head, map_row(a.v, tile.k, tile.key),
                       map_seq(a.v, tile.s));
    }
    if (tile.columns < N)
        zero_rest(tile.columns, x);
    if (!whole_units(p))
        find_ds_columns(p, tile.columns, x->ds_at);
    __syncthreads();
    if (threadIdx.x >= WARPGROUP) {
        registers_down<24>();
        produce(p, maps, tile, p.lists.tokens + tile.first_place, n_stages, x);
        return;
    }
    registers_up<232>();
    float dk[D_QK / 64][32] = {}, dv[D_V / 64][32] = {};
    consume(p, tile, n_stages, x, dk, dv);
    float *part = item.part < 0 ? NULL : part_at(p, item.part, part_of_block);
    store_keys<D_QK>(dk_target(p), tile, part, dk);
    store_keys<D_V>(dv_target(p), tile, part == NULL ? NULL : part + KEYS * D_QK, dv);
}

static __device__ void sum_rows(const slc_backward &p, const dkdv_tile &tile, const float *part, int n_parts,
                                const sum_target &x, int d)
{
    const int64_t to_next = (int64_t)p.n_tiles * KEYS * (p.attn.cfg.c.d_qk + p.attn.cfg.c.d_v);
    for (int i = (int)threadIdx.x; i < tile.n_keys * d; i += THREADS) {
        float sum = 0.0F;
        for (int j = 0; j < n_parts; j++)
            sum += part[j * to_next + i];
        put(x.t, offset_of(x.t, tile.s, tile.k.start, tile.key + i / d, tile.kv_head) + i % d, sum * x.scale, x.add);
    }
}

static __global__ __launch_bounds__(THREADS) void sum_parts_kernel(const __grid_constant__ slc_backward p)
{
    const int64_t list = blockIdx.x / p.n_tiles;
    const int part_of_block = (int)(blockIdx.x % p.n_tiles);
    const int n_parts = (p.lists.count[list] + p.lists.item_tokens - 1) / p.lists.item_tokens;
    dkdv_tile tile;
    if (n_parts < 2 || !find_keys(p, list, part_of_block, &tile))
        return;
    const int32_t d_qk = p.attn.cfg.c.d_qk;
    const float *part = part_at(p, p.lists.parts_begin[list], part_of_block);
    sum_rows(p, tile, part, n_parts, dk_target(p), d_qk);
    sum_rows(p, tile, part + KEYS * d_qk, n_parts, dv_target(p), p.attn.cfg.c.d_v);
}

/* ---- Sums of all rounds, by a warp for each row of a head */

static __device__ void store_sums(const nsa_tensor &sums, const nsa_tensor &t, const place &x, float scale, bool add,
                                  int d)
{
    const int64_t from = offset_at(sums, x, x.head), to = offset_at(t, x, x.head);
    for (int i = lane_index(); i < d; i += WARP)
        put(t, to + i, load(sums, from + i) * scale, add);
}

static __global__ __launch_bounds__(WARP *WARPS) void sums_kernel(const __grid_constant__ slc_backward p)
{
    const attn_simt &a = p.attn;
    const int32_t n_heads = a.cfg.c.n_heads_kv;
    for (int64_t i = first_item(); i < a.seqs.total_k * n_heads; i += item_stride()) {
        place x;
        if (!find_place(a.seqs.cu_k, a.seqs.n, a.seqs.total_k, a.seqs.max_k, n_heads, i, &x))
            continue;
        store_sums(p.dk, a.dk, x, a.cfg.scale, a.add_dk, a.cfg.c.d_qk);
        store_sums(p.dv, a.dv, x, 1.0F, a.add_dv, a.cfg.c.d_v);
    }
}

/* ---- Launches: all instantiations */

template <int D_QK, int D_V, int N, int STAGES>
static cudaError_t launch(const slc_backward *p, const slc_maps *maps, nsa_stream stream)
{
    const int bytes = sizeof(dkdv_shared<D_QK, D_V, N, STAGES>);
    const auto kernel = dkdv_kernel<D_QK, D_V, N, STAGES>;
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess)
        return error;
    kernel<<<(unsigned)(p->lists.max_items * p->n_tiles), THREADS, bytes, stream>>>(*p, *maps);
    sum_parts_kernel<<<(unsigned)(p->lists.n_lists * p->n_tiles), THREADS, 0, stream>>>(*p);
    return cudaGetLastError();
}

static cudaError_t clear(const simt_seqs *seqs, const nsa_tensor *sums, int32_t n_heads, int32_t d, nsa_stream stream)
{
    return cudaMemsetAsync(sums->data, 0, (size_t)(seqs->total_k * n_heads * d) * sizeof(float), stream);
}

int launch_slc_dkdv(const slc_backward *p, const slc_maps *maps, nsa_stream stream)
{
    const nsa_config *c = &p->attn.cfg.c;
    cudaError_t error = cudaSuccess;
    if (p->n_rounds > 1 && p->round.first == 0)
        error = clear(&p->attn.seqs, &p->dk, c->n_heads_kv, c->d_qk, stream);
    if (error == cudaSuccess && p->n_rounds > 1 && p->round.first == 0)
        error = clear(&p->attn.seqs, &p->dv, c->n_heads_kv, c->d_v, stream);
    if (error != cudaSuccess)
        return error;
    switch (c->d_qk) {
    case 64: return launch<64, 64, 64, 5>(p, maps, stream);
    case 128: return launch<128, 128, 64, 2>(p, maps, stream);
    default: return launch<192, 128, 32, 3>(p, maps, stream);
    }
}

int launch_slc_sums(const slc_backward *p, nsa_stream stream)
{
    const int64_t n = p->attn.seqs.total_k * p->attn.cfg.c.n_heads_kv;
    LAUNCH_WARPS(sums_kernel, n, stream, *p);
    return cudaGetLastError();
}
