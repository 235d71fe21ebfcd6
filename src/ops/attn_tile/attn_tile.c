#include "ops/attn_tile/attn_tile.h"

#include <math.h>
#include <omp.h>
#include <sched.h>
#include <stdatomic.h>

bool tile_supports(const attn_problem *p)
{
    return !p->ctx->cuda && !p->ctx->reference && p->q.dtype != NSA_F64 && p->dq.dtype != NSA_F64 &&
           p->dk.dtype != NSA_F64 && p->dv.dtype != NSA_F64;
}

int64_t tile_lane_tokens(const attn_problem *p)
{
    return max_i64(1, TILE_ROWS / config_group(p->cfg));
}

/* ---- Scratch of a thread ----------------------------------------------------------------------------------------- */

static float *floats(arena *a, int64_t n, int64_t ld)
{
    return arena_take(a, n, (size_t)ld * sizeof(float));
}

static int64_t most_blocks(const key_blocks *keys)
{
    int64_t most = 0;
    for (int32_t s = 0; s < keys->p->seqs.n; s++) /* while counting of_seq is not there */
        most = max_i64(most, key_blocks_seen(keys, s).hi - key_blocks_seen(keys, s).lo);
    return most;
}

static attn_tile carve(const tile_run *run, const key_blocks *keys, bool shared, arena *a)
{
    const attn_problem *p = run->p;
    const int64_t group = config_group(p->cfg), tile_rows = run->tokens * group;
    const int64_t tokens = min_i64(tile_lane_tokens(p), run->tokens), at_work = tokens * group;
    attn_tile t = {.p = p,
                   .run = run,
                   .keys = keys,
                   .attn = keys->attn,
                   .scale = (float)config_scale(p->cfg),
                   .group = group,
                   .ld_q = simd_pad(keys->units_qk),
                   .ld_do = simd_pad(keys->units_v),
                   .members = 1,
                   .v_columns = p->cfg->d_v};
    t.sees = arena_take(a, run->tokens, sizeof *t.sees);
    t.picked = arena_take(a, tokens, sizeof *t.picked);
    t.picked_rows = arena_take(a, at_work, sizeof *t.picked_rows);
    t.spans = arena_take(a, at_work, sizeof *t.spans);
    t.scores = floats(a, at_work, KEY_BLOCK);
    t.own_block = arena_take(a, 1, keys->bytes);
    t.scratch =
        floats(a, max_i64(keys->lanes, max_i64(at_work + 1, INT64_C(3) * SIMD_PAD)), max_i64(keys->ld_k, keys->ld_v));
    if (run->finish != NULL && !shared)
        t.kept = floats(a, most_blocks(keys), tile_rows * KEY_BLOCK);
    t.q = floats(a, tile_rows, t.ld_q);
    if (!keys->ahead || run->pass == TILE_BACKWARD)
        t.q_apart = floats(a, at_work + 1, t.ld_q); /* an odd last row pairs with zeros */
    if (!keys->ahead) {
        t.q_lanes = floats(a, keys->units_qk, simd_pad(at_work));
        t.scores_t = floats(a, keys->lanes, simd_pad(at_work));
    }
    if (run->pass == TILE_FORWARD) {
        t.max = floats(a, tile_rows, 1);
        t.sum = floats(a, tile_rows, 1);
        t.acc = floats(a, tile_rows, keys->ld_v);
        t.keep = floats(a, at_work, 1);
        t.prob = floats(a, at_work, KEY_BLOCK);
    } else if (run->pass == TILE_BACKWARD) {
        t.lse = floats(a, tile_rows, 1);
        t.delta = floats(a, tile_rows, 1);
        t.gate = floats(a, tile_rows, 1);
        t.acc = floats(a, tile_rows, keys->ld_k);
        t.d_o = floats(a, tile_rows, t.ld_do);
        t.do_apart = floats(a, at_work + 1, t.ld_do);
        t.row_lse = floats(a, at_work, 1);
        t.row_delta = floats(a, at_work, 1);
        t.row_gate = floats(a, at_work, 1);
        t.dp = floats(a, at_work, KEY_BLOCK);
        t.ds = floats(a, at_work, KEY_BLOCK);
        t.prob = floats(a, at_work, KEY_BLOCK);
        if (keys->attn->pack > 1) {
            t.ds_t = floats(a, at_work, KEY_BLOCK);
            t.q_pairs = floats(a, at_work, keys->ld_k);
            t.do_pairs = floats(a, at_work, keys->ld_v);
        }
    }
    return t;
}

