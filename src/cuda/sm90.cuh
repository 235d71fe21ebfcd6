/*
 * What Hopper has beyond plain CUDA, a function for each instruction: mbarriers, the bulk copy engine, wgmma; and the
 * mma.sync of 16 rows. Names are PTX's where it has one.
 *
 * Operands of wgmma lie in shared memory as boxes of tensor_map_sm90.h: rows of 64 bf16 with the 128-byte swizzle, at
 * multiples of 1024 bytes. A box serves in both directions:
 *
 *     along k   box[m or n][k]: q and k in q k^T.    16 of k further: + 32 bytes; 64 further: the next box
 *     along mn  box[k][m or n]: v in p v, transposed. 16 of k further: + 2048 bytes; 64 of m or n further: the next box
 *
 * An accumulator d of m64nN: element (row, column) of warp w of the warpgroup and its lane l:
 *
 *     d[4 i + 2 r + c]    row 16 w + l/4 + 8 r, column 8 i + 2 (l%4) + c
 *
 * An operand a in registers is the same for 16 columns: pairs of bf16 (pack2) of d[8 j + 0,1], [2,3], [4,5], [6,7].
 */
#ifndef NSA_CUDA_SM90_CUH
#define NSA_CUDA_SM90_CUH

#include "cuda/simt.cuh"
#include "cuda/tensor_map_sm90.h"

enum { WARPGROUP = 128, BOX_ROW = 128 /* bytes */ };

__device__ inline uint32_t shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* ---- Barriers */

__device__ inline void mbar_init(uint64_t *bar, uint32_t arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(arrivals) : "memory");
}

/* After mbar_init, before the copy engine or other threads use them. */
__device__ inline void fence_mbar_init()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ inline void mbar_arrive(uint64_t *bar)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(bar)) : "memory");
}

/* So many times. */
__device__ inline void mbar_arrive_many(uint64_t *bar, uint32_t n)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)), "r"(n) : "memory");
}

/* How many arrivals the phase still waited for, this one among them: 1 for the last. */
__device__ inline uint32_t mbar_arrive_pending(uint64_t *bar)
{
    uint32_t n;
    asm volatile("{\n"
                 ".reg .b64 before;\n"
                 "mbarrier.arrive.shared::cta.b64 before, [%1];\n"
                 "mbarrier.pending_count.b64 %0, before;\n"
                 "}"
                 : "=r"(n)
                 : "r"(shared_address(bar))
                 : "memory");
    return n;
}

/* Arrives, and lets the phase wait for so many bytes of copies besides. */
__device__ inline void mbar_arrive_expect(uint64_t *bar, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)), "r"(bytes)
                 : "memory");
}

/* Until the phase of this parity is over: the first is 0. */
__device__ inline void mbar_wait(uint64_t *bar, uint32_t parity)
{
    uint32_t done;
    do {
        asm volatile("{\n"
                     ".reg .pred p;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                     "selp.u32 %0, 1, 0, p;\n"
                     "}"
                     : "=r"(done)
                     : "r"(shared_address(bar)), "r"(parity)
                     : "memory");
    } while (!done);
}

/* Of some warps of a block: ids 1 to 15 (0 is __syncthreads). */
__device__ inline void bar_sync(int id, int threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/* Whether `x` holds in one of them. */
__device__ inline bool bar_or(int id, int threads, bool x)
{
    uint32_t any;
    asm volatile("{\n"
                 ".reg .pred p, any;\n"
                 "setp.ne.b32 p, %3, 0;\n"
                 "barrier.cta.red.or.pred any, %1, %2, p;\n"
                 "selp.u32 %0, 1, 0, any;\n"
                 "}"
                 : "=r"(any)
                 : "r"(id), "r"(threads), "r"((uint32_t)x)
                 : "memory");
    return any != 0;
}

__device__ inline void bar_arrive(int id, int threads)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/* Between stores to shared memory and their use by wgmma or the copy engine: in each storing thread, before the
 * barrier. */
__device__ inline void fence_async()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* ---- Copies */

__device__ inline void prefetch_map(const CUtensorMap *map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/* A box from (channel, head, row, sequence) on; a packed tensor's sequence is 0, its row a packed one. */
__device__ inline void copy_box(void *dst, const CUtensorMap *map, uint64_t *bar, int channel, int head, int row, int s)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, "
                 "%5, %6}], [%2];" ::"r"(shared_address(dst)),
                 "l"(map), "r"(shared_address(bar)), "r"(channel), "r"(head), "r"(row), "r"(s)
                 : "memory");
}

