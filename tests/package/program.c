/* A program outside of the tree, valid as C11 and as C++17: a sequence of one token attends to itself alone. */
#include <nsa.h>

#include <stdio.h>
#include <string.h>

enum { D = 16 };

static int failed(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, nsa_last_error());
    return 1;
}

int main(void)
{
    float qk[D], v[D], o[D], lse[1];
    for (int i = 0; i < D; i++) {
        qk[i] = (float)(i % 3) - 1.0F;
        v[i] = 0.25F * (float)i;
    }
    nsa_config cfg;
    nsa_config_init(&cfg);
    cfg.n_heads_q = cfg.n_heads_kv = 1;
    cfg.d_qk = cfg.d_v = D;
    const int32_t cu_seqlens[] = {0, 1};
    nsa_batch batch;
    memset(&batch, 0, sizeof batch);
    batch.n_seqs = 1;
    batch.total_q = batch.total_k = batch.max_seqlen_q = batch.max_seqlen_k = 1;
    batch.cu_seqlens_q = batch.cu_seqlens_k = cu_seqlens;
    nsa_attn_args args;
    memset(&args, 0, sizeof args);
    args.q = args.k = nsa_packed(qk, NSA_F32, 1, D);
    args.v = nsa_packed(v, NSA_F32, 1, D);
    args.o = nsa_packed(o, NSA_F32, 1, D);
    args.lse = nsa_packed(lse, NSA_F32, 1, 1);

    static char workspace[1 << 20];
    size_t bytes = 0;
    nsa_ctx *ctx = NULL;
    if (nsa_ctx_create(&ctx, NULL) != NSA_OK)
        return failed("nsa_ctx_create");
    if (nsa_win_attn_workspace(ctx, &cfg, &batch, &args, &bytes) != NSA_OK || bytes > sizeof workspace ||
        nsa_win_attn(ctx, &cfg, &batch, &args, workspace, bytes, NULL) != NSA_OK)
        return failed("nsa_win_attn");
    nsa_ctx_destroy(ctx);
    if (memcmp(o, v, sizeof o) != 0)
        return failed("o is not v");
    printf("libnsa %s\n", nsa_version());
    return 0;
}
