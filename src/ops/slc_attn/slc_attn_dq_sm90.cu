/*
 * dq of slc_attn on Hopper, token-major: dq = scale dS k, of the dS that dk and dv have left. Also the values of each
 * (token, head) that they want.
 *
 * A CTA takes TOKENS consecutive tokens of a kv head (a token more than once if its group has more than HEADS heads):
 * a warp for each, and a producer warp, which walks the union of the blocks that the tokens have selected, in rising
 * order, and brings KEYS keys at a time into a ring of stages. A warp multiplies where the stage has the keys that its
 * own token wants next. kv heads are the slowest index of the grid, so that the K of one lies in the L2 cache.
 *
 *     gK -> sK (ring)    gdS -> sdS (AHEAD of it) -> rdS -> its transpose    sK -> rK (ldmatrix, transposed)
 *     rdS rK -> rdQ -> gdQ                                                          mma.sync, heads as its 16 rows
 *
 *     filled[stage]     K has come, and which keys it has
 *     emptied[stage]    a lane of each consumer warp: the stage's last use is over
 *
 * Masks: a token sees the first n keys of a stage. dS and what is read of k are taken as 0 beyond: a NaN there stays
 * there. Everything else has a row of its own. Sums are in the order of the keys, whatever the order of slc_idx and
 * whatever the other tokens of the CTA want.
 *
 * Cost at 64k tokens, 64/4 heads, d 128: 1.1 TFLOP; 8.6 GB of dS; 55 GB of K through the L2 cache where tokens of a CTA
 * share no blocks. One H200, 2026-11-28: 9.7 ms with random blocks, 6.1 ms where neighbours select much the same; 0.84
 * and 0.63 at 8k. With S and dP made anew (three products by wgmma with N = 16, whose operands k and v shared memory
 * reads for 8 cycles' work of a tensor core; and V through the L2 cache besides) it was 16.9, 11.3; 1.54, 1.14.
 *
 * Tried there (ms at 64k): dS in registers, one block ahead, and the places looked up in memory 9.8; AHEAD = 2 and a
 * stage more 9.5, with a spill. Transposing dS costs 0.2.
 *
 * A stage is given back only when its k has come to registers. Right after ldmatrix was issued is too early: the copy
 * engine then overtakes it now and then.
 */
#include "ops/slc_attn/slc_attn_bwd_sm90.cuh"

enum { LANES = 4 /* of the producer, for each token */, AHEAD = 3 };

template <int D, int TOKENS, int STAGES> struct dq_shared {
    bf16 k[STAGES][D / 64][KEYS][64];
    uint4 ds[TOKENS][AHEAD][KEYS / 16][WARP];
    uint64_t filled[STAGES], emptied[STAGES];
    int32_t key[STAGES];  /* the first; -1: there are no more */
    int32_t keys[STAGES]; /* of the block */
};

/* The tokens of a CTA: items are (token, unit of its heads), those of a token one after the other. */
typedef struct dq_tile {
    int32_t s, kv_head;
    int64_t first; /* item of the sequence */
    seq_range q, k;
    row_span rows; /* of the round */
} dq_tile;

/* Tiles are numbered through all sequences; those of a round begin with the one before its first token's. */
static int64_t n_tiles_of_round(const slc_backward *p, int tokens)
{
    return p->round.n * p->units / tokens + p->attn.seqs.n + 3;
}

static __device__ bool find_dq_tile(const slc_backward &p, int tokens, int64_t n_tiles, dq_tile *x)
{
    const simt_seqs &seqs = p.attn.seqs;
    const int64_t tile = p.round.first * p.units / tokens - 1 + blockIdx.x % n_tiles;
    x->kv_head = (int32_t)(blockIdx.x / n_tiles);
    x->first = find_tile(seqs.cu_q, seqs.n, p.units, tokens, tile, &x->s);
    x->q = seq_q(seqs, x->s);
    x->k = seq_k(seqs, x->s);
    x->rows = rows_of_round(p.round, x->q);
    return x->first >= 0 && x->first < x->rows.end * p.units && x->first + tokens > x->rows.first * p.units;
}

