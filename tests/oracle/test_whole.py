"""nsa_forward and nsa_backward against NumPy: float64 to rounding, other types by the library's rule of accuracy."""
import copy
import unittest

import numpy as np

import harness
import nsa_c
import nsa_numpy as nsa
from harness import (BF16, CMP, PHI_KINDS, SLC, WIN, Case, assert_accurate, assert_close, assert_same_selection,
                     each_case, row_max, to_float)

BRANCHES = (CMP, SLC, WIN)


class Problem:
    """The inputs of one call. shared: one q, k, v for all branches, and one output for the gradient of each."""

    def __init__(self, case, dtype=np.float64, shared=False, kinds=None, per_head=(False, False), phi_dtype=None,
                 own_slc_idx=False, gate_per_token=False, broadcast=None):
        self.case, self.shared = case, shared
        cfg = case.cfg
        self.q, self.k, self.v = ([f(dtype)] * 3 if shared else [f(dtype) for _ in BRANCHES]
                                  for f in (case.q, case.k, case.v))
        self.gate, self.d_o = case.gate(dtype, gate_per_token), case.o(dtype)
        self.slc_idx = case.slc_idx() if own_slc_idx else None
        if broadcast is not None:
            one = {"token": np.s_[:1], "head": np.s_[:, :1]}[broadcast]
            self.q, self.k, self.v = ([np.broadcast_to(x[one], x.shape) for x in xs]
                                      for xs in (self.q, self.k, self.v))
            self.d_o = np.broadcast_to(self.d_o[one], self.d_o.shape)
        self.phi, self.cmp = (None, None), (case.cmp_rows(cfg.d_qk, dtype), case.cmp_rows(cfg.d_v, dtype))
        if kinds is not None:
            self.phi = [case.phi(kind, d, heads, phi_dtype or dtype)
                        for kind, d, heads in zip(kinds, (cfg.d_qk, cfg.d_v), per_head)]
            self.cmp = (None, None)

    def padded(self, by_head):
        """The same problem in padded arrays."""
        case, p = self.case, copy.copy(self)
        n_rows = max(case.batch.max_seqlen_q, case.batch.max_seqlen_k) + 3
        q_rows, k_rows = ([getattr(s, side) for s in case.sequences()] for side in "qk")
        p.q = [harness.pad(x, q_rows, n_rows, by_head) for x in self.q]
        p.k, p.v = ([harness.pad(x, k_rows, n_rows, by_head) for x in xs] for xs in (self.k, self.v))
        p.gate, p.d_o = (harness.pad(x, q_rows, n_rows, by_head) for x in (self.gate, self.d_o))
        if self.slc_idx is not None:
            p.slc_idx = harness.pad(self.slc_idx, q_rows, n_rows, by_head, fill=0)
        return p

    def run(self, ctx):
        """The library's fwd, and its gradients by name."""
        args = self.case.cfg, self.case.batch, self.q, self.k, self.v, self.gate
        fwd = ctx.forward(*args, *self.phi, *self.cmp, self.slc_idx)
        outputs = [[nsa_c.empty(x[0].shape, x[0].dtype)] * 3 if self.shared else None for x in (self.q, self.k, self.v)]
        grad = ctx.backward(*args, fwd, self.d_o, *self.phi, *outputs)
        out = {"dgate": grad.dgate}
        for what in ("dq", "dk", "dv"):
            out.update({f"{what}{c}": getattr(grad, what)[c] for c in BRANCHES
                        if what == "dq" or c != CMP or self.phi[0] is not None})
        for name in "kv":
            dphi = getattr(grad, f"dphi_{name}")
            if dphi is None:
                out[f"d{name}_cmp"] = getattr(grad, f"d{name}_cmp")
            else:
                out.update({f"dphi_{name}.{m}": getattr(dphi, m) for m in nsa.PHI_MEMBERS
                            if getattr(dphi, m) is not None})
        return fwd, out

    def sequence(self, s, dtype):
        return [[to_float(x[rows], dtype) for x in xs] for xs, rows in ((self.q, s.q), (self.k, s.k), (self.v, s.k))]

    def forward(self, fwd, dtype=np.float64, rnd=nsa.exact):
        """NumPy's forward by name, given the selection and the compressed rows of fwd."""
        out = [nsa_c.empty(x.shape, dtype) for x in (fwd.o, *fwd.o_branch, *fwd.lse)]
        for s in self.case.sequences():
            y = nsa.forward(self.case.cfg, *self.sequence(s, dtype), to_float(self.gate[s.q], dtype),
                            k_cmp=to_float(fwd.k_cmp[s.cmp], dtype), v_cmp=to_float(fwd.v_cmp[s.cmp], dtype),
                            slc_idx=fwd.slc_idx[s.q], rnd=rnd)
            for x, part in zip(out, (y.o, *y.o_branch, *y.lse)):
                x[s.q] = part
        return dict(zip(("o", "o0", "o1", "o2", "lse0", "lse1", "lse2"), out))

    def backward(self, fwd, like, dtype=np.float64, rnd=nsa.exact):
        """NumPy's gradients by name, those of `like`, given what fwd left."""
        out = {name: np.full(x.shape, 0 if "phi" in name else np.nan, dtype) for name, x in like.items()}
        for s in self.case.sequences():
            left = nsa.SimpleNamespace(
                k_cmp=to_float(fwd.k_cmp[s.cmp], dtype), v_cmp=to_float(fwd.v_cmp[s.cmp], dtype),
                slc_idx=fwd.slc_idx[s.q], o_branch=[to_float(x[s.q], dtype) for x in fwd.o_branch],
                lse=[to_float(x[s.q], dtype) for x in fwd.lse])
            phi = [p and p.map(lambda x: to_float(x, dtype)) for p in self.phi]
            y = nsa.backward(self.case.cfg, *self.sequence(s, dtype), to_float(self.gate[s.q], dtype), left,
                             to_float(self.d_o[s.q], dtype), *phi, rnd=rnd)
            parts = {"dgate": (s.q, y.dgate), "dk_cmp": (s.cmp, y.dk_cmp), "dv_cmp": (s.cmp, y.dv_cmp)}
            for what, rows in (("dq", s.q), ("dk", s.k), ("dv", s.k)):
                grads = getattr(y, what)
                if self.shared:
                    grads = [rnd(sum(g for g in grads if g is not None))] * 3
                parts.update({f"{what}{c}": (rows, grads[c]) for c in BRANCHES})
            for name in out:
                if "phi" in name:
                    out[name] += getattr(y, name[:6])[name[7:]]
                else:
                    rows, part = parts[name]
                    out[name][rows] = part
        return out


