/* How much an operation has to do: the arithmetic that GFLOP/s count, and the floor that no kernel gets below. */
#include "cli/bench.h"
#include "cli/bench_tensors.h"

static bool is_part(bench_op op, bench_op part)
{
    return op == part || op == BENCH_FORWARD || op == BENCH_FORWARD_GIVEN || op == BENCH_BACKWARD ||
           op == BENCH_PREFILL || op == BENCH_DECODE;
}

static int64_t attended(const nsa_config *cfg, bench_op op, bench_attention attention, int64_t t)
{
    if (attention != BENCH_NSA)
        return t + 1;
    const int64_t cur = t / cfg->slc_block;
    const int64_t selected = cur + 1 < cfg->slc_topk ? cur + 1 : cfg->slc_topk;
    const int64_t slc = (selected - 1) * cfg->slc_block + t % cfg->slc_block + 1; /* the current block is forced */
    const int64_t win = t + 1 < cfg->win_size ? t + 1 : cfg->win_size;
    return (is_part(op, BENCH_CMP_ATTN) ? nsa_n_cmp(cfg, t + 1) : 0) + (is_part(op, BENCH_SLC_ATTN) ? slc : 0) +
           (is_part(op, BENCH_WIN_ATTN) ? win : 0);
}

static double pairs_of(const bench_shape *shape, bench_op op, bench_attention attention)
{
    double pairs = 0;
    if (op == BENCH_DECODE)
        pairs = (double)attended(&shape->cfg, op, attention, shape->seqlen);
    else
        for (int64_t t = 0; t < shape->seqlen; t++)
            pairs += (double)attended(&shape->cfg, op, attention, t);
    return pairs * shape->batch;
}

double bench_flop(const bench_shape *shape, bench_op op, bench_attention attention)
{
    const nsa_config *cfg = &shape->cfg;
    const double flop = 2.0 * (cfg->d_qk + cfg->d_v) * cfg->n_heads_q * pairs_of(shape, op, attention);
    return op == BENCH_BACKWARD ? 2.5 * flop : flop;
}

/* Bytes of the tensors of nsa.h; k and v are one branch's. */
typedef struct tensor_bytes {
    double q, o, k, v, k_cmp, v_cmp, lse, gate, slc_idx;
} tensor_bytes;

static tensor_bytes bytes_of(const bench_shape *shape)
{
    const nsa_config *cfg = &shape->cfg;
    const double rows = (double)shape->batch * shape->seqlen, size = (double)bench_element_size(shape->dtype);
    const double rows_q = rows * cfg->n_heads_q, rows_kv = rows * cfg->n_heads_kv;
    const double k = rows_kv * cfg->d_qk * size, v = rows_kv * cfg->d_v * size;
    return (tensor_bytes){.q = rows_q * cfg->d_qk * size,
                          .o = rows_q * cfg->d_v * size,
                          .k = k,
                          .v = v,
                          .k_cmp = k / cfg->cmp_stride,
                          .v_cmp = v / cfg->cmp_stride,
                          .lse = rows_q * 4,
                          .gate = rows_q * 3 * 4,
                          .slc_idx = rows_kv * cfg->slc_topk * 4};
}

double bench_residual_bytes(const bench_shape *shape, bench_attention attention)
{
    const tensor_bytes b = bytes_of(shape);
    return attention == BENCH_NSA ? b.k_cmp + b.v_cmp + b.slc_idx + 3 * (b.o + b.lse) : b.o + b.lse;
}

/* Rows of K and V that a token of each sequence attends to. Branches that share them may do with the larger of slc and
 * win: the window may have been selected, or the selected blocks be within it. */
static double decode_rows(const bench_shape *shape, bench_attention attention)
{
    const nsa_config *cfg = &shape->cfg;
    if (attention != BENCH_NSA || !shape->shared_kv)
        return pairs_of(shape, BENCH_DECODE, attention);
    const int64_t slc = attended(cfg, BENCH_SLC_ATTN, attention, shape->seqlen);
    const int64_t win = attended(cfg, BENCH_WIN_ATTN, attention, shape->seqlen);
    const int64_t cmp = attended(cfg, BENCH_CMP_ATTN, attention, shape->seqlen);
    return (double)(cmp + (slc > win ? slc : win)) * shape->batch;
}

