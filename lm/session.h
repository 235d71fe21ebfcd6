/* Generation: a sequence that grows token by token over a key-value cache. */
#ifndef LM_SESSION_H
#define LM_SESSION_H

#include "lm/run.h"

typedef struct session session;

/* Holds up to max_tokens tokens; more than one at a time are taken `chunk` together. */
bool session_create(session **s, const model *m, int32_t max_tokens, int32_t chunk);
void session_destroy(session *s); /* NULL is fine */

int32_t session_length(const session *s);

/* Appends n >= 1 tokens. *logits [256] belong to what follows the last and live until the next call. */
bool session_extend(session *s, const uint8_t *tokens, int32_t n, const float **logits);

/* The attention of layer l of a session's run: appends its rows to the cache, then attends to all. */
bool kv_attend(run *r, int32_t l);

/* q, k and v of each branch in rows of projections and of their rotated copies (lm/attention.c). */
void attention_inputs(const model *m, float *qkv, float *rot, nsa_tensor q[], nsa_tensor k[], nsa_tensor v[]);

#endif
