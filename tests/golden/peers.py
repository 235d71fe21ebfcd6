#!/usr/bin/env python3
"""Runs an open implementation of NSA on the golden vectors and prints how far off it is, relative to the largest
element of each tensor. What came out, and for which commits: docs/peers.md.

    peers.py fla|fla-old|xunhaolai|fsa|lucidrains|mdy666|tilde|tilelang DIR      DIR: a checkout of the project

Needs PyTorch (2.9.0 was used) and what the project imports, but for flash_attn: a stand-in computes what that package
documents; tilde also imports fla. Without a GPU the Triton kernels run in Triton's interpreter, which needs NumPy below
2; mdy666's do not run there. Nothing of the projects is copied here.
"""
import importlib.util
import json
import os
import sys
import types

import torch
import torch.nn.functional as F

import vectors

HERE = os.path.dirname(os.path.abspath(__file__))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def load(name):
    tensors, metadata = vectors.load(os.path.join(HERE, f"{name}.safetensors"))
    return ({key: torch.tensor(x, device=DEVICE) for key, x in tensors.items()},
            types.SimpleNamespace(**json.loads(metadata["config"])))


def off(x, ref, rows=slice(None)):
    x, ref = x.detach().double()[rows], ref[rows]
    finite = torch.isfinite(x) & torch.isfinite(ref)
    error = (x - ref).abs()[finite].max() / ref[torch.isfinite(ref)].abs().max()
    bad = (torch.isfinite(ref) & ~torch.isfinite(x)).flatten(1).any(1).sum()
    return f"{error:.1e}" + (f" and {bad} of {len(x)} rows not finite" if bad else "")


def sets(idx, n_blocks):
    return [frozenset(i for i in row if 0 <= i < n_blocks) for row in idx.flatten(0, -2).tolist()]


def same_sets(idx, x):
    n = x["score"].shape[-1]
    return torch.tensor([a == b for a, b in zip(sets(idx, n), sets(x["slc_idx"], n))], device=DEVICE)


def report(what, **figures):
    print(f"{what:24}" + "  ".join(f"{name} {figure}" for name, figure in figures.items()))


def report_choice(what, idx, x):
    report(what, rows_with_another_set=f"{int((~same_sets(idx, x)).sum())} of {x['slc_idx'].flatten(0, -2).shape[0]}")


def windowed(q, k, v, left, scale):
    """flash_attn, causal, window_size=(left, ...): keys t - left .. t. One sequence, [token, head, channel]."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    s = torch.einsum("thd,nhd->htn", q.float(), k.float()) * scale
    age = torch.arange(len(q), device=q.device)[:, None] - torch.arange(len(k), device=q.device)
    p = s.masked_fill((age < 0) | (age > left), -torch.inf).softmax(-1)
    return torch.einsum("htn,nhd->thd", p, v.float()).to(q.dtype)


def flash_attn_func(q, k, v, causal, window_size):
    return torch.stack([windowed(*x, window_size[0], q.shape[-1] ** -0.5) for x in zip(q, k, v)])


def stand_ins():
    """flash_attn; and without a GPU what Triton's interpreter and calls for device="cuda" need."""
    flash_attn = types.ModuleType("flash_attn")
    flash_attn.flash_attn_func, flash_attn.flash_attn_varlen_func = flash_attn_func, None
    flash_attn.__spec__ = importlib.util.spec_from_loader("flash_attn", None)
    sys.modules["flash_attn"] = flash_attn
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    if DEVICE == "cuda":
        return
    os.environ.update(TRITON_INTERPRET="1", FLA_CACHE_RESULTS="0")
    from triton.runtime.autotuner import Autotuner
    run = Autotuner.run

    def run_first_config(self, *args, **kwargs):
        self.configs = self.configs[:1]
        return run(self, *args, **kwargs)
    Autotuner.run = run_first_config
    torch.cuda.set_device = lambda device: None
    histc = torch.histc
    torch.histc = lambda x, **kw: histc(x.float(), **kw).to(x.dtype)
    for name in ("zeros", "arange"):
        def here(f):
            return lambda *args, **kw: f(*args, **{**kw, **({"device": "cpu"} if kw.get("device") == "cuda" else {})})
        setattr(torch, name, here(getattr(torch, name)))


