"""libnsa from Python: include/nsa.h over ctypes, NumPy arrays in and out.

    ctx = nsa_c.Context(n_threads=2)
    cfg = nsa_c.config(n_heads_q=4, n_heads_kv=2, d_qk=32, d_v=32)
    batch = nsa_c.batch([0, 300, 500])                          # two sequences: 300 and 200 tokens
    mean = nsa_c.Phi("mean")
    fwd = ctx.forward(cfg, batch, [q] * 3, [k] * 3, [v] * 3, gate, mean, mean)
    grad = ctx.backward(cfg, batch, [q] * 3, [k] * 3, [v] * 3, gate, fwd, d_o, mean, mean)

Arrays are [token, head, channel], or padded [seq, token, head, channel], of any strides the library takes; float64,
float32, float16, int32, and uint16 for bf16 (to_bf16, from_bf16). Outputs are made here, filled with NaN, unless they
are given. A failing call raises Error with the library's message. The library is the file named in NSA_LIBRARY.
"""
import ctypes
import os
from ctypes import POINTER, Structure, byref, c_char_p, c_double, c_int, c_int32, c_int64, c_size_t, c_uint32, c_void_p
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

CMP, SLC, WIN = 0, 1, 2
N_BRANCHES = 3
STATUS = ("OK", "INVALID_ARGUMENT", "UNSUPPORTED", "WORKSPACE", "OUT_OF_MEMORY", "NO_DEVICE", "DEVICE")
DTYPES = {np.dtype(np.float32): 0, np.dtype(np.uint16): 1, np.dtype(np.float16): 2, np.dtype(np.float64): 3,
          np.dtype(np.int32): 4}
PHI_KINDS = ("mean", "linear", "gated_token", "gated_channel", "mlp")


# ---- bf16 -----------------------------------------------------------------------------------------------------------


def to_bf16(x):
    """Nearest bf16, ties to even, as uint16."""
    x = np.asarray(x, np.float32)
    u = x.view(np.uint32).astype(np.uint64)
    rounded = (u + 0x7FFF + (u >> 16 & 1)) >> 16
    return np.where(np.isnan(x), u >> 16 | 0x40, rounded).astype(np.uint16)


def from_bf16(h):
    return (h.astype(np.uint32) << 16).view(np.float32)


# ---- The structs of nsa.h, member by member -------------------------------------------------------------------------


class nsa_ctx_options(Structure):
    _fields_ = [("struct_size", c_uint32), ("device", c_int), ("n_threads", c_int32), ("reference", c_int32),
                ("device_index", c_int32)]


class nsa_config(Structure):
    _fields_ = [("struct_size", c_uint32), ("n_heads_q", c_int32), ("n_heads_kv", c_int32), ("d_qk", c_int32),
                ("d_v", c_int32), ("cmp_block", c_int32), ("cmp_stride", c_int32), ("slc_block", c_int32),
                ("slc_topk", c_int32), ("slc_n_init", c_int32), ("slc_n_local", c_int32), ("win_size", c_int32),
                ("scale", c_double)]


class nsa_batch(Structure):
    _fields_ = [("n_seqs", c_int32), ("max_seqlen_q", c_int32), ("max_seqlen_k", c_int32), ("total_q", c_int64),
                ("total_k", c_int64), ("cu_seqlens_q", c_void_p), ("cu_seqlens_k", c_void_p)]


class nsa_tensor(Structure):
    _fields_ = [("data", c_void_p), ("dtype", c_int), ("stride_seq", c_int64), ("stride_token", c_int64),
                ("stride_head", c_int64)]


class nsa_phi(Structure):
    _fields_ = [("kind", c_int), ("dtype", c_int), ("per_head", c_int32), ("d_hidden", c_int32), ("pe", c_void_p),
                ("w1", c_void_p), ("b1", c_void_p), ("w2", c_void_p), ("b2", c_void_p)]


def tensors(*names):
    return [(name, nsa_tensor) for name in names]


def per_branch(*names):
    return [(name, nsa_tensor * N_BRANCHES) for name in names]


class nsa_compress_args(Structure):
    _fields_ = [("d", c_int32), ("phi", nsa_phi)] + tensors("x", "y")


class nsa_compress_backward_args(Structure):
    _fields_ = [("d", c_int32), ("phi", nsa_phi)] + tensors("x", "dy", "dx") + [("dphi", nsa_phi)]


