/*
 * A matrix product on tensor cores with the accuracy of float32, of matrices that lie in memory in odd ways: the rows
 * of blocks of tokens, which overlap and begin anywhere; rows of dz shifted against each other.
 *
 * A float32 above 2^-110 is the sum of three bf16, exactly: its planes (of an infinity the others are NaN). Of a
 * product of two such numbers the six products of planes count that are not below 2^-24 of it; bf16 tensors have one
 * plane. The accumulators of tensor cores may round towards zero: after every FOLD steps they are added to a sum that
 * rounds to nearest.
 *
 * A CTA makes tiles of 128 x 128, with k in steps of 64 through a ring of stages: all 256 threads bring rows to shared
 * memory, 16 bytes at a time (each row is looked up: no tensor map knows where they lie), while the two warpgroups'
 * wgmma of the step before is under way.
 *
 * Cost: 2 m n k operations for each pair of planes. A step is 16 KiB for each plane of a and b: from L2, at 1 + 1
 * planes 64 bytes per clock and SM, which is more than there is; at 1 + 3 planes 43, at 3 + 3 (six products) 32. On one
 * H200 (CUDA 13.0, 2026-11-28), 64k tokens, 4 heads, d and d_hidden 128, blocks of 32/16, between events of single
 * kernels:
 *
 *     x w1      1 + 1 planes    67 us    256 TFLOP/s, 4.0 TB/s from L2
 *               1 + 3          115 us    448 TFLOP/s, 4.7 TB/s
 *     x^T dz    1 + 3          121 us    426 TFLOP/s
 *     dz w1^T   3 + 3          244 us    422 TFLOP/s: a tile has four steps, and its first loads meet no other work
 */
#include "cuda/sm90.cuh"
#include "ops/compress/compress_product_sm90.h"

enum {
    TILE = 128,
    STEP = PRODUCT_COLUMNS,
    THREADS = 2 * WARPGROUP,
    BOX_BYTES = STEP * BOX_ROW,
    PLANE_BYTES = 2 * BOX_BYTES, /* of a tile of an operand: box[128][k], or two boxes [k][64 of m or n] */
    CHUNK = 8,                   /* numbers of 16 bytes */
    ROWS_AT_ONCE = THREADS / (STEP / CHUNK),
    ROUNDS = PLANE_BYTES / 16 / THREADS,
    FOLD = 4,
    RING_PLANES = 12
};

/* ---- Operands */

static __device__ product_line line_of(const product_matrix &x, int64_t set, int64_t row, int64_t n_rows)
{
    if (row >= n_rows)
        return {0, 0, 0};
    const int64_t at = set * x.set + row * x.row;
    return x.lines != NULL ? x.lines[at] : product_line{at, 0, x.n_segments};
}

/* What this thread brings of a tile: round i is 8 columns of row tile_row(i), in box tile_box(i). */
template <bool ALONG_K> static __device__ int tile_row(int i)
{
    return (int)threadIdx.x / CHUNK + ROWS_AT_ONCE * (ALONG_K ? i : i % 2);
}

template <bool ALONG_K> static __device__ int tile_box(int i)
{
    return ALONG_K ? 0 : i / 2;
}

template <bool ALONG_K>
static __device__ void find_lines(const product_matrix &x, int64_t set, int64_t first_row, int64_t n_rows,
                                  product_line (&lines)[ROUNDS])
{
#pragma unroll
    for (int i = 0; i < ROUNDS; i++)
        lines[i] = line_of(x, set, first_row + tile_row<ALONG_K>(i), n_rows);
}

template <bool ALONG_K, int PLANES>
static __device__ void bring_tile(const product_matrix &x, const product_line (&lines)[ROUNDS], int64_t first_column,
                                  char *to)
{
    const int channel = (int)threadIdx.x % CHUNK * CHUNK;
#pragma unroll
    for (int i = 0; i < ROUNDS; i++) {
        const uint32_t column = (uint32_t)first_column + (uint32_t)(tile_box<ALONG_K>(i) * STEP);
        const int segment = (int)(column / (uint32_t)x.segment);
        const bool is = segment >= lines[i].first && segment < lines[i].end;
        const int64_t at = lines[i].at + segment * x.step + (int)(column % (uint32_t)x.segment) + channel;
#pragma unroll
        for (int plane = 0; plane < PLANES; plane++)
            copy_16(shared_address(to + plane * PLANE_BYTES + tile_box<ALONG_K>(i) * BOX_BYTES) +
                        in_box(tile_row<ALONG_K>(i), channel),
                    (const bf16 *)x.data + (is ? at + plane * x.plane : 0), is);
    }
}

