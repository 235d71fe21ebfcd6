/* Gate on CUDA. Equations: ops/gate/gate.h. */
#ifndef NSA_OPS_GATE_SIMT_H
#define NSA_OPS_GATE_SIMT_H

#include "cuda/simt.h"

typedef struct gate_simt_args {
    simt_config cfg;
    simt_seqs seqs;
    bool whole; /* all rows but the gates' are whole chunks */
    nsa_tensor gate, o_branch[NSA_N_BRANCHES], o;
    nsa_tensor d_o, dgate, do_branch[NSA_N_BRANCHES]; /* of do_branch data may be NULL */
} gate_simt_args;

NSA_LAUNCH launch_gate(const gate_simt_args *p, nsa_stream stream);
NSA_LAUNCH launch_gate_backward(const gate_simt_args *p, nsa_stream stream);

#endif
