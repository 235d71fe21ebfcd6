"""The golden vectors: made again they are the same bytes, and the library agrees with them in every type, on every
instruction set and token by token."""
import json
import os
import unittest

import numpy as np

import harness
import make_golden
import nsa_c
import nsa_numpy as nsa
import vectors
from harness import BF16, assert_accurate, assert_close, to_dtype, to_float


def contexts():
    """The default context, then one for each instruction set below it."""
    disabled = []
    while True:
        os.environ["NSA_DISABLE_CPU"] = ",".join(disabled)
        ctx = nsa_c.Context(n_threads=2)
        yield ctx
        if ctx.isa == "scalar":
            del os.environ["NSA_DISABLE_CPU"]
            return
        disabled.append(ctx.isa)


class Golden:
    """A file as arguments of the library, in one type."""

    def __init__(self, name, dtype):
        self.name, self.dtype = name, dtype
        self.tensors, metadata = vectors.load(os.path.join(make_golden.HERE, f"{name}.safetensors"))
        self.cfg = nsa_c.config(**json.loads(metadata["config"]))
        self.cu_q, self.cu_k = self.tensors["cu_seqlens_q"], self.tensors["cu_seqlens_k"]
        self.batch = nsa_c.batch(self.cu_q, self.cu_k)
        typed = {key: x if x.dtype == np.int32 else to_dtype(x, dtype) for key, x in self.tensors.items()}
        self.q, self.k, self.v = (vectors.per_branch(typed, key) for key in "qkv")
        self.gate, self.d_o, self.phi = typed.get("gate"), typed["d_o"], None
        if "phi_k" in metadata:
            self.phi = [nsa_c.Phi(**json.loads(metadata[key]), **{m: typed.get(f"{key}.{m}") for m in nsa.PHI_MEMBERS})
                        for key in ("phi_k", "phi_v")]

    def cmp_rows(self):
        """Where the library has the compressed rows of the file, which lie in it without gaps."""
        cu = self.tensors["cu_seqlens_cmp"]
        return np.concatenate([first // self.cfg.cmp_stride + np.arange(n)
                               for first, n in zip(self.cu_k, np.diff(cu))])

    def run(self, ctx, slc_idx=None):
        """What the library makes of it, by the names of the file."""
        if self.phi is None:
            return self.run_slc_attn(ctx)
        args = self.cfg, self.batch, self.q, self.k, self.v, self.gate
        fwd = ctx.forward(*args, *self.phi, slc_idx=slc_idx)
        grad = ctx.backward(*args, fwd, self.d_o, *self.phi)
        rows = self.cmp_rows()
        out = dict(k_cmp=fwd.k_cmp[rows], v_cmp=fwd.v_cmp[rows], slc_idx=fwd.slc_idx, o=fwd.o, dgate=grad.dgate)
        for c, b in enumerate(vectors.BRANCHES):
            out.update({f"o.{b}": fwd.o_branch[c], f"lse.{b}": fwd.lse[c][..., 0], f"dq.{b}": grad.dq[c],
                        f"dk.{b}": grad.dk[c], f"dv.{b}": grad.dv[c]})
        for key in ("dphi_k", "dphi_v"):
            members = {f"{key}.{m}": getattr(getattr(grad, key), m) for m in nsa.PHI_MEMBERS}
            out.update({name: x for name, x in members.items() if x is not None})
        return {**out, **self.compressed_gradients(ctx, fwd)}

    def compressed_gradients(self, ctx, fwd):
        """dk_cmp, dv_cmp: what backward gives without phi."""
        grad = ctx.backward(self.cfg, self.batch, self.q, self.k, self.v, self.gate, fwd, self.d_o)
        return {key: getattr(grad, key)[self.cmp_rows()] for key in ("dk_cmp", "dv_cmp")}

    def run_slc_attn(self, ctx):
        q, k, v, slc_idx = self.q[0], self.k[0], self.v[0], self.tensors["slc_idx"]
        o, lse = ctx.attn("slc", self.cfg, self.batch, q, k, v, slc_idx)
        grads = ctx.attn_backward("slc", self.cfg, self.batch, q, k, v, o, lse, self.d_o, slc_idx)
        return {"o.slc": o, "lse.slc": lse[..., 0], **dict(zip(("dq.slc", "dk.slc", "dv.slc"), grads))}

    def generate(self, ctx):
        """o and slc_idx of the sequences token by token through the cache."""
        cfg, counts = self.cfg, np.diff(self.cu_q)
        page = 2 * cfg.slc_block
        shared_kv = "k" in self.tensors
        cache = nsa_c.Cache(ctx, cfg, self.dtype, int((counts // page + 1).sum()), page, shared_kv=shared_kv)
        sequences = [cache.sequence() for _ in counts]
        o, slc_idx = nsa_c.empty(self.d_o.shape, self.dtype), np.array(self.tensors["slc_idx"])
        for step in range(counts.max()):
            rows = (self.cu_q[:-1] + step)[step < counts]
            args = ([x[rows] for x in xs] for xs in (self.q, self.k, self.v))
            live = [s for s, n in zip(sequences, counts) if step < n]
            o[rows], slc_idx[rows] = cache.append(live, np.arange(len(live) + 1), *args, self.gate[rows], *self.phi,
                                                  op="decode")
        return o, slc_idx


class Vectors(unittest.TestCase):
    @unittest.skipUnless(np.finfo(np.longdouble).nmant == 63, "the files were computed in 80-bit long double")
    def test_made_again(self):
        for name in make_golden.CASES:
            with open(os.path.join(make_golden.HERE, f"{name}.safetensors"), "rb") as f:
                self.assertTrue(f.read() == make_golden.make(name), name)

    def test_inputs_are_exact_in_every_type(self):
        for name, case in make_golden.CASES.items():
            tensors = vectors.load(os.path.join(make_golden.HERE, f"{name}.safetensors"))[0]
            for key, x in make_golden.Inputs(**case).tensors.items():
                self.assertTrue(np.array_equal(tensors[key], x), key)
                for dtype in (np.float32, np.float16, BF16):
                    if x.dtype == np.float64:
                        np.testing.assert_array_equal(to_float(to_dtype(x, dtype)), x, key)


class Library(unittest.TestCase):
    def test_f64(self):
        for name in make_golden.CASES:
            golden = Golden(name, np.float64)
            for key, x in golden.run(nsa_c.Context(n_threads=2)).items():
                if key == "slc_idx":
                    np.testing.assert_array_equal(x, golden.tensors[key], name)
                else:
                    assert_close(x, golden.tensors[key], f"{name}: {key}", rel=1e-12)

    def check(self, name, dtype, ctx):
        """The library's rule. Each side makes its own k_cmp here, so a row is allowed what the rounded reference's worst
        row has, and 4 ulp of the largest element of its kin, against which what cancels to 0 is measured."""
        golden, single = Golden(name, dtype), dtype == np.float32
        inputs, want = make_golden.Inputs(**make_golden.CASES[name]), golden.tensors
        rounding = (np.float32, nsa.exact) if single else (np.float64, harness.rounding(dtype))
        if golden.phi is None:
            got, rounded = golden.run_slc_attn(ctx), make_golden.slc_attn(inputs, *rounding)
        else:  # in float32 by the library's own choice of blocks
            got = golden.run(ctx, None if single else want["slc_idx"])
            rounded = make_golden.whole(inputs, *rounding, want["slc_idx"])
            np.testing.assert_array_equal(got.pop("slc_idx"), want["slc_idx"], f"{name} {ctx.isa}")
        largest = {}
        for key in got:
            kin = key.split(".")[0]
            largest[kin] = max(largest.get(kin, 0), np.abs(want[key][np.isfinite(want[key])]).max(initial=0))
        for key, x in got.items():
            type_ = np.float32 if key.startswith("lse") else dtype
            there = np.isfinite(want[key])
            worst = np.abs(rounded[key][there] - want[key][there]).max(initial=0)
            atol = 2 * worst + 4 * harness.ulp(largest[key.split(".")[0]], type_)
            assert_accurate(x, want[key], want[key], type_, f"{name} {np.dtype(dtype)} {ctx.isa}: {key}", atol)

    def test_other_types(self):
        for ctx in contexts():
            for name in make_golden.CASES:
                for dtype in (np.float32, np.float16, BF16):
                    with self.subTest(name, dtype=np.dtype(dtype), isa=ctx.isa):
                        self.check(name, dtype, ctx)

    def test_token_by_token(self):
        for name in ("branches", "overlap", "uniform", "ties"):
            golden = Golden(name, np.float64)
            o, slc_idx = golden.generate(nsa_c.Context(n_threads=2))
            np.testing.assert_array_equal(slc_idx, golden.tensors["slc_idx"], name)
            assert_close(o, golden.tensors["o"], name, rel=1e-12)


if __name__ == "__main__":
    harness.main()