/* ---- Products */

/* 64 rows of the tile += a b of one step. */
template <bool ALONG_M, bool ALONG_N, int A_PLANES, int B_PLANES>
static __device__ void start_step(float (&acc)[TILE / 2], const char *a, const char *b, bool accumulate)
{
    constexpr int MOST = 3; /* planes whose numbers add up to more count for less than 2^-24 */
    const int group = __shfl_sync(~0U, (int)threadIdx.x / WARPGROUP, 0);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < A_PLANES; i++)
#pragma unroll
        for (int j = 0; j < B_PLANES && i + j < MOST; j++)
#pragma unroll
            for (int k = 0; k < STEP; k += 16) {
                const char *a_box = a + i * PLANE_BYTES + group * BOX_BYTES, *b_box = b + j * PLANE_BYTES;
                wgmma<TILE, ALONG_M, ALONG_N>(
                    acc, ALONG_M ? further(along_mn(a_box, BOX_BYTES), k * BOX_ROW) : further(along_k(a_box), k * 2),
                    ALONG_N ? further(along_mn(b_box, BOX_BYTES), k * BOX_ROW) : further(along_k(b_box), k * 2),
                    accumulate || i + j + k > 0);
            }
    wgmma_commit();
}

/* ---- Results */

static __device__ void store_pair(const product &p, int64_t at, float x, float y)
{
    void *data = p.to.data;
    if (p.add) {
        x += load_as(data, p.dtype, at);
        y += load_as(data, p.dtype, at + 1);
    }
    if (p.by_pairs && p.dtype == NSA_F32) {
        *(float2 *)((float *)data + at) = make_float2(x, y);
    } else if (p.by_pairs && p.dtype == NSA_BF16) {
        *(uint32_t *)((bf16 *)data + at) = pack2(x, y);
    } else {
        store_as(data, p.dtype, at, x);
        store_as(data, p.dtype, at + 1, y);
    }
}

static __device__ void store_tile(const product &p, int64_t set, int part, int64_t m0, int64_t n0,
                                  const float (&sum)[TILE / 2])
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int64_t row = m0 + (int)threadIdx.x / WARP * 16 + lane_index() / 4 + 8 * r;
        const product_line line = line_of(p.to, set, row, p.m);
#pragma unroll
        for (int box = 0; box < TILE / STEP; box++) {
            const uint32_t column = (uint32_t)n0 + box * STEP;
            const int segment = (int)(column / (uint32_t)p.to.segment);
            if (segment < line.first || segment >= line.end)
                continue;
            const int64_t at = line.at + part * p.to.plane + segment * p.to.step +
                               (int)(column % (uint32_t)p.to.segment) + lane_index() % 4 * 2;
#pragma unroll
            for (int i = 0; i < STEP / 8; i++) {
                const float *pair = sum + box * (STEP / 2) + 4 * i + 2 * r;
                store_pair(p, at + 8 * i, pair[0], pair[1]);
            }
        }
    }
}

/* ---- The kernel */

static __host__ __device__ inline int64_t n_tiles_of(int64_t n)
{
    return (n + TILE - 1) / TILE;
}

