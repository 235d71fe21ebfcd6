/* Bad input to the functions of the cache: see test_errors.c. */
#include "nsa/kv_cache.h"
#include "testlib/unit.h"
#include "testlib/bad_args.h"

static nsa_status size_prefill(world *w)
{
    return nsa_prefill_workspace(w->ctx, w->cfg_arg, w->cache_arg, w->no_args ? NULL : &w->cache_args, w->bytes_arg);
}

static nsa_status run_prefill(world *w)
{
    return nsa_prefill(w->ctx, w->cfg_arg, w->cache_arg, w->no_args ? NULL : &w->cache_args, w->workspace,
                       w->workspace_bytes, NULL);
}

static nsa_status size_decode(world *w)
{
    return nsa_decode_workspace(w->ctx, w->cfg_arg, w->cache_arg, w->no_args ? NULL : &w->cache_args, w->bytes_arg);
}

static nsa_status run_decode(world *w)
{
    return nsa_decode(w->ctx, w->cfg_arg, w->cache_arg, w->no_args ? NULL : &w->cache_args, w->workspace,
                      w->workspace_bytes, NULL);
}

static nsa_status run_page_bytes(world *w)
{
    return nsa_cache_page_bytes(w->ctx, w->cfg_arg, w->cache_arg, w->bytes_arg);
}

static nsa_status run_state_bytes(world *w)
{
    return nsa_cache_state_bytes(w->ctx, w->cfg_arg, w->cache_arg, w->bytes_arg);
}

static nsa_status run_reset(world *w)
{
    return nsa_cache_reset(w->ctx, w->cfg_arg, w->cache_arg, w->state_arg, NULL);
}

static nsa_status run_drop(world *w)
{
    return nsa_cache_drop(w->ctx, w->cfg_arg, w->cache_arg, w->state_arg, w->n_tokens, NULL);
}

static nsa_status run_length(world *w)
{
    return nsa_cache_length(w->ctx, w->state_arg, w->n_tokens_arg, NULL);
}

/* ---- The cache itself */

static const bad bad_cache[] = {
    BAD("cache is NULL", cache_arg, 0),
    BAD("cache.page_size", cache.page_size, 0),
    BAD("cache.page_size", cache.page_size, -8),
    BAD("cache.page_size", cache.page_size, 6), /* no multiple of slc_block */
    BAD("cache.max_draft", cache.max_draft, -1),
    BAD("cache.dtype", cache.dtype, NSA_I32),
    BAD("cache.dtype", cache.dtype, 99),
    BAD("cache.n_pages", cache.n_pages, -1),
    BAD("cache.n_pages", cache.n_pages, 0x1p40),
};

static const bad bad_bytes[] = {BAD("bytes is NULL", bytes_arg, 0)};

static const bad bad_reset[] = {
    BAD("state is NULL", state_arg, 0),
    BAD("state is not aligned", state_arg, 8),
};

/* The first sequence holds 3 tokens, 2 of which may be dropped. */
static const bad bad_drop[] = {
    BAD("state is NULL", state_arg, 0), BAD("state is not aligned", state_arg, 8),
    BAD("n_tokens is 0", n_tokens, 0),  BAD("n_tokens is -1", n_tokens, -1),
    BAD("n_tokens is 4", n_tokens, 4),  BAD("state", cache.max_draft, 3), /* other sizes than when it was reset */
};

static const bad bad_length[] = {
    BAD("ctx is NULL", ctx, 0),
    BAD("state is NULL", state_arg, 0),
    BAD("state is not aligned", state_arg, 8),
    BAD("n_tokens is NULL", n_tokens_arg, 0),
};

static void test_cache(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        call_fn *run;
        const bad *cases;
        size_t n;
    } functions[] = {
        {"nsa_cache_page_bytes", run_page_bytes, bad_bytes, 1},
        {"nsa_cache_state_bytes", run_state_bytes, bad_bytes, 1},
        {"nsa_cache_reset", run_reset, bad_reset, sizeof bad_reset / sizeof *bad_reset},
        {"nsa_cache_drop", run_drop, bad_drop, sizeof bad_drop / sizeof *bad_drop},
    };
    world w;
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        world_init(&w);
        run_cases(&w, functions[i].name, NULL, functions[i].run, bad_cfg, n_bad_cfg);
        world_init(&w);
        RUN_CASES(&w, functions[i].name, NULL, functions[i].run, bad_cache);
        world_init(&w);
        run_cases(&w, functions[i].name, NULL, functions[i].run, functions[i].cases, functions[i].n);
    }
    world_init(&w);
    RUN_CASES(&w, "nsa_cache_length", NULL, run_length, bad_length);
    assert_int_equal(w.n_tokens, 3);

    w.state_arg = guarded(4096, FLUSH_LEFT); /* has seen no reset */
    expect_failure(&w, run_length, NSA_ERR_INVALID_ARGUMENT, "nsa_cache_reset");
    expect_failure(&w, run_drop, NSA_ERR_INVALID_ARGUMENT, "nsa_cache_reset");
}

/* ---- Calls that append */

