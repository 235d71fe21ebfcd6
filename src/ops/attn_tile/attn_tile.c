#include "ops/attn_tile/attn_tile.h"

#include <math.h>
#include <omp.h>

/* ---- Scratch ----------------------------------------------------------------------------------------------------- */

enum { DELTA_ROWS = SIMD_PAD };

/* A row of n floats and the distance to the next: an odd number of cache lines, so that a column of a matrix spreads
 * over all sets of the cache. */
static int64_t padded(int64_t n)
{
    return simd_pad(n) | SIMD_PAD;
}

int64_t tile_lane_tokens(const attn_problem *p)
{
    return max_i64(1, TILE_ROWS / config_group(p->cfg));
}

static float *floats(arena *a, int64_t n, int64_t ld)
{
    return arena_take(a, n, (size_t)ld * sizeof(float));
}

static attn_tile carve(const attn_problem *p, tile_pass pass, visible_fn *visible, int64_t max_tokens, float *all_delta,
                       arena *a)
{
    const int64_t group = config_group(p->cfg), lanes = tile_lane_tokens(p) * group, tile_rows = max_tokens * group;
    const int64_t d_qk = p->cfg->d_qk, d_v = p->cfg->d_v;
    attn_tile t = {.p = p,
                   .pass = pass,
                   .visible = visible,
                   .scale = (float)config_scale(p->cfg),
                   .group = group,
                   .ld_qk = padded(d_qk),
                   .ld_v = padded(d_v),
                   .ld_s = padded(pass == TILE_DKV ? KEY_BLOCK : lanes),
                   .all_delta = all_delta};
    t.token = arena_take(a, max_tokens, sizeof *t.token);
    t.sees = arena_take(a, max_tokens, sizeof *t.sees);
    t.picked = arena_take(a, max_tokens, sizeof *t.picked);
    t.picked_rows = arena_take(a, tile_rows, sizeof *t.picked_rows);
    t.keys_of = arena_take(a, max_tokens, sizeof *t.keys_of);
    t.lanes_of = arena_take(a, KEY_BLOCK, sizeof *t.lanes_of);
    t.q = floats(a, tile_rows, t.ld_qk);
    t.scores = floats(a, pass == TILE_DKV ? tile_rows : KEY_BLOCK, t.ld_s);
    t.k_copy = floats(a, KEY_BLOCK, t.ld_qk);
    t.v_copy = floats(a, KEY_BLOCK, t.ld_v);
    t.row = floats(a, 1, max_i64(t.ld_qk, t.ld_v));
    if (pass == TILE_FORWARD) {
        t.max = floats(a, tile_rows, 1);
        t.sum = floats(a, tile_rows, 1);
        t.o = floats(a, tile_rows, t.ld_v);
        t.max_lanes = floats(a, 1, t.ld_s);
        t.sum_lanes = floats(a, 1, t.ld_s);
        t.keep_lanes = floats(a, 1, t.ld_s);
    } else {
        t.d_o = floats(a, tile_rows, t.ld_v);
        t.lse = floats(a, tile_rows, 1);
        t.delta = floats(a, tile_rows, 1);
        t.dp = floats(a, pass == TILE_DKV ? tile_rows : KEY_BLOCK, t.ld_s);
    }
    if (pass != TILE_DKV)
        t.q_lanes = floats(a, d_qk, t.ld_s);
    if (pass == TILE_DQ) {
        t.o = floats(a, DELTA_ROWS, t.ld_v);
        t.dq = floats(a, tile_rows, t.ld_qk);
        t.d_o_lanes = floats(a, d_v, t.ld_s);
        t.lse_lanes = floats(a, 1, t.ld_s);
        t.delta_lanes = floats(a, 1, t.ld_s);
    }
    if (pass == TILE_DKV) {
        t.k_lanes = floats(a, d_qk, t.ld_s);
        t.v_lanes = floats(a, d_v, t.ld_s);
        t.dk = floats(a, KEY_BLOCK, t.ld_qk);
        t.dv = floats(a, KEY_BLOCK, t.ld_v);
    }
    return t;
}

