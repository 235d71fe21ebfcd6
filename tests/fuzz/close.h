#ifndef NSA_FUZZ_CLOSE_H
#define NSA_FUZZ_CLOSE_H

#include "testlib/testlib.h"

/* Far from the errors of rounding in a problem of `dtype`, far below what a wrong key would make: relative to the
 * tensor's largest value, or 1. The bounds of the tests proper are closer, but hold for their inputs. */
void fuzz_check_close(const char *what, const test_tensor *got, const test_tensor *exact, nsa_dtype dtype);

#endif
