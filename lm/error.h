/* Errors of lm/: a function that can fail returns false and leaves one line that names the file or the setting. */
#ifndef LM_ERROR_H
#define LM_ERROR_H

#include <nsa.h>

#include <stdbool.h>

/* Keeps the message for lm_error() of this thread and returns false: `return lm_fail("%s: no such file", path)`. */
bool lm_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The same with the system's reason: "path: what: No space left on device". */
bool lm_fail_errno(const char *path, const char *what);

bool lm_out_of_memory(const char *what);

/* The library's status as ours. */
bool lm_nsa(nsa_status status, const char *function);

/* The message of the last failure on this thread; "" if none. */
const char *lm_error(void);

#define LM_TRY(call)                                                                                                   \
    do {                                                                                                               \
        if (!(call))                                                                                                   \
            return false;                                                                                              \
    } while (0)

#endif
