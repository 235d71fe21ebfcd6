"""The gated sum against NumPy, forward and backward; a gate per head and a gate per token."""
import unittest

import numpy as np

import harness
import nsa_c
import nsa_numpy as nsa
from harness import BF16, assert_accurate, assert_close, each_case, row_max, to_float, ulp


class Gate(unittest.TestCase):
    ctx = nsa_c.Context(n_threads=2)

    @each_case
    def test_f64(self, case):
        for per_token in (False, True):
            gate, o_branch, d_o = case.gate(per_token=per_token), [case.o() for _ in range(3)], case.o()
            assert_close(self.ctx.gate(case.cfg, case.batch, gate, o_branch), nsa.gate_sum(gate, o_branch), "o")
            dgate, do_branch = self.ctx.gate_backward(case.cfg, case.batch, gate, o_branch, d_o)
            want_dgate, want_do_branch = nsa.gate_backward(gate, o_branch, d_o)
            assert_close(dgate, want_dgate, "dgate")
            for x, want in zip(do_branch, want_do_branch):
                assert_close(x, want, "do_branch")

    @each_case
    def test_other_types(self, case):
        for dtype in (np.float32, np.float16, BF16):
            for gate_dtype in dict.fromkeys((dtype, np.float32)):
                gate, o_branch, d_o = case.gate(gate_dtype), [case.o(dtype) for _ in range(3)], case.o(dtype)
                wide = to_float(gate), [to_float(o) for o in o_branch]
                o, d_o_wide = nsa.gate_sum(*wide), to_float(d_o)
                dgate, do_branch = nsa.gate_backward(*wide, d_o_wide)
                ref = [o, dgate, *do_branch]
                sizes = [nsa.gate_sum(wide[0], np.abs(wide[1])),
                         nsa.gate_backward(wide[0], np.abs(wide[1]), np.abs(d_o_wide))[0], *map(np.abs, do_branch)]
                types = [dtype, gate_dtype, dtype, dtype, dtype]
                for ctx in (self.ctx, nsa_c.Context(n_threads=2, reference=True)):
                    got_dgate, got_do_branch = ctx.gate_backward(case.cfg, case.batch, gate, o_branch, d_o)
                    got = [ctx.gate(case.cfg, case.batch, gate, o_branch), got_dgate, *got_do_branch]
                    for x, r, size, type_ in zip(got, ref, sizes, types):
                        atol = 4 * ulp(row_max(size), np.float32)
                        assert_accurate(x, r, r, type_, f"{case.name} {np.dtype(dtype)} {ctx.isa}", atol)


if __name__ == "__main__":
    harness.main()
