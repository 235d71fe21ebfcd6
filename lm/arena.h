/* One allocation cut into buffers. The code that cuts runs twice: first with base = NULL, to learn the size. */
#ifndef LM_ARENA_H
#define LM_ARENA_H

#include "src/core/size.h" /* nothing of the library but this header */

#include <stdbool.h>
#include <stdlib.h>

typedef struct lm_arena {
    char *base;  /* NULL: count only */
    size_t used; /* SIZE_MAX once a size does not fit */
} lm_arena;

enum { LM_ALIGN = 64 };

/* count elements of size bytes, 64-byte aligned; NULL when counting. */
static inline void *lm_take(lm_arena *a, int64_t count, size_t size)
{
    void *p = a->base == NULL ? NULL : a->base + a->used;
    a->used = size_add(a->used, size_round_up(size_of(count, size), LM_ALIGN));
    return p;
}

static inline float *lm_take_floats(lm_arena *a, int64_t n_rows, int64_t n_columns)
{
    return lm_take(a, i64_mul(n_rows, n_columns), sizeof(float));
}

/* Zeroed memory, 64-byte aligned, or NULL if the machine does not have it; free() it. */
void *lm_alloc_zeroed(size_t bytes);

#endif
