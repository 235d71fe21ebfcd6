/* Decoding on Hopper in one launch: what decode_sm90.cu and its host side share. */
#ifndef NSA_NSA_DECODE_SM90_H
#define NSA_NSA_DECODE_SM90_H

#include "nsa/cache_simt.h"

#ifdef __CUDACC__
#define NSA_INLINE static inline __host__ __device__
#else
#define NSA_INLINE static inline
#endif

enum {
    DECODE_D = 128,          /* d_qk and d_v */
    DECODE_HEADS = 16,       /* of a group, at most: the rows of an mma */
    DECODE_TILE = 16,        /* rows of K or V that lie one behind the other */
    DECODE_STAGE = 64,       /* rows that are waited for together: four tiles */
    DECODE_MAX_NEW = 8,      /* tokens of a sequence and call */
    DECODE_MAX_TOPK = 32,    /* selected blocks: a lane of a warp each */
    DECODE_MAX_CLUSTER = 16, /* CTAs that share a token and kv head; above 8 a launch has to ask for it */
    DECODE_CTAS = 2          /* of an SM */
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
    float *logits; /* [n_units][max_stages][DECODE_STAGE * DECODE_HEADS], of compressed rows */
} decode_sm90;

/* Shared memory of a CTA: the ring, queries, sums ...; P of all compressed rows, or a list of blocks, or o of each
 * warp; scores. */
enum { DECODE_FIXED_BYTES = 82944, DECODE_O_BYTES = 32768, DECODE_MAX_BYTES = 232448 /* of a CTA */ };

/* Of P, or the list. */
NSA_INLINE int64_t decode_sums_bytes(int32_t max_stages, int32_t max_blocks)
{
    const int64_t sums = (int64_t)max_stages * DECODE_STAGE * 4, list = (int64_t)max_blocks * 8;
    return sums > list ? sums : (list + 15) / 16 * 16;
}

NSA_INLINE int64_t decode_sm90_bytes(int32_t max_stages, int32_t max_blocks)
{
    const int64_t bytes = decode_sums_bytes(max_stages, max_blocks) + (int64_t)max_blocks * 4;
    return DECODE_FIXED_BYTES + (bytes > DECODE_O_BYTES ? bytes : (int64_t)DECODE_O_BYTES);
}

NSA_LAUNCH launch_decode_sm90(const decode_sm90 *p, nsa_stream stream);

#endif