bool tile_supports(const attn_problem *p)
{
    return !p->ctx->reference && p->q.dtype != NSA_F64 && p->dq.dtype != NSA_F64 && p->dk.dtype != NSA_F64 &&
           p->dv.dtype != NSA_F64;
}

void tile_run_units(const tile_run *run, arena *ws)
{
    arena count = {NULL, 0, 0};
    carve(run->p, run->pass, NULL, run->max_tokens, NULL, &count);
    char *extra = arena_take(ws, run->p->ctx->n_threads, run->extra_bytes);
    char *scratch = arena_take(ws, run->p->ctx->n_threads, count.peak);
    if (arena_counts(ws))
        return;
    const int threads = (int)min_i64(run->p->ctx->n_threads, max_i64(1, run->units));
#pragma omp parallel num_threads(threads)
    {
        const size_t thread = (size_t)omp_get_thread_num();
        arena own = {scratch + thread * count.peak, 0, 0};
        attn_tile t = carve(run->p, run->pass, run->visible, run->max_tokens, run->all_delta, &own);
#pragma omp for schedule(dynamic)
        for (int64_t unit = 0; unit < run->units; unit++)
            run->unit(&t, unit, run->shared, extra + thread * run->extra_bytes);
    }
}

/* ---- Rows in and out --------------------------------------------------------------------------------------------- */

static const simd_kernels *kernels(const attn_tile *t)
{
    return t->p->ctx->simd;
}

static void load_row(const attn_tile *t, float *dst, const void *src, nsa_dtype dtype, int64_t n)
{
    kernels(t)->load_row(dst, src, dtype, n);
    for (int64_t c = n; c < simd_pad(n); c++)
        dst[c] = 0.0F;
}

/* A query tensor's row of the i-th token and the h-th head of the group. */
static void *query_at(const attn_tile *t, const nsa_tensor *x, int64_t i, int64_t h)
{
    return tensor_at(x, t->s, t->seq.q0, t->token[i], t->head * t->group + h);
}

static void *key_at(const attn_tile *t, const nsa_tensor *x, const row_source *like, int64_t key)
{
    return tensor_at(x, t->s, like->cu[t->s] / like->start_div, key, t->head);
}

static void store_row(const attn_tile *t, void *dst, nsa_dtype dtype, const float *x, int64_t n, bool add)
{
    if (add) {
        kernels(t)->load_row(t->row, dst, dtype, n);
        for (int64_t c = 0; c < n; c++)
            t->row[c] += x[c];
        x = t->row;
    }
    kernels(t)->store_row(dst, dtype, x, n);
}

static const float *copy_keys(const attn_tile *t, const rows *from, int64_t k0, int64_t n, int64_t d, float *copy,
                              int64_t ld)
{
    for (int64_t j = 0; j < n; j++)
        load_row(t, copy + j * ld, rows_at(from, k0 + j), from->dtype, d);
    return copy;
}

/* Rows k0 .. k0 + n - 1 as floats, for the A of a product: where they lie if possible, else copied. As a B they are
 * copied always: closely packed they are worth more in the cache than the copy costs. */
static const float *read_keys(const attn_tile *t, const rows *from, int64_t k0, int64_t n, int64_t d, float *copy,
                              int64_t *ld)
{
    if (from->dtype == NSA_F32 && k0 >= from->split) {
        *ld = from->stride_bytes / (int64_t)sizeof(float);
        return rows_at(from, k0);
    }
    return copy_keys(t, from, k0, n, d, copy, *ld);
}

/* ---- Tokens ------------------------------------------------------------------------------------------------------ */

void tile_enter(attn_tile *t, int32_t s, int32_t head)
{
    t->s = s;
    t->head = head;
    t->seq = seq_at(&t->p->seqs, s);
    t->k = rows_of(&t->p->k, s, head);
    t->v = rows_of(&t->p->v, s, head);
}

static float gate_at(const attn_tile *t, int64_t i, int64_t h)
{
    const nsa_tensor *gate = &t->p->gate;
    return gate->data == NULL ? 1.0F : (float)dtype_get(query_at(t, gate, i, h), gate->dtype, t->p->branch);
}

