#include "cli/bench_tensors.h"

#include "lm/arena.h"

#include <math.h>
#include <string.h>

void *bench_take(bench_tensors *m, int64_t count, size_t size)
{
    void *p = m->n_buffers < BENCH_MAX_BUFFERS ? lm_alloc_zeroed(size_of(count, size)) : NULL;
    if (p == NULL) {
        m->out_of_memory = true;
        return NULL;
    }
    return m->buffers[m->n_buffers++] = p;
}

void bench_tensors_free(bench_tensors *m)
{
    for (int i = 0; i < m->n_buffers; i++)
        free(m->buffers[i]);
    m->n_buffers = 0;
}

size_t bench_element_size(nsa_dtype dtype)
{
    return dtype == NSA_BF16 || dtype == NSA_F16 ? 2 : 4;
}

/* Uniform in [-1, 1) (splitmix64). */
static float uniform(bench_tensors *m)
{
    uint64_t z = m->random += 0x9e3779b97f4a7c15U;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9U;
    z = (z ^ z >> 27) * 0x94d049bb133111ebU;
    return (float)((double)(z >> 40) / (1 << 23) - 1);
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

static void *take_random(bench_tensors *m, int64_t count, nsa_dtype dtype, float scale, float offset)
{
    void *p = bench_take(m, count, bench_element_size(dtype));
    for (int64_t i = 0; p != NULL && i < count; i++) {
        const float x = offset + scale * uniform(m);
        if (dtype == NSA_F32)
            ((float *)p)[i] = x;
        else
            ((uint16_t *)p)[i] = to_half(x, dtype);
    }
    return p;
}

nsa_tensor bench_tensor(bench_tensors *m, int64_t rows, nsa_dtype dtype, int32_t heads, int32_t d)
{
    return nsa_packed(bench_take(m, i64_mul(i64_mul(rows, heads), d), bench_element_size(dtype)), dtype, heads, d);
}

nsa_tensor bench_random_tensor(bench_tensors *m, int64_t rows, nsa_dtype dtype, int32_t heads, int32_t d)
{
    return nsa_packed(take_random(m, i64_mul(i64_mul(rows, heads), d), dtype, 1.7320508F, 0), dtype, heads, d);
}

nsa_tensor bench_random_gate(bench_tensors *m, int64_t rows, int32_t heads)
{
    return nsa_packed(take_random(m, i64_mul(rows, (int64_t)heads * 3), NSA_F32, 0.5F, 0.5F), NSA_F32, heads, 3);
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
        *value[i] = take_random(m, count[i], NSA_F32, 1.7320508F / sqrtf((float)(count[i] / d + 1)), 0);
        if (gradients)
            *gradient[i] = bench_take(m, count[i], sizeof(float));
    }
}

nsa_status bench_make_caches(bench_tensors *m, const nsa_ctx *ctx, const bench_shape *shape, int32_t n,
                             bench_caches *caches)
{
    enum { PAGE = 1024 };
    bench_caches *c = caches;
    c->pages_per_seq = shape->seqlen / PAGE + 1;
    c->pool =
        (nsa_cache){.page_size = PAGE, .max_draft = 1, .dtype = shape->dtype, .n_pages = (int64_t)n * c->pages_per_seq};
    nsa_status status = nsa_cache_page_bytes(ctx, &shape->cfg, &c->pool, &c->page_bytes);
    if (status == NSA_OK)
        status = nsa_cache_state_bytes(ctx, &shape->cfg, &c->pool, &c->state_bytes);
    if (status != NSA_OK)
        return status;
    c->state_bytes = size_round_up(c->state_bytes, LM_ALIGN);
    c->pool.pages = bench_take(m, c->pool.n_pages, c->page_bytes);
    c->states = bench_take(m, n, sizeof *c->states);
    c->table = bench_take(m, c->pool.n_pages, sizeof *c->table);
    char *states = bench_take(m, n, c->state_bytes);
    if (m->out_of_memory)
        return NSA_ERR_OUT_OF_MEMORY;
    for (int32_t s = 0; s < n && status == NSA_OK; s++) {
        c->states[s] = states + (size_t)s * c->state_bytes;
        status = nsa_cache_reset(ctx, &shape->cfg, &c->pool, c->states[s]);
    }
    for (int32_t i = 0; i < n * c->pages_per_seq; i++)
        c->table[i] = i;
    return status;
}
