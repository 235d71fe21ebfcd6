/* exp, sigmoid and their kin without branches, so that loops over them become vector code on any machine. */
#ifndef LM_MATHF_H
#define LM_MATHF_H

#include <stdint.h>
#include <string.h>

/* Within 2 ulp of exp(x) for x in [-87, 88]; clamped outside, NaN becomes a bound. */
static inline float fast_exp(float x)
{
    x = x > -87.0F ? x : -87.0F;
    x = x < 88.0F ? x : 88.0F;
    /* x = n ln 2 + r, |r| <= ln 2 / 2; adding and subtracting 1.5 * 2^23 rounds to an integer, ln 2 comes in two
     * parts so that n times the first is exact. */
    const float magic = 12582912.0F;
    const float n = (x * 1.44269504F + magic) - magic;
    const float r = (x - n * 0.693359375F) - n * -2.12194440e-4F;
    float p = 1.9875691500e-4F; /* Cephes' polynomial for exp on the reduced range */
    p = p * r + 1.3981999507e-3F;
    p = p * r + 8.3334519073e-3F;
    p = p * r + 4.1665795894e-2F;
    p = p * r + 1.6666665459e-1F;
    p = p * r + 5.0000001201e-1F;
    p = p * r * r + r + 1.0F;
    const int32_t bits = ((int32_t)n + 127) * (1 << 23);
    float power = 0.0F;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

static inline float sigmoid(float x)
{
    return 1.0F / (1.0F + fast_exp(-x));
}

#endif
