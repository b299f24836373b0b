"""Small models as folders of safetensors files, made with NumPy alone."""

import contextlib
import json
import struct

import pytest
from running import start

np = pytest.importorskip("numpy")


@contextlib.contextmanager
def halted(*arguments, lines=1):
    """A run, that many lines of it read: its pipe holds one page, so with more to say it cannot end before they are."""
    # Unbuffered, or reading one line would take many out of the pipe.
    with start(*arguments, bufsize=0, pipesize=4096) as running:
        for _ in range(lines):
            assert running.stdout.readline().startswith(b'{"tensor"')
        yield running


def write(path, tensors, padding=0):
    """A safetensors file with a header of our own spacing, as other writers make them. Tensors: name -> (dtype, array)."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, array) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    raw = json.dumps(header, ensure_ascii=False).encode() + b" " * padding
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + b"".join(array.tobytes() for _, array in tensors.values()))


def weights(dtype, shape, seed, near=None):
    """Random weights; `near` gives a fine-tune of them (small changes, most of them in the last bits)."""
    source = np.random.default_rng(seed)
    values = source.standard_normal(shape, np.float32) * np.float32(0.02)
    if near is not None:
        old = near if near.dtype != np.uint16 else (near.astype("<u4") << 16).view("<f4")
        values = old.astype("<f4") + source.standard_normal(shape, np.float32) * np.float32(5e-4)
    if dtype == "BF16":
        return (values.view("<u4") >> 16).astype("<u2")
    return values.astype({"F16": "<f2", "F32": "<f4"}[dtype])


def model(folder, dtype="F16", seed=0, near=None, rows=50, scale=1):
    """A small model in one file; its tensors."""
    shapes = {
        "model.embed_tokens.weight": (rows, 64 * scale),
        "model.layers.0.w": (128, 65 * scale),
        "model.norm": (64,),
    }
    tensors = {
        name: (dtype, weights(dtype, shape, (seed, place), near[name][1] if near else None))
        for place, (name, shape) in enumerate(shapes.items())
    }
    write(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps({"seed": seed}))
    return tensors


def pair(folder, dtype="F16", scale=1):
    """Base and target folders."""
    base = model(folder / "base", dtype, 1, scale=scale)
    model(folder / "target", dtype, 2, near=base, scale=scale)
    return folder / "base", folder / "target"


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def first_tensor(file):
    """Where the first tensor of a safetensors file begins."""
    with open(file, "rb") as stream:
        return 8 + struct.unpack("<Q", stream.read(8))[0]
