/* nsa losses: training logs side by side, as a table, a picture and JSON. */
#include "cli/args.h"
#include "cli/chart.h"
#include "cli/cli.h"
#include "cli/draw.h"
#include "lm/arena.h"

#include "lm/error.h"
#include "lm/fileio.h"
#include "lm/json.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_LOGS = 4, MAX_LINE = 4096 };

/* One log: every step's loss, and the held-out loss where it was taken. */
typedef struct training_log {
    const char *path;
    char name[64]; /* of the file, without its folder and ending */
    int n, capacity, n_val;
    double *step, *loss, *smoothed, *val_step, *val_loss;
    double tokens_per_s;
} training_log;

static bool grow(double **array, int capacity)
{
    double *bigger = realloc(*array, size_of(capacity, sizeof **array));
    if (bigger != NULL)
        *array = bigger;
    return bigger != NULL;
}

static bool reserve_line(training_log *log)
{
    if (log->n < log->capacity && log->n_val < log->capacity)
        return true;
    if (log->capacity > INT_MAX / 2)
        return false;
    log->capacity = log->capacity > 0 ? 2 * log->capacity : 256;
    return grow(&log->step, log->capacity) && grow(&log->loss, log->capacity) && grow(&log->smoothed, log->capacity) &&
           grow(&log->val_step, log->capacity) && grow(&log->val_loss, log->capacity);
}

static double number_of(const cJSON *object, const char *key)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    return cJSON_IsNumber(item) ? item->valuedouble : NAN;
}

static int read_line(training_log *log, const char *text, int line)
{
    char name[LM_PATH_MAX];
    snprintf(name, sizeof name, "%s: line %d", log->path, line);
    cJSON *object = json_parse(name, text, " \t\r\n");
    if (object == NULL)
        return cli_fail("%s", lm_error());
    const double step = number_of(object, "step"), loss = number_of(object, "loss");
    const double val_loss = number_of(object, "val_loss"), speed = number_of(object, "tokens_per_s");
    cJSON_Delete(object);
    if (isnan(step) || (isnan(loss) && isnan(val_loss)))
        return cli_fail("%s: is not that of a training log", name);
    if (!reserve_line(log))
        return cli_fail("%s: out of memory", name);
    if (!isnan(loss)) {
        log->step[log->n] = step;
        log->loss[log->n++] = loss;
    }
    if (!isnan(val_loss)) {
        log->val_step[log->n_val] = step;
        log->val_loss[log->n_val++] = val_loss;
    }
    if (!isnan(speed))
        log->tokens_per_s = speed;
    return CLI_OK;
}

/* What is drawn of the training batches: they are small, and some hold needles, so the mean of the last few. */
static void smooth(training_log *log)
{
    const int width = log->n / 20 + 1;
    double sum = 0;
    for (int i = 0; i < log->n; i++) {
        sum += log->loss[i] - (i >= width ? log->loss[i - width] : 0);
        log->smoothed[i] = sum / (i + 1 < width ? i + 1 : width);
    }
}

static int read_log(training_log *log, const char *path)
{
    const char *slash = strrchr(path, '/');
    const char *base = slash != NULL ? slash + 1 : path;
    *log = (training_log){.path = path};
    snprintf(log->name, sizeof log->name, "%.*s", (int)strcspn(base, "."), base);
    FILE *file = fopen(path, "r");
    if (file == NULL)
        return cli_fail("%s: %s", path, strerror(errno));
    char text[MAX_LINE];
    int exit_code = CLI_OK;
    for (int line = 1; exit_code == CLI_OK && fgets(text, sizeof text, file) != NULL; line++)
        exit_code = read_line(log, text, line);
    if (exit_code == CLI_OK && ferror(file))
        exit_code = cli_fail("%s: %s", path, strerror(errno));
    fclose(file);
    if (exit_code == CLI_OK && log->n == 0)
        exit_code = cli_fail("%s: holds no training step", path);
    if (exit_code == CLI_OK)
        smooth(log);
    return exit_code;
}

static void free_log(training_log *log)
{
    free(log->step);
    free(log->loss);
    free(log->smoothed);
    free(log->val_step);
    free(log->val_loss);
}

static double val_loss_at(const training_log *log, double step)
{
    for (int i = 0; i < log->n_val; i++)
        if (log->val_step[i] == step)
            return log->val_loss[i];
    return NAN;
}

static double last_val_loss(const training_log *log)
{
    return log->n_val > 0 ? log->val_loss[log->n_val - 1] : NAN;
}

static void print_cell(const char *format, double value)
{
    if (isnan(value))
        printf("%14s", "-");
    else
        printf(format, value);
}

