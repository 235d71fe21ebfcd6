/* Attention over keys in the pages of a cache, and in a ring that goes on in the new tokens' tensor: the same bits as
 * over keys in a tensor. What a cache has not written, or has written over, is NaN. */
#include "testlib/unit.h"
#include "testlib/attn_case.h"

static const nsa_config blocks = {sizeof(nsa_config), 0, 0, 0, 0, 8, 4, 16, 3, 1, 1, 13, 0.0};
static const seq_lengths lengths[] = {{5, 40}, {1, 67}, {13, 13}, {1, 12}, {0, 9}, {3, 3}, {16, 131}, {1, 13}, {2, 14}};
enum { N_SEQS = sizeof lengths / sizeof *lengths, PAGE = 16, PAGES_PER_SEQ = 9, PART_K = 0, PART_V = 1 };

typedef struct cache {
    const attn_case *c;
    int32_t page_rows; /* keys, or compressed keys */
    int64_t page_bytes, offset_v;
    char *pages;
    int32_t table[N_SEQS][PAGES_PER_SEQ];
    int64_t ring_rows;    /* win only */
    char *rings[2];       /* K, V: [seq][head][ring_rows][d] */
    test_tensor fresh[2]; /* K, V of the last t_q tokens */
} cache;

static int64_t length_of(const void *of, int32_t s)
{
    const cache *x = of;
    return x->c->batch.cu_seqlens_k[s + 1] - x->c->batch.cu_seqlens_k[s];
}

/* A page is, for each head, K [page_rows][d_qk] and then V [page_rows][d_v]. */
static void locate(const void *of, int part, int32_t s, int32_t head, rows *out)
{
    const cache *x = of;
    if (x->c->op->branch != NSA_WIN) {
        out->split = INT64_MAX;
        out->pages = x->pages;
        out->table = x->table[s];
        out->page_bytes = x->page_bytes;
        out->page_rows = x->page_rows;
        out->offset = head * (x->page_bytes / x->c->cfg.n_heads_kv) + (part == PART_V ? x->offset_v : 0);
    } else {
        out->split = length_of(x, s) - lengths[s].q;
        out->ring = x->rings[part] + (s * x->c->cfg.n_heads_kv + head) * x->ring_rows * out->row_bytes;
        out->ring_rows = x->ring_rows;
    }
}

static row_source source(const cache *x, int part)
{
    const test_tensor *from = part == PART_V ? &x->c->v : &x->c->k;
    row_source src = {.dtype = from->t.dtype, .d = from->e.d, .start_div = 1, .cu = x->c->batch.cu_seqlens_q};
    src.locate = locate;
    src.cache = x;
    src.part = part;
    if (x->c->op->branch == NSA_WIN)
        src.tensor = x->fresh[part].t;
    return src;
}

/* Moves the keys of the case to where the cache has them. */
static void fill(cache *x, int part)
{
    const test_tensor *from = part == PART_V ? &x->c->v : &x->c->k;
    const bool win = x->c->op->branch == NSA_WIN;
    for (int32_t s = 0; s < N_SEQS; s++)
        for (int32_t h = 0; h < from->e.n_heads; h++) {
            rows to = {.row_bytes = from->e.d * (int64_t)dtype_size(from->t.dtype)};
            locate(x, part, s, h, &to);
            const int64_t n = win ? to.split : tensor_rows(from, s);
            to.split = INT64_MAX;
            for (int64_t r = win ? max_i64(0, n - x->ring_rows) : 0; r < tensor_rows(from, s); r++)
                for (int32_t c = 0; c < from->e.d; c++)
                    if (r < n)
                        dtype_set((void *)(uintptr_t)rows_at(&to, r), from->t.dtype, c, tensor_get(from, s, r, h, c));
                    else
                        tensor_set(&x->fresh[part], s, r - n, h, c, tensor_get(from, s, r, h, c));
        }
}

