/*
 * A decoder-only transformer over bytes.
 *
 *     x = E[token]
 *     per layer:   h = RMSNorm(x)
 *                  q, k, v = h Wqkv;   gate = sigmoid(SiLU(h G1 + g1) G2 + g2)
 *                  x += NSA(q, k, v, gate) Wo        dense models: causal attention, no gates
 *                  h = RMSNorm(x);  a, b = h Win;    x += (SiLU(a) * b) Wout
 *     logits = RMSNorm(x) E^T
 *
 * Position encoding: RoPE, channels c and c + d/2 of a head make a pair. The compressed branch sees queries and keys
 * before their rotation, the other two after it: a block's summary then does not depend on where the block stands, and
 * phi's own intra-block encoding tells the order inside a block.
 *
 * A row of Wqkv's output holds the heads of q, then of k and v of each branch: q | k_cmp k_slc k_win | v_cmp v_slc
 * v_win, or q | k | v when there is one K and V.
 */
#ifndef LM_MODEL_H
#define LM_MODEL_H

#include "lm/config.h"
#include "lm/params.h"

#include <stddef.h>

typedef struct phi_params {
    int64_t pe, w1, b1, w2, b2; /* offsets; -1: the kind has none */
} phi_params;

typedef struct layer_params { /* offsets of the layer's tensors */
    int64_t attn_norm, qkv, attn_out;
    int64_t gate_w1, gate_b1, gate_w2, gate_b2;
    phi_params phi_k, phi_v;
    int64_t ffn_norm, ffn_in, ffn_out;
} layer_params;

/* Columns of a row of projections: those of qkv, and those of the rotated copy. */
typedef struct qkv_columns {
    int32_t q, k[NSA_N_BRANCHES], v[NSA_N_BRANCHES], width;
    int32_t rot_q, rot_k[NSA_N_BRANCHES], rot_width; /* of the compressed branch: none */
    int32_t n_kv;                                    /* different K (and V): 3 or 1 */
} qkv_columns;

typedef struct model {
    lm_config cfg;
    nsa_config nsa;
    nsa_ctx *ctx;
    qkv_columns columns;
    param_table table;
    layer_params *layers;
    int64_t embedding, final_norm;
    float *weights; /* [table.total] */
} model;

/* Builds a model with initial weights; uses as many threads as OpenMP would. */
bool model_create(model **m, const lm_config *cfg);
void model_destroy(model *m); /* NULL is fine */

static inline bool model_is_dense(const model *m)
{
    return m->cfg.model.attention == ATTENTION_DENSE;
}

int64_t model_n_params(const model *m);

/* phi of a layer over the weights, or over gradients that lie as the weights do. */
nsa_phi model_phi(const model *m, const phi_params *offsets, float *base);

#endif
