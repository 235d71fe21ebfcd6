#include "cuda/tensor_map_sm90.h"
#include "core/dtype.h"

#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

enum { ALIGN = 16 };

typedef struct map_dim {
    int64_t n, stride; /* of elements */
} map_dim;

/* Of head, row and sequence. */
static void dims_of(const nsa_tensor *t, const map_rows *rows, map_dim dims[3])
{
    const bool packed = t->stride_seq == 0;
    dims[0] = (map_dim){rows->n_heads, t->stride_head};
    dims[1] = (map_dim){packed ? rows->total : rows->max, t->stride_token};
    dims[2] = (map_dim){packed ? 1 : rows->n_seqs, t->stride_seq};
}

static bool supports(const nsa_tensor *t, const map_rows *rows, int32_t box_channels)
{
    map_dim dims[3];
    dims_of(t, rows, dims);
    for (int i = 0; i < 3; i++) {
        const int64_t bytes = dims[i].stride * (int64_t)dtype_size(t->dtype);
        if (dims[i].n < 1 || dims[i].n > UINT32_MAX)
            return false;
        if (dims[i].n > 1 && (bytes <= 0 || bytes >= INT64_C(1) << 40 || bytes % ALIGN != 0))
            return false;
    }
    return rows->d % box_channels == 0 && (uintptr_t)t->data % ALIGN == 0;
}

bool tensor_map_supports(const nsa_tensor *t, const map_rows *rows)
{
    return t->dtype == NSA_BF16 && supports(t, rows, BOX_CHANNELS);
}

bool tensor_map_supports_f32(const nsa_tensor *t, const map_rows *rows)
{
    return t->dtype == NSA_F32 && supports(t, rows, BOX_CHANNELS_F32);
}

/* The driver's function is found when it is needed: the library loads where there is no driver. */
static cudaError_t find_encoder(PFN_cuTensorMapEncodeTiled_v12000 *encode)
{
    enum cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", (void **)encode, 12000, cudaEnableDefault, &result);
    if (error != cudaSuccess)
        return error;
    return result == cudaDriverEntryPointSuccess ? cudaSuccess : cudaErrorNotSupported;
}

int tensor_map(CUtensorMap *map, const nsa_tensor *t, const map_rows *rows, int32_t box_heads, int32_t box_rows)
{
    PFN_cuTensorMapEncodeTiled_v12000 encode = NULL;
    const cudaError_t error = find_encoder(&encode);
    if (error != cudaSuccess)
        return (int)error;
    const bool f32 = t->dtype == NSA_F32;
    map_dim dims[3];
    dims_of(t, rows, dims);
    cuuint64_t sizes[4] = {(cuuint64_t)rows->d}, strides[3];
    for (int i = 0; i < 3; i++) {
        sizes[i + 1] = (cuuint64_t)dims[i].n;
        strides[i] =
            dims[i].n > 1 ? (cuuint64_t)dims[i].stride * dtype_size(t->dtype) : ALIGN; /* of one: any valid stride */
    }
    const cuuint32_t box[] = {f32 ? BOX_CHANNELS_F32 : BOX_CHANNELS, (cuuint32_t)box_heads, (cuuint32_t)box_rows, 1},
                     steps[] = {1, 1, 1, 1};
    const CUresult result =
        encode(map, f32 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, t->data, sizes,
               strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}
