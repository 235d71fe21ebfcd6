"""Golden vectors as safetensors files in NumPy: the format, and the names in it."""
import json

import numpy as np

BRANCHES = "cmp", "slc", "win"
DTYPES = {"F64": "<f8", "I32": "<i4"}


def dump(tensors, metadata):
    """The bytes of a file: tensors by name, metadata a string by name."""
    header, data = {"__metadata__": metadata}, b""
    for name, x in tensors.items():
        dtype = next(d for d, code in DTYPES.items() if x.dtype == np.dtype(code))
        header[name] = {"dtype": dtype, "shape": x.shape, "data_offsets": [len(data), len(data) + x.nbytes]}
        data += x.tobytes()
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def load(path):
    """The tensors and the metadata of a file."""
    with open(path, "rb") as f:
        raw = f.read()
    data = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:data])
    metadata = header.pop("__metadata__")
    tensors = {name: np.frombuffer(raw[data + t["data_offsets"][0] : data + t["data_offsets"][1]],
                                   DTYPES[t["dtype"]]).reshape(t["shape"]) for name, t in header.items()}
    return tensors, metadata


def per_branch(tensors, name):
    """[cmp, slc, win]: `name` three times if the branches share it, else `name.cmp`, ..."""
    return [tensors[name]] * 3 if name in tensors else [tensors[f"{name}.{b}"] for b in BRANCHES]
