#include "cuda/chunks.cuh"

static __global__ __launch_bounds__(CHUNK_THREADS) void copy_kernel(const __grid_constant__ copy_simt p)
{
    for (int64_t i = blockIdx.x; i < n_row_shares(p.total, p.n_heads, p.n_seqs); i += gridDim.x) {
        row_share own;
        if (!find_rows(p.cu, p.n_seqs, p.total, p.max, p.n_heads, p.d, i, &own) || own.channel >= p.d)
            continue;
        const int left = p.d - own.channel;
#pragma unroll 2
        for (int r = own.row; r < own.n; r += own.step) {
            const place at = place_of(own, r);
            store_floats(p.to, chunk_at(p.to, own, at), left, p.whole,
                         load_floats(p.from, chunk_at(p.from, own, at), left, p.whole));
        }
    }
}

int launch_copy(const copy_simt *p, nsa_stream stream)
{
    LAUNCH_ROWS(copy_kernel, p->total, p->n_heads, p->n_seqs, stream, *p);
    return cudaGetLastError();
}
