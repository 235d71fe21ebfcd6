/* nsa eval: loss on text that the model has not seen, and the needle test. */
#include "cli/args.h"
#include "cli/chart.h"
#include "cli/cli.h"

#include "lm/checkpoint.h"
#include "lm/error.h"
#include "lm/evaluate.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct options {
    const char *model, *data, *out;
    int_list lengths;
    bool lengths_given, whole, needle;
    int32_t depths, trials, threads;
    int64_t tokens, seed;
} options;

static int failed(void)
{
    return cli_fail("%s", lm_error());
}

static int out_of_memory(void)
{
    return cli_fail("out of memory: the results");
}

/* ---- The needle test --------------------------------------------------------------------------------------------- */

enum { CELL_TEXT = 32 };

static int draw_cells(const options *o, const needle_test *t, const needle_cell *cells)
{
    char x_text[NEEDLE_MAX_LENGTHS][CELL_TEXT], y_text[NEEDLE_MAX_DEPTHS][CELL_TEXT];
    const char *x_ticks[NEEDLE_MAX_LENGTHS], *y_ticks[NEEDLE_MAX_DEPTHS];
    static char note_text[NEEDLE_MAX_LENGTHS * NEEDLE_MAX_DEPTHS][CELL_TEXT];
    static const char *notes[NEEDLE_MAX_LENGTHS * NEEDLE_MAX_DEPTHS];
    static double values[NEEDLE_MAX_LENGTHS * NEEDLE_MAX_DEPTHS];
    for (int l = 0; l < t->n_lengths; l++) {
        snprintf(x_text[l], CELL_TEXT, "%d", t->length[l]);
        x_ticks[l] = x_text[l];
    }
    for (int d = 0; d < t->n_depths; d++) {
        snprintf(y_text[d], CELL_TEXT, "%.0f %%", 100.0 * t->depth[d]);
        y_ticks[d] = y_text[d];
        for (int l = 0; l < t->n_lengths; l++) {
            const needle_cell *cell = &cells[l * t->n_depths + d];
            const int i = d * t->n_lengths + l;
            values[i] = cell->saved_nats;
            snprintf(note_text[i], CELL_TEXT, "%.0f %% right", 100.0 * cell->accuracy);
            notes[i] = note_text[i];
        }
    }
    const heat_map map = {
        .title = "Needle test",
        .subtitle = "nats that the hidden fact saves on its answer, a digit; a guess costs 2.30 and is right in 10 %",
        .x_label = "length of the text, tokens",
        .y_label = "depth of the fact",
        .value_label = "nats per answer",
        .n_x = t->n_lengths,
        .n_y = t->n_depths,
        .x_ticks = x_ticks,
        .y_ticks = y_ticks,
        .values = values,
        .notes = notes};
    return chart_heat_map(o->out, &map);
}

/* For the reader; the JSON on stdout is for programs. */
static void print_cells(const needle_test *t, const needle_cell *cells)
{
    fprintf(stderr, "nats saved (answers right)\n%-12s", "length");
    for (int l = 0; l < t->n_lengths; l++)
        fprintf(stderr, "%16d", t->length[l]);
    for (int d = 0; d < t->n_depths; d++) {
        fprintf(stderr, "\ndepth %3.0f %% ", 100.0 * t->depth[d]);
        for (int l = 0; l < t->n_lengths; l++) {
            const needle_cell *cell = &cells[l * t->n_depths + d];
            fprintf(stderr, "%8.2f (%3.0f %%)", cell->saved_nats, 100.0 * cell->accuracy);
        }
    }
    fputc('\n', stderr);
}

static bool add_cells(cJSON *json, const needle_test *t, const needle_cell *cells)
{
    cJSON *array = cJSON_AddArrayToObject(json, "needle");
    for (int i = 0; array != NULL && i < t->n_lengths * t->n_depths; i++) {
        cJSON *cell = cJSON_CreateObject();
        const bool ok = cJSON_AddNumberToObject(cell, "length", t->length[i / t->n_depths]) != NULL &&
                        cJSON_AddNumberToObject(cell, "depth", t->depth[i % t->n_depths]) != NULL &&
                        cJSON_AddNumberToObject(cell, "trials", t->trials) != NULL &&
                        cJSON_AddNumberToObject(cell, "saved_nats", cells[i].saved_nats) != NULL &&
                        cJSON_AddNumberToObject(cell, "accuracy", cells[i].accuracy) != NULL;
        if (!cJSON_AddItemToArray(array, cell) || !ok)
            return false;
    }
    return array != NULL;
}

/* Depths are spread evenly over 0 .. 1; lengths are by default a quarter, half and all of the context. */
static void plan_test(const options *o, int32_t context, needle_test *t)
{
    *t = (needle_test){.n_depths = o->depths, .trials = o->trials, .seed = (uint64_t)o->seed};
    for (int d = 0; d < o->depths; d++)
        t->depth[d] = o->depths == 1 ? 0.5 : (double)d / (o->depths - 1);
    if (o->lengths_given) {
        t->n_lengths = o->lengths.n;
        for (int l = 0; l < o->lengths.n; l++)
            t->length[l] = (int32_t)o->lengths.item[l];
        return;
    }
    for (int32_t part = 4; part >= 1; part /= 2)
        t->length[t->n_lengths++] = context / part;
}

