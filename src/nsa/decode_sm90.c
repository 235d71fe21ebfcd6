/* The host's side of decode_sm90.cu: which problems it takes, and how many CTAs share a token. */
#include "nsa/decode_sm90.h"
#include "cuda/device.h"
#include "nsa/decode.h"

#include <float.h>

enum {
    ALIGN = 16,                /* of rows: they are copied so many bytes at a time */
    MAX_LOGITS_BYTES = 1 << 28 /* of a launch; units beyond those come in launches of their own */
};

static bool aligned(const nsa_tensor *t)
{
    const int64_t per = ALIGN / (int64_t)dtype_size(t->dtype);
    return (uintptr_t)t->data % ALIGN == 0 && t->stride_seq % per == 0 && t->stride_token % per == 0 &&
           t->stride_head % per == 0;
}

static bool all_aligned(const cache_problem *p)
{
    const nsa_cache_args *args = p->args;
    for (int b = 0; b < NSA_N_BRANCHES; b++)
        if (!aligned(&args->q[b]) ||
            ((b == 0 || p->cache->shared_kv == 0) && (!aligned(&args->k[b]) || !aligned(&args->v[b]))))
            return false;
    return aligned(&args->o);
}

static int32_t max_blocks(const cache_problem *p)
{
    return (int32_t)n_slc_blocks(p->cfg, cache_room(p->cache, p->args));
}

static int32_t max_stages(const cache_problem *p)
{
    const nsa_config *cfg = p->cfg;
    const int64_t n = n_cmp_visible(cfg, cache_room(p->cache, p->args) - 1) + cfg->cmp_block / cfg->cmp_stride - 1;
    return (int32_t)((n + DECODE_STAGE - 1) / DECODE_STAGE);
}

static int64_t n_units(const cache_problem *p)
{
    return i64_mul(p->args->total, p->cfg->n_heads_kv);
}

static int64_t bytes_of_cta(const cache_problem *p)
{
    return decode_sm90_bytes(p->cfg->d_qk, p->cfg->d_v, max_stages(p), max_blocks(p));
}

/* So many that few units fill the device. */
static int32_t cluster_of(const cache_problem *p)
{
    const int64_t ctas = (bytes_of_cta(p) <= DECODE_HALF_BYTES ? 2 : 1) * (int64_t)cuda_n_sms(p->ctx->device_index);
    int32_t n = 1;
    while (n < DECODE_MAX_CLUSTER && i64_mul(n_units(p), 2 * (int64_t)n) <= ctas)
        n *= 2;
    return n;
}

static bool supports_d(const nsa_config *cfg)
{
    return (cfg->d_qk == cfg->d_v && (cfg->d_v == 64 || cfg->d_v == 128)) || (cfg->d_qk == 192 && cfg->d_v == 128);
}

bool decode_sm90_supports(const cache_problem *p)
{
    const nsa_config *cfg = p->cfg;
    const double scale = config_scale(cfg);
    return ctx_is_sm90(p->ctx) && p->cache->dtype == NSA_BF16 && supports_d(cfg) && config_group(cfg) <= DECODE_HEADS &&
           cfg->slc_block % DECODE_TILE == 0 && cfg->slc_topk <= DECODE_MAX_TOPK &&
           cache_max_new(p->args) <= DECODE_MAX_NEW && scale > FLT_MIN && scale < FLT_MAX / 2.0 && all_aligned(p) &&
           i64_mul(n_units(p), DECODE_MAX_CLUSTER) <= INT32_MAX && bytes_of_cta(p) <= DECODE_MAX_BYTES;
}

void decode_sm90_run(const void *problem, arena *ws)
{
    const cache_problem *p = problem;
    decode_sm90 args = {
        .cache = cache_simt_of(p),
        .gate = p->args->gate,
        .o = p->args->o,
        .slc_idx = p->args->slc_idx,
        .makes_rows = p->args->phi_k->kind == NSA_PHI_MEAN && p->args->phi_v->kind == NSA_PHI_MEAN,
        .cluster = cluster_of(p),
        .max_blocks = max_blocks(p),
    };
    for (int b = 0; b < NSA_N_BRANCHES; b++)
        args.q[b] = p->args->q[b];
    args.max_stages = max_stages(p);
    if (!args.makes_rows)
        cache_compress_new(p, &args.cache, ws);
    /* Blocks are scored where there are more than are selected. */
    const int64_t of_unit = args.max_blocks > p->cfg->slc_topk
                                ? (int64_t)args.max_stages * DECODE_STAGE * DECODE_HEADS * (int64_t)sizeof(float)
                                : 0;
    const int64_t units = n_units(p), at_once = max_i64(1, min_i64(units, MAX_LOGITS_BYTES / max_i64(1, of_unit)));
    args.logits = arena_take(ws, i64_mul(at_once, of_unit), 1);
    for (args.first_unit = 0; args.first_unit < units && arena_launches(ws); args.first_unit += at_once) {
        args.n_units = (int32_t)min_i64(at_once, units - args.first_unit);
        cuda_launched(ws, "decoding", launch_decode_sm90(&args, ws->stream));
    }
}
