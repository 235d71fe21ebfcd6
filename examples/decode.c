/* Generation over a paged KV cache: a prompt in one call, then token by token, then dropping a rejected draft. */
#include <nsa.h>

#include <stdio.h>
#include <stdlib.h>

enum { HEADS_Q = 4, HEADS_KV = 1, D = 32, PAGE = 64, PAGES = 8, PROMPT = 100, DRAFT = 4 };

static void check(nsa_status status)
{
    if (status != NSA_OK) {
        fprintf(stderr, "%s: %s\n", nsa_status_string(status), nsa_last_error());
        exit(1);
    }
}

static nsa_tensor tensor(int32_t n_tokens, int32_t n_heads, int32_t d)
{
    const int32_t n = n_tokens * n_heads * d;
    float *x = malloc((size_t)n * sizeof *x);
    if (x == NULL)
        exit(1);
    for (int32_t i = 0; i < n; i++)
        x[i] = (float)rand() / (float)RAND_MAX - 0.5F;
    return nsa_packed(x, NSA_F32, n_heads, d);
}

/* n_new random tokens, as a model's layer would make them. */
static void step(const nsa_ctx *ctx, const nsa_config *cfg, const nsa_cache *cache, void *state, int32_t n_new)
{
    static const nsa_phi mean = {.kind = NSA_PHI_MEAN};
    static const int32_t page_table[PAGES] = {3, 1, 4, 0, 5, 2, 6, 7}; /* pages in any order */
    const int32_t cu_seqlens[] = {0, n_new};
    const nsa_tensor q = tensor(n_new, HEADS_Q, D), k = tensor(n_new, HEADS_KV, D), v = tensor(n_new, HEADS_KV, D);
    const nsa_cache_args args = {
        .n_seqs = 1,
        .total = n_new,
        .cu_seqlens = cu_seqlens,
        .states = &state,
        .page_table = page_table,
        .pages_per_seq = PAGES,
        .q = {q, q, q},
        .k = {k, k, k},
        .v = {v, v, v},
        .gate = tensor(n_new, HEADS_Q, 3),
        .phi_k = &mean,
        .phi_v = &mean,
        .o = tensor(n_new, HEADS_Q, D),
    };
    size_t bytes = 0;
    check(nsa_decode_workspace(ctx, cfg, cache, &args, &bytes));
    void *workspace = malloc(bytes);
    check(n_new > DRAFT ? nsa_prefill(ctx, cfg, cache, &args, workspace, bytes, NULL)
                        : nsa_decode(ctx, cfg, cache, &args, workspace, bytes, NULL));
    int64_t length = 0;
    check(nsa_cache_length(ctx, state, &length, NULL));
    printf("%d new, %lld held, o[0] = %g\n", n_new, (long long)length, (double)((float *)args.o.data)[0]);
    free(workspace);
    free(q.data), free(k.data), free(v.data), free(args.gate.data), free(args.o.data);
}

int main(void)
{
    nsa_ctx *ctx = NULL;
    check(nsa_ctx_create(&ctx, NULL));
    nsa_config cfg;
    nsa_config_init(&cfg);
    cfg.n_heads_q = HEADS_Q, cfg.n_heads_kv = HEADS_KV, cfg.d_qk = cfg.d_v = D;
    cfg.win_size = 64, cfg.slc_topk = 4;

    nsa_cache cache = {.page_size = PAGE, .max_draft = DRAFT, .shared_kv = 1, .dtype = NSA_F32, .n_pages = PAGES};
    size_t page_bytes = 0, state_bytes = 0;
    check(nsa_cache_page_bytes(ctx, &cfg, &cache, &page_bytes));
    check(nsa_cache_state_bytes(ctx, &cfg, &cache, &state_bytes));
    cache.pages = aligned_alloc(64, page_bytes * PAGES);
    void *state = aligned_alloc(64, state_bytes);
    check(nsa_cache_reset(ctx, &cfg, &cache, state, NULL));

    step(ctx, &cfg, &cache, state, PROMPT);
    for (int i = 0; i < 3; i++)
        step(ctx, &cfg, &cache, state, 1);
    step(ctx, &cfg, &cache, state, DRAFT);                                         /* a draft of 4 ... */
    check(nsa_cache_drop(ctx, &cfg, &cache, state, PROMPT + 3 + DRAFT - 2, NULL)); /* ... of which 2 are rejected */
    step(ctx, &cfg, &cache, state, 1);

    free(state);
    free(cache.pages);
    nsa_ctx_destroy(ctx);
    return 0;
}