/* ---- Masks ------------------------------------------------------------------------------------------------------- */

/* The part of a block that those at work see, from a multiple of SIMD_PAD units on: a block of its own. */
typedef struct view {
    key_block block;
    int64_t skipped; /* keys before it */
    int64_t end;     /* no row sees a key of it from here on */
    int64_t width;   /* end, padded */
    int64_t lanes;   /* keys that are packed, zeros included */
    bool masked;     /* some row does not see some column below width */
} view;

static int32_t clamp(int64_t x, int64_t n)
{
    return (int32_t)(x < 0 ? 0 : x > n ? n : x);
}

static const float *skip(const float *form, int64_t n)
{
    return form == NULL ? NULL : form + n;
}

static view look_at(attn_tile *t, key_block block)
{
    const int64_t n_picked = t->n_picked, pack = t->attn->pack;
    view v = {.block = block};
    const int64_t step = SIMD_PAD * pack; /* so that sums over keys go in the same steps whatever is skipped */
    v.skipped = (int64_t)clamp(t->sees[t->picked[0]].lo - block.first, block.n) / step * step;
    v.lanes = t->keys->lanes - v.skipped;
    v.block.first += v.skipped;
    v.block.n -= v.skipped;
    v.block.k_lanes = skip(block.k_lanes, v.skipped);
    v.block.v_lanes = skip(block.v_lanes, v.skipped);
    v.block.k_rows = skip(block.k_rows, v.skipped / pack * t->keys->ld_k);
    v.block.v_rows = skip(block.v_rows, v.skipped / pack * block.ld_v);
    v.block.k_units = skip(block.k_units, v.skipped * block.ld_units);
    int64_t all_from = 0, all_to = KEY_BLOCK;
    for (int64_t i = 0; i < n_picked; i++) {
        const span sees = t->sees[t->picked[i]];
        const int32_t lo = clamp(sees.lo - v.block.first, v.block.n), hi = clamp(sees.hi - v.block.first, v.block.n);
        for (int64_t h = 0; h < t->group; h++)
            t->spans[i * t->group + h] = (simd_span){lo, hi > lo ? hi : lo};
        all_from = max_i64(all_from, lo);
        all_to = min_i64(all_to, hi);
        v.end = max_i64(v.end, hi);
    }
    v.width = simd_pad(v.end);
    v.masked = all_from > 0 || all_to < v.width;
    return v;
}

/* Packed rows x [n/pack][ld], zeros for those outside of the span: into y. */
static const float *only_rows(const attn_tile *t, float *y, const float *x, int64_t n, int64_t ld, simd_span only)
{
    const int64_t pack = t->attn->pack;
    for (int64_t i = 0; i < n; i += pack) {
        uint32_t mask = 0;
        for (int64_t e = 0; e < pack; e++)
            if (i + e >= only.lo && i + e < only.hi)
                mask |= (pack == 1 ? 0xffffffffU : 0xffffU) << 16 * e;
        for (int64_t c = 0; c < ld; c++)
            y[i / pack * ld + c] = bits_float(float_bits(x[i / pack * ld + c]) & mask);
    }
    return y;
}

static bool nonfinite(const attn_tile *t, const float *x, int64_t n, int64_t ld)
{
    return t->p->ctx->simd->has_nonfinite(x, n / t->attn->pack * ld, t->attn->pack) != 0;
}

static int64_t units_of(const attn_tile *t, int64_t n)
{
    return (n + t->attn->pack - 1) / t->attn->pack;
}

