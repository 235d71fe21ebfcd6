#include "ops/attn_tile/attn.h"

const attn_impl *attn_choose(const attn_impl *impls, const attn_problem *p)
{
    const bool oracle = p->ctx->reference || p->q.dtype == NSA_F64;
    while (impls[1].name != NULL && (oracle || !impls->supports(p)))
        impls++;
    return impls;
}
