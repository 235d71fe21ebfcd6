/* Tests on the CPU: failures are cmocka's, and a call needs no copies. */
#include "testlib/unit.h"
#include "testlib/testlib.h"

#include "core/cpu.h"

#include <stdlib.h>

const nsa_ctx tensor_ctx = {.n_threads = 1};

void end_test(const char *message)
{
    fail_msg("%s", message);
    abort(); /* not reached: fail_msg jumps, but does not say so */
}

int test_contexts(nsa_ctx contexts[MAX_CONTEXTS], int32_t n_threads)
{
    uint32_t features = 0;
    assert_ok(cpu_features(&features));
    int n = 0;
    for (int i = 0; simd_table[i] != NULL && n < MAX_CONTEXTS; i++)
        if ((simd_table[i]->needs & ~features) == 0)
            contexts[n++] = (nsa_ctx){.n_threads = n_threads, .reference = false, .simd = simd_table[i]};
    return n;
}

int n_test_layouts(void)
{
    return N_LAYOUTS_WITH_FAR;
}

void *begin_call(const nsa_ctx *ctx, size_t workspace_bytes)
{
    (void)ctx;
    return workspace(workspace_bytes);
}

void args_on_device(const nsa_ctx *ctx, void *args, size_t bytes)
{
    (void)ctx, (void)args, (void)bytes;
}

void pointers_on_device(const nsa_ctx *ctx, const void *array, size_t bytes)
{
    (void)ctx, (void)array, (void)bytes;
}

void end_call(const nsa_ctx *ctx)
{
    (void)ctx;
}
