/*
 * What testlib asks of where its problems run, for a GPU: all guarded memory and the workspace are laid into one block,
 * with poison between the pieces, which is copied to the device and back. Poison that a kernel has written fails the
 * test.
 */
#include "gpu/device.h"

#include <cuda_runtime_api.h>

#include <stdlib.h>
#include <string.h>

enum { GAP = 4096 };

/* The pieces in both memories, of which the device's may grow. */
typedef struct piece {
    char *here; /* the workspace has none */
    size_t bytes, at;
} piece;

static struct {
    piece *pieces;
    size_t n, room;
    size_t bytes; /* of all, gaps included */
    char *copy, *device;
    size_t device_bytes;
} block;

static void cuda_ok(cudaError_t error)
{
    if (error != cudaSuccess)
        test_fail("CUDA: %s (%s)", cudaGetErrorName(error), cudaGetErrorString(error));
}

const nsa_ctx tensor_ctx = {.cuda = true};

const nsa_ctx *gpu_context(void)
{
    static nsa_ctx *ctx;
    const nsa_ctx_options options = {.struct_size = sizeof options, .device = NSA_DEVICE_CUDA};
    if (ctx == NULL && nsa_ctx_create(&ctx, &options) != NSA_OK)
        return NULL;
    return ctx;
}

int test_contexts(nsa_ctx contexts[MAX_CONTEXTS], int32_t n_threads)
{
    (void)n_threads;
    contexts[0] = *gpu_context();
    return 1;
}

int n_test_layouts(void)
{
    return N_LAYOUTS;
}

static void add_piece(void *to, char *first, size_t bytes)
{
    (void)to;
    if (block.n == block.room) {
        block.room = 2 * block.room + 64;
        block.pieces = realloc(block.pieces, block.room * sizeof *block.pieces);
        require(block.pieces != NULL);
    }
    block.pieces[block.n++] = (piece){first, bytes, block.bytes + GAP};
    block.bytes = (block.bytes + GAP + bytes + GAP - 1) / GAP * GAP;
}

void *begin_call(const nsa_ctx *ctx, size_t workspace_bytes)
{
    static unsigned turn;
    if (!ctx->cuda)
        return workspace(workspace_bytes);
    block.n = block.bytes = 0;
    each_buffer(add_piece, NULL);
    add_piece(NULL, NULL, workspace_bytes);
    block.bytes += GAP;
    block.copy = realloc(block.copy, block.bytes);
    require(block.copy != NULL);
    memset(block.copy, POISON_BYTE, block.bytes);
    for (size_t i = 0; i + 1 < block.n; i++)
        memcpy(block.copy + block.pieces[i].at, block.pieces[i].here, block.pieces[i].bytes);
    if (block.bytes > block.device_bytes) {
        cuda_ok(cudaFree(block.device));
        block.device_bytes = 2 * block.bytes;
        cuda_ok(cudaMalloc((void **)&block.device, block.device_bytes));
    }
    piece *ws = &block.pieces[block.n - 1];
    ws->at += turn++ % 2; /* a workspace may lie anywhere */
    cuda_ok(cudaMemcpy(block.device, block.copy, block.bytes, cudaMemcpyHostToDevice));
    return block.device + ws->at;
}

void args_on_device(const nsa_ctx *ctx, void *args, size_t bytes)
{
    if (!ctx->cuda)
        return;
    for (size_t at = 0; at + sizeof(char *) <= bytes; at += sizeof(char *)) {
        char *word;
        memcpy(&word, (char *)args + at, sizeof word);
        for (size_t i = 0; i + 1 < block.n; i++) {
            const piece *p = &block.pieces[i];
            /* An empty buffer has no pages and is flush with its neighbour's. */
            if ((uintptr_t)word < (uintptr_t)p->here || (uintptr_t)word > (uintptr_t)p->here + p->bytes)
                continue;
            word = block.device + p->at + ((uintptr_t)word - (uintptr_t)p->here);
            memcpy((char *)args + at, &word, sizeof word);
            break;
        }
    }
}

void pointers_on_device(const nsa_ctx *ctx, const void *array, size_t bytes)
{
    if (!ctx->cuda)
        return;
    void *there = (void *)(uintptr_t)array, *pointers = malloc(bytes);
    require(pointers != NULL);
    memcpy(pointers, array, bytes);
    args_on_device(ctx, &there, sizeof there);
    args_on_device(ctx, pointers, bytes);
    cuda_ok(cudaMemcpy(there, pointers, bytes, cudaMemcpyHostToDevice));
    free(pointers);
}

void end_call(const nsa_ctx *ctx)
{
    if (!ctx->cuda)
        return;
    cuda_ok(cudaDeviceSynchronize());
    cuda_ok(cudaMemcpy(block.copy, block.device, block.bytes, cudaMemcpyDeviceToHost));
    size_t at = 0;
    for (size_t i = 0; i < block.n; i++) {
        const piece *p = &block.pieces[i];
        for (; at < p->at; at++)
            if ((unsigned char)block.copy[at] != POISON_BYTE)
                test_fail("written before buffer %zu of %zu, of %zu bytes", i, block.n, p->bytes);
        if (p->here != NULL)
            memcpy(p->here, block.copy + p->at, p->bytes);
        at = p->at + p->bytes;
    }
    for (; at < block.bytes; at++)
        if ((unsigned char)block.copy[at] != POISON_BYTE)
            test_fail("written past the end of the workspace");
}