/* do' = gate do, and lse. */
static void load_gradient(attn_tile *t, int64_t i, int64_t h)
{
    const attn_problem *p = t->p;
    const int64_t r = i * t->group + h;
    float *d_o = t->d_o + r * t->ld_v;
    load_row(t, d_o, query_at(t, &p->d_o, i, h), p->d_o.dtype, p->cfg->d_v);
    const float gate = gate_at(t, i, h);
    for (int64_t c = 0; c < p->cfg->d_v; c++)
        d_o[c] *= gate;
    memcpy(&t->lse[r], query_at(t, &p->lse, i, h), sizeof(float));
}

static float *delta_at(const attn_tile *t, int64_t r)
{
    const int64_t row = t->seq.q0 + t->token[r / t->group];
    return t->all_delta + row * t->p->cfg->n_heads_q + t->head * t->group + r % t->group;
}

/* delta = do' . o, the diagonal of a product: by the kernel that makes dp, so that in a row with a single key, where o
 * is that key's v to an ulp, dp - delta leaves no more than that ulp. */
static void make_delta(attn_tile *t)
{
    const attn_problem *p = t->p;
    const int64_t n_rows = t->n_tokens * t->group;
    for (int64_t r0 = 0; r0 < n_rows; r0 += DELTA_ROWS) {
        const int64_t n = min_i64(DELTA_ROWS, n_rows - r0);
        float product[DELTA_ROWS][DELTA_ROWS];
        for (int64_t i = 0; i < n; i++)
            load_row(t, t->o + i * t->ld_v, query_at(t, &p->o, (r0 + i) / t->group, (r0 + i) % t->group), p->o.dtype,
                     p->cfg->d_v);
        kernels(t)->transpose(t->d_o_lanes, t->ld_s, t->d_o + r0 * t->ld_v, t->ld_v, NULL, n, p->cfg->d_v);
        kernels(t)->matmul(product[0], DELTA_ROWS, t->o, t->ld_v, 1, t->d_o_lanes, t->ld_s, n, n, p->cfg->d_v, 0);
        for (int64_t i = 0; i < n; i++)
            *delta_at(t, r0 + i) = product[i][i];
    }
}

void tile_load(attn_tile *t, const int32_t *list, int64_t first, int64_t n)
{
    const attn_problem *p = t->p;
    t->n_tokens = n;
    for (int64_t i = 0; i < n; i++) {
        t->token[i] = list != NULL ? list[i] : (int32_t)(first + i);
        t->sees[i] = t->visible(p->cfg, t->token[i] + t->seq.t_k - t->seq.t_q);
        for (int64_t h = 0; h < t->group; h++) {
            load_row(t, t->q + (i * t->group + h) * t->ld_qk, query_at(t, &p->q, i, h), p->q.dtype, p->cfg->d_qk);
            if (t->pass != TILE_FORWARD)
                load_gradient(t, i, h);
        }
    }
    const int64_t n_rows = n * t->group;
    if (t->pass == TILE_DQ)
        make_delta(t);
    for (int64_t r = 0; t->pass != TILE_FORWARD && r < n_rows; r++)
        t->delta[r] = *delta_at(t, r);
    if (t->pass == TILE_FORWARD) {
        for (int64_t r = 0; r < n_rows; r++)
            t->max[r] = -INFINITY;
        memset(t->sum, 0, (size_t)n_rows * sizeof *t->sum);
        memset(t->o, 0, (size_t)(n_rows * t->ld_v) * sizeof *t->o);
    } else if (t->pass == TILE_DQ) {
        memset(t->dq, 0, (size_t)(n_rows * t->ld_qk) * sizeof *t->dq);
    }
}

static void pick_lanes(const attn_tile *t, float *lanes, const float *of_rows)
{
    const int64_t n = t->n_picked * t->group;
    for (int64_t i = 0; i < n; i++)
        lanes[i] = of_rows[t->picked_rows[i]];
    for (int64_t i = n; i < simd_pad(n); i++)
        lanes[i] = 0.0F;
}

