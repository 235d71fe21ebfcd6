/* Decoding on Hopper in one launch: what decode_sm90.cu and its host side share. */
#ifndef NSA_NSA_DECODE_SM90_H
#define NSA_NSA_DECODE_SM90_H

#include "nsa/cache_simt.h"

#ifdef __CUDACC__
#define NSA_INLINE static constexpr __host__ __device__
#else
#define NSA_INLINE static inline
#endif

enum {
    DECODE_HEADS = 16,      /* of a group, at most: the rows of an mma */
    DECODE_TILE = 16,       /* rows of K or V that lie one behind the other */
    DECODE_STAGE = 64,      /* rows that are waited for together: four tiles */
    DECODE_MAX_NEW = 8,     /* tokens of a sequence and call */
    DECODE_MAX_TOPK = 32,   /* selected blocks: a lane of a warp each */
    DECODE_MAX_CLUSTER = 16 /* CTAs that share a token and kv head; above 8 a launch has to ask for it */
};

typedef struct decode_sm90 {
    cache_simt cache;
    nsa_tensor q[NSA_N_BRANCHES], gate, o, slc_idx;
    bool makes_rows;    /* phi is mean: the kernel compresses new blocks. Otherwise they are in their pages already */
    int32_t cluster;    /* CTAs of a token and kv head: a power of two */
    int32_t max_stages; /* of compressed rows, of a sequence */
    int32_t max_blocks; /* of selection, of a sequence */
    int64_t first_unit; /* of the launch, of all tokens times kv heads; and how many */
    int32_t n_units;
    float *logits; /* [n_units][max_stages][DECODE_HEADS][DECODE_STAGE], of compressed rows */
} decode_sm90;

/* Shared memory of a CTA: sums ...; the ring and queries; P of all compressed rows, or a list of blocks, or o of each
 * warp; scores. */
enum {
    DECODE_SMALL_BYTES = 4224,
    DECODE_SLOTS = 2,          /* of the ring: stages of K, and as many of V */
    DECODE_TILE_PAD = 32,      /* bytes between tiles */
    DECODE_MIN_Q_BYTES = 4096, /* of a branch */
    DECODE_WARPS = 4,          /* that attend */
    DECODE_MAX_BYTES = 232448, /* of a CTA; */
    DECODE_HALF_BYTES = 115712 /* and so that two fit on an SM */
};

NSA_INLINE int64_t decode_ring_bytes(int32_t d_qk, int32_t d_v)
{
    const int32_t tiles = DECODE_SLOTS * DECODE_STAGE / DECODE_TILE, q = DECODE_HEADS * d_qk * 2;
    return (int64_t)tiles * (DECODE_TILE * (d_qk + d_v) * 2 + 2 * DECODE_TILE_PAD) +
           3 * (int64_t)(q > DECODE_MIN_Q_BYTES ? q : DECODE_MIN_Q_BYTES);
}

/* Of P, or the list. */
NSA_INLINE int64_t decode_sums_bytes(int32_t max_stages, int32_t max_blocks)
{
    const int64_t sums = (int64_t)max_stages * DECODE_STAGE * 4, list = (int64_t)max_blocks * 8;
    return sums > list ? sums : (list + 15) / 16 * 16;
}

NSA_INLINE int64_t decode_sm90_bytes(int32_t d_qk, int32_t d_v, int32_t max_stages, int32_t max_blocks)
{
    const int64_t bytes = decode_sums_bytes(max_stages, max_blocks) + (int64_t)max_blocks * 4;
    const int64_t o = (int64_t)DECODE_WARPS * DECODE_HEADS * d_v * 4;
    return DECODE_SMALL_BYTES + decode_ring_bytes(d_qk, d_v) + (bytes > o ? bytes : o);
}

NSA_LAUNCH launch_decode_sm90(const decode_sm90 *p, nsa_stream stream);

#endif
