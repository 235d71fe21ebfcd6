#include "fuzz/close.h"

#include "fuzz/fuzz.h"

#include <math.h>

/* The largest finite magnitude, or 1. */
static double largest(const test_tensor *x)
{
    double max = 1.0;
    for (int32_t s = 0; s < x->e.n_seqs; s++)
        for (int64_t row = 0; row < tensor_rows(x, s); row++)
            for (int32_t h = 0; h < x->e.n_heads; h++)
                for (int32_t c = 0; c < x->e.d; c++) {
                    const double value = fabs(tensor_get(x, s, row, h, c));
                    max = isfinite(value) ? fmax(max, value) : max;
                }
    return max;
}

void fuzz_check_close(const char *what, const test_tensor *got, const test_tensor *exact, nsa_dtype dtype)
{
    const double allowed = largest(exact) * (dtype == NSA_BF16 ? 0.05 : dtype == NSA_F16 ? 0.01 : 1e-3);
    for (int32_t s = 0; s < got->e.n_seqs; s++)
        for (int64_t row = 0; row < tensor_rows(got, s); row++)
            for (int32_t h = 0; h < got->e.n_heads; h++)
                for (int32_t c = 0; c < got->e.d; c++) {
                    const double x = tensor_get(got, s, row, h, c), e = tensor_get(exact, s, row, h, c);
                    if (x != e && !(fabs(x - e) <= allowed))
                        fuzz_fail("%s: seq %d, row %lld, head %d, channel %d: got %g, exact %g, allowed %g off", what,
                                  s, (long long)row, h, c, x, e, allowed);
                }
}
