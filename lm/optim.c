#include "lm/optim.h"

#include <math.h>

enum { CHUNK = 16384, LANES = 8 };

static double sum_of_squares(const float *x, int64_t n)
{
    double part[LANES] = {0};
    for (int64_t i = 0; i < n; i++)
        part[i % LANES] += (double)x[i] * (double)x[i];
    double sum = 0.0;
    for (int l = 0; l < LANES; l++)
        sum += part[l];
    return sum;
}

double gradient_norm(const float *grads, int64_t n)
{
    /* Chunks are summed by any thread, their sums in order: a few hundred at a time, on the stack. */
    enum { GROUP = 256 };
    double total = 0.0;
    for (int64_t first = 0; first < n; first += (int64_t)GROUP * CHUNK) {
        double sums[GROUP] = {0};
#pragma omp parallel for schedule(static)
        for (int c = 0; c < GROUP; c++) {
            const int64_t at = first + (int64_t)c * CHUNK;
            if (at < n)
                sums[c] = sum_of_squares(grads + at, n - at < CHUNK ? n - at : CHUNK);
        }
        for (int c = 0; c < GROUP; c++)
            total += sums[c];
    }
    return sqrt(total);
}

double learning_rate(const train_config *t, int64_t step)
{
    if (step < t->warmup)
        return t->lr * (double)(step + 1) / (double)t->warmup;
    const double span = (double)(t->steps - 1 - t->warmup);
    const double done = span <= 0.0 ? 1.0 : (double)(step - t->warmup) / span;
    const double pi = 3.141592653589793;
    return t->lr * (0.1 + 0.9 * 0.5 * (1.0 + cos(pi * (done < 1.0 ? done : 1.0))));
}

void adamw_step(const train_config *t, const param_table *table, float *weights, const float *grads, float *m, float *v,
                int64_t step, double grad_scale)
{
    const double rate = learning_rate(t, step);
    const float scale = (float)grad_scale;
    const float keep_m = (float)t->beta1;
    const float keep_v = (float)t->beta2;
    const float unbias_m = (float)(1.0 / (1.0 - pow(t->beta1, (double)(step + 1))));
    const float unbias_v = (float)(1.0 / (1.0 - pow(t->beta2, (double)(step + 1))));
    for (int32_t n = 0; n < table->n; n++) {
        const param *p = &table->items[n];
        const float shrink = p->decay ? (float)(1.0 - rate * t->weight_decay) : 1.0F;
        const float size = (float)rate;
#pragma omp parallel for schedule(static)
        for (int64_t i = p->offset; i < p->offset + p->count; i++) {
            const float g = grads[i] * scale;
            m[i] = keep_m * m[i] + (1.0F - keep_m) * g;
            v[i] = keep_v * v[i] + (1.0F - keep_v) * g * g;
            weights[i] = weights[i] * shrink - size * (m[i] * unbias_m) / (sqrtf(v[i] * unbias_v) + 1e-8F);
        }
    }
}
