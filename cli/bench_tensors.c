#include "cli/bench_tensors.h"

#include "lm/arena.h"
#include "lm/error.h"

#include <math.h>
#include <string.h>

/* Tokens in which a clustered query turns by 90 degrees: neighbours then share 83 to 90 % of the blocks that are not
 * forced, whatever the length. */
enum { CLUSTERED_TURN = 10 };

/* ---- The CPU ----------------------------------------------------------------------------------------------------- */

static void *take_here(size_t bytes)
{
    void *p = lm_alloc_zeroed(bytes);
    if (p == NULL)
        (void)lm_out_of_memory("tensors");
    return p;
}

/* Towards zero, and what is below f16's normal range to zero: these are random numbers. */
static uint16_t to_half(float x, nsa_dtype dtype)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    if (dtype == NSA_BF16)
        return (uint16_t)(u >> 16);
    const uint32_t magnitude = u & 0x7fffffffU, bias = (127U - 15U) << 23;
    return (uint16_t)((u >> 16 & 0x8000U) | (magnitude > bias ? (magnitude - bias) >> 13 : 0));
}

static bool fill_here(void *p, nsa_dtype dtype, int64_t count, const bench_random *random)
{
    for (int64_t i = 0; i < count; i++) {
        const float x = bench_number(random, i);
        if (dtype == NSA_F32)
            ((float *)p)[i] = x;
        else
            ((uint16_t *)p)[i] = to_half(x, dtype);
    }
    return true;
}

static bool copy_here(void *to, const void *from, size_t bytes)
{
    memcpy(to, from, bytes);
    return true;
}

const bench_device bench_cpu = {.n_sets = 1,
                                .page_size = 1024,
                                .take = take_here,
                                .release = free,
                                .fill = fill_here,
                                .copy = copy_here,
                                .repeat = bench_repeat};

/* ---- Tensors ----------------------------------------------------------------------------------------------------- */

void *bench_take(bench_tensors *m, int64_t count, size_t size)
{
    void *p = m->n_buffers < BENCH_MAX_BUFFERS ? m->device->take(size_of(count, size)) : NULL;
    if (p == NULL) {
        m->out_of_memory = true;
        return NULL;
    }
    return m->buffers[m->n_buffers++] = p;
}

/* `count` elements as they are `here`, which is freed; NULL: there was no memory for it. */
static void *take_copy(bench_tensors *m, int64_t count, size_t size, void *here)
{
    void *p = bench_take(m, count, size);
    if (here == NULL)
        (void)lm_out_of_memory("tensors");
    if (here == NULL || p == NULL || !m->device->copy(p, here, size_of(count, size)))
        m->out_of_memory = true;
    free(here);
    return p;
}

int32_t *bench_take_cu(bench_tensors *m, int32_t n, int32_t step)
{
    const int64_t count = i64_add(n, 1);
    int32_t *here = lm_alloc_zeroed(size_of(count, sizeof *here));
    for (int32_t s = 0; here != NULL && s <= n; s++)
        here[s] = s * step;
    return take_copy(m, count, sizeof *here, here);
}

void bench_tensors_free(bench_tensors *m)
{
    for (int i = 0; i < m->n_buffers; i++)
        m->device->release(m->buffers[i]);
    m->n_buffers = 0;
}

size_t bench_element_size(nsa_dtype dtype)
{
    return dtype == NSA_BF16 || dtype == NSA_F16 ? 2 : 4;
}

/* The seed goes on, as if the numbers had been drawn one by one. */
static void *take_random(bench_tensors *m, int64_t count, nsa_dtype dtype, bench_random random)
{
    void *p = bench_take(m, count, bench_element_size(dtype));
    random.seed = m->random;
    m->random += (uint64_t)count * 0x9e3779b97f4a7c15U;
    if (p != NULL && !m->device->fill(p, dtype, count, &random))
        m->out_of_memory = true;
    return p;
}

nsa_tensor bench_tensor(bench_tensors *m, int64_t rows, nsa_dtype dtype, int32_t heads, int32_t d)
{
    return nsa_packed(bench_take(m, i64_mul(i64_mul(rows, heads), d), bench_element_size(dtype)), dtype, heads, d);
}

nsa_tensor bench_random_tensor(bench_tensors *m, int64_t rows, nsa_dtype dtype, int32_t heads, int32_t d)
{
    const bench_random normal = {.scale = 1};
    return nsa_packed(take_random(m, i64_mul(i64_mul(rows, heads), d), dtype, normal), dtype, heads, d);
}