def leaves(x, channels, dtype, repeat=1):
    """q, k, v, d_o with channels of zeros up to `channels`, heads of q repeated: neither changes a result."""
    out = [F.pad(x[name], (0, channels - x[name].shape[-1])).to(dtype) for name in ("q", "k", "v", "d_o")]
    out[0], out[3] = out[0].repeat_interleave(repeat, 1), out[3].repeat_interleave(repeat, 1)
    return [y.contiguous().requires_grad_(i < 3) for i, y in enumerate(out)]


def gradients(o, d_o, gate, inputs):
    """Of sum gate * o * d_o."""
    grads = torch.autograd.grad((o * d_o * gate[..., None]).sum(), inputs, retain_graph=True)
    return [g.squeeze(0) if o.dim() == 4 else g for g in grads]


# ---- fla-org/flash-linear-attention: one block size, a mean; a group of 16 ------------------------------------------


def fla(_):
    from fla.ops.nsa.compression import parallel_nsa_compression
    from fla.ops.nsa.parallel import ParallelNSAFunction, parallel_nsa, parallel_nsa_topk
    from fla.ops.utils.pooling import mean_pooling
    x, cfg = load("uniform")
    d, n = cfg.d_v, x["k_cmp"].shape[0]
    q, k, v, d_o = leaves(x, 16, torch.float32, repeat=4)
    gate = x["gate"].float().repeat_interleave(4, 1)

    def branch(name, c, o):
        dq, dk, dv = gradients(o, d_o[None], gate[None, ..., c], (q, k, v))
        report(f"o.{name}", o=off(o[0, :, ::4, :d], x[f"o.{name}"]), dq=off(dq[:, ::4, :d], x[f"dq.{name}"]),
               dk=off(dk[..., :d] / 4, x[f"dk.{name}"]), dv=off(dv[..., :d] / 4, x[f"dv.{name}"]))

    k_cmp, v_cmp = mean_pooling(k[None], cfg.cmp_block), mean_pooling(v[None], cfg.cmp_block)
    report("compression", k_cmp=off(k_cmp[0, :n, :, :d], x["k_cmp"]))
    o, lse = parallel_nsa_compression(q[None], k_cmp, v_cmp, len(k), cfg.cmp_block, cfg.scale)
    branch("cmp", 0, o)
    report("lse", lse=off(lse[0, :, ::4], x["lse.cmp"]), of_an_empty_row=lse[0, 0, 0].item())
    choose = lambda n: parallel_nsa_topk(q[None], k_cmp, len(k), lse, n, cfg.slc_block, cfg.scale)[0]
    report_choice("selection", choose(cfg.slc_topk), x)
    report("block_counts=3", chosen=choose(3)[-1, 0].tolist())
    branch("slc", 1, ParallelNSAFunction.apply(q[None], k[None], v[None], x["slc_idx"][None].contiguous(), cfg.slc_topk,
                                               cfg.slc_block, cfg.scale, None))
    g_cmp, g_slc, g_win = (g.contiguous() for g in gate[None].unbind(-1))
    whole = lambda g_win, window: parallel_nsa(q[None], k[None], v[None], g_cmp, g_slc, g_win, None, cfg.slc_topk,
                                               cfg.slc_block, window, cfg.scale)[0, :, ::4, :d]
    o_win = x["gate"][..., 2:] * x["o.win"]
    report("whole", cmp_and_slc=off(whole(None, 0), x["o"] - o_win), all_three=off(whole(g_win, cfg.win_size), x["o"]))
    if DEVICE == "cpu":  # a block of 8 is below what a GPU's matrix units take
        x, cfg = load("own_slc_idx")
        q, k, v, _ = leaves(x, 8, torch.float32, repeat=8)
        o = ParallelNSAFunction.apply(q[None], k[None], v[None], x["slc_idx"][None].contiguous(), cfg.slc_topk,
                                      cfg.slc_block, cfg.scale, (x["cu_seqlens_q"].long(), x["cu_seqlens_k"].long()))
        report("own_slc_idx", o=off(o[0, :, ::8, : cfg.d_v], x["o.slc"]))


# ---- References in plain PyTorch: fla-org/native-sparse-attention, tile-ai/tilelang ---------------------------------


