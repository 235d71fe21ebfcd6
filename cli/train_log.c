#include "cli/train_log.h"

#include "lm/error.h"
#include "lm/fileio.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { MAX_LINE = 256 };

/* Is this a whole line of a step up to `last`? */
static bool keeps(const char *line, int64_t last)
{
    long long step;
    return strchr(line, '\n') != NULL && sscanf(line, "{\"step\":%lld,", &step) == 1 && step <= last;
}

/* Bytes of the log up to the line of `step`. */
static bool find_end(const char *path, int64_t step, long *end)
{
    char line[MAX_LINE];
    *end = 0;
    FILE *file = fopen(path, "r");
    if (file == NULL)
        return errno == ENOENT ? true : lm_fail_errno(path, "cannot open");
    while (fgets(line, sizeof line, file) != NULL && keeps(line, step))
        *end = ftell(file);
    const bool ok = ferror(file) || *end < 0 ? lm_fail_errno(path, "cannot read") : true;
    (void)fclose(file);
    return ok;
}

bool train_log_open(train_log *log, const char *path, int64_t step)
{
    *log = (train_log){path, -1};
    if (path == NULL)
        return true;
    long end = 0;
    if (step > 0)
        LM_TRY(find_end(path, step, &end));
    log->fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | (end == 0 ? O_TRUNC : 0), 0666);
    if (log->fd < 0)
        return lm_fail_errno(path, "cannot open");
    if (end == 0 || ftruncate(log->fd, end) == 0)
        return true;
    (void)lm_fail_errno(path, "cannot write");
    (void)close(log->fd);
    return false;
}

bool train_log_close(train_log *log)
{
    return log->fd < 0 || close(log->fd) == 0 ? true : lm_fail_errno(log->path, "cannot write");
}

bool train_log_step(train_log *log, int64_t step, double loss, const double *val_loss, double tokens_per_s)
{
    if (log->fd < 0)
        return true;
    char held_out[MAX_LINE / 4] = "", line[MAX_LINE];
    if (val_loss != NULL)
        (void)snprintf(held_out, sizeof held_out, ",\"val_loss\":%.17g", *val_loss);
    const int n = snprintf(line, sizeof line, "{\"step\":%lld,\"loss\":%.17g%s,\"tokens_per_s\":%.1f}\n",
                           (long long)step, loss, held_out, tokens_per_s);
    return file_write(log->fd, log->path, line, (size_t)n);
}