/* x adds to all rows at work a product with the block's rows, x->b. */
static void add_to_rows(const attn_tile *t, simd_product x, const view *v)
{
    x.c_rows = t->picked_rows;
    x.m = t->n_picked * t->group;
    x.k = units_of(t, v->end);
    if (!v->masked || !nonfinite(t, x.b, v->lanes, x.ldb)) {
        t->attn->product(&x);
        return;
    }
    const float *all = x.b;
    x.m = t->group;
    for (int64_t i = 0; i < t->n_picked; i++) {
        x.b = only_rows(t, t->scratch, all, v->lanes, x.ldb, t->spans[i * t->group]);
        t->attn->product(&x);
        x.c_rows += t->group;
        x.a += t->group * x.a_row;
        x.keep = x.keep == NULL ? NULL : x.keep + t->group;
    }
}

/* x adds to the block's keys a product with the rows at work, x->b. */
static void add_to_keys(const attn_tile *t, simd_product x, const view *v)
{
    const int64_t n_rows = units_of(t, t->n_picked * t->group) * t->attn->pack;
    x.add = 1;
    x.a_row = 1;
    x.a_col = KEY_BLOCK;
    x.m = v->end;
    x.k = n_rows / t->attn->pack;
    if (!v->masked || !nonfinite(t, x.b, n_rows, x.ldb)) {
        t->attn->product(&x);
        return;
    }
    const float *all = x.b;
    x.m = 1;
    int64_t from = 0,
            to = 0; /* both ends of what is visible grow with the token, so those that see a key stand together */
    for (int64_t j = 0; j < v->end; j++) {
        while (from < t->n_picked && t->spans[from * t->group].hi <= j)
            from++;
        to = max_i64(to, from);
        while (to < t->n_picked && t->spans[to * t->group].lo <= j)
            to++;
        x.b = only_rows(t, t->scratch, all, n_rows, x.ldb,
                        (simd_span){(int32_t)(from * t->group), (int32_t)(to * t->group)});
        t->attn->product(&x);
        x.c += x.ldc;
        x.a++;
    }
}

/* ---- A block ----------------------------------------------------------------------------------------------------- */

static simd_product with_lanes(attn_tile *t, float *s, const float *a, int64_t ld, const float *lanes, int64_t units,
                               const view *v)
{
    return (simd_product){.c = s,
                          .ldc = KEY_BLOCK,
                          .a = a,
                          .a_row = ld,
                          .a_col = 1,
                          .a_rows = t->picked_rows,
                          .b = lanes,
                          .ldb = t->keys->lanes,
                          .m = t->n_picked * t->group,
                          .n = v->width,
                          .k = units,
                          .ahead = &t->ahead[0]};
}

/* s = q k^T, or, of keys that are not packed, (k q^T)^T: the same sums. */
static void score(attn_tile *t, const view *v, float *s)
{
    if (v->block.k_units == NULL) {
        const simd_product qk = with_lanes(t, s, t->q, t->ld_q, v->block.k_lanes, t->keys->units_qk, v);
        t->attn->product(&qk);
        return;
    }
    const int64_t m = t->n_picked * t->group;
    t->attn->product(&(simd_product){.c = t->scores_t,
                                     .ldc = simd_pad(m),
                                     .a = v->block.k_units,
                                     .a_row = v->block.ld_units,
                                     .a_col = 1,
                                     .b = t->q_lanes,
                                     .ldb = simd_pad(m),
                                     .m = v->width,
                                     .n = m,
                                     .k = t->keys->units_qk,
                                     .ahead = &t->ahead[0]});
    t->p->ctx->simd->transpose(s, KEY_BLOCK, t->scores_t, simd_pad(m), v->width, m);
}

static void forward(attn_tile *t, const view *v, const float *s)
{
    t->attn->softmax(&(simd_softmax){.s = s,
                                     .ld_s = KEY_BLOCK,
                                     .p = t->prob,
                                     .ld_p = KEY_BLOCK,
                                     .m = t->n_picked * t->group,
                                     .n = v->width,
                                     .sees = v->masked ? t->spans : NULL,
                                     .rows = t->picked_rows,
                                     .scale = t->scale,
                                     .max = t->max,
                                     .sum = t->sum,
                                     .keep = t->keep});
    add_to_rows(t,
                (simd_product){.c = t->acc,
                               .ldc = t->keys->ld_v,
                               .keep = t->keep,
                               .a = t->prob,
                               .a_row = KEY_BLOCK,
                               .a_col = 1,
                               .b = v->block.v_rows,
                               .ldb = v->block.ld_v,
                               .n = t->v_columns,
                               .ahead = &t->ahead[1]},
                v);
}

