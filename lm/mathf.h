/* exp, sigmoid and their kin without branches, so that loops over them become vector code on any machine. */
#ifndef LM_MATHF_H
#define LM_MATHF_H

#include <stdint.h>
#include <string.h>

/* exp(x) within 2 ulp for |x| <= 87; beyond, and for NaN, the value at that bound. */
static inline float fast_exp(float x)
{
    const int32_t sign = INT32_MIN;
    const int32_t bound = 0x42ae0000; /* the bits of 87: floats of one sign are ordered as their bits are */
    int32_t bits = 0;
    memcpy(&bits, &x, sizeof bits);
    const int32_t size = bits & ~sign;
    bits = (size < bound ? size : bound) | (bits & sign);
    memcpy(&x, &bits, sizeof x);

    /* x = n ln 2 + r, |r| <= ln 2 / 2. Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits of the
     * sum. ln 2 comes in two parts so that n times the first is exact. */
    const float magic = 12582912.0F;
    const float sum = x * 1.44269504F + magic;
    const float n = sum - magic;
    const float r = (x - n * 0.693359375F) - n * -2.12194440e-4F;
    float p = 1.9875691500e-4F; /* Cephes' polynomial on that range */
    p = p * r + 1.3981999507e-3F;
    p = p * r + 8.3334519073e-3F;
    p = p * r + 4.1665795894e-2F;
    p = p * r + 1.6666665459e-1F;
    p = p * r + 5.0000001201e-1F;
    p = p * r * r + r + 1.0F;
    uint32_t exponent = 0;
    memcpy(&exponent, &sum, sizeof exponent);
    exponent = (exponent + 127U) << 23;
    float power = 0.0F;
    memcpy(&power, &exponent, sizeof power);
    return p * power;
}

static inline float sigmoid(float x)
{
    return 1.0F / (1.0F + fast_exp(-x));
}

#endif
