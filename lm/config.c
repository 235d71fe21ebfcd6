#include "lm/config.h"
#include "lm/error.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define MODEL(field) offsetof(lm_config, model.field)
#define TRAIN(field) offsetof(lm_config, train.field)
#define I32(name, offset, min, max, help)                                                                              \
    {                                                                                                                  \
        name, SETTING_I32, offset, min, max, NULL, help                                                                \
    }
#define REAL(name, offset, min, max, help)                                                                             \
    {                                                                                                                  \
        name, SETTING_DOUBLE, offset, min, max, NULL, help                                                             \
    }
#define CHOICE(name, offset, choices, last, help)                                                                      \
    {                                                                                                                  \
        name, SETTING_CHOICE, offset, 0, last, choices, help                                                           \
    }

static const double max_exact = 9007199254740992.0; /* 2^53: JSON numbers are doubles */

const setting settings[] = {
    CHOICE("attention", MODEL(attention), "nsa|dense", 1, "nsa or dense"),
    I32("context", MODEL(context), 1, 1 << 24, "tokens of a sequence"),
    I32("layers", MODEL(layers), 1, 256, "transformer layers"),
    I32("d_model", MODEL(d_model), 1, 65536, "width of the model"),
    I32("heads", MODEL(heads), 1, 1024, "query heads"),
    I32("kv_heads", MODEL(kv_heads), 1, 1024, "key and value heads"),
    I32("head_dim", MODEL(head_dim), 2, 256, "width of a head; even"),
    I32("d_ff", MODEL(d_ff), 1, 1 << 18, "width of the feed-forward layer"),
    CHOICE("shared_kv", MODEL(shared_kv), "off|on", 1, "on: the branches share keys and values"),
    I32("gate_hidden", MODEL(gate_hidden), 1, 65536, "width of the gates' hidden layer"),
    CHOICE("phi", MODEL(phi), "mean|linear|gated-token|gated-channel|mlp", 4,
           "compression: mean, linear, gated-token, gated-channel or mlp"),
    I32("phi_hidden", MODEL(phi_hidden), 1, 65536, "width of the hidden layer of --phi mlp"),
    I32("cmp_block", MODEL(cmp_block), 1, 65536, "tokens of a compression block"),
    I32("cmp_stride", MODEL(cmp_stride), 1, 65536, "tokens between compression blocks"),
    I32("slc_block", MODEL(slc_block), 1, 65536, "tokens of a selection block"),
    I32("slc_topk", MODEL(slc_topk), 1, 65536, "selected blocks, the forced ones counted in"),
    I32("slc_n_init", MODEL(slc_n_init), 0, 65536, "forced blocks at the start"),
    I32("slc_n_local", MODEL(slc_n_local), 0, 65536, "forced blocks at the query"),
    I32("win", MODEL(win), 1, 1 << 24, "tokens of the sliding window"),
    REAL("rope_theta", MODEL(rope_theta), 1, 1e12, "base of the rotary position encoding"),
    I32("steps", TRAIN(steps), 1, 1 << 30, "training steps"),
    I32("batch", TRAIN(batch), 1, 1 << 20, "sequences of a step"),
    REAL("lr", TRAIN(lr), 0, 10, "learning rate"),
    I32("warmup", TRAIN(warmup), 0, 1 << 30, "steps of linear warm-up"),
    REAL("weight_decay", TRAIN(weight_decay), 0, 10, "of matrices; gains and biases have none"),
    REAL("beta1", TRAIN(beta1), 0, 0.9999, "AdamW"),
    REAL("beta2", TRAIN(beta2), 0, 0.999999, "AdamW"),
    REAL("clip", TRAIN(clip), 0, 1e9, "largest norm of the gradient; 0 is none"),
    REAL("needle_share", TRAIN(needle_share), 0, 1, "share of the sequences in which a fact is hidden and asked for"),
    {"seed", SETTING_I64, TRAIN(seed), 0, max_exact, NULL, "of weights and data"},
    {NULL, SETTING_I32, 0, 0, 0, NULL, NULL},
};