static void backward(attn_tile *t, const view *v, int64_t number)
{
    const key_blocks *keys = t->keys;
    const simd_product dp = with_lanes(t, t->dp, t->d_o, t->ld_do, v->block.v_lanes, keys->units_v, v);
    t->attn->product(&dp);
    t->attn->softmax_grad(&(simd_softmax_grad){.s = t->scores,
                                               .dp = t->dp,
                                               .ld_s = KEY_BLOCK,
                                               .m = t->n_picked * t->group,
                                               .n = v->width,
                                               .sees = v->masked ? t->spans : NULL,
                                               .lse = t->row_lse,
                                               .delta = t->row_delta,
                                               .gate = t->row_gate,
                                               .scale = t->scale,
                                               .ds = t->ds,
                                               .ds_t = t->ds_t,
                                               .p_t = t->prob});
    add_to_rows(t,
                (simd_product){.c = t->acc,
                               .ldc = keys->ld_k,
                               .add = 1,
                               .a = t->ds,
                               .a_row = KEY_BLOCK,
                               .a_col = 1,
                               .b = v->block.k_rows,
                               .ldb = keys->ld_k,
                               .n = t->p->cfg->d_qk,
                               .ahead = &t->ahead[1]},
                v);
    const bool pairs = t->attn->pack > 1;
    const int64_t key = (t->head * keys->n_blocks + number) * keys->lanes + v->skipped;
    add_to_keys(t,
                (simd_product){.c = t->dk + key * keys->ld_k,
                               .ldc = keys->ld_k,
                               .a = pairs ? t->ds_t : t->ds,
                               .b = pairs ? t->q_pairs : t->q_rows,
                               .ldb = pairs ? keys->ld_k : t->ld_q,
                               .n = t->p->cfg->d_qk},
                v);
    add_to_keys(t,
                (simd_product){.c = t->dv + key * keys->ld_v,
                               .ldc = keys->ld_v,
                               .a = t->prob,
                               .b = pairs ? t->do_pairs : t->do_rows,
                               .ldb = pairs ? keys->ld_v : t->ld_do,
                               .n = t->p->cfg->d_v},
                v);
}

void tile_attend(attn_tile *t, int64_t b, int64_t next)
{
    enum { IN_A_ROW = 4 }; /* blocks of a member, so that it can fetch the next one of its own */
    const int64_t number = t->attended++;
    if (t->step == STEP_SCORES && number / IN_A_ROW % t->members != t->member)
        return;
    key_block_ahead(t->keys, t->s, t->head, &t->k, &t->v, next, t->ahead);
    const key_parts wanted = {t->step != STEP_VALUES, t->step != STEP_SCORES ? t->v_columns : 0};
    const view v = look_at(t, key_block_get(t->keys, t->s, t->head, &t->k, &t->v, b, wanted, t->own_block, t->scratch));
    if (v.end == 0)
        return;
    float *s = t->scores;
    if (t->kept != NULL)
        s = t->kept + (t->run->finish != NULL ? b - t->kept_from : number) * t->n_tokens * t->group * KEY_BLOCK +
            v.skipped;
    if (t->step != STEP_VALUES)
        score(t, &v, s);
    if (t->step == STEP_SCORES)
        return;
    if (t->run->pass == TILE_FORWARD)
        forward(t, &v, s);
    else if (t->run->pass == TILE_BACKWARD)
        backward(t, &v, t->keys->of_seq[t->s].start + b - t->keys->of_seq[t->s].lo);
}

/* ---- Results ----------------------------------------------------------------------------------------------------- */

static void store_row(const attn_tile *t, void *dst, nsa_dtype dtype, float *x, int64_t n, bool add)
{
    const simd_kernels *simd = t->p->ctx->simd;
    if (add) {
        simd->load_row(t->scratch, dst, dtype, n);
        for (int64_t c = 0; c < n; c++)
            x[c] += t->scratch[c];
    }
    simd->store_row(dst, dtype, x, n);
}

