/* Gate: bound by the bytes of o and the branches. Backward reads d_o once for all of them. */
#include "cuda/chunks.cuh"
#include "ops/gate/gate_simt.h"

static __device__ bool find(const gate_simt_args &p, int64_t i, row_share *x)
{
    return find_rows(p.seqs.cu_q, p.seqs.n, p.seqs.total_q, p.seqs.max_q, p.cfg.c.n_heads_q, p.cfg.c.d_v, i, x);
}

static __device__ int64_t n_shares(const gate_simt_args &p)
{
    return n_row_shares(p.seqs.total_q, p.cfg.c.n_heads_q, p.seqs.n);
}

static __device__ void load_gates(const gate_simt_args &p, const place &at, float (&g)[NSA_N_BRANCHES])
{
    const int64_t from = offset_at(p.gate, at, at.head);
    for (int b = 0; b < NSA_N_BRANCHES; b++)
        g[b] = load(p.gate, from + b);
}

template <typename T>
static __device__ void load_branches(const gate_simt_args &p, const row_share &own, const place &at,
                                     chunk<T> (&x)[NSA_N_BRANCHES])
{
    for (int b = 0; b < NSA_N_BRANCHES; b++)
        x[b] = load_chunk<T>(p.o_branch[b], chunk_at(p.o_branch[b], own, at), p.cfg.c.d_v - own.channel, p.whole);
}

template <typename T>
static __global__ __launch_bounds__(CHUNK_THREADS) void forward_kernel(const __grid_constant__ gate_simt_args p)
{
    for (int64_t i = blockIdx.x; i < n_shares(p); i += gridDim.x) {
        row_share own;
        if (!find(p, i, &own) || own.channel >= p.cfg.c.d_v)
            continue;
        for (int r = own.row; r < own.n; r += own.step) {
            const place at = place_of(own, r);
            float g[NSA_N_BRANCHES];
            chunk<T> x[NSA_N_BRANCHES];
            chunk<float> o;
            load_gates(p, at, g);
            load_branches(p, own, at, x);
            for (int k = 0; k < CHUNK; k++) {
                o.x[k] = g[0] * to_float(x[0].x[k]);
                for (int b = 1; b < NSA_N_BRANCHES; b++)
                    o.x[k] = fmaf(g[b], to_float(x[b].x[k]), o.x[k]);
            }
            store_chunk(p.o, chunk_at(p.o, own, at), p.cfg.c.d_v - own.channel, p.whole, narrow<T>(o));
        }
    }
}

/* do_branch of a row, and what its lane adds to dgate. */
template <typename T>
static __device__ void backward_row(const gate_simt_args &p, const row_share &own, const place &at,
                                    float (&dgate)[NSA_N_BRANCHES])
{
    const int left = p.cfg.c.d_v - own.channel;
    float g[NSA_N_BRANCHES];
    chunk<T> x[NSA_N_BRANCHES];
    load_gates(p, at, g);
    const chunk<float> d_o = widen(load_chunk<T>(p.d_o, chunk_at(p.d_o, own, at), left, p.whole));
    load_branches(p, own, at, x);
    for (int b = 0; b < NSA_N_BRANCHES; b++) {
        chunk<float> dx;
        for (int k = 0; k < CHUNK; k++) {
            dgate[b] = fmaf(d_o.x[k], to_float(x[b].x[k]), dgate[b]);
            dx.x[k] = g[b] * d_o.x[k];
        }
        if (p.do_branch[b].data != NULL)
            store_chunk(p.do_branch[b], chunk_at(p.do_branch[b], own, at), left, p.whole, narrow<T>(dx));
    }
}

template <typename T>
static __global__ __launch_bounds__(CHUNK_THREADS) void backward_kernel(const __grid_constant__ gate_simt_args p)
{
    for (int64_t i = blockIdx.x; i < n_shares(p); i += gridDim.x) {
        row_share own;
        if (!find(p, i, &own))
            continue;
        for (int first = 0; first < own.n; first += own.step) { /* all lanes, for their sums */
            const bool is = first + own.row < own.n;
            const place at = place_of(own, first + own.row);
            float dgate[NSA_N_BRANCHES] = {0.0F, 0.0F, 0.0F};
            if (is && own.channel < p.cfg.c.d_v)
                backward_row<T>(p, own, at, dgate);
            for (int b = 0; b < NSA_N_BRANCHES; b++) {
                for (int n = own.lanes / 2; n > 0; n /= 2)
                    dgate[b] += __shfl_xor_sync(~0U, dgate[b], n);
                if (is && own.channel == 0)
                    store(p.dgate, offset_at(p.dgate, at, at.head) + b, dgate[b]);
            }
        }
    }
}

/* kernel<<<>>> of the type of t. */
#define LAUNCH_GATE(kernel, t)                                                                                         \
    switch ((t).dtype) {                                                                                               \
    case NSA_BF16: LAUNCH_ROWS(kernel<bf16>, p->seqs.total_q, p->cfg.c.n_heads_q, p->seqs.n, stream, *p); break;       \
    case NSA_F16: LAUNCH_ROWS(kernel<f16>, p->seqs.total_q, p->cfg.c.n_heads_q, p->seqs.n, stream, *p); break;         \
    default: LAUNCH_ROWS(kernel<float>, p->seqs.total_q, p->cfg.c.n_heads_q, p->seqs.n, stream, *p); break;            \
    }

int launch_gate(const gate_simt_args *p, nsa_stream stream)
{
    LAUNCH_GATE(forward_kernel, p->o);
    return cudaGetLastError();
}

int launch_gate_backward(const gate_simt_args *p, nsa_stream stream)
{
    LAUNCH_GATE(backward_kernel, p->d_o);
    return cudaGetLastError();
}