class nsa_attn_args(Structure):
    _fields_ = tensors("q", "k", "v", "slc_idx", "o", "lse")


class nsa_attn_backward_args(Structure):
    _fields_ = [("fwd", nsa_attn_args)] + tensors("d_o", "dq", "dk", "dv")


class nsa_select_args(Structure):
    _fields_ = tensors("q", "k_cmp", "lse", "slc_idx")


class nsa_gate_args(Structure):
    _fields_ = tensors("gate") + per_branch("o_branch") + tensors("o")


class nsa_gate_backward_args(Structure):
    _fields_ = tensors("gate") + per_branch("o_branch") + tensors("d_o", "dgate") + per_branch("do_branch")


class nsa_forward_args(Structure):
    _fields_ = (per_branch("q", "k", "v") + tensors("gate") +
                [("phi_k", POINTER(nsa_phi)), ("phi_v", POINTER(nsa_phi)), ("slc_idx_given", c_int32)] +
                tensors("o", "k_cmp", "v_cmp", "slc_idx") + per_branch("o_branch", "lse"))


class nsa_backward_args(Structure):
    _fields_ = ([("fwd", nsa_forward_args)] + tensors("d_o") + per_branch("dq", "dk", "dv") + tensors("dgate") +
                [("dphi_k", POINTER(nsa_phi)), ("dphi_v", POINTER(nsa_phi))] + tensors("dk_cmp", "dv_cmp"))


class nsa_cache(Structure):
    _fields_ = [("page_size", c_int32), ("max_draft", c_int32), ("shared_kv", c_int32), ("dtype", c_int),
                ("n_pages", c_int64), ("pages", c_void_p)]


class nsa_cache_args(Structure):
    _fields_ = ([("n_seqs", c_int32), ("max_seqlen", c_int32), ("total", c_int64), ("cu_seqlens", c_void_p),
                 ("states", POINTER(c_void_p)), ("page_table", c_void_p), ("pages_per_seq", c_int32)] + per_branch("q", "k", "v") +
                tensors("gate") + [("phi_k", POINTER(nsa_phi)), ("phi_v", POINTER(nsa_phi))] +
                tensors("o", "slc_idx"))


# ---- The library ----------------------------------------------------------------------------------------------------

lib = ctypes.CDLL(os.environ["NSA_LIBRARY"])
for name in ("nsa_version", "nsa_last_error", "nsa_ctx_isa", "nsa_status_string"):
    getattr(lib, name).restype = c_char_p
lib.nsa_ctx_isa.argtypes = lib.nsa_ctx_destroy.argtypes = lib.nsa_ctx_threads.argtypes = [c_void_p]
lib.nsa_n_cmp.argtypes, lib.nsa_n_cmp.restype = [c_void_p, c_int64], c_int64


class Error(Exception):
    def __init__(self, status, message):
        super().__init__(message)
        self.status = STATUS[status]


def check(status):
    if status != 0:
        raise Error(status, lib.nsa_last_error().decode())


def config(**fields):
    """nsa_config_init's values (the paper's), with `fields` set."""
    cfg = nsa_config()
    lib.nsa_config_init(byref(cfg))
    for name, value in fields.items():
        if name not in dict(nsa_config._fields_):
            raise TypeError(f"nsa_config has no member {name}")
        setattr(cfg, name, value)
    return cfg


def batch(cu_seqlens_q, cu_seqlens_k=None):
    """Sequences packed one after the other: their bounds in the query tokens and, if they differ, the key tokens."""
    q = np.ascontiguousarray(cu_seqlens_q, np.int32)
    k = q if cu_seqlens_k is None else np.ascontiguousarray(cu_seqlens_k, np.int32)
    b = nsa_batch(len(q) - 1, np.diff(q).max(initial=0), np.diff(k).max(initial=0), q[-1], k[-1], q.ctypes.data,
                  k.ctypes.data)
    b.arrays = q, k  # the struct holds only their addresses
    return b


