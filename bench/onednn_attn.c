#include "bench/onednn_attn.h"

#include "lm/arena.h"
#include "lm/error.h"

#include <dnnl.h>
#include <math.h>

typedef enum operand { Q, K, S, V, O, N_OPERANDS } operand;

typedef struct block {
    int64_t first, rows, n_k; /* query tokens first .. first + rows-1, keys 0 .. n_k-1 */
    dnnl_primitive_t scores, softmax, values;
    dnnl_memory_t memory[N_OPERANDS];
} block;

struct onednn_attn {
    onednn_problem p;
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    int64_t n_blocks;
    block *blocks;
    int64_t batch; /* of a product: all if there is one block; else 1, since only dense matrices have the fast path */
    void *s;       /* [batch][block * group][n_k] */
};

bool onednn_has_bf16(void)
{
    const unsigned bf16 = dnnl_cpu_isa_avx512_core_bf16;
    return ((unsigned)dnnl_get_effective_cpu_isa() & bf16) == bf16;
}

static bool ok(dnnl_status_t status)
{
    if (status == dnnl_out_of_memory)
        return lm_out_of_memory("oneDNN");
    return status == dnnl_success ? true : lm_fail("oneDNN: status %d", (int)status);
}

#define TRY(call) LM_TRY(ok(call))

static size_t element_size(const onednn_attn *a)
{
    return a->p.bf16 ? 2 : 4;
}

/* ---- Primitives -------------------------------------------------------------------------------------------------- */

/* [batch][rows][columns]; stride: elements between matrices. */
static bool describe(const onednn_attn *a, dnnl_memory_desc_t *md, int64_t rows, int64_t columns, int64_t stride,
                     bool transposed)
{
    const dnnl_dims_t dims = {a->batch, rows, columns};
    const dnnl_dims_t strides = {stride, transposed ? 1 : columns, transposed ? rows : 1};
    return ok(dnnl_memory_desc_init_by_strides(md, 3, dims, a->p.bf16 ? dnnl_bf16 : dnnl_f32, strides));
}

static bool make_primitive(const onednn_attn *a, dnnl_primitive_t *out, const void *desc, dnnl_primitive_attr_t attr)
{
    dnnl_primitive_desc_t pd = NULL;
    TRY(dnnl_primitive_desc_create(&pd, desc, attr, a->engine, NULL));
    const dnnl_status_t status = dnnl_primitive_create(out, pd);
    dnnl_primitive_desc_destroy(pd);
    return ok(status);
}

static bool make_product(const onednn_attn *a, dnnl_primitive_t *out, const dnnl_memory_desc_t *x,
                         const dnnl_memory_desc_t *y, const dnnl_memory_desc_t *xy, float scale)
{
    dnnl_matmul_desc_t desc;
    dnnl_primitive_attr_t attr = NULL;
    TRY(dnnl_matmul_desc_init(&desc, x, y, NULL, xy));
    TRY(dnnl_primitive_attr_create(&attr));
    const bool made =
        ok(dnnl_primitive_attr_set_output_scales(attr, 1, 0, &scale)) && make_primitive(a, out, &desc, attr);
    dnnl_primitive_attr_destroy(attr);
    return made;
}

static bool make_block(const onednn_attn *a, block *b)
{
    const onednn_problem *p = &a->p;
    const int64_t m = b->rows * p->group;
    dnnl_memory_desc_t md[N_OPERANDS];
    LM_TRY(describe(a, &md[Q], m, p->d_qk, p->n_q * p->group * p->d_qk, false));
    LM_TRY(describe(a, &md[K], p->d_qk, b->n_k, p->n_k * p->d_qk, true));
    LM_TRY(describe(a, &md[S], m, b->n_k, m * b->n_k, false));
    LM_TRY(describe(a, &md[V], b->n_k, p->d_v, p->n_k * p->d_v, false));
    LM_TRY(describe(a, &md[O], m, p->d_v, p->n_q * p->group * p->d_v, false));
    dnnl_softmax_v2_desc_t softmax;
    TRY(dnnl_softmax_v2_forward_desc_init(&softmax, dnnl_forward_inference, dnnl_softmax_accurate, &md[S], &md[S], 2));
    LM_TRY(make_product(a, &b->scores, &md[Q], &md[K], &md[S], 1.0F / sqrtf((float)p->d_qk)));
    LM_TRY(make_primitive(a, &b->softmax, &softmax, NULL));
    LM_TRY(make_product(a, &b->values, &md[S], &md[V], &md[O], 1.0F));
    for (int i = 0; i < N_OPERANDS; i++)
        TRY(dnnl_memory_create(&b->memory[i], &md[i], a->engine, DNNL_MEMORY_NONE));
    return true;
}

