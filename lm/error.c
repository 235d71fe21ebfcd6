#include "lm/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static _Thread_local char message[1024];

bool lm_fail(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    char text[sizeof message]; /* the arguments may hold the old message */
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    memcpy(message, text, sizeof message);
    return false;
}

bool lm_fail_errno(const char *path, const char *what)
{
    return lm_fail("%s: %s: %s", path, what, strerror(errno));
}

bool lm_out_of_memory(const char *what)
{
    return lm_fail("out of memory: %s", what);
}

bool lm_nsa(nsa_status status, const char *function)
{
    return status == NSA_OK ? true : lm_fail("%s: %s: %s", function, nsa_status_string(status), nsa_last_error());
}

const char *lm_error(void)
{
    return message;
}
