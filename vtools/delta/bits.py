# ruff: noqa: TID253  imported lazily by the commands
"""Arithmetic on bit patterns: the exact difference of two tensors, its coding, and dtype conversion.

A chunk of a `bits` delta is made from the little-endian words (8, 16, 32 or 64 bits) of base and target:
difference = (target - base) mod 2**width; with codec `raw` it is stored as it is; with `zstd` it is zig-zag coded
(small differences of either sign become small numbers), split into byte planes (all lowest bytes, then all second
bytes, ...) and packed as one zstd frame, level 1. Both directions are integer arithmetic, so nothing is rounded.
"""

from __future__ import annotations

import numpy as np
import zstandard
from blake3 import blake3

from vtools.checkpoint import WIDTHS, Files, Tensor
from vtools.dtypes import FLOATS, Bytes, convert, empty
from vtools.process import Failure

CHUNK = 4 << 20  # bytes of target in a chunk


class Damaged(Exception):
    """A chunk that cannot be decoded."""


def encode(target: Bytes, base: Bytes, width: int, codec: str) -> bytes:
    """The chunk that `decode` turns back into `target`, given the same `base` (equal lengths, in bytes)."""
    word = f"<u{width}"
    difference = target.view(word) - base.view(word)
    if codec == "raw":
        return difference.tobytes()
    sign = (difference.view(f"<i{width}") >> (8 * width - 1)).view(word)
    difference <<= 1
    difference ^= sign
    planes = np.ascontiguousarray(difference.view(np.uint8).reshape(-1, width).T)
    return zstandard.ZstdCompressor(level=1).compress(planes.data)


def decode(payload: bytes | memoryview, base: Bytes, width: int, codec: str) -> Bytes:
    """The target's bytes. Raises Damaged if the payload does not hold exactly as many as `base`."""
    word = f"<u{width}"
    if codec == "raw":
        if len(payload) != len(base):
            raise Damaged("wrong length")
        return (np.frombuffer(payload, word) + base.view(word)).view(np.uint8)
    try:
        # Asked first, because the library allocates whatever a frame claims to hold.
        if zstandard.frame_content_size(payload) != len(base):
            raise Damaged("wrong length")
        unpacked = zstandard.ZstdDecompressor().decompress(payload)
    except zstandard.ZstdError as error:
        raise Damaged(str(error)) from None
    planes = np.frombuffer(unpacked, np.uint8).reshape(width, -1)
    difference = planes[-1].astype(word)
    for plane in planes[-2::-1]:  # eight times as fast as transposing
        difference <<= 8
        difference |= plane
    sign = -(difference & 1)
    difference >>= 1
    difference ^= sign
    difference += base.view(word)
    return difference.view(np.uint8)


def add(base: Bytes, delta: Bytes, dtype: str) -> Bytes:
    """base + delta, both and the result in `dtype`: the same bits as torch's addition on a CPU."""
    exact = "F32" if dtype == "BF16" else dtype
    with np.errstate(all="ignore"):
        total = convert(base, dtype, exact).view(FLOATS[exact]) + convert(delta, dtype, exact).view(FLOATS[exact])
    return convert(total.view(np.uint8), exact, dtype)


def comparable(base: Tensor, dtype: str, shape: tuple[int, ...]) -> bool:
    """Whether a difference to `base` makes sense: the same shape but for the number of rows, floats or one dtype."""
    same = len(base.shape) == len(shape) and base.shape[1:] == shape[1:]
    return same and (base.dtype == dtype or (base.dtype in FLOATS and dtype in FLOATS))


class Base:
    """A base tensor as a stream of bytes in the target's dtype, hashed on the way; zeros after its end.

    A target with more rows thus sees missing rows as zero; one with fewer sees the first rows.
    """

    def __init__(self, files: Files, tensor: Tensor | None, dtype: str) -> None:
        self.files, self.tensor, self.dtype = files, tensor, dtype
        self.position = 0  # bytes of the base tensor read so far
        self.hash = blake3()

    def _read(self, size: int) -> Bytes:
        assert self.tensor is not None
        raw = empty(size)
        self.files.read(self.tensor.file, self.tensor.start + self.position, raw.data)
        self.position += size
        self.hash.update(raw.data)
        return raw

    def next(self, size: int) -> Bytes:
        """The next `size` bytes, counted in the target's dtype."""
        if self.tensor is None:
            return np.zeros(size, np.uint8)
        width = WIDTHS.get(self.tensor.dtype, 1)
        wanted = size // WIDTHS.get(self.dtype, 1) * width
        raw = self._read(min(wanted, self.tensor.bytes - self.position))
        converted = convert(raw, self.tensor.dtype, self.dtype) if len(raw) else raw
        if len(converted) == size:
            return converted
        padded: Bytes = np.zeros(size, np.uint8)
        padded[: len(converted)] = converted
        return padded

    def finish(self) -> str | None:
        """The BLAKE3 of the whole base tensor, after reading what the target did not need of it."""
        if self.tensor is None:
            return None
        while self.position < self.tensor.bytes:
            self._read(min(CHUNK, self.tensor.bytes - self.position))
        return self.hash.hexdigest()


def bad_delta(file: object, name: str, detail: str) -> Failure:
    """The error for a delta that does not give what its manifest promises."""
    return Failure(f"{file}: tensor {name}: {detail}: the delta is damaged; get it again")