/* The token of an item: nothing of it is read if it is none of the round's. */
typedef struct dq_token {
    bool exists;
    int64_t row, t;
    const int32_t *idx, *places; /* of the token; places of its entries */
} dq_token;

static __device__ dq_token token_of(const slc_backward &p, const dq_tile &tile, int64_t item)
{
    const attn_simt &a = p.attn;
    const int64_t row = item / p.units;
    const bool exists = row >= tile.rows.first && row < tile.rows.end;
    const int64_t in_round = exists ? tile.q.start + row - p.round.first : 0;
    const dq_token x = {
        exists,
        row,
        exists ? row + tile.k.n - tile.q.n : -1,
        (const int32_t *)a.slc_idx.data + offset_of(a.slc_idx, tile.s, tile.q.start, exists ? row : 0, tile.kv_head),
        p.lists.places + (tile.kv_head * p.round.n + in_round) * a.cfg.c.slc_topk,
    };
    return x;
}

/* ---- Producer */

template <int D, int TOKENS, int STAGES>
static __device__ void produce(const slc_backward &p, const slc_maps &maps, const dq_tile &tile,
                               dq_shared<D, TOKENS, STAGES> *x)
{
    const attn_simt &a = p.attn;
    const int lane = lane_index(), slc_block = a.cfg.c.slc_block;
    const dq_token token = token_of(p, tile, tile.first + min(lane / LANES, TOKENS - 1));
    int n = 0;
    for (int last = -1;;) {
        int next = INT32_MAX; /* of the token */
        for (int e = lane % LANES; e < a.cfg.c.slc_topk && token.exists; e += LANES) {
            const int entry = __ldg(token.idx + e);
            next = entry > last ? min(next, entry) : next;
        }
        for (int i = 1; i < LANES; i *= 2)
            next = min(next, __shfl_xor_sync(~0U, next, i));
        const int block = __reduce_min_sync(~0U, (int64_t)next * slc_block <= token.t ? next : INT32_MAX);
        last = block;
        for (int64_t key = (int64_t)block * slc_block, end = key + slc_block; key < end; key += KEYS) {
            if (block != INT32_MAX && !__any_sync(~0U, next == block && key <= token.t))
                break;
            const int stage = n % STAGES;
            if (n >= STAGES)
                mbar_wait(&x->emptied[stage], (n / STAGES - 1) % 2);
            n++;
            if (lane == 0) {
                x->key[stage] = block == INT32_MAX ? -1 : (int32_t)key;
                x->keys[stage] = (int32_t)min64(KEYS, end - key);
                mbar_arrive_expect(&x->filled[stage], block == INT32_MAX ? 0 : sizeof x->k[0]);
            }
            if (block == INT32_MAX)
                return;
            if (lane == 0)
                copy_tile<D>(x->k[stage], sizeof x->k[0][0], &maps.k, &x->filled[stage], tile.kv_head,
                             map_row(a.k, tile.k, key), map_seq(a.k, tile.s));
        }
    }
}

/* ---- Consumers */

/* A token's way through its blocks. It is AHEAD of where the token multiplies: dS has far to come. Each lane copies
 * what it wants itself to shared memory, a slot for each KEYS keys. */
typedef struct dq_walk {
    int32_t entry, entry_place; /* the lane's first */
    int32_t block, place;       /* the last that was found; its place in the list of the block, -1 if there is none */
    int32_t tile;               /* of the block */
    int32_t key[AHEAD];         /* what the token wants next, and then; -1: nothing */
    int32_t slot;               /* of the first of these */
} dq_walk;

