/* AdamW, the learning rate's course, and clipping. */
#ifndef LM_OPTIM_H
#define LM_OPTIM_H

#include "lm/config.h"
#include "lm/params.h"

/* Norm over all elements, summed in double in an order that depends on n alone. */
double gradient_norm(const float *grads, int64_t n);

/* Of step 0, 1, ...: linear up to lr over `warmup` steps, then half a cosine down to lr/10 at the last step. */
double learning_rate(const train_config *t, int64_t step);

/* One update of all tensors of the table: w -= rate (m^ / (sqrt(v^) + 1e-8) + decay w), with gradients times
 * grad_scale; m^ and v^ are the running means of gradient and square without their bias to 0. Decay where the table
 * says. */
void adamw_step(const train_config *t, const param_table *table, float *weights, const float *grads, float *m, float *v,
                int64_t step, double grad_scale);

#endif