void tile_pick(attn_tile *t, const int32_t *list, int64_t n)
{
    t->n_picked = n;
    for (int64_t i = 0; i < n; i++) {
        t->picked[i] = list != NULL ? list[i] : (int32_t)i;
        for (int64_t h = 0; h < t->group; h++)
            t->picked_rows[i * t->group + h] = (int32_t)(t->picked[i] * t->group + h);
    }
    const int64_t lanes = n * t->group;
    if (t->pass != TILE_DKV)
        kernels(t)->transpose(t->q_lanes, t->ld_s, t->q, t->ld_qk, t->picked_rows, lanes, t->p->cfg->d_qk);
    if (t->pass == TILE_FORWARD) {
        pick_lanes(t, t->max_lanes, t->max);
        pick_lanes(t, t->sum_lanes, t->sum);
    } else if (t->pass == TILE_DQ) {
        kernels(t)->transpose(t->d_o_lanes, t->ld_s, t->d_o, t->ld_v, t->picked_rows, lanes, t->p->cfg->d_v);
        pick_lanes(t, t->lse_lanes, t->lse);
        pick_lanes(t, t->delta_lanes, t->delta);
    }
}

void tile_unpick(attn_tile *t)
{
    for (int64_t i = 0; t->pass == TILE_FORWARD && i < t->n_picked * t->group; i++) {
        t->max[t->picked_rows[i]] = t->max_lanes[i];
        t->sum[t->picked_rows[i]] = t->sum_lanes[i];
    }
}

/* ---- Masks ------------------------------------------------------------------------------------------------------- */

static int64_t clamp(int64_t x, int64_t n)
{
    return x < 0 ? 0 : x > n ? n : x;
}

/* What the picked tokens see of a block, from either side. False if it is everything; then the spans are not set. */
static bool mask_block(attn_tile *t, int64_t k0, int64_t n)
{
    const int64_t last = t->n_picked - 1;
    if (t->sees[t->picked[last]].lo <= k0 && t->sees[t->picked[0]].hi >= k0 + n)
        return false;
    for (int64_t i = 0; i <= last; i++) {
        const span sees = t->sees[t->picked[i]];
        const int64_t lo = clamp(sees.lo - k0, n);
        t->keys_of[i] = (span){lo, max_i64(lo, clamp(sees.hi - k0, n))};
    }
    int64_t from = 0, to = 0; /* both ends of what is visible grow with the token */
    for (int64_t j = 0; j < n; j++) {
        while (from <= last && t->keys_of[from].hi <= j)
            from++;
        to = max_i64(to, from);
        while (to <= last && t->keys_of[to].lo <= j)
            to++;
        t->lanes_of[j] = (span){from * t->group, to * t->group};
    }
    return true;
}

/* The n elements of x outside of the span become `value`. */
static void fill_outside(float *x, int64_t n, span inside, float value)
{
    for (int64_t j = 0; j < inside.lo; j++)
        x[j] = value;
    for (int64_t j = inside.hi; j < n; j++)
        x[j] = value;
}

static bool has_nonfinite(const float *x, int64_t ld, int64_t m, int64_t n)
{
    uint32_t found = 0;
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++)
            found |= (uint32_t)((float_bits(x[i * ld + j]) & 0x7f800000U) == 0x7f800000U);
    return found != 0;
}

/* Row by row of the picked tokens, which lie in c: c += W^T b, weights W [key][lane]. */
static void add_to_rows(const attn_tile *t, float *c, int64_t ldc, const float *w, const float *b, int64_t ldb,
                        int64_t n, int64_t d, bool masked)
{
    const bool careful = masked && has_nonfinite(b, ldb, n, d);
    int64_t end = 0;
    for (int64_t i = 0; i < t->n_picked; i = end) { /* tokens side by side, at once */
        end = i + 1;
        while (!careful && end < t->n_picked && t->picked[end] == t->picked[end - 1] + 1)
            end++;
        const span keys = careful ? t->keys_of[i] : (span){0, n};
        kernels(t)->matmul(c + t->picked[i] * t->group * ldc, ldc, w + keys.lo * t->ld_s + i * t->group, 1, t->ld_s,
                           b + keys.lo * ldb, ldb, (end - i) * t->group, d, keys.hi - keys.lo, 1);
    }
}