static int run_needle_test(const options *o, const model *m, const corpus *data, cJSON *json)
{
    static needle_cell cells[NEEDLE_MAX_LENGTHS * NEEDLE_MAX_DEPTHS];
    needle_test test;
    plan_test(o, m->cfg.model.context, &test);
    if (!needle_evaluate(m, data, &test, cells))
        return failed();
    print_cells(&test, cells);
    if (!add_cells(json, &test, cells))
        return out_of_memory();
    return o->out != NULL ? draw_cells(o, &test, cells) : CLI_OK;
}

/* ---- The command ------------------------------------------------------------------------------------------------- */

static int evaluate(const options *o, const model *m, const checkpoint_info *info, const corpus *data, cJSON *json)
{
    double loss = 0.0;
    int64_t tokens = 0;
    if (!evaluate_loss(m, data, o->whole ? CORPUS_ALL : CORPUS_HELD_OUT, o->tokens, &loss, &tokens))
        return failed();
    const bool ok = cJSON_AddStringToObject(json, "model", o->model) != NULL &&
                    cJSON_AddStringToObject(json, "attention", model_is_dense(m) ? "dense" : "nsa") != NULL &&
                    cJSON_AddNumberToObject(json, "parameters", (double)model_n_params(m)) != NULL &&
                    cJSON_AddNumberToObject(json, "step", (double)info->step) != NULL &&
                    cJSON_AddStringToObject(json, "data", o->data) != NULL &&
                    cJSON_AddStringToObject(json, "part", o->whole ? "all" : "held-out") != NULL &&
                    cJSON_AddNumberToObject(json, "context", m->cfg.model.context) != NULL &&
                    cJSON_AddNumberToObject(json, "tokens", (double)tokens) != NULL &&
                    cJSON_AddNumberToObject(json, "loss", loss) != NULL &&
                    cJSON_AddNumberToObject(json, "perplexity", exp(loss)) != NULL &&
                    cJSON_AddNumberToObject(json, "bits_per_byte", loss / log(2.0)) != NULL;
    if (!ok)
        return out_of_memory();
    return o->needle ? run_needle_test(o, m, data, json) : CLI_OK;
}

static int print_json(const cJSON *json)
{
    char *text = cJSON_Print(json);
    if (text == NULL)
        return out_of_memory();
    printf("%s\n", text);
    cJSON_free(text);
    return CLI_OK;
}

static int load_and_evaluate(const options *o)
{
    corpus data = {0};
    model *m = NULL;
    checkpoint_info info;
    cJSON *json = cJSON_CreateObject();
    int status = json != NULL ? CLI_OK : out_of_memory();
    if (status == CLI_OK && (!corpus_load(&data, &o->data, 1) || !checkpoint_load_model(o->model, &m, &info)))
        status = failed();
    if (status == CLI_OK)
        status = evaluate(o, m, &info, &data, json);
    if (status == CLI_OK)
        status = print_json(json);
    cJSON_Delete(json);
    model_destroy(m);
    corpus_free(&data);
    return status;
}

int cmd_eval(int argc, char **argv)
{
    options o = {0};
    const arg args[] = {
        arg_required(arg_string("model", &o.model, "DIR", NULL, "of nsa train: its newest checkpoint, or one step-N")),
        arg_required(
            arg_string("data", &o.data, "FILE", NULL, "text; its last tenth is read, which nsa train holds out")),
        arg_flag("whole", &o.whole, "read all of the text"),
        arg_i64("tokens", &o.tokens, 0, 1e15, "0", "read at most so many tokens, spread evenly; 0 = all"),
        arg_flag("needle", &o.needle, "hide a fact in the held-out text and ask for it"),
        arg_string("out", &o.out, "PNG", NULL, "picture of the needle test"),
        arg_given(arg_ints("lengths", &o.lengths, 2, 1 << 24, NULL,
                           "of the needle test's texts, tokens; by default\na quarter, half and all of the context"),
                  &o.lengths_given),
        arg_i32("depths", &o.depths, 1, NEEDLE_MAX_DEPTHS, "5", "places of the fact in the text"),
        arg_i32("trials", &o.trials, 1, 1 << 20, "16", "texts for each length and depth"),
        arg_i64("seed", &o.seed, 0, 9007199254740992.0, "1", "of the needle test"),
        arg_i32("threads", &o.threads, 0, 1024, "0", "threads, 0 = all cores"),
    };
    const arg_table table = {"eval", "Measures a model on text: loss, perplexity, bits per byte; as JSON.", args,
                             ARGS_COUNT(args)};
    int status = CLI_OK;
    if (!args_parse(&table, argc, argv, &status))
        return status;
    if (o.out != NULL && !o.needle)
        return args_fail(&table, "--out", "is the picture of --needle, which is not given");
    if (o.threads > 0)
        omp_set_num_threads(o.threads);
    return load_and_evaluate(&o);
}
