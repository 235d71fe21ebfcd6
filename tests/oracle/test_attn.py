"""The attention of each branch in float64 against NumPy, forward and backward."""
import unittest

import numpy as np

import harness
import nsa_c
import nsa_numpy as nsa
from harness import Case, assert_close, each_case

BRANCHES = ("cmp", "slc", "win")


def inputs(case, branch):
    cfg = case.cfg
    if branch == "cmp":
        return case.q(), case.cmp_rows(cfg.d_qk), case.cmp_rows(cfg.d_v), None
    return case.q(), case.k(), case.v(), case.slc_idx() if branch == "slc" else None


def expected(case, branch, q, k, v, slc_idx, d_o):
    """NumPy's o, lse, dq, dk, dv, packed; NaN in the compressed rows that belong to no sequence."""
    out = [nsa_c.empty(shape, np.float64) for shape in (d_o.shape, d_o.shape[:2] + (1,), q.shape, k.shape, v.shape)]
    o, lse, dq, dk, dv = out
    for s in case.sequences():
        keys, t_k = s.cmp if branch == "cmp" else s.k, s.k.stop - s.k.start
        no_choice = np.zeros((s.q.stop - s.q.start, 1, 1), int)
        visible = nsa.visibilities(case.cfg, s.q.stop - s.q.start, t_k,
                                   no_choice if slc_idx is None else slc_idx[s.q])[BRANCHES.index(branch)]
        args = q[s.q], k[keys], v[keys], visible, nsa.scale(case.cfg)
        o[s.q], lse[s.q] = nsa.attn(*args)
        dq[s.q], dk[keys], dv[keys] = nsa.attn_backward(*args, o[s.q], lse[s.q], d_o[s.q])
    return out


class Attention(unittest.TestCase):
    ctx = nsa_c.Context(n_threads=2)

    def check(self, case, branch):
        q, k, v, slc_idx = inputs(case, branch)
        d_o = case.o()
        o, lse = self.ctx.attn(branch, case.cfg, case.batch, q, k, v, slc_idx)
        grads = self.ctx.attn_backward(branch, case.cfg, case.batch, q, k, v, o, lse, d_o, slc_idx)
        want = expected(case, branch, q, k, v, slc_idx, d_o)
        for name, x, ref in zip(("o", "lse", "dq", "dk", "dv"), [o, lse, *grads], want):
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

    def test_padded_and_strided(self):
        """[seq][head][token] with rows of NaN past each sequence, which nobody may read or write."""
        case = Case("group 3", [(9, 9), (0, 0), (14, 14)])
        for branch in BRANCHES:
            q, k, v, slc_idx = inputs(case, branch)
            cu_k = np.array([s.cmp.start for s in case.sequences()]) if branch == "cmp" else case.cu_k
            n_k = [s.cmp.stop - s.cmp.start if branch == "cmp" else s.k.stop - s.k.start for s in case.sequences()]

            def pad(x, starts, counts, fill=np.nan):
                heads_first = np.full((3, x.shape[1], 17, x.shape[2]), fill, x.dtype)
                padded = heads_first.swapaxes(1, 2)
                for s, (start, n) in enumerate(zip(starts, counts)):
                    padded[s, :n] = x[start : start + n]
                return padded

            q_rows = case.cu_q, np.diff(case.cu_q)
            o = pad(np.full((case.cu_q[-1], case.cfg.n_heads_q, case.cfg.d_v), 5.0), *q_rows)
            want, _ = self.ctx.attn(branch, case.cfg, case.batch, q, k, v, slc_idx)
            self.ctx.attn(branch, case.cfg, case.batch, pad(q, *q_rows), pad(k, cu_k, n_k), pad(v, cu_k, n_k),
                          None if slc_idx is None else pad(slc_idx, *q_rows, fill=0), o)
            np.testing.assert_array_equal(o, pad(want, *q_rows), branch)


if __name__ == "__main__":
    harness.main()
