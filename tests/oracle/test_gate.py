"""The gated sum in float64 against NumPy, forward and backward; a gate per head and a gate per token."""
import unittest

import harness
import nsa_c
import nsa_numpy as nsa
from harness import Case, assert_close, each_case


class Gate(unittest.TestCase):
    ctx = nsa_c.Context(n_threads=2)

    @each_case
    def test_gate(self, case):
        for per_token in (False, True):
            gate, o_branch, d_o = case.gate(per_token=per_token), [case.o() for _ in range(3)], case.o()
            assert_close(self.ctx.gate(case.cfg, case.batch, gate, o_branch), nsa.gate_sum(gate, o_branch), "o")
            dgate, do_branch = self.ctx.gate_backward(case.cfg, case.batch, gate, o_branch, d_o)
            want_dgate, want_do_branch = nsa.gate_backward(gate, o_branch, d_o)
            assert_close(dgate, want_dgate, "dgate")
            for x, want in zip(do_branch, want_do_branch):
                assert_close(x, want, "do_branch")


if __name__ == "__main__":
    harness.main()