static void init(cache *x, const attn_case *c, rng *r)
{
    const nsa_config *cfg = &c->cfg;
    const int64_t size = (int64_t)dtype_size(c->k.t.dtype);
    *x = (cache){.c = c, .page_rows = c->op->branch == NSA_CMP ? PAGE / cfg->cmp_stride : PAGE};
    x->offset_v = x->page_rows * cfg->d_qk * size;
    x->page_bytes = cfg->n_heads_kv * (x->offset_v + x->page_rows * cfg->d_v * size);
    x->pages = guarded((size_t)(N_SEQS * PAGES_PER_SEQ * x->page_bytes), FLUSH_RIGHT);
    const int32_t first = rng_range(r, 0, N_SEQS * PAGES_PER_SEQ - 1);
    for (int32_t i = 0; i < N_SEQS * PAGES_PER_SEQ; i++) /* 20 and 81 have no common divisor */
        x->table[i / PAGES_PER_SEQ][i % PAGES_PER_SEQ] = (first + 20 * i) % (N_SEQS * PAGES_PER_SEQ);
    x->ring_rows = cfg->win_size - 1;
    for (int part = 0; part < 2; part++) {
        const int32_t d = part == PART_V ? cfg->d_v : cfg->d_qk;
        x->rings[part] = guarded((size_t)(N_SEQS * cfg->n_heads_kv * x->ring_rows * d * size), FLUSH_RIGHT);
        x->fresh[part] = tensor_new(cfg, &c->batch, SIDE_Q, cfg->n_heads_kv, d, c->k.t.dtype, LAYOUT_GAPS);
        fill(x, part);
    }
}

static void compare(const cache *x, const nsa_ctx *ctx, const attn_impl *impl)
{
    const attn_case *c = x->c;
    const nsa_dtype dtype = c->q.t.dtype;
    const attn_out want = attn_out_new(c, dtype, LAYOUT_THD), got = attn_out_new(c, dtype, LAYOUT_THD);
    attn_run_forward(c, ctx, impl->forward, REF_EXACT, &want);
    const attn_problem p = {
        .ctx = ctx,
        .cfg = &c->cfg,
        .seqs =
            {.n = N_SEQS, .total_q = c->batch.total_q, .cu_q = c->batch.cu_seqlens_q, .len_k = length_of, .cache = x},
        .q = c->q.t,
        .k = source(x, PART_K),
        .v = source(x, PART_V),
        .slc_idx = c->slc_idx.t,
        .o = got.o.t,
        .lse = got.lse.t,
        .branch = c->op->branch,
    };
    static const int32_t n_threads[] = {2, 20, 40}; /* of 20 two share a tile, of 40 four */
    for (int i = 0; i < 3; i++) {
        nsa_ctx other = *ctx;
        attn_problem with = p;
        other.n_threads = n_threads[i];
        with.ctx = &other;
        run_op(&other, impl->forward, &with, sizeof with);
        assert_same_bits("o", &got.o, &want.o);
        assert_same_bits("lse", &got.lse, &want.lse);
    }
}

static void test_keys_in_a_cache(void **state)
{
    const attn_op *op = *state;
    static const attn_shape shapes[] = {
        {2, 2, 16, 8, NSA_F32, LAYOUT_THD, LAYOUT_THD, LAYOUT_THD, false, 0.0},
        {3, 1, 5, 7, NSA_BF16, LAYOUT_THD, LAYOUT_THD, LAYOUT_THD, false, 0.0},
        {1, 2, 64, 64, NSA_F16, LAYOUT_THD, LAYOUT_THD, LAYOUT_THD, false, 0.0},
        {3, 1, 24, 100, NSA_BF16, LAYOUT_THD, LAYOUT_THD, LAYOUT_THD, false, 0.0},
        {4, 1, 32, 130, NSA_F32, LAYOUT_THD, LAYOUT_THD, LAYOUT_THD, false, 0.0},
    };
    static const int32_t windows[] = {13, 1, 70, 70, 13};
    rng r = rng_new();
    nsa_ctx contexts[MAX_CONTEXTS];
    const int n_contexts = test_contexts(contexts, 2);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        testlib_reset();
        nsa_config cfg = blocks;
        cfg.win_size = windows[i];
        const nsa_batch batch = batch_of(lengths, N_SEQS);
        attn_case c;
        cache x;
        attn_case_init(&c, op, &cfg, &batch, &shapes[i], &r);
        init(&x, &c, &r);
        for (int k = 0; k < n_contexts; k++)
            for (const attn_impl *impl = op->impls; impl->name != NULL; impl++) {
                if (!attn_takes(x.c, &contexts[k], impl))
                    continue;
                test_note("%s %s, %s, shape %zu", op->name, impl->name, nsa_ctx_isa(&contexts[k]), i);
                compare(&x, &contexts[k], impl);
            }
    }
}

#define TESTS_OF(op)                                                                                                   \
    {                                                                                                                  \
#op "_attn keys in a cache", test_keys_in_a_cache, NULL, NULL, (void *)&attn_ops[op]                           \
    }

int main(void)
{
    enum { cmp = NSA_CMP, slc = NSA_SLC, win = NSA_WIN };
    const struct CMUnitTest tests[] = {TESTS_OF(cmp), TESTS_OF(slc), TESTS_OF(win)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
