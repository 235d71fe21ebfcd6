/* cmocka, for the suites that run on the CPU only. */
#ifndef NSA_TESTLIB_UNIT_H
#define NSA_TESTLIB_UNIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#endif
