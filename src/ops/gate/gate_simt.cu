/* Gate, a warp for each (token, head): it is bound by the bytes of o and the branches. */
#include "ops/gate/gate_simt.h"
#include "cuda/simt.cuh"

/* The i-th (token, head); false if no sequence has it. */
static __device__ bool find(const gate_simt_args &p, int64_t i, place *x)
{
    return find_place(p.seqs.cu_q, p.seqs.n, p.seqs.total_q, p.seqs.max_q, p.cfg.c.n_heads_q, i, x);
}

static __device__ int64_t at(const nsa_tensor &t, const place &x)
{
    return offset_at(t, x, x.head);
}

static __global__ __launch_bounds__(WARP *WARPS) void forward_kernel(const __grid_constant__ gate_simt_args p)
{
    for (int64_t i = first_item(); i < p.seqs.total_q * p.cfg.c.n_heads_q; i += item_stride()) {
        place x;
        if (!find(p, i, &x))
            continue;
        float g[NSA_N_BRANCHES];
        for (int b = 0; b < NSA_N_BRANCHES; b++)
            g[b] = load(p.gate, at(p.gate, x) + b);
        for (int c = lane_index(); c < p.cfg.c.d_v; c += WARP) {
            float o = g[0] * load(p.o_branch[0], at(p.o_branch[0], x) + c);
            for (int b = 1; b < NSA_N_BRANCHES; b++)
                o += g[b] * load(p.o_branch[b], at(p.o_branch[b], x) + c);
            store(p.o, at(p.o, x) + c, o);
        }
    }
}

static __global__ __launch_bounds__(WARP *WARPS) void backward_kernel(const __grid_constant__ gate_simt_args p)
{
    for (int64_t i = first_item(); i < p.seqs.total_q * p.cfg.c.n_heads_q; i += item_stride()) {
        place x;
        if (!find(p, i, &x))
            continue;
        for (int b = 0; b < NSA_N_BRANCHES; b++) {
            const float g = load(p.gate, at(p.gate, x) + b);
            float dgate = 0.0F;
            for (int c = lane_index(); c < p.cfg.c.d_v; c += WARP) {
                const float d_o = load(p.d_o, at(p.d_o, x) + c);
                dgate += d_o * load(p.o_branch[b], at(p.o_branch[b], x) + c);
                if (p.do_branch[b].data != NULL)
                    store(p.do_branch[b], at(p.do_branch[b], x) + c, g * d_o);
            }
            dgate = warp_sum(dgate);
            if (lane_index() == 0)
                store(p.dgate, at(p.dgate, x) + b, dgate);
        }
    }
}

int launch_gate(const gate_simt_args *p, nsa_stream stream)
{
    LAUNCH_WARPS(forward_kernel, p->seqs.total_q * p->cfg.c.n_heads_q, stream, *p);
    return cudaGetLastError();
}

int launch_gate_backward(const gate_simt_args *p, nsa_stream stream)
{
    LAUNCH_WARPS(backward_kernel, p->seqs.total_q * p->cfg.c.n_heads_q, stream, *p);
    return cudaGetLastError();
}
