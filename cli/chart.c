#include "cli/chart.h"

#include "cli/draw.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_TICKS = 24 };

static const double margin = 22, header_height = 66, legend_row = 20;
static const double title_size = 17, subtitle_size = 11.5, label_size = 12, tick_size = 11;

static void draw_header(canvas *c, const char *title, const char *subtitle)
{
    draw_text(c, margin, 32, (text_style){title_size, true, ANCHOR_START, ink}, title);
    draw_text(c, margin, 52, (text_style){subtitle_size, false, ANCHOR_START, ink_soft}, subtitle);
}

/* ---- Lines ------------------------------------------------------------------------------------------------------- */

typedef struct scale {
    bool log;
    double min, max; /* of the data, widened */
    double from, to; /* on the page */
    int n_ticks;
    double ticks[MAX_TICKS];
} scale;

static double scale_at(const scale *s, double value)
{
    const double t = s->log ? log(value / s->min) / log(s->max / s->min) : (value - s->min) / (s->max - s->min);
    return s->from + t * (s->to - s->from);
}

/* NaN is not, nor what is so large or so near 0 that differences and quotients could overflow. */
static bool drawable(const chart_axis *axis, double value)
{
    return fabs(value) < 1e150 && (!axis->log || value > 1e-150);
}

static void add_tick(scale *s, double value)
{
    const double slack = 1e-9 * fabs(s->max - s->min);
    if (s->n_ticks < MAX_TICKS && value >= s->min - slack && value <= s->max + slack)
        s->ticks[s->n_ticks++] = value;
}

/* 1, 2 or 5 times a power of ten, about five of them. */
static void linear_ticks(scale *s)
{
    const double rough = (s->max - s->min) / 5, power = pow(10, floor(log10(rough)));
    const double step = power * (rough / power < 1.5 ? 1 : rough / power < 3.5 ? 2 : rough / power < 7.5 ? 5 : 10);
    const double first = ceil(s->min / step);
    for (int i = 0; i < MAX_TICKS; i++)
        add_tick(s, (first + i) * step + 0.0); /* never -0 */
}

/* Round numbers, the fewer in a decade the more decades there are. */
static void log_ticks(scale *s)
{
    static const double mantissa[] = {1, 2, 5, 3, 1.5, 4, 7};
    const double decades = log10(s->max / s->min), every = fmax(1, ceil(decades / 8)), first = floor(log10(s->min));
    const int n = decades > 3 ? 1 : decades > 1 ? 3 : 7;
    for (int e = 0; e < MAX_TICKS; e++)
        for (int i = 0; i < n; i++)
            add_tick(s, mantissa[i] * pow(10, first + e * every));
}

static void format_number(char *out, size_t size, double x)
{
    if (x != 0 && (fabs(x) >= 1e6 || fabs(x) < 1e-4))
        snprintf(out, size, "%.0e", x);
    else
        snprintf(out, size, "%.6g", x);
}

/* What the data span, a little wider where nothing says where the axis ends. */
static scale scale_of(const chart_panel *panel, bool vertical, double from, double to)
{
    const chart_axis *axis = vertical ? &panel->y : &panel->x;
    scale s = {.log = axis->log, .min = INFINITY, .max = -INFINITY, .from = from, .to = to};
    for (int i = 0; i < panel->n_series; i++) {
        const chart_series *series = &panel->series[i];
        for (int j = 0; j < series->n; j++) {
            const double value = vertical ? series->y[j] : series->x[j];
            if (drawable(&panel->x, series->x[j]) && drawable(&panel->y, series->y[j])) {
                s.min = fmin(s.min, value);
                s.max = fmax(s.max, value);
            }
        }
    }
    if (!(s.min <= s.max))
        s.min = s.max = 1;
    if (s.log) {
        const double widen = pow(s.max / s.min, 0.05) * (s.max == s.min ? 2 : 1);
        s.min /= widen;
        s.max *= widen;
    } else {
        const double widen = s.max > s.min ? (vertical ? 0.05 : 0.02) * (s.max - s.min) : fmax(fabs(s.max), 1) * 0.1;
        s.min -= widen;
        s.max += widen;
    }
    if (axis->n_ticks > 0)
        for (int i = 0; i < axis->n_ticks; i++)
            add_tick(&s, axis->ticks[i]);
    else if (s.log)
        log_ticks(&s);
    else
        linear_ticks(&s);
    return s;
}

static const char *tick_label(const chart_axis *axis, double value, char *buffer, size_t size)
{
    for (int i = 0; i < axis->n_ticks; i++)
        if (axis->ticks[i] == value)
            return axis->tick_labels[i];
    format_number(buffer, size, value);
    return buffer;
}

