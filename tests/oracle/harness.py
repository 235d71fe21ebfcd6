"""What the oracle tests share: configurations, ragged batches, random inputs and comparisons."""
import os
import zlib
from types import SimpleNamespace

import numpy as np

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # thousands of small calls; read when the library is loaded

import nsa_c
import nsa_numpy
from runner import main

CMP, SLC, WIN = 0, 1, 2
PHI_KINDS = nsa_c.PHI_KINDS

# Groups 1, 3, 5, 16; d_qk != d_v; slc_block no multiple of cmp_block; nothing forced; budgets from 1 block to all.
CONFIGS = {
    "group 1": dict(n_heads_q=2, n_heads_kv=2, d_qk=8, d_v=8, cmp_block=4, cmp_stride=2, slc_block=8, slc_topk=4,
                    slc_n_init=1, slc_n_local=2, win_size=10),
    "group 3": dict(n_heads_q=6, n_heads_kv=2, d_qk=7, d_v=5, cmp_block=6, cmp_stride=3, slc_block=9, slc_topk=3,
                    slc_n_init=0, slc_n_local=0, win_size=1),
    "group 5": dict(n_heads_q=5, n_heads_kv=1, d_qk=12, d_v=20, cmp_block=4, cmp_stride=4, slc_block=4, slc_topk=5,
                    slc_n_init=1, slc_n_local=1, win_size=7, scale=0.7),
    "group 16": dict(n_heads_q=32, n_heads_kv=2, d_qk=16, d_v=8, cmp_block=8, cmp_stride=2, slc_block=12, slc_topk=3,
                     slc_n_init=2, slc_n_local=1, win_size=1000),
    "blocks of one token": dict(n_heads_q=4, n_heads_kv=2, d_qk=4, d_v=6, cmp_block=1, cmp_stride=1, slc_block=1,
                                slc_topk=6, slc_n_init=0, slc_n_local=1, win_size=3),
    "one block": dict(n_heads_q=3, n_heads_kv=3, d_qk=1, d_v=3, cmp_block=3, cmp_stride=1, slc_block=5, slc_topk=1,
                      slc_n_init=0, slc_n_local=1, win_size=33),
}

# (T_q, T_k) of each sequence: empty ones, fewer queries than keys, more queries than keys, no common divisor.
RAGGED = [(0, 0), (37, 37), (1, 1), (5, 29), (0, 7), (9, 4), (3, 0), (41, 41)]


def bounds(lengths):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