def forward_by_name(fwd):
    return dict(zip(("o", "o0", "o1", "o2", "lse0", "lse1", "lse2"), (fwd.o, *fwd.o_branch, *fwd.lse)))


VARIANTS = {
    "shared, mean": dict(shared=True, kinds=("mean", "mean"), gate_per_token=True),
    "separate, own k_cmp, v_cmp": dict(),
    "shared, own k_cmp, v_cmp": dict(shared=True),
    "own slc_idx": dict(kinds=("mlp", "linear"), per_head=(False, True), own_slc_idx=True),
    "gated": dict(kinds=("gated_token", "gated_channel"), per_head=(True, False)),
    "linear, mlp": dict(shared=True, kinds=("linear", "mlp"), per_head=(False, True)),
}
BROADCAST = {
    "broadcast over heads": dict(kinds=("gated_channel", "mean"), gate_per_token=True, broadcast="head"),
    "broadcast over tokens": dict(kinds=("mlp", "gated_token"), broadcast="token", own_slc_idx=True),
}


class Float64(unittest.TestCase):
    ctx = nsa_c.Context(n_threads=2)

    def check(self, case, what, **variant):
        p = Problem(case, **variant)
        fwd, grads = p.run(self.ctx)
        what = f"{case.name}, {what}: "
        if p.phi[0] is not None:
            for s in case.sequences():
                for phi, x, got in ((p.phi[0], p.k[CMP], fwd.k_cmp), (p.phi[1], p.v[CMP], fwd.v_cmp)):
                    assert_close(got[s.cmp], nsa.compress(case.cfg, phi, x[s.k]), what + "k_cmp or v_cmp")
        if p.slc_idx is None:
            assert_same_selection(case, p.q[CMP], fwd.k_cmp, fwd.slc_idx)
        want, got = p.forward(fwd), forward_by_name(fwd)
        for name, x in want.items():
            assert_close(got[name], x, what + name)
        for name, x in p.backward(fwd, grads).items():
            assert_close(grads[name], x, what + name, atol=1e-12)

    @each_case
    def test_variants(self, case):
        for what, variant in {**VARIANTS, **BROADCAST}.items():
            self.check(case, what, **variant)

    def test_every_phi(self):
        case = Case("group 3")
        for kind in PHI_KINDS:
            for per_head in (False, True):
                self.check(case, f"{kind} {per_head}", kinds=(kind, kind), per_head=(per_head, not per_head))

    def test_no_sequences(self):
        for lengths in ([], [(0, 0)], [(2, 0), (0, 3)], [(3, 3)]):
            for what, variant in VARIANTS.items():
                self.check(Case("group 1", lengths), what, **variant)


