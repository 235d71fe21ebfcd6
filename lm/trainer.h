/* Training: the model, its optimizer's state and the step that comes next. */
#ifndef LM_TRAINER_H
#define LM_TRAINER_H

#include "lm/run.h"
#include "lm/corpus.h"

typedef struct trainer {
    lm_config cfg;
    const corpus *data;
    model *m;
    run *r;
    float *grads, *adam_m, *adam_v; /* laid out as the model's weights */
    uint8_t *tokens, *targets;      /* [batch * context] */
    uint8_t *bytes;                 /* [context + 1] */
    int64_t step;                   /* steps done */
} trainer;

/* The text must outlive the trainer. */
bool trainer_create(trainer **t, const lm_config *cfg, const corpus *data);
void trainer_destroy(trainer *t); /* NULL is fine */

/* One step: *loss is the mean over its batch before the update. A loss that is not finite is an error, and changes
 * nothing. */
bool trainer_step(trainer *t, double *loss);

/* Mean loss over a fixed set of held-out windows, spread evenly. */
bool trainer_validate(trainer *t, double *loss);

#endif
