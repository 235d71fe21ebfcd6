#include "core/rows.h"

bool tile_at(const int32_t *cu, int32_t n_seqs, int64_t tile, int64_t i, int32_t *s, int64_t *first)
{
    int32_t lo = 0, hi = n_seqs; /* the last sequence whose tiles start at or before i */
    while (hi - lo > 1) {
        const int32_t mid = lo + (hi - lo) / 2;
        if (cu[mid] / tile + mid <= i)
            lo = mid;
        else
            hi = mid;
    }
    *s = lo;
    *first = (i - (cu[lo] / tile + lo)) * tile;
    return *first < cu[lo + 1] - cu[lo];
}

row_source rows_from_tensor(const nsa_tensor *t, int32_t d, const int32_t *cu, int32_t start_div)
{
    return (row_source){.dtype = t->dtype, .d = d, .tensor = *t, .start_div = start_div, .cu = cu};
}

rows rows_of(const row_source *src, int32_t s, int32_t head)
{
    rows r = {.dtype = src->dtype, .row_bytes = src->d * (int64_t)dtype_size(src->dtype)};
    if (src->locate != NULL)
        src->locate(src->cache, src->part, s, head, &r);
    if (src->tensor.data != NULL) {
        r.plain = tensor_at(&src->tensor, s, src->cu[s] / src->start_div, 0, head);
        r.stride_bytes = src->tensor.stride_token * (int64_t)dtype_size(src->dtype);
    }
    return r;
}

const void *rows_run(const rows *x, int64_t r, int64_t n, int64_t *stride_bytes)
{
    const bool cached = r < x->split;
    const bool paged = x->pages != NULL;
    const int64_t together = paged ? x->page_rows : x->ring_rows, i = paged ? r + x->page_skip : r;
    if (cached && (r + n > x->split || i % together + n > together))
        return NULL;
    *stride_bytes = cached ? x->row_bytes : x->stride_bytes;
    return rows_at(x, r);
}
