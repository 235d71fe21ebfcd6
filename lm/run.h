/*
 * A model at work on n_seqs sequences of seqlen tokens: all buffers of the forward and backward pass, sized once.
 * A run that does not train keeps one layer's buffers and uses them again for the next.
 */
#ifndef LM_RUN_H
#define LM_RUN_H

#include "lm/model.h"

typedef struct layer_acts {
    float *x;                             /* [rows][d_model], the layer's input */
    float *attn_in, *attn_rstd;           /* normed x */
    float *qkv, *rot;                     /* columns: see qkv_columns */
    float *gate_pre, *gate_hidden, *gate; /* [rows][gate_hidden] twice, [rows][heads][3] */
    float *o, *o_branch[NSA_N_BRANCHES], *lse[NSA_N_BRANCHES];
    float *k_cmp, *v_cmp;
    int32_t *slc_idx;
    float *mid; /* x plus attention */
    float *ffn_in, *ffn_rstd, *ffn_pre, *ffn_act;
} layer_acts;

typedef struct layer_grads { /* scratch of the backward pass, shared by all layers */
    float *x, *in, *qkv, *rot, *gate, *gate_hidden, *o, *ffn_pre, *ffn_act;
} layer_grads;

typedef struct kv_store kv_store; /* lm/session.c */

typedef struct run {
    const model *m;
    int32_t n_seqs, seqlen;
    int64_t rows; /* n_seqs * seqlen; in a session, the new tokens of the call */
    bool training;
    layer_acts *layers; /* [layers + 1]; of the last only x is used */
    float *final_in, *final_rstd, *logits, *loss;
    layer_grads d;
    float *rope;
    int64_t first; /* position of the first row of a sequence: 0 but in a session */
    kv_store *kv;  /* not NULL: attention goes through a cache */
    int32_t *cu_seqlens;
    void *workspace;
    size_t workspace_bytes;
    void *memory;
} run;

bool run_create(run **r, const model *m, int32_t n_seqs, int32_t seqlen, bool training);
void run_destroy(run *r); /* NULL is fine */

/* r->logits [rows][256] of tokens [rows]. */
bool lm_forward(run *r, const uint8_t *tokens);

/* The loss in nats of each target [rows], in r->loss; the logits are used up. Returns their mean in *mean. */
void lm_loss(run *r, const uint8_t *targets, double *mean);

/* After lm_forward and lm_loss of a training run: the gradient of the mean loss, overwritten, laid out as the
 * model's weights. */
bool lm_backward(run *r, const uint8_t *tokens, float *grads);

/* The attention of layer l (lm/attention.c). */
bool attention_forward(run *r, int32_t l);
bool attention_backward(run *r, int32_t l, float *grads);

/* Bytes of workspace that attention needs in this run. */
bool attention_workspace(const run *r, size_t *bytes);

#endif