static void draw_axes(canvas *c, const chart_panel *panel, const scale *x, const scale *y)
{
    char buffer[32];
    const text_style tick = {tick_size, false, ANCHOR_MIDDLE, ink_soft};
    const text_style tick_left = {tick_size, false, ANCHOR_END, ink_soft};
    const text_style label = {label_size, false, ANCHOR_MIDDLE, ink};
    for (int i = 0; i < y->n_ticks; i++) {
        const double at = scale_at(y, y->ticks[i]);
        draw_line(c, x->from, at, x->to, at, 1, ink_faint);
        draw_text(c, x->from - 7, at + 4, tick_left, tick_label(&panel->y, y->ticks[i], buffer, sizeof buffer));
    }
    for (int i = 0; i < x->n_ticks; i++) {
        const double at = scale_at(x, x->ticks[i]);
        draw_line(c, at, y->from, at, y->to, 1, ink_faint);
        draw_text(c, at, y->from + 17, tick, tick_label(&panel->x, x->ticks[i], buffer, sizeof buffer));
    }
    draw_line(c, x->from, y->from, x->to, y->from, 1, ink_soft);
    draw_text(c, (x->from + x->to) / 2, y->from + 36, label, panel->x.label);
    draw_text_upward(c, x->from - 46, (y->from + y->to) / 2, label, panel->y.label);
}

static void draw_series(canvas *c, const chart_panel *panel, const chart_series *series, const scale *x, const scale *y)
{
    const rgb color = palette[series->color % PALETTE_SIZE];
    const bool thin = series->style == CHART_THIN;
    const rgb stroke = thin ? rgb_mix(color, paper, 0.55) : color;
    cairo_new_path(c->cr);
    bool down = false;
    for (int i = 0; i < series->n; i++) {
        if (!drawable(&panel->x, series->x[i]) || !drawable(&panel->y, series->y[i])) {
            down = false;
            continue;
        }
        const double px = scale_at(x, series->x[i]), py = scale_at(y, series->y[i]);
        if (down)
            cairo_line_to(c->cr, px, py);
        else
            cairo_move_to(c->cr, px, py);
        down = true;
    }
    cairo_set_source_rgb(c->cr, stroke.r, stroke.g, stroke.b);
    cairo_set_line_width(c->cr, thin ? 1.3 : 2.2);
    cairo_stroke(c->cr);
    for (int i = 0; i < series->n && !thin; i++)
        if (drawable(&panel->x, series->x[i]) && drawable(&panel->y, series->y[i]))
            draw_dot(c, scale_at(x, series->x[i]), scale_at(y, series->y[i]), 3.2, color);
}

/* Whether the next name starts another row of the legend. *used: of this row, by what letters take at most, since rows
 * are counted before there is a page to measure on. */
static bool legend_breaks(const char *name, double width, double *used)
{
    const double takes = 53 + 0.62 * label_size * (double)strlen(name);
    const bool breaks = *used > 0 && *used + takes > width;
    *used = (breaks ? 0 : *used) + takes;
    return breaks;
}

static int legend_rows(const chart_panel *panel, double width)
{
    double used = 0;
    int rows = 1;
    for (int i = 0; i < panel->n_series; i++)
        if (panel->series[i].name != NULL)
            rows += legend_breaks(panel->series[i].name, width, &used);
    return rows;
}

static void draw_legend(canvas *c, const chart_panel *panel, double left, double y, double width)
{
    const text_style style = {label_size, false, ANCHOR_START, ink};
    double x = left, used = 0;
    for (int i = 0; i < panel->n_series; i++) {
        const chart_series *series = &panel->series[i];
        if (series->name == NULL)
            continue;
        if (legend_breaks(series->name, width, &used)) {
            x = left;
            y += legend_row;
        }
        const rgb color = palette[series->color % PALETTE_SIZE];
        const bool thin = series->style == CHART_THIN;
        draw_line(c, x, y - 4, x + 22, y - 4, thin ? 1.2 : 2.2, thin ? rgb_mix(color, paper, 0.4) : color);
        if (!thin)
            draw_dot(c, x + 11, y - 4, 3.2, color);
        draw_text(c, x + 29, y, style, series->name);
        x += 29 + text_width(c, style, series->name) + 24;
    }
}

int chart_lines(const char *path, const line_chart *chart)
{
    const int columns = chart->columns, rows = (chart->n_panels + columns - 1) / columns;
    const double panel_width = columns == 1 ? 760 : 400, panel_height = rows == 1 && columns == 1 ? 400 : 300;
    const double width = columns * panel_width + margin, legend_width = width - 2 * margin;
    const double top =
        header_height + legend_row * (chart->n_panels > 0 ? legend_rows(&chart->panels[0], legend_width) : 1);
    canvas c = canvas_open(path, width, top + rows * panel_height + margin / 2);
    draw_header(&c, chart->title, chart->subtitle);
    if (chart->n_panels > 0)
        draw_legend(&c, &chart->panels[0], margin, header_height + 10, legend_width);
    for (int i = 0; i < chart->n_panels; i++) {
        const chart_panel *panel = &chart->panels[i];
        const double left = i % columns * panel_width, above = top + i / columns * panel_height;
        const scale x = scale_of(panel, false, left + 76, left + panel_width - 4);
        const scale y = scale_of(panel, true, above + panel_height - 52, above + (panel->title != NULL ? 34 : 12));
        if (panel->title != NULL)
            draw_text(&c, x.from, above + 24, (text_style){label_size + 1, true, ANCHOR_START, ink}, panel->title);
        draw_axes(&c, panel, &x, &y);
        for (int j = 0; j < panel->n_series; j++)
            draw_series(&c, panel, &panel->series[j], &x, &y);
    }
    return canvas_close(&c);
}

