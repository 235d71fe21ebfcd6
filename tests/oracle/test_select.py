"""The C's selection against NumPy's: the same blocks, up to ties to rounding; exact ties exactly."""
import unittest

import numpy as np

import harness
import nsa_c
import nsa_numpy as nsa
from harness import Case, assert_same_selection, each_case, exact_scores, to_float

REFERENCE = nsa_c.Context(n_threads=2, reference=True)
DEFAULT = nsa_c.Context(n_threads=2)


class AgainstNumPy(unittest.TestCase):
    def check(self, case, dtype, ctx):
        q, k_cmp, v_cmp = case.q(dtype), case.cmp_rows(case.cfg.d_qk, dtype), case.cmp_rows(case.cfg.d_v, dtype)
        _, lse = ctx.attn("cmp", case.cfg, case.batch, q, k_cmp, v_cmp)
        got = ctx.select(case.cfg, case.batch, q, k_cmp, lse)
        assert_same_selection(case, to_float(q), to_float(k_cmp), got)

    @each_case
    def test_f64(self, case):
        self.check(case, np.float64, REFERENCE)

    @each_case
    def test_reference(self, case):
        for dtype in (np.float32, np.float16, harness.BF16):
            self.check(case, dtype, REFERENCE)

    @each_case
    def test_default(self, case):
        for dtype in (np.float32, np.float16, harness.BF16):
            self.check(case, dtype, DEFAULT)

    def test_shapes_of_blocks(self):
        """Many (cmp_block, cmp_stride, slc_block), each at sequences that end inside blocks."""
        for stride in (1, 2, 3, 16):
            for per_cmp, per_slc in ((1, 1), (1, 3), (2, 2), (2, 4), (2, 5), (3, 4), (4, 4), (5, 7)):
                block = per_slc * stride
                for n_init, n_local, topk in ((0, 0, 2), (1, 2, 4), (0, 1, 3), (3, 0, 3)):
                    case = Case("group 3", [(6 * block + 1,) * 2, (2 * block, 5 * block + stride - 1)],
                                cmp_block=per_cmp * stride, cmp_stride=stride, slc_block=block, slc_topk=topk,
                                slc_n_init=n_init, slc_n_local=n_local)
                    self.check(case, np.float32, DEFAULT)
                    self.check(case, np.float64, DEFAULT)

    def test_budget_beyond_the_blocks(self):
        """All blocks so far, then -1."""
        case = Case("group 3", slc_topk=50, slc_n_init=1, slc_n_local=1)
        q, k_cmp = case.q(np.float32), case.cmp_rows(case.cfg.d_qk, np.float32)
        for ctx in (REFERENCE, DEFAULT):
            _, lse = ctx.attn("cmp", case.cfg, case.batch, q, k_cmp, case.cmp_rows(case.cfg.d_v, np.float32))
            got = ctx.select(case.cfg, case.batch, q, k_cmp, lse)
            for s in case.sequences():
                t = nsa.positions(s.q.stop - s.q.start, s.k.stop - s.k.start)
                block = np.arange(50)
                want = np.where(block <= t[:, None] // case.cfg.slc_block, block, -1)
                np.testing.assert_array_equal(got[s.q], np.broadcast_to(want[:, None], got[s.q].shape))

    def test_long_tail(self):
        """Scores that span many magnitudes, down to probabilities that count as 0 and tie there."""
        for scale in (3.0, 30.0, 300.0):
            case = Case("group 3", [(90, 90)], scale=scale, slc_topk=6)
            self.check(case, np.float32, DEFAULT)
            self.check(case, np.float64, DEFAULT)


class Ties(unittest.TestCase):
    """Keys whose logits are the same bits: scores tie exactly and the lower block must win, whatever the type."""

    def check(self, case, q, k_cmp):
        for dtype in (np.float64, np.float32, np.float16, harness.BF16):
            for ctx in (REFERENCE, DEFAULT):
                x, y = harness.to_dtype(q, dtype), harness.to_dtype(k_cmp, dtype)
                _, lse = ctx.attn("cmp", case.cfg, case.batch, x, y, y)
                got = ctx.select(case.cfg, case.batch, x, y, lse)
                for s in case.sequences():
                    score, t = exact_scores(case, q, k_cmp, s)
                    np.testing.assert_array_equal(got[s.q], nsa.select(case.cfg, score, t), f"{case.name} {dtype}")

    def case(self, name, **changes):
        return Case(name, [(90, 90), (11, 77)], d_qk=8, d_v=8, scale=0.125, **changes)

    def test_all_equal(self):
        for name in harness.CONFIGS:
            case = self.case(name)
            q = np.round(4 * case.q()) / 4
            k_cmp = np.broadcast_to(np.round(4 * case.random(1, 1, 8)) / 4, case.cmp_rows(8).shape)
            self.check(case, q, k_cmp)

    def test_few_distinct(self):
        """Every selection block holds one of three keys and shares no compressed block: long runs of exact ties."""
        for name, fields in harness.CONFIGS.items():
            case = self.case(name, slc_n_init=0, slc_n_local=0, cmp_block=fields["cmp_stride"])
            q = np.full(case.q().shape, 4.0)
            kinds = case.rng.choice([0.0, 1.0, 2.0], size=90)
            k_cmp = np.empty(case.cmp_rows(8).shape)
            for s in case.sequences():
                row = np.arange(s.cmp.stop - s.cmp.start)
                k_cmp[s.cmp] = kinds[row * case.cfg.cmp_stride // case.cfg.slc_block][:, None, None]
            self.check(case, q, k_cmp)

    def test_below_the_smallest_normal(self):
        """Probabilities below 2^-126 count as 0: blocks that have no others tie, however they rise towards it."""
        for name in ("group 1", "group 5", "group 16"):
            case = self.case(name, slc_n_init=0, slc_n_local=0)
            q, k_cmp = np.zeros(case.q().shape), np.zeros(case.cmp_rows(8).shape)
            q[..., 0] = 8  # times the scale: 1
            for s in case.sequences():
                k_cmp[s.cmp, :, 0] = np.linspace(-102, -88, s.cmp.stop - s.cmp.start)[:, None]
                k_cmp[s.cmp.start, :, 0] = 0
            self.check(case, q, k_cmp)


class SumRule(unittest.TestCase):
    @each_case
    def test_scores_add_up(self, case):
        """Over the blocks up to the current one: (cmp_block/stride) times the sum of P, group heads each 1."""
        q, k_cmp = case.q(), case.cmp_rows(case.cfg.d_qk)
        for s in case.sequences():
            score, t = exact_scores(case, q, k_cmp, s)
            total = case.cfg.cmp_block / case.cfg.cmp_stride * nsa.group(case.cfg)
            want = np.where(t >= case.cfg.cmp_block - 1, total, 0)
            np.testing.assert_allclose(score.sum(axis=-1), np.broadcast_to(want[:, None], score.shape[:2]), rtol=1e-5)


if __name__ == "__main__":
    harness.main()
