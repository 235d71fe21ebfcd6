#include "lm/session.h"
#include "lm/arena.h"
#include "lm/error.h"
#include "lm/layers.h"

#include <string.h>

/* An NSA model keeps the library's cache: per layer a pool of pages and the state of the one sequence; page p of the
 * pool holds tokens p * page_size and up. A dense model keeps K and V of each layer as they are. */
struct kv_store {
    nsa_cache cache; /* pages: set per layer */
    int32_t n_pages;
    size_t page_bytes, state_bytes;
    char *pages, *states; /* [layers][n_pages * page_bytes], [layers][state_bytes] */
    int32_t *page_table;
    float *dense_k, *dense_v; /* [layers][max_tokens][kv_heads][head_dim] */
    int32_t max_tokens;
    void *memory, *workspace;
    size_t workspace_bytes;
};

struct session {
    run *r;
    kv_store kv;
    float *rope;
    int32_t chunk;
};

enum { PAGE_TOKENS = 64 }; /* at least; rounded up to whole selection blocks */

/* ---- Memory ------------------------------------------------------------------------------------------------------ */

static void take_kv(lm_arena *a, const model *m, kv_store *kv)
{
    const model_config *c = &m->cfg.model;
    const int64_t kv_width = (int64_t)c->kv_heads * c->head_dim;
    if (model_is_dense(m)) {
        kv->dense_k = lm_take_floats(a, i64_mul(c->layers, kv->max_tokens), kv_width);
        kv->dense_v = lm_take_floats(a, i64_mul(c->layers, kv->max_tokens), kv_width);
        return;
    }
    kv->pages = lm_take(a, i64_mul(c->layers, kv->n_pages), kv->page_bytes);
    kv->states = lm_take(a, c->layers, kv->state_bytes);
    kv->page_table = lm_take(a, kv->n_pages, sizeof *kv->page_table);
}

static void *layer_state(const kv_store *kv, int32_t l)
{
    return kv->states + (size_t)l * kv->state_bytes;
}

static nsa_cache layer_cache(const kv_store *kv, int32_t l)
{
    nsa_cache cache = kv->cache;
    cache.pages = kv->pages + (size_t)l * (size_t)kv->n_pages * kv->page_bytes;
    return cache;
}

static bool size_cache(const model *m, kv_store *kv)
{
    const int32_t block = m->cfg.model.slc_block;
    const int32_t page = (PAGE_TOKENS + block - 1) / block * block;
    kv->n_pages = (kv->max_tokens - 1) / page + 1;
    kv->cache = (nsa_cache){.page_size = page, .dtype = NSA_F32, .n_pages = kv->n_pages};
    LM_TRY(lm_nsa(nsa_cache_page_bytes(m->ctx, &m->nsa, &kv->cache, &kv->page_bytes), "nsa_cache_page_bytes"));
    LM_TRY(lm_nsa(nsa_cache_state_bytes(m->ctx, &m->nsa, &kv->cache, &kv->state_bytes), "nsa_cache_state_bytes"));
    kv->page_bytes = size_round_up(kv->page_bytes, LM_ALIGN);
    kv->state_bytes = size_round_up(kv->state_bytes, LM_ALIGN);
    return true;
}

static bool create_kv(const model *m, kv_store *kv)
{
    if (!model_is_dense(m))
        LM_TRY(size_cache(m, kv));
    lm_arena a = {0};
    take_kv(&a, m, kv);
    kv->memory = a.base = lm_alloc_zeroed(a.used);
    if (kv->memory == NULL)
        return lm_fail("out of memory: a key-value cache of %d tokens", kv->max_tokens);
    a.used = 0;
    take_kv(&a, m, kv);
    if (model_is_dense(m))
        return true;
    for (int32_t p = 0; p < kv->n_pages; p++)
        kv->page_table[p] = p;
    for (int32_t l = 0; l < m->cfg.model.layers; l++) {
        const nsa_cache cache = layer_cache(kv, l);
        LM_TRY(lm_nsa(nsa_cache_reset(m->ctx, &m->nsa, &cache, layer_state(kv, l), NULL), "nsa_cache_reset"));
    }
    return true;
}

static bool reserve_workspace(kv_store *kv, size_t bytes)
{
    if (bytes <= kv->workspace_bytes)
        return true;
    free(kv->workspace);
    kv->workspace = lm_alloc_zeroed(bytes);
    kv->workspace_bytes = kv->workspace == NULL ? 0 : bytes;
    return kv->workspace != NULL ? true : lm_out_of_memory("workspace");
}

/* ---- Attention over the cache ------------------------------------------------------------------------------------ */

static void append_dense(const run *r, int32_t l, const nsa_attn_args *args)
{
    const int64_t d = r->m->cfg.model.head_dim;
    const int64_t width = r->m->cfg.model.kv_heads * d;
    const size_t bytes = (size_t)width * sizeof(float);
    const qkv_columns *c = &r->m->columns;
    const layer_acts *a = &r->layers[l];
    float *k = args->k.data;
    float *v = args->v.data;
    for (int64_t i = 0; i < r->rows; i++) {
        memcpy(k + (r->first + i) * width, a->rot + i * c->rot_width + c->rot_k[NSA_WIN], bytes);
        memcpy(v + (r->first + i) * width, a->qkv + i * c->width + c->v[NSA_WIN], bytes);
    }
}

