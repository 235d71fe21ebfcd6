/* A picture file (PNG or SVG, by the name's ending) and the few strokes that charts are made of. Units are points of
 * a white page; a PNG has two pixels per point. */
#ifndef CLI_DRAW_H
#define CLI_DRAW_H

#include <cairo.h>
#include <stdbool.h>

typedef struct canvas {
    cairo_surface_t *surface;
    cairo_t *cr;
    const char *path;
} canvas;

typedef struct rgb {
    double r, g, b;
} rgb;

/* Okabe and Ito's palette: told apart with any kind of colour vision. */
enum { PALETTE_SIZE = 8 };
extern const rgb palette[PALETTE_SIZE];
extern const rgb ink, ink_soft, ink_faint, paper; /* text, secondary text, grid lines, background */

rgb rgb_mix(rgb a, rgb b, double t); /* a at 0, b at 1 */
rgb rgb_readable_on(rgb background); /* ink or paper */

typedef enum anchor { ANCHOR_START, ANCHOR_MIDDLE, ANCHOR_END } anchor;

typedef struct text_style {
    double size;
    bool bold;
    anchor anchor;
    rgb color;
} text_style;

/* Does the name end in .png or .svg? */
bool canvas_path_valid(const char *path);

/* Nothing is written before canvas_close, which says what went wrong (a full disk) and returns the exit code. */
canvas canvas_open(const char *path, double width, double height);
int canvas_close(canvas *c);

void draw_text(canvas *c, double x, double y, text_style style, const char *text); /* y: the base line */
void draw_text_upward(canvas *c, double x, double y, text_style style, const char *text);
double text_width(canvas *c, text_style style, const char *text);
void draw_line(canvas *c, double x0, double y0, double x1, double y1, double width, rgb color);
void draw_rect(canvas *c, double x, double y, double width, double height, rgb color);
void draw_image(canvas *c, double x, double y, double width, double height, const rgb *cells, int columns, int rows);
void draw_dot(canvas *c, double x, double y, double radius, rgb color);

#endif
