#include "ops/gate/gate_simt.h"
#include "cuda/device.h"
#include "cuda/simt_args.h"
#include "ops/gate/gate.h"

static gate_simt_args args_of(const gate_problem *p)
{
    gate_simt_args a = {.cfg = simt_config_of(p->cfg), .seqs = simt_seqs_of(&p->seqs)};
    a.gate = p->gate;
    a.o = p->o;
    a.d_o = p->d_o;
    a.dgate = p->dgate;
    a.whole = simt_whole_chunks(&p->o, p->cfg->d_v) && simt_whole_chunks(&p->d_o, p->cfg->d_v);
    for (int c = 0; c < NSA_N_BRANCHES; c++) {
        a.o_branch[c] = p->o_branch[c];
        a.do_branch[c] = p->do_branch[c];
        a.whole = a.whole && simt_whole_chunks(&p->o_branch[c], p->cfg->d_v) &&
                  simt_whole_chunks(&p->do_branch[c], p->cfg->d_v);
    }
    return a;
}

void gate_simt(const void *problem, arena *ws)
{
    const gate_simt_args a = args_of(problem);
    if (arena_launches(ws))
        cuda_launched(ws, "gate", launch_gate(&a, ws->stream));
}

void gate_backward_simt(const void *problem, arena *ws)
{
    const gate_simt_args a = args_of(problem);
    if (arena_launches(ws))
        cuda_launched(ws, "backward of gate", launch_gate_backward(&a, ws->stream));
}
