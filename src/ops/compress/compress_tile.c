#include "ops/compress/compress_tile.h"

phi_matrix phi_matrix_take(const compress_problem *p, const void *member, int64_t n_rows, int64_t n_cols, arena *ws)
{
    phi_matrix m = {member, p->phi.dtype, n_rows, n_cols, simd_pad(n_cols), compress_n_sets(p), NULL};
    if (member != NULL && (m.dtype != NSA_F32 || m.ld != n_cols))
        m.copy = arena_take(ws, i64_mul(m.n_sets, n_rows), (size_t)m.ld * sizeof *m.copy);
    return m;
}

void phi_matrix_copy(const phi_matrix *m, const simd_kernels *simd, int64_t part, int64_t n_parts)
{
    if (m->copy == NULL)
        return;
    const int64_t n = m->n_sets * m->n_rows;
    for (int64_t i = n * part / n_parts; i < n * (part + 1) / n_parts; i++)
        simd->load_row(m->copy + i * m->ld, dtype_at(m->member, m->dtype, i * m->n_cols), m->dtype, m->n_cols);
}

int64_t compress_count_blocks(const compress_problem *p, int32_t *cu)
{
    int64_t n = 0;
    for (int32_t s = 0; s < p->seqs.n; s++) {
        if (cu != NULL)
            cu[s] = (int32_t)n;
        const cmp_blocks b = compress_blocks(p, s);
        n += b.n - b.first;
    }
    if (cu != NULL)
        cu[p->seqs.n] = (int32_t)n;
    return n;
}

void compress_store_dx(const compress_problem *p, int32_t s, int64_t start, int64_t t, int32_t head, float *x)
{
    void *to = tensor_at(&p->dx, s, start, t, head);
    if (p->add_dx) {
        float before[MAX_HEAD_DIM];
        p->ctx->simd->load_row(before, to, p->dx.dtype, p->d);
        for (int64_t c = 0; c < p->d; c++)
            x[c] += before[c];
    }
    p->ctx->simd->store_row(to, p->dx.dtype, x, p->d);
}
