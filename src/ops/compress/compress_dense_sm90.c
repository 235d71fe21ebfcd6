/* The host's side of compress_dense_sm90.cu: the products, the order of all steps, the workspace. */
#include "ops/compress/compress_dense_sm90.h"
#include "cuda/device.h"
#include "cuda/simt_args.h"
#include "ops/compress/compress.h"
#include "ops/compress/compress_simt_args.h"

enum { PLANES = 3 }; /* bf16 that make a float32 */

typedef compress_dense_sm90 dense;

static bool is_mlp(const dense *p)
{
    return p->a.phi.kind == NSA_PHI_MLP;
}

/* x and dy are read 16 bytes at a time. */
bool compress_dense_sm90_supports(const compress_problem *p)
{
    return ctx_is_sm90(p->ctx) && (p->phi.kind == NSA_PHI_LINEAR || p->phi.kind == NSA_PHI_MLP) &&
           p->x.dtype == NSA_BF16 && p->d % PRODUCT_COLUMNS == 0 && simt_whole_chunks(&p->x.tensor, p->d) &&
           simt_whole_chunks(&p->dy, p->d);
}

/* ---- Matrices */

/* Rows of a set: its items. */
static int64_t set_items(const dense *p)
{
    return p->a.n_sets == 1 ? p->n_items : p->a.n_rows;
}

/* Rows of the items, or of (group, head), which lie as `lines` say. */
static product_matrix looked_up(const dense *p, const nsa_tensor *t, const product_line *lines)
{
    return (product_matrix){.data = t->data,
                            .lines = lines,
                            .set = 1,
                            .row = p->a.n_sets == 1 ? 1 : p->a.cfg.c.n_heads_kv,
                            .n_segments = 1,
                            .segment = p->a.d};
}

static product_matrix x_of(const dense *p)
{
    product_matrix x = looked_up(p, &p->a.x, p->x_lines);
    x.step = p->a.x.stride_token;
    return x;
}

static product_matrix dy_of(const dense *p)
{
    return looked_up(p, &p->a.dy, p->y_lines);
}

/* h or dz */
static product_matrix hidden_of(const dense *p, bf16_bits *data)
{
    return (product_matrix){.data = data,
                            .set = p->width,
                            .row = (p->a.n_sets == 1 ? 1 : p->a.cfg.c.n_heads_kv) * (int64_t)p->width,
                            .n_segments = 1,
                            .segment = p->width,
                            .plane = i64_mul(p->n_items, p->width)};
}

static product_matrix dz_of(const dense *p)
{
    return is_mlp(p) ? hidden_of(p, p->dz) : dy_of(p);
}

/* Of each group the dz of the block that begins there, of the block before, and so on. */
static product_matrix dz_of_groups(const dense *p)
{
    product_matrix dz = looked_up(p, &p->a.dy, p->dz_lines);
    dz.step = -p->a.dy.stride_token;
    if (is_mlp(p)) {
        dz.data = p->dz;
        dz.segment = p->width;
        dz.step = -p->a.cfg.c.n_heads_kv * (int64_t)p->width;
        dz.plane = i64_mul(p->n_items, p->width);
    }
    return dz;
}

static int32_t dz_planes(const dense *p)
{
    return is_mlp(p) ? PLANES : 1;
}

static product_matrix weights_of(bf16_bits *data, int64_t n_rows, int32_t n_columns, int32_t n_sets)
{
    return (product_matrix){.data = data,
                            .set = n_rows * n_columns,
                            .row = n_columns,
                            .n_segments = 1,
                            .segment = n_columns,
                            .plane = i64_mul(n_sets, n_rows * n_columns)};
}

static product_matrix w1_of(const dense *p)
{
    return weights_of(p->w1, p->n_in, p->width, p->a.n_sets);
}

static product_matrix w2_of(const dense *p)
{
    return weights_of(p->w2, p->a.width, p->a.d, p->a.n_sets);
}

/* The rows of w1 that belong to cmp_stride tokens, those of the block's next ones beside them, and so on. */
static product_matrix w1_of_groups(const dense *p)
{
    const nsa_config *c = &p->a.cfg.c;
    product_matrix w1 = w1_of(p);
    w1.n_segments = c->cmp_block / c->cmp_stride;
    w1.step = (int64_t)c->cmp_stride * p->a.d * p->width;
    return w1;
}

/* ---- Products */

/* So many parts of k that all SMs have work, as far as there is enough for them. */
static int32_t parts_of(int64_t m, int64_t n, int64_t k, int64_t n_sets)
{
    enum { TILE = 128, SMS = 132, LEAST_K = 256 };
    const int64_t n_items = i64_mul(i64_mul(m / TILE + (m % TILE > 0), n / TILE + (n % TILE > 0)), n_sets);
    return (int32_t)max_i64(1, min_i64(SMS / max_i64(1, n_items), k / LEAST_K));
}

