#include "lm/matmul.h"
#include "lm/error.h"

#include <dnnl.h>

enum {
    PIECES = 16,  /* tiles that the longer side of C is cut into: work for as many threads */
    MIN_TILE = 64 /* below this a tile costs more to pack than to multiply */
};

static int64_t tile_of(int64_t size)
{
    const int64_t tile = ((size + PIECES - 1) / PIECES + 15) / 16 * 16;
    return tile < MIN_TILE ? MIN_TILE : tile;
}

static int64_t min(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static const float *from_row(matrix x, int64_t row)
{
    return x.data + (x.transposed ? row : row * x.ld);
}

static const float *from_column(matrix x, int64_t column)
{
    return x.data + (x.transposed ? column * x.ld : column);
}

bool matmul(float *c, int64_t ldc, matrix a, matrix b, int64_t m, int64_t n, int64_t k, bool add)
{
    const char trans_a = a.transposed ? 'T' : 'N';
    const char trans_b = b.transposed ? 'T' : 'N';
    const float beta = add ? 1.0F : 0.0F;
    const int64_t rows = m >= n ? tile_of(m) : m;
    const int64_t columns = m >= n ? n : tile_of(n);
    const int64_t n_tiles = m == 0 ? 0 : m >= n ? (m + rows - 1) / rows : (n + columns - 1) / columns;
    int failed = 0;
    /* Inside a parallel region oneDNN runs in the calling thread. */
#pragma omp parallel for schedule(static) reduction(max : failed)
    for (int64_t tile = 0; tile < n_tiles; tile++) {
        const int64_t i = m >= n ? tile * rows : 0;
        const int64_t j = m >= n ? 0 : tile * columns;
        const dnnl_status_t status =
            dnnl_sgemm(trans_a, trans_b, min(rows, m - i), min(columns, n - j), k, 1.0F, from_row(a, i), a.ld,
                       from_column(b, j), b.ld, beta, c + i * ldc + j, ldc);
        failed = (int)status > failed ? (int)status : failed;
    }
    if (failed == dnnl_out_of_memory)
        return lm_out_of_memory("matrix product");
    return failed == 0 ? true : lm_fail("dnnl_sgemm: status %d", failed);
}