def file(path):
    spec = importlib.util.spec_from_file_location(os.path.basename(path)[:-3], path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def naive_branches(naive, x, cfg):
    q, k, v = (x[name][None].float() for name in "qkv")
    one = torch.ones(q.shape[:3], device=DEVICE)
    call = lambda g_slc, window: naive(q, k, v, g_slc, one, x["slc_idx"][None].long(), cfg.slc_topk, cfg.slc_block,
                                       window, cfg.scale)[0]
    report("reference", o_slc=off(call(one, 0), x["o.slc"]), o_win=off(call(0 * one, cfg.win_size), x["o.win"]))
    return q, k, v, one


def fla_old(path):
    naive = file(f"{path}/native_sparse_attention/ops/naive.py")
    x, cfg = load("uniform")
    q, k, v, one = naive_branches(naive.naive_nsa, x, cfg)
    idx, o = naive.naive_nsa_compression(q, k, v, one, cfg.slc_topk, cfg.cmp_block, cfg.scale)
    report("o.cmp", o=off(o[0], x["o.cmp"]))
    report_choice("selection", idx[0], x)
    idx, _ = naive.naive_nsa_compression_varlen(q, k, v, one, cfg.slc_topk, cfg.cmp_block, cfg.scale, x["cu_seqlens_q"])
    report("varlen reference", rows_with_a_block_twice=sum(len(set(row)) < len(row) for row in idx[0, :, 0].tolist()))


def tilelang(path):
    naive_branches(file(f"{path}/examples/deepseek_nsa/reference.py").naive_nsa, *load("uniform"))


# ---- XunhaoLai/native-sparse-attention-triton and what stands on it, Flash-Sparse-Attention: float16, any overlap ---


def xunhaolai(_):
    from native_sparse_attention.ops import compressed_attention, linear_compress, topk_sparse_attention
    overlap(compressed_attention, linear_compress, {"slc": topk_sparse_attention})


def fsa(_):
    from fsa.ops import FSA_topk_sparse_attention
    from nsa_ref.ops import compressed_attention, linear_compress, topk_sparse_attention
    overlap(compressed_attention, linear_compress,
            {"slc": topk_sparse_attention, "slc, FSA": FSA_topk_sparse_attention})


def overlap(compressed_attention, linear_compress, selected):
    x, cfg = load("overlap")
    d, channels, cu = cfg.d_v, 16, x["cu_seqlens_q"]
    q, k, v, d_o = leaves(x, channels, torch.float16)
    gate = x["gate"].half()

    def phi(name):
        w = F.pad(x[f"{name}.w1"].reshape(cfg.cmp_block, d, d), (0, channels - d, 0, channels - d))
        pe = F.pad(x[f"{name}.pe"], (0, channels - d))[None].half()
        return w.reshape(1, -1, channels).half().requires_grad_(), pe.requires_grad_()

    (w_k, pe_k), (w_v, pe_v) = phi("phi_k"), phi("phi_v")
    k_cmp, cu_cmp = linear_compress(k, w_k, cu, cfg.cmp_block, cfg.cmp_stride, pe_k)
    v_cmp, _ = linear_compress(v, w_v, cu, cfg.cmp_block, cfg.cmp_stride, pe_v)
    report("compression", k_cmp=off(k_cmp[..., :d], x["k_cmp"]), v_cmp=off(v_cmp[..., :d], x["v_cmp"]))
    longest = [int((bounds[1:] - bounds[:-1]).max()) for bounds in (cu, cu_cmp)]
    o, idx = compressed_attention(q, k_cmp, v_cmp, cfg.cmp_block, cfg.cmp_stride, cfg.slc_block, cfg.slc_topk, cu,
                                  cu_cmp, *longest, cfg.scale, cfg.slc_n_init, cfg.slc_n_local)
    dq, dk, dv, dw_k = gradients(o, d_o, gate[..., 0], (q, k, v, w_k))
    dw_k = dw_k.reshape(cfg.cmp_block, channels, channels)[:, :d, :d].reshape(-1, d)
    report("o.cmp", o=off(o[..., :d], x["o.cmp"]), dq=off(dq[..., :d], x["dq.cmp"]), dk=off(dk[..., :d], x["dk.cmp"]),
           dv=off(dv[..., :d], x["dv.cmp"]), dw=off(dw_k, x["dphi_k.w1"]))
    report_choice("selection", idx.transpose(0, 1), x)
    first = slice(0, int(cu[1]))
    o = windowed(q[first], k[first], v[first], cfg.win_size, cfg.scale)  # as the module calls flash_attn
    report("o.win", o=off(o[..., :d], x["o.win"][first]))
    for name, attention in selected.items():
        try:
            o = attention(q, k, v, x["slc_idx"].transpose(0, 1).contiguous(), cfg.slc_block, cu, cfg.scale)
        except Exception as error:  # Triton refuses
            sys.exit(f"o.{name}: {error}")
        dq, dk, dv = gradients(o, d_o, gate[..., 1], (q, k, v))
        report(f"o.{name}", o=off(o[..., :d], x["o.slc"]), dq=off(dq[..., :d], x["dq.slc"]),
               dk=off(dk[..., :d], x["dk.slc"]), dv=off(dv[..., :d], x["dv.slc"]))
    if len(selected) == 2:
        stress(q.detach(), k, v, x, cfg, *selected.values())


def stress(q, k, v, x, cfg, kernel, other):
    """Rows of `other` that are not finite where the first token has a query of 0 and the others have large ones."""
    for times in (1, 4, 16):
        q_times = q * times
        q_times[0] = 0
        args = q_times, k, v, x["slc_idx"].transpose(0, 1).contiguous(), cfg.slc_block, x["cu_seqlens_q"], cfg.scale
        report(f"  q times {times}, 0 first", against_the_kernel_above=off(other(*args), kernel(*args).double()))


# ---- lucidrains/native-sparse-attention-pytorch: a whole layer, its projections made the identity, in float64 -------


def lucidrains(_):
    import native_sparse_attention_pytorch.native_sparse_attention as peer
    module = lambda f: type("Module", (torch.nn.Module,), {"forward": lambda self, *args: f(*args)})()
    topk, chosen = torch.Tensor.topk, []

    def recorded(self, *args, **kwargs):
        chosen.append(topk(self, *args, **kwargs))
        return chosen[-1]
    torch.Tensor.topk = recorded
    for name in ("uniform", "overlap"):
        x, cfg = load(name)
        rows = slice(0, int(x["cu_seqlens_q"][1]))
        h_q, h_kv, d = cfg.n_heads_q, cfg.n_heads_kv, cfg.d_qk
        q, k, v = (x[key][rows] for key in "qkv")
        hidden = torch.cat([y.flatten(1) for y in (q, k, v)], -1)[None]
        out = {}
        for c, branch in enumerate(vectors.BRANCHES):
            gate = torch.full((1, rows.stop, h_q * 3), -800.0, device=DEVICE, dtype=torch.float64)
            gate[..., c::3] = 800
            layer = peer.SparseAttention(hidden.shape[-1], d, h_q, cfg.win_size, cfg.cmp_block, cfg.cmp_stride,
                                         cfg.slc_block, cfg.slc_topk - 1, kv_heads=h_kv, causal=True, norm=False,
                                         compress_mlp=module(lambda y: y.mean(-2)),
                                         strategy_combine_mlp=module(lambda y: gate)).double().to(DEVICE)
            layer.to_qkv.weight.data.copy_(torch.eye(hidden.shape[-1]))
            layer.combine_heads = torch.nn.Identity()
            layer.rotary_emb = torch.nn.Identity()
            layer.rotary_emb.rotate_queries_with_cached_keys = lambda q, k: (q, k)
            if name == "overlap":
                layer.k_compress = module(lambda y: y.flatten(-2) @ x["phi_k.w1"])
                layer.v_compress = module(lambda y: y.flatten(-2) @ x["phi_v.w1"])
                layer.k_intrablock_positions.data.copy_(x["phi_k.pe"][None])
                layer.v_intrablock_positions.data.copy_(x["phi_v.pe"][None])
            with torch.no_grad():
                out[branch] = layer(hidden)[0].reshape(rows.stop, h_q, d)
                if branch == "cmp":
                    layer.compress_mem_kv = torch.nn.Parameter(layer.compress_mem_kv[:, :, :0])
                    without_memory = layer(hidden)[0].reshape(rows.stop, h_q, d)
        t = torch.arange(rows.stop, device=DEVICE)
        own = t[:, None] // cfg.slc_block
        idx = torch.cat([torch.where(chosen[0].values[0, 0] > 1e-10, chosen[0].indices[0, 0], -1), own], -1)
        chosen.clear()
        first = {key: y[rows] for key, y in x.items() if key.startswith(("o.", "slc_idx", "score"))}
        inside = (t >= cfg.cmp_block) & ((t + 1 - cfg.cmp_block) % cfg.cmp_stride != 0)
        report(name, o_cmp=off(out["cmp"], first["o.cmp"]),
               without_memory_where_no_block_ends_at_t=off(without_memory, first["o.cmp"], inside))
        report_choice("  selection", idx[:, None], first)
        report("  rows of equal sets", o_slc=off(out["slc"], first["o.slc"], same_sets(idx[:, None], first)))
        report("  o.win", o=off(out["win"], first["o.win"]),
               against_a_window_one_longer=off(out["win"], windowed(q, k, v, cfg.win_size, cfg.scale)))


# ---- mdy666/Scalable-Flash-Native-Sparse-Attention: float16 ---------------------------------------------------------


def mdy666(_):
    from flash_nsa import NSAHelper
    from flash_nsa.ops.compress_attn import compress_attn
    from flash_nsa.ops.compress_kv import mean_pooling
    from flash_nsa.ops.select_attn import select_attn
    from flash_nsa.ops.topk import slc_topk_indices
    for name in ("uniform", "overlap", "ties"):
        x, cfg = load(name)
        d = cfg.d_v
        NSAHelper.set_hyperparameters(cfg.cmp_block, cfg.cmp_stride, cfg.slc_block, cfg.win_size, cfg.slc_topk,
                                      cfg.slc_n_init, cfg.slc_n_local)
        NSAHelper.init_cu_seqlens(x["cu_seqlens_q"])
        q, k, v, d_o = leaves(x, 64, torch.float16)
        if name == "overlap":  # its linear phi has no position encoding
            k_cmp, v_cmp = (F.pad(x[key], (0, 64 - d)).half() for key in ("k_cmp", "v_cmp"))
        else:
            k_cmp, v_cmp = mean_pooling(k), mean_pooling(v)
        o, lse = compress_attn(q, k_cmp, v_cmp, sm_scale=cfg.scale)
        report(f"{name}: o.cmp", k_cmp=off(k_cmp[..., :d], x["k_cmp"]), o=off(o[..., :d], x["o.cmp"]))
        idx, _ = slc_topk_indices(q, k_cmp, lse, sm_scale=cfg.scale, maybe_efficient_version=True)
        report_choice("  selection", idx.transpose(0, 1), x)
        if cfg.slc_block < 16:
            continue
        o = select_attn(q, k, v, idx, sm_scale=cfg.scale)
        report("  o.slc", o=off(o[..., :d], x["o.slc"], same_sets(idx.transpose(0, 1), x)))
        dq, dk, dv = gradients(o, d_o, x["gate"][..., 1].half(), (q, k, v))
        report("  gradients", dq=off(dq[..., :d], x["dq.slc"]), dk=off(dk[..., :d], x["dk.slc"]),
               dv=off(dv[..., :d], x["dv.slc"]))


# ---- tilde-research/nsa-impl: the compressed and the window branch; its selection is flash-linear-attention's -------


def tilde(path):
    sys.path.insert(0, f"{path}/nsa")
    import nsa
    x, cfg = load("uniform")
    n = len(x["q"]) // cfg.cmp_block * cfg.cmp_block
    q, k, v = (x[name][None, :n].float() for name in "qkv")
    create_block_mask = nsa.create_block_mask
    nsa.create_block_mask = lambda *args: create_block_mask(*args, device=DEVICE)
    nsa.mean_pooling = lambda y, block: y.reshape(1, -1, block, *y.shape[2:]).mean(2)
    nsa.parallel_nsa_topk = nsa.selection_attention = lambda *args, **kwargs: torch.zeros_like(q)
    one = torch.ones(q.shape[:3], device=DEVICE)
    call = lambda cmp, win: nsa.nsa_func(q, k, v, cmp * one, 0 * one, win * one, cfg.slc_topk, cfg.cmp_block,
                                         cfg.win_size, cfg.scale)[0]
    o_cmp = call(1, 0)
    report("uniform", o_cmp=off(o_cmp, x["o.cmp"][:n]), o_win=off(call(0, 1), x["o.win"][:n]))
    last = (torch.arange(n // cfg.cmp_block, device=DEVICE) + 1) * cfg.cmp_block - 1
    s = torch.einsum("thd,nd->thn", x["q"][:n], x["k_cmp"][:, 0]) * cfg.scale
    p = s.masked_fill((last < torch.arange(n, device=DEVICE)[:, None])[:, None], -torch.inf).softmax(-1)
    report("against blocks that end at t or later", o_cmp=off(o_cmp, torch.einsum("thn,nd->thd", p, x["v_cmp"][:, 0])))


if __name__ == "__main__":
    peers = {"fla": fla, "fla-old": fla_old, "xunhaolai": xunhaolai, "fsa": fsa, "lucidrains": lucidrains,
             "mdy666": mdy666, "tilde": tilde, "tilelang": tilelang}
    if len(sys.argv) != 3 or sys.argv[1] not in peers:
        sys.exit(__doc__)
    stand_ins()
    sys.path.insert(1, sys.argv[2])
    peers[sys.argv[1]](sys.argv[2])
