/*
 * dk and dv of slc_attn on Hopper, block-major.
 *
 *     S^T = k q^T    dP^T = v dO^T    P' = gate exp2(scale log2e S - log2e lse)    dS = P (gate dP - delta)
 *     dv += P'^T dO    dk += dS^T q
 *
 * A CTA takes an item: KEYS keys of a block and a piece of the list of tokens that have selected it. Producer warps
 * gather q and dO of the tokens into a ring of stages, N (token, head) columns each; two warpgroups take every other
 * stage, each with sums of its own over all KEYS keys. At the end these are added, and go to dk and dv, or where the
 * list has several items to `parts`, which sum_parts_kernel adds in their order. Lists are in rising order of tokens,
 * and so is every sum.
 *
 *     gK, gV -> sK, sV (once)    gQ, gdO -> sQ, sdO (ring)
 *     sK sQ -> rS    sV sdO -> rdP    rS rdP -> rP, rdS    rP sdO -> rdV    rdS sQ -> rdK -> (sum over sQ, sdO) -> gdK
 *
 *     filled[stage]      q, dO and the columns' values have come; each producer warp arrives
 *     emptied[stage]     a lane of each warp of the warpgroup: it has done with the stage
 *     loaded             K and V have come
 *     WARPGROUP_BAR + i  of warpgroup i, while it cleans a stage
 *     ALL_CONSUMERS      around the exchange of sums
 *
 * Masks: only tokens of the block itself do not see all of its keys. Their dO and q are multiplied with the P = dS = 0
 * of keys that they do not see, so a NaN in them must go: where S or dP is not finite at the tile's first key, which
 * every row of the product has met, the column's q and dO are zeroed, and P and dS are NaN at the keys that the token
 * sees. Columns past the end of a list are boxes from outside of the tensor, zeros.
 *
 * Cost at 64k tokens, 64/4 heads, d 128: 4.4 TFLOP; 34 GB of q and dO, which do not stay in the L2 cache from block to
 * block. One H100, 2026-11-24: with one producer warp 12.5 ms there, with random blocks as where neighbours select much
 * the same, and 1.65 ms at 8k tokens; with four 1.14 ms at 8k (64k not measured).
 *
 * Small boxes want hands: q and dO of a stage are 16 of them. What the producers load must not be looked at in the step
 * that issues it: when they took lse, delta and gate from their tensors by themselves, all waited for them (23 ms).
 */
#include "ops/slc_attn/slc_attn_bwd_sm90.cuh"

enum { PRODUCERS = 4 /* warps */ };
enum { CONSUMERS = 2 * WARPGROUP, THREADS = CONSUMERS + WARPGROUP, ALL_CONSUMERS = 1, WARPGROUP_BAR = 2 };

template <int N> struct __align__(16) stage_columns
{
    slc_values values[N];
    int32_t sees[N];           /* rows 0 .. sees of the tile */
    int32_t masked[PRODUCERS]; /* some column of the warp's does not see all rows */
};

template <int D_QK, int D_V, int N, int STAGES> struct dkdv_shared {
    static_assert(STAGES % 2 == 0, "a stage is always the same warpgroup's, or that could miss a phase of `filled`");
    bf16 k[D_QK / 64][KEYS][64], v[D_V / 64][KEYS][64];
    union {
        struct {
            bf16 q[STAGES][D_QK / 64][N][64], d_o[STAGES][D_V / 64][N][64];
        };
        struct { /* registers of a warpgroup for the other to add */
            float dk[D_QK / 2][WARPGROUP], dv[D_V / 2][WARPGROUP];
        };
    };
    stage_columns<N> columns[STAGES];
    int32_t unfit[2][N];
    uint64_t filled[STAGES], emptied[STAGES], loaded;
};

/* What a CTA does. */
typedef struct dkdv_tile {
    int32_t s, kv_head, list;
    seq_range q, k;
    int64_t key;                     /* the first */
    int n_keys;                      /* of KEYS */
    int32_t boxes_of_token, n_pairs; /* boxes of q; of a token and a box, in all */
} dkdv_tile;

static __device__ bool find_keys(const slc_backward &p, int64_t list, int tile, dkdv_tile *x)
{
    const int32_t slc_block = p.attn.cfg.c.slc_block;
    x->list = (int32_t)list;
    x->kv_head = (int32_t)(list / p.lists.n_blocks);
    const int64_t block = find_tile(p.attn.seqs.cu_k, p.attn.seqs.n, 1, slc_block, list % p.lists.n_blocks, &x->s);
    x->q = seq_q(p.attn.seqs, x->s);
    x->k = seq_k(p.attn.seqs, x->s);
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
    const int thread = (int)threadIdx.x % WARPGROUP, lane = lane_index(),
              bar = WARPGROUP_BAR + (int)threadIdx.x / WARPGROUP;
    if (thread < 4) /* they have row 0 */
#pragma unroll
        for (int i = 0; i < N / 4; i++) {
            const int at = i / 2 * 4 + i % 2;
            unfit[i / 2 * 8 + lane * 2 + i % 2] = !isfinite(s[at]) || !isfinite(dp[at]);
        }
    bar_sync(bar, WARPGROUP);
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
    bar_sync(bar, WARPGROUP);
    return mine;
}

