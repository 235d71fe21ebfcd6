#include "cli/progress.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { BAR_MAX = 40 };
static const double redraw_seconds = 0.1;
static const double quiet_seconds = 60; /* without a terminal: a line at every tenth, and at least this often */

double seconds_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int columns(void)
{
    struct winsize w;
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col >= 20 ? w.ws_col : 80;
}

/* "0:58", "2:03:11" */
static void format_seconds(char *out, size_t size, double seconds)
{
    const long long s = seconds < 1e9 ? (long long)(seconds + 0.5) : 1000000000LL;
    if (s >= 3600)
        snprintf(out, size, "%lld:%02lld:%02lld", s / 3600, s / 60 % 60, s % 60);
    else
        snprintf(out, size, "%lld:%02lld", s / 60, s % 60);
}

static void draw(progress *p, double now, bool last)
{
    const double fraction = p->total > 0 ? (double)p->done / (double)p->total : 1;
    const double elapsed = now - p->started;
    char duration[32], tail[256], bar[BAR_MAX + 3] = "";
    if (last) {
        format_seconds(duration, sizeof duration, elapsed);
        snprintf(tail, sizeof tail, "%s  in %s", p->text, duration);
    } else if (p->done > p->first) {
        format_seconds(duration, sizeof duration,
                       elapsed * (double)(p->total - p->done) / (double)(p->done - p->first));
        snprintf(tail, sizeof tail, "%s  %s left", p->text, duration);
    } else {
        snprintf(tail, sizeof tail, "%s", p->text);
    }

    char head[64];
    snprintf(head, sizeof head, "%s %3d%%", p->label, (int)(100 * fraction));
    if (!p->tty) {
        fprintf(stderr, "%s  %s\n", head, tail);
        return;
    }
    const int width = columns() - 1;
    int cells = width - (int)strlen(head) - (int)strlen(tail) - 4;
    cells = cells > BAR_MAX ? BAR_MAX : cells;
    if (cells >= 8) {
        const int full = (int)(fraction * cells);
        for (int i = 0; i < cells; i++)
            bar[i + 1] = i < full ? '#' : i == full ? '>' : ' ';
        bar[0] = '[';
        bar[cells + 1] = ']';
        bar[cells + 2] = '\0';
    }
    char line[512];
    snprintf(line, sizeof line, "%s %s %s", head, bar, tail);
    fprintf(stderr, "\r%.*s\033[K%s", width, line, last ? "\n" : "");
    p->bar = !last;
}

void progress_start(progress *p, const char *label, int64_t first, int64_t total)
{
    *p = (progress){.label = label, .first = first, .total = total, .done = first, .tty = isatty(STDERR_FILENO) == 1};
    p->started = p->drawn = seconds_now();
}

void progress_update(progress *p, int64_t done, const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    vsnprintf(p->text, sizeof p->text, format, ap);
    va_end(ap);
    p->done = done;

    const double now = seconds_now();
    const int tenth = p->total > 0 ? (int)(10.0 * (double)done / (double)p->total) : 0;
    const bool due =
        p->tty ? now - p->drawn >= redraw_seconds || !p->bar : tenth != p->tenth || now - p->drawn >= quiet_seconds;
    if (!due || done >= p->total)
        return;
    draw(p, now, false);
    p->drawn = now;
    p->tenth = tenth;
}

void progress_print(progress *p, const char *format, ...)
{
    if (p->bar)
        fputs("\r\033[K", stderr);
    p->bar = false;
    va_list ap;
    va_start(ap, format);
    vfprintf(stderr, format, ap);
    va_end(ap);
    fputc('\n', stderr);
}

void progress_end(progress *p)
{
    draw(p, seconds_now(), true);
}
