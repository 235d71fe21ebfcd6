/* Pictures: every chart is written, whatever its numbers are, and a file that cannot be written is reported. */
#include "cli/chart.h"
#include "cli/cli.h"
#include "cli/draw.h"
#include "cli/map.h"

#include <math.h>
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static const char png[] = "test_chart.png", svg[] = "test_chart.svg";

/* Runs with stderr in a file; returns what was written there. */
static const char *errors_of(int (*write)(const char *path), const char *path, int *exit_code)
{
    static char text[1024];
    FILE *file = tmpfile();
    assert_non_null(file);
    const int saved = dup(STDERR_FILENO);
    dup2(fileno(file), STDERR_FILENO);
    *exit_code = write(path);
    dup2(saved, STDERR_FILENO);
    close(saved);
    rewind(file);
    text[fread(text, 1, sizeof text - 1, file)] = '\0';
    fclose(file);
    return text;
}

/* Width and height from the header of a PNG. */
static void png_size(const char *path, unsigned *width, unsigned *height)
{
    unsigned char head[24] = {0};
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fread(head, 1, sizeof head, file), sizeof head);
    fclose(file);
    assert_memory_equal(head, "\x89PNG\r\n\x1a\n", 8);
    *width = (unsigned)head[18] << 8 | head[19];
    *height = (unsigned)head[22] << 8 | head[23];
}

static int write_lines(const char *path)
{
    static const double x[] = {1024, 2048, 4096}, y[] = {1, 2.5, 7};
    const chart_series series = {"a", 0, CHART_MARKED, 3, x, y};
    const chart_panel panel = {"t", {.label = "x", .log = true}, {.label = "y", .log = true}, 1, &series};
    const line_chart chart = {"title", "subtitle", 1, 1, &panel};
    return chart_lines(path, &chart);
}

static void test_png_and_svg(void **state)
{
    (void)state;
    unsigned width, height;
    assert_int_equal(write_lines(png), CLI_OK);
    png_size(png, &width, &height);
    assert_true(width > 800 && width < 4000 && height > 400 && height < 4000);
    remove(png);

    char head[6] = "";
    assert_int_equal(write_lines(svg), CLI_OK);
    FILE *file = fopen(svg, "r");
    assert_non_null(file);
    assert_int_equal(fread(head, 1, 5, file), 5);
    fclose(file);
    assert_string_equal(head, "<?xml");
    remove(svg);
}

static void test_paths(void **state)
{
    (void)state;
    assert_true(canvas_path_valid("a.png"));
    assert_true(canvas_path_valid("b/a.svg"));
    assert_false(canvas_path_valid(".png"));
    assert_false(canvas_path_valid("a.jpg"));
    assert_false(canvas_path_valid("png"));
    assert_false(canvas_path_valid(""));
}

static void test_unwritable(void **state)
{
    (void)state;
    int exit_code;
    const char *message = errors_of(write_lines, "no/such/folder.png", &exit_code);
    assert_int_equal(exit_code, CLI_FAILED);
    assert_non_null(strstr(message, "no/such/folder.png"));

    remove(png);
    remove(svg);
    if (symlink("/dev/full", png) != 0 || symlink("/dev/full", svg) != 0)
        skip();
    message = errors_of(write_lines, png, &exit_code);
    assert_int_equal(exit_code, CLI_FAILED);
    assert_non_null(strstr(message, png));
    message = errors_of(write_lines, svg, &exit_code);
    assert_int_equal(exit_code, CLI_FAILED);
    assert_non_null(strstr(message, svg));
    remove(png);
    remove(svg);
}

/* Nothing, one point, equal values, gaps, numbers that a logarithm has not. */
static void test_odd_numbers(void **state)
{
    (void)state;
    static const double cases[][4] = {
        {NAN, NAN, NAN, NAN}, {INFINITY, 1, 2, -INFINITY}, {0, 0, 0, 0},   {-1, -2, -3, -4}, {1e-300, 1, 1e300, 2},
        {5, 5, 5, 5},         {1e15, 1e15 + 1, 1, 2},      {1, NAN, 3, 4},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        for (int form = 0; form < 8; form++) {
            const chart_series series = {
                "a", (int)i, form & 4 ? CHART_THIN : CHART_MARKED, i == 0 ? 0 : 4, cases[i], cases[(i + 1) % 8]};
            const chart_panel panel = {
                NULL, {.label = "x", .log = form & 1}, {.label = "y", .log = form & 2}, 1, &series};
            const line_chart chart = {"", "", 1, 1, &panel};
            assert_int_equal(chart_lines(png, &chart), CLI_OK);
        }
        static const char *const names[] = {"a", "b"};
        const heat_map map = {"", "", "x", "y", "v", 2, 2, names, names, cases[i], NULL};
        assert_int_equal(chart_heat_map(png, &map), CLI_OK);
    }
    remove(png);
}

static void test_selection_map(void **state)
{
    (void)state;
    enum { BLOCKS = 5 };
    static float by_score[MAP_BINS * BLOCKS], by_rule[MAP_BINS * BLOCKS];
    map_panel panels[6] = {{0}};
    for (int i = 0; i < 6; i++) {
        panels[i].free = by_score;
        panels[i].forced = by_rule;
    }
    const selection_map map = {"", "", 2, 3, 77, BLOCKS, panels};
    assert_int_equal(map_draw(png, &map), CLI_OK);
    remove(png);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_png_and_svg), cmocka_unit_test(test_paths),         cmocka_unit_test(test_unwritable),
        cmocka_unit_test(test_odd_numbers), cmocka_unit_test(test_selection_map),
    };
    return cmocka_run_group_tests_name("chart", tests, NULL, NULL);
}
