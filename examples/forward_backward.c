/* NSA over two sequences of different lengths, forward and backward: what a training step does with one layer. */
#include <nsa.h>

#include <stdio.h>
#include <stdlib.h>

enum { HEADS_Q = 4, HEADS_KV = 2, D_QK = 32, D_V = 16, TOKENS = 300, HIDDEN = 32 };

static void check(nsa_status status)
{
    if (status != NSA_OK) {
        fprintf(stderr, "%s: %s\n", nsa_status_string(status), nsa_last_error());
        exit(1);
    }
}

/* Memory that main frees at its end. */
static void *taken[64];
static int n_taken;

static void *take(size_t bytes)
{
    void *p = malloc(bytes);
    if (p == NULL)
        exit(1);
    taken[n_taken++] = p;
    return p;
}

static float *floats(size_t n, float scale)
{
    float *x = take(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = scale * ((float)rand() / (float)RAND_MAX - 0.5F);
    return x;
}

static nsa_tensor tensor(int32_t n_heads, int32_t d)
{
    return nsa_packed(floats((size_t)TOKENS * (size_t)n_heads * (size_t)d, 1.0F), NSA_F32, n_heads, d);
}

static nsa_phi mlp(int32_t block, int32_t d)
{
    nsa_phi phi = {.kind = NSA_PHI_MLP, .dtype = NSA_F32, .d_hidden = HIDDEN};
    phi.pe = floats((size_t)(block * d), 0.1F);
    phi.w1 = floats((size_t)(block * d * HIDDEN), 0.1F);
    phi.w2 = floats((size_t)(HIDDEN * d), 0.5F);
    return phi;
}

int main(void)
{
    nsa_ctx *ctx = NULL;
    check(nsa_ctx_create(&ctx, NULL));

    nsa_config cfg;
    nsa_config_init(&cfg);
    cfg.n_heads_q = HEADS_Q, cfg.n_heads_kv = HEADS_KV, cfg.d_qk = D_QK, cfg.d_v = D_V;
    cfg.win_size = 64, cfg.slc_topk = 4;

    const int32_t cu_seqlens[] = {0, 187, TOKENS};
    const nsa_batch batch = {.n_seqs = 2,
                             .max_seqlen_q = 187,
                             .max_seqlen_k = 187,
                             .total_q = TOKENS,
                             .total_k = TOKENS,
                             .cu_seqlens_q = cu_seqlens,
                             .cu_seqlens_k = cu_seqlens};

    const nsa_tensor q = tensor(HEADS_Q, D_QK);
    const nsa_phi phi_k = mlp(cfg.cmp_block, D_QK), phi_v = mlp(cfg.cmp_block, D_V);
    nsa_forward_args fwd = {
        .q = {q, q, q},
        .k = {tensor(HEADS_KV, D_QK), tensor(HEADS_KV, D_QK), tensor(HEADS_KV, D_QK)},
        .v = {tensor(HEADS_KV, D_V), tensor(HEADS_KV, D_V), tensor(HEADS_KV, D_V)},
        .gate = tensor(HEADS_Q, 3),
        .phi_k = &phi_k,
        .phi_v = &phi_v,
        .o = tensor(HEADS_Q, D_V),
        /* what backward needs: */
        .k_cmp = tensor(HEADS_KV, D_QK),
        .v_cmp = tensor(HEADS_KV, D_V),
        .slc_idx = nsa_packed(take(sizeof(int32_t) * TOKENS * HEADS_KV * (size_t)cfg.slc_topk), NSA_I32, HEADS_KV,
                              cfg.slc_topk),
        .o_branch = {tensor(HEADS_Q, D_V), tensor(HEADS_Q, D_V), tensor(HEADS_Q, D_V)},
        .lse = {tensor(HEADS_Q, 1), tensor(HEADS_Q, 1), tensor(HEADS_Q, 1)},
    };

    size_t bytes = 0;
    check(nsa_forward_workspace(ctx, &cfg, &batch, &fwd, &bytes));
    void *workspace = take(bytes);
    check(nsa_forward(ctx, &cfg, &batch, &fwd, workspace, bytes, NULL));

    const nsa_tensor dq = tensor(HEADS_Q, D_QK); /* the branches share q, so their gradients add up in one tensor */
    const nsa_phi dphi_k = mlp(cfg.cmp_block, D_QK), dphi_v = mlp(cfg.cmp_block, D_V);
    nsa_backward_args bwd = {
        .fwd = fwd,
        .d_o = tensor(HEADS_Q, D_V),
        .dq = {dq, dq, dq},
        .dk = {tensor(HEADS_KV, D_QK), tensor(HEADS_KV, D_QK), tensor(HEADS_KV, D_QK)},
        .dv = {tensor(HEADS_KV, D_V), tensor(HEADS_KV, D_V), tensor(HEADS_KV, D_V)},
        .dgate = tensor(HEADS_Q, 3),
        .dphi_k = &dphi_k,
        .dphi_v = &dphi_v,
    };
    check(nsa_backward_workspace(ctx, &cfg, &batch, &bwd, &bytes));
    workspace = take(bytes);
    check(nsa_backward(ctx, &cfg, &batch, &bwd, workspace, bytes, NULL));

    const int32_t *last = (const int32_t *)fwd.slc_idx.data + (TOKENS - 1) * HEADS_KV * cfg.slc_topk;
    printf("libnsa %s, kernels: %s, threads: %d\n", nsa_version(), nsa_ctx_isa(ctx), nsa_ctx_threads(ctx));
    printf("the last token attends to blocks %d %d %d %d\n", last[0], last[1], last[2], last[3]);
    printf("o[0] = %g, dq[0] = %g\n", (double)((float *)fwd.o.data)[0], (double)((float *)dq.data)[0]);
    nsa_ctx_destroy(ctx);
    for (int i = 0; i < n_taken; i++)
        free(taken[i]);
    return 0;
}
