"""The attention of each branch against NumPy, forward and backward: float64 to rounding, other types by the library's
rule of accuracy."""
import unittest

import numpy as np

import harness
import nsa_c
import nsa_numpy as nsa
from harness import BF16, Case, assert_accurate, assert_close, each_case, row_max, to_dtype, to_float

BRANCHES = ("cmp", "slc", "win")


def inputs(case, branch):
    cfg = case.cfg
    if branch == "cmp":
        return case.q(), case.cmp_rows(cfg.d_qk), case.cmp_rows(cfg.d_v), None
    return case.q(), case.k(), case.v(), case.slc_idx() if branch == "slc" else None


def by_sequence(case, branch, slc_idx):
    """Of each sequence: its rows among the queries and among the keys, and what it sees."""
    for s in case.sequences():
        t_q, t_k = s.q.stop - s.q.start, s.k.stop - s.k.start
        choice = np.zeros((t_q, 1, 1), int) if slc_idx is None else slc_idx[s.q]
        visible = nsa.visibilities(case.cfg, t_q, t_k, choice)
        yield s.q, s.cmp if branch == "cmp" else s.k, visible[BRANCHES.index(branch)]


def forward(case, branch, q, k, v, slc_idx, rnd=nsa.exact):
    """NumPy's o and lse, packed."""
    o = nsa_c.empty(q.shape[:2] + v.shape[2:], q.dtype)
    lse = nsa_c.empty(q.shape[:2] + (1,), q.dtype)
    for rows, keys, visible in by_sequence(case, branch, slc_idx):
        o[rows], lse[rows] = nsa.attn(q[rows], k[keys], v[keys], visible, nsa.scale(case.cfg), rnd)
    return o, lse


def backward(case, branch, q, k, v, slc_idx, o, lse, d_o, rnd=nsa.exact, formula=nsa.attn_backward):
    """NumPy's dq, dk, dv, packed; NaN in the compressed rows that belong to no sequence."""
    dq, dk, dv = grads = [nsa_c.empty(x.shape, x.dtype) for x in (q, k, v)]
    for rows, keys, visible in by_sequence(case, branch, slc_idx):
        dq[rows], dk[keys], dv[keys] = formula(q[rows], k[keys], v[keys], visible, nsa.scale(case.cfg), o[rows],
                                               lse[rows], d_o[rows], rnd)
    return grads


class Float64(unittest.TestCase):
    ctx = nsa_c.Context(n_threads=2)

    def check(self, case, branch):
        q, k, v, slc_idx = inputs(case, branch)
        d_o = case.o()
        o, lse = self.ctx.attn(branch, case.cfg, case.batch, q, k, v, slc_idx)
        grads = self.ctx.attn_backward(branch, case.cfg, case.batch, q, k, v, o, lse, d_o, slc_idx)
        want_o, want_lse = forward(case, branch, q, k, v, slc_idx)
        want = want_o, want_lse, *backward(case, branch, q, k, v, slc_idx, want_o, want_lse, d_o)
        for name, x, ref in zip(("o", "lse", "dq", "dk", "dv"), (o, lse, *grads), want):
            assert_close(x, ref, f"{case.name} {branch} {name}", atol=1e-13 * max(1, nsa.scale(case.cfg)))

    @each_case
    def test_cmp(self, case):
        self.check(case, "cmp")

    @each_case
    def test_slc(self, case):
        self.check(case, "slc")

    @each_case
    def test_win(self, case):
        self.check(case, "win")

    def test_no_sequences(self):
        for lengths in ([], [(0, 0)], [(0, 0), (0, 0)]):
            for branch in BRANCHES:
                self.check(Case("group 1", lengths), branch)

    def test_large_logits(self):
        """Probabilities that underflow, and a softmax that would overflow without its maximum."""
        case = Case("group 5", scale=40.0)
        for branch in BRANCHES:
            self.check(case, branch)