/* P' and dS as operands a. */
template <int N>
static __device__ void gradients(const float (&s)[N / 2], const float (&dp)[N / 2], const slc_values (&values)[N],
                                 float scale, uint32_t (&prob)[N / 4], uint32_t (&ds)[N / 4])
{
#pragma unroll
    for (int i = 0; i < N / 8; i++) {
        const slc_values y0 = values[8 * i + lane_index() % 4 * 2], y1 = values[8 * i + lane_index() % 4 * 2 + 1];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int at = 4 * i + 2 * r;
            const float p0 = exp2_fast(fmaf(s[at], scale, -y0.lse)), p1 = exp2_fast(fmaf(s[at + 1], scale, -y1.lse));
            prob[2 * i + r] = pack2(p0 * y0.gate, p1 * y1.gate);
            ds[2 * i + r] = pack2(p0 * fmaf(y0.gate, dp[at], -y0.delta), p1 * fmaf(y1.gate, dp[at + 1], -y1.delta));
        }
    }
}

/* Of P' and dS: NaN in unfit columns, and 0 where the column's token does not see the key. */
template <int N>
static __device__ void mask(uint32_t (&prob)[N / 4], uint32_t (&ds)[N / 4], const int32_t (&sees)[N], unsigned unfit)
{
    const int row = (int)threadIdx.x / WARP % 4 * 16 + lane_index() / 4;
#pragma unroll
    for (int i = 0; i < N / 8; i++) {
        const int column = 8 * i + lane_index() % 4 * 2;
        const uint32_t nan = (unfit >> 2 * i & 1) * 0x7fffU | (unfit >> (2 * i + 1) & 1) * 0x7fff0000U;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const uint32_t seen =
                (row + 8 * r <= sees[column] ? 0xffffU : 0U) | (row + 8 * r <= sees[column + 1] ? 0xffff0000U : 0U);
            prob[2 * i + r] = (prob[2 * i + r] | nan) & seen;
            ds[2 * i + r] = (ds[2 * i + r] | nan) & seen;
        }
    }
}

