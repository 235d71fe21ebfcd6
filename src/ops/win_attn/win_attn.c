#include "ops/win_attn/win_attn.h"
#include "ops/attn_tile/attn_ref.h"

const attn_impl win_attn_impls[] = {
    {"ref", attn_ref_supports, win_attn_ref_forward, win_attn_ref_backward},
    {NULL, NULL, NULL, NULL},
};
