#include "ops/compress/compress_simt.h"
#include "cuda/device.h"
#include "cuda/simt_args.h"
#include "ops/compress/compress.h"
#include "ops/compress/compress_simt_args.h"

static bool is_mean(const compress_problem *p)
{
    return p->phi.kind == NSA_PHI_MEAN;
}

static bool is_dense(const compress_problem *p)
{
    return p->phi.kind == NSA_PHI_LINEAR || p->phi.kind == NSA_PHI_MLP;
}

compress_simt_args compress_simt_args_of(const compress_problem *p)
{
    compress_simt_args a = {
        .cfg = simt_config_of(p->cfg),
        .seqs = simt_seqs_of(&p->seqs),
        .d = p->d,
        .width = p->phi.kind == NSA_PHI_MLP           ? p->phi.d_hidden
                 : p->phi.kind == NSA_PHI_GATED_TOKEN ? 1
                                                      : p->d,
        .n_sets = compress_n_sets(p),
        .phi = p->phi,
        .dphi = p->dphi,
        .x = p->x.tensor,
        .y = p->y,
        .dy = p->dy,
        .dx = p->dx,
        .add_dx = p->add_dx,
        .n_rows = p->seqs.total_k / p->cfg->cmp_stride,
    };
    a.whole = simt_whole_chunks(&a.x, a.d) && simt_whole_chunks(&a.y, a.d) && simt_whole_chunks(&a.dy, a.d) &&
              simt_whole_chunks(&a.dx, a.d);
    return a;
}

static compress_simt_args take_tables(const compress_problem *p, arena *ws)
{
    compress_simt_args a = compress_simt_args_of(p);
    if (!is_mean(p)) {
        a.rows = arena_take(ws, a.n_rows, sizeof *a.rows);
        a.tokens = arena_take(ws, a.seqs.total_k, sizeof *a.tokens);
    }
    return a;
}

/* [n][head][width] */
static float *take_floats(const compress_simt_args *a, int64_t n, int64_t width, arena *ws)
{
    return arena_take(ws, i64_mul(i64_mul(n, a->cfg.c.n_heads_kv), width), sizeof(float));
}

static void take_forward(const compress_problem *p, compress_simt_args *a, arena *ws)
{
    if (p->phi.kind == NSA_PHI_MLP) {
        a->z = take_floats(a, a->n_rows, a->width, ws);
        a->h = take_floats(a, a->n_rows, a->width, ws);
    }
    if (p->phi.kind == NSA_PHI_GATED_TOKEN || p->phi.kind == NSA_PHI_GATED_CHANNEL)
        a->logits = take_floats(a, a->seqs.total_k, a->width, ws);
}

/* The parts of a gradient of n elements of each set. */
static int64_t n_sums(const compress_simt_args *a, int64_t n, int64_t n_rows)
{
    const int64_t n_elements = i64_mul(a->n_sets, n);
    return i64_mul(n_elements, compress_parts(n_elements, n_rows));
}

static void take_backward(const compress_problem *p, compress_simt_args *a, arena *ws)
{
    take_forward(p, a, ws);
    if (is_mean(p))
        return;
    const phi_sizes sizes = compress_phi_sizes(p);
    int64_t sums = n_sums(a, sizes.w1, is_dense(p) ? a->n_rows : a->seqs.total_k);
    if (is_dense(p)) {
        a->dz = take_floats(a, a->n_rows, a->width, ws);
        a->dz_sum = arena_take(ws, i64_mul(a->n_sets, a->width), sizeof(float));
        sums = max_i64(sums, n_sums(a, a->width, a->n_rows));
        sums = max_i64(sums, n_sums(a, i64_mul(a->width, a->d), a->n_rows));
        sums = max_i64(sums, n_sums(a, a->d, a->n_rows));
    } else {
        if (p->phi.kind == NSA_PHI_GATED_TOKEN)
            a->dots = take_floats(a, a->n_rows, a->cfg.c.cmp_block, ws);
        a->stats = take_floats(a, a->n_rows, 3 * (int64_t)a->width, ws);
        a->dlogits = take_floats(a, a->seqs.total_k, a->width, ws);
        sums = max_i64(sums, n_sums(a, sizes.b1, a->n_rows));
    }
    a->sums = arena_take(ws, sums, sizeof(float));
}

typedef int kernels_fn(const compress_simt_args *p, nsa_stream stream);

static void run(const compress_simt_args *a, kernels_fn *kernels, arena *ws)
{
    if (arena_launches(ws) && a->phi.kind != NSA_PHI_MEAN)
        cuda_launched(ws, "tables of compression", launch_compress_tables(a, ws->stream));
    if (arena_launches(ws))
        cuda_launched(ws, "compression", kernels(a, ws->stream));
}

void compress_simt_forward(const void *problem, arena *ws)
{
    compress_simt_args a = take_tables(problem, ws);
    take_forward(problem, &a, ws);
    run(&a,
        is_mean(problem)    ? launch_compress_mean
        : is_dense(problem) ? launch_compress_dense
                            : launch_compress_pool,
        ws);
}

void compress_simt_backward(const void *problem, arena *ws)
{
    compress_simt_args a = take_tables(problem, ws);
    take_backward(problem, &a, ws);
    run(&a,
        is_mean(problem)    ? launch_compress_mean_backward
        : is_dense(problem) ? launch_compress_dense_backward
                            : launch_compress_pool_backward,
        ws);
}
