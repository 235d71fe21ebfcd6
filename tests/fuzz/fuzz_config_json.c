/* Any file as a checkpoint's config.json: refused, or the library takes its sizes and writing it loses nothing. */
#include "fuzz/fuzz.h"

#include "lm/config_json.h"
#include "lm/model.h"

#include <stdlib.h>
#include <string.h>

/* What the settings' ranges and config_check let through is a configuration for the library, too. */
static void check_library_takes(const nsa_config *cfg)
{
    nsa_ctx *ctx = NULL;
    size_t bytes = 0;
    FUZZ_CHECK(nsa_ctx_create(&ctx, NULL) == NSA_OK);
    const nsa_cache cache = {.page_size = cfg->slc_block, .dtype = NSA_F32};
    FUZZ_CHECK(nsa_cache_state_bytes(ctx, cfg, &cache, &bytes) == NSA_OK);
    nsa_ctx_destroy(ctx);
}

/* At least; in floats. */
static double model_size(const model_config *m)
{
    const double q = (double)m->heads * m->head_dim, d = m->d_model;
    const double phi = (double)m->kv_heads * m->cmp_block * m->head_dim * (m->head_dim + m->phi_hidden);
    return m->layers * (d * (2 * q + 3.0 * m->d_ff + m->gate_hidden) + 3.0 * m->heads * m->gate_hidden + phi);
}

static void check_small_model(const lm_config *cfg)
{
    model *m = NULL;
    if (model_size(&cfg->model) > 1e5 || !model_create(&m, cfg))
        return;
    FUZZ_CHECK(m->table.total >= model_n_params(m));
    for (int32_t i = 0; i < m->table.n; i++)
        FUZZ_CHECK(m->table.items[i].offset + m->table.items[i].count <= m->table.total);
    model_destroy(m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = NULL;
    checkpoint_info info, again;
    if (!file_read_text(fuzz_file(data, size), 1 << 20, &text))
        return 0;
    const bool ok = config_json_read("config.json", text, &info);
    free(text);
    if (!ok)
        return 0;
    const nsa_config cfg = config_nsa(&info.cfg.model);
    check_library_takes(&cfg);
    check_small_model(&info.cfg);
    char *written = config_json_write(&info);
    FUZZ_CHECK(written != NULL && config_json_read("config.json", written, &again));
    FUZZ_CHECK(memcmp(&info, &again, sizeof info) == 0);
    free(written);
    return 0;
}
