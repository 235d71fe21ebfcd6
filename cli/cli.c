#include "cli/cli.h"

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

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

#if !defined(NSA_COMMIT)
#define NSA_COMMIT ""
#endif

const char *cli_commit(void)
{
    return NSA_COMMIT;
}

int cli_write_file(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    bool written = file != NULL && fputs(text, file) >= 0;
    if (file != NULL && fclose(file) != 0)
        written = false;
    return written ? CLI_OK : cli_fail("%s: cannot be written: %s", path, strerror(errno));
}
