"""nsa_backward against differences of nsa_forward itself, in float64, the selection given and so constant."""
import unittest

import numpy as np

import harness
import nsa_c
import nsa_numpy as nsa
from harness import PHI_KINDS, Case

STEP = 2.0**-12
STENCIL = ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12))  # fourth order


class Gradients(unittest.TestCase):
    ctx = nsa_c.Context(n_threads=2)

    def check(self, case, kind_k, kind_v, per_head=False):
        cfg, batch = case.cfg, case.batch
        x = {f"{name}{c}": make() for name, make in (("q", case.q), ("k", case.k), ("v", case.v)) for c in range(3)}
        x["gate"] = np.array(case.gate())
        d_o, slc_idx, phi = case.o(), case.slc_idx(), [None, None]
        if kind_k is None:
            x["k_cmp"], x["v_cmp"] = case.cmp_rows(cfg.d_qk), case.cmp_rows(cfg.d_v)
        else:
            phi = [case.phi(kind_k, cfg.d_qk, per_head), case.phi(kind_v, cfg.d_v, not per_head)]
            for name, p in zip("kv", phi):
                x.update({f"phi_{name}.{m}": getattr(p, m) for m in nsa.PHI_MEMBERS if getattr(p, m) is not None})

        def arguments(x):
            return (cfg, batch, *([x[f"{name}{c}"] for c in range(3)] for name in "qkv"), x["gate"])

        def phis(x):
            return [p and nsa_c.Phi(p.kind, p.per_head, **{m: x[f"phi_{name}.{m}"] for m in nsa.PHI_MEMBERS
                                                           if f"phi_{name}.{m}" in x}) for name, p in zip("kv", phi)]

        def forward(x):
            return self.ctx.forward(*arguments(x), *phis(x), x.get("k_cmp"), x.get("v_cmp"), slc_idx)

        grad = self.ctx.backward(*arguments(x), forward(x), d_o, *phi)
        got = {f"{name}{c}": getattr(grad, f"d{name}")[c] for name in "qkv" for c in range(3)}
        got.update(gate=grad.dgate, k_cmp=grad.dk_cmp, v_cmp=grad.dv_cmp)
        for name, dphi in (("k", grad.dphi_k), ("v", grad.dphi_v)):
            got.update({f"phi_{name}.{m}": getattr(dphi, m) for m in nsa.PHI_MEMBERS if dphi})

        for name in x:
            if kind_k is None and name in ("k0", "v0"):
                continue  # not read, not written
            unused = np.isnan(got[name])
            self.assertFalse("cmp" not in name and unused.any(), name)
            for _ in range(3):
                u = case.random(*x[name].shape)
                slope = sum(w * (forward({**x, name: x[name] + i * STEP * u}).o * d_o).sum() for i, w in STENCIL) / STEP
                terms = np.where(unused, 0, got[name] * u)
                tolerance = 1e-8 * (1 + np.sqrt((terms**2).sum()))
                self.assertAlmostEqual(terms.sum(), slope, delta=tolerance, msg=f"{case.name}: d{name}")

    def test_own_compressed(self):
        for name in harness.CONFIGS:
            with self.subTest(name):
                self.check(Case(name), None, None)

    def test_phi(self):
        for name in ("group 1", "group 3"):
            for i, kind in enumerate(PHI_KINDS):
                with self.subTest(name, kind=kind):
                    self.check(Case(name), kind, PHI_KINDS[-i], per_head=i % 2 == 0)


if __name__ == "__main__":
    harness.main()
