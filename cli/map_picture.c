#include "cli/map.h"

#include "cli/cli.h"
#include "cli/draw.h"
#include "lm/arena.h"

#include <stdio.h>
#include <stdlib.h>

enum { MAX_COLUMNS = 4 };

static const double margin = 22, header = 92, panel_size = 190, gate_width = 62, gap = 18, panel_gap = 34;
static const double title_size = 17, subtitle_size = 11.5, label_size = 11.5, tick_size = 9.5;

/* Warm greys for what every query must take, blue for what the scores chose; pale where few queries of a bin do. */
static const rgb future = {0.935, 0.935, 0.935}, unused = {1, 1, 1}, by_rule = {0.55, 0.53, 0.50};

static const int gate_color[] = {2, 0, 1}; /* of the palette: green, blue, vermilion */
static const char *const gate_names[] = {"cmp", "slc", "win"};

static void draw_header(canvas *c, const selection_map *map)
{
    const text_style style = {label_size, false, ANCHOR_START, ink};
    draw_text(c, margin, 32, (text_style){title_size, true, ANCHOR_START, ink}, map->title);
    draw_text(c, margin, 52, (text_style){subtitle_size, false, ANCHOR_START, ink_soft}, map->subtitle);
    const struct {
        rgb color;
        const char *text;
    } keys[] = {{palette[0], "selected by score"}, {by_rule, "by rule (first, last)"}, {future, "future"}};
    double x = margin;
    for (int i = 0; i < 3; i++) {
        draw_rect(c, x, 66, 11, 11, keys[i].color);
        draw_text(c, x + 17, 76, style, keys[i].text);
        x += 17 + text_width(c, style, keys[i].text) + 18;
    }
    for (int i = 0; i < 3; i++) {
        char text[32];
        snprintf(text, sizeof text, i == 0 ? "gates: %s" : "%s", gate_names[i]);
        draw_line(c, x, 72, x + 16, 72, 2, palette[gate_color[i]]);
        draw_text(c, x + 22, 76, style, text);
        x += 22 + text_width(c, style, text) + 16;
    }
}

static void draw_blocks(canvas *c, const selection_map *map, const map_panel *panel, rgb *cells, double x, double y)
{
    const int n = map->n_blocks;
    for (int bin = 0; bin < MAP_BINS; bin++) {
        const double last = (double)(bin + 1) * map->n_tokens / MAP_BINS - 1; /* position of the bin's last query */
        for (int j = 0; j < n; j++) {
            const int64_t at = (int64_t)bin * n + j;
            const bool visible = (double)j * map->n_tokens / n <= last;
            const rgb base = visible ? unused : future;
            cells[at] = rgb_mix(rgb_mix(base, by_rule, panel->forced[at]), palette[0], panel->free[at]);
        }
    }
    draw_image(c, x, y, panel_size, panel_size, cells, n, MAP_BINS);
    draw_line(c, x, y, x, y + panel_size, 1, ink_soft);
    draw_line(c, x, y + panel_size, x + panel_size, y + panel_size, 1, ink_soft);
}

static void draw_gates(canvas *c, const map_panel *panel, double x, double y)
{
    draw_rect(c, x, y, gate_width, panel_size, (rgb){0.975, 0.975, 0.975});
    draw_line(c, x + gate_width / 2, y, x + gate_width / 2, y + panel_size, 1, ink_faint);
    for (int g = 0; g < 3; g++) {
        const rgb color = palette[gate_color[g]];
        cairo_new_path(c->cr);
        for (int bin = 0; bin < MAP_BINS; bin++)
            cairo_line_to(c->cr, x + gate_width * panel->gate[g][bin], y + panel_size * (bin + 0.5) / MAP_BINS);
        cairo_set_source_rgb(c->cr, color.r, color.g, color.b);
        cairo_set_line_width(c->cr, 1.3);
        cairo_stroke(c->cr);
    }
    draw_line(c, x, y + panel_size, x + gate_width, y + panel_size, 1, ink_soft);
}

static void draw_panel_axes(canvas *c, const selection_map *map, int i, int columns, double x, double y)
{
    char text[64];
    const text_style tick = {tick_size, false, ANCHOR_MIDDLE, ink_soft};
    const text_style tick_left = {tick_size, false, ANCHOR_END, ink_soft};
    const text_style label = {label_size, false, ANCHOR_MIDDLE, ink};
    const double bottom = y + panel_size, gate_x = x + panel_size + gap;
    const int n = map->n_layers * map->n_heads;
    static const char *const gate_ticks[] = {"0", "½", "1"};
    snprintf(text, sizeof text, "layer %d, kv head %d", i / map->n_heads, i % map->n_heads);
    draw_text(c, x, y - 6, (text_style){label_size, true, ANCHOR_START, ink}, text);
    for (int k = 0; k <= 2; k++) {
        draw_text(c, gate_x + gate_width * k / 2, bottom + 12, tick, gate_ticks[k]);
        snprintf(text, sizeof text, "%d", map->n_blocks * k / 2);
        draw_text(c, x + panel_size * k / 2, bottom + 12, tick, text);
        snprintf(text, sizeof text, "%d", map->n_tokens * k / 2);
        if (i % columns == 0)
            draw_text(c, x - 5, y + panel_size * k / 2 + 3.5, tick_left, text);
    }
    if (i % columns == 0)
        draw_text_upward(c, margin + 4, y + panel_size / 2, label, "query position");
    if (i >= n - columns) {
        draw_text(c, x + panel_size / 2, bottom + 30, label, "key block");
        draw_text(c, gate_x + gate_width / 2, bottom + 30, label, "gate");
    }
}

/* All panels in reading order, a layer's heads side by side, four to a row. */
int map_draw(const char *path, const selection_map *map)
{
    const int n = map->n_layers * map->n_heads, columns = n < MAX_COLUMNS ? n : MAX_COLUMNS;
    const int rows = (n + columns - 1) / columns;
    const double left = margin + 44, top = header + 20;
    const double cell_w = panel_size + gap + gate_width + panel_gap, cell_h = panel_size + 42;
    rgb *cells = calloc(size_of(map->n_blocks, MAP_BINS), sizeof *cells);
    if (cells == NULL)
        return cli_fail("%s: no memory for the picture", path);
    const double width = left + columns * cell_w, height = top + rows * cell_h + 26;
    canvas c = canvas_open(path, width > 720 ? width : 720, height);
    draw_header(&c, map);
    for (int i = 0; i < n; i++) {
        const double x = left + i % columns * cell_w, y = top + i / columns * cell_h;
        draw_blocks(&c, map, &map->panels[i], cells, x, y);
        draw_gates(&c, &map->panels[i], x + panel_size + gap, y);
        draw_panel_axes(&c, map, i, columns, x, y);
    }
    free(cells);
    return canvas_close(&c);
}
