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
    DECODE_TILE = 16,        /* rows of K or V that a warp multiplies at a time */
    DECODE_MAX_NEW = 8,      /* tokens of a sequence and call */
    DECODE_MAX_TOPK = 32,    /* selected blocks: a lane of a warp each */
    DECODE_MAX_CLUSTER = 16, /* CTAs that share a token and kv head; above 8 a launch has to ask for it */
    DECODE_CTAS = 2          /* of an SM, as far as shared memory allows */
};

typedef struct decode_sm90 {
    cache_simt cache;
    nsa_tensor q[NSA_N_BRANCHES], gate, o, slc_idx;
    bool makes_rows;    /* phi is mean: the kernel compresses new blocks. Otherwise they are in their pages already */
    int32_t cluster;    /* CTAs of a token and kv head: a power of two */
    int32_t max_tiles;  /* of compressed rows, of a CTA */
    int32_t max_blocks; /* of selection, of a sequence */
} decode_sm90;

/* Shared memory of a CTA: rings, queries, sums ...; logits of compressed rows, later a list of blocks, later o of each
 * warp; sums of probabilities; scores. */
enum { DECODE_FIXED_BYTES = 77952, DECODE_O_BYTES = 32768, DECODE_MAX_BYTES = 232448 /* of a CTA */ };

NSA_INLINE int64_t decode_logits_bytes(int32_t max_tiles, int32_t max_blocks)
{
    const int64_t logits = (int64_t)max_tiles * DECODE_TILE * DECODE_HEADS * 4, list = (int64_t)max_blocks * 8;
    const int64_t bytes = logits > list ? logits : (list + 15) / 16 * 16;
    return bytes > DECODE_O_BYTES ? bytes : (int64_t)DECODE_O_BYTES;
}

NSA_INLINE int64_t decode_sm90_bytes(int32_t max_tiles, int32_t max_blocks)
{
    return DECODE_FIXED_BYTES + decode_logits_bytes(max_tiles, max_blocks) + (int64_t)max_tiles * DECODE_TILE * 4 +
           (int64_t)max_blocks * 4;
}

NSA_LAUNCH launch_decode_sm90(const decode_sm90 *p, nsa_stream stream);

#endif