static double least_bytes(const bench_shape *shape, bench_op op, bench_attention attention)
{
    const tensor_bytes b = bytes_of(shape);
    const double residuals = bench_residual_bytes(shape, attention);
    const bool nsa = attention == BENCH_NSA;
    const double inputs = b.q + (nsa ? 3 * (b.k + b.v) + b.gate : b.k + b.v); /* and as many gradients */
    switch (op) {
    case BENCH_FORWARD:
    case BENCH_FORWARD_GIVEN:
    case BENCH_PREFILL: return inputs + residuals + (nsa ? b.o : 0);
    case BENCH_BACKWARD: return inputs + residuals + b.o + inputs;
    case BENCH_DECODE:
        return decode_rows(shape, attention) * shape->cfg.n_heads_kv * (shape->cfg.d_qk + shape->cfg.d_v) *
               (double)bench_element_size(shape->dtype);
    case BENCH_COMPRESS: return b.k + b.v + b.k_cmp + b.v_cmp;
    case BENCH_CMP_ATTN: return b.q + b.k_cmp + b.v_cmp + b.o + b.lse;
    case BENCH_SELECT: return b.q + b.k_cmp + b.lse + b.slc_idx;
    case BENCH_SLC_ATTN: return b.q + b.k + b.v + b.slc_idx + b.o + b.lse;
    case BENCH_WIN_ATTN: return b.q + b.k + b.v + b.o + b.lse;
    case BENCH_GATE: return 3 * b.o + b.gate + b.o;
    case BENCH_TRAIN_STEP:
    case BENCH_N_OPS: break;
    }
    return 0;
}

bench_work bench_least_work(const bench_shape *shape, bench_op op, bench_attention attention)
{
    const nsa_config *cfg = &shape->cfg;
    bench_work work = {bench_flop(shape, op, attention), least_bytes(shape, op, attention)};
    if (attention == BENCH_NSA && (op == BENCH_FORWARD || op == BENCH_SELECT))
        work.flop += 2.0 * cfg->d_qk * cfg->n_heads_q * pairs_of(shape, BENCH_CMP_ATTN, attention);
    return work;
}

/* The selected blocks of token t that are not forced: row[*first] .. row[*end - 1]. */
static void free_blocks(const nsa_config *cfg, const int32_t *row, int64_t t, int32_t *first, int32_t *end)
{
    const int64_t local = t / cfg->slc_block - cfg->slc_n_local + 1;
    int32_t n = 0, i = 0;
    while (n < cfg->slc_topk && row[n] >= 0 && row[n] < local)
        n++;
    while (i < n && row[i] < cfg->slc_n_init)
        i++;
    *first = i;
    *end = n;
}

double bench_overlap(const nsa_config *cfg, const int32_t *slc_idx, int64_t n_tokens)
{
    int64_t n_free = 0, n_shared = 0;
    const int64_t stride = (int64_t)cfg->n_heads_kv * cfg->slc_topk;
    for (int64_t t = 1; t < n_tokens; t++) {
        if (t / cfg->slc_block < cfg->slc_topk) /* it has no choice */
            continue;
        for (int32_t h = 0; h < cfg->n_heads_kv; h++) {
            const int32_t *row = slc_idx + t * stride + (int64_t)h * cfg->slc_topk, *before = row - stride;
            int32_t i, j, n_row, n_before;
            free_blocks(cfg, row, t, &i, &n_row);
            free_blocks(cfg, before, t - 1, &j, &n_before);
            n_free += n_row - i;
            while (i < n_row && j < n_before) {
                n_shared += row[i] == before[j];
                const bool next = row[i] <= before[j];
                j += row[i] >= before[j];
                i += next;
            }
        }
    }
    return n_free > 0 ? (double)n_shared / (double)n_free : -1;
}