class Layouts(unittest.TestCase):
    ctx = nsa_c.Context(n_threads=2)

    def check_rows(self, what, got, want, rows):
        """A padded result against the packed one: equal, and nothing written past a sequence."""
        nothing = nsa_c.empty(1, got.dtype)[0]
        for x, these in zip(got, rows):
            n = these.stop - these.start
            np.testing.assert_array_equal(x[:n], want[these], what)
            np.testing.assert_array_equal(x[n:], nothing, what)

    def test_padded(self):
        """Rows of NaN past each sequence, which nobody may read or write, forward and backward."""
        case = Case("group 3", [(9, 9), (0, 5), (14, 30), (7, 3)])
        for what, variant in {**VARIANTS, **BROADCAST}.items():
            p = Problem(case, **variant)
            fwd, grads = p.run(self.ctx)
            want = {**forward_by_name(fwd), **grads}
            for by_head in (False, True):
                fwd, grads = p.padded(by_head).run(self.ctx)
                for name, x in {**forward_by_name(fwd), **grads}.items():
                    if "cmp" in name or "phi" in name:
                        np.testing.assert_array_equal(x, want[name], f"{what} {name}")
                    else:
                        side = "k" if name[:2] in ("dk", "dv") else "q"
                        rows = [getattr(s, side) for s in case.sequences()]
                        self.check_rows(f"{what} {name}", x, want[name], rows)


class OtherTypes(unittest.TestCase):
    """By the oracle and by the default path; backward starts from what the forward call left."""

    def check(self, case, ctx, dtype, what, **variant):
        p = Problem(case, dtype, **variant)
        fwd, grads = p.run(ctx)
        single = dtype == np.float32
        rnd = nsa.exact if single else harness.rounding(dtype)
        coarse = np.float32 if single else np.float64
        got = forward_by_name(fwd)
        if p.slc_idx is None:
            assert_same_selection(case, to_float(p.q[CMP]), to_float(fwd.k_cmp), fwd.slc_idx)
        refs = {**p.forward(fwd), **p.backward(fwd, grads)}
        rounded = {**p.forward(fwd, coarse, rnd), **p.backward(fwd, grads, coarse, rnd)}
        # What is 0 in exact arithmetic is measured against its kin: dq of a window of one token against the other dq,
        # pe of a linear and b2 of an mlp phi_k against the other members.
        sizes = {}
        for kin in ("dgate", "dq", "dk", "dv", "dphi_k", "dphi_v"):
            members = [name for name in grads if name.startswith(kin)]
            largest = max((np.abs(np.nan_to_num(refs[name])).max(initial=0) for name in members), default=0)
            sizes.update(dict.fromkeys(members, largest))
        sizes["o"] = row_max(nsa.gate_sum(to_float(p.gate), [np.abs(to_float(o)) for o in fwd.o_branch]))
        sizes.update({f"o{c}": np.abs(refs[f"o{c}"]).max(initial=0) for c in BRANCHES})
        lses = [f"lse{c}" for c in BRANCHES]
        sizes.update(dict.fromkeys(lses, harness.logit_size(*(refs[name] for name in lses))))
        for name, x in {**got, **grads}.items():
            type_ = np.float32 if name in lses else dtype
            atol = (16 if type_ == np.float32 else 1) * harness.ulp(sizes[name], type_)
            assert_accurate(x, refs[name], rounded[name], type_,
                            f"{case.name}, {what} {np.dtype(dtype)} {ctx.isa}: {name}", atol)

    def check_all(self, case, dtype, variants=tuple(VARIANTS)):
        for reference in (True, False):
            ctx = nsa_c.Context(n_threads=2, reference=reference)
            for what in variants:
                self.check(case, ctx, dtype, what, **VARIANTS[what])

    @each_case
    def test_f32(self, case):
        self.check_all(case, np.float32)

    @each_case
    def test_f16(self, case):
        self.check_all(case, np.float16, tuple(VARIANTS)[::2])

    @each_case
    def test_bf16(self, case):
        self.check_all(case, BF16, tuple(VARIANTS)[1::2])


if __name__ == "__main__":
    harness.main()
