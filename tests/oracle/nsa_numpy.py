"""NSA in NumPy: the mathematics of docs/nsa.md, one function per formula, written to be read.

Independent of the C: written from the formulas alone, with masks over whole [token, key] matrices instead of tiles.
Everything is about one sequence. Arrays are [token, head, channel]; `cfg` is any object with the fields of nsa_config,
`phi` any with kind ("mean", "linear", "gated_token", "gated_channel", "mlp"), per_head, pe, w1, b1, w2, b2.

The type of the inputs is the type of the arithmetic: float64 for the oracle, float32 for "the same computation rounded
once per operation", complex128 for complex-step derivatives, longdouble for the golden vectors. `rnd` rounds what a
half-precision path rounds: probabilities and outputs.
"""
from types import SimpleNamespace

import numpy as np

CMP, SLC, WIN = 0, 1, 2
PHI_MEMBERS = ("pe", "w1", "b1", "w2", "b2")
SQRT_2, SQRT_PI = np.sqrt(np.longdouble(2)), np.sqrt(np.longdouble("3.14159265358979323846264338327950288"))
exp, log = np.exp, np.log


def exact(x):
    return x


# ---- Sizes and positions --------------------------------------------------------------------------------------------


def group(cfg):
    return cfg.n_heads_q // cfg.n_heads_kv


def scale(cfg):
    return cfg.scale if cfg.scale > 0 else 1 / float(np.sqrt(cfg.d_qk))


def n_cmp(cfg, n_tokens):
    return 0 if n_tokens < cfg.cmp_block else (n_tokens - cfg.cmp_block) // cfg.cmp_stride + 1


def positions(t_q, t_k):
    """The last query sits on the last key."""
    return np.arange(t_q) + t_k - t_q


# ---- What a row sees: [T_q, n_heads_kv or 1, n] ---------------------------------------------------------------------


def visible_cmp(cfg, t, n):
    last_token = np.arange(n) * cfg.cmp_stride + cfg.cmp_block - 1
    return (last_token <= t[:, None])[:, None, :]