nsa_tensor bench_random_q(bench_tensors *m, int64_t rows, const bench_shape *shape)
{
    const int32_t heads = shape->cfg.n_heads_q, d = shape->cfg.d_qk;
    const bench_random normal = {.scale = 1, .turn = shape->clustered ? CLUSTERED_TURN : 0, .row = (int64_t)heads * d};
    return nsa_packed(take_random(m, i64_mul(rows, normal.row), shape->dtype, normal), shape->dtype, heads, d);
}

nsa_tensor bench_random_gate(bench_tensors *m, int64_t rows, int32_t heads)
{
    const bench_random uniform = {.uniform = true, .scale = 1};
    return nsa_packed(take_random(m, i64_mul(rows, (int64_t)heads * 3), NSA_F32, uniform), NSA_F32, heads, 3);
}

void bench_make_phi(bench_tensors *m, const bench_shape *shape, int32_t d, nsa_phi *phi, nsa_phi *dphi)
{
    const int64_t block = shape->cfg.cmp_block, flat = block * d;
    const struct {
        int64_t pe, w1, b1, w2, b2;
    } sizes[] = {
        [NSA_PHI_MEAN] = {0},
        [NSA_PHI_LINEAR] = {flat, flat * d, 0, 0, 0},
        [NSA_PHI_GATED_TOKEN] = {0, d, block, 0, 0},
        [NSA_PHI_GATED_CHANNEL] = {0, (int64_t)d * d, flat, 0, 0},
        [NSA_PHI_MLP] = {flat, flat * d, d, (int64_t)d * d, d},
    };
    const nsa_phi_kind kind = shape->phi;
    nsa_phi unused;
    const bool gradients = dphi != NULL;
    dphi = gradients ? dphi : &unused;
    *phi = *dphi = (nsa_phi){.kind = kind, .dtype = NSA_F32, .d_hidden = kind == NSA_PHI_MLP ? d : 0};
    const int64_t count[] = {sizes[kind].pe, sizes[kind].w1, sizes[kind].b1, sizes[kind].w2, sizes[kind].b2};
    void **value[] = {&phi->pe, &phi->w1, &phi->b1, &phi->w2, &phi->b2};
    void **gradient[] = {&dphi->pe, &dphi->w1, &dphi->b1, &dphi->w2, &dphi->b2};
    for (int i = 0; i < 5; i++) {
        if (count[i] == 0)
            continue;
        *value[i] = take_random(m, count[i], NSA_F32, (bench_random){.scale = 1 / sqrtf((float)(count[i] / d + 1))});
        if (gradients)
            *gradient[i] = bench_take(m, count[i], sizeof(float));
    }
}

static void **take_states(bench_tensors *m, const bench_caches *c, int32_t n)
{
    void **here = lm_alloc_zeroed(size_of(n, sizeof *here));
    for (int32_t s = 0; here != NULL && s < n; s++)
        here[s] = bench_state(c, s);
    return take_copy(m, n, sizeof *here, here);
}

nsa_status bench_make_caches(bench_tensors *m, const nsa_ctx *ctx, const bench_shape *shape, int32_t n,
                             bench_caches *caches)
{
    bench_caches *c = caches;
    const int32_t page_size = m->device->page_size;
    c->pages_per_seq = shape->seqlen / page_size + 1;
    c->pool = (nsa_cache){.page_size = page_size,
                          .max_draft = 1,
                          .shared_kv = shape->shared_kv,
                          .dtype = shape->dtype,
                          .n_pages = (int64_t)n * c->pages_per_seq};
    nsa_status status = nsa_cache_page_bytes(ctx, &shape->cfg, &c->pool, &c->page_bytes);
    if (status == NSA_OK)
        status = nsa_cache_state_bytes(ctx, &shape->cfg, &c->pool, &c->state_bytes);
    if (status != NSA_OK)
        return status;
    c->state_bytes = size_round_up(c->state_bytes, LM_ALIGN);
    c->pool.pages = bench_take(m, c->pool.n_pages, c->page_bytes);
    c->first_state = bench_take(m, n, c->state_bytes);
    c->states = take_states(m, c, n);
    c->table = bench_take_cu(m, n * c->pages_per_seq - 1, 1); /* page i is page i */
    if (m->out_of_memory)
        return NSA_ERR_OUT_OF_MEMORY;
    for (int32_t s = 0; s < n && status == NSA_OK; s++)
        status = nsa_cache_reset(ctx, &shape->cfg, &c->pool, bench_state(c, s), m->device->stream);
    return status;
}
