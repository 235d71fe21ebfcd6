#!/usr/bin/env python3
"""Writes the golden vectors (README.md here). Inputs come from a seed and are multiples of 1/16 or of a smaller power
of two; the rest is computed by tests/oracle/nsa_numpy.py in long double and rounded once, to float64: the same bytes on
every x86 CPU.

    make_golden.py [DIR]      DIR: where to write, this folder if it is not given
"""
import json
import os
import sys
from types import SimpleNamespace

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(1, os.path.join(HERE, "..", "oracle"))

import longdouble
import nsa_numpy as nsa
import vectors

nsa.exp, nsa.log = longdouble.exp, longdouble.log
VERSION = "1"
BLOCKS = ("cmp_block", "cmp_stride", "slc_block", "slc_topk", "slc_n_init", "slc_n_local", "win_size")


def shape(n_heads_q, n_heads_kv, d_qk, d_v, blocks, scale=None):
    return SimpleNamespace(n_heads_q=n_heads_q, n_heads_kv=n_heads_kv, d_qk=d_qk, d_v=d_v,
                           **dict(zip(BLOCKS, blocks)), scale=scale or 1 / float(np.sqrt(d_qk)))


def phi(kind, per_head=False, optional=True, d_hidden=5):
    return SimpleNamespace(kind=kind, per_head=per_head, optional=optional, d_hidden=d_hidden)


# What each is for: README.md. lengths: (T_q, T_k) of each sequence. own: the tensors that each branch has of its own.
CASES = {
    "paper_blocks": dict(cfg=shape(4, 1, 6, 4, (32, 16, 64, 4, 1, 2, 100)), phi=(phi("mlp"), phi("mlp")),
                         lengths=[(6, 301), (2, 31), (0, 17)]),
    "branches": dict(cfg=shape(8, 2, 4, 3, (4, 2, 8, 3, 1, 1, 5)), own="qkv",
                     phi=(phi("gated_channel", True), phi("gated_token", True)),
                     lengths=[(n, n) for n in (29, 1, 0, 3, 15)]),
    "overlap": dict(seed=1, cfg=shape(4, 1, 4, 4, (16, 8, 32, 3, 1, 1, 40)), phi=(phi("linear"), phi("linear")),
                    lengths=[(117, 117), (9, 9)]),
    "uniform": dict(cfg=shape(4, 1, 4, 4, (16, 16, 16, 4, 1, 2, 32)), phi=(phi("mean"), phi("mean")),
                    lengths=[(87, 87)]),
    "offset": dict(cfg=shape(6, 2, 5, 7, (6, 3, 9, 2, 0, 0, 7), scale=0.5), own="kv",
                   phi=(phi("linear", True, optional=False), phi("mlp", True, optional=False)),
                   lengths=[(5, 47), (6, 3), (2, 0), (0, 7), (1, 28)]),
    "ties": dict(cfg=shape(2, 1, 4, 4, (8, 4, 8, 3, 0, 1, 6)), phi=(phi("mean"), phi("mean")), lengths=[(67, 67)],
                 period=16),
    "own_slc_idx": dict(cfg=shape(4, 2, 4, 6, (4, 4, 8, 3, 0, 0, 1)), lengths=[(21, 43), (6, 6)]),
}


def bounds(lengths):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


