/*
 * How far a long job is, on stderr: a bar with the time left on a terminal, a line now and then elsewhere.
 *
 *     train  42% [########>           ] loss 1.913  14.2k tokens/s  0:58 left
 */
#ifndef CLI_PROGRESS_H
#define CLI_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

typedef struct progress {
    const char *label;
    int64_t first, total, done; /* steps; first: those done before this run */
    double started, drawn;      /* seconds */
    int tenth;                  /* last tenth that was reported without a terminal */
    bool tty, bar;              /* bar: one is on the screen */
    char text[128];
} progress;

void progress_start(progress *p, const char *label, int64_t first, int64_t total);

/* done: steps by now; the text stands next to the bar. Cheap enough for every step. */
void progress_update(progress *p, int64_t done, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* A line of its own above the bar. */
void progress_print(progress *p, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The last state stays on the screen. */
void progress_end(progress *p);

/* Seconds on a clock that never goes back. */
double seconds_now(void);

#endif
