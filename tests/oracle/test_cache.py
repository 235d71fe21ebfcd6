"""Token by token, in chunks of any size, with drafts dropped in between: the same as one nsa_forward over the whole."""
import unittest

import numpy as np

import harness
import nsa_c
from harness import BF16, CMP, Case, assert_close, assert_same_selection, bounds, to_float

LENGTHS = (37, 1, 22, 0, 61)


class Stream:
    """Sequences that grow in a cache, and what one forward call over all of them gives."""

    def __init__(self, ctx, name, dtype, shared_kv, kind, max_draft=0, **changes):
        self.case = case = Case(name, [(n, n) for n in LENGTHS], **changes)
        cfg = case.cfg
        self.shared_kv = shared_kv
        self.q = [case.q(dtype) for _ in range(3)]
        self.k = [case.k(dtype)] * 3 if shared_kv else [case.k(dtype) for _ in range(3)]
        self.v = [case.v(dtype)] * 3 if shared_kv else [case.v(dtype) for _ in range(3)]
        self.gate = np.array(case.gate(dtype))
        self.phi = case.phi(kind, cfg.d_qk, True, dtype), case.phi(kind, cfg.d_v, False, dtype)
        self.want = ctx.forward(cfg, case.batch, self.q, self.k, self.v, self.gate, *self.phi)
        page_size = 2 * cfg.slc_block
        n_pages = sum(-(-(n + 3 * max_draft) // page_size) + 1 for n in LENGTHS)
        self.cache = nsa_c.Cache(ctx, cfg, dtype, n_pages, page_size, max_draft, shared_kv)
        case.rng.shuffle(self.cache.free_pages)
        self.sequences = [self.cache.sequence() for _ in LENGTHS]
        self.o = nsa_c.empty(self.want.o.shape, dtype)
        self.slc_idx = nsa_c.empty(self.want.slc_idx.shape, np.int32)

    def lengths(self):
        return np.array([len(s) for s in self.sequences])

    def left(self):
        return np.array(LENGTHS) - self.lengths()

    def append(self, counts, op):
        """The next tokens of each sequence."""
        held = self.case.cu_q[:-1] + self.lengths()
        rows = np.concatenate([np.arange(first, first + n) for first, n in zip(held, counts)])
        o, slc_idx = self.call(counts, op, rows)
        self.o[rows], self.slc_idx[rows] = o, slc_idx

    def append_drafts(self, counts, op):
        """Other tokens, to be dropped again; their outputs are not looked at."""
        rows = self.case.rng.integers(0, self.case.cu_q[-1], int(sum(counts)))
        self.call(counts, op, rows)

    def call(self, counts, op, rows):
        q, k, v = ([x[rows] for x in xs] for xs in (self.q, self.k, self.v))
        return self.cache.append(self.sequences, bounds(counts), q, k, v, self.gate[rows], *self.phi, op)

    def snapshot(self):
        return [s.state.copy() for s in self.sequences] + [self.cache.pages.copy()]

    def check(self, rel):
        """All outputs of all tokens, each as it came from the last call that brought it."""
        np.testing.assert_array_equal(self.left(), 0)
        assert_same_selection(self.case, to_float(self.q[CMP]), to_float(self.want.k_cmp), self.slc_idx)
        same = (self.slc_idx == self.want.slc_idx).all(axis=(1, 2))
        assert same.mean() > 0.99
        assert_close(to_float(self.o)[same], to_float(self.want.o)[same], self.case.name, rel, atol=rel)


REFERENCE = nsa_c.Context(n_threads=2, reference=True)
DEFAULT = nsa_c.Context(n_threads=2)
KINDS = ((DEFAULT, np.float64, 1e-12), (DEFAULT, np.float32, 1e-5), (REFERENCE, np.float32, 1e-5),
         (DEFAULT, BF16, 2.0**-7), (DEFAULT, np.float16, 2.0**-9))


def streams(test):
    """Runs a test for types, configurations, phi, and with and without K and V of each branch's own."""
    def run(self):
        for i, name in enumerate(harness.CONFIGS):
            for j, (ctx, dtype, rel) in enumerate(KINDS):
                shared_kv, kind = (i + j) % 2 == 0, ("mean", "mlp")[(i + j) // 2 % 2]
                with self.subTest(name, dtype=np.dtype(dtype), isa=ctx.isa, shared_kv=shared_kv, phi=kind):
                    test(self, lambda **more: Stream(ctx, name, dtype, shared_kv, kind, **more), rel)
    return run


class Growth(unittest.TestCase):
    @streams
    def test_token_by_token(self, make, rel):
        x = make()
        while x.left().any():
            x.append(np.minimum(x.left(), 1), "decode")
        x.check(rel)

    @streams
    def test_whole_prefill(self, make, rel):
        x = make()
        x.append(x.left(), "prefill")
        x.check(rel)

    @streams
    def test_chunks(self, make, rel):
        x = make()
        while x.left().any():
            most = x.case.rng.choice([1, 3, 10, 40])
            x.append(x.case.rng.integers(0, np.minimum(x.left(), most) + 1), x.case.rng.choice(["prefill", "decode"]))
        x.check(rel)

    @streams
    def test_prefill_then_decode(self, make, rel):
        x = make()
        x.append(x.left() // 2, "prefill")
        while x.left().any():
            x.append(np.minimum(x.left(), 1), "decode")
        x.check(rel)


class Drops(unittest.TestCase):
    @streams
    def test_drafts_and_drops(self, make, rel):
        """Wrong tokens are given and dropped; right ones are dropped and given again."""
        for max_draft in (1, 7):
            x = make(max_draft=max_draft)
            rng = x.case.rng
            longest = x.lengths()
            while x.left().any():
                x.append(rng.integers(0, np.minimum(x.left(), 9) + 1), rng.choice(["prefill", "decode"]))
                kept = x.lengths()
                x.append_drafts(rng.integers(0, max_draft + 1, len(kept)), rng.choice(["prefill", "decode"]))
                longest = np.maximum(longest, x.lengths())
                for s, n, high in zip(x.sequences, kept, longest):
                    s.drop(n)
                    if rng.random() < 0.5:
                        s.drop(max(0, high - max_draft, n - rng.integers(0, 4)))
            x.check(rel)

    @streams
    def test_bound(self, make, rel):
        """Exactly max_draft below the longest length is allowed; one more is an error and changes nothing."""
        for max_draft in (0, 5):
            x = make(max_draft=max_draft)
            x.append(x.left() - x.left() // 3, "prefill")
            longest = x.lengths()
            for _ in range(3):  # the bound counts from the longest length, however often it falls and grows
                for s, high in zip(x.sequences, longest):
                    bound = max(0, high - max_draft)
                    before = x.snapshot()
                    for bad in (bound - 1, len(s) + 1, -1):
                        with self.assertRaises(nsa_c.Error) as caught:
                            s.drop(bad)
                        self.assertEqual(caught.exception.status, "INVALID_ARGUMENT")
                    for was, now in zip(before, x.snapshot()):
                        np.testing.assert_array_equal(was, now)
                    s.drop(bound)
                    self.assertEqual(len(s), bound)
                x.append(np.minimum(x.left(), 1), "decode")
                longest = np.maximum(longest, x.lengths())
            x.append(x.left(), "decode")
            x.check(rel)


if __name__ == "__main__":
    harness.main()