class Inputs:
    """The input tensors of a case, by name."""

    def __init__(self, cfg, lengths, seed=0, phi=None, own="", period=None):
        self.cfg, self.phi, self.own, self.period = cfg, phi, own, period
        self.rng = np.random.default_rng(seed)
        self.t_q, self.t_k = zip(*lengths)
        self.tensors = {"cu_seqlens_q": bounds(self.t_q), "cu_seqlens_k": bounds(self.t_k)}
        self.tokens("q", sum(self.t_q), cfg.n_heads_q, cfg.d_qk)
        self.tokens("k", sum(self.t_k), cfg.n_heads_kv, cfg.d_qk)
        self.tokens("v", sum(self.t_k), cfg.n_heads_kv, cfg.d_v)
        self.tokens("d_o", sum(self.t_q), cfg.n_heads_q, cfg.d_v)
        if phi:
            self.tensors["gate"] = self.rng.integers(0, 17, (sum(self.t_q), cfg.n_heads_q, 3)) / 16
            self.phi_parameters("phi_k", phi[0], cfg.d_qk)
            self.phi_parameters("phi_v", phi[1], cfg.d_v)
        else:
            self.tensors["slc_idx"] = self.slc_idx()

    def random(self, *shape, fan_in=1):
        """Multiples of 1/16 from -2 to 2, times a power of two near fan_in^-1/2."""
        return self.rng.integers(-32, 33, shape) / 2.0 ** (4 + fan_in.bit_length() // 2)

    def tokens(self, name, n_tokens, n_heads, d):
        for key in [f"{name}.{b}" for b in vectors.BRANCHES] if name in self.own else [name]:
            x = self.random(n_tokens, n_heads, d)
            self.tensors[key] = x[np.arange(n_tokens) % self.period] if self.period and name in "kv" else x

    def phi_parameters(self, name, phi, d):
        block, hidden = self.cfg.cmp_block, phi.d_hidden
        shapes = {"mean": {}, "linear": dict(pe=(block, d), w1=(block * d, d)),
                  "gated_token": dict(w1=(d,), b1=(block,)), "gated_channel": dict(w1=(d, d), b1=(block, d)),
                  "mlp": dict(pe=(block, d), w1=(block * d, hidden), b1=(hidden,), w2=(hidden, d), b2=(d,))}
        for member, shape in shapes[phi.kind].items():
            if phi.optional or member[0] == "w":
                heads = (self.cfg.n_heads_kv,) if phi.per_head else ()
                fan_in = shape[0] if member[0] == "w" else 1
                self.tensors[f"{name}.{member}"] = self.random(*heads, *shape, fan_in=fan_in)

    def slc_idx(self):
        """A caller's own: distinct, in any order, -1 in between, a block that does not exist, blocks after t."""
        rows = []
        for t_q, t_k in zip(self.t_q, self.t_k):
            pool = np.concatenate([np.arange(-(-t_k // self.cfg.slc_block) + 1), [-1, -1]])
            rows += [self.rng.permutation(pool)[: self.cfg.slc_topk] for _ in range(t_q * self.cfg.n_heads_kv)]
        return np.array(rows, np.int32).reshape(-1, self.cfg.n_heads_kv, self.cfg.slc_topk)

    def phis(self):
        return [SimpleNamespace(**{**vars(phi), **{m: self.tensors.get(f"phi_{name}.{m}") for m in nsa.PHI_MEMBERS}})
                for name, phi in zip("kv", self.phi)]

    def rows(self, name, s):
        cu = self.tensors["cu_seqlens_k" if name[0] in "kv" else "cu_seqlens_q"]
        return slice(cu[s], cu[s + 1])

    def sequences(self, dtype):
        """The inputs of each sequence."""
        for s in range(len(self.t_q)):
            yield {name: x[self.rows(name, s)].astype(np.int32 if name == "slc_idx" else dtype)
                   for name, x in self.tensors.items() if not name.startswith(("phi", "cu_"))}


def importance(cfg, q, k_cmp, lse, t_k, n_cmp, n_blocks):
    """P and the block scores, padded with 0 to n_cmp and n_blocks columns."""
    visible = nsa.visible_cmp(cfg, nsa.positions(q.shape[0], t_k), k_cmp.shape[0])
    p = nsa.probabilities(q, k_cmp, visible, nsa.scale(cfg), lse)
    P = nsa.by_kv_head(p, cfg.n_heads_kv).sum(axis=2)
    P = np.pad(P, [(0, 0), (0, 0), (0, n_cmp - P.shape[2])])
    return P, nsa.block_scores(cfg, P, n_blocks)


def whole(x, dtype=np.longdouble, rnd=nsa.exact, slc_idx=None):
    """Every intermediate and gradient of nsa_forward and nsa_backward, computed in dtype."""
    cfg, phis, parts = x.cfg, x.phis(), []
    n_cmp, n_blocks = nsa.n_cmp(cfg, max(x.t_k)), -(-max(x.t_k) // cfg.slc_block)
    for s, inputs in enumerate(x.sequences(dtype)):
        args = cfg, *(vectors.per_branch(inputs, name) for name in "qkv"), inputs["gate"]
        given = None if slc_idx is None else slc_idx[x.rows("q", s)]
        fwd = nsa.forward(*args, *phis, slc_idx=given, rnd=rnd)
        grad = nsa.backward(*args, fwd, inputs["d_o"], *phis, rnd=rnd)
        P, score = importance(cfg, args[1][0], fwd.k_cmp, fwd.lse[0], x.t_k[s], n_cmp, n_blocks)
        part = dict(k_cmp=fwd.k_cmp, v_cmp=fwd.v_cmp, importance=P, score=score, slc_idx=fwd.slc_idx)
        for c, b in enumerate(vectors.BRANCHES):
            part.update({f"o.{b}": fwd.o_branch[c], f"lse.{b}": fwd.lse[c][..., 0]})
        part.update(o=fwd.o, dgate=grad.dgate, dk_cmp=grad.dk_cmp, dv_cmp=grad.dv_cmp)
        for name in ("dq", "dk", "dv"):
            part.update({f"{name}.{b}": getattr(grad, name)[c] for c, b in enumerate(vectors.BRANCHES)})
        for name in ("dphi_k", "dphi_v"):
            part.update({f"{name}.{m}": getattr(grad, name)[m] for m in nsa.PHI_MEMBERS if m in getattr(grad, name)})
        parts.append(part)
    out = {name: (sum if name.startswith("dphi") else np.concatenate)([p[name] for p in parts]) for name in parts[0]}
    return {"cu_seqlens_cmp": bounds([nsa.n_cmp(cfg, t_k) for t_k in x.t_k]), **out}


def slc_attn(x, dtype=np.longdouble, rnd=nsa.exact):
    """The slc branch alone, over the slc_idx given."""
    parts = []
    for s, i in enumerate(x.sequences(dtype)):
        qkv, scale = (i["q"], i["k"], i["v"]), nsa.scale(x.cfg)
        visible = nsa.visible_slc(x.cfg, nsa.positions(x.t_q[s], x.t_k[s]), x.t_k[s], i["slc_idx"])
        o, lse = nsa.attn(*qkv, visible, scale, rnd)
        parts.append((o, lse[..., 0], *nsa.attn_backward(*qkv, visible, scale, o, lse, i["d_o"], rnd)))
    return dict(zip(("o.slc", "lse.slc", "dq.slc", "dk.slc", "dv.slc"), map(np.concatenate, zip(*parts))))


def margin(x, score):
    """The smallest relative gap between the last block that was chosen by its score and the best that was not."""
    t = np.concatenate([nsa.positions(t_q, t_k) for t_q, t_k in zip(x.t_q, x.t_k)])
    least = np.inf
    for r, row in enumerate(score):
        block = np.arange(max(0, t[r] // x.cfg.slc_block + 1))
        forced = nsa.forced_blocks(x.cfg, t[r : r + 1], block)[0]
        n_free = x.cfg.slc_topk - forced.sum()
        for s in row[:, block][:, ~forced]:
            if 0 < n_free < len(s):
                s = np.sort(s)[::-1]
                least = min(least, (s[n_free - 1] - s[n_free]) / s[n_free - 1])
    return least


def make(name):
    """The bytes of the file of a case."""
    x = Inputs(**CASES[name])
    out = whole(x) if x.phi else slc_attn(x)
    metadata = {"nsa_golden_version": VERSION, "case": name, "config": json.dumps(vars(x.cfg))}
    if x.phi:
        for key, phi in zip(("phi_k", "phi_v"), x.phi):
            metadata[key] = json.dumps({"kind": phi.kind, "per_head": phi.per_head})
        metadata["selection_margin"] = f"{margin(x, out['score']):.3g}"
    rounded = {key: np.asarray(y, np.int32 if y.dtype == np.int32 else np.float64) for key, y in out.items()}
    return vectors.dump({**x.tensors, **rounded}, metadata)


def main():
    for name in CASES:
        with open(os.path.join(sys.argv[1] if len(sys.argv) > 1 else HERE, f"{name}.safetensors"), "wb") as f:
            f.write(make(name))


if __name__ == "__main__":
    main()
