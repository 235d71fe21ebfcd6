/* Any file as a training log: shown, written as JSON that can be read, drawn (onto nothing), and resumed after. */
#include "fuzz/fuzz.h"

#include "cli/cli.h"
#include "cli/draw.h"
#include "cli/train_log.h"

#include <cjson/cJSON.h>
#include <stdio.h>

/* In the places of the pictures' and the JSON's files: cli/draw.h, cli/cli.h. */
canvas __wrap_canvas_open(const char *path, double width, double height);
int __wrap_canvas_close(canvas *c);
void __wrap_draw_text(canvas *c, double x, double y, text_style style, const char *text);
void __wrap_draw_text_upward(canvas *c, double x, double y, text_style style, const char *text);
double __wrap_text_width(canvas *c, text_style style, const char *text);
int __wrap_cli_write_file(const char *path, const void *data, size_t bytes);

canvas __wrap_canvas_open(const char *path, double width, double height)
{
    FUZZ_CHECK(width > 0 && height > 0);
    canvas c = {.path = path, .surface = cairo_image_surface_create(CAIRO_FORMAT_A8, 1, 1)};
    c.cr = cairo_create(c.surface);
    return c;
}

int __wrap_canvas_close(canvas *c)
{
    FUZZ_CHECK(cairo_status(c->cr) == CAIRO_STATUS_SUCCESS);
    cairo_destroy(c->cr);
    cairo_surface_destroy(c->surface);
    return CLI_OK;
}

void __wrap_draw_text(canvas *c, double x, double y, text_style style, const char *text)
{
    (void)c, (void)style;
    FUZZ_CHECK(x == x && y == y && text != NULL);
}

void __wrap_draw_text_upward(canvas *c, double x, double y, text_style style, const char *text)
{
    __wrap_draw_text(c, x, y, style, text);
}

double __wrap_text_width(canvas *c, text_style style, const char *text)
{
    (void)c, (void)style, (void)text;
    return 0;
}

int __wrap_cli_write_file(const char *path, const void *data, size_t bytes)
{
    (void)path;
    cJSON *json = cJSON_ParseWithLength(data, bytes);
    FUZZ_CHECK(json != NULL);
    cJSON_Delete(json);
    return CLI_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *path = fuzz_file(data, size);
    char words[][8] = {"losses", "--log", "--json", "a.json", "--out", "a.svg"};
    char log[64];
    (void)snprintf(log, sizeof log, "%s", path);
    char *argv[] = {words[0], words[1], log, words[2], words[3], words[4], words[5], NULL};
    fuzz_capture_begin();
    const int exit_code = cmd_losses(7, argv);
    const char *said = fuzz_capture_end();
    FUZZ_CHECK(exit_code == CLI_OK ? *said == '\0' : exit_code == CLI_FAILED && *said != '\0');

    train_log resumed;
    const double val_loss = 1;
    FUZZ_CHECK(train_log_open(&resumed, path, 3));
    FUZZ_CHECK(train_log_step(&resumed, 4, 1, &val_loss, 1));
    FUZZ_CHECK(train_log_close(&resumed));
    return 0;
}