/* c += W^T b over the tile's rows, weights W [row][key]. */
static void add_to_keys(const attn_tile *t, float *c, int64_t ldc, const float *w, const float *b, int64_t ldb,
                        int64_t n, int64_t d, bool masked)
{
    const int64_t n_rows = t->n_tokens * t->group;
    if (!masked || !has_nonfinite(b, ldb, n_rows, d)) {
        kernels(t)->matmul(c, ldc, w, 1, t->ld_s, b, ldb, n, d, n_rows, 1);
        return;
    }
    for (int64_t j = 0; j < n; j++) {
        const span r = t->lanes_of[j];
        kernels(t)->matmul(c + j * ldc, ldc, w + r.lo * t->ld_s + j, 1, t->ld_s, b + r.lo * ldb, ldb, 1, d, r.hi - r.lo,
                           1);
    }
}

/* ---- Forward ----------------------------------------------------------------------------------------------------- */

static void attend(attn_tile *t, int64_t k0, int64_t n)
{
    const int64_t lanes = t->n_picked * t->group, d_qk = t->p->cfg->d_qk, d_v = t->p->cfg->d_v;
    int64_t ld_k = t->ld_qk;
    const float *k = read_keys(t, &t->k, k0, n, d_qk, t->k_copy, &ld_k);
    kernels(t)->matmul(t->scores, t->ld_s, k, ld_k, 1, t->q_lanes, t->ld_s, n, lanes, d_qk, 0);
    const bool masked = mask_block(t, k0, n);
    for (int64_t j = 0; masked && j < n; j++)
        fill_outside(t->scores + j * t->ld_s, lanes, t->lanes_of[j], -INFINITY);
    kernels(t)->softmax_step(t->scores, t->ld_s, n, lanes, t->scale, t->max_lanes, t->sum_lanes, t->keep_lanes);
    for (int64_t i = 0; i < lanes; i++) {
        const float keep = t->keep_lanes[i];
        float *o = t->o + t->picked_rows[i] * t->ld_v;
        for (int64_t c = 0; keep != 1.0F && c < d_v; c++)
            o[c] *= keep;
    }
    const float *v = copy_keys(t, &t->v, k0, n, d_v, t->v_copy, t->ld_v);
    add_to_rows(t, t->o, t->ld_v, t->scores, v, t->ld_v, n, d_v, masked);
}

static void store_o(const attn_tile *t)
{
    const attn_problem *p = t->p;
    for (int64_t i = 0; i < t->n_tokens; i++) {
        for (int64_t h = 0; h < t->group; h++) {
            const int64_t r = i * t->group + h;
            const bool empty = t->sum[r] == 0.0F;
            const float by = empty ? 0.0F : 1.0F / t->sum[r];
            float *o = t->o + r * t->ld_v;
            for (int64_t c = 0; c < p->cfg->d_v; c++)
                o[c] *= by;
            kernels(t)->store_row(query_at(t, &p->o, i, h), p->o.dtype, o, p->cfg->d_v);
            /* The shift as the kernel rounded it, so that exp(scale*s - lse) gives the same p. */
            const float lse = empty ? -INFINITY : (float)((double)(t->max[r] * t->scale) + log((double)t->sum[r]));
            memcpy(query_at(t, &p->lse, i, h), &lse, sizeof lse);
        }
    }
}

/* ---- Backward ---------------------------------------------------------------------------------------------------- */

static void grad_q(attn_tile *t, int64_t k0, int64_t n)
{
    const int64_t lanes = t->n_picked * t->group, d_qk = t->p->cfg->d_qk, d_v = t->p->cfg->d_v;
    int64_t ld_v = t->ld_v;
    const float *k = copy_keys(t, &t->k, k0, n, d_qk, t->k_copy, t->ld_qk);
    const float *v = read_keys(t, &t->v, k0, n, d_v, t->v_copy, &ld_v);
    kernels(t)->matmul(t->scores, t->ld_s, k, t->ld_qk, 1, t->q_lanes, t->ld_s, n, lanes, d_qk, 0);
    kernels(t)->matmul(t->dp, t->ld_s, v, ld_v, 1, t->d_o_lanes, t->ld_s, n, lanes, d_v, 0);
    kernels(t)->softmax_grad(t->scores, t->dp, t->ld_s, n, lanes, t->scale, t->lse_lanes, t->delta_lanes, 1);
    const bool masked = mask_block(t, k0, n);
    for (int64_t j = 0; masked && j < n; j++)
        fill_outside(t->dp + j * t->ld_s, lanes, t->lanes_of[j], 0.0F);
    add_to_rows(t, t->dq, t->ld_qk, t->dp, k, t->ld_qk, n, d_qk, masked);
}

