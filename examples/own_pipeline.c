/*
 * The operations one by one, with a selection of the caller's own: first with nsa_select's, where the result is
 * nsa_forward's; then with blocks in fixed steps, which no model has to learn.
 */
#include <nsa.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HEADS_Q = 4, HEADS_KV = 2, D = 32, TOKENS = 700, TOPK = 4, N_TAKEN = 32 };

static void check(nsa_status status)
{
    if (status != NSA_OK) {
        fprintf(stderr, "%s: %s\n", nsa_status_string(status), nsa_last_error());
        exit(1);
    }
}

/* Memory that main frees at its end. */
static void *taken[N_TAKEN];
static int n_taken;

static void *take(size_t bytes)
{
    void *p = n_taken < N_TAKEN ? malloc(bytes) : NULL;
    if (p == NULL)
        exit(1);
    return taken[n_taken++] = p;
}

static nsa_tensor tensor(int32_t n_heads, int32_t d)
{
    const size_t n = (size_t)TOKENS * (size_t)n_heads * (size_t)d;
    float *x = take(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)rand() / (float)RAND_MAX - 0.5F;
    return nsa_packed(x, NSA_F32, n_heads, d);
}

/* One layer of one sequence: what every operation below reads and writes. */
typedef struct layer {
    nsa_ctx *ctx;
    nsa_config cfg;
    nsa_batch batch;
    nsa_phi mean;
    nsa_tensor q, k, v, gate; /* in; the branches share k and v */
    nsa_tensor k_cmp, v_cmp;  /* made by compress */
    nsa_tensor slc_idx;       /* made by select, or by the caller */
    nsa_tensor o_branch[3], lse[3], o;
    void *workspace;
    size_t workspace_bytes;
} layer;

/* Room for what an operation has just asked for. */
static void reserve(layer *l, size_t bytes)
{
    if (bytes <= l->workspace_bytes)
        return;
    free(l->workspace);
    l->workspace = malloc(bytes);
    l->workspace_bytes = bytes;
    if (l->workspace == NULL)
        exit(1);
}

static void compress(layer *l, nsa_tensor x, nsa_tensor y)
{
    const nsa_compress_args args = {.d = D, .phi = l->mean, .x = x, .y = y};
    size_t bytes = 0;
    check(nsa_compress_workspace(l->ctx, &l->cfg, &l->batch, &args, &bytes));
    reserve(l, bytes);
    check(nsa_compress(l->ctx, &l->cfg, &l->batch, &args, l->workspace, l->workspace_bytes, NULL));
}

/* The operations in their order; `choose` makes slc_idx. */
static void run(layer *l, void (*choose)(layer *l))
{
    compress(l, l->k, l->k_cmp);
    compress(l, l->v, l->v_cmp);

    size_t bytes = 0;
    nsa_attn_args cmp = {.q = l->q, .k = l->k_cmp, .v = l->v_cmp, .o = l->o_branch[NSA_CMP], .lse = l->lse[NSA_CMP]};
    check(nsa_cmp_attn_workspace(l->ctx, &l->cfg, &l->batch, &cmp, &bytes));
    reserve(l, bytes);
    check(nsa_cmp_attn(l->ctx, &l->cfg, &l->batch, &cmp, l->workspace, l->workspace_bytes, NULL));

    choose(l);

    nsa_attn_args slc = {
        .q = l->q, .k = l->k, .v = l->v, .slc_idx = l->slc_idx, .o = l->o_branch[NSA_SLC], .lse = l->lse[NSA_SLC]};
    check(nsa_slc_attn_workspace(l->ctx, &l->cfg, &l->batch, &slc, &bytes));
    reserve(l, bytes);
    check(nsa_slc_attn(l->ctx, &l->cfg, &l->batch, &slc, l->workspace, l->workspace_bytes, NULL));

    nsa_attn_args win = {.q = l->q, .k = l->k, .v = l->v, .o = l->o_branch[NSA_WIN], .lse = l->lse[NSA_WIN]};
    check(nsa_win_attn_workspace(l->ctx, &l->cfg, &l->batch, &win, &bytes));
    reserve(l, bytes);
    check(nsa_win_attn(l->ctx, &l->cfg, &l->batch, &win, l->workspace, l->workspace_bytes, NULL));

    const nsa_gate_args gate = {
        .gate = l->gate, .o_branch = {l->o_branch[0], l->o_branch[1], l->o_branch[2]}, .o = l->o};
    check(nsa_gate(l->ctx, &l->cfg, &l->batch, &gate, NULL));
}

