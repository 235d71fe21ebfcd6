/* From a problem to what the kernels of attention take. */
#ifndef NSA_OPS_ATTN_SIMT_ARGS_H
#define NSA_OPS_ATTN_SIMT_ARGS_H

#include "ops/attn_tile/attn.h"
#include "ops/attn_tile/attn_simt.h"

attn_simt attn_simt_of(const attn_problem *p); /* without delta */

#endif