static void store_o(attn_tile *t)
{
    const attn_problem *p = t->p;
    for (int64_t r = 0; r < t->n_tokens * t->group; r++) {
        const int64_t token = r / t->group, h = r % t->group;
        const bool empty = t->sum[r] == 0.0F;
        const float by = empty ? 0.0F : 1.0F / t->sum[r];
        float *o = t->acc + r * t->keys->ld_v;
        for (int64_t c = 0; c < t->v_columns; c++)
            o[c] *= by;
        p->ctx->simd->store_row(dtype_at_mut(tile_query_at(t, &p->o, token, h), p->o.dtype, t->v_from), p->o.dtype, o,
                                t->v_columns);
        if (t->member > 0)
            continue;
        /* The shift as the kernel rounded it, so that exp(scale*s - lse) gives the same p. */
        const float lse = empty ? -INFINITY : (float)((double)(t->max[r] * t->scale) + log((double)t->sum[r]));
        memcpy(tile_query_at(t, &p->lse, token, h), &lse, sizeof lse);
    }
}

static void store_dq(attn_tile *t)
{
    const attn_problem *p = t->p;
    for (int64_t r = 0; r < t->n_tokens * t->group; r++)
        store_row(t, tile_query_at(t, &p->dq, r / t->group, r % t->group), p->dq.dtype, t->acc + r * t->keys->ld_k,
                  p->cfg->d_qk, p->add_dq);
}

/* dk and dv of the i-th block of n_blocks * n_heads_kv. */
static void store_keys(attn_tile *t, int64_t i)
{
    const attn_problem *p = t->p;
    const key_blocks *keys = t->keys;
    const int32_t head = (int32_t)(i / keys->n_blocks);
    int32_t s;
    int64_t b;
    key_blocks_find(keys, i % keys->n_blocks, &s, &b);
    const int64_t first = first_key(keys, b), n = min_i64(keys_in_block(keys, b), key_blocks_keys(keys, s).hi - first);
    for (int64_t j = max_i64(0, -first); j < n; j++) {
        const int64_t row = i * keys->lanes + j;
        store_row(t, tensor_at(&p->dk, s, p->k.cu[s] / p->k.start_div, first + j, head), p->dk.dtype,
                  t->dk + row * keys->ld_k, p->cfg->d_qk, p->add_dk);
        store_row(t, tensor_at(&p->dv, s, p->v.cu[s] / p->v.start_div, first + j, head), p->dv.dtype,
                  t->dv + row * keys->ld_v, p->cfg->d_v, p->add_dv);
    }
}

/* ---- Turns ------------------------------------------------------------------------------------------------------- */

/* The tile before took its number earlier, so some thread is at work on it: waiting ends. */
static void wait_for(const _Atomic int64_t *turn, int64_t blocks)
{
    enum { SPINS = 1000 };
    for (int spin = 0; atomic_load_explicit(turn, memory_order_acquire) < blocks; spin++)
        if (spin >= SPINS)
            sched_yield();
}

void tile_wait_turn(attn_tile *t, int64_t block)
{
    if (t->turn_before != NULL)
        wait_for(t->turn_before, block + 1);
}

void tile_pass_turn(attn_tile *t, int64_t block)
{
    atomic_store_explicit(t->turn, block + 1, memory_order_release);
}

static void end_turns(attn_tile *t)
{
    if (t->turn_before != NULL)
        wait_for(t->turn_before, INT64_MAX);
    atomic_store_explicit(t->turn, INT64_MAX, memory_order_release);
}

/* ---- Running ----------------------------------------------------------------------------------------------------- */

typedef struct work {
    const tile_run *run;
    key_blocks keys;
    int64_t tiles, units; /* tiles of all sequences, times kv heads */
    int64_t members;      /* threads that share a tile */
    float *kept;          /* [sequences times kv heads][kept_floats] scores of shared tiles */
    int64_t kept_floats;
    float *dk, *dv;
    _Atomic int64_t *turns; /* [units] */
    _Atomic int64_t next;
    char *scratch, *extra;
    size_t scratch_bytes;
} work;

/* Forward goes through one kv head after the other, so that its keys stay in the cache, and begins at the last tokens,
 * which see the most. Backward goes upwards, for the sake of turns, and takes the heads in turn: they wait less. */
