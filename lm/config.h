/*
 * What a model is and how it is trained. Every setting is a row of one table, which the command line, config.json and
 * the checks read; a setting's flag is its name with '-' for '_'.
 */
#ifndef LM_CONFIG_H
#define LM_CONFIG_H

#include <nsa.h>

#include <stdbool.h>
#include <stddef.h>

typedef enum attention_kind { ATTENTION_NSA = 0, ATTENTION_DENSE } attention_kind;

typedef struct model_config {
    int32_t attention; /* attention_kind */
    int32_t context;   /* tokens of a training sequence */
    int32_t layers;
    int32_t d_model;
    int32_t heads, kv_heads;
    int32_t head_dim; /* of queries, keys and values */
    int32_t d_ff;
    int32_t shared_kv; /* 1: the branches share one K and one V */
    int32_t gate_hidden;
    int32_t phi; /* nsa_phi_kind, for keys and values */
    int32_t phi_hidden;
    int32_t cmp_block, cmp_stride, slc_block, slc_topk, slc_n_init, slc_n_local, win;
    double rope_theta;
} model_config;

typedef struct train_config {
    int32_t steps;
    int32_t batch; /* sequences of a step */
    double lr;     /* the highest; warm-up is linear, then a cosine falls to a tenth */
    int32_t warmup;
    double weight_decay, beta1, beta2, clip;
    double needle_share; /* of the training sequences */
    int64_t seed;
} train_config;

typedef struct lm_config {
    model_config model;
    train_config train;
} lm_config;

typedef enum setting_type { SETTING_I32, SETTING_I64, SETTING_DOUBLE, SETTING_CHOICE } setting_type;

typedef struct setting {
    const char *name;
    setting_type type;
    size_t offset;       /* in lm_config */
    double min, max;     /* allowed, both included */
    const char *choices; /* SETTING_CHOICE: "nsa|dense"; the value is the index, int32 */
    const char *help;
} setting;

extern const setting settings[]; /* ends with name = NULL */

enum { BYTE_VOCABULARY = 256 };

void config_init(lm_config *cfg); /* the sizes of the demonstration */

/* The value as a number, and set from one: `label` is what the message calls it. */
double setting_get(const setting *s, const lm_config *cfg);
bool setting_set(const setting *s, lm_config *cfg, const char *label, double value);

/* The word of a choice's value; and the value of a word, or a failure. */
void setting_word(const setting *s, const lm_config *cfg, char *word, size_t size);
bool setting_set_word(const setting *s, lm_config *cfg, const char *label, const char *word);

/* What no single setting can tell: sizes that do not fit each other. Names the flags. */
bool config_check(const lm_config *cfg);

/* The attention's configuration: for dense models the window has no end. */
nsa_config config_nsa(const model_config *m);

#endif