/* Held-out losses in nats per byte, a row for each step where the first log has one. */
static void print_table(const training_log *logs, int n)
{
    printf("%-16s", "held-out loss");
    for (int i = 0; i < n; i++)
        printf("%14s", logs[i].name);
    putchar('\n');
    for (int row = 0; row < logs[0].n_val; row++) {
        printf("  step %-9.0f", logs[0].val_step[row]);
        for (int i = 0; i < n; i++)
            print_cell("%14.4f", val_loss_at(&logs[i], logs[0].val_step[row]));
        putchar('\n');
    }
    printf("%-16s", "bits per byte");
    for (int i = 0; i < n; i++)
        print_cell("%14.4f", last_val_loss(&logs[i]) / 0.69314718055994531);
    printf("\n%-16s", "tokens/s");
    for (int i = 0; i < n; i++)
        print_cell("%14.0f", logs[i].tokens_per_s);
    putchar('\n');
}

static int draw(const char *path, const char *subtitle, const training_log *logs, int n)
{
    chart_series series[2 * MAX_LOGS];
    char names[MAX_LOGS][96];
    for (int i = 0; i < n; i++) {
        snprintf(names[i], sizeof names[i], "%s, held-out text", logs[i].name);
        series[i] = (chart_series){NULL, i, CHART_THIN, logs[i].n, logs[i].step, logs[i].smoothed};
        series[n + i] = (chart_series){names[i], i, CHART_MARKED, logs[i].n_val, logs[i].val_step, logs[i].val_loss};
    }
    const chart_panel panel = {.x = {.label = "step"},
                               .y = {.label = "loss (nats per byte)", .log = true},
                               .n_series = 2 * n,
                               .series = series};
    const line_chart chart = {"Training loss", subtitle, 1, 1, &panel};
    return chart_lines(path, &chart);
}

static bool add_pairs(cJSON *object, const char *name, const double *x, const double *y, int n)
{
    cJSON *list = cJSON_AddArrayToObject(object, name);
    for (int i = 0; list != NULL && i < n; i++)
        if (!cJSON_AddItemToArray(list, cJSON_CreateDoubleArray((const double[]){x[i], y[i]}, 2)))
            return false;
    return list != NULL;
}

static bool add_log(cJSON *root, const training_log *log)
{
    cJSON *json = cJSON_AddObjectToObject(root, log->name);
    return json != NULL && cJSON_AddNumberToObject(json, "steps", log->step[log->n - 1]) != NULL &&
           cJSON_AddNumberToObject(json, "loss", log->loss[log->n - 1]) != NULL &&
           (log->n_val == 0 || cJSON_AddNumberToObject(json, "val_loss", last_val_loss(log)) != NULL) &&
           cJSON_AddNumberToObject(json, "tokens_per_s", log->tokens_per_s) != NULL &&
           add_pairs(json, "loss_by_step", log->step, log->loss, log->n) &&
           add_pairs(json, "val_loss_by_step", log->val_step, log->val_loss, log->n_val);
}

static int write_json(const char *path, const training_log *logs, int n)
{
    cJSON *root = cJSON_CreateObject();
    bool ok = root != NULL;
    for (int i = 0; ok && i < n; i++)
        ok = add_log(root, &logs[i]);
    char *text = ok ? cJSON_PrintUnformatted(root) : NULL;
    cJSON_Delete(root);
    const int exit_code = text != NULL ? cli_write_file(path, text, strlen(text)) : cli_fail("%s: out of memory", path);
    cJSON_free(text);
    return exit_code;
}

int cmd_losses(int argc, char **argv)
{
    string_list paths;
    const char *out = NULL, *json = NULL, *subtitle = NULL;
    const arg args[] = {
        arg_required(arg_strings("log", &paths, "FILE", "logs of nsa train; a log is called by its file's name")),
        arg_string("out", &out, "FILE", NULL, "draw the losses (.png or .svg)"),
        arg_string("json", &json, "FILE", NULL, "write the losses as JSON"),
        arg_text("subtitle", &subtitle, "TEXT",
                 "pale lines: batches of training, needles among them, averaged over a twentieth of the run",
                 "second line of the picture"),
    };
    const arg_table table = {"losses", "Shows training logs side by side.", args, ARGS_COUNT(args)};
    int exit_code;
    if (!args_parse(&table, argc, argv, &exit_code))
        return exit_code;
    if (paths.n > MAX_LOGS)
        return args_fail(&table, "--log", "names %d files, at most %d are allowed", paths.n, MAX_LOGS);
    if (out != NULL && !canvas_path_valid(out))
        return args_fail(&table, "--out", "is '%.200s', must end in .png or .svg", out);

    training_log logs[MAX_LOGS] = {0};
    for (int i = 0; exit_code == CLI_OK && i < paths.n; i++)
        exit_code = read_log(&logs[i], paths.item[i]);
    if (exit_code == CLI_OK)
        print_table(logs, paths.n);
    if (exit_code == CLI_OK && out != NULL)
        exit_code = draw(out, subtitle, logs, paths.n);
    if (exit_code == CLI_OK && json != NULL)
        exit_code = write_json(json, logs, paths.n);
    for (int i = 0; i < paths.n; i++)
        free_log(&logs[i]);
    return exit_code;
}
