#include "cli/map.h"

#include "cli/args.h"
#include "cli/cli.h"
#include "cli/draw.h"

#include "lm/arena.h"
#include "lm/checkpoint.h"
#include "lm/corpus.h"
#include "lm/error.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Shares per bin of the selected blocks of one layer and kv head, and its group's mean gates. */
static void fill_panel(map_panel *panel, const nsa_config *cfg, const layer_acts *acts, int head, int n_tokens,
                       int n_blocks)
{
    const int group = cfg->n_heads_q / cfg->n_heads_kv;
    int n_queries[MAP_BINS] = {0};
    for (int t = 0; t < n_tokens; t++)
        n_queries[(int64_t)t * MAP_BINS / n_tokens]++;
    for (int t = 0; t < n_tokens; t++) {
        const int bin = (int)((int64_t)t * MAP_BINS / n_tokens), cur = t / cfg->slc_block;
        const float share = 1.0F / (float)n_queries[bin];
        const int32_t *idx = acts->slc_idx + ((int64_t)t * cfg->n_heads_kv + head) * cfg->slc_topk;
        for (int i = 0; i < cfg->slc_topk && idx[i] >= 0; i++) {
            const bool forced = idx[i] < cfg->slc_n_init || idx[i] > cur - cfg->slc_n_local;
            (forced ? panel->forced : panel->free)[(int64_t)bin * n_blocks + idx[i]] += share;
        }
        const float *gate = acts->gate + ((int64_t)t * cfg->n_heads_q + (int64_t)head * group) * NSA_N_BRANCHES;
        for (int i = 0; i < group * NSA_N_BRANCHES; i++)
            panel->gate[i % NSA_N_BRANCHES][bin] += gate[i] * share / (float)group;
    }
    /* Fewer queries than bins: an empty one shows what the one before it does. */
    for (int bin = 1; bin < MAP_BINS; bin++) {
        if (n_queries[bin] > 0)
            continue;
        const int64_t at = (int64_t)bin * n_blocks;
        const size_t row = size_of(n_blocks, sizeof(float));
        memcpy(panel->free + at, panel->free + at - n_blocks, row);
        memcpy(panel->forced + at, panel->forced + at - n_blocks, row);
        for (int branch = 0; branch < NSA_N_BRANCHES; branch++)
            panel->gate[branch][bin] = panel->gate[branch][bin - 1];
    }
}

static void free_panels(map_panel *panels, int n)
{
    for (int i = 0; panels != NULL && i < n; i++) {
        free(panels[i].free);
        free(panels[i].forced);
    }
    free(panels);
}

static map_panel *make_panels(const run *r, int n_blocks)
{
    const nsa_config *cfg = &r->m->nsa;
    const int n_layers = r->m->cfg.model.layers, n = n_layers * cfg->n_heads_kv;
    map_panel *panels = calloc((size_t)n, sizeof *panels);
    for (int i = 0; panels != NULL && i < n; i++) {
        panels[i].free = calloc(size_of(n_blocks, MAP_BINS), sizeof(float));
        panels[i].forced = calloc(size_of(n_blocks, MAP_BINS), sizeof(float));
        if (panels[i].free == NULL || panels[i].forced == NULL) {
            free_panels(panels, n);
            return NULL;
        }
        fill_panel(&panels[i], cfg, &r->layers[i / cfg->n_heads_kv], i % cfg->n_heads_kv, r->seqlen, n_blocks);
    }
    return panels;
}

static int draw_run(const run *r, const char *model_path, const char *data_path, const char *out)
{
    const nsa_config *cfg = &r->m->nsa;
    const int n_blocks = (r->seqlen + cfg->slc_block - 1) / cfg->slc_block;
    map_panel *panels = make_panels(r, n_blocks);
    if (panels == NULL)
        return cli_fail("%s: no memory for the picture", out);
    char subtitle[256];
    snprintf(subtitle, sizeof subtitle,
             "%.60s on %d bytes of %.60s; blocks of %d, %d selected, %d + %d of them by rule", model_path, r->seqlen,
             data_path, cfg->slc_block, cfg->slc_topk, cfg->slc_n_init, cfg->slc_n_local);
    const selection_map map = {
        "What the model attends to", subtitle, r->m->cfg.model.layers, cfg->n_heads_kv, r->seqlen, n_blocks, panels};
    const int exit_code = map_draw(out, &map);
    free_panels(panels, r->m->cfg.model.layers * cfg->n_heads_kv);
    return exit_code;
}

/* One sequence of held-out text through the model, as in training, where all that a layer does is kept. */
static int map_text(const model *m, const corpus *data, int32_t tokens, const char *model_path, const char *data_path,
                    const char *out)
{
    const corpus_file *file = &data->files[0];
    const int32_t wanted = tokens > 0 ? tokens : m->cfg.model.context;
    const int32_t n = file->n < wanted ? (int32_t)file->n : wanted;
    const uint8_t *bytes = file->bytes + (file->n - file->n_train >= n ? file->n_train : file->n - n);
    run *r = NULL;
    const bool ran = run_create(&r, m, 1, n, true) && lm_forward(r, bytes);
    const int exit_code = ran ? draw_run(r, model_path, data_path, out) : cli_fail("%s", lm_error());
    run_destroy(r);
    return exit_code;
}

int cmd_map(int argc, char **argv)
{
    const char *model_path = NULL, *data_path = NULL, *out = NULL;
    int32_t tokens = 0;
    const arg args[] = {
        arg_required(arg_string("model", &model_path, "DIR", NULL, "what nsa train --out made")),
        arg_required(arg_string("data", &data_path, "FILE", NULL, "text; its last tenth is read where that is enough")),
        arg_required(arg_string("out", &out, "FILE", NULL, "the picture (.png or .svg)")),
        arg_i32("tokens", &tokens, 0, 1 << 20, "0", "length of the text, 0 = the model's context"),
    };
    const arg_table table = {"map",
                             "Draws what a model attends to: for each layer and kv head the selected blocks by query\n"
                             "position, and beside them the mean gate of each branch.",
                             args, ARGS_COUNT(args)};
    int exit_code;
    if (!args_parse(&table, argc, argv, &exit_code))
        return exit_code;
    if (!canvas_path_valid(out))
        return args_fail(&table, "--out", "is '%.200s', must end in .png or .svg", out);

    model *m = NULL;
    corpus data = {0};
    checkpoint_info info;
    if (!checkpoint_load_model(model_path, &m, &info) || !corpus_load(&data, &data_path, 1))
        exit_code = cli_fail("%s", lm_error());
    else if (model_is_dense(m))
        exit_code = cli_fail("%s: a dense model selects nothing", model_path);
    else
        exit_code = map_text(m, &data, tokens, model_path, data_path, out);
    corpus_free(&data);
    model_destroy(m);
    return exit_code;
}