/* The token's next block. */
static __device__ void find_block(const slc_backward &p, const dq_token &token, dq_walk *x)
{
    const int topk = p.attn.cfg.c.slc_topk;
    int next = x->entry > x->block ? x->entry : INT32_MAX;
    for (int e = WARP + lane_index(); e < topk && token.exists; e += WARP) {
        const int entry = __ldg(token.idx + e);
        next = entry > x->block ? min(next, entry) : next;
    }
    x->block = __reduce_min_sync(~0U, next);
    int place = x->entry == x->block ? x->entry_place : -1;
    for (int e = WARP + lane_index(); e < topk && token.exists; e += WARP)
        if (__ldg(token.idx + e) == x->block)
            place = token.places[e];
    place = __reduce_max_sync(~0U, place);
    x->place = place < p.lists.room ? place : -1; /* more is what cu_seqlens that are not sound leave there */
    x->tile = 0;
}

/* dS of the keys: of a lane for each 16 keys as many words as there are matrices. */
static __device__ void copy_ds(const slc_backward &p, int unit, const dq_walk &x, uint4 (*slot)[WARP])
{
    const int heads = p.unit_heads, lane = lane_index();
    const slc_unit u = unit_of(heads);
    const uint16_t *ds = p.ds + (((int64_t)x.place * p.units + unit) * p.n_tiles + x.tile) * (heads * KEYS);
    const bool mine = x.place >= 0 && lane % 4 < u.head_pairs;
#pragma unroll
    for (int j = 0; j < KEYS / 16; j++) {
        const uint16_t *at = ds + unit_lane(heads, j, lane / 4) + lane % 4 * u.matrices * 2;
        if (!mine)
            slot[j][lane] = make_uint4(0, 0, 0, 0);
        else if (heads > 8)
            copy_async<16>(&slot[j][lane], at);
        else if (heads > 1)
            copy_async<8>(&slot[j][lane], at);
        else
            copy_async<4>(&slot[j][lane], at);
    }
}

/* To what the token wants after all that it knows of; that replaces what it has done with. */
static __device__ void advance(const slc_backward &p, const dq_token &token, int unit, dq_walk *x,
                               uint4 (*slots)[KEYS / 16][WARP])
{
    int32_t key = x->key[AHEAD - 1];
    if (x->tile + 1 < p.n_tiles && key >= 0 && key + KEYS <= token.t) {
        x->tile++, key += KEYS;
    } else {
        find_block(p, token, x);
        const int64_t first = (int64_t)x->block * p.attn.cfg.c.slc_block;
        key = first <= token.t ? (int32_t)first : -1;
    }
#pragma unroll
    for (int i = 0; i + 1 < AHEAD; i++)
        x->key[i] = x->key[i + 1];
    x->key[AHEAD - 1] = key;
    if (key >= 0)
        copy_ds(p, unit, *x, slots[x->slot]);
    copies_commit();
    x->slot = x->slot + 1 < AHEAD ? x->slot + 1 : 0;
}

/* What copy_ds has left of a lane's 16 keys: the matrices of (heads, keys) 0-7, 0-7; 0-7, 8-15; 8-15, 0-7; 8-15, 8-15.
 */
static __device__ uint4 ds_of(uint4 x, int heads)
{
    if (heads > 8)
        return x;
    return heads > 1 ? make_uint4(x.x, x.y, 0, 0) : make_uint4(x.x & 0xffff, x.x >> 16, 0, 0);
}

/* dq += dS k of KEYS keys, of which n are seen. */
template <int D>
static __device__ void multiply(float (&dq)[D / 8][4], const uint4 (*slot)[WARP], int heads, const bf16 (*k)[KEYS][64],
                                int n)
{
    const int lane = lane_index();
#pragma unroll(D > 128 ? 2 : KEYS / 16)
    for (int j = 0; j < KEYS / 16; j++) {
        const int key = 16 * j + lane % 4 * 2; /* and the next, and both 8 further */
        const uint32_t lo = key + 1 < n ? ~0U
                            : key < n   ? 0xffffU
                                        : 0U,
                       hi = key + 9 < n   ? ~0U
                            : key + 8 < n ? 0xffffU
                                          : 0U;
        const uint4 ds = ds_of(slot[j][lane], heads);
        const uint32_t a[4] = {transpose_matrix(ds.x) & lo, transpose_matrix(ds.z) & lo, transpose_matrix(ds.y) & hi,
                               transpose_matrix(ds.w) & hi};
#pragma unroll
        for (int c = 0; c < D; c += 16) {
            uint32_t b[4];
            load_matrices_transposed(b, shared_address(k[c / 64][16 * j]) + in_box(lane % 16, c % 64 + lane / 16 * 8));
            if (n < KEYS)
                b[0] &= lo, b[1] &= hi, b[2] &= lo, b[3] &= hi;
            mma_16x8(dq[c / 8], a, b);
            mma_16x8(dq[c / 8 + 1], a, b + 2);
        }
    }
}

