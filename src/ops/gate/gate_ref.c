/* The oracle of gate: plain loops in double. */
#include "ops/gate/gate.h"

static double get(const nsa_tensor *t, int32_t s, int64_t start, int64_t row, int64_t head, int64_t i)
{
    return dtype_get(t->data, t->dtype, tensor_offset(t, s, start, row, head) + i);
}

static void set(const nsa_tensor *t, int32_t s, int64_t start, int64_t row, int64_t head, int64_t i, double x)
{
    dtype_set(t->data, t->dtype, tensor_offset(t, s, start, row, head) + i, x);
}

void gate_ref(const void *problem, arena *ws)
{
    const gate_problem *p = problem;
    if (arena_counts(ws))
        return;
    for (int32_t s = 0; s < p->seqs.n; s++) {
        const seq q = seq_at(&p->seqs, s);
        for (int64_t row = 0; row < q.t_q; row++)
            for (int64_t h = 0; h < p->cfg->n_heads_q; h++)
                for (int64_t i = 0; i < p->cfg->d_v; i++) {
                    double sum = 0.0;
                    for (int c = 0; c < NSA_N_BRANCHES; c++) {
                        const double g = get(&p->gate, s, q.q0, row, h, c);
                        const double x = get(&p->o_branch[c], s, q.q0, row, h, i);
                        sum = ref_op(p->rounding, sum + ref_op(p->rounding, g * x));
                    }
                    set(&p->o, s, q.q0, row, h, i, sum);
                }
    }
}

void gate_backward_ref(const void *problem, arena *ws)
{
    const gate_problem *p = problem;
    if (arena_counts(ws))
        return;
    for (int32_t s = 0; s < p->seqs.n; s++) {
        const seq q = seq_at(&p->seqs, s);
        for (int64_t row = 0; row < q.t_q; row++)
            for (int64_t h = 0; h < p->cfg->n_heads_q; h++)
                for (int c = 0; c < NSA_N_BRANCHES; c++) {
                    const double g = get(&p->gate, s, q.q0, row, h, c);
                    double dgate = 0.0;
                    for (int64_t i = 0; i < p->cfg->d_v; i++) {
                        const double d_o = get(&p->d_o, s, q.q0, row, h, i);
                        const double x = get(&p->o_branch[c], s, q.q0, row, h, i);
                        dgate = ref_op(p->rounding, dgate + ref_op(p->rounding, d_o * x));
                        if (p->do_branch[c].data != NULL)
                            set(&p->do_branch[c], s, q.q0, row, h, i, g * d_o);
                    }
                    set(&p->dgate, s, q.q0, row, h, c, dgate);
                }
    }
}
