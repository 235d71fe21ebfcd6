#include "cuda/simt.cuh"

/* A warp for each (token, head). */
static __global__ __launch_bounds__(WARP *WARPS) void copy_kernel(const __grid_constant__ copy_simt p)
{
    for (int64_t i = first_item(); i < p.total * p.n_heads; i += item_stride()) {
        place x;
        if (!find_place(p.cu, p.n_seqs, p.total, p.max, p.n_heads, i, &x))
            continue;
        const int64_t from = offset_at(p.from, x, x.head), to = offset_at(p.to, x, x.head);
        for (int c = lane_index(); c < p.d; c += WARP)
            store(p.to, to + c, load(p.from, from + c));
    }
}

int launch_copy(const copy_simt *p, nsa_stream stream)
{
    LAUNCH_WARPS(copy_kernel, p->total * p->n_heads, stream, *p);
    return cudaGetLastError();
}