template <int D>
static __device__ void store_dq(const slc_backward &p, const dq_tile &tile, const dq_token &token, int unit,
                                const float (&dq)[D / 8][4])
{
    enum { AT_ONCE = 8 };
    const attn_simt &a = p.attn;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int head = unit * HEADS + lane_index() / 4 + 8 * r;
        if (head >= a.cfg.group)
            continue;
        const int64_t at =
            offset_of(a.dq, tile.s, tile.q.start, token.row, tile.kv_head * a.cfg.group + head) + lane_index() % 4 * 2;
#pragma unroll
        for (int i = 0; i < D / 8; i += AT_ONCE) {
            float2 x[AT_ONCE];
#pragma unroll
            for (int c = 0; c < AT_ONCE; c++)
                x[c] = make_float2(dq[i + c][2 * r] * a.cfg.scale, dq[i + c][2 * r + 1] * a.cfg.scale);
            put_pairs(a.dq, at + 8 * i, x, a.add_dq);
        }
    }
}

template <int D, int TOKENS, int STAGES>
static __device__ void consume(const slc_backward &p, const dq_tile &tile, dq_shared<D, TOKENS, STAGES> *x)
{
    const int warp = (int)threadIdx.x / WARP, topk = p.attn.cfg.c.slc_topk;
    const int64_t item = tile.first + warp;
    const int unit = (int)(item % p.units);
    const dq_token token = token_of(p, tile, item);
    const bool has_entry = token.exists && lane_index() < topk;
    float dq[D / 8][4] = {};
    dq_walk walk = {.entry = has_entry ? __ldg(token.idx + lane_index()) : -1,
                    .entry_place = has_entry ? token.places[lane_index()] : -1,
                    .block = -1,
                    .tile = p.n_tiles};
#pragma unroll 1
    for (int i = 0; i < AHEAD; i++)
        advance(p, token, unit, &walk, x->ds[warp]);
    for (int n = 0;; n++) {
        const int stage = n % STAGES;
        mbar_wait(&x->filled[stage], n / STAGES % 2);
        const int key = x->key[stage];
        if (key < 0)
            break;
        const bool wanted = key == walk.key[0];
        if (wanted) {
            copies_wait<AHEAD - 1>();
            multiply<D>(dq, x->ds[warp][walk.slot], p.unit_heads, x->k[stage],
                        (int)min64(token.t - key + 1, x->keys[stage]));
        }
        __syncwarp();
        if (lane_index() == 0)
            mbar_arrive(&x->emptied[stage]);
        if (wanted)
            advance(p, token, unit, &walk, x->ds[warp]);
    }
    if (token.exists)
        store_dq<D>(p, tile, token, unit, dq);
}

/* CTAS: on an SM. */
template <int D, int TOKENS, int STAGES, int CTAS>
static __global__ __launch_bounds__((TOKENS + 1) * WARP, CTAS) void dq_kernel(const __grid_constant__ slc_backward p,
                                                                              const __grid_constant__ slc_maps maps,
                                                                              int64_t n_tiles)
{
    extern __shared__ __align__(1024) unsigned char shared[];
    dq_shared<D, TOKENS, STAGES> *x = (dq_shared<D, TOKENS, STAGES> *)shared;
    dq_tile tile;
    if (!find_dq_tile(p, TOKENS, n_tiles, &tile))
        return;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            mbar_init(&x->filled[i], 1);
            mbar_init(&x->emptied[i], TOKENS);
        }
        fence_mbar_init();
    }
    __syncthreads();
    if (threadIdx.x / WARP < TOKENS)
        consume(p, tile, x);
    else
        produce(p, maps, tile, x);
}

