#include "cli/train_log.h"

#include "lm/error.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

enum { MAX_LINE = 4096 };

static bool failed(const train_log *log)
{
    return lm_fail("--log: %s: %s", log->path, strerror(errno));
}

/* Is this a whole line of a step up to `last`? */
static bool keeps(const char *line, int64_t last)
{
    cJSON *json = strchr(line, '\n') != NULL ? cJSON_Parse(line) : NULL;
    const cJSON *step = cJSON_GetObjectItemCaseSensitive(json, "step");
    const bool keep = cJSON_IsNumber(step) && step->valuedouble <= (double)last;
    cJSON_Delete(json);
    return keep;
}

static bool drop_after(train_log *log, int64_t step)
{
    char line[MAX_LINE];
    long end = 0;
    while (fgets(line, sizeof line, log->file) != NULL && keeps(line, step))
        end = ftell(log->file);
    if (ferror(log->file) || end < 0 || ftruncate(fileno(log->file), end) != 0 || fseek(log->file, end, SEEK_SET) != 0)
        return failed(log);
    return true;
}

bool train_log_open(train_log *log, const char *path, int64_t step)
{
    *log = (train_log){.path = path};
    if (path == NULL)
        return true;
    if (step > 0)
        log->file = fopen(path, "r+");
    if (log->file != NULL && drop_after(log, step))
        return true;
    if (log->file != NULL)
        return train_log_close(log) && false;
    log->file = fopen(path, "w");
    return log->file != NULL ? true : failed(log);
}

bool train_log_close(train_log *log)
{
    const bool ok = log->file == NULL || fclose(log->file) == 0 ? true : failed(log);
    log->file = NULL;
    return ok;
}

bool train_log_step(train_log *log, int64_t step, double loss, const double *val_loss, double tokens_per_s)
{
    if (log->file == NULL)
        return true;
    fprintf(log->file, "{\"step\":%lld,\"loss\":%.17g", (long long)step, loss);
    if (val_loss != NULL)
        fprintf(log->file, ",\"val_loss\":%.17g", *val_loss);
    fprintf(log->file, ",\"tokens_per_s\":%.1f}\n", tokens_per_s);
    return fflush(log->file) == 0 && !ferror(log->file) ? true : failed(log);
}
