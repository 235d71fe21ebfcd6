"""The NumPy oracle against itself: its gradients by complex step, equation 9 against overlaps counted by hand."""
import math
import unittest

import numpy as np

import harness
import nsa_numpy as nsa
from harness import PHI_KINDS, Case

STEP = 1e-30


def complex_step(loss, x):
    """d loss / dx, coordinate by coordinate, exact to rounding: Im loss(x + i step) / step."""
    grad = np.empty_like(x)
    for i in np.ndindex(x.shape):
        z = x.astype(np.complex128)
        z[i] += 1j * STEP
        grad[i] = loss(z).imag / STEP
    return grad


def small(name, t_q=11, t_k=14, **changes):
    return Case(name, [(t_q, t_k)], **{"n_heads_q": 3, "n_heads_kv": 1, "d_qk": 3, "d_v": 2, **changes})


class Gradients(unittest.TestCase):
    def check(self, loss, inputs, grads):
        for name, x in inputs.items():
            with self.subTest(name):
                want = complex_step(lambda z: loss(**{**inputs, name: z}), x)
                harness.assert_close(grads[name], want, name, rel=1e-12, atol=1e-13)

    def test_attn(self):
        case = small("group 3")
        inputs = dict(q=case.q(), k=case.k(), v=case.v())
        d_o = case.o()
        t = nsa.positions(11, 14)
        for visible in (nsa.visible_win(case.cfg, t, 14), nsa.visible_slc(case.cfg, t, 14, case.slc_idx()),
                        nsa.visible_cmp(case.cfg, t - 9, 14)):
            def loss(q, k, v):
                return (nsa.attn(q, k, v, visible, 0.6)[0] * d_o).sum()
            o, lse = nsa.attn(*inputs.values(), visible, 0.6)
            grads = nsa.attn_backward(*inputs.values(), visible, 0.6, o, lse, d_o)
            self.check(loss, inputs, dict(zip(inputs, grads)))

    def test_compress(self):
        for kind in PHI_KINDS:
            for per_head in (False, True):
                case = small("group 1", n_heads_q=2, n_heads_kv=2)
                phi = case.phi(kind, 3, per_head)
                x, dy = case.k(), case.random(nsa.n_cmp(case.cfg, 14), 2, 3)
                members = {m: getattr(phi, m) for m in nsa.PHI_MEMBERS if getattr(phi, m) is not None}

                def loss(x, **members):
                    return (with_type(x, case.cfg, phi, members) * dy).sum()

                def with_type(x, cfg, phi, members):
                    for p in members.values():  # a complex parameter makes the tokens complex
                        x = x + 0 * p.flat[0]
                    return nsa.compress(cfg, type(phi)(phi.kind, phi.per_head, **members), x)

                dx, dphi = nsa.compress_backward(case.cfg, phi, x, dy)
                self.assertEqual(set(dphi), set(members))
                with self.subTest(kind=kind, per_head=per_head):
                    self.check(loss, dict(x=x, **members), dict(x=dx, **dphi))

    def test_whole(self):
        """All inputs of the whole at once, selection held fixed."""
        case = small("group 1", n_heads_q=4, n_heads_kv=2)
        names = ("q0", "q1", "q2", "k0", "k1", "k2", "v0", "v1", "v2")
        inputs = dict(zip(names, [f() for f in (case.q, case.k, case.v) for _ in range(3)]))
        inputs["gate"] = np.array(case.gate())
        phi_k, phi_v = case.phi("mlp", 3), case.phi("gated_channel", 2, per_head=True)
        d_o = case.o()

        def arguments(gate, **x):
            return ([x["q0"], x["q1"], x["q2"]], [x["k0"], x["k1"], x["k2"]], [x["v0"], x["v1"], x["v2"]], gate)

        fwd = nsa.forward(case.cfg, *arguments(**inputs), phi_k, phi_v)

        def loss(**x):
            return (nsa.forward(case.cfg, *arguments(**x), phi_k, phi_v, slc_idx=fwd.slc_idx).o * d_o).sum()

        out = nsa.backward(case.cfg, *arguments(**inputs), fwd, d_o, phi_k, phi_v)
        self.check(loss, inputs, {**dict(zip(names, out.dq + out.dk + out.dv)), "gate": out.dgate})

    def test_erf(self):
        x = np.linspace(-8, 8, 4001)
        want = np.array([math.erf(t) for t in x])
        self.assertLess(np.abs(nsa.erf(x) - want).max(), 4e-15)


def overlap(block, stride, slc_block, i, j):
    """Tokens that compressed block i and selection block j share."""
    return len(set(range(i * stride, i * stride + block)) & set(range(j * slc_block, (j + 1) * slc_block)))


class Selection(unittest.TestCase):
    def test_equation_9_is_the_overlap(self):
        rng = np.random.default_rng(9)
        for stride in (1, 2, 3, 4, 16):
            for per_cmp in (1, 2, 3, 4, 5):
                for per_slc in range(per_cmp, 9):
                    block, slc_block = per_cmp * stride, per_slc * stride
                    cfg = Case("group 1", cmp_block=block, cmp_stride=stride, slc_block=slc_block).cfg
                    t_k = 5 * slc_block + stride - 1
                    n, n_blocks = nsa.n_cmp(cfg, t_k), 6
                    P = rng.random((1, 1, n))
                    weights = np.array([[overlap(block, stride, slc_block, i, j) for i in range(n)]
                                        for j in range(n_blocks)]) / stride
                    score = nsa.block_scores(cfg, P, n_blocks)
                    np.testing.assert_allclose(score[0, 0], weights @ P[0, 0], rtol=1e-13, atol=1e-15)
                    np.testing.assert_allclose(score.sum(), block // stride * P.sum(), rtol=1e-13)

    def test_the_papers_weights(self):
        cfg = Case("group 1", cmp_block=32, cmp_stride=16, slc_block=64).cfg
        weights = nsa.block_scores(cfg, np.eye(20)[:, None], 5)[:, 0]
        self.assertEqual(list(weights[7:12, 2]), [1, 2, 2, 2, 1])
        self.assertEqual(weights[:, 2].sum(), 8)

    def test_order_of_choice(self):
        cfg = Case("group 1", cmp_block=2, cmp_stride=2, slc_block=2, slc_topk=4, slc_n_init=1, slc_n_local=1).cfg
        score = np.float32([[[0, 3, np.nan, 5, 3, 3, 0, 9]]])
        for t, want in ((-1, [-1, -1, -1, -1]), (0, [0, -1, -1, -1]), (5, [0, 1, 2, -1]), (13, [0, 1, 3, 6]),
                        (11, [0, 1, 3, 5]), (9, [0, 1, 3, 4])):
            self.assertEqual(list(nsa.select(cfg, score, np.array([t]))[0, 0]), want, t)


if __name__ == "__main__":
    harness.main()