static bool fill(onednn_attn *a)
{
    const onednn_problem *p = &a->p;
    TRY(dnnl_engine_create(&a->engine, dnnl_cpu, 0));
    TRY(dnnl_stream_create(&a->stream, a->engine, dnnl_stream_default_flags));
    const int64_t rows = p->block < p->n_q ? p->block : p->n_q;
    a->n_blocks = (p->n_q + rows - 1) / rows;
    a->batch = a->n_blocks == 1 ? p->batch : 1;
    const size_t s_bytes = size_of(i64_mul(i64_mul(a->batch * p->group, rows), p->n_k), element_size(a));
    a->blocks = calloc((size_t)a->n_blocks, sizeof *a->blocks);
    a->s = lm_alloc_zeroed(s_bytes);
    if (a->blocks == NULL || a->s == NULL)
        return lm_out_of_memory("the scores of dense attention");
    for (int64_t i = 0; i < a->n_blocks; i++) {
        block *b = &a->blocks[i];
        b->first = i * rows;
        b->rows = p->n_q - b->first < rows ? p->n_q - b->first : rows;
        b->n_k = p->n_k - p->n_q + b->first + b->rows;
        LM_TRY(make_block(a, b));
    }
    return true;
}

onednn_attn *onednn_attn_create(const onednn_problem *p)
{
    onednn_attn *a = calloc(1, sizeof *a);
    if (a == NULL) {
        (void)lm_out_of_memory("oneDNN");
        return NULL;
    }
    a->p = *p;
    if (!fill(a)) {
        onednn_attn_destroy(a);
        return NULL;
    }
    return a;
}

void onednn_attn_destroy(onednn_attn *a)
{
    if (a == NULL)
        return;
    for (int64_t i = 0; a->blocks != NULL && i < a->n_blocks; i++) {
        block *b = &a->blocks[i];
        dnnl_primitive_destroy(b->scores);
        dnnl_primitive_destroy(b->softmax);
        dnnl_primitive_destroy(b->values);
        for (int j = 0; j < N_OPERANDS; j++)
            dnnl_memory_destroy(b->memory[j]);
    }
    free(a->blocks);
    free(a->s);
    dnnl_stream_destroy(a->stream);
    dnnl_engine_destroy(a->engine);
    free(a);
}

/* ---- Runs -------------------------------------------------------------------------------------------------------- */

/* -inf where a key comes after its query: only the block's own tokens can. */
static void mask(const onednn_attn *a, const block *b)
{
    static const uint16_t bf16_minus_infinity = 0xff80;
    const int64_t m = b->rows * a->p.group, n = a->batch * m;
#pragma omp parallel for
    for (int64_t i = 0; i < n; i++) {
        const int64_t sees = b->n_k - b->rows + i % m / a->p.group + 1;
        for (int64_t j = sees; j < b->n_k; j++) {
            if (a->p.bf16)
                ((uint16_t *)a->s)[i * b->n_k + j] = bf16_minus_infinity;
            else
                ((float *)a->s)[i * b->n_k + j] = -INFINITY;
        }
    }
}

static bool run_block(const onednn_attn *a, const block *b, char *q, char *k, char *v, char *o)
{
    const size_t row = (size_t)(b->first * a->p.group) * element_size(a);
    void *const data[N_OPERANDS] = {q + row * (size_t)a->p.d_qk, k, a->s, v, o + row * (size_t)a->p.d_v};
    for (int i = 0; i < N_OPERANDS; i++)
        TRY(dnnl_memory_set_data_handle(b->memory[i], data[i]));
    const dnnl_exec_arg_t scores[] = {
        {DNNL_ARG_SRC, b->memory[Q]}, {DNNL_ARG_WEIGHTS, b->memory[K]}, {DNNL_ARG_DST, b->memory[S]}};
    const dnnl_exec_arg_t softmax[] = {{DNNL_ARG_SRC, b->memory[S]}, {DNNL_ARG_DST, b->memory[S]}};
    const dnnl_exec_arg_t values[] = {
        {DNNL_ARG_SRC, b->memory[S]}, {DNNL_ARG_WEIGHTS, b->memory[V]}, {DNNL_ARG_DST, b->memory[O]}};
    TRY(dnnl_primitive_execute(b->scores, a->stream, 3, scores));
    TRY(dnnl_stream_wait(a->stream));
    mask(a, b);
    TRY(dnnl_primitive_execute(b->softmax, a->stream, 2, softmax));
    TRY(dnnl_primitive_execute(b->values, a->stream, 3, values));
    return ok(dnnl_stream_wait(a->stream));
}

bool onednn_attn_run(onednn_attn *a, void *q, void *k, void *v, void *o)
{
    const onednn_problem *p = &a->p;
    const size_t size = element_size(a);
    for (int64_t i = 0; i < p->batch; i += a->batch) {
        char *q_i = (char *)q + (size_t)(i * p->n_q * p->group * p->d_qk) * size;
        char *k_i = (char *)k + (size_t)(i * p->n_k * p->d_qk) * size;
        char *v_i = (char *)v + (size_t)(i * p->n_k * p->d_v) * size;
        char *o_i = (char *)o + (size_t)(i * p->n_q * p->group * p->d_v) * size;
        for (int64_t j = 0; j < a->n_blocks; j++)
            LM_TRY(run_block(a, &a->blocks[j], q_i, k_i, v_i, o_i));
    }
    return true;
}
