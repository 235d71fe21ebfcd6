/*
 * Where the tiles of attn_bwd_sm90.h lie, and which of them see each other: what its kernels share.
 */
#ifndef NSA_OPS_ATTN_BWD_SM90_CUH
#define NSA_OPS_ATTN_BWD_SM90_CUH

#include "cuda/sm90.cuh"
#include "ops/attn_tile/attn_bwd_sm90.h"

enum { ROWS = BWD_ROWS, CONSUMERS = 2 * WARPGROUP };

/* The number of a sequence's first tile. */
__device__ inline int64_t first_tile(const int32_t *cu, int32_t s, int64_t total, int div, int tile)
{
    return min64(max64(cu[s], 0), total) / div / tile + s;
}

__device__ inline int32_t seq_of_tile(const int32_t *cu, int32_t n, int64_t total, int div, int tile, int64_t i)
{
    int32_t lo = 0, hi = n;
    while (hi - lo > 1) {
        const int32_t mid = lo + (hi - lo) / 2;
        if (first_tile(cu, mid, total, div, tile) <= i)
            lo = mid;
        else
            hi = mid;
    }
    return lo;
}

/* Positions first_seer .. past_seer - 1 see key j. */
__device__ inline int64_t first_seer(const attn_simt &a, int64_t j)
{
    return a.branch == NSA_CMP ? j * a.cfg.c.cmp_stride + a.cfg.c.cmp_block - 1 : j;
}

__device__ inline int64_t past_seer(const attn_simt &a, int64_t j)
{
    return a.branch == NSA_CMP ? INT32_MAX : min64(j + a.cfg.c.win_size, INT32_MAX);
}

/* Keys of a sequence. */
__device__ inline int64_t n_keys_of(const attn_simt &a, const seq_range &k)
{
    return a.branch == NSA_CMP ? n_cmp_seen(a.cfg.c, k.n - 1) : k.n;
}

/* A key tile of a kv head, and the row tiles that see it. Numbers fit, or the launch had not been possible. */
typedef struct key_walk {
    int32_t s, head;
    int32_t q_start, n_q, k_start, n_k, n_keys; /* rows of the sequence in packed tensors; n_k: tokens */
    int32_t k_base, q_base, tile;               /* numbers of tiles: the sequence's first of each side, and this one */
    int32_t first;                              /* key of the sequence */
    int32_t shift;                              /* position of row 0 */
    int32_t lo, hi;                             /* row tiles of the sequence */
    int32_t turn;                               /* of a piece of a walk: how many are before it */
} key_walk;

/* KEYS are p.keys, wherever they are told. */
template <int KEYS>
__device__ inline bool find_key_tile(const attn_bwd_sm90 &p, int64_t tile, int32_t head, key_walk *w)
{
    const attn_simt &a = p.a;
    const int div = a.branch == NSA_CMP ? a.cfg.c.cmp_stride : 1;
    const int32_t s = seq_of_tile(a.seqs.cu_k, a.seqs.n, a.seqs.total_k, div, KEYS, tile);
    const seq_range q = seq_q(a.seqs, s), k = seq_k(a.seqs, s);
    const int64_t n_keys = n_keys_of(a, k), shift = k.n - q.n;
    const int64_t base = first_tile(a.seqs.cu_k, s, a.seqs.total_k, div, KEYS), first = (tile - base) * KEYS;
    if (first >= n_keys)
        return false;
    const int64_t first_row = max64(0, first_seer(a, first) - shift);
    const int64_t end_row = min64(q.n, past_seer(a, min64(first + KEYS, n_keys) - 1) - shift);
    w->s = s;
    w->head = head;
    w->q_start = (int32_t)q.start;
    w->n_q = (int32_t)q.n;
    w->k_start = (int32_t)(k.start / div);
    w->n_k = (int32_t)k.n;
    w->n_keys = (int32_t)n_keys;
    w->k_base = (int32_t)base;
    w->q_base = (int32_t)first_tile(a.seqs.cu_q, s, a.seqs.total_q, 1, p.tokens);
    w->tile = (int32_t)tile;
    w->first = (int32_t)first;
    w->shift = (int32_t)shift;
    w->lo = (int32_t)(first_row / p.tokens);
    w->hi = first_row < end_row ? (int32_t)((end_row + p.tokens - 1) / p.tokens) : w->lo;
    w->turn = 0;
    return true;
}

/* The i-th piece of all walks, in the order in which blocks take them. A block waits for such only as come before. */
template <int KEYS> __device__ inline bool find_piece(const attn_bwd_sm90 &p, int64_t i, key_walk *w)
{
    const int32_t n_heads = p.a.cfg.c.n_heads_kv;
    if (!find_key_tile<KEYS>(p, i / n_heads % p.k_tiles, (int32_t)(i % n_heads), w))
        return false;
    const int32_t chunk = (int32_t)(p.n_chunks - 1 - i / n_heads / p.k_tiles);
    w->turn = (w->hi - 1) / p.chunk - chunk;
    w->lo = max(w->lo, chunk * p.chunk);
    w->hi = min(w->hi, (chunk + 1) * p.chunk);
    return w->lo < w->hi;
}

/* Row tile and part of a walk's step. */
typedef struct step {
    int32_t tile, part;
} step;

/* A walk goes down from the last row tile of a period, and from its own last one to there. */
__device__ inline step first_step(const attn_bwd_sm90 &p, const key_walk &w)
{
    const int32_t end = w.hi - w.hi % p.period;
    return {(end > w.lo ? end : w.hi) - 1, 0};
}

__device__ inline void next_step(const attn_bwd_sm90 &p, const key_walk &w, step *at)
{
    if (++at->part < p.parts)
        return;
    at->part = 0;
    at->tile = (at->tile > w.lo ? at->tile : w.hi) - 1;
}

__device__ inline int32_t n_steps(const attn_bwd_sm90 &p, const key_walk &w)
{
    return (w.hi - w.lo) * p.parts;
}

/* Where stats and turns of a row tile lie. */
__device__ inline int64_t row_index(const attn_bwd_sm90 &p, int64_t tile, int32_t head, int32_t part)
{
    return (tile * p.a.cfg.c.n_heads_kv + head) * p.parts + part;
}

/* The keys that positions first_t .. last_t see. */
__device__ inline void keys_seen(const attn_simt &a, int32_t first_t, int32_t last_t, int32_t *lo, int32_t *hi)
{
    const nsa_config &c = a.cfg.c;
    const int32_t whole = last_t - (c.cmp_block - 1);
    *lo = a.branch == NSA_WIN && first_t >= c.win_size ? first_t - c.win_size + 1 : 0;
    *hi = a.branch == NSA_WIN ? max(0, last_t + 1) : whole < 0 ? 0 : whole / c.cmp_stride + 1;
}

/* dk and dv of a key tile: where a consumer thread has its part, as wgmma leaves it, CONSUMERS apart. */
template <int KEYS> __device__ inline float4 *sums_of(const attn_bwd_sm90 &p, const key_walk &w)
{
    const int64_t i = (int64_t)w.tile * p.a.cfg.c.n_heads_kv + w.head;
    return (float4 *)p.sums + i * (KEYS / 4 * (p.a.cfg.c.d_qk + p.a.cfg.c.d_v)) + threadIdx.x;
}

/* Whether one of two bf16 is not. */
__device__ inline bool not_finite(uint32_t two)
{
    return (two & 0x7f80U) == 0x7f80U || (two & 0x7f800000U) == 0x7f800000U;
}

#endif
