"""The ctypes structs against the C compiler's, and what the binding itself promises."""
import ctypes
import pathlib
import shutil
import subprocess
import tempfile
import unittest

import numpy as np

import harness
import nsa_c
import nsa_numpy

INCLUDE = pathlib.Path(__file__).resolve().parents[2] / "include"


class Layout(unittest.TestCase):
    def test_config_size(self):
        self.assertEqual(nsa_c.config().struct_size, ctypes.sizeof(nsa_c.nsa_config))

    @unittest.skipUnless(shutil.which("cc"), "no C compiler")
    def test_every_member(self):
        structs = [x for x in vars(nsa_c).values()
                   if isinstance(x, type) and issubclass(x, ctypes.Structure) and x.__module__ == "nsa_c"]
        self.assertGreater(len(structs), 10)
        want, lines = [], []
        for struct in structs:
            name = struct.__name__
            want.append(f"{name} {ctypes.sizeof(struct)}")
            lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
            for member, _ in struct._fields_:
                field = getattr(struct, member)
                want.append(f"{name}.{member} {field.offset} {field.size}")
                lines.append(f'printf("{name}.{member} %zu %zu\\n", offsetof({name}, {member}), '
                             f"sizeof((({name} *)0)->{member}));")
        with tempfile.TemporaryDirectory() as folder:
            source, program = pathlib.Path(folder, "layout.c"), pathlib.Path(folder, "layout")
            source.write_text("#include <nsa.h>\n#include <stdio.h>\nint main(void) {\n" + "\n".join(lines) + "\n}\n")
            subprocess.run(["cc", "-std=c11", "-I", INCLUDE, source, "-o", program], check=True)
            got = subprocess.run([program], check=True, capture_output=True, text=True).stdout.splitlines()
        self.assertEqual(got, want)


class Values(unittest.TestCase):
    def test_the_papers_configuration(self):
        cfg = nsa_c.config()
        self.assertEqual((cfg.n_heads_q, cfg.n_heads_kv, cfg.d_qk, cfg.d_v), (64, 4, 192, 128))
        self.assertEqual((cfg.cmp_block, cfg.cmp_stride, cfg.slc_block), (32, 16, 64))
        self.assertEqual((cfg.slc_topk, cfg.slc_n_init, cfg.slc_n_local, cfg.win_size), (16, 1, 2, 512))

    def test_n_cmp(self):
        for block, stride in ((32, 16), (4, 4), (5, 1), (1, 1)):
            cfg = nsa_c.config(cmp_block=block, cmp_stride=stride)
            for n in (0, 1, block - 1, block, block + 1, block + stride - 1, block + stride, 1000):
                self.assertEqual(nsa_c.lib.nsa_n_cmp(ctypes.byref(cfg), n), nsa_numpy.n_cmp(cfg, n))

    def test_bf16(self):
        x = np.float32([0, -0.0, 1, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-7, np.inf, -np.inf, np.nan, 3.4e38, 2**-133])
        want = np.float32([0, -0.0, 1, 1, 1 + 2**-6, 1 + 2**-7, np.inf, -np.inf, np.nan, np.inf, 2**-133])
        np.testing.assert_array_equal(nsa_c.from_bf16(nsa_c.to_bf16(x)), want)

    def test_errors_are_raised(self):
        with self.assertRaisesRegex(nsa_c.Error, "n_threads is -1") as caught:
            nsa_c.Context(n_threads=-1)
        self.assertEqual(caught.exception.status, "INVALID_ARGUMENT")

    def test_strides(self):
        x = np.zeros((5, 4, 3))
        self.assertEqual(nsa_c.tensor(x.transpose(1, 0, 2)).stride_token, 3)
        self.assertEqual(nsa_c.tensor(np.broadcast_to(x[:, :1], x.shape)).stride_head, 0)
        padded = nsa_c.tensor(np.zeros((2, 5, 4, 3), np.uint16))
        self.assertEqual((padded.stride_seq, padded.stride_token, padded.stride_head, padded.dtype), (60, 12, 3, 1))
        with self.assertRaises(ValueError):
            nsa_c.tensor(x.transpose(2, 1, 0))


if __name__ == "__main__":
    harness.main()