void config_init(lm_config *cfg)
{
    *cfg = (lm_config){
        .model = {.attention = ATTENTION_NSA,
                  .context = 512,
                  .layers = 4,
                  .d_model = 128,
                  .heads = 8,
                  .kv_heads = 2,
                  .head_dim = 32,
                  .d_ff = 384,
                  .gate_hidden = 32,
                  .phi = NSA_PHI_MLP,
                  .phi_hidden = 64,
                  .cmp_block = 16,
                  .cmp_stride = 8,
                  .slc_block = 16,
                  .slc_topk = 8,
                  .slc_n_init = 1,
                  .slc_n_local = 2,
                  .win = 64,
                  .rope_theta = 10000.0},
        .train = {.steps = 400,
                  .batch = 8,
                  .lr = 3e-3,
                  .warmup = 20,
                  .weight_decay = 0.1,
                  .beta1 = 0.9,
                  .beta2 = 0.95,
                  .clip = 1.0,
                  .seed = 1},
    };
}

double setting_get(const setting *s, const lm_config *cfg)
{
    const void *at = (const char *)cfg + s->offset;
    if (s->type == SETTING_DOUBLE)
        return *(const double *)at;
    return s->type == SETTING_I64 ? (double)*(const int64_t *)at : (double)*(const int32_t *)at;
}

bool setting_set(const setting *s, lm_config *cfg, const char *label, double value)
{
    if (!(value >= s->min && value <= s->max))
        return lm_fail("%s is %.17g, allowed are %.17g .. %.17g", label, value, s->min, s->max);
    void *at = (char *)cfg + s->offset;
    if (s->type == SETTING_DOUBLE) {
        *(double *)at = value;
        return true;
    }
    if (value != floor(value))
        return lm_fail("%s is %.17g, allowed are whole numbers", label, value);
    if (s->type == SETTING_I64)
        *(int64_t *)at = (int64_t)value;
    else
        *(int32_t *)at = (int32_t)value;
    return true;
}

void setting_word(const setting *s, const lm_config *cfg, char *word, size_t size)
{
    const char *w = s->choices;
    for (int i = (int)setting_get(s, cfg); i > 0 && *w != '\0'; i--)
        w += strcspn(w, "|") + 1;
    (void)snprintf(word, size, "%.*s", (int)strcspn(w, "|"), w);
}

bool setting_set_word(const setting *s, lm_config *cfg, const char *label, const char *word)
{
    const size_t length = strlen(word);
    int index = 0;
    for (const char *w = s->choices; *w != '\0'; index++) {
        const size_t n = strcspn(w, "|");
        if (n == length && strncmp(w, word, n) == 0)
            return setting_set(s, cfg, label, index);
        w += n + (w[n] == '|');
    }
    return lm_fail("%s is '%.100s', allowed are %s", label, word, s->choices);
}

static bool check_nsa_sizes(const model_config *m)
{
    if (m->cmp_block % m->cmp_stride != 0)
        return lm_fail("--cmp-block is %d, not a multiple of --cmp-stride %d", m->cmp_block, m->cmp_stride);
    if (m->slc_block % m->cmp_stride != 0)
        return lm_fail("--slc-block is %d, not a multiple of --cmp-stride %d", m->slc_block, m->cmp_stride);
    if (m->cmp_block > m->slc_block)
        return lm_fail("--cmp-block is %d, larger than --slc-block %d", m->cmp_block, m->slc_block);
    if (m->slc_n_init + m->slc_n_local > m->slc_topk)
        return lm_fail("--slc-topk is %d, less than --slc-n-init %d and --slc-n-local %d together", m->slc_topk,
                       m->slc_n_init, m->slc_n_local);
    return true;
}

bool config_check(const lm_config *cfg)
{
    const model_config *m = &cfg->model;
    if (m->heads % m->kv_heads != 0)
        return lm_fail("--heads is %d, not a multiple of --kv-heads %d", m->heads, m->kv_heads);
    if (m->head_dim % 2 != 0)
        return lm_fail("--head-dim is %d, not even", m->head_dim);
    if ((int64_t)m->context * cfg->train.batch > INT32_MAX)
        return lm_fail("--context %d times --batch %d is more than %d tokens", m->context, cfg->train.batch, INT32_MAX);
    return m->attention == ATTENTION_DENSE || check_nsa_sizes(m);
}

nsa_config config_nsa(const model_config *m)
{
    nsa_config c;
    nsa_config_init(&c);
    c.n_heads_q = m->heads;
    c.n_heads_kv = m->kv_heads;
    c.d_qk = c.d_v = m->head_dim;
    if (m->attention == ATTENTION_DENSE) {
        c.win_size = INT32_MAX;
        return c;
    }
    c.cmp_block = m->cmp_block;
    c.cmp_stride = m->cmp_stride;
    c.slc_block = m->slc_block;
    c.slc_topk = m->slc_topk;
    c.slc_n_init = m->slc_n_init;
    c.slc_n_local = m->slc_n_local;
    c.win_size = m->win;
    return c;
}
