#include "cli/bench_onednn.h"
#include "cli/bench_case.h"

#include "lm/error.h"

#include <math.h>
#include <string.h>

nsa_dtype bench_onednn_dtype(nsa_dtype dtype)
{
    return dtype == NSA_BF16 && onednn_has_bf16() ? NSA_BF16 : NSA_F32;
}

/* ---- Tensors ----------------------------------------------------------------------------------------------------- */

static float load(const void *data, nsa_dtype dtype, int64_t i)
{
    if (dtype == NSA_F32)
        return ((const float *)data)[i];
    const uint32_t half = ((const uint16_t *)data)[i];
    if (dtype == NSA_F16) {
        const int exponent = half >> 10 & 31;
        const int mantissa = (int)(half & 1023) + (exponent > 0 ? 1024 : 0);
        const float magnitude =
            ldexpf((float)mantissa, (exponent > 0 ? exponent : 1) - 25); /* infinities do not occur */
        return half >> 15 != 0 ? -magnitude : magnitude;
    }
    const uint32_t bits = half << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Where element 0 of [sequence][token][head] lies in oneDNN's order, in rows of d. */
static int64_t row_of(int64_t sequence, int64_t token, int64_t head, int64_t tokens, int64_t heads, int64_t group)
{
    return ((sequence * (heads / group) + head / group) * tokens + token) * group + head % group;
}

void *bench_onednn_pack(bench_tensors *m, const bench_shape *shape, const nsa_tensor *x, int64_t tokens, int32_t group)
{
    const int64_t d = x->stride_head, heads = x->stride_token / d, rows = shape->batch * tokens;
    const bool bf16 = bench_onednn_dtype(shape->dtype) == NSA_BF16;
    void *packed = bench_take(m, rows * heads * d, bf16 ? 2 : 4);
    if (packed == NULL || x->data == NULL)
        return NULL;
#pragma omp parallel for
    for (int64_t i = 0; i < rows * heads; i++) {
        const int64_t to = d * row_of(i / heads / tokens, i / heads % tokens, i % heads, tokens, heads, group);
        if (bf16)
            memcpy((uint16_t *)packed + to, (const uint16_t *)x->data + i * d, (size_t)d * 2);
        else
            for (int64_t c = 0; c < d; c++)
                ((float *)packed)[to + c] = load(x->data, x->dtype, i * d + c);
    }
    return packed;
}

bool bench_onednn_check(const bench_shape *shape, const void *o, const nsa_tensor *expected, int64_t n_q)
{
    const int64_t d = shape->cfg.d_v, heads = shape->cfg.n_heads_q, group = heads / shape->cfg.n_heads_kv;
    const nsa_dtype dtype = bench_onednn_dtype(shape->dtype);
    const double tolerance = shape->dtype == NSA_F32 ? 1e-3 : 0.05; /* of a row's norm */
    int64_t wrong = 0;
#pragma omp parallel for reduction(+ : wrong)
    for (int64_t i = 0; i < shape->batch * n_q * heads; i++) {
        const int64_t from = d * row_of(i / heads / n_q, i / heads % n_q, i % heads, n_q, heads, group);
        double error = 0, norm = 0;
        for (int64_t c = 0; c < d; c++) {
            const double x = load(expected->data, expected->dtype, i * d + c);
            const double difference = load(o, dtype, from + c) - x;
            error += difference * difference;
            norm += x * x;
        }
        wrong += !(sqrt(error) <= tolerance * sqrt(norm)); /* NaN is wrong */
    }
    return wrong == 0 ? true
                      : lm_fail("dense attention by oneDNN and by this library differ in %lld of %lld rows",
                                (long long)wrong, (long long)(shape->batch * n_q * heads));
}

onednn_attn *bench_onednn_create(const bench_shape *shape, int64_t n_q, int64_t block)
{
    const nsa_config *cfg = &shape->cfg;
    const onednn_problem p = {.bf16 = bench_onednn_dtype(shape->dtype) == NSA_BF16,
                              .batch = (int64_t)shape->batch * cfg->n_heads_kv,
                              .group = cfg->n_heads_q / cfg->n_heads_kv,
                              .n_q = n_q,
                              .n_k = shape->seqlen,
                              .d_qk = cfg->d_qk,
                              .d_v = cfg->d_v,
                              .block = block};
    return onednn_attn_create(&p);
}

/* ---- Forward ----------------------------------------------------------------------------------------------------- */

typedef struct onednn_run {
    const bench_case *b;
    bench_tensors memory;
    void *q, *k, *v, *o;
    onednn_attn *attn;
} onednn_run;

static bool run(void *self)
{
    const onednn_run *r = self;
    return onednn_attn_run(r->attn, r->q, r->k, r->v, r->o);
}

static bool measure_block(onednn_run *r, int64_t block, const bench_effort *effort, bench_time *time)
{
    const bench_case *b = r->b;
    r->attn = bench_onednn_create(&b->shape, b->shape.seqlen, block);
    const bool measured = r->attn != NULL && bench_repeat(r, NULL, run, effort, time) &&
                          bench_onednn_check(&b->shape, r->o, &b->dense_forward.o, b->shape.seqlen);
    onednn_attn_destroy(r->attn);
    return measured;
}

static bool measure(onednn_run *r, int64_t *block, const bench_effort *effort, bench_time *time)
{
    static const int64_t blocks[] = {32, 64, 128};
    if (*block != 0)
        return measure_block(r, *block, effort, time);
    for (int i = 0; i < 3; i++) {
        bench_time one;
        LM_TRY(measure_block(r, blocks[i], effort, &one));
        if (i == 0 || one.ms < time->ms) {
            *time = one;
            *block = blocks[i];
        }
    }
    return true;
}

bool bench_measure_onednn(const bench_case *b, int64_t *block, const bench_effort *effort, bench_time *time)
{
    const int64_t seqlen = b->shape.seqlen;
    const int32_t group = b->shape.cfg.n_heads_q / b->shape.cfg.n_heads_kv;
    const nsa_attn_args *args = &b->dense_forward;
    onednn_run r = {.b = b, .memory.device = &bench_cpu};
    r.q = bench_onednn_pack(&r.memory, &b->shape, &args->q, seqlen, group);
    r.k = bench_onednn_pack(&r.memory, &b->shape, &args->k, seqlen, 1);
    r.v = bench_onednn_pack(&r.memory, &b->shape, &args->v, seqlen, 1);
    r.o = bench_onednn_pack(&r.memory, &b->shape, &args->o, seqlen, group);
    const bool measured =
        r.memory.out_of_memory ? lm_out_of_memory("oneDNN's tensors") : measure(&r, block, effort, time);
    bench_tensors_free(&r.memory);
    return measured;
}