static void store_dq(const attn_tile *t)
{
    const attn_problem *p = t->p;
    for (int64_t i = 0; i < t->n_tokens; i++)
        for (int64_t h = 0; h < t->group; h++)
            store_row(t, query_at(t, &p->dq, i, h), p->dq.dtype, t->dq + (i * t->group + h) * t->ld_qk, p->cfg->d_qk,
                      p->add_dq);
}

void tile_attend(attn_tile *t, int64_t k0, int64_t n)
{
    if (t->pass == TILE_FORWARD)
        attend(t, k0, n);
    else
        grad_q(t, k0, n);
}

void tile_store(const attn_tile *t)
{
    if (t->pass == TILE_FORWARD)
        store_o(t);
    else
        store_dq(t);
}

void tile_load_keys(attn_tile *t, int64_t k0, int64_t n)
{
    const int64_t d_qk = t->p->cfg->d_qk, d_v = t->p->cfg->d_v;
    copy_keys(t, &t->k, k0, n, d_qk, t->k_copy, t->ld_qk);
    copy_keys(t, &t->v, k0, n, d_v, t->v_copy, t->ld_v);
    kernels(t)->transpose(t->k_lanes, t->ld_s, t->k_copy, t->ld_qk, NULL, n, d_qk);
    kernels(t)->transpose(t->v_lanes, t->ld_s, t->v_copy, t->ld_v, NULL, n, d_v);
    memset(t->dk, 0, (size_t)(n * t->ld_qk) * sizeof *t->dk);
    memset(t->dv, 0, (size_t)(n * t->ld_v) * sizeof *t->dv);
}

void tile_attend_keys(attn_tile *t, int64_t k0, int64_t n)
{
    const int64_t n_rows = t->n_tokens * t->group, d_qk = t->p->cfg->d_qk, d_v = t->p->cfg->d_v;
    /* Only the part of the block that these tokens see. */
    const int64_t from = clamp(t->sees[0].lo - k0, n) / SIMD_PAD * SIMD_PAD;
    const int64_t part = clamp(t->sees[t->n_tokens - 1].hi - k0, n) - from;
    if (part <= 0)
        return;
    kernels(t)->matmul(t->scores, t->ld_s, t->q, t->ld_qk, 1, t->k_lanes + from, t->ld_s, n_rows, part, d_qk, 0);
    kernels(t)->matmul(t->dp, t->ld_s, t->d_o, t->ld_v, 1, t->v_lanes + from, t->ld_s, n_rows, part, d_v, 0);
    kernels(t)->softmax_grad(t->scores, t->dp, t->ld_s, n_rows, part, t->scale, t->lse, t->delta, 0);
    tile_pick(t, NULL, t->n_tokens);
    const bool masked = mask_block(t, k0 + from, part);
    for (int64_t r = 0; masked && r < n_rows; r++) {
        fill_outside(t->scores + r * t->ld_s, part, t->keys_of[r / t->group], 0.0F);
        fill_outside(t->dp + r * t->ld_s, part, t->keys_of[r / t->group], 0.0F);
    }
    add_to_keys(t, t->dk + from * t->ld_qk, t->ld_qk, t->dp, t->q, t->ld_qk, part, d_qk, masked);
    add_to_keys(t, t->dv + from * t->ld_v, t->ld_v, t->scores, t->d_o, t->ld_v, part, d_v, masked);
}

void tile_store_keys(const attn_tile *t, int64_t k0, int64_t n)
{
    const attn_problem *p = t->p;
    for (int64_t j = 0; j < n; j++) {
        store_row(t, key_at(t, &p->dk, &p->k, k0 + j), p->dk.dtype, t->dk + j * t->ld_qk, p->cfg->d_qk, p->add_dk);
        store_row(t, key_at(t, &p->dv, &p->v, k0 + j), p->dv.dtype, t->dv + j * t->ld_v, p->cfg->d_v, p->add_dv);
    }
}