/* ---- Heat maps --------------------------------------------------------------------------------------------------- */

static rgb heat(double t) /* -1 .. 1 */
{
    static const rgb up[] = {{0.97, 0.97, 0.97}, {0.57, 0.77, 0.87}, {0.13, 0.40, 0.67}, {0.02, 0.19, 0.38}};
    static const rgb down[] = {{0.97, 0.97, 0.97}, {0.99, 0.78, 0.49}, {0.90, 0.47, 0.08}, {0.50, 0.23, 0.03}};
    const rgb *ramp = t >= 0 ? up : down;
    const double at = fmin(fabs(t), 1) * 3;
    const int i = at >= 3 ? 2 : (int)at;
    return rgb_mix(ramp[i], ramp[i + 1], at - i);
}

static void draw_color_bar(canvas *c, const char *label, double low, double high, double limit, double x, double y,
                           double height)
{
    enum { STEPS = 128 };
    const double width = 14;
    scale s = {.min = low, .max = high, .from = y + height, .to = y};
    linear_ticks(&s);
    for (int i = 0; i < STEPS; i++)
        draw_rect(c, x, y + height * (STEPS - 1 - i) / STEPS, width, height / STEPS + 0.5,
                  heat((low + (high - low) * (i + 0.5) / STEPS) / limit));
    for (int i = 0; i < s.n_ticks; i++) {
        char text[32];
        format_number(text, sizeof text, fabs(s.ticks[i]) < 1e-12 ? 0 : s.ticks[i]);
        draw_line(c, x + width, scale_at(&s, s.ticks[i]), x + width + 4, scale_at(&s, s.ticks[i]), 1, ink_soft);
        draw_text(c, x + width + 8, scale_at(&s, s.ticks[i]) + 4,
                  (text_style){tick_size, false, ANCHOR_START, ink_soft}, text);
    }
    draw_text_upward(c, x + width + 50, y + height / 2, (text_style){label_size, false, ANCHOR_MIDDLE, ink}, label);
}

static void draw_cell(canvas *c, const heat_map *map, int row, int column, double limit, double x, double y, double w,
                      double h)
{
    const double value = map->values[row * map->n_x + column];
    const char *note = map->notes != NULL ? map->notes[row * map->n_x + column] : NULL;
    const rgb color = isfinite(value) ? heat(value / limit) : ink_faint;
    const rgb text = rgb_readable_on(color);
    char number[32] = "-";
    if (isfinite(value))
        snprintf(number, sizeof number, "%.2f", fabs(value) < 0.005 ? 0 : value);
    draw_rect(c, x, y, w - 2, h - 2, color);
    const double middle = y + h / 2 + 4;
    draw_text(c, x + w / 2 - 1, note != NULL ? middle - 7 : middle, (text_style){label_size, true, ANCHOR_MIDDLE, text},
              number);
    if (note != NULL)
        draw_text(c, x + w / 2 - 1, middle + 9, (text_style){tick_size - 1, false, ANCHOR_MIDDLE, text}, note);
}

int chart_heat_map(const char *path, const heat_map *map)
{
    const double cell_w = fmin(fmax(560.0 / map->n_x, 58), 110), cell_h = map->notes != NULL ? 46 : 38;
    const double left = 86, top = header_height + 10, width = cell_w * map->n_x, height = cell_h * map->n_y;
    double low = 0, high = 0;
    for (int i = 0; i < map->n_x * map->n_y; i++) {
        if (isfinite(map->values[i])) {
            low = fmin(low, map->values[i]);
            high = fmax(high, map->values[i]);
        }
    }
    if (low == high)
        high = 1;
    const double limit = fmax(high, -low);

    canvas c = canvas_open(path, fmax(left + width + 110, 640), top + height + 66);
    draw_header(&c, map->title, map->subtitle);
    const text_style label = {label_size, false, ANCHOR_MIDDLE, ink};
    for (int row = 0; row < map->n_y; row++) {
        for (int column = 0; column < map->n_x; column++)
            draw_cell(&c, map, row, column, limit, left + column * cell_w, top + row * cell_h, cell_w, cell_h);
        draw_text(&c, left - 9, top + (row + 0.5) * cell_h + 3, (text_style){tick_size, false, ANCHOR_END, ink_soft},
                  map->y_ticks[row]);
    }
    for (int column = 0; column < map->n_x; column++)
        draw_text(&c, left + (column + 0.5) * cell_w - 1, top + height + 16,
                  (text_style){tick_size, false, ANCHOR_MIDDLE, ink_soft}, map->x_ticks[column]);
    draw_text(&c, left + width / 2, top + height + 40, label, map->x_label);
    draw_text_upward(&c, 30, top + height / 2, label, map->y_label);
    draw_color_bar(&c, map->value_label, low, high, limit, left + width + 20, top, height - 2);
    return canvas_close(&c);
}
