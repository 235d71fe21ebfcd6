/* Conversions between float types: every 16-bit value, and what lies between two of them. */
#include "testlib/unit.h"
#include "testlib/testlib.h"

#include <math.h>

/* A 16-bit type: its functions, and where its fields lie. */
typedef struct half_type {
    nsa_dtype dtype;
    float (*to_f32)(uint16_t);
    uint16_t (*from_f32)(float);
    int mantissa_bits, bias;
} half_type;

static const half_type types[] = {
    {NSA_BF16, bf16_to_f32, f32_to_bf16, 7, 127},
    {NSA_F16, f16_to_f32, f32_to_f16, 10, 15},
};

/* The value of a finite h >= +0, by the definition of its format. */
static double value_of(const half_type *t, uint32_t h)
{
    const uint32_t exponent = h >> t->mantissa_bits;
    const uint32_t mantissa = h & ((1U << t->mantissa_bits) - 1U);
    if (exponent == 0)
        return ldexp((double)mantissa, 1 - t->bias - t->mantissa_bits);
    return ldexp((double)(mantissa | 1U << t->mantissa_bits), (int)exponent - t->bias - t->mantissa_bits);
}

static uint32_t infinity_of(const half_type *t)
{
    return 0x7fffU & ~((1U << t->mantissa_bits) - 1U);
}

static void expect(const half_type *t, float x, uint32_t h)
{
    for (uint32_t sign = 0; sign <= 0x8000U; sign += 0x8000U) {
        const float signed_x = sign != 0 ? -x : x;
        const uint16_t got = t->from_f32(signed_x);
        if (got != (sign | h))
            test_fail("%a as %s: got %#x, expected %#x", (double)signed_x, dtype_name(t->dtype), got, sign | h);
    }
}

static void test_every_value(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        const half_type *t = &types[i];
        for (uint32_t h = 0; h < infinity_of(t); h++) {
            const float x = t->to_f32((uint16_t)h);
            if ((double)x != value_of(t, h) || (double)t->to_f32((uint16_t)(h | 0x8000U)) != -value_of(t, h))
                test_fail("%s %#x: got %a, expected %a", dtype_name(t->dtype), h, (double)x, value_of(t, h));
            expect(t, x, h);
        }
        assert_true(t->to_f32((uint16_t)infinity_of(t)) == INFINITY);
        expect(t, INFINITY, infinity_of(t));
    }
}

/* Between two neighbours: below their middle the lower, above it the upper, and the even one at the middle. Past the
 * largest, infinity stands for the next power of two. */
static void test_round_to_nearest_even(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        const half_type *t = &types[i];
        for (uint32_t h = 0; h < infinity_of(t); h++) {
            const float middle = (float)(0.5 * (value_of(t, h) + value_of(t, h + 1)));
            expect(t, nextafterf(middle, 0.0F), h);
            expect(t, middle, h + h % 2);
            expect(t, nextafterf(middle, INFINITY), h + 1);
        }
        expect(t, 3.4e38F, infinity_of(t));
    }
}

/* From double in one rounding: what lies so close to a middle that float32 rounds it there. */
static void test_double_is_rounded_once(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        const half_type *t = &types[i];
        for (uint32_t h = 1; h < infinity_of(t) - 1; h++) {
            const double middle = 0.5 * (value_of(t, h) + value_of(t, h + 1));
            uint16_t got[3];
            dtype_set(got, t->dtype, 0, nextafter(middle, 0.0));
            dtype_set(got, t->dtype, 1, middle);
            dtype_set(got, t->dtype, 2, nextafter(middle, INFINITY));
            if (got[0] != h || got[1] != h + h % 2 || got[2] != h + 1)
                test_fail("around %a as %s: got %#x %#x %#x", middle, dtype_name(t->dtype), got[0], got[1], got[2]);
        }
    }
}

static void test_nan_stays_nan(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        const half_type *t = &types[i];
        for (uint32_t h = infinity_of(t) + 1; h <= 0x7fffU; h++)
            assert_true(isnan(t->to_f32((uint16_t)h)));
        for (int bit = 0; bit < 23; bit++)
            for (uint32_t sign = 0; sign <= 1; sign++)
                assert_true(isnan(t->to_f32(t->from_f32(bits_float(sign << 31 | 0x7f800000U | 1U << bit)))));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_value),
        cmocka_unit_test(test_round_to_nearest_even),
        cmocka_unit_test(test_double_is_rounded_once),
        cmocka_unit_test(test_nan_stays_nan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
