#include "ops/slc_attn/slc_attn.h"
#include "ops/attn_tile/attn_ref.h"

const attn_impl slc_attn_impls[] = {
    {"ref", attn_ref_supports, slc_attn_ref_forward, slc_attn_ref_backward},
    {NULL, NULL, NULL, NULL},
};
