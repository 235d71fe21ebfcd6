/* Errors: a status to return, and a message per thread that names the argument, its value and what is allowed. */
#ifndef NSA_CORE_STATUS_H
#define NSA_CORE_STATUS_H

#include <nsa.h>

/* Sets nsa_last_error() and returns status: `return nsa_fail(NSA_ERR_INVALID_ARGUMENT, "batch.n_seqs is %d, ...", n)`.
 */
nsa_status nsa_fail(nsa_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define NSA_TRY(call)                                                                                                  \
    do {                                                                                                               \
        const nsa_status try_status_ = (call);                                                                         \
        if (try_status_ != NSA_OK)                                                                                     \
            return try_status_;                                                                                        \
    } while (0)

/* NSA_REQUIRE(condition, "format", ...): an invalid argument unless the condition holds. */
#define NSA_REQUIRE(condition, ...)                                                                                    \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            return nsa_fail(NSA_ERR_INVALID_ARGUMENT, __VA_ARGS__);                                                    \
    } while (0)

#endif
