/* Any file as safetensors: refused, or its tensors cover the data, are found by name and read back whole. */
#include "fuzz/fuzz.h"

#include "lm/safetensors.h"

#include <stdlib.h>
#include <string.h>

/* The caller's memory is what the shape says. */
static size_t bytes_of_f32(const safetensor *t)
{
    size_t bytes = sizeof(float);
    for (int32_t i = 0; i < t->n_dims; i++)
        bytes *= (size_t)t->shape[i];
    return bytes;
}

static void read_tensor(const safetensors *f, const safetensor *t, const uint8_t *file)
{
    const bool is_f32 = strcmp(t->dtype, "F32") == 0;
    const size_t bytes = is_f32 ? bytes_of_f32(t) : 0;
    float *data = malloc(bytes);
    const bool ok = safetensors_read_f32(f, t->name, t->n_dims, t->shape, data);
    FUZZ_CHECK(ok == is_f32);
    FUZZ_CHECK(!ok || bytes == 0 || memcmp(data, file + f->data_start + t->begin, bytes) == 0);
    int64_t other[SAFETENSORS_MAX_DIMS + 1] = {0};
    memcpy(other, t->shape, sizeof t->shape);
    FUZZ_CHECK(!safetensors_read_f32(f, t->name, t->n_dims + 1, other, data));
    other[0]++;
    FUZZ_CHECK(t->n_dims == 0 || !safetensors_read_f32(f, t->name, t->n_dims, other, data));
    free(data);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    safetensors f;
    if (!safetensors_open(&f, fuzz_file(data, size)))
        return 0;
    int64_t end = 0;
    for (int32_t i = 0; i < f.n; i++) {
        const safetensor *t = &f.items[i];
        FUZZ_CHECK(t->begin == end && t->end >= t->begin);
        end = t->end;
        FUZZ_CHECK(t->n_dims >= 0 && t->n_dims <= SAFETENSORS_MAX_DIMS);
        FUZZ_CHECK(safetensors_find(&f, t->name) == t);
        read_tensor(&f, t, data);
    }
    FUZZ_CHECK(f.data_start + end == (int64_t)size);
    safetensors_close(&f);
    return 0;
}
