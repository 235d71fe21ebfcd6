#include "lm/trainer.h"
#include "lm/arena.h"
#include "lm/error.h"
#include "lm/optim.h"

#include <math.h>
#include <string.h>

enum { VALIDATION_TOKENS = 32768 };

static float *alloc_like_weights(const model *m)
{
    return lm_alloc_zeroed(size_of(m->table.total, sizeof(float)));
}

static bool fill(trainer *t)
{
    const lm_config *cfg = &t->cfg;
    LM_TRY(corpus_check(t->data, cfg->model.context));
    LM_TRY(model_create(&t->m, cfg));
    LM_TRY(run_create(&t->r, t->m, cfg->train.batch, cfg->model.context, true));
    t->grads = alloc_like_weights(t->m);
    t->adam_m = alloc_like_weights(t->m);
    t->adam_v = alloc_like_weights(t->m);
    t->tokens = lm_alloc_zeroed((size_t)t->r->rows);
    t->targets = lm_alloc_zeroed((size_t)t->r->rows);
    t->bytes = lm_alloc_zeroed(size_add((size_t)cfg->model.context, 1));
    if (t->grads == NULL || t->adam_m == NULL || t->adam_v == NULL || t->tokens == NULL || t->targets == NULL ||
        t->bytes == NULL)
        return lm_out_of_memory("the optimizer's state");
    return true;
}

bool trainer_create(trainer **out, const lm_config *cfg, const corpus *data)
{
    *out = NULL;
    trainer *t = calloc(1, sizeof *t);
    if (t == NULL)
        return lm_out_of_memory("a trainer");
    t->cfg = *cfg;
    t->data = data;
    if (!fill(t)) {
        trainer_destroy(t);
        return false;
    }
    *out = t;
    return true;
}

void trainer_destroy(trainer *t)
{
    if (t == NULL)
        return;
    run_destroy(t->r);
    model_destroy(t->m);
    free(t->grads);
    free(t->adam_m);
    free(t->adam_v);
    free(t->tokens);
    free(t->targets);
    free(t->bytes);
    free(t);
}

/* Row `row` of the batch: n tokens, and each one's successor. */
static void set_row(trainer *t, int32_t row, const uint8_t *bytes)
{
    const size_t n = (size_t)t->cfg.model.context;
    memcpy(t->tokens + (size_t)row * n, bytes, n);
    memcpy(t->targets + (size_t)row * n, bytes + 1, n);
}

bool trainer_step(trainer *t, double *loss)
{
    const train_config *c = &t->cfg.train;
    model *m = t->m;
    for (int32_t row = 0; row < c->batch; row++) {
        corpus_sample(t->data, c, t->step, row, t->cfg.model.context, t->bytes);
        set_row(t, row, t->bytes);
    }
    LM_TRY(lm_forward(t->r, t->tokens));
    lm_loss(t->r, t->targets, loss);
    if (!isfinite(*loss))
        return lm_fail("the loss of step %lld is not finite: a smaller --lr may help", (long long)t->step);
    LM_TRY(lm_backward(t->r, t->tokens, t->grads));
    const double norm = gradient_norm(t->grads, m->table.total);
    if (!isfinite(norm))
        return lm_fail("the gradient of step %lld is not finite: a smaller --lr may help", (long long)t->step);
    const double scale = c->clip > 0.0 && norm > c->clip ? c->clip / norm : 1.0;
    adamw_step(c, &m->table, m->weights, t->grads, t->adam_m, t->adam_v, t->step, scale);
    t->step++;
    return true;
}

bool trainer_validate(trainer *t, double *loss)
{
    const int32_t n = t->cfg.model.context;
    const int32_t batch = t->cfg.train.batch;
    const int64_t all = corpus_n_windows(t->data, CORPUS_HELD_OUT, n);
    int64_t windows = VALIDATION_TOKENS / n < batch ? batch : VALIDATION_TOKENS / n / batch * batch;
    double sum = 0.0;
    for (int64_t first = 0; first < windows; first += batch) {
        for (int32_t row = 0; row < batch; row++)
            set_row(t, row, corpus_window(t->data, CORPUS_HELD_OUT, n, (first + row) * all / windows));
        LM_TRY(lm_forward(t->r, t->tokens));
        double mean = 0.0;
        lm_loss(t->r, t->targets, &mean);
        sum += mean;
    }
    *loss = sum / (double)(windows / batch);
    return true;
}