def visible_slc(cfg, t, t_k, slc_idx):
    key = np.arange(t_k)
    selected = (slc_idx[..., None] == key // cfg.slc_block).any(axis=2)
    return selected & (key <= t[:, None])[:, None, :]


def visible_win(cfg, t, t_k):
    key = np.arange(t_k)
    return ((key <= t[:, None]) & (key > t[:, None] - cfg.win_size))[:, None, :]


# ---- Attention ------------------------------------------------------------------------------------------------------


def by_kv_head(x, n_heads_kv):
    """[T, n_heads_q, d] -> [T, n_heads_kv, group, d]: query head h reads kv head h / group."""
    return x.reshape(x.shape[0], n_heads_kv, x.shape[1] // n_heads_kv, x.shape[2])


def logits(q, k, scale):
    s = np.einsum("tkgd,nkd->tkgn", by_kv_head(q, k.shape[1]), k)
    return (scale * s).reshape(q.shape[0], q.shape[1], k.shape[0])


def per_query_head(visible, n_heads_q):
    return np.repeat(visible, n_heads_q // visible.shape[1], axis=1)


def softmax(s, visible):
    """Probabilities and ln sum exp over the visible entries of the last axis; an empty row has p = 0, lse = -inf."""
    m = np.where(visible, s.real, -np.inf).max(axis=-1, keepdims=True, initial=-np.inf)
    m = np.where(np.isfinite(m), m, 0).astype(s.real.dtype)
    e = exp(np.where(visible, s - m, -np.inf))
    z = e.sum(axis=-1, keepdims=True)
    empty = z == 0
    one = np.ones((), z.dtype)
    lse = np.where(empty, -np.inf, m + log(np.where(empty, one, z))).astype(z.dtype)
    return e / np.where(empty, one, z), lse


def sum_over_keys(p, x):
    """[T_q, n_heads_kv, group, n] and [n, n_heads_kv, d]; 0 where there are none, which einsum does not give in long
    double."""
    total = np.einsum("tkgn,nkd->tkgd", p, x)
    return total if x.shape[0] > 0 else np.zeros_like(total)


def attn(q, k, v, visible, scale, rnd=exact):
    """o = softmax(scale q k^T) v over the visible keys, and lse [T_q, n_heads_q, 1]."""
    p, lse = softmax(logits(q, k, scale), per_query_head(visible, q.shape[1]))
    o = sum_over_keys(by_kv_head(rnd(p), v.shape[1]), v)
    return rnd(o.reshape(q.shape[0], q.shape[1], v.shape[2])), lse


def probabilities(q, k, visible, scale, lse):
    """p = exp(scale*s - lse) of the visible keys."""
    s = logits(q, k, scale) - np.where(np.isfinite(lse), lse, 0)
    return exp(np.where(per_query_head(visible, q.shape[1]), s, -np.inf))


def attn_backward(q, k, v, visible, scale, o, lse, d_o, rnd=exact):
    """dp = do v^T, ds = p (dp - rowsum(do o)) scale; dq = ds k, dk = ds^T q, dv = p^T do."""
    n_kv = k.shape[1]
    p = probabilities(q, k, visible, scale, lse)
    dp = logits(d_o, v, 1)
    delta = (d_o * o).sum(axis=-1, keepdims=True)
    ds = by_kv_head(p * (dp - delta) * scale, n_kv)
    dq = sum_over_keys(ds, k).reshape(q.shape)
    dk = np.einsum("tkgn,tkgd->nkd", ds, by_kv_head(q, n_kv))
    dv = np.einsum("tkgn,tkgd->nkd", by_kv_head(rnd(p), n_kv), by_kv_head(d_o, n_kv))
    return rnd(dq), rnd(dk), rnd(dv)


def attn_backward_sizes(q, k, v, visible, scale, o, lse, d_o, rnd=exact):
    """What the terms of dq, dk, dv add up to in absolute value: rounding errors are in proportion to these."""
    n_kv = k.shape[1]
    p = probabilities(q, k, visible, scale, lse)
    q, k, v, o, d_o = map(np.abs, (q, k, v, o, d_o))
    ds = by_kv_head(p * (logits(d_o, v, 1) + (d_o * o).sum(axis=-1, keepdims=True)) * scale, n_kv)
    return (sum_over_keys(ds, k).reshape(q.shape), np.einsum("tkgn,tkgd->nkd", ds, by_kv_head(q, n_kv)),
            np.einsum("tkgn,tkgd->nkd", by_kv_head(p, n_kv), by_kv_head(d_o, n_kv)))


# ---- Importance and selection (equations 8 to 12) -------------------------------------------------------------------


def importance(q, k_cmp, visible, scale, lse=None):
    """P [T_q, n_heads_kv, n_cmp] in float32: p_cmp summed over the group's heads; below 2^-126 counts as 0."""
    p = softmax(logits(q, k_cmp, scale), visible)[0] if lse is None else probabilities(q, k_cmp, visible, scale, lse)
    p = p.astype(np.float32)
    p[p < np.float32(2.0**-126)] = 0
    p = by_kv_head(p, k_cmp.shape[1])
    total = np.zeros_like(p[:, :, 0])
    for g in range(p.shape[2]):
        total += p[:, :, g]
    return total


def block_scores(cfg, P, n_blocks):
    """Equation 9, counted from 0: score[j] = sum over m, n of P[(slc_block/stride) j + m - n]."""
    per_slc, per_cmp = cfg.slc_block // cfg.cmp_stride, cfg.cmp_block // cfg.cmp_stride
    score = np.zeros(P.shape[:-1] + (n_blocks,), P.dtype)
    for m in range(per_slc):
        for n in range(per_cmp):
            i = per_slc * np.arange(n_blocks) + m - n
            inside = (i >= 0) & (i < P.shape[-1])
            score[..., inside] += P[..., i[inside]]
    return score


def forced_blocks(cfg, t, block):
    cur = t[:, None] // cfg.slc_block
    return (block <= cur) & ((block < cfg.slc_n_init) | (block > cur - cfg.slc_n_local))


def select(cfg, score, t):
    """slc_idx [T_q, n_heads_kv, slc_topk]: the forced blocks, then the highest scores, the lower block first."""
    n_blocks = score.shape[-1]
    block = np.arange(n_blocks)
    rank = np.where(np.isnan(score), -1, score.astype(np.float64))
    rank = np.where(forced_blocks(cfg, t, block)[:, None], np.inf, rank)
    rank = np.where((block <= t[:, None] // cfg.slc_block)[:, None], rank, -np.inf)
    order = np.argsort(-rank, axis=-1, kind="stable")[..., : cfg.slc_topk]
    chosen = np.where(np.take_along_axis(rank, order, -1) > -np.inf, order, n_blocks)
    chosen.sort(axis=-1)
    slc_idx = np.full(score.shape[:-1] + (cfg.slc_topk,), -1, np.int32)
    slc_idx[..., : chosen.shape[-1]] = np.where(chosen < n_blocks, chosen, -1)
    return slc_idx


# ---- Compression (equation 7) ---------------------------------------------------------------------------------------


def erf(x):
    """2/sqrt(pi) exp(-x^2) sum 2^n x^(2n+1)/(2n+1)!!, which is free of cancellation and holds for complex x too."""
    z = np.where(np.abs(x.real) < 6, x, 6 * np.sign(x.real)).astype(np.promote_types(x.dtype, np.float64))
    term, total = z, z
    n = 0
    while (np.abs(term) > 1e-20 * np.abs(total)).any():
        n += 1
        term = term * (2 * z * z / (2 * n + 1))
        total = total + term
    return (2 / SQRT_PI.astype(z.real.dtype) * exp(-z * z) * total).astype(x.dtype)


def gelu(x):
    return x * (1 + erf(x / SQRT_2.astype(x.real.dtype))) / 2


def gelu_derivative(x):
    density = exp(-x * x / 2) / (SQRT_2 * SQRT_PI).astype(x.real.dtype)
    return (1 + erf(x / SQRT_2.astype(x.real.dtype))) / 2 + x * density


def phi_mean(x, w):
    return x.mean(axis=2)


def phi_mean_backward(x, w, dy):
    return np.broadcast_to(dy[:, :, None] / x.shape[2], x.shape), {}


def flat(x):
    """[n, heads, block, d] -> [n, heads, block*d]"""
    return x.reshape(x.shape[:2] + (x.shape[2] * x.shape[3],))


def phi_linear(x, w):
    return np.einsum("nhi,hio->nho", flat(x + w.pe), w.w1)


def phi_linear_backward(x, w, dy):
    dx = np.einsum("nho,hio->nhi", dy, w.w1).reshape(x.shape)
    return dx, {"pe": dx.sum(axis=0), "w1": np.einsum("nhi,nho->hio", flat(x + w.pe), dy)}


def softmax_over_tokens(s, axis):
    e = exp(s - s.real.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def gates_per_token(x, w):
    return softmax_over_tokens(np.einsum("nhrd,hd->nhr", x, w.w1) + w.b1, axis=2)


def phi_gated_token(x, w):
    return np.einsum("nhr,nhrd->nhd", gates_per_token(x, w), x)


def phi_gated_token_backward(x, w, dy):
    a = gates_per_token(x, w)
    da = np.einsum("nhd,nhrd->nhr", dy, x)
    ds = a * (da - (a * da).sum(axis=2, keepdims=True))
    dx = a[..., None] * dy[:, :, None] + ds[..., None] * w.w1[:, None]
    return dx, {"w1": np.einsum("nhr,nhrd->hd", ds, x), "b1": ds.sum(axis=0)}


def gates_per_channel(x, w):
    return softmax_over_tokens(np.einsum("nhrk,hkc->nhrc", x, w.w1) + w.b1, axis=2)


def phi_gated_channel(x, w):
    return (gates_per_channel(x, w) * x).sum(axis=2)


def phi_gated_channel_backward(x, w, dy):
    a = gates_per_channel(x, w)
    da = dy[:, :, None] * x
    ds = a * (da - (a * da).sum(axis=2, keepdims=True))
    dx = a * dy[:, :, None] + np.einsum("nhrc,hkc->nhrk", ds, w.w1)
    return dx, {"w1": np.einsum("nhrk,nhrc->hkc", x, ds), "b1": ds.sum(axis=0)}


def mlp_hidden(x, w):
    return np.einsum("nhi,hio->nho", flat(x + w.pe), w.w1) + w.b1


def phi_mlp(x, w):
    return np.einsum("nhi,hio->nho", gelu(mlp_hidden(x, w)), w.w2) + w.b2


def phi_mlp_backward(x, w, dy):
    z = mlp_hidden(x, w)
    dz = np.einsum("nho,hio->nhi", dy, w.w2) * gelu_derivative(z)
    dx = np.einsum("nho,hio->nhi", dz, w.w1).reshape(x.shape)
    return dx, {
        "pe": dx.sum(axis=0),
        "w1": np.einsum("nhi,nho->hio", flat(x + w.pe), dz),
        "b1": dz.sum(axis=0),
        "w2": np.einsum("nhi,nho->hio", gelu(z), dy),
        "b2": dy.sum(axis=0),
    }


PHI = {
    "mean": (phi_mean, phi_mean_backward),
    "linear": (phi_linear, phi_linear_backward),
    "gated_token": (phi_gated_token, phi_gated_token_backward),
    "gated_channel": (phi_gated_channel, phi_gated_channel_backward),
    "mlp": (phi_mlp, phi_mlp_backward),
}


def block_tokens(cfg, t_k):
    """[n_cmp, cmp_block]: the tokens of each compression block."""
    return np.arange(n_cmp(cfg, t_k))[:, None] * cfg.cmp_stride + np.arange(cfg.cmp_block)


def phi_weights(phi, n_heads, dtype):
    """The parameters with a leading dimension of heads (1 if shared), absent ones as zero."""
    def member(name):
        p = getattr(phi, name)
        if p is None:
            return np.zeros((1,) * (3 if name == "pe" else 2), dtype)
        return p.astype(dtype) if phi.per_head else np.broadcast_to(p.astype(dtype), (n_heads,) + p.shape)
    return SimpleNamespace(**{name: member(name) for name in PHI_MEMBERS})


def compress(cfg, phi, x, rnd=exact):
    """[T_k, heads, d] -> [n_cmp, heads, d]"""
    blocks = x[block_tokens(cfg, x.shape[0])].swapaxes(1, 2)
    return rnd(PHI[phi.kind][0](blocks, phi_weights(phi, x.shape[1], x.dtype)))


def compress_backward(cfg, phi, x, dy, rnd=exact):
    """dx, and the gradients of the parameters that phi has, by name. A token collects from every block it lies in."""
    tokens = block_tokens(cfg, x.shape[0])
    w = phi_weights(phi, x.shape[1], x.dtype)
    dblocks, dw = PHI[phi.kind][1](x[tokens].swapaxes(1, 2), w, dy)
    dx = np.zeros_like(x)
    np.add.at(dx, tokens, dblocks.swapaxes(1, 2))
    dw = {name: g if phi.per_head else g.sum(axis=0) for name, g in dw.items() if getattr(phi, name) is not None}
    return rnd(dx), dw


# ---- The whole ------------------------------------------------------------------------------------------------------


def gate_sum(gate, o_branch, rnd=exact):
    return rnd(sum(gate[..., c, None] * o_branch[c] for c in (CMP, SLC, WIN)))


def gate_backward(gate, o_branch, d_o, rnd=exact):
    dgate = np.stack([(d_o * o_branch[c]).sum(axis=-1) for c in (CMP, SLC, WIN)], axis=-1)
    return rnd(dgate), [rnd(gate[..., c, None] * d_o) for c in (CMP, SLC, WIN)]


def select_blocks(cfg, q, k_cmp, t_k, lse=None):
    t = positions(q.shape[0], t_k)
    P = importance(q, k_cmp, visible_cmp(cfg, t, k_cmp.shape[0]), scale(cfg), lse)
    return select(cfg, block_scores(cfg, P, -(-t_k // cfg.slc_block)), t)


def visibilities(cfg, t_q, t_k, slc_idx):
    t = positions(t_q, t_k)
    return visible_cmp(cfg, t, n_cmp(cfg, t_k)), visible_slc(cfg, t, t_k, slc_idx), visible_win(cfg, t, t_k)


def forward(cfg, q, k, v, gate, phi_k=None, phi_v=None, k_cmp=None, v_cmp=None, slc_idx=None, rnd=exact):
    """q, k, v: one per branch. Without phi, k_cmp and v_cmp are given; slc_idx may be."""
    t_q, t_k = q[CMP].shape[0], k[SLC].shape[0]
    if phi_k is not None:
        k_cmp, v_cmp = compress(cfg, phi_k, k[CMP], rnd), compress(cfg, phi_v, v[CMP], rnd)
    if slc_idx is None:
        slc_idx = select_blocks(cfg, q[CMP], k_cmp, t_k)
    visible = visibilities(cfg, t_q, t_k, slc_idx)
    keys, values = (k_cmp, k[SLC], k[WIN]), (v_cmp, v[SLC], v[WIN])
    o_branch, lse = zip(*(attn(q[c], keys[c], values[c], visible[c], scale(cfg), rnd) for c in (CMP, SLC, WIN)))
    return SimpleNamespace(o=gate_sum(gate, o_branch, rnd), k_cmp=k_cmp, v_cmp=v_cmp, slc_idx=slc_idx,
                           o_branch=list(o_branch), lse=list(lse))


def backward(cfg, q, k, v, gate, fwd, d_o, phi_k=None, phi_v=None, rnd=exact):
    """Gradients of <o, d_o>; fwd is what forward returned. slc_idx is a constant."""
    dgate, do_branch = gate_backward(gate, fwd.o_branch, d_o, rnd)
    visible = visibilities(cfg, q[CMP].shape[0], k[SLC].shape[0], fwd.slc_idx)
    keys, values = (fwd.k_cmp, k[SLC], k[WIN]), (fwd.v_cmp, v[SLC], v[WIN])
    dq, dk, dv = (list(x) for x in zip(*(
        attn_backward(q[c], keys[c], values[c], visible[c], scale(cfg), fwd.o_branch[c], fwd.lse[c], do_branch[c], rnd)
        for c in (CMP, SLC, WIN))))
    out = SimpleNamespace(dq=dq, dk=dk, dv=dv, dgate=dgate, dk_cmp=dk[CMP], dv_cmp=dv[CMP], dphi_k={}, dphi_v={})
    dk[CMP] = dv[CMP] = None
    if phi_k is not None:
        dk[CMP], out.dphi_k = compress_backward(cfg, phi_k, k[CMP], out.dk_cmp, rnd)
        dv[CMP], out.dphi_v = compress_backward(cfg, phi_v, v[CMP], out.dv_cmp, rnd)
    return out