template <bool ALONG_M, bool ALONG_N, int A_PLANES, int B_PLANES>
static __global__ __launch_bounds__(THREADS, 1) void product_kernel(const __grid_constant__ product p, int64_t n_items)
{
    constexpr int STAGE_BYTES = (A_PLANES + B_PLANES) * PLANE_BYTES, STAGES = RING_PLANES / (A_PLANES + B_PLANES);
    extern __shared__ __align__(1024) char memory[];
    for (int64_t item = blockIdx.x; item < n_items; item += gridDim.x) {
        const int64_t m_tiles = n_tiles_of(p.m), n_tiles = n_tiles_of(p.n);
        const int64_t m0 = item % m_tiles * TILE, n0 = item / m_tiles % n_tiles * TILE;
        const int part = (int)(item / m_tiles / n_tiles % p.n_parts);
        const int64_t set = item / m_tiles / n_tiles / p.n_parts;
        const int64_t all_steps = (p.k + STEP - 1) / STEP, first = all_steps * part / p.n_parts;
        const int n_steps = (int)(all_steps * (part + 1) / p.n_parts - first);
        product_line a_lines[ROUNDS], b_lines[ROUNDS];
        if (!ALONG_M)
            find_lines<true>(p.a, set, m0, p.m, a_lines);
        if (!ALONG_N)
            find_lines<true>(p.b, set, n0, p.n, b_lines);
        const auto bring = [&](int step) {
            if (step < n_steps) {
                const int64_t k = (first + step) * STEP;
                char *stage = memory + step % STAGES * STAGE_BYTES;
                if (ALONG_M)
                    find_lines<false>(p.a, set, k, p.k, a_lines);
                if (ALONG_N)
                    find_lines<false>(p.b, set, k, p.k, b_lines);
                bring_tile<!ALONG_M, A_PLANES>(p.a, a_lines, ALONG_M ? m0 : k, stage);
                bring_tile<!ALONG_N, B_PLANES>(p.b, b_lines, ALONG_N ? n0 : k, stage + A_PLANES * PLANE_BYTES);
            }
            copies_commit();
        };
        for (int step = 0; step < STAGES - 1; step++)
            bring(step);
        float acc[TILE / 2], sum[TILE / 2];
#pragma unroll
        for (int i = 0; i < TILE / 2; i++)
            acc[i] = sum[i] = 0.0F;
        for (int step = 0; step < n_steps; step++) {
            const char *stage = memory + step % STAGES * STAGE_BYTES;
            copies_wait<STAGES - 2>();
            fence_async();
            __syncthreads(); /* the step is there, and all are done with the one before, whose place is filled next */
            start_step<ALONG_M, ALONG_N, A_PLANES, B_PLANES>(acc, stage, stage + A_PLANES * PLANE_BYTES,
                                                             step % FOLD != 0);
            bring(step + STAGES - 1);
            wgmma_wait<0>();
            pin(acc);
            if (step % FOLD == FOLD - 1 || step == n_steps - 1)
#pragma unroll
                for (int i = 0; i < TILE / 2; i++)
                    sum[i] += acc[i];
        }
        store_tile(p, set, part, m0, n0, sum);
        copies_wait<0>();
        __syncthreads();
    }
}

template <bool ALONG_M, bool ALONG_N, int A_PLANES, int B_PLANES> static int launch(const product *p, nsa_stream stream)
{
    const auto kernel = product_kernel<ALONG_M, ALONG_N, A_PLANES, B_PLANES>;
    constexpr int BYTES = RING_PLANES * PLANE_BYTES;
    const int64_t n_items = n_tiles_of(p->m) * n_tiles_of(p->n) * p->n_sets * p->n_parts;
    const int error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES);
    if (error == cudaSuccess && n_items > 0)
        kernel<<<grid_of(n_items, 1), THREADS, BYTES, stream>>>(*p, n_items);
    return error != cudaSuccess ? error : cudaGetLastError();
}

template <bool ALONG_M, bool ALONG_N> static int launch_planes(const product *p, nsa_stream stream)
{
    if (p->a_planes == 1)
        return p->b_planes == 1 ? launch<ALONG_M, ALONG_N, 1, 1>(p, stream) : launch<ALONG_M, ALONG_N, 1, 3>(p, stream);
    return p->b_planes == 1 ? launch<ALONG_M, ALONG_N, 3, 1>(p, stream) : launch<ALONG_M, ALONG_N, 3, 3>(p, stream);
}

int launch_product_sm90(const product *p, nsa_stream stream)
{
    return p->a_along_m   ? launch_planes<true, true>(p, stream)
           : p->b_along_n ? launch_planes<false, true>(p, stream)
                          : launch_planes<false, false>(p, stream);
}