class OtherTypes(unittest.TestCase):
    """By the oracle and by the default path. Backward: both sides start from the o and lse of the forward call."""

    def check(self, case, branch, ctx, dtype):
        q, k, v, slc_idx = inputs(case, branch)
        narrow = [to_dtype(x, dtype) for x in (q, k, v)]
        wide = [to_float(x) for x in narrow]
        d_o = case.o(dtype)
        # float32: NumPy in float32 rounds once per operation. Half: probabilities and outputs are rounded to it.
        single = dtype == np.float32
        rnd = nsa.exact if single else harness.rounding(dtype)
        coarse = narrow if single else wide

        def compare(name, got, ref, rounded, size):
            what = f"{case.name} {branch} {name} {np.dtype(dtype)} {ctx.isa}"
            type_ = np.float32 if name == "lse" else dtype
            assert_accurate(got, ref, rounded, type_, what, 4 * harness.ulp(size, np.float32))

        o, lse = ctx.attn(branch, case.cfg, case.batch, *narrow, slc_idx)
        ref, rounded = forward(case, branch, *wide, slc_idx), forward(case, branch, *coarse, slc_idx, rnd)
        size = harness.logit_size(ref[1])
        terms, _ = forward(case, branch, wide[0], wide[1], np.abs(wide[2]), slc_idx)
        of_p = size + {np.float32: 0, np.float16: 2**9, BF16: 2**12}[dtype]  # rounding p: docs/numerics.md
        compare("o", o, ref[0], rounded[0], of_p * row_max(terms))
        compare("lse", lse, ref[1], rounded[1], size)
        got = ctx.attn_backward(branch, case.cfg, case.batch, *narrow, o, lse, d_o, slc_idx)
        rest = to_float(o), to_float(lse), to_float(d_o)
        coarse_rest = (o, lse, d_o) if single else rest
        refs = backward(case, branch, *wide, slc_idx, *rest)
        rounded = backward(case, branch, *coarse, slc_idx, *coarse_rest, rnd)
        terms = backward(case, branch, *wide, slc_idx, *rest, formula=nsa.attn_backward_sizes)
        for i, name in enumerate(("dq", "dk", "dv")):
            compare(name, got[i], refs[i], rounded[i], of_p * row_max(np.nan_to_num(terms[i])))

    def check_all(self, case, dtype):
        for reference in (True, False):
            ctx = nsa_c.Context(n_threads=2, reference=reference)
            for branch in BRANCHES:
                self.check(case, branch, ctx, dtype)

    @each_case
    def test_f32(self, case):
        self.check_all(case, np.float32)

    @each_case
    def test_f16(self, case):
        self.check_all(case, np.float16)

    @each_case
    def test_bf16(self, case):
        self.check_all(case, BF16)


class Layouts(unittest.TestCase):
    def test_padded_and_strided(self):
        """[seq][head][token] with rows of NaN past each sequence, which nobody may read or write."""
        ctx = nsa_c.Context(n_threads=2)
        case = Case("group 3", [(9, 9), (0, 0), (14, 14)])

        for branch in BRANCHES:
            q, k, v, slc_idx = inputs(case, branch)
            keys = [s.cmp if branch == "cmp" else s.k for s in case.sequences()]
            q_rows = [s.q for s in case.sequences()]
            o = harness.pad(case.o(), q_rows, 17, True)
            want, _ = ctx.attn(branch, case.cfg, case.batch, q, k, v, slc_idx)
            ctx.attn(branch, case.cfg, case.batch, harness.pad(q, q_rows, 17, True), harness.pad(k, keys, 17, True),
                     harness.pad(v, keys, 17, True),
                     None if slc_idx is None else harness.pad(slc_idx, q_rows, 17, True, fill=0), o)
            np.testing.assert_array_equal(o, harness.pad(want, q_rows, 17, True), branch)


if __name__ == "__main__":
    harness.main()
