/* The log of a training run: a JSON object per line with step, loss, tokens_per_s and, where it was taken, val_loss. */
#ifndef CLI_TRAIN_LOG_H
#define CLI_TRAIN_LOG_H

#include <stdbool.h>
#include <stdint.h>

typedef struct train_log {
    const char *path;
    int fd; /* -1: no log is wanted */
} train_log;

/* Failures are told by lm_error(). A run that goes on after `step` keeps the lines up to there and drops the rest,
 * which it will write again; step 0 starts a new log. path may be NULL. */
bool train_log_open(train_log *log, const char *path, int64_t step);
bool train_log_close(train_log *log);

/* The numbers of one step; val_loss NULL: not taken. */
bool train_log_step(train_log *log, int64_t step, double loss, const double *val_loss, double tokens_per_s);

#endif