static bool begin(attn_tile *t, work *w, int64_t unit)
{
    const attn_problem *p = t->p;
    const int64_t heads = p->cfg->n_heads_kv;
    const bool up = w->run->pass == TILE_BACKWARD;
    const int64_t tile = up ? unit / heads : w->tiles - 1 - unit % w->tiles;
    const int32_t head = (int32_t)(up ? unit % heads : unit / w->tiles);
    int32_t s = 0;
    int64_t first = 0;
    if (!tile_at(p->seqs.cu_q, p->seqs.n, w->run->tokens, tile, &s, &first))
        return false;
    tile_enter(t, s, head);
    tile_load(t, first, min_i64(w->run->tokens, t->seq.t_q - first));
    if (up) {
        t->turn = &w->turns[unit];
        t->turn_before = first > 0 ? &w->turns[unit - heads] : NULL;
    }
    return true;
}

static void do_unit(attn_tile *t, work *w, int64_t unit, void *extra)
{
    if (!begin(t, w, unit))
        return;
    w->run->walk(t, extra);
    if (w->run->pass == TILE_FORWARD)
        store_o(t);
    if (w->run->finish != NULL)
        w->run->finish(t, extra);
    if (w->run->pass == TILE_BACKWARD) {
        end_turns(t);
        store_dq(t);
    }
}

/* Columns of values are dealt out by PIECE; a member that takes less than WORTH rows times blocks is not worth waiting
 * for. */
enum { PIECE = 2 * SIMD_PAD, WORTH = 32 };

/* Where threads outnumber tiles, and all tokens of a sequence are at work together: how many share a tile, and its
 * scores. */
static void share(work *w, int64_t longest, arena *ws)
{
    const tile_run *run = w->run;
    const attn_problem *p = run->p;
    const int64_t tiles = p->seqs.n * (int64_t)p->cfg->n_heads_kv, n_rows = run->tokens * config_group(p->cfg);
    int64_t blocks = most_blocks(&w->keys);
    if (run->token_blocks > 0)
        blocks = min_i64(blocks, run->token_blocks * run->tokens);
    w->members = 1;
    if (w->keys.ahead || longest > tile_lane_tokens(p) || tiles == 0)
        return;
    const int64_t members =
        min_i64(p->ctx->n_threads / tiles, min_i64((p->cfg->d_v + PIECE - 1) / PIECE, blocks * n_rows / WORTH));
    if (members < 2)
        return;
    w->members = members;
    w->kept_floats = blocks * n_rows * KEY_BLOCK;
    w->kept = arena_take(ws, i64_mul(tiles, w->kept_floats), sizeof *w->kept);
}

static void take_part(attn_tile *t, int64_t member, int64_t members)
{
    const int64_t d_v = t->p->cfg->d_v, pieces = (d_v + PIECE - 1) / PIECE;
    t->member = member;
    t->members = members;
    t->v_from = pieces * member / members * PIECE;
    t->v_columns = min_i64(d_v, pieces * (member + 1) / members * PIECE) - t->v_from;
}

static void walk_step(attn_tile *t, tile_step step, void *extra)
{
    t->step = step;
    t->attended = 0;
    t->run->walk(t, extra);
}

/* By teams of threads, a tile each, one of every sequence and kv head. Called by all threads. */
static void run_shared(attn_tile *t, const work *w, void *extra)
{
    const attn_problem *p = w->run->p;
    const int64_t threads = omp_get_num_threads(), members = min_i64(w->members, threads), teams = threads / members;
    const int64_t team = omp_get_thread_num() / members, n_seqs = p->seqs.n, units = n_seqs * p->cfg->n_heads_kv;
    take_part(t, omp_get_thread_num() % members, members);
    t->kept = w->kept + min_i64(team, teams - 1) * w->kept_floats;
    for (int64_t first = 0; first < units; first += teams) {
        const int64_t unit = first + team;
        if (first > 0) { /* the scores of the round before are read no more */
#pragma omp barrier
        }
        bool works = team < teams && unit < units;
        if (works) {
            tile_enter(t, (int32_t)(unit % n_seqs), (int32_t)(unit / n_seqs));
            works = t->seq.t_q > 0;
        }
        if (works) {
            tile_load(t, 0, t->seq.t_q);
            walk_step(t, STEP_SCORES, extra);
        }
#pragma omp barrier
        if (works) {
            if (w->run->pass == TILE_FORWARD) {
                walk_step(t, STEP_VALUES, extra);
                store_o(t);
            }
            if (w->run->finish != NULL && t->member == 0)
                w->run->finish(t, extra);
        }
    }
}

