#include "ops/cmp_attn/cmp_attn.h"
#include "ops/attn_tile/attn_ref.h"

const attn_impl cmp_attn_impls[] = {
    {"ref", attn_ref_supports, cmp_attn_ref_forward, cmp_attn_ref_backward},
    {NULL, NULL, NULL, NULL},
};
