/*
 * Tensor maps: what the bulk copy engine of sm_90 has to know of a tensor to bring boxes of it to shared memory.
 * A bf16 tensor [total][n_heads][d] has four dimensions there: channel, head, row, sequence. Packed, it is one sequence
 * of all rows; strided, n_seqs of `max` rows. Rows outside come as zeros.
 *
 * A box is 64 channels (128 bytes, a row of the 128-byte swizzle) of some heads of some rows, in shared memory as
 * [row][head][64]. A tile of d channels is d/64 boxes, one behind the other.
 */
#ifndef NSA_CUDA_TENSOR_MAP_SM90_H
#define NSA_CUDA_TENSOR_MAP_SM90_H

#include "cuda/simt.h"

#include <cuda.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { BOX_CHANNELS = 64, BOX_CHANNELS_F32 = 32 };

typedef struct map_rows {
    int32_t n_seqs;
    int64_t max, total; /* rows of a sequence; packed rows of all */
    int32_t n_heads, d;
} map_rows;

/* Whether the copy engine can read t: bf16, whole boxes of channels, address and strides of whole 16 bytes. */
bool tensor_map_supports(const nsa_tensor *t, const map_rows *rows);

/* The same of float32: its boxes are 32 channels, also of 128 bytes. */
bool tensor_map_supports_f32(const nsa_tensor *t, const map_rows *rows);

/* The map for boxes of box_heads heads x box_rows rows. A cudaError_t. */
int tensor_map(CUtensorMap *map, const nsa_tensor *t, const map_rows *rows, int32_t box_heads, int32_t box_rows);

#ifdef __cplusplus
}
#endif
#endif
