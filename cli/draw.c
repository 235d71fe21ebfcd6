#include "cli/draw.h"

#include "cli/cli.h"

#include <cairo-svg.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static const double pixels_per_point = 2;
static const char font[] = "DejaVu Sans";

const rgb palette[PALETTE_SIZE] = {
    {0.000, 0.447, 0.698}, /* blue */
    {0.835, 0.369, 0.000}, /* vermilion */
    {0.000, 0.620, 0.451}, /* green */
    {0.800, 0.475, 0.655}, /* purple */
    {0.902, 0.624, 0.000}, /* orange */
    {0.337, 0.706, 0.914}, /* sky */
    {0.300, 0.300, 0.300}, /* black, softened */
    {0.800, 0.740, 0.100}, /* yellow, darkened for white paper */
};
const rgb ink = {0.13, 0.15, 0.18}, ink_soft = {0.38, 0.41, 0.45}, ink_faint = {0.89, 0.90, 0.91}, paper = {1, 1, 1};

rgb rgb_mix(rgb a, rgb b, double t)
{
    return (rgb){a.r + t * (b.r - a.r), a.g + t * (b.g - a.g), a.b + t * (b.b - a.b)};
}

rgb rgb_readable_on(rgb background)
{
    return 0.299 * background.r + 0.587 * background.g + 0.114 * background.b > 0.55 ? ink : paper;
}

static bool ends_with(const char *text, const char *end)
{
    const size_t n = strlen(text), m = strlen(end);
    return n > m && strcmp(text + n - m, end) == 0;
}

bool canvas_path_valid(const char *path)
{
    return ends_with(path, ".png") || ends_with(path, ".svg");
}

/* A file is made in memory, so that all of cairo's errors come before it is touched. */
typedef struct file_bytes {
    unsigned char *data;
    size_t n, capacity;
} file_bytes;

static cairo_status_t append(void *file, const unsigned char *data, unsigned int length)
{
    file_bytes *f = file;
    if (length > f->capacity - f->n) {
        const size_t capacity = 2 * f->capacity + length;
        unsigned char *bigger = realloc(f->data, capacity);
        if (bigger == NULL)
            return CAIRO_STATUS_NO_MEMORY;
        f->data = bigger;
        f->capacity = capacity;
    }
    memcpy(f->data + f->n, data, length);
    f->n += length;
    return CAIRO_STATUS_SUCCESS;
}

/* Drawing is recorded and played onto the file's own surface at the end. */
canvas canvas_open(const char *path, double width, double height)
{
    const cairo_rectangle_t page = {0, 0, width, height};
    canvas c = {.path = path, .surface = cairo_recording_surface_create(CAIRO_CONTENT_COLOR_ALPHA, &page)};
    c.cr = cairo_create(c.surface);
    draw_rect(&c, 0, 0, width, height, paper);
    cairo_set_line_join(c.cr, CAIRO_LINE_JOIN_ROUND);
    cairo_set_line_cap(c.cr, CAIRO_LINE_CAP_ROUND);
    return c;
}

static cairo_status_t encode_picture(const canvas *c, file_bytes *file)
{
    cairo_rectangle_t page;
    cairo_recording_surface_get_extents(c->surface, &page);
    const bool svg = ends_with(c->path, ".svg");
    cairo_surface_t *out = svg ? cairo_svg_surface_create_for_stream(append, file, page.width, page.height)
                               : cairo_image_surface_create(CAIRO_FORMAT_RGB24, (int)(page.width * pixels_per_point),
                                                            (int)(page.height * pixels_per_point));
    cairo_t *cr = cairo_create(out);
    if (!svg)
        cairo_scale(cr, pixels_per_point, pixels_per_point);
    cairo_set_source_surface(cr, c->surface, 0, 0);
    cairo_paint(cr);
    cairo_status_t status = cairo_status(cr);
    cairo_destroy(cr);
    if (status == CAIRO_STATUS_SUCCESS && !svg)
        status = cairo_surface_write_to_png_stream(out, append, file);
    cairo_surface_finish(out);
    if (status == CAIRO_STATUS_SUCCESS)
        status = cairo_surface_status(out);
    cairo_surface_destroy(out);
    return status;
}