static void run_threads(work *w)
{
    const nsa_ctx *ctx = w->run->p->ctx;
    const int64_t n_keys = w->keys.n_blocks * w->run->p->cfg->n_heads_kv;
    const bool backward = w->run->pass == TILE_BACKWARD;
    const int64_t shared = w->members * w->run->p->seqs.n * w->run->p->cfg->n_heads_kv;
    const int64_t n = w->members > 1 ? shared : max_i64(w->units, backward ? n_keys : 1);
    atomic_init(&w->next, 0);
#pragma omp parallel num_threads((int)min_i64(ctx->n_threads, max_i64(1, n)))
    {
        const size_t thread = (size_t)omp_get_thread_num();
        arena own = {.base = w->scratch + thread * w->scratch_bytes};
        attn_tile t = carve(w->run, &w->keys, w->members > 1, &own);
        t.dk = w->dk;
        t.dv = w->dv;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < (w->keys.ahead ? n_keys : 0); i++)
            key_blocks_pack(&w->keys, i, t.scratch);
        if (backward) {
#pragma omp for schedule(static)
            for (int64_t i = 0; i < n_keys; i++) {
                memset(w->dk + i * w->keys.lanes * w->keys.ld_k, 0,
                       (size_t)(w->keys.lanes * w->keys.ld_k) * sizeof *w->dk);
                memset(w->dv + i * w->keys.lanes * w->keys.ld_v, 0,
                       (size_t)(w->keys.lanes * w->keys.ld_v) * sizeof *w->dv);
            }
#pragma omp for schedule(static)
            for (int64_t i = 0; i < w->units; i++)
                atomic_init(&w->turns[i], 0);
        }
        if (w->members > 1)
            run_shared(&t, w, w->extra + thread * w->run->extra_bytes);
        else
            for (int64_t unit; (unit = atomic_fetch_add(&w->next, 1)) < w->units;)
                do_unit(&t, w, unit, w->extra + thread * w->run->extra_bytes);
        if (backward) {
#pragma omp barrier
#pragma omp for schedule(static)
            for (int64_t i = 0; i < n_keys; i++)
                store_keys(&t, i);
        }
        if (ctx->simd->release != NULL)
            ctx->simd->release();
    }
}

void tile_run_all(const tile_run *given, arena *ws)
{
    const attn_problem *p = given->p;
    const int64_t heads = p->cfg->n_heads_kv;
    int64_t longest = 1;
    for (int32_t s = 0; s < p->seqs.n; s++)
        longest = max_i64(longest, seq_at(&p->seqs, s).t_q);
    tile_run run = *given;
    run.tokens = min_i64(run.tokens, longest);
    work w = {.run = &run, .tiles = n_tiles(p->seqs.total_q, p->seqs.n, run.tokens)};
    w.units = w.tiles * heads;
    /* Packed ahead if, on average, more than one tile of a sequence reads its keys. */
    const bool ahead = run.pass == TILE_BACKWARD || p->seqs.total_q > p->seqs.n * tile_lane_tokens(p);
    w.keys = key_blocks_carve(p, run.pass, run.visible, run.period, ahead, ws);
    if (run.pass == TILE_BACKWARD) {
        w.dk = floats(ws, w.keys.n_blocks * heads, w.keys.lanes * w.keys.ld_k);
        w.dv = floats(ws, w.keys.n_blocks * heads, w.keys.lanes * w.keys.ld_v);
        w.turns = arena_take(ws, w.units, sizeof *w.turns);
    }
    share(&w, longest, ws);
    arena one = {.base = NULL};
    carve(&run, &w.keys, w.members > 1, &one);
    w.scratch_bytes = one.peak;
    w.extra = arena_take(ws, p->ctx->n_threads, run.extra_bytes);
    w.scratch = arena_take(ws, p->ctx->n_threads, one.peak);
    if (!arena_counts(ws))
        run_threads(&w);
}
