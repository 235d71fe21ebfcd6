#include "cli/cli.h"

#include "lm/error.h"
#include "lm/fileio.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void cli_one_line(char *message)
{
    for (char *c = message; *c != '\0'; c++)
        if (iscntrl((unsigned char)*c))
            *c = ' ';
}

int cli_fail(const char *format, ...)
{
    char message[1024];
    va_list ap;
    va_start(ap, format);
    vsnprintf(message, sizeof message, format, ap);
    va_end(ap);
    cli_one_line(message);
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

void cli_cpu_model(char *model, size_t size)
{
    char line[256];
    snprintf(model, size, "unknown");
    FILE *file = fopen("/proc/cpuinfo", "r");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        const char *value = strchr(line, ':');
        if (strncmp(line, "model name", 10) == 0 && value != NULL) {
            snprintf(model, size, "%.*s", (int)strcspn(value + 2, "\n\"\\"), value + 2);
            break;
        }
    }
    if (file != NULL)
        fclose(file);
}

int cli_write_file(const char *path, const void *data, size_t bytes)
{
    return file_replace(path, data, bytes) ? CLI_OK : cli_fail("%s", lm_error());
}