int canvas_close(canvas *c)
{
    file_bytes bytes = {0};
    cairo_status_t status = cairo_status(c->cr);
    if (status == CAIRO_STATUS_SUCCESS)
        status = encode_picture(c, &bytes);
    cairo_destroy(c->cr);
    cairo_surface_destroy(c->surface);
    const int exit_code = status == CAIRO_STATUS_SUCCESS
                              ? cli_write_file(c->path, bytes.data, bytes.n)
                              : cli_fail("%s: cannot be drawn: %s", c->path, cairo_status_to_string(status));
    free(bytes.data);
    return exit_code;
}

static void set_color(canvas *c, rgb color)
{
    cairo_set_source_rgb(c->cr, color.r, color.g, color.b);
}

static void set_font(canvas *c, text_style style)
{
    cairo_select_font_face(c->cr, font, CAIRO_FONT_SLANT_NORMAL,
                           style.bold ? CAIRO_FONT_WEIGHT_BOLD : CAIRO_FONT_WEIGHT_NORMAL);
    cairo_set_font_size(c->cr, style.size);
}

double text_width(canvas *c, text_style style, const char *text)
{
    cairo_text_extents_t e;
    set_font(c, style);
    cairo_text_extents(c->cr, text, &e);
    return e.x_advance;
}

static double anchored(canvas *c, text_style style, const char *text)
{
    return style.anchor == ANCHOR_START ? 0 : -text_width(c, style, text) * (style.anchor == ANCHOR_MIDDLE ? 0.5 : 1);
}

void draw_text(canvas *c, double x, double y, text_style style, const char *text)
{
    set_font(c, style);
    set_color(c, style.color);
    cairo_move_to(c->cr, x + anchored(c, style, text), y);
    cairo_show_text(c->cr, text);
}

void draw_text_upward(canvas *c, double x, double y, text_style style, const char *text)
{
    set_font(c, style);
    set_color(c, style.color);
    cairo_save(c->cr);
    cairo_translate(c->cr, x, y);
    cairo_rotate(c->cr, -1.57079632679489661923);
    cairo_move_to(c->cr, anchored(c, style, text), 0);
    cairo_show_text(c->cr, text);
    cairo_restore(c->cr);
}

void draw_line(canvas *c, double x0, double y0, double x1, double y1, double width, rgb color)
{
    set_color(c, color);
    cairo_set_line_width(c->cr, width);
    cairo_move_to(c->cr, x0, y0);
    cairo_line_to(c->cr, x1, y1);
    cairo_stroke(c->cr);
}

void draw_rect(canvas *c, double x, double y, double width, double height, rgb color)
{
    set_color(c, color);
    cairo_rectangle(c->cr, x, y, width, height);
    cairo_fill(c->cr);
}

/* Cells with sharp edges and no seams. */
void draw_image(canvas *c, double x, double y, double width, double height, const rgb *cells, int columns, int rows)
{
    cairo_surface_t *image = cairo_image_surface_create(CAIRO_FORMAT_RGB24, columns, rows);
    unsigned char *data = cairo_image_surface_get_data(image);
    const int stride = cairo_image_surface_get_stride(image);
    for (int i = 0; data != NULL && i < rows; i++) {
        for (int j = 0; j < columns; j++) {
            const rgb color = cells[(size_t)i * (size_t)columns + (size_t)j];
            const uint32_t pixel = (uint32_t)lround(255 * color.r) << 16 | (uint32_t)lround(255 * color.g) << 8 |
                                   (uint32_t)lround(255 * color.b);
            memcpy(data + (ptrdiff_t)i * stride + 4 * (ptrdiff_t)j, &pixel, sizeof pixel);
        }
    }
    cairo_surface_mark_dirty(image);
    cairo_save(c->cr);
    cairo_translate(c->cr, x, y);
    cairo_scale(c->cr, width / columns, height / rows);
    cairo_set_source_surface(c->cr, image, 0, 0);
    cairo_pattern_set_filter(cairo_get_source(c->cr), CAIRO_FILTER_NEAREST);
    cairo_rectangle(c->cr, 0, 0, columns, rows);
    cairo_fill(c->cr);
    cairo_restore(c->cr);
    cairo_surface_destroy(image);
}

void draw_dot(canvas *c, double x, double y, double radius, rgb color)
{
    set_color(c, color);
    cairo_new_sub_path(c->cr);
    cairo_arc(c->cr, x, y, radius, 0, 6.28318530717958647693);
    cairo_fill(c->cr);
}
