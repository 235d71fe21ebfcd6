#include "core/status.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local char last_error[512];

nsa_status nsa_fail(nsa_status status, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(last_error, sizeof last_error, format, args);
    va_end(args);
    return status;
}

const char *nsa_last_error(void)
{
    return last_error;
}

const char *nsa_status_string(nsa_status status)
{
    switch (status) {
    case NSA_OK: return "ok";
    case NSA_ERR_INVALID_ARGUMENT: return "invalid argument";
    case NSA_ERR_UNSUPPORTED: return "not supported here";
    case NSA_ERR_WORKSPACE: return "workspace too small";
    case NSA_ERR_OUT_OF_MEMORY: return "out of memory";
    case NSA_ERR_NO_DEVICE: return "no such device";
    case NSA_ERR_DEVICE: return "device error";
    }
    return "unknown status";
}

#define STRING_(x) #x
#define STRING(x) STRING_(x)

const char *nsa_version(void)
{
    return STRING(NSA_VERSION_MAJOR) "." STRING(NSA_VERSION_MINOR) "." STRING(NSA_VERSION_PATCH);
}
