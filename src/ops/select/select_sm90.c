#include "ops/select/select_sm90.h"
#include "cuda/device.h"
#include "cuda/simt_args.h"
#include "ops/select/select.h"

enum {
    KEYS = 64,            /* of a tile */
    MAX_PER_SLC = 8,      /* strides of a selection block */
    MAX_LENGTH = 1 << 29, /* positions are int in the kernel */
};

static map_rows q_rows(const select_problem *p)
{
    return (map_rows){p->seqs.n, p->seqs.max_q, p->seqs.total_q, p->cfg->n_heads_q, p->cfg->d_qk};
}

static map_rows k_rows(const select_problem *p)
{
    const nsa_config *cfg = p->cfg;
    return (map_rows){p->seqs.n, n_cmp_visible(cfg, (int64_t)p->seqs.max_k - 1), p->seqs.total_k / cfg->cmp_stride,
                      cfg->n_heads_kv, cfg->d_qk};
}

static bool has_supported_blocks(const nsa_config *cfg)
{
    const int32_t per_slc = cfg->slc_block / cfg->cmp_stride, per_cmp = cfg->cmp_block / cfg->cmp_stride;
    return per_slc <= MAX_PER_SLC && (per_slc & (per_slc - 1)) == 0 && per_cmp <= 2 &&
           cfg->slc_topk - cfg->slc_n_init - cfg->slc_n_local <= SELECT_MAX_FREE;
}

bool select_sm90_supports(const select_problem *p)
{
    if (!ctx_is_sm90(p->ctx) || p->seqs.max_k > MAX_LENGTH || config_group(p->cfg) > SELECT_COLUMNS)
        return false;
    const map_rows q = q_rows(p), k = k_rows(p);
    return has_supported_blocks(p->cfg) && tensor_map_supports(&p->q, &q) && tensor_map_supports(&p->k_cmp.tensor, &k);
}

void select_sm90(const void *problem, arena *ws)
{
    const select_problem *p = problem;
    const nsa_config *cfg = p->cfg;
    select_sm90_args a = {
        .cfg = simt_config_of(cfg),
        .seqs = simt_seqs_of(&p->seqs),
        .q = p->q,
        .lse = p->lse,
        .slc_idx = p->slc_idx,
        .k_is_packed = p->k_cmp.tensor.stride_seq == 0,
    };
    while (1 << a.group_shift < a.cfg.group)
        a.group_shift++;
    while (cfg->cmp_stride << a.slc_shift < cfg->slc_block)
        a.slc_shift++;
    const int64_t tokens = SELECT_COLUMNS >> a.group_shift;
    a.n_tiles = n_tiles(p->seqs.total_q, p->seqs.n, SELECT_HALVES * tokens);
    const int64_t ctas_per_sm = cfg->d_qk <= SELECT_TWO_CTAS_D ? 2 : 1;
    a.n_ctas = min_i64(i64_mul(a.n_tiles, cfg->n_heads_kv), cuda_n_sms(p->ctx->device_index) * ctas_per_sm);
    a.n_slc = n_slc_blocks(cfg, p->seqs.max_k) + KEYS;
    a.score = arena_take(ws, i64_mul(a.n_ctas * SELECT_ROW_SETS * SELECT_HALVES * tokens * 2, a.n_slc), sizeof(float));
    if (!arena_launches(ws))
        return;
    const map_rows k = k_rows(p);
    int error = tensor_map(&a.k_map, &p->k_cmp.tensor, &k, 1, KEYS);
    if (error == 0)
        error = launch_select_sm90(&a, ws->stream);
    cuda_launched(ws, "selection", error);
}