template <int D_QK, int D_V, int N, int STAGES>
static __device__ void consume(const slc_backward &p, int n_stages, dkdv_shared<D_QK, D_V, N, STAGES> *x,
                               float (&dk)[D_QK / 64][32], float (&dv)[D_V / 64][32])
{
    const int warpgroup = __shfl_sync(~0U, (int)threadIdx.x / WARPGROUP, 0); /* the compiler sees it is one */
    const float scale = p.attn.cfg.scale * LOG2_E;
    mbar_wait(&x->loaded, 0);
    for (int n = warpgroup; n < n_stages; n += 2) {
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
        uint32_t prob[N / 4], ds[N / 4];
        const stage_columns<N> &columns = x->columns[stage];
        const bool masked = columns.masked[0] | columns.masked[1] | columns.masked[2] | columns.masked[3];
        unsigned unfit = 0;
        if (masked)
            unfit = clean<D_QK, D_V, N>(s, dp, q, d_o, x->unfit[warpgroup]);
        gradients<N>(s, dp, columns.values, scale, prob, ds);
        if (masked)
            mask<N>(prob, ds, columns.sees, unfit);
        pin(prob), pin(ds);
        wgmma_fence();
#pragma unroll
        for (int j = 0; j < N; j += 16) {
#pragma unroll
            for (int b = 0; b < D_V / 64; b++)
                wgmma<64, 1>(dv[b], prob + j / 4, further(along_mn(d_o[b], 0), j * BOX_ROW), 1);
#pragma unroll
            for (int b = 0; b < D_QK / 64; b++)
                wgmma<64, 1>(dk[b], ds + j / 4, further(along_mn(q[b], 0), j * BOX_ROW), 1);
        }
        wgmma_commit();
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

template <int D> static __device__ void give(float (*dst)[WARPGROUP], const float (&acc)[D / 64][32])
{
#pragma unroll
    for (int i = 0; i < D / 2; i++)
        dst[i][threadIdx.x % WARPGROUP] = acc[i / 32][i % 32];
}

template <int D> static __device__ void take(float (&acc)[D / 64][32], const float (*src)[WARPGROUP])
{
#pragma unroll
    for (int i = 0; i < D / 2; i++)
        acc[i / 32][i % 32] += src[i][threadIdx.x % WARPGROUP];
}

/* To t, a dk or dv, or to part: [KEYS][D]. */
template <int D>
static __device__ void store_keys(const nsa_tensor &t, bool add, float scale, const dkdv_tile &tile, float *part,
                                  const float (&acc)[D / 64][32])
{
    const int first_row = (int)threadIdx.x / WARP % 4 * 16 + lane_index() / 4;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = first_row + 8 * r;
        const int64_t at = offset_of(t, tile.s, tile.k.start, tile.key + row, tile.kv_head);
        if (row >= tile.n_keys)
            continue;
#pragma unroll
        for (int i = 0; i < D / 8; i++) {
            const int channel = 8 * i + lane_index() % 4 * 2;
            const float *x = &acc[i / 8][i % 8 * 4 + 2 * r];
            if (part != NULL) {
                *(float2 *)&part[row * D + channel] = make_float2(x[0], x[1]);
            } else {
                put(t, at + channel, x[0] * scale, add);
                put(t, at + channel + 1, x[1] * scale, add);
            }
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
static __global__ __launch_bounds__(THREADS, 1) void dkdv_kernel(const __grid_constant__ slc_backward p,
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
    tile.boxes_of_token = a.cfg.group / p.box_heads;
    tile.n_pairs = item.n * tile.boxes_of_token;
    const int boxes = N / p.box_heads, n_stages = (tile.n_pairs + boxes - 1) / boxes;
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
    if (boxes * p.box_heads < N)
        zero_rest(boxes * p.box_heads, x);
    __syncthreads();
    if (threadIdx.x >= CONSUMERS) {
        registers_down<24>();
        produce(p, maps, tile, p.lists.tokens + p.lists.begin[item.list] + item.first, n_stages, x);
        return;
    }
    registers_up<240>();
    float dk[D_QK / 64][32] = {}, dv[D_V / 64][32] = {};
    consume(p, n_stages, x, dk, dv);
    bar_sync(ALL_CONSUMERS, CONSUMERS);
    if (threadIdx.x < WARPGROUP)
        give<D_V>(x->dv, dv);
    else
        give<D_QK>(x->dk, dk);
    bar_sync(ALL_CONSUMERS, CONSUMERS);
    float *part = item.part < 0 ? NULL : part_at(p, item.part, part_of_block);
    if (threadIdx.x < WARPGROUP) {
        take<D_QK>(dk, x->dk);
        store_keys<D_QK>(a.dk, a.add_dk, a.cfg.scale, tile, part, dk);
    } else {
        take<D_V>(dv, x->dv);
        store_keys<D_V>(a.dv, a.add_dv, 1.0F, tile, part == NULL ? NULL : part + KEYS * D_QK, dv);
    }
}

static __device__ void sum_rows(const slc_backward &p, const dkdv_tile &tile, const float *part, int n_parts,
                                const nsa_tensor &t, bool add, float scale, int d)
{
    const int64_t to_next = (int64_t)p.n_tiles * KEYS * (p.attn.cfg.c.d_qk + p.attn.cfg.c.d_v);
    for (int i = (int)threadIdx.x; i < tile.n_keys * d; i += THREADS) {
        float sum = 0.0F;
        for (int j = 0; j < n_parts; j++)
            sum += part[j * to_next + i];
        put(t, offset_of(t, tile.s, tile.k.start, tile.key + i / d, tile.kv_head) + i % d, sum * scale, add);
    }
}

static __global__ __launch_bounds__(THREADS) void sum_parts_kernel(const __grid_constant__ slc_backward p)
{
    const attn_simt &a = p.attn;
    const int64_t list = blockIdx.x / p.n_tiles;
    const int part_of_block = (int)(blockIdx.x % p.n_tiles);
    const int n_parts = (p.lists.count[list] + p.lists.item_tokens - 1) / p.lists.item_tokens;
    dkdv_tile tile;
    if (n_parts < 2 || !find_keys(p, list, part_of_block, &tile))
        return;
    const float *part = part_at(p, p.lists.parts_begin[list], part_of_block);
    sum_rows(p, tile, part, n_parts, a.dk, a.add_dk, a.cfg.scale, a.cfg.c.d_qk);
    sum_rows(p, tile, part + KEYS * a.cfg.c.d_qk, n_parts, a.dv, a.add_dv, 1.0F, a.cfg.c.d_v);
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

int launch_slc_dkdv(const slc_backward *p, const slc_maps *maps, nsa_stream stream)
{
    switch (p->attn.cfg.c.d_qk) {
    case 64: return launch<64, 64, 64, 8>(p, maps, stream);
    case 128: return launch<128, 128, 64, 4>(p, maps, stream);
    default: return launch<192, 128, 32, 6>(p, maps, stream);
    }
}