static const bad bad_args[] = {
    BAD("args is NULL", no_args, 1),
    BAD("cache.pages is NULL", cache.pages, 0),
    BAD("cache.pages is not aligned", cache.pages, 8),
    BAD("args.n_seqs", cache_args.n_seqs, -1),
    BAD("args.max_seqlen", cache_args.max_seqlen, -1),
    BAD("args.max_seqlen", cache_args.max_seqlen, 1),
    BAD("args.total", cache_args.total, -1),
    BAD("args.total", cache_args.total, 16),
    BAD("args.cu_seqlens", cache_args.cu_seqlens, 0),
    BAD("args.cu_seqlens", cache_args.cu_seqlens, 2),
    BAD("args.cu_seqlens[0]", cu_q[0], 1),
    BAD("args.cu_seqlens[2]", cu_q[2], 4),
    BAD("args.states is NULL", cache_args.states, 0),
    BAD("args.states[1] is NULL", states[1], 0),
    BAD("args.states[1] is not aligned", states[1], 8),
    BAD("args.states[0]", cache.max_draft, 3), /* other sizes than when it was reset */
    BAD("args.page_table is NULL", cache_args.page_table, 0),
    BAD("args.page_table[0][0]", page_table[0][0], -1),
    BAD("args.page_table[2][1]", page_table[2][1], 6),
    BAD("args.page_table[2]", page_table[2][1], 3), /* its own first page */
    BAD("sequences 0 and 2 would both write page 5", page_table[2][1], 5),
    BAD("args.pages_per_seq", cache_args.pages_per_seq, -1),
    BAD("args.pages_per_seq", cache_args.pages_per_seq, 0),
    BAD("args.pages_per_seq", cache_args.pages_per_seq, 1),
    BAD_OTHER("args.q[0]", cache_args.q[0]),
    BAD_OTHER("args.q[2]", cache_args.q[2]),
    BAD_OTHER("args.k[0]", cache_args.k[0]),
    BAD_OTHER("args.k[1]", cache_args.k[1]),
    BAD_OTHER("args.v[1]", cache_args.v[1]),
    BAD_OTHER("args.v[2]", cache_args.v[2]),
    BAD_OTHER("args.gate", cache_args.gate),
    BAD("args.phi_k is NULL", cache_args.phi_k, 0),
    BAD("args.phi_v is NULL", cache_args.phi_v, 0),
    BAD("args.phi_k.w1", phi_k.w1, 0),
    BAD("args.phi_v.kind", phi_v.kind, 9),
    BAD_OUTPUT("args.o", cache_args.o),
    BAD_OPTIONAL("args.slc_idx", cache_args.slc_idx),
};

static void test_append(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        call_fn *size, *run;
    } functions[] = {
        {"nsa_prefill", size_prefill, run_prefill},
        {"nsa_decode", size_decode, run_decode},
    };
    for (int i = 0; i < 2; i++) {
        world w;
        world_init(&w);
        run_cases(&w, functions[i].name, functions[i].size, functions[i].run, bad_cfg, n_bad_cfg);
        world_init(&w);
        RUN_CASES(&w, functions[i].name, functions[i].size, functions[i].run, bad_cache);
        world_init(&w);
        RUN_CASES(&w, functions[i].name, functions[i].size, functions[i].run, bad_args);
        world_init(&w);
        run_workspace_cases(&w, functions[i].name, functions[i].size, functions[i].run);

        world_init(&w);
        test_note("%s, one state twice", functions[i].name);
        w.states[2] = w.states[0];
        expect_failure(&w, functions[i].run, NSA_ERR_INVALID_ARGUMENT, "args.states[2]");
        world_init(&w);
        test_note("%s, outputs in one memory", functions[i].name);
        w.cache_args.slc_idx.data = w.cache_args.o.data;
        expect_failure(&w, functions[i].run, NSA_ERR_INVALID_ARGUMENT, "args.slc_idx");
    }
}

/* A state from elsewhere, or written over: a length that cannot be would be an index out of bounds. */
static void test_damaged_state(void **state)
{
    (void)state;
    static const int64_t headers[][2] = {
        {-1, 3}, {4, 3}, {3, -1}, {0, INT64_C(1) << 31}, {INT64_MAX, INT64_MAX}, {INT64_MIN, 3}, {3, INT64_MIN}};
    for (size_t i = 0; i < sizeof headers / sizeof *headers; i++) {
        world w;
        world_init(&w);
        test_note("length %lld, longest %lld", (long long)headers[i][0], (long long)headers[i][1]);
        cache_header *h = w.states[0];
        h->length = headers[i][0];
        h->longest = headers[i][1];
        for (int b = 0; b < w.n_watched; b++)
            memcpy(w.watched[b].copy, w.watched[b].data, w.watched[b].bytes);
        expect_failure(&w, run_prefill, NSA_ERR_INVALID_ARGUMENT, "args.states[0] is damaged");
        expect_failure(&w, size_decode, NSA_ERR_INVALID_ARGUMENT, "args.states[0] is damaged");
        w.state_arg = w.states[0];
        expect_failure(&w, run_drop, NSA_ERR_INVALID_ARGUMENT, "state is damaged");
        expect_failure(&w, run_length, NSA_ERR_INVALID_ARGUMENT, "state is damaged");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cache),
        cmocka_unit_test(test_append),
        cmocka_unit_test(test_damaged_state),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