static bool attend_dense(run *r, int32_t l)
{
    const model *m = r->m;
    const model_config *c = &m->cfg.model;
    kv_store *kv = r->kv;
    const layer_acts *a = &r->layers[l];
    nsa_tensor q[NSA_N_BRANCHES], k[NSA_N_BRANCHES], v[NSA_N_BRANCHES];
    attention_inputs(m, a->qkv, a->rot, q, k, v);
    const int64_t layer = (int64_t)l * kv->max_tokens * c->kv_heads * c->head_dim;
    const nsa_attn_args args = {.q = q[NSA_WIN],
                                .k = nsa_packed(kv->dense_k + layer, NSA_F32, c->kv_heads, c->head_dim),
                                .v = nsa_packed(kv->dense_v + layer, NSA_F32, c->kv_heads, c->head_dim),
                                .o = nsa_packed(a->o, NSA_F32, c->heads, c->head_dim),
                                .lse = nsa_packed(a->lse[NSA_WIN], NSA_F32, c->heads, 1)};
    append_dense(r, l, &args);
    const int32_t n = (int32_t)r->rows;
    const int32_t total = (int32_t)r->first + n;
    const int32_t cu_q[] = {0, n};
    const int32_t cu_k[] = {0, total};
    const nsa_batch batch = {1, n, total, n, total, cu_q, cu_k};
    size_t bytes = 0;
    LM_TRY(lm_nsa(nsa_win_attn_workspace(m->ctx, &m->nsa, &batch, &args, &bytes), "nsa_win_attn"));
    LM_TRY(reserve_workspace(kv, bytes));
    return lm_nsa(nsa_win_attn(m->ctx, &m->nsa, &batch, &args, kv->workspace, kv->workspace_bytes, NULL),
                  "nsa_win_attn");
}

static bool attend_nsa(run *r, int32_t l)
{
    const model *m = r->m;
    const model_config *c = &m->cfg.model;
    kv_store *kv = r->kv;
    const layer_acts *a = &r->layers[l];
    const nsa_cache cache = layer_cache(kv, l);
    const nsa_phi phi_k = model_phi(m, &m->layers[l].phi_k, m->weights);
    const nsa_phi phi_v = model_phi(m, &m->layers[l].phi_v, m->weights);
    const int32_t cu[] = {0, (int32_t)r->rows};
    void *const states[] = {layer_state(kv, l)};
    nsa_cache_args args = {.n_seqs = 1,
                           .total = r->rows,
                           .cu_seqlens = cu,
                           .states = states,
                           .page_table = kv->page_table,
                           .pages_per_seq = kv->n_pages,
                           .gate = nsa_packed(a->gate, NSA_F32, c->heads, NSA_N_BRANCHES),
                           .phi_k = &phi_k,
                           .phi_v = &phi_v,
                           .o = nsa_packed(a->o, NSA_F32, c->heads, c->head_dim)};
    attention_inputs(m, a->qkv, a->rot, args.q, args.k, args.v);
    size_t bytes = 0;
    if (r->rows == 1) {
        LM_TRY(lm_nsa(nsa_decode_workspace(m->ctx, &m->nsa, &cache, &args, &bytes), "nsa_decode"));
        LM_TRY(reserve_workspace(kv, bytes));
        return lm_nsa(nsa_decode(m->ctx, &m->nsa, &cache, &args, kv->workspace, kv->workspace_bytes, NULL),
                      "nsa_decode");
    }
    LM_TRY(lm_nsa(nsa_prefill_workspace(m->ctx, &m->nsa, &cache, &args, &bytes), "nsa_prefill"));
    LM_TRY(reserve_workspace(kv, bytes));
    return lm_nsa(nsa_prefill(m->ctx, &m->nsa, &cache, &args, kv->workspace, kv->workspace_bytes, NULL), "nsa_prefill");
}

bool kv_attend(run *r, int32_t l)
{
    return model_is_dense(r->m) ? attend_dense(r, l) : attend_nsa(r, l);
}

/* ---- Sessions ---------------------------------------------------------------------------------------------------- */

static bool fill(session *s, const model *m, int32_t max_tokens)
{
    const model_config *c = &m->cfg.model;
    LM_TRY(run_create(&s->r, m, 1, s->chunk, false));
    s->kv.max_tokens = max_tokens;
    LM_TRY(create_kv(m, &s->kv));
    s->rope = lm_alloc_zeroed(size_of(i64_mul(max_tokens, c->head_dim), sizeof *s->rope));
    if (s->rope == NULL)
        return lm_out_of_memory("rotary positions");
    rope_table(s->rope, max_tokens, c->head_dim, c->rope_theta);
    s->r->rope = s->rope;
    s->r->kv = &s->kv;
    return true;
}

bool session_create(session **out, const model *m, int32_t max_tokens, int32_t chunk)
{
    *out = NULL;
    session *s = calloc(1, sizeof *s);
    if (s == NULL)
        return lm_out_of_memory("a session");
    s->chunk = chunk < max_tokens ? chunk : max_tokens;
    if (!fill(s, m, max_tokens)) {
        session_destroy(s);
        return false;
    }
    *out = s;
    return true;
}

void session_destroy(session *s)
{
    if (s == NULL)
        return;
    run_destroy(s->r);
    free(s->kv.memory);
    free(s->kv.workspace);
    free(s->rope);
    free(s);
}

int32_t session_length(const session *s)
{
    return (int32_t)s->r->first;
}

bool session_extend(session *s, const uint8_t *tokens, int32_t n, const float **logits)
{
    run *r = s->r;
    if (n > s->kv.max_tokens - r->first)
        return lm_fail("the session holds %d tokens, %d more do not fit into %d", session_length(s), n,
                       s->kv.max_tokens);
    for (int32_t done = 0; done < n; done += (int32_t)r->rows, r->first += r->rows) {
        r->rows = n - done < s->chunk ? n - done : s->chunk;
        LM_TRY(lm_forward(r, tokens + done));
    }
    *logits = r->logits + (r->rows - 1) * BYTE_VOCABULARY;
    return true;
}
