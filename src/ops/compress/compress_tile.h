/* What the dense and the pool driver share: parameters as float32, and tiles of blocks. */
#ifndef NSA_OPS_COMPRESS_TILE_H
#define NSA_OPS_COMPRESS_TILE_H

#include "ops/compress/compress.h"

enum { TILE_BLOCKS = 64 }; /* most blocks of a work unit */

/* A member of phi as float32 [set][rows][ld], rows padded for the kernels: read in place where it is so already. */
typedef struct phi_matrix {
    const void *member; /* NULL: phi lacks it */
    nsa_dtype dtype;
    int64_t n_rows, n_cols, ld; /* of a set */
    int64_t n_sets;
    float *copy; /* NULL: in place */
} phi_matrix;

phi_matrix phi_matrix_take(const compress_problem *p, const void *member, int64_t n_rows, int64_t n_cols, arena *ws);

/* Part `part` of `n_parts` of the copying. */
void phi_matrix_copy(const phi_matrix *m, const simd_kernels *simd, int64_t part, int64_t n_parts);

static inline const float *phi_row(const phi_matrix *m, int64_t set, int64_t row)
{
    if (m->member == NULL)
        return NULL;
    const float *data = m->copy != NULL ? m->copy : m->member;
    return data + (set * m->n_rows + row) * m->ld;
}

/* Blocks of all sequences, added up into cu [n_seqs + 1] unless that is NULL: for tile_at. Returns their number. */
int64_t compress_count_blocks(const compress_problem *p, int32_t *cu);

/* The rows of a set's gradient from one float32 row: dphi's `member`, n elements from index `at` on. */
static inline void phi_store(const compress_problem *p, void *member, int64_t at, const float *x, int64_t n)
{
    p->ctx->simd->store_row(dtype_at_mut(member, p->dphi.dtype, at), p->dphi.dtype, x, n);
}

/* Stores or adds a row of dx; x is overwritten. */
void compress_store_dx(const compress_problem *p, int32_t s, int64_t start, int64_t t, int32_t head, float *x);

#endif