def tensor(x):
    """The nsa_tensor of an array, which must outlive it; of None: data = NULL."""
    if x is None:
        return nsa_tensor()
    if x.ndim not in (3, 4):
        raise ValueError(f"an array of {x.ndim} dimensions; [token, head, channel] or [seq, token, head, channel]")
    if x.size > 0 and x.shape[-1] > 1 and x.strides[-1] != x.itemsize:
        raise ValueError("channels must be contiguous")
    strides = [stride // x.itemsize for stride in x.strides[:-1]]
    if x.ndim == 4 and x.size > 0 and strides[0] == 0:
        raise ValueError("sequences cannot be broadcast: stride_seq = 0 stands for packed")
    return nsa_tensor(x.ctypes.data, DTYPES[x.dtype], *([0] * (3 - len(strides)) + strides))


def branches(xs):
    return (nsa_tensor * N_BRANCHES)(*map(tensor, xs))


def empty(shape, dtype):
    """An output: NaN, so that what is not written shows."""
    dtype = np.dtype(dtype)
    if dtype == np.uint16:
        return np.full(shape, 0x7FC0, dtype)
    return np.full(shape, np.nan if dtype.kind == "f" else -12345, dtype)


def aligned(n_bytes):
    """n_bytes at an address divisible by 64, filled with what reads as NaN in every type."""
    raw = np.full(n_bytes + 63, 0xFF, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + n_bytes]


def lse_dtype(x):
    return np.float64 if x.dtype == np.float64 else np.float32


@dataclass
class Phi:
    """How a block is compressed; or, with the same members set, the gradients of that."""
    kind: str
    per_head: bool = False
    pe: np.ndarray = None
    w1: np.ndarray = None
    b1: np.ndarray = None
    w2: np.ndarray = None
    b2: np.ndarray = None

    def struct(self):
        members = [self.pe, self.w1, self.b1, self.w2, self.b2]
        given = [m for m in members if m is not None]
        if any(m.dtype != given[0].dtype or not m.flags.c_contiguous for m in given):
            raise ValueError("the parameters of a phi must be contiguous and of one type")
        return nsa_phi(PHI_KINDS.index(self.kind), DTYPES[given[0].dtype] if given else 0, self.per_head,
                       self.w1.shape[-1] if self.kind == "mlp" else 0,
                       *(None if m is None else m.ctypes.data for m in members))

    def pointer(self):
        return ctypes.pointer(self.struct())

    def map(self, f):
        """The same with f of every member that it has."""
        members = self.pe, self.w1, self.b1, self.w2, self.b2
        return Phi(self.kind, self.per_head, *(None if m is None else f(m) for m in members))

    def like(self):
        """Room for the gradients."""
        return self.map(lambda m: empty(m.shape, m.dtype))


def pointer(phi):
    return None if phi is None else phi.pointer()


# ---- The operations -------------------------------------------------------------------------------------------------


class Context:
    def __init__(self, n_threads=0, reference=False):
        self.handle = c_void_p()
        options = nsa_ctx_options(ctypes.sizeof(nsa_ctx_options), 0, n_threads, reference, 0)
        check(lib.nsa_ctx_create(byref(self.handle), byref(options)))

    def __del__(self):
        lib.nsa_ctx_destroy(self.handle)

    @property
    def isa(self):
        return lib.nsa_ctx_isa(self.handle).decode()

    def run(self, op, *args):
        """Asks how much workspace op needs, and runs it."""
        refs = [byref(a) for a in args]
        n_bytes = c_size_t()
        check(lib[f"nsa_{op}_workspace"](self.handle, *refs, byref(n_bytes)))
        workspace = aligned(n_bytes.value)
        check(lib[f"nsa_{op}"](self.handle, *refs, c_void_p(workspace.ctypes.data), n_bytes, None))

    def compress(self, cfg, batch, phi, x, y=None):
        if y is None:
            y = empty((batch.total_k // cfg.cmp_stride,) + x.shape[1:], x.dtype)
        self.run("compress", cfg, batch, nsa_compress_args(x.shape[-1], phi.struct(), tensor(x), tensor(y)))
        return y

    def compress_backward(self, cfg, batch, phi, x, dy):
        """dx and the gradients of phi."""
        dx, dphi = empty(x.shape, x.dtype), phi.like()
        self.run("compress_backward", cfg, batch, nsa_compress_backward_args(
            x.shape[-1], phi.struct(), tensor(x), tensor(dy), tensor(dx), dphi.struct()))
        return dx, dphi

    def attn(self, branch, cfg, batch, q, k, v, slc_idx=None, o=None):
        """branch: "cmp", "slc" or "win". o and lse."""
        if o is None:
            o = empty(q.shape[:-1] + (cfg.d_v,), q.dtype)
        lse = empty(q.shape[:-1] + (1,), lse_dtype(q))
        args = nsa_attn_args(tensor(q), tensor(k), tensor(v), tensor(slc_idx), tensor(o), tensor(lse))
        self.run(f"{branch}_attn", cfg, batch, args)
        return o, lse

    def attn_backward(self, branch, cfg, batch, q, k, v, o, lse, d_o, slc_idx=None):
        """dq, dk, dv."""
        grads = [empty(x.shape, x.dtype) for x in (q, k, v)]
        fwd = nsa_attn_args(tensor(q), tensor(k), tensor(v), tensor(slc_idx), tensor(o), tensor(lse))
        self.run(f"{branch}_attn_backward", cfg, batch,
                 nsa_attn_backward_args(fwd, tensor(d_o), *map(tensor, grads)))
        return grads

    def select(self, cfg, batch, q, k_cmp, lse):
        slc_idx = empty(q.shape[:-2] + (cfg.n_heads_kv, cfg.slc_topk), np.int32)
        self.run("select", cfg, batch, nsa_select_args(*map(tensor, (q, k_cmp, lse, slc_idx))))
        return slc_idx

    def gate(self, cfg, batch, gate, o_branch):
        o = empty(o_branch[0].shape, o_branch[0].dtype)
        args = nsa_gate_args(tensor(gate), branches(o_branch), tensor(o))
        check(lib.nsa_gate(self.handle, byref(cfg), byref(batch), byref(args), None))
        return o

    def gate_backward(self, cfg, batch, gate, o_branch, d_o):
        """dgate (per head, whatever the gate is) and the gradients of the branches."""
        dgate = empty(d_o.shape[:-1] + (N_BRANCHES,), gate.dtype)
        do_branch = [empty(d_o.shape, d_o.dtype) for _ in range(N_BRANCHES)]
        args = nsa_gate_backward_args(tensor(gate), branches(o_branch), tensor(d_o), tensor(dgate),
                                      branches(do_branch))
        check(lib.nsa_gate_backward(self.handle, byref(cfg), byref(batch), byref(args), None))
        return dgate, do_branch

    def forward(self, cfg, batch, q, k, v, gate, phi_k=None, phi_v=None, k_cmp=None, v_cmp=None, slc_idx=None):
        """q, k, v: one per branch. Without phi, k_cmp and v_cmp must be given; slc_idx may be. o, and what backward
        needs: k_cmp, v_cmp, slc_idx, o_branch, lse."""
        given = slc_idx is not None
        rows = batch.total_k // cfg.cmp_stride
        shape = q[CMP].shape[:-2]
        fwd = SimpleNamespace(
            o=empty(shape + (cfg.n_heads_q, cfg.d_v), q[CMP].dtype),
            k_cmp=empty((rows, cfg.n_heads_kv, cfg.d_qk), q[CMP].dtype) if k_cmp is None else k_cmp,
            v_cmp=empty((rows, cfg.n_heads_kv, cfg.d_v), q[CMP].dtype) if v_cmp is None else v_cmp,
            slc_idx=slc_idx if given else empty(shape + (cfg.n_heads_kv, cfg.slc_topk), np.int32),
            slc_idx_given=given,
            o_branch=[empty(shape + (cfg.n_heads_q, cfg.d_v), q[CMP].dtype) for _ in range(N_BRANCHES)],
            lse=[empty(shape + (cfg.n_heads_q, 1), lse_dtype(q[CMP])) for _ in range(N_BRANCHES)])
        self.run("forward", cfg, batch, forward_args(q, k, v, gate, fwd, phi_k, phi_v))
        return fwd

    def backward(self, cfg, batch, q, k, v, gate, fwd, d_o, phi_k=None, phi_v=None, dq=None, dk=None, dv=None):
        """fwd: what forward returned. dq, dk, dv: one array per branch; the same one several times takes the sum.
        With phi: dphi_k, dphi_v; without: dk_cmp, dv_cmp, and dk[CMP], dv[CMP] stay as they are."""
        def like(xs):
            return [empty(x.shape, x.dtype) for x in xs]
        out = SimpleNamespace(dq=dq or like(q), dk=dk or like(k), dv=dv or like(v),
                              dgate=empty(d_o.shape[:-1] + (N_BRANCHES,), gate.dtype),
                              dphi_k=phi_k and phi_k.like(), dphi_v=phi_v and phi_v.like(),
                              dk_cmp=None if phi_k else empty(fwd.k_cmp.shape, fwd.k_cmp.dtype),
                              dv_cmp=None if phi_v else empty(fwd.v_cmp.shape, fwd.v_cmp.dtype))
        self.run("backward", cfg, batch, nsa_backward_args(
            forward_args(q, k, v, gate, fwd, phi_k, phi_v), tensor(d_o), branches(out.dq), branches(out.dk),
            branches(out.dv), tensor(out.dgate), pointer(out.dphi_k), pointer(out.dphi_v), tensor(out.dk_cmp),
            tensor(out.dv_cmp)))
        return out


def forward_args(q, k, v, gate, fwd, phi_k, phi_v):
    return nsa_forward_args(branches(q), branches(k), branches(v), tensor(gate), pointer(phi_k), pointer(phi_v),
                            fwd.slc_idx_given, *map(tensor, (fwd.o, fwd.k_cmp, fwd.v_cmp, fwd.slc_idx)),
                            branches(fwd.o_branch), branches(fwd.lse))


# ---- Generation -----------------------------------------------------------------------------------------------------


class Cache:
    """A pool of pages, handed out as sequences grow, and their states."""

    def __init__(self, ctx, cfg, dtype, n_pages, page_size, max_draft=0, shared_kv=False):
        self.ctx, self.cfg = ctx, cfg
        self.struct = nsa_cache(page_size, max_draft, shared_kv, DTYPES[np.dtype(dtype)], n_pages, None)
        self.pages = aligned(n_pages * self.size("page"))
        self.struct.pages = self.pages.ctypes.data
        self.free_pages = list(range(n_pages))

    def size(self, what):
        n_bytes = c_size_t()
        check(lib[f"nsa_cache_{what}_bytes"](self.ctx.handle, byref(self.cfg), byref(self.struct), byref(n_bytes)))
        return n_bytes.value

    def sequence(self):
        return Sequence(self)

    def append(self, sequences, cu_seqlens, q, k, v, gate, phi_k, phi_v, op="prefill"):
        """New tokens of each sequence: o and slc_idx of theirs. op: "prefill" or "decode"."""
        cu = np.ascontiguousarray(cu_seqlens, np.int32)
        for sequence, n in zip(sequences, np.diff(cu)):
            sequence.reserve(len(sequence) + n)
        pages_per_seq = max((len(s.pages) for s in sequences), default=0)
        table = np.array([s.pages + [-1] * (pages_per_seq - len(s.pages)) for s in sequences], np.int32)
        states = (c_void_p * len(sequences))(*(s.state.ctypes.data for s in sequences))
        o = empty((cu[-1], self.cfg.n_heads_q, self.cfg.d_v), q[CMP].dtype)
        slc_idx = empty((cu[-1], self.cfg.n_heads_kv, self.cfg.slc_topk), np.int32)
        args = nsa_cache_args(len(sequences), 0, cu[-1], cu.ctypes.data, states, table.ctypes.data, pages_per_seq,
                              branches(q), branches(k), branches(v), tensor(gate), pointer(phi_k), pointer(phi_v),
                              tensor(o), tensor(slc_idx))
        self.ctx.run(op, self.cfg, self.struct, args)
        return o, slc_idx


class Sequence:
    """One sequence of a cache; len() is how many tokens it holds."""

    def __init__(self, cache):
        self.cache, self.pages = cache, []
        self.state = aligned(cache.size("state"))
        check(lib.nsa_cache_reset(*self.cache_args(), c_void_p(self.state.ctypes.data), None))

    def cache_args(self):
        return self.cache.ctx.handle, byref(self.cache.cfg), byref(self.cache.struct)

    def __len__(self):
        n_tokens = c_int64()
        check(lib.nsa_cache_length(self.cache.ctx.handle, c_void_p(self.state.ctypes.data), byref(n_tokens), None))
        return n_tokens.value

    def reserve(self, n_tokens):
        while len(self.pages) * self.cache.struct.page_size < n_tokens:
            self.pages.append(self.cache.free_pages.pop())

    def drop(self, n_tokens):
        """Keeps the first n_tokens."""
        check(lib.nsa_cache_drop(*self.cache_args(), c_void_p(self.state.ctypes.data), c_int64(n_tokens), None))
