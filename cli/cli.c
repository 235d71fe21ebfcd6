#include "cli/cli.h"

#include <stdarg.h>
#include <stdio.h>

int cli_fail(const char *format, ...)
{
    char message[1024];
    va_list ap;
    va_start(ap, format);
    vsnprintf(message, sizeof message, format, ap);
    va_end(ap);
    for (char *c = message; *c != '\0'; c++)
        if (*c == '\n' || *c == '\r')
            *c = ' ';
    fprintf(stderr, "nsa: %s\n", message);
    return CLI_FAILED;
}
