/* What the oracles (X_ref.c) share: elements as doubles, and the rounding that tests measure the fast paths by. */
#ifndef NSA_CORE_REF_H
#define NSA_CORE_REF_H

#include "core/rows.h"

/* An oracle computes in double. A test can ask it to round as the fast paths may, to learn what error is fair. */
typedef enum ref_rounding {
    REF_EXACT = 0,
    REF_F32,    /* every operation to float32 */
    REF_P_BF16, /* probabilities, ds and gated do to bf16: what a bf16 kernel does before a product */
    REF_P_F16
} ref_rounding;

static inline double ref_op(ref_rounding r, double x)
{
    return r == REF_F32 ? (double)(float)x : x;
}

static inline double ref_p(ref_rounding r, double x)
{
    double y = x;
    if (r == REF_F32) {
        y = (double)(float)x;
    } else if (r != REF_EXACT) {
        uint16_t h;
        const nsa_dtype t = r == REF_P_BF16 ? NSA_BF16 : NSA_F16;
        dtype_set(&h, t, 0, x);
        y = dtype_get(&h, t, 0);
    }
    return y;
}

#endif
