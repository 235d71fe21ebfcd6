/*
 * The building blocks of the kernels for Hopper (src/cuda/sm90.cuh): boxes by the copy engine, wgmma with its operands
 * in each layout, mma.sync. A block multiplies one tile in every way; the host does it in plain loops. Integers as
 * inputs: products are exact, so results must be equal.
 */
#include "cuda/sm90.cuh"

#include <stdio.h>
#include <stdlib.h>
#include <vector>

enum { KEYS = 64, HEADS = 16, TOKENS = 4, ROWS = HEADS * TOKENS, D = 128, BOX_BYTES = 64 * BOX_ROW };

typedef struct results {
    float s[ROWS][KEYS];     /* q k^T: both along k */
    float st[KEYS][HEADS];   /* k q^T, the first token's heads */
    float o[ROWS][D];        /* s v: a in registers, b along n */
    float vq[D / 2][ROWS];   /* v^T q^T, of the first box: a along m */
    float warp[HEADS][KEYS]; /* q k^T by mma.sync */
    float warp_o[HEADS][D];  /* s v by mma.sync */
} results;

typedef struct tiles {
    bf16 q[D / 64][ROWS][64], k[D / 64][KEYS][64], v[D / 64][KEYS][64];
    uint64_t filled;
} tiles;

/* Element (row, column) of each register, to dst[.][stride]. */
template <int N> static __device__ void put(float *dst, int stride, const float (&d)[N])
{
    const int lane = lane_index(), row = (int)threadIdx.x / WARP * 16 + lane / 4;
    for (int i = 0; i < N / 4; i++)
        for (int j = 0; j < 4; j++)
            dst[(row + j / 2 * 8) * stride + 8 * i + lane % 4 * 2 + j % 2] = d[4 * i + j];
}

static __device__ void multiply_warpgroup(const tiles *x, results *r)
{
    float s[KEYS / 2], st[HEADS / 2], vq[ROWS / 2], o[D / 2];
    wgmma_fence();
    for (int c = 0; c < D; c += 16) {
        wgmma<KEYS>(s, further(along_k(x->q[c / 64]), c % 64 * 2), further(along_k(x->k[c / 64]), c % 64 * 2), c > 0);
        wgmma<HEADS>(st, further(along_k(x->k[c / 64]), c % 64 * 2), further(along_k(x->q[c / 64]), c % 64 * 2), c > 0);
    }
    for (int c = 0; c < 64; c += 16)
        wgmma<ROWS, 1>(vq, further(along_mn(x->v, BOX_BYTES), c * BOX_ROW), further(along_k(x->q), c * 2), c > 0);
    wgmma_commit();
    wgmma_wait<0>();
    pin(s), pin(st), pin(vq);
    uint32_t p[KEYS / 4];
    for (int i = 0; i < KEYS / 4; i++)
        p[i] = pack2(s[2 * i], s[2 * i + 1]);
    pin(p);
    wgmma_fence();
    for (int j = 0; j < KEYS; j += 16)
        wgmma<D, 1>(o, p + j / 4, further(along_mn(x->v, BOX_BYTES), j * BOX_ROW), j > 0);
    wgmma_commit();
    wgmma_wait<0>();
    pin(o);
    put(r->s[0], KEYS, s);
    put(r->st[0], HEADS, st);
    put(r->vq[0], ROWS, vq);
    put(r->o[0], D, o);
}

static __device__ void multiply_warp(const tiles *x, results *r)
{
    const int lane = lane_index();
    float s[KEYS / 2] = {0.0F}, o[D / 2] = {0.0F};
    for (int c = 0; c < D; c += 16) {
        uint32_t a[4], b[4];
        /* Matrices of a: rows 0-7 and 8-15 of channels 0-7, then of 8-15. */
        load_matrices(a, shared_address(x->q[c / 64]) + in_box(lane % 16, c % 64 + lane / 16 * 8));
        for (int j = 0; j < KEYS; j += 16) {
            /* Of b: keys 0-7 by channels 0-7, 8-15; then keys 8-15. */
            load_matrices(b, shared_address(x->k[c / 64]) +
                                 in_box(j + lane / 16 * 8 + lane % 8, c % 64 + lane / 8 % 2 * 8));
            mma_16x8(s + j / 2, a, b);
            mma_16x8(s + j / 2 + 4, a, b + 2);
        }
    }
    for (int j = 0; j < KEYS; j += 16) {
        uint32_t a[4], b[4];
        for (int i = 0; i < 4; i++)
            a[i] = pack2(s[j / 2 + 2 * i], s[j / 2 + 2 * i + 1]);
        for (int c = 0; c < D; c += 16) {
            load_matrices_transposed(b, shared_address(x->v[c / 64]) + in_box(j + lane % 16, c % 64 + lane / 16 * 8));
            mma_16x8(o + c / 2, a, b);
            mma_16x8(o + c / 2 + 4, a, b + 2);
        }
    }
    put(r->warp[0], KEYS, s);
    put(r->warp_o[0], D, o);
}

