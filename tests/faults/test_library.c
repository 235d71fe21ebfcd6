/*
 * The library allocates in nsa_ctx_create and nowhere else, and lives through the failure of that.
 *
 * The linker sends the allocations of the objects of this program, the library's among them, through the __wrap_
 * functions below (--wrap, in CMakeLists.txt). Those that OpenMP makes for its threads are not seen.
 */
#include "testlib/unit.h"
#include "testlib/bad_args.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static atomic_int n_calls, n_live;
static bool none_left; /* every allocation fails */

void *__real_malloc(size_t bytes);
void __real_free(void *p);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t bytes);
void *__wrap_aligned_alloc(size_t alignment, size_t bytes);
int __wrap_posix_memalign(void **p, size_t alignment, size_t bytes);
void __wrap_free(void *p);

void *__wrap_malloc(size_t bytes)
{
    n_calls++;
    void *p = none_left ? NULL : __real_malloc(bytes);
    n_live += p != NULL;
    return p;
}

void __wrap_free(void *p)
{
    n_live -= p != NULL;
    __real_free(p);
}

/* The library has no use for these: one that it learns to use must be given its place above. */
void *__wrap_calloc(size_t n, size_t size)
{
    (void)n;
    (void)size;
    n_calls++;
    return NULL;
}

void *__wrap_realloc(void *p, size_t bytes)
{
    (void)p;
    return __wrap_calloc(1, bytes);
}

void *__wrap_aligned_alloc(size_t alignment, size_t bytes)
{
    return __wrap_calloc(alignment, bytes);
}

int __wrap_posix_memalign(void **p, size_t alignment, size_t bytes)
{
    *p = __wrap_calloc(alignment, bytes);
    return 1;
}

static void test_context(void **state)
{
    (void)state;
    nsa_ctx *ctx = (nsa_ctx *)&n_calls;
    none_left = true;
    assert_int_equal(nsa_ctx_create(&ctx, NULL), NSA_ERR_OUT_OF_MEMORY);
    none_left = false;
    assert_null(ctx);
    assert_non_null(strstr(nsa_last_error(), "out of memory"));
    assert_int_equal(n_calls, 1);
    assert_int_equal(n_live, 0);

    assert_int_equal(nsa_ctx_create(&ctx, NULL), NSA_OK);
    assert_int_equal(n_calls, 2);
    assert_int_equal(n_live, 1);
    nsa_ctx_destroy(ctx);
    nsa_ctx_destroy(NULL);
    assert_int_equal(n_live, 0);
}

/* ---- Everything else */

#define DEFINE_RUN(op, problem, member)                                                                                \
    static nsa_status run_##op(world *w)                                                                               \
    {                                                                                                                  \
        const nsa_status status = nsa_##op##_workspace(w->ctx, &w->cfg, &w->problem, &w->member, &w->bytes);           \
        assert_int_equal(status, NSA_OK);                                                                              \
        assert_true(w->bytes <= w->workspace_bytes);                                                                   \
        return nsa_##op(w->ctx, &w->cfg, &w->problem, &w->member, w->workspace, w->workspace_bytes, NULL);             \
    }
DEFINE_RUN(compress, batch, compress)
DEFINE_RUN(compress_backward, batch, compress_backward)
DEFINE_RUN(cmp_attn, batch, cmp_attn)
DEFINE_RUN(slc_attn, batch, attn)
DEFINE_RUN(win_attn, batch, attn)
DEFINE_RUN(cmp_attn_backward, batch, cmp_attn_backward)
DEFINE_RUN(slc_attn_backward, batch, attn_backward)
DEFINE_RUN(win_attn_backward, batch, attn_backward)
DEFINE_RUN(select, batch, select)
DEFINE_RUN(forward, batch, forward)
DEFINE_RUN(backward, batch, backward)
DEFINE_RUN(prefill, cache, cache_args)
DEFINE_RUN(decode, cache, cache_args)

static nsa_status run_gate(world *w)
{
    return nsa_gate(w->ctx, &w->cfg, &w->batch, &w->gate, NULL);
}

static nsa_status run_gate_backward(world *w)
{
    return nsa_gate_backward(w->ctx, &w->cfg, &w->batch, &w->gate_backward, NULL);
}

static nsa_status run_cache_calls(world *w)
{
    size_t bytes;
    int64_t length;
    assert_int_equal(nsa_cache_page_bytes(w->ctx, &w->cfg, &w->cache, &bytes), NSA_OK);
    assert_int_equal(nsa_cache_state_bytes(w->ctx, &w->cfg, &w->cache, &bytes), NSA_OK);
    assert_int_equal(nsa_cache_length(w->ctx, w->states[0], &length, NULL), NSA_OK);
    assert_int_equal(nsa_cache_drop(w->ctx, &w->cfg, &w->cache, w->states[0], 1, NULL), NSA_OK);
    return nsa_cache_reset(w->ctx, &w->cfg, &w->cache, w->states[0], NULL);
}

static call_fn *const functions[] = {
    run_compress,          run_compress_backward, run_cmp_attn,          run_slc_attn, run_win_attn,
    run_cmp_attn_backward, run_slc_attn_backward, run_win_attn_backward, run_select,   run_gate,
    run_gate_backward,     run_forward,           run_backward,          run_prefill,  run_decode,
    run_cache_calls,
};

static void test_no_other_call_allocates(void **state)
{
    (void)state;
    static nsa_ctx contexts[MAX_CONTEXTS + 1];
    int n = test_contexts(contexts, 2);
    contexts[n] = contexts[0];
    contexts[n++].reference = true;
    for (int i = 0; i < n; i++) {
        for (size_t f = 0; f < sizeof functions / sizeof *functions; f++) {
            world w;
            world_init(&w);
            test_note("function %zu, %s", f, nsa_ctx_isa(&contexts[i]));
            w.ctx = &contexts[i];
            n_calls = 0;
            assert_int_equal(functions[f](&w), NSA_OK);
            assert_int_equal(n_calls, 0);
        }
    }
    assert_int_equal(nsa_forward(contexts, NULL, NULL, NULL, NULL, 0, NULL), NSA_ERR_INVALID_ARGUMENT);
    assert_int_equal(n_calls, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_context),
        cmocka_unit_test(test_no_other_call_allocates),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