/* The coordinates of a sequence's row in a tensor's map. */
__device__ inline int map_row(const nsa_tensor &t, const seq_range &x, int64_t row)
{
    return (int)(t.stride_seq == 0 ? x.start + row : row);
}

__device__ inline int map_seq(const nsa_tensor &t, int32_t s)
{
    return t.stride_seq == 0 ? 0 : s;
}

/* The tile of d channels, whose boxes are box_bytes apart. */
template <int D>
__device__ inline void copy_tile(void *dst, int box_bytes, const CUtensorMap *map, uint64_t *bar, int head, int row,
                                 int s)
{
#pragma unroll
    for (int i = 0; i < D / BOX_CHANNELS; i++)
        copy_box((char *)dst + i * box_bytes, map, bar, i * BOX_CHANNELS, head, row, s);
}

/* `bytes` as they lie: whole 16 bytes, both ends aligned to 16. */
__device__ inline void copy_bytes(void *dst, const void *src, uint32_t bytes, uint64_t *bar)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(dst)),
                 "l"(src), "r"(bytes), "r"(shared_address(bar))
                 : "memory");
}

/* The same of what nobody reads again: it makes room in the second-level cache before all else does. */
__device__ inline void copy_bytes_once(void *dst, const void *src, uint32_t bytes, uint64_t *bar)
{
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0;" : "=l"(policy));
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, "
                 "[%3], %4;" ::"r"(shared_address(dst)),
                 "l"(src), "r"(bytes), "r"(shared_address(bar)), "l"(policy)
                 : "memory");
}

/* BYTES (4, 8 or 16) of one thread, which waits until at most N groups of its copies are under way. */
template <int BYTES> __device__ inline void copy_async(void *dst, const void *src)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(dst)), "l"(src), "n"(BYTES)
                 : "memory");
}

/* The same of 16 bytes, past the first-level cache; zeros for what is not there. */
__device__ inline void copy_16(uint32_t to, const void *from, bool there)
{
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0)
                 : "memory");
}

__device__ inline void copies_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int N> __device__ inline void copies_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/* A box back to its tensor: in the place of what is there, or added to it. In the thread's group of stores. */
__device__ inline void store_box(const CUtensorMap *map, const void *src, int channel, int head, int row, int s)
{
    asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(map),
                 "r"(shared_address(src)), "r"(channel), "r"(head), "r"(row), "r"(s)
                 : "memory");
}

__device__ inline void add_box(const CUtensorMap *map, const void *src, int channel, int head, int row, int s)
{
    asm volatile("cp.reduce.async.bulk.tensor.4d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3, %4, %5}], "
                 "[%1];" ::"l"(map),
                 "r"(shared_address(src)), "r"(channel), "r"(head), "r"(row), "r"(s)
                 : "memory");
}