/* ---- Values of each (token, head), by 8 lanes */

static __device__ float dot_of_16_bytes(uint4 x, uint4 y)
{
    const uint32_t xs[] = {x.x, x.y, x.z, x.w}, ys[] = {y.x, y.y, y.z, y.w};
    float sum = 0.0F;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 a = __bfloat1622float2(*(const __nv_bfloat162 *)&xs[i]),
                     b = __bfloat1622float2(*(const __nv_bfloat162 *)&ys[i]);
        sum = fmaf(a.y, b.y, fmaf(a.x, b.x, sum));
    }
    return sum;
}

static __global__ __launch_bounds__(WARP *WARPS) void values_kernel(const __grid_constant__ slc_backward p, int64_t n)
{
    enum { ROW_LANES = 8, AT_ONCE = WARP / ROW_LANES };
    const attn_simt &a = p.attn;
    const int lane = lane_index() % ROW_LANES;
    for (int64_t first = first_item() * AT_ONCE; first < n; first += item_stride() * AT_ONCE) {
        const int64_t item = first + lane_index() / ROW_LANES;
        query x;
        const bool found = item < n && find_query(a.seqs, a.cfg.c.n_heads_q, item, &x);
        float delta = 0.0F;
        if (found) {
            const uint4 *o = (const uint4 *)((const bf16 *)a.o.data + offset_at(a.o, x.at, x.at.head)),
                        *d_o = (const uint4 *)((const bf16 *)a.d_o.data + offset_at(a.d_o, x.at, x.at.head));
            for (int i = lane; i < a.cfg.c.d_v / 8; i += ROW_LANES)
                delta += dot_of_16_bytes(o[i], d_o[i]);
        }
        for (int i = 1; i < ROW_LANES; i *= 2)
            delta += __shfl_xor_sync(~0U, delta, i);
        if (!found || lane != 0)
            continue;
        const float gate = a.gate.data == NULL ? 1.0F : load(a.gate, offset_at(a.gate, x.at, x.at.head) + a.branch);
        const slc_values y = {load(a.lse, offset_at(a.lse, x.at, x.at.head)) * LOG2_E, delta * gate, gate, 0.0F};
        p.values[item] = y;
    }
}

/* ---- Launches: all instantiations */

int launch_slc_values(const slc_backward *p, nsa_stream stream)
{
    const int64_t n = p->attn.seqs.total_q * p->attn.cfg.c.n_heads_q;
    LAUNCH_WARPS(values_kernel, (n + 3) / 4, stream, *p, n);
    return cudaGetLastError();
}

template <int D, int TOKENS, int STAGES, int CTAS>
static cudaError_t launch(const slc_backward *p, const slc_maps *maps, nsa_stream stream)
{
    const int bytes = sizeof(dq_shared<D, TOKENS, STAGES>);
    const auto kernel = dq_kernel<D, TOKENS, STAGES, CTAS>;
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess)
        return error;
    const int64_t n_tiles = n_tiles_of_round(p, TOKENS);
    kernel<<<(unsigned)(n_tiles * p->attn.cfg.c.n_heads_kv), (TOKENS + 1) * WARP, bytes, stream>>>(*p, *maps, n_tiles);
    return cudaGetLastError();
}

int launch_slc_dq(const slc_backward *p, const slc_maps *maps, nsa_stream stream)
{
    switch (p->attn.cfg.c.d_qk) {
    case 64: return launch<64, 7, 6, 2>(p, maps, stream);
    case 128: return launch<128, 7, 4, 2>(p, maps, stream);
    default: return launch<192, 5, 3, 2>(p, maps, stream);
    }
}
