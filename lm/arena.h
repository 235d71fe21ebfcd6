/* One allocation cut into buffers. The code that cuts runs twice: first with base = NULL, to learn the size. */
#ifndef LM_ARENA_H
#define LM_ARENA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

typedef struct lm_arena {
    char *base; /* NULL: count only */
    size_t used;
    bool overflow; /* the sizes passed SIZE_MAX */
} lm_arena;

enum { LM_ALIGN = 64 };

/* count elements of size bytes, 64-byte aligned; NULL when counting. */
static inline void *lm_take(lm_arena *a, int64_t count, size_t size)
{
    size_t bytes = 0;
    size_t end = 0;
    if (count < 0 || __builtin_mul_overflow((size_t)count, size, &bytes) ||
        __builtin_add_overflow(bytes, LM_ALIGN - 1, &bytes) ||
        __builtin_add_overflow(a->used, bytes & ~(size_t)(LM_ALIGN - 1), &end)) {
        a->overflow = true;
        return NULL;
    }
    void *p = a->base == NULL ? NULL : a->base + a->used;
    a->used = end;
    return p;
}

static inline float *lm_take_floats(lm_arena *a, int64_t rows, int64_t columns)
{
    int64_t count = 0;
    if (__builtin_mul_overflow(rows, columns, &count))
        count = -1;
    return lm_take(a, count, sizeof(float));
}

/* Zeroed memory, 64-byte aligned, or NULL if the machine does not have it; free() it. */
void *lm_alloc_zeroed(size_t bytes);

#endif
