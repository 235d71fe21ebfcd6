/* The next byte from the model's logits. */
#ifndef LM_SAMPLER_H
#define LM_SAMPLER_H

#include <stdbool.h>
#include <stdint.h>

typedef struct sampler {
    double temperature; /* 0: the most likely byte */
    double top_p;       /* the likeliest bytes whose probabilities reach top_p; 1: all */
    uint64_t seed;
} sampler;

/* Draw number `index` from logits [256]. Logits that are not finite are an error. */
bool sampler_draw(const sampler *s, const float *logits, int64_t index, uint8_t *byte);

#endif