/* The paper's: by the probabilities of the compressed blocks. */
static void choose_by_score(layer *l)
{
    const nsa_select_args args = {.q = l->q, .k_cmp = l->k_cmp, .lse = l->lse[NSA_CMP], .slc_idx = l->slc_idx};
    size_t bytes = 0;
    check(nsa_select_workspace(l->ctx, &l->cfg, &l->batch, &args, &bytes));
    reserve(l, bytes);
    check(nsa_select(l->ctx, &l->cfg, &l->batch, &args, l->workspace, l->workspace_bytes, NULL));
}

/* Our own: every third block back from the query's, as far as slc_topk goes. Any order is good; -1 is no block. */
static void choose_by_stride(layer *l)
{
    int32_t *idx = l->slc_idx.data;
    for (int32_t t = 0; t < TOKENS; t++)
        for (int32_t head = 0; head < HEADS_KV; head++)
            for (int32_t i = 0; i < TOPK; i++) {
                const int32_t block = t / l->cfg.slc_block - 3 * i;
                *idx++ = block >= 0 ? block : -1;
            }
}

static void forward(layer *l, const nsa_forward_args *args)
{
    size_t bytes = 0;
    check(nsa_forward_workspace(l->ctx, &l->cfg, &l->batch, args, &bytes));
    reserve(l, bytes);
    check(nsa_forward(l->ctx, &l->cfg, &l->batch, args, l->workspace, l->workspace_bytes, NULL));
}

static int report(const char *whose, const layer *l, const nsa_forward_args *whole)
{
    const int differ = memcmp(l->o.data, whole->o.data, sizeof(float) * TOKENS * HEADS_Q * D) != 0;
    printf("%s blocks: the result is %s nsa_forward's\n", whose, differ ? "not" : "bit for bit");
    return differ;
}

int main(void)
{
    layer l = {.mean = {.kind = NSA_PHI_MEAN}};
    check(nsa_ctx_create(&l.ctx, NULL));
    nsa_config_init(&l.cfg);
    l.cfg.n_heads_q = HEADS_Q, l.cfg.n_heads_kv = HEADS_KV, l.cfg.d_qk = l.cfg.d_v = D;
    l.cfg.win_size = 64, l.cfg.slc_topk = TOPK;
    const int32_t cu_seqlens[] = {0, TOKENS};
    l.batch = (nsa_batch){1, TOKENS, TOKENS, TOKENS, TOKENS, cu_seqlens, cu_seqlens};
    l.q = tensor(HEADS_Q, D), l.k = tensor(HEADS_KV, D), l.v = tensor(HEADS_KV, D), l.gate = tensor(HEADS_Q, 3);
    l.k_cmp = tensor(HEADS_KV, D), l.v_cmp = tensor(HEADS_KV, D);
    l.slc_idx = nsa_packed(take(sizeof(int32_t) * TOKENS * HEADS_KV * TOPK), NSA_I32, HEADS_KV, TOPK);
    for (int b = 0; b < NSA_N_BRANCHES; b++)
        l.o_branch[b] = tensor(HEADS_Q, D), l.lse[b] = tensor(HEADS_Q, 1);
    l.o = tensor(HEADS_Q, D);

    nsa_forward_args whole = {.q = {l.q, l.q, l.q},
                              .k = {l.k, l.k, l.k},
                              .v = {l.v, l.v, l.v},
                              .gate = l.gate,
                              .phi_k = &l.mean,
                              .phi_v = &l.mean,
                              .o = tensor(HEADS_Q, D)};
    run(&l, choose_by_score);
    forward(&l, &whole);
    int differ = report("nsa_select's", &l, &whole);

    run(&l, choose_by_stride);
    whole.slc_idx = l.slc_idx; /* nsa_forward and nsa_backward take a selection, too */
    whole.slc_idx_given = 1;
    forward(&l, &whole);
    differ |= report("our own", &l, &whole);

    free(l.workspace);
    for (int i = 0; i < n_taken; i++)
        free(taken[i]);
    nsa_ctx_destroy(l.ctx);
    return differ;
}
