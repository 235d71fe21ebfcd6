/*
 * Where rows lie. Operations see the keys of a (sequence, kv head) as rows 0, 1, 2 ...; a `row_source` says where those
 * are: in a caller's tensor, in the pages of a cache, or in a cache's ring followed by a tensor. So one driver serves
 * training, prefill and decoding.
 */
#ifndef NSA_CORE_ROWS_H
#define NSA_CORE_ROWS_H

#include "core/config.h"
#include "core/dtype.h"

/* One sequence of the problem: its first packed rows, and its lengths. */
typedef struct seq {
    int64_t q0, k0;
    int64_t t_q, t_k;
} seq;

/* The sequences of a call. With a cache the lengths of the key side are what len_k says, and there is no cu_k. An
 * operation that reads one side only may lack the other's cu. */
typedef struct seqs {
    int32_t n;
    int64_t total_q, total_k;
    int32_t max_q, max_k; /* the longest, at most; of tensors in a batch */
    const int32_t *cu_q, *cu_k;
    int64_t (*len_k)(const void *cache, int32_t s); /* NULL without a cache */
    const void *cache;
} seqs;

static inline seqs seqs_of_batch(const nsa_batch *b)
{
    return (seqs){.n = b->n_seqs,
                  .total_q = b->total_q,
                  .total_k = b->total_k,
                  .max_q = b->max_seqlen_q,
                  .max_k = b->max_seqlen_k,
                  .cu_q = b->cu_seqlens_q,
                  .cu_k = b->cu_seqlens_k};
}

static inline seq seq_at(const seqs *all, int32_t s)
{
    seq q = {0};
    if (all->cu_q != NULL) {
        q.q0 = all->cu_q[s];
        q.t_q = all->cu_q[s + 1] - all->cu_q[s];
    }
    if (all->len_k != NULL) {
        q.t_k = all->len_k(all->cache, s);
    } else if (all->cu_k != NULL) {
        q.k0 = all->cu_k[s];
        q.t_k = all->cu_k[s + 1] - all->cu_k[s];
    }
    return q;
}

/* Splits the packed tokens of cu into tiles of `tile` tokens that never cross a sequence: those of sequence s have the
 * numbers cu[s]/tile + s and up. n_tiles bounds them; tile_at finds the sequence and first token of one, or says that
 * the number is not used. */
static inline int64_t n_tiles(int64_t total, int32_t n_seqs, int64_t tile)
{
    return total / tile + n_seqs;
}

bool tile_at(const int32_t *cu, int32_t n_seqs, int64_t tile, int64_t i, int32_t *s, int64_t *first);

/* Element offset of token `row` of sequence s (packed: its rows start at `start`) and a head. */
static inline int64_t tensor_offset(const nsa_tensor *t, int32_t s, int64_t start, int64_t row, int64_t head)
{
    const int64_t base = t->stride_seq == 0 ? start * t->stride_token : s * t->stride_seq;
    return base + row * t->stride_token + head * t->stride_head;
}

static inline void *tensor_at(const nsa_tensor *t, int32_t s, int64_t start, int64_t row, int64_t head)
{
    return (char *)t->data + tensor_offset(t, s, start, row, head) * (int64_t)dtype_size(t->dtype);
}

/* The rows of one (sequence, kv head). Row r lies
 *   r >= split:            at plain + (r - split) * stride_bytes;
 *   r < split, pages set:  with i = r + page_skip, in page table[i / page_rows], offset bytes in, row i % page_rows;
 *   r < split otherwise:   in the ring, row r % ring_rows. */
typedef struct rows {
    nsa_dtype dtype;
    int64_t row_bytes; /* of a row in pages and ring: they are contiguous there */
    int64_t split;
    const char *plain;
    int64_t stride_bytes;
    const char *pages;
    const int32_t *table;
    int64_t page_bytes, page_rows, page_skip, offset;
    const char *ring;
    int64_t ring_rows;
} rows;

static inline const void *rows_at(const rows *x, int64_t r)
{
    if (r >= x->split)
        return x->plain + (r - x->split) * x->stride_bytes;
    if (x->pages != NULL) {
        const int64_t i = r + x->page_skip;
        return x->pages + x->table[i / x->page_rows] * x->page_bytes + x->offset + i % x->page_rows * x->row_bytes;
    }
    return x->ring + r % x->ring_rows * x->row_bytes;
}

/* Rows r .. r+n-1 where they lie, if they are evenly spaced there: *stride_bytes apart. Else NULL. */
const void *rows_run(const rows *x, int64_t r, int64_t n, int64_t *stride_bytes);

typedef struct row_source row_source;
struct row_source {
    nsa_dtype dtype;
    int32_t d;
    nsa_tensor tensor;
    int32_t start_div; /* packed rows of sequence s start at cu/start_div: 1, or cmp_stride for compressed rows */
    const int32_t *cu; /* of tensor */
    /* With a cache: fills in all but `plain` and `stride_bytes`. NULL without. */
    void (*locate)(const void *cache, int part, int32_t s, int32_t head, rows *out);
    const void *cache;
    int part;
};

row_source rows_from_tensor(const nsa_tensor *t, int32_t d, const int32_t *cu, int32_t start_div);

rows rows_of(const row_source *src, int32_t s, int32_t head);

#endif
