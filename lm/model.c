#include "lm/model.h"
#include "lm/arena.h"
#include "lm/error.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static qkv_columns lay_out_columns(const model_config *m)
{
    qkv_columns c = {0};
    const int32_t q = m->heads * m->head_dim;
    const int32_t kv = m->kv_heads * m->head_dim;
    const bool one = m->attention == ATTENTION_DENSE || m->shared_kv != 0;
    c.n_kv = one ? 1 : NSA_N_BRANCHES;
    for (int b = 0; b < NSA_N_BRANCHES; b++) {
        const int32_t i = one ? 0 : b;
        c.k[b] = q + i * kv;
        c.v[b] = q + (c.n_kv + i) * kv;
        c.rot_k[b] = one || b == NSA_CMP ? q : q + (b - 1) * kv;
    }
    c.width = q + 2 * c.n_kv * kv;
    c.rot_width = q + (one ? 1 : 2) * kv;
    return c;
}

/* ---- The table of parameters ------------------------------------------------------------------------------------- */

typedef struct builder {
    param_table *table;
    int32_t layer; /* -1: outside of the layers */
} builder;

static int64_t add(builder *b, const char *name, int64_t rows, int64_t columns, init_kind init, double arg)
{
    char full[64];
    if (b->layer < 0)
        (void)snprintf(full, sizeof full, "%s", name);
    else
        (void)snprintf(full, sizeof full, "layers.%d.%s", b->layer, name);
    const int64_t matrix_shape[] = {rows, columns, 0};
    const int64_t vector_shape[] = {columns, 0};
    const bool is_matrix = rows > 0;
    return params_add(b->table, full, is_matrix ? matrix_shape : vector_shape, is_matrix, init, arg);
}

static int64_t add_phi_tensor(builder *b, const char *phi, const char *name, int64_t heads, int64_t rows,
                              int64_t columns, bool decay, init_kind init, double arg)
{
    char full[64];
    (void)snprintf(full, sizeof full, "layers.%d.attn.%s.%s", b->layer, phi, name);
    const int64_t matrix_shape[] = {heads, rows, columns, 0};
    const int64_t vector_shape[] = {heads, columns, 0};
    return params_add(b->table, full, rows > 0 ? matrix_shape : vector_shape, decay, init, arg);
}

/* Every kind starts as the mean of the block, so that the compressed branch says something from the first step on. */
static phi_params add_phi(builder *b, const char *name, const model_config *m)
{
    phi_params p = {-1, -1, -1, -1, -1};
    const int64_t heads = m->kv_heads;
    const int64_t d = m->head_dim;
    const int64_t block = m->cmp_block;
    const int64_t hidden = m->phi_hidden;
    switch ((nsa_phi_kind)m->phi) {
    case NSA_PHI_MEAN: break;
    case NSA_PHI_LINEAR:
        p.pe = add_phi_tensor(b, name, "pe", heads, block, d, false, INIT_ZEROS, 0);
        p.w1 = add_phi_tensor(b, name, "w1", heads, block * d, d, true, INIT_MEAN_LINEAR, 0);
        break;
    case NSA_PHI_GATED_TOKEN:
        p.w1 = add_phi_tensor(b, name, "w1", heads, 0, d, false, INIT_ZEROS, 0);
        p.b1 = add_phi_tensor(b, name, "b1", heads, 0, block, false, INIT_ZEROS, 0);
        break;
    case NSA_PHI_GATED_CHANNEL:
        p.w1 = add_phi_tensor(b, name, "w1", heads, d, d, true, INIT_ZEROS, 0);
        p.b1 = add_phi_tensor(b, name, "b1", heads, block, d, false, INIT_ZEROS, 0);
        break;
    case NSA_PHI_MLP:
        p.pe = add_phi_tensor(b, name, "pe", heads, block, d, false, INIT_ZEROS, 0);
        p.w1 = add_phi_tensor(b, name, "w1", heads, block * d, hidden, true, INIT_MEAN_MLP_W1, (double)d);
        p.b1 = add_phi_tensor(b, name, "b1", heads, 0, hidden, false, INIT_ZEROS, 0);
        p.w2 = add_phi_tensor(b, name, "w2", heads, hidden, d, true, INIT_MEAN_MLP_W2, 0);
        p.b2 = add_phi_tensor(b, name, "b2", heads, 0, d, false, INIT_ZEROS, 0);
        break;
    }
    return p;
}

static double fan_in(int64_t n)
{
    return 1.0 / sqrt((double)n);
}