static __global__ __launch_bounds__(WARPGROUP) void multiply(const __grid_constant__ CUtensorMap q,
                                                             const __grid_constant__ CUtensorMap k,
                                                             const __grid_constant__ CUtensorMap v, results *r)
{
    extern __shared__ __align__(1024) unsigned char shared[];
    tiles *x = (tiles *)shared;
    if (threadIdx.x == 0) {
        mbar_init(&x->filled, 1);
        fence_mbar_init();
        mbar_arrive_expect(&x->filled, sizeof x->q + sizeof x->k + sizeof x->v);
        copy_tile<D>(x->q, BOX_BYTES, &q, &x->filled, HEADS, 0, 0);
        copy_tile<D>(x->k, BOX_BYTES, &k, &x->filled, 1, 0, 0);
        copy_tile<D>(x->v, BOX_BYTES, &v, &x->filled, 1, 0, 0);
    }
    __syncthreads();
    mbar_wait(&x->filled, 0);
    multiply_warpgroup(x, r);
    if (threadIdx.x < WARP)
        multiply_warp(x, r);
}

static void *on_device(const void *host, size_t bytes)
{
    void *p = NULL;
    if (cudaMalloc(&p, bytes) != cudaSuccess || cudaMemcpy(p, host, bytes, cudaMemcpyHostToDevice) != cudaSuccess)
        abort();
    return p;
}

/* [rows][heads][D] of small integers. */
static std::vector<bf16> integers(int rows, int heads)
{
    std::vector<bf16> x((size_t)rows * heads * D);
    for (bf16 &y : x)
        y = __float2bfloat16((float)(rand() % 3 - 1));
    return x;
}

static int n_wrong;

static void expect(const char *what, float got, float want)
{
    if (got != want && n_wrong++ < 10)
        printf("%s: %g, should be %g\n", what, got, want);
}

int main(void)
{
    cudaDeviceProp device;
    if (cudaGetDeviceProperties(&device, 0) != cudaSuccess || device.major != 9) {
        printf("skipped: no Hopper GPU\n");
        return 77;
    }
    enum { KV_HEADS = 2 }; /* the second one is used */
    const std::vector<bf16> q = integers(TOKENS, KV_HEADS * HEADS), k = integers(KEYS, KV_HEADS),
                            v = integers(KEYS, KV_HEADS);
    nsa_tensor tq = {.data = on_device(q.data(), q.size() * 2),
                     .dtype = NSA_BF16,
                     .stride_seq = 0,
                     .stride_token = KV_HEADS * HEADS * D,
                     .stride_head = D};
    nsa_tensor tk = {.data = on_device(k.data(), k.size() * 2),
                     .dtype = NSA_BF16,
                     .stride_seq = 0,
                     .stride_token = KV_HEADS * D,
                     .stride_head = D};
    nsa_tensor tv = tk;
    tv.data = on_device(v.data(), v.size() * 2);
    const map_rows q_rows = {1, TOKENS, TOKENS, KV_HEADS * HEADS, D}, k_rows = {1, KEYS, KEYS, KV_HEADS, D};
    CUtensorMap q_map, k_map, v_map;
    if (tensor_map(&q_map, &tq, &q_rows, HEADS, TOKENS) || tensor_map(&k_map, &tk, &k_rows, 1, KEYS) ||
        tensor_map(&v_map, &tv, &k_rows, 1, KEYS)) {
        printf("no tensor map\n");
        return EXIT_FAILURE;
    }
    static results r;
    memset(&r, 0xff, sizeof r);
    results *device_r = (results *)on_device(&r, sizeof r);
    if (cudaFuncSetAttribute(multiply, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(tiles)) != cudaSuccess)
        return EXIT_FAILURE;
    multiply<<<1, WARPGROUP, sizeof(tiles)>>>(q_map, k_map, v_map, device_r);
    const cudaError_t error = cudaMemcpy(&r, device_r, sizeof r, cudaMemcpyDeviceToHost);
    if (error != cudaSuccess) {
        printf("%s\n", cudaGetErrorString(error));
        return EXIT_FAILURE;
    }
    const auto at_q = [&](int row, int c) {
        return __bfloat162float(q[((size_t)(row / HEADS) * KV_HEADS * HEADS + HEADS + row % HEADS) * D + c]);
    };
    const auto at = [&](const std::vector<bf16> &x, int key, int c) {
        return __bfloat162float(x[((size_t)key * KV_HEADS + 1) * D + c]);
    };
    std::vector<float> s((size_t)ROWS * KEYS);
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < KEYS; j++) {
            float sum = 0.0F;
            for (int c = 0; c < D; c++)
                sum += at_q(i, c) * at(k, j, c);
            s[(size_t)i * KEYS + j] = sum;
            expect("q k^T", r.s[i][j], sum);
            if (i < HEADS) {
                expect("k q^T", r.st[j][i], sum);
                expect("q k^T of a warp", r.warp[i][j], sum);
            }
        }
    for (int i = 0; i < ROWS; i++)
        for (int c = 0; c < D; c++) {
            float sum = 0.0F;
            for (int j = 0; j < KEYS; j++)
                sum += s[(size_t)i * KEYS + j] * at(v, j, c);
            expect("s v", r.o[i][c], sum);
            if (i < HEADS)
                expect("s v of a warp", r.warp_o[i][c], sum);
        }
    for (int c = 0; c < D / 2; c++)
        for (int i = 0; i < ROWS; i++) {
            float sum = 0.0F;
            for (int j = 0; j < KEYS; j++)
                sum += at(v, j, c) * at_q(i, j);
            expect("v^T q^T", r.vq[c][i], sum);
        }
    printf("%d wrong\n", n_wrong);
    return n_wrong > 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