class Case:
    """A configuration, a packed batch and a source of random inputs that its name alone determines."""

    def __init__(self, name, lengths=RAGGED, **changes):
        self.name = name
        self.cfg = nsa_c.config(**{**CONFIGS[name], **changes})
        self.cu_q, self.cu_k = bounds([q for q, _ in lengths]), bounds([k for _, k in lengths])
        self.batch = nsa_c.batch(self.cu_q, self.cu_k)
        self.rng = np.random.default_rng(zlib.crc32(name.encode()))

    def random(self, *shape, dtype=np.float64):
        return to_dtype(self.rng.standard_normal(shape), dtype)

    def q(self, dtype=np.float64):
        return self.random(self.cu_q[-1], self.cfg.n_heads_q, self.cfg.d_qk, dtype=dtype)

    def o(self, dtype=np.float64):
        return self.random(self.cu_q[-1], self.cfg.n_heads_q, self.cfg.d_v, dtype=dtype)

    def k(self, dtype=np.float64):
        return self.random(self.cu_k[-1], self.cfg.n_heads_kv, self.cfg.d_qk, dtype=dtype)

    def v(self, dtype=np.float64):
        return self.random(self.cu_k[-1], self.cfg.n_heads_kv, self.cfg.d_v, dtype=dtype)

    def cmp_rows(self, d, dtype=np.float64):
        return self.random(self.cu_k[-1] // self.cfg.cmp_stride, self.cfg.n_heads_kv, d, dtype=dtype)

    def gate(self, dtype=np.float64, per_token=False):
        shape = (self.cu_q[-1], 1 if per_token else self.cfg.n_heads_q, 3)
        gate = to_dtype(1 / (1 + np.exp(-self.rng.standard_normal(shape))), dtype)
        return np.broadcast_to(gate, (shape[0], self.cfg.n_heads_q, 3))

    def slc_idx(self):
        """A caller's own: distinct in a row, in any order, with entries among them that are to be skipped."""
        cfg = self.cfg
        out = np.empty((self.cu_q[-1], cfg.n_heads_kv, cfg.slc_topk), np.int32)
        for s in self.sequences():
            n_blocks = -(-(s.k.stop - s.k.start) // cfg.slc_block)
            pool = np.concatenate([np.arange(n_blocks), [-1, -7, n_blocks, n_blocks + 5, 2**31 - 1, -(2**31)]])
            pool = np.concatenate([pool, np.full(cfg.slc_topk, -1)])
            for row in out[s.q].reshape(-1, cfg.slc_topk):
                row[:] = self.rng.permutation(pool)[: cfg.slc_topk]
        return out

    def phi(self, kind, d, per_head=False, dtype=np.float64, optional=True):
        """optional: with the members that a kind may go without."""
        block, heads = self.cfg.cmp_block, (self.cfg.n_heads_kv,) if per_head else ()
        hidden = 2 * d + 1

        def p(*shape):
            return self.random(*heads, *shape, dtype=np.float64) / np.sqrt(shape[0])

        members = {
            "mean": {},
            "linear": dict(w1=p(block * d, d), pe=p(block, d)),
            "gated_token": dict(w1=p(d), b1=p(block)),
            "gated_channel": dict(w1=p(d, d), b1=p(block, d)),
            "mlp": dict(w1=p(block * d, hidden), w2=p(hidden, d), pe=p(block, d), b1=p(hidden), b2=p(d)),
        }[kind]
        if not optional:
            members = {m: x for m, x in members.items() if m in ("w1", "w2") or kind.startswith("gated")}
        return nsa_c.Phi(kind, per_head, **{m: to_dtype(x, dtype) for m, x in members.items()})

    def sequences(self):
        """The rows of each sequence in the packed arrays: slices q, k and cmp."""
        for s in range(len(self.cu_q) - 1):
            first = self.cu_k[s] // self.cfg.cmp_stride
            n = nsa_numpy.n_cmp(self.cfg, self.cu_k[s + 1] - self.cu_k[s])
            yield SimpleNamespace(q=slice(self.cu_q[s], self.cu_q[s + 1]), k=slice(self.cu_k[s], self.cu_k[s + 1]),
                                  cmp=slice(first, first + n))


def pad(x, rows, n_rows, by_head, fill=np.nan):
    """[seq][token][head][channel] of the packed x, whose sequences are the slices `rows`, with NaN past each; by_head:
    [seq][head][token] in memory."""
    shape = (len(rows), x.shape[1], n_rows, x.shape[2]) if by_head else (len(rows), n_rows) + x.shape[1:]
    padded = np.full(shape, fill, x.dtype)
    padded = padded.swapaxes(1, 2) if by_head else padded
    for s, these in enumerate(rows):
        padded[s, : these.stop - these.start] = x[these]
    return padded


def each_case(test):
    """Runs a test method once for every configuration."""
    def run(self):
        for name in CONFIGS:
            with self.subTest(name):
                test(self, Case(name))
    return run


# ---- Types ----------------------------------------------------------------------------------------------------------

BF16 = np.uint16


def to_dtype(x, dtype):
    return np.ascontiguousarray(nsa_c.to_bf16(x) if dtype == BF16 else x, dtype)


def to_float(x, dtype=np.float64):
    """The values of an array of any type."""
    return (nsa_c.from_bf16(x) if x.dtype == BF16 else x).astype(dtype)


def rounding(dtype):
    """Rounds float64 values to those of dtype."""
    return lambda x: to_float(to_dtype(x, dtype))


def ulp(x, dtype):
    bits, least = {np.float64: (52, -1022), np.float32: (23, -126), np.float16: (10, -14), BF16: (7, -126)}[dtype]
    _, exponent = np.frexp(x)
    return np.ldexp(1.0, np.maximum(exponent - 1, least) - bits)


# ---- Comparisons: by rows of the last dimension ---------------------------------------------------------------------


def row_max(x):
    return np.abs(x).max(axis=-1, initial=0)


def same_places(x, ref, what):
    if x.shape != ref.shape:
        raise AssertionError(f"{what}: shape {x.shape}, expected {ref.shape}")
    finite = np.isfinite(ref)
    if not np.array_equal(np.where(finite, 0, ref), np.where(np.isfinite(x), 0, x), equal_nan=True):
        at = tuple(np.argwhere(np.isfinite(x) != finite)[0]) if (np.isfinite(x) != finite).any() else "?"
        raise AssertionError(f"{what}: infinities or NaN stand elsewhere, first at {at}")
    return np.where(finite, x, 0), np.where(finite, ref, 0)


def fail_at(what, error, bound):
    at = np.unravel_index(np.argmax(error - bound), error.shape)
    raise AssertionError(f"{what}: row {tuple(int(i) for i in at)} is off by {error[at]:.3g}, allowed {bound[at]:.3g}; "
                         f"{(error > bound).sum()} of {error.size} rows fail")


def assert_close(x, ref, what, rel=1e-10, atol=1e-13):
    """max|x - ref| of a row within rel of max|ref| of that row. atol: for rows that are zero in exact arithmetic."""
    x, ref = same_places(x, ref, what)
    error, bound = row_max(x - ref), rel * row_max(ref) + atol
    if (error > bound).any():
        fail_at(what, error, bound)


def assert_accurate(x, ref, rounded, dtype, what, atol=0.0):
    """The library's rule: a row's error at most twice that of the rounded reference, plus 4 ulp of max|ref|."""
    x, ref = same_places(to_float(x), ref, what)
    rounded = np.where(np.isfinite(rounded), rounded, 0).astype(np.float64)
    error = row_max(x - ref)
    bound = 2 * row_max(rounded - ref) + 4 * ulp(row_max(ref), dtype) + atol
    if (error > bound).any():
        fail_at(what, error, bound)


def logit_size(*lse):
    """How large logits are, at least 1: rounding them, or lse, moves p by that many ulp of its own size."""
    return max([1.0] + [np.abs(x[np.isfinite(x)]).max(initial=0) for x in lse])


# ---- Selection: the same blocks, up to ties to rounding ------------------------------------------------------------


def exact_scores(case, q, k_cmp, s):
    """[T_q, n_heads_kv, n_blocks] of one sequence."""
    t_q, t_k = s.q.stop - s.q.start, s.k.stop - s.k.start
    t = nsa_numpy.positions(t_q, t_k)
    visible = nsa_numpy.visible_cmp(case.cfg, t, s.cmp.stop - s.cmp.start)
    P = nsa_numpy.importance(q[s.q], k_cmp[s.cmp], visible, nsa_numpy.scale(case.cfg))
    return nsa_numpy.block_scores(case.cfg, P, -(-t_k // case.cfg.slc_block)), t


def slack(case, q, k_cmp, visible):
    """2^-20 (1 + A), A = scale max|q| max|k_cmp| over the heads and the visible blocks: [T_q, n_heads_kv]."""
    q_norm = np.linalg.norm(nsa_numpy.by_kv_head(q, case.cfg.n_heads_kv), axis=-1).max(axis=-1)
    k_norm = np.where(visible, np.linalg.norm(k_cmp, axis=-1).T, 0).max(axis=-1, initial=0)
    return 2.0**-20 * (1 + nsa_numpy.scale(case.cfg) * q_norm * k_norm)


def assert_same_selection(case, q, k_cmp, got):
    cfg = case.cfg
    for s in case.sequences():
        score, t = exact_scores(case, q, k_cmp, s)
        visible = nsa_numpy.visible_cmp(cfg, t, s.cmp.stop - s.cmp.start)
        tolerance = slack(case, q[s.q], k_cmp[s.cmp], visible)
        want = nsa_numpy.select(cfg, score, t)
        for r, h in np.ndindex(want.shape[:2]):
            mine, theirs = want[r, h], got[s.q][r, h]
            if np.array_equal(mine, theirs):
                continue
            n = min(cfg.slc_topk, t[r] // cfg.slc_block + 1)
            chosen = theirs[:n]
            where = f"{case.name}: row {r} of a sequence, kv head {h}: {theirs}, expected {mine}"
            assert (np.diff(chosen) > 0).all() and chosen[0] >= 0 and (theirs[n:] == -1).all(), where
            assert chosen[-1] <= t[r] // cfg.slc_block, where
            forced = nsa_numpy.forced_blocks(cfg, t[r : r + 1], np.arange(score.shape[-1]))[0]
            assert set(np.flatnonzero(forced)) <= set(chosen), where
            lowest = min(score[r, h, b] for b in mine[:n] if not forced[b])
            for b in set(mine[:n]) ^ set(chosen):
                assert abs(score[r, h, b] - lowest) <= tolerance[r, h] * lowest + 2.0**-118, where