static layer_params add_layer(builder *b, const model *m)
{
    const model_config *c = &m->cfg.model;
    const int64_t d = c->d_model;
    const int64_t q = (int64_t)c->heads * c->head_dim;
    /* What is added to the residual stream shrinks with the number of additions, so that its size does not grow. */
    const double residual = 1.0 / sqrt(2.0 * c->layers);
    layer_params p = {0};
    p.attn_norm = add(b, "attn.norm", 0, d, INIT_ONES, 0);
    p.qkv = add(b, "attn.qkv", d, m->columns.width, INIT_NORMAL, fan_in(d));
    p.attn_out = add(b, "attn.out", q, d, INIT_NORMAL, fan_in(q) * residual);
    if (!model_is_dense(m)) {
        p.gate_w1 = add(b, "attn.gate.w1", d, c->gate_hidden, INIT_NORMAL, fan_in(d));
        p.gate_b1 = add(b, "attn.gate.b1", 0, c->gate_hidden, INIT_ZEROS, 0);
        p.gate_w2 = add(b, "attn.gate.w2", c->gate_hidden, (int64_t)c->heads * NSA_N_BRANCHES, INIT_NORMAL,
                        fan_in(c->gate_hidden));
        p.gate_b2 = add(b, "attn.gate.b2", 0, (int64_t)c->heads * NSA_N_BRANCHES, INIT_ZEROS, 0);
        p.phi_k = add_phi(b, "phi_k", c);
        p.phi_v = add_phi(b, "phi_v", c);
    }
    p.ffn_norm = add(b, "ffn.norm", 0, d, INIT_ONES, 0);
    p.ffn_in = add(b, "ffn.in", d, 2 * (int64_t)c->d_ff, INIT_NORMAL, fan_in(d));
    p.ffn_out = add(b, "ffn.out", c->d_ff, d, INIT_NORMAL, fan_in(c->d_ff) * residual);
    return p;
}

static void add_all(model *m)
{
    const int64_t d = m->cfg.model.d_model;
    builder b = {&m->table, -1};
    m->embedding = add(&b, "embedding", BYTE_VOCABULARY, d, INIT_NORMAL, fan_in(d));
    for (b.layer = 0; b.layer < m->cfg.model.layers; b.layer++)
        m->layers[b.layer] = add_layer(&b, m);
    b.layer = -1;
    m->final_norm = add(&b, "final_norm", 0, d, INIT_ONES, 0);
}

/* ---- Life -------------------------------------------------------------------------------------------------------- */

static bool fill(model *m)
{
    m->layers = calloc((size_t)m->cfg.model.layers, sizeof *m->layers);
    if (m->layers == NULL)
        return lm_out_of_memory("the model's layers");
    add_all(m);
    if (m->table.failed)
        return lm_out_of_memory("the model's parameters");
    m->weights = lm_alloc_zeroed(size_of(m->table.total, sizeof(float)));
    if (m->weights == NULL)
        return lm_fail("out of memory: %lld parameters", (long long)m->table.total);
    LM_TRY(lm_nsa(nsa_ctx_create(&m->ctx, NULL), "nsa_ctx_create"));
    params_init(&m->table, m->weights, (uint64_t)m->cfg.train.seed);
    return true;
}

bool model_create(model **out, const lm_config *cfg)
{
    *out = NULL;
    LM_TRY(config_check(cfg));
    const int64_t heads = (int64_t)cfg->model.heads + 6 * (int64_t)cfg->model.kv_heads;
    if (heads * cfg->model.head_dim > INT32_MAX)
        return lm_fail("--heads, --kv-heads and --head-dim are too large together");
    model *m = calloc(1, sizeof *m);
    if (m == NULL)
        return lm_out_of_memory("the model");
    m->cfg = *cfg;
    m->nsa = config_nsa(&cfg->model);
    m->columns = lay_out_columns(&cfg->model);
    if (!fill(m)) {
        model_destroy(m);
        return false;
    }
    *out = m;
    return true;
}

void model_destroy(model *m)
{
    if (m == NULL)
        return;
    nsa_ctx_destroy(m->ctx);
    params_free(&m->table);
    free(m->layers);
    free(m->weights);
    free(m);
}

int64_t model_n_params(const model *m)
{
    int64_t n = 0;
    for (int32_t i = 0; i < m->table.n; i++)
        n += m->table.items[i].count;
    return n;
}

static void *at(float *base, int64_t offset)
{
    return offset < 0 ? NULL : base + offset;
}

nsa_phi model_phi(const model *m, const phi_params *p, float *base)
{
    return (nsa_phi){.kind = (nsa_phi_kind)m->cfg.model.phi,
                     .dtype = NSA_F32,
                     .per_head = m->cfg.model.phi == NSA_PHI_MEAN ? 0 : 1,
                     .d_hidden = m->cfg.model.phi == NSA_PHI_MLP ? m->cfg.model.phi_hidden : 0,
                     .pe = at(base, p->pe),
                     .w1 = at(base, p->w1),
                     .b1 = at(base, p->b1),
                     .w2 = at(base, p->w2),
                     .b2 = at(base, p->b2)};
}
