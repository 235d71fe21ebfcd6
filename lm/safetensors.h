/*
 * The safetensors file format, strictly: 8 bytes of header length (little-endian), a JSON header
 *
 *     {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ..., "__metadata__": {"key": "text"}}
 *
 * and the data, which the tensors cover without gap or overlap. Anything else is refused before a byte of data is read.
 */
#ifndef LM_SAFETENSORS_H
#define LM_SAFETENSORS_H

#include <stdbool.h>
#include <stdint.h>

enum { SAFETENSORS_MAX_DIMS = 8 };

typedef struct safetensor {
    char *name;
    char dtype[8]; /* "F32" */
    int32_t n_dims;
    int64_t shape[SAFETENSORS_MAX_DIMS];
    int64_t begin, end; /* bytes from the start of the data */
} safetensor;

typedef struct safetensors {
    char *path;
    int fd;
    int64_t data_start;
    safetensor *items; /* by ascending offset */
    int32_t n;
} safetensors;

bool safetensors_open(safetensors *file, const char *path);
void safetensors_close(safetensors *file);

const safetensor *safetensors_find(const safetensors *file, const char *name); /* NULL: none */

/* The tensor `name`, which must be F32 of this shape. */
bool safetensors_read_f32(const safetensors *file, const char *name, int32_t n_dims, const int64_t shape[],
                          float *data);

/* What is to be written, in this order. */
typedef struct safetensor_source {
    const char *name;
    int32_t n_dims;
    const int64_t *shape;
    const float *data;
} safetensor_source;

/* A new file, on the disk when this returns. */
bool safetensors_write_f32(const char *path, const safetensor_source *tensors, int32_t n);

#endif
