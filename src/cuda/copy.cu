#include "cuda/simt.cuh"

/* A warp for each (token, head). */
static __global__ __launch_bounds__(WARP *WARPS) void copy_kernel(const __grid_constant__ copy_simt p)
{
    for (int64_t i = first_item(); i < p.total * p.n_heads; i += item_stride()) {
        const int64_t token = i / p.n_heads, head = i % p.n_heads;
        const int32_t s = seq_of_row(p.cu, p.n_seqs, 1, token);
        const seq_range x = seq_range_of(p.cu, s, p.total, p.max);
        const int64_t row = token - x.start;
        if (row < 0 || row >= x.n)
            continue;
        const int64_t from = offset_of(p.from, s, x.start, row, head), to = offset_of(p.to, s, x.start, row, head);
        for (int c = lane_index(); c < p.d; c += WARP)
            store(p.to, to + c, load(p.from, from + c));
    }
}

int launch_copy(const copy_simt *p, nsa_stream stream)
{
    const int64_t n = p->total * p->n_heads;
    if (n > 0)
        copy_kernel<<<grid_of(n, WARPS), WARP * WARPS, 0, stream>>>(*p);
    return cudaGetLastError();
}
