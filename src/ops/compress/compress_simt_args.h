/* From a problem to what the kernels of compression take. */
#ifndef NSA_OPS_COMPRESS_SIMT_ARGS_H
#define NSA_OPS_COMPRESS_SIMT_ARGS_H

#include "ops/compress/compress.h"
#include "ops/compress/compress_simt.h"

compress_simt_args compress_simt_args_of(const compress_problem *p); /* without workspace */

op_fn compress_simt_backward;

#endif
