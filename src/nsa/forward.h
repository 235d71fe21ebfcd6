/* Checks that nsa_forward and nsa_backward share. */
#ifndef NSA_NSA_FORWARD_H
#define NSA_NSA_FORWARD_H

#include "core/check.h"

/* The inputs of nsa_forward; prefix is "args." or, inside the arguments of backward, "args.fwd.". */
nsa_status check_forward_inputs(const char *prefix, const nsa_ctx *ctx, const nsa_config *cfg, const nsa_batch *batch,
                                const nsa_forward_args *args);

/* ("args.", "q", 1) -> "args.q[1]"; branch -1: "args.q" */
typedef struct field_name {
    char text[64];
} field_name;

field_name field(const char *prefix, const char *name, int branch);

#endif
