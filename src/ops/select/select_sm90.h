/* Selection for Hopper. Equations: ops/select/select.h. */
#ifndef NSA_OPS_SELECT_SM90_H
#define NSA_OPS_SELECT_SM90_H

#include "cuda/tensor_map_sm90.h"

/* A tile of tokens: halves of so many columns of scores, a token's heads side by side. */
enum { SELECT_COLUMNS = 128, SELECT_HALVES = 2 };

enum { SELECT_ROW_SETS = 2 }; /* one is written, one is read */

enum { SELECT_TWO_CTAS_D = 128 }; /* up to this d_qk an SM holds two CTAs */

enum { SELECT_MAX_FREE = 32 }; /* of the selected blocks, forced ones not counted: a lane of a warp each */

typedef struct select_sm90_args {
    CUtensorMap k_map;
    simt_config cfg;
    simt_seqs seqs;
    nsa_tensor q, lse, slc_idx;
    bool k_is_packed;
    int32_t group_shift; /* 2^group_shift columns are a token's: its group, and none beyond */
    int32_t slc_shift;   /* slc_block = cmp_stride << slc_shift */
    int64_t n_tiles, n_ctas;
    int64_t n_slc; /* blocks of the longest sequence, and those of its last tile of keys */
    float
        *score; /* [n_ctas][SELECT_ROW_SETS][token of a tile][n_slc][2]: a pair is what is carried over, and its own */
} select_sm90_args;

NSA_LAUNCH launch_select_sm90(const select_sm90_args *p, nsa_stream stream);

#endif
