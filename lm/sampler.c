#include "lm/sampler.h"
#include "lm/config.h"
#include "lm/error.h"
#include "lm/random.h"

#include <math.h>
#include <stdlib.h>

typedef struct candidate {
    double p;
    int32_t byte;
} candidate;

/* Likelier first, of equals the lower byte. */
static int by_likelihood(const void *a, const void *b)
{
    const candidate *x = a;
    const candidate *y = b;
    if (x->p != y->p)
        return x->p > y->p ? -1 : 1;
    return x->byte - y->byte;
}

static int32_t most_likely(const float *logits)
{
    int32_t best = 0;
    for (int32_t i = 1; i < BYTE_VOCABULARY; i++)
        best = logits[i] > logits[best] ? i : best;
    return best;
}

bool sampler_draw(const sampler *s, const float *logits, int64_t index, uint8_t *byte)
{
    for (int32_t i = 0; i < BYTE_VOCABULARY; i++) {
        if (!isfinite(logits[i]))
            return lm_fail("the model's logits are not finite");
    }
    const int32_t best = most_likely(logits);
    *byte = (uint8_t)best;
    if (s->temperature == 0.0)
        return true;
    candidate c[BYTE_VOCABULARY];
    double sum = 0.0;
    for (int32_t i = 0; i < BYTE_VOCABULARY; i++) {
        c[i] = (candidate){exp(((double)logits[i] - (double)logits[best]) / s->temperature), i};
        sum += c[i].p;
    }
    qsort(c, BYTE_VOCABULARY, sizeof c[0], by_likelihood);
    double kept = 0.0;
    int32_t n = 0;
    while (n < BYTE_VOCABULARY && (n == 0 || kept < s->top_p * sum))
        kept += c[n++].p;
    double u = random_unit(s->seed, RANDOM_SAMPLING, (uint64_t)index) * kept;
    int32_t i = 0;
    while (i < n - 1 && u >= c[i].p)
        u -= c[i++].p;
    *byte = (uint8_t)c[i].byte;
    return true;
}