/* Of each set [m][k] [k][n], in p->sums. */
static product product_of(const dense *p, product_matrix a, int32_t a_planes, product_matrix b, int32_t b_planes,
                          int64_t m, int64_t n, int64_t k)
{
    const int32_t columns = (int32_t)((n + PRODUCT_COLUMNS - 1) / PRODUCT_COLUMNS * PRODUCT_COLUMNS);
    const int64_t size = i64_mul(m, columns);
    return (product){.a = a,
                     .b = b,
                     .to = {.data = p->sums,
                            .set = size,
                            .row = columns,
                            .n_segments = 1,
                            .segment = columns,
                            .plane = i64_mul(size, p->a.n_sets)},
                     .a_planes = a_planes,
                     .b_planes = b_planes,
                     .m = m,
                     .n = n,
                     .k = k,
                     .n_sets = p->a.n_sets,
                     .n_parts = parts_of(m, n, k, p->a.n_sets),
                     .dtype = NSA_F32,
                     .by_pairs = true};
}

static product x_w1(const dense *p)
{
    product x = product_of(p, x_of(p), 1, w1_of(p), p->w_planes, set_items(p), p->a.width, p->n_in);
    x.b_along_n = true;
    return x;
}

static product h_w2(const dense *p)
{
    product x = product_of(p, hidden_of(p, p->h), PLANES, w2_of(p), p->w_planes, set_items(p), p->a.d, p->a.width);
    x.b_along_n = true;
    return x;
}

static product dy_w2(const dense *p)
{
    return product_of(p, dy_of(p), 1, w2_of(p), p->w_planes, set_items(p), p->a.width, p->a.d);
}

/* Straight into dx. */
static product dz_w1(const dense *p)
{
    const nsa_config *c = &p->a.cfg.c;
    product x = product_of(p, dz_of_groups(p), dz_planes(p), w1_of_groups(p), p->w_planes,
                           p->a.n_sets == 1 ? i64_mul(p->n_groups, c->n_heads_kv) : p->n_groups,
                           (int64_t)c->cmp_stride * p->a.d, (int64_t)c->cmp_block / c->cmp_stride * p->width);
    x.to = looked_up(p, &p->a.dx, p->dx_lines);
    x.to.step = p->a.dx.stride_token;
    x.n_parts = 1;
    x.dtype = p->a.dx.dtype;
    x.by_pairs = simt_whole_chunks(&p->a.dx, p->a.d);
    x.add = p->a.add_dx;
    return x;
}

static product pe_w1(const dense *p)
{
    product x = product_of(p, weights_of(p->pe, 1, (int32_t)p->n_in, p->a.n_sets), p->w_planes, w1_of(p), p->w_planes,
                           1, p->a.width, p->n_in);
    x.b_along_n = true;
    return x;
}

/* A row of ones: all its segments are the same. */
static product_matrix ones_of(const dense *p)
{
    return (product_matrix){.data = p->ones, .n_segments = INT32_MAX, .segment = PRODUCT_COLUMNS};
}

static product sum_dz(const dense *p)
{
    product x = product_of(p, ones_of(p), 1, dz_of(p), dz_planes(p), 1, p->a.width, set_items(p));
    x.b_along_n = true;
    return x;
}

static product sum_dy(const dense *p)
{
    product x = product_of(p, ones_of(p), 1, dy_of(p), 1, 1, p->a.d, set_items(p));
    x.b_along_n = true;
    return x;
}

/* (sum dz) w1^T */
static product sum_dz_w1(const dense *p)
{
    return product_of(p, weights_of(p->dz_sum_planes, 1, p->width, p->a.n_sets), PLANES, w1_of(p), p->w_planes, 1,
                      p->n_in, p->width);
}

static product x_dz(const dense *p)
{
    product x = product_of(p, x_of(p), 1, dz_of(p), dz_planes(p), p->n_in, p->a.width, set_items(p));
    x.a_along_m = x.b_along_n = true;
    return x;
}

static product h_dy(const dense *p)
{
    product x = product_of(p, hidden_of(p, p->h), PLANES, dy_of(p), 1, p->a.width, p->a.d, set_items(p));
    x.a_along_m = x.b_along_n = true;
    return x;
}

/* ---- Workspace */

static bf16_bits *take_planes(int64_t n_planes, int64_t n_rows, int64_t n_columns, arena *ws)
{
    return arena_take(ws, i64_mul(i64_mul(n_planes, n_rows), n_columns), sizeof(bf16_bits));
}

