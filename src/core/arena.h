/*
 * What a call runs with: the caller's workspace, carved into buffers, and for a device its stream. The same code counts
 * and carves: with base = NULL nothing is handed out and `used` grows to what a run needs, so a size query and a run
 * cannot disagree.
 */
#ifndef NSA_CORE_ARENA_H
#define NSA_CORE_ARENA_H

#include "core/size.h"
#include "core/status.h"

#include <stdbool.h>

enum { ARENA_ALIGN = 64 }; /* a cache line, and the widest vector */

typedef struct arena {
    char *base;  /* NULL: count only */
    size_t used; /* SIZE_MAX once a size has overflowed */
    size_t peak; /* the most that was ever used */

    nsa_stream stream; /* of a CUDA context */
    nsa_status status; /* NSA_OK until a launch fails; none follows it */
} arena;

static inline bool arena_counts(const arena *a)
{
    return a->base == NULL;
}

/* Whether to launch: it does not count, and no launch has failed. */
static inline bool arena_launches(const arena *a)
{
    return !arena_counts(a) && a->status == NSA_OK;
}

/* count elements of `size` bytes, 64-byte aligned, not cleared. NULL when counting. */
void *arena_take(arena *a, int64_t count, size_t size);

/* t itself, or if its data is NULL a packed tensor of n_rows rows from ws. */
nsa_tensor tensor_or_scratch(const nsa_tensor *t, arena *ws, int64_t n_rows, nsa_dtype dtype, int32_t n_heads,
                             int32_t d);

/* Gives back all that was taken since used was `mark`: steps that follow each other share their scratch. */
static inline void arena_release(arena *a, size_t mark)
{
    if (a->used != SIZE_MAX)
        a->used = mark;
}

/* What an operation is: carves its workspace from `ws`, and unless ws counts, runs. All was checked: what can fail is a
 * launch on a device, which ws->status keeps. */
typedef void op_fn(const void *problem, arena *ws);

/* Bytes that op takes on problem; a size past SIZE_MAX is an error. */
nsa_status op_workspace(op_fn *op, const void *problem, size_t *bytes);

/* Counts, compares with workspace_bytes, runs where ctx does. */
nsa_status op_run(const nsa_ctx *ctx, op_fn *op, const void *problem, void *workspace, size_t workspace_bytes,
                  nsa_stream stream);

#endif