__device__ inline void stores_commit()
{
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

/* Until shared memory is free again; until all is written. */
__device__ inline void stores_wait_read()
{
    asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}

__device__ inline void stores_wait()
{
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

/* Between accesses of global memory by the copy engine and by this thread. */
__device__ inline void fence_async_global()
{
    asm volatile("fence.proxy.async.global;" ::: "memory");
}

/* Byte offset of (row, channel) in a box: where the swizzle has put it. */
__device__ inline int in_box(int row, int channel)
{
    const int at = row * BOX_ROW + channel * 2;
    return at ^ (at >> 3 & 0x70);
}

/* ---- Clusters of CTAs, which reach each other's shared memory */

/* All threads of all CTAs, with their whole warps: each arrives, and waits until all have. */
__device__ inline void cluster_arrive()
{
    __syncwarp();
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

__device__ inline void cluster_wait()
{
    __syncwarp();
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ inline void cluster_sync()
{
    cluster_arrive();
    cluster_wait();
}

/* Where p, in this CTA's shared memory, lies in that of CTA `rank`; and stores there. */
__device__ inline uint32_t in_cta(const void *p, int rank)
{
    uint32_t at;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(shared_address(p)), "r"(rank));
    return at;
}

__device__ inline void store_2(uint32_t at, const float2 &x)
{
    asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};" ::"r"(at), "f"(x.x), "f"(x.y) : "memory");
}

__device__ inline void store_4(uint32_t at, const float4 &x)
{
    asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(at), "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w)
                 : "memory");
}

/* ---- Registers of a warpgroup. Those of a block give and take what it was launched with: more than that waits forever
 */

template <int N> __device__ inline void registers_up()
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

template <int N> __device__ inline void registers_down()
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

/* ---- wgmma */

/* An operand along k. */
__device__ inline uint64_t along_k(const void *box)
{
    return (uint64_t)((shared_address(box) & 0x3ffff) >> 4) | UINT64_C(1) << 16 | UINT64_C(64) << 32 |
           UINT64_C(1) << 62;
}

/* An operand along m or n, whose boxes are box_bytes apart. */
__device__ inline uint64_t along_mn(const void *box, int box_bytes)
{
    return (uint64_t)((shared_address(box) & 0x3ffff) >> 4) | (uint64_t)(box_bytes >> 4) << 16 | UINT64_C(64) << 32 |
           UINT64_C(1) << 62;
}

/* The operand so many bytes further. */
__device__ inline uint64_t further(uint64_t operand, int bytes)
{
    return operand + (uint64_t)(bytes >> 4);
}

/* Before the first wgmma, and whenever other instructions have written its registers since. */
__device__ inline void wgmma_fence()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ inline void wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Until at most N groups are under way. */
template <int N> __device__ inline void wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

/* Tells the compiler that registers change here: around wgmma_fence and wgmma_wait, or it moves their uses across. */
template <int N> __device__ inline void pin(float (&d)[N])
{
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+f"(d[i])::"memory");
}

template <int N> __device__ inline void pin(uint32_t (&a)[N])
{
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+r"(a[i])::"memory");
}

/* Operands of asm: accumulators d[i] .. as %0, %1 ... */
#define NSA_N8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define NSA_N16 NSA_N8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define NSA_N32 NSA_N16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NSA_N48 NSA_N32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define NSA_N64                                                                                                        \
    NSA_N32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, "   \
            "%52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NSA_N88                                                                                                        \
    NSA_N64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, "   \
            "%84, %85, %86, %87"
#define NSA_N96 NSA_N88 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define NSA_N128                                                                                                       \
    NSA_N64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, "   \
            "%84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, " \
            "%104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, "   \
            "%121, %122, %123, %124, %125, %126, %127"
#define NSA_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define NSA_D8(i) NSA_D4(i), NSA_D4(i + 4)
#define NSA_D16(i) NSA_D8(i), NSA_D8(i + 8)
#define NSA_D32(i) NSA_D16(i), NSA_D16(i + 16)
#define NSA_D48(i) NSA_D32(i), NSA_D16(i + 32)
#define NSA_D64(i) NSA_D32(i), NSA_D32(i + 32)
#define NSA_D88(i) NSA_D64(i), NSA_D16(i + 64), NSA_D8(i + 80)
#define NSA_D96(i) NSA_D64(i), NSA_D32(i + 64)
#define NSA_D128(i) NSA_D64(i), NSA_D64(i + 64)

#define NSA_WGMMA_SS(n, regs, a, b, add, ta, tb)                                                                       \
    asm volatile("{\n"                                                                                                 \
                 ".reg .pred p;\n"                                                                                     \
                 "setp.ne.b32 p, " add ", 0;\n"                                                                        \
                 "wgmma.mma_async.sync.aligned.m64n" n "k16.f32.bf16.bf16 {" NSA_N##regs                               \
                 "}, " a ", " b ", p, 1, 1, " ta ", " tb ";\n"                                                         \
                 "}"                                                                                                   \
                 : NSA_D##regs(0)                                                                                      \
                 : "l"(a_operand), "l"(b_operand), "r"(accumulate), "n"(A_ALONG_M), "n"(B_ALONG_N))

/* d[64][N] (+)= a[64][16] b[16][N], both in shared memory: along k, unless said to be along m or n. */
template <int N, int A_ALONG_M = 0, int B_ALONG_N = 0>
__device__ inline void wgmma(float (&d)[N / 2], uint64_t a_operand, uint64_t b_operand, int accumulate)
{
    static_assert(N == 16 || N == 32 || N == 64 || N == 96 || N == 128 || N == 176 || N == 192 || N == 256,
                  "widths of wgmma that are in use");
    if constexpr (N == 16)
        NSA_WGMMA_SS("16", 8, "%8", "%9", "%10", "%11", "%12");
    if constexpr (N == 32)
        NSA_WGMMA_SS("32", 16, "%16", "%17", "%18", "%19", "%20");
    if constexpr (N == 64)
        NSA_WGMMA_SS("64", 32, "%32", "%33", "%34", "%35", "%36");
    if constexpr (N == 96)
        NSA_WGMMA_SS("96", 48, "%48", "%49", "%50", "%51", "%52");
    if constexpr (N == 128)
        NSA_WGMMA_SS("128", 64, "%64", "%65", "%66", "%67", "%68");
    if constexpr (N == 176)
        NSA_WGMMA_SS("176", 88, "%88", "%89", "%90", "%91", "%92");
    if constexpr (N == 192)
        NSA_WGMMA_SS("192", 96, "%96", "%97", "%98", "%99", "%100");
    if constexpr (N == 256)
        NSA_WGMMA_SS("256", 128, "%128", "%129", "%130", "%131", "%132");
}

#define NSA_WGMMA_RS(n, regs, a0, a1, a2, a3, b, add, tb)                                                              \
    asm volatile("{\n"                                                                                                 \
                 ".reg .pred p;\n"                                                                                     \
                 "setp.ne.b32 p, " add ", 0;\n"                                                                        \
                 "wgmma.mma_async.sync.aligned.m64n" n "k16.f32.bf16.bf16 {" NSA_N##regs                               \
                 "}, {" a0 ", " a1 ", " a2 ", " a3 "}, " b ", p, 1, 1, " tb ";\n"                                      \
                 "}"                                                                                                   \
                 : NSA_D##regs(0)                                                                                      \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b_operand), "r"(accumulate), "n"(B_ALONG_N))

/* The same with a in registers. */
template <int N, int B_ALONG_N = 0>
__device__ inline void wgmma(float (&d)[N / 2], const uint32_t *a, uint64_t b_operand, int accumulate)
{
    static_assert(N == 16 || N == 32 || N == 64 || N == 128 || N == 192 || N == 256, "widths of wgmma that are in use");
    if constexpr (N == 16)
        NSA_WGMMA_RS("16", 8, "%8", "%9", "%10", "%11", "%12", "%13", "%14");
    if constexpr (N == 32)
        NSA_WGMMA_RS("32", 16, "%16", "%17", "%18", "%19", "%20", "%21", "%22");
    if constexpr (N == 64)
        NSA_WGMMA_RS("64", 32, "%32", "%33", "%34", "%35", "%36", "%37", "%38");
    if constexpr (N == 128)
        NSA_WGMMA_RS("128", 64, "%64", "%65", "%66", "%67", "%68", "%69", "%70");
    if constexpr (N == 192)
        NSA_WGMMA_RS("192", 96, "%96", "%97", "%98", "%99", "%100", "%101", "%102");
    if constexpr (N == 256)
        NSA_WGMMA_RS("256", 128, "%128", "%129", "%130", "%131", "%132", "%133", "%134");
}

/* ---- mma.sync: d[16][8] += a[16][16] b[16][8] of a warp. d as one quarter of an accumulator above, a as there */

/* Two floats as bf16, the first in the lower half. */
__device__ inline uint32_t pack2(float lo, float hi)
{
    const __nv_bfloat162 x = __floats2bfloat162_rn(lo, hi);
    return *(const uint32_t *)&x;
}

__device__ inline float2 unpack2(uint32_t x)
{
    return make_float2(__uint_as_float(x << 16), __uint_as_float(x & 0xffff0000U));
}

__device__ inline void mma_16x8(float *d, const uint32_t *a, const uint32_t *b)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Four 8x8 matrices of bf16, of which lane l gives the address of row l%8 of matrix l/8; then the same, transposed. */
__device__ inline void load_matrices(uint32_t x[4], uint32_t row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(row)
                 : "memory");
}

__device__ inline void load_matrices_transposed(uint32_t x[4], uint32_t row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(row)
                 : "memory");
}

/* Stores four matrices transposed: lane l gives the address of row l%8 of matrix l/8 as it lies in memory. */
__device__ inline void store_matrices_transposed(uint32_t row, const uint32_t x[4])
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(x[0]),
                 "r"(x[1]), "r"(x[2]), "r"(x[3])
                 : "memory");
}

/* An 8x8 matrix of bf16 as load_matrices has it, transposed. */
__device__ inline uint32_t transpose_matrix(uint32_t x)
{
    uint32_t y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}

constexpr float LOG2_E = 1.44269504F;

/* The other way round: lane l gives the address of row l%8 of matrix l/8. */
__device__ inline void store_matrices(uint32_t row, const uint32_t x[4])
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(x[0]), "r"(x[1]),
                 "r"(x[2]), "r"(x[3])
                 : "memory");
}

/* 2^x, within 2 ulp; results below 2^-126 are 0. */
__device__ inline float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ inline float reciprocal_fast(float x)
{
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Over the four lanes that have a row of an accumulator. */
__device__ inline float quad_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(~0U, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0U, x, 2));
}

__device__ inline float quad_sum(float x)
{
    x += __shfl_xor_sync(~0U, x, 1);
    return x + __shfl_xor_sync(~0U, x, 2);
}

#endif
