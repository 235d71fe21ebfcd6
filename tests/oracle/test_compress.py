"""Compression against NumPy: five kinds of phi, shared and per head, forward and backward; float64 to rounding, other
types by the library's rule of accuracy."""
import unittest

import numpy as np

import harness
import nsa_c
import nsa_numpy as nsa
from harness import BF16, PHI_KINDS, Case, assert_close, each_case, to_float


def numpy_results(case, phi, x, dy, rnd=nsa.exact):
    """y, dx and the gradients of phi, by name."""
    out = {"y": nsa_c.empty(dy.shape, x.dtype), "dx": nsa_c.empty(x.shape, x.dtype)}
    for name in nsa.PHI_MEMBERS:
        if getattr(phi, name) is not None:
            out["d" + name] = np.zeros(getattr(phi, name).shape, x.dtype)
    for s in case.sequences():
        out["y"][s.cmp] = nsa.compress(case.cfg, phi, x[s.k], rnd)
        out["dx"][s.k], dphi = nsa.compress_backward(case.cfg, phi, x[s.k], dy[s.cmp], rnd)
        for name, g in dphi.items():
            out["d" + name] += g
    return out


def results(ctx, case, phi, x, dy):
    y = ctx.compress(case.cfg, case.batch, phi, x)
    dx, dphi = ctx.compress_backward(case.cfg, case.batch, phi, x, dy)
    given = {"d" + name: getattr(dphi, name) for name in nsa.PHI_MEMBERS if getattr(dphi, name) is not None}
    return {"y": y, "dx": dx, **given}


class Float64(unittest.TestCase):
    ctx = nsa_c.Context(n_threads=2)

    def check(self, case, phi, x):
        dy = case.cmp_rows(x.shape[-1])
        got, want = results(self.ctx, case, phi, x, dy), numpy_results(case, phi, x, dy)
        self.assertEqual(list(got), list(want))
        for name in want:
            assert_close(got[name], want[name], f"{case.name} {phi.kind} per_head={phi.per_head} {name}", atol=1e-12)

    @each_case
    def test_keys(self, case):
        for kind in PHI_KINDS:
            for per_head in (False, True):
                self.check(case, case.phi(kind, case.cfg.d_qk, per_head), case.k())

    @each_case
    def test_values_without_the_optional_members(self, case):
        for kind in PHI_KINDS:
            for per_head in (False, True):
                self.check(case, case.phi(kind, case.cfg.d_v, per_head, optional=False), case.v())

    def test_no_blocks(self):
        """Sequences shorter than a block: gradients of 0, not garbage."""
        for lengths in ([], [(0, 0)], [(3, 3), (2, 2), (3, 3)]):
            case = Case("group 1", lengths)
            for kind in PHI_KINDS:
                self.check(case, case.phi(kind, case.cfg.d_qk), case.k())

    def test_large_gates(self):
        """A softmax over tokens that would overflow without its maximum."""
        case = Case("group 1")
        for kind in ("gated_token", "gated_channel"):
            phi = case.phi(kind, case.cfg.d_qk)
            phi.w1 *= 1000
            self.check(case, phi, np.round(4 * case.k()) / 4)


class OtherTypes(unittest.TestCase):
    def check(self, case, kind, per_head, dtype, phi_dtype):
        d = case.cfg.d_qk
        x, dy, phi = case.k(dtype), case.cmp_rows(d, dtype), case.phi(kind, d, per_head, phi_dtype)
        ref = numpy_results(case, phi.map(to_float), to_float(x), to_float(dy))
        if dtype == np.float32:
            rounded = numpy_results(case, phi, x, dy)
        else:
            rounded = numpy_results(case, phi.map(to_float), to_float(x), to_float(dy), harness.rounding(dtype))
        for reference in (True, False):
            ctx = nsa_c.Context(n_threads=2, reference=reference)
            for name, got in results(ctx, case, phi, x, dy).items():
                type_ = dtype if name in ("y", "dx") else phi_dtype
                # Sums over all blocks, which cancel in part.
                atol = 16 * harness.ulp(np.abs(np.nan_to_num(ref[name])).max(initial=0), np.float32)
                what = f"{case.name} {kind} per_head={per_head} {np.dtype(dtype)} {ctx.isa} {name}"
                harness.assert_accurate(got, ref[name], rounded[name], type_, what, atol)

    @each_case
    def test_f32(self, case):
        for kind in PHI_KINDS:
            for per_head in (False, True):
                self.check(case, kind, per_head, np.float32, np.float32)

    @each_case
    def test_f16(self, case):
        for kind in PHI_KINDS:
            self.check(case, kind, False, np.float16, np.float16)
            self.check(case, kind, True, np.float16, np.float32)

    @each_case
    def test_bf16(self, case):
        for kind in PHI_KINDS:
            self.check(case, kind, True, BF16, BF16)
            self.check(case, kind, False, BF16, np.float32)


if __name__ == "__main__":
    harness.main()