static dense take(const compress_problem *problem, arena *ws)
{
    const nsa_config *cfg = problem->cfg;
    dense p = {.a = compress_simt_args_of(problem)};
    const int64_t columns = PRODUCT_COLUMNS, n_sets = p.a.n_sets;
    p.width = (int32_t)((p.a.width + columns - 1) / columns * columns);
    p.w_planes = p.a.phi.dtype == NSA_BF16 ? 1 : PLANES;
    p.n_in = (int64_t)cfg->cmp_block * p.a.d;
    p.n_items = i64_mul(p.a.n_rows, cfg->n_heads_kv);
    p.n_groups = n_tiles(p.a.seqs.total_k, p.a.seqs.n, cfg->cmp_stride);
    p.x_lines = arena_take(ws, p.n_items, sizeof *p.x_lines);
    p.y_lines = arena_take(ws, p.n_items, sizeof *p.y_lines);
    p.ones = take_planes(1, 1, columns, ws);
    p.pe = take_planes(p.w_planes, n_sets, p.n_in, ws);
    p.w1 = take_planes(p.w_planes, n_sets * p.n_in, p.width, ws);
    p.bias = arena_take(ws, n_sets * p.width, sizeof *p.bias);
    if (is_mlp(&p)) {
        p.w2 = take_planes(p.w_planes, n_sets * p.a.width, p.a.d, ws);
        p.h = take_planes(PLANES, p.n_items, p.width, ws);
    }
    return p;
}

static void take_backward(dense *p, arena *ws)
{
    const int64_t n_lines = i64_mul(p->n_groups, p->a.cfg.c.n_heads_kv), n_sums = (int64_t)p->a.n_sets * p->width;
    p->dz_lines = arena_take(ws, n_lines, sizeof *p->dz_lines);
    p->dx_lines = arena_take(ws, n_lines, sizeof *p->dx_lines);
    if (is_mlp(p)) {
        p->z = arena_take(ws, i64_mul(p->n_items, p->width), sizeof *p->z);
        p->dz = take_planes(PLANES, p->n_items, p->width, ws);
    }
    p->dz_sum = arena_take(ws, n_sums, sizeof *p->dz_sum);
    p->dz_sum_planes = take_planes(PLANES, 1, n_sums, ws);
}

/* ---- Steps: a product, and what is done with it */

typedef product product_fn(const dense *p);
typedef int after_fn(const dense *p, const dense_sums *sums, nsa_stream stream);

typedef struct step {
    bool wanted;
    product_fn *product;
    after_fn *after; /* NULL: the product stands where it is wanted */
} step;

static void run(dense *p, const step *steps, int n, arena *ws)
{
    int64_t most = 0;
    for (int i = 0; i < n; i++) {
        const product x = steps[i].product(p);
        if (steps[i].wanted && steps[i].after != NULL)
            most = max_i64(most, i64_mul(x.n_parts, x.to.plane));
    }
    p->sums = arena_take(ws, most, sizeof *p->sums);
    if (arena_launches(ws))
        cuda_launched(ws, "tables of compression", launch_dense_lines(p, ws->stream));
    if (arena_launches(ws))
        cuda_launched(ws, "parameters of compression", launch_dense_planes(p, ws->stream));
    if (arena_launches(ws) && p->a.phi.pe == NULL)
        cuda_launched(ws, "parameters of compression", launch_dense_bias(p, NULL, ws->stream));
    for (int i = 0; i < n; i++) {
        const product x = steps[i].product(p);
        const dense_sums sums = {p->sums, x.n_parts, x.to.segment, x.m};
        if (arena_launches(ws) && steps[i].wanted)
            cuda_launched(ws, "a product of compression", launch_product_sm90(&x, ws->stream));
        if (arena_launches(ws) && steps[i].wanted && steps[i].after != NULL)
            cuda_launched(ws, "compression", steps[i].after(p, &sums, ws->stream));
    }
}

void compress_dense_sm90_forward(const void *problem, arena *ws)
{
    dense p = take(problem, ws);
    const bool mlp = is_mlp(&p);
    const step steps[] = {
        {p.a.phi.pe != NULL, pe_w1, launch_dense_bias},
        {true, x_w1, mlp ? launch_dense_hidden : launch_dense_y},
        {mlp, h_w2, launch_dense_y},
    };
    run(&p, steps, sizeof steps / sizeof *steps, ws);
}

/* dy is bf16; nsa_backward's is float32. */
void compress_dense_sm90_backward(const void *problem, arena *ws)
{
    const compress_problem *given = problem;
    if (given->dy.dtype != NSA_BF16) {
        compress_simt_backward(problem, ws);
        return;
    }
    dense p = take(problem, ws);
    take_backward(&p, ws);
    const bool mlp = is_mlp(&p), has_pe = p.a.phi.pe != NULL;
    const step steps[] = {
        {mlp && has_pe, pe_w1, launch_dense_bias},
        {mlp, x_w1, launch_dense_hidden},
        {mlp, dy_w2, launch_dense_dz},
        {true, dz_w1, NULL},
        {has_pe || p.a.phi.b1 != NULL, sum_dz, launch_dense_db1},
        {has_pe, sum_dz_w1, launch_dense_dpe},
        {true, x_dz, launch_dense_dw1},
        {mlp, h_dy, launch_dense_dw2},
        {p.a.phi.b2 != NULL, sum_dy, launch_dense_db2},
    };
    run(&p, steps, sizeof steps / sizeof *steps, ws);
}
