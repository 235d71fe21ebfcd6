/* The host's side of slc_attn_fwd_blocks_sm90.cu: rounds of heads and tokens, their workspace, the launches. */
#include "ops/slc_attn/slc_attn_fwd_blocks_sm90.h"
#include "cuda/device.h"
#include "cuda/simt_args.h"
#include "ops/slc_attn/slc_attn.h"
#include "ops/slc_attn/slc_attn_sm90_args.h"

static const int64_t ROUND_BYTES = INT64_C(1) << 30; /* of partials; small rounds do not fill the machine */

enum { MOST_HEADS = 65535 }; /* query heads of a round, which are the grid's y */

/* What a round has: kv heads, and tokens of them. All tokens, unless those of one kv head are too many. */
typedef struct round_size {
    int32_t heads;
    int64_t tokens;
} round_size;

static round_size round_size_of(const attn_problem *p)
{
    const int64_t row_bytes = (int64_t)p->cfg->d_v * (int64_t)sizeof(uint16_t) + (int64_t)sizeof(slc_partial);
    const int64_t token_bytes = max_i64(1, i64_mul(slc_most_blocks(p), config_group(p->cfg) * row_bytes));
    const int64_t tokens = max_i64(1, min_i64(p->seqs.total_q, ROUND_BYTES / token_bytes));
    const int64_t heads = tokens < p->seqs.total_q ? 1 : ROUND_BYTES / i64_mul(tokens, token_bytes);
    const int64_t most = min_i64(p->cfg->n_heads_kv, MOST_HEADS / config_group(p->cfg));
    return (round_size){(int32_t)max_i64(1, min_i64(most, heads)), tokens};
}

static nsa_tensor from_head(const nsa_tensor *t, int32_t head)
{
    nsa_tensor x = *t;
    if (x.data != NULL)
        x.data = (char *)x.data + (int64_t)head * x.stride_head * (int64_t)dtype_size(x.dtype);
    return x;
}

/* The problem of n kv heads. cfg: room for its configuration. */
static attn_problem some_heads(const attn_problem *p, int32_t first, int32_t n, nsa_config *cfg)
{
    const int32_t group = config_group(p->cfg);
    *cfg = *p->cfg;
    cfg->n_heads_kv = n;
    cfg->n_heads_q = n * group;
    attn_problem x = *p;
    x.cfg = cfg;
    x.q = from_head(&p->q, first * group);
    x.k.tensor = from_head(&p->k.tensor, first);
    x.v.tensor = from_head(&p->v.tensor, first);
    x.slc_idx = from_head(&p->slc_idx, first);
    x.o = from_head(&p->o, first * group);
    x.lse = from_head(&p->lse, first * group);
    return x;
}

static slc_fwd_blocks take_workspace(const attn_problem *p, int64_t tokens, arena *ws)
{
    const int32_t group = config_group(p->cfg);
    slc_fwd_blocks x = {.attn = slc_fwd_sm90_of(p)};
    x.lists = slc_lists_take(p, tokens, max_i64(1, SLC_ITEM_ROWS / group), ws);
    const int64_t n_rows = i64_mul(x.lists.room, group);
    x.o = arena_take(ws, n_rows, (size_t)p->cfg->d_v * sizeof *x.o);
    x.partials = arena_take(ws, n_rows, sizeof *x.partials);
    return x;
}

bool slc_attn_fwd_blocks_sm90_supports(const attn_problem *p)
{
    const nsa_config *c = p->cfg;
    const round_size size = round_size_of(p);
    nsa_config cfg;
    const attn_problem part = some_heads(p, 0, size.heads, &cfg);
    arena none = {.base = NULL};
    const slc_fwd_blocks x = take_workspace(&part, size.tokens, &none);
    return slc_attn_fwd_sm90_supports(p) && c->d_qk == c->d_v && c->d_v <= 128 && c->slc_block <= SLC_FWD_KEYS &&
           config_group(c) <= SLC_ITEM_ROWS && slc_lists_fit(&x.lists, c) && x.lists.max_items <= INT32_MAX;
}

static void run_round(const slc_fwd_blocks *x, arena *ws)
{
    const slc_listing listing = {x->attn.cfg.c, x->attn.seqs, x->attn.slc_idx, x->round, false, x->lists};
    if (arena_launches(ws))
        cuda_launched(ws, "lists of slc_attn", launch_slc_lists(&listing, ws->stream));
    if (arena_launches(ws))
        cuda_launched(ws, "partials of slc_attn", launch_slc_partials(x, ws->stream));
    if (arena_launches(ws))
        cuda_launched(ws, "o of slc_attn", launch_slc_combine(x, ws->stream));
}

void slc_attn_fwd_blocks_sm90(const void *problem, arena *ws)
{
    const attn_problem *p = problem;
    const round_size size = round_size_of(p);
    const size_t mark = ws->used;
    for (int32_t head = 0; head < p->cfg->n_heads_kv; head += size.heads) {
        nsa_config cfg;
        const int32_t heads = (int32_t)min_i64(size.heads, p->cfg->n_heads_kv - head);
        const attn_problem part = some_heads(p, head, heads, &cfg);
        arena_release(ws, mark);
        slc_fwd_blocks x = take_workspace(&part, size.tokens, ws);
        for (int64_t first = 0; first < p->seqs.total_q && arena_launches(ws); first += size.tokens) {
            x.round = (slc_round){first, min_i64(size.tokens, p->seqs.total_q - first)};
            run_round(&x, ws);
        }
    }
}
