/* Charts: lines over an axis, in one panel or several, and heat maps. Each writes a file and returns the exit code,
 * having said on stderr what went wrong. */
#ifndef CLI_CHART_H
#define CLI_CHART_H

#include <stdbool.h>

typedef struct chart_axis {
    const char *label;
    bool log;
    /* Ticks where the caller wants them; n_ticks = 0: round numbers. */
    int n_ticks;
    const double *ticks;
    const char *const *tick_labels;
} chart_axis;

typedef enum chart_style {
    CHART_MARKED, /* a line with a dot at each point */
    CHART_THIN    /* a thin pale line: many noisy points */
} chart_style;

typedef struct chart_series {
    const char *name; /* in the legend; NULL: not there */
    int color;        /* of the palette */
    chart_style style;
    int n;
    const double *x, *y;
} chart_series;

typedef struct chart_panel {
    const char *title; /* NULL: none */
    chart_axis x, y;
    int n_series;
    const chart_series *series; /* the first panel's names make the legend */
} chart_panel;

typedef struct line_chart {
    const char *title, *subtitle;
    int n_panels, columns;
    const chart_panel *panels;
} line_chart;

int chart_lines(const char *path, const line_chart *chart);

typedef struct heat_map {
    const char *title, *subtitle, *x_label, *y_label, *value_label;
    int n_x, n_y;
    const char *const *x_ticks, *const *y_ticks; /* [n_x], [n_y] */
    const double *values;     /* [n_y][n_x]; row 0 on top. Blue above 0, orange below, the largest magnitude darkest */
    const char *const *notes; /* [n_y][n_x]: a second line in each cell; NULL: none */
} heat_map;

int chart_heat_map(const char *path, const heat_map *map);

#endif
