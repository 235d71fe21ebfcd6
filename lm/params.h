/* The parameters of a model: named tensors in one allocation, described by a table. */
#ifndef LM_PARAMS_H
#define LM_PARAMS_H

#include <stdbool.h>
#include <stdint.h>

typedef enum init_kind {
    INIT_ZEROS,
    INIT_ONES,
    INIT_NORMAL,      /* of standard deviation arg */
    INIT_MEAN_LINEAR, /* phi linear's w1 [.., block*d, d]: the mean of the block */
    INIT_MEAN_MLP_W1, /* phi mlp's w1 [.., block*d, hidden] and w2 [.., hidden, d]: hidden channels 2c and 2c+1 are */
    INIT_MEAN_MLP_W2  /* +mean and -mean of channel c, since GELU(z) - GELU(-z) = z; what is left starts at random in
                         w1 and at 0 in w2. With hidden >= 2 d this is the mean exactly. */
} init_kind;

enum { PARAM_MAX_DIMS = 3 };

typedef struct param {
    char name[64];
    int32_t n_dims;
    int64_t shape[PARAM_MAX_DIMS];
    int64_t offset; /* floats from the start of the allocation; a multiple of 16 */
    int64_t count;
    bool decay;
    init_kind init;
    double arg; /* of init: the standard deviation, or the d of INIT_MEAN_MLP_W1 */
} param;

typedef struct param_table {
    param *items;
    int32_t n, capacity;
    int64_t total; /* floats, padding included */
    bool failed;   /* out of memory, or sizes that overflow */
} param_table;

/* Adds a tensor and returns its offset. Failure is kept in the table: look once, at the end. shape ends with 0. */
int64_t params_add(param_table *table, const char *name, const int64_t shape[], bool decay, init_kind init, double arg);

void params_init(const param_table *table, float *weights, uint64_t seed);

void params_free(param_table *table);

#endif
