#include "lm/params.h"
#include "lm/arena.h"
#include "lm/random.h"

#include <stdio.h>

enum { ALIGN_FLOATS = 16 };

static bool grow(param_table *table)
{
    if (table->n < table->capacity)
        return true;
    const int32_t capacity = table->capacity == 0 ? 64 : 2 * table->capacity;
    param *items = realloc(table->items, size_of(capacity, sizeof *items));
    if (items == NULL)
        return false;
    table->items = items;
    table->capacity = capacity;
    return true;
}

int64_t params_add(param_table *table, const char *name, const int64_t shape[], bool decay, init_kind init, double arg)
{
    if (table->failed || !grow(table)) {
        table->failed = true;
        return 0;
    }
    param *p = &table->items[table->n];
    *p = (param){.offset = table->total, .count = 1, .decay = decay, .init = init, .arg = arg};
    (void)snprintf(p->name, sizeof p->name, "%s", name);
    while (p->n_dims < PARAM_MAX_DIMS && shape[p->n_dims] != 0) {
        p->shape[p->n_dims] = shape[p->n_dims];
        p->count = i64_mul(p->count, shape[p->n_dims]);
        p->n_dims++;
    }
    const int64_t end = i64_add(i64_add(table->total, p->count), ALIGN_FLOATS - 1);
    table->failed = end > INT64_MAX / 64; /* so that bytes fit, too */
    if (table->failed)
        return 0;
    table->total = end / ALIGN_FLOATS * ALIGN_FLOATS;
    table->n++;
    return p->offset;
}

/* One element of a tensor whose last two dimensions are [rows][columns]. */
static double initial(const param *p, int64_t i, uint64_t seed, uint64_t stream)
{
    const int64_t columns = p->shape[p->n_dims - 1];
    const int64_t rows = p->n_dims > 1 ? p->shape[p->n_dims - 2] : 1;
    const int64_t row = i / columns % rows;
    const int64_t column = i % columns;
    switch (p->init) {
    case INIT_ZEROS: return 0.0;
    case INIT_ONES: return 1.0;
    case INIT_NORMAL: return p->arg * random_normal(seed, stream, (uint64_t)i);
    case INIT_MEAN_LINEAR: return row % columns == column ? (double)columns / (double)rows : 0.0;
    case INIT_MEAN_MLP_W1: {
        const int64_t d = (int64_t)p->arg;
        if (column >= 2 * d)
            return random_normal(seed, stream, (uint64_t)i) / sqrt((double)rows);
        const double mean = (double)d / (double)rows;
        return row % d == column / 2 ? (column % 2 == 0 ? mean : -mean) : 0.0;
    }
    case INIT_MEAN_MLP_W2: return row / 2 == column ? (row % 2 == 0 ? 1.0 : -1.0) : 0.0;
    }
    return 0.0;
}

void params_init(const param_table *table, float *weights, uint64_t seed)
{
    for (int32_t n = 0; n < table->n; n++) {
        const param *p = &table->items[n];
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < p->count; i++)
            weights[p->offset + i] = (float)initial(p, i, seed, (uint64_t)n);
    }
}

void params_free(param_table *table)
{
    free(table->items);
    *table = (param_table){0};
}
