# ruff: noqa: TID253  imported lazily by the commands
"""The base side of a delta: the tensor to subtract, and its bytes in the target's dtype and size."""

import math

import numpy as np
from blake3 import blake3

from vtools.weights.dtypes import FLOATS, Bytes, convert
from vtools.weights.model_files import is_buffer
from vtools.weights.tensor import STEP, WIDTHS, Files, Tensor

TIED = {"lm_head.weight": "model.embed_tokens.weight"}


def match(base: dict[str, Tensor], name: str, dtype: str, shape: tuple[int, ...]) -> Tensor | None:
    """The base tensor that a target tensor is compared with: its namesake, or the embedding that the base ties to it.

    None for a buffer, which the same base may have or lack, depending on the library version that saved it.
    """
    if is_buffer(name):
        return None
    found = base.get(name) or base.get(TIED.get(name, ""))
    return found if found and comparable(found, dtype, shape) else None


def comparable(base: Tensor, dtype: str, shape: tuple[int, ...]) -> bool:
    """Whether a difference from `base` makes sense: same shape except for the rows; floats, or the same dtype."""
    same = len(base.shape) == len(shape) and base.shape[1:] == shape[1:]
    return same and (base.dtype == dtype or (base.dtype in FLOATS and dtype in FLOATS))


class BaseStream:
    """A base tensor as a stream of bytes in another dtype; if `hashed`, its own bytes are hashed on the way.

    Rows beyond the base's are `extra` (one row in that dtype), or zero without it. A target with fewer rows gets the
    first ones.
    """

    def __init__(
        self, files: Files, tensor: Tensor | None, dtype: str, extra: Bytes | None = None, hashed: bool = False
    ) -> None:
        self.files, self.tensor, self.dtype, self.extra = files, tensor, dtype, extra
        self.position = 0  # bytes of the base tensor read so far
        self.beyond = 0  # bytes given after its end
        self.hash = blake3() if hashed else None

    def _read(self, size: int) -> Bytes:
        assert self.tensor is not None
        raw = self.files.take(self.tensor.file, self.tensor.start + self.position, size)
        self.position += size
        if self.hash:
            self.hash.update(raw.data)
        return raw

    def next(self, size: int) -> Bytes:
        """The next `size` bytes, counted in the wanted dtype."""
        if self.tensor is None:
            return np.zeros(size, np.uint8)
        wanted = size // WIDTHS.get(self.dtype, 1) * WIDTHS.get(self.tensor.dtype, 1)
        raw = self._read(min(wanted, self.tensor.bytes - self.position))
        converted = convert(raw, self.tensor.dtype, self.dtype) if len(raw) else raw
        if len(converted) == size:
            return converted
        padded: Bytes = np.zeros(size, np.uint8)
        padded[: len(converted)] = converted
        if self.extra is not None:
            missing = size - len(converted)
            padded[len(converted) :] = np.resize(np.roll(self.extra, -(self.beyond % len(self.extra))), missing)
            self.beyond += missing
        return padded

    def finish(self) -> str | None:
        """The BLAKE3 of the whole base tensor, after reading the rows that the target did not need."""
        if self.tensor is None or self.hash is None:
            return None
        while self.position < self.tensor.bytes:
            self._read(min(STEP, self.tensor.bytes - self.position))
        return self.hash.hexdigest()


def mean_row(files: Files, tensor: Tensor, dtype: str) -> Bytes:
    """The mean of a matrix's rows, summed in float64, as the bytes of one row in `dtype`."""
    if not tensor.bytes:  # no rows: the mean of nothing counts as zero
        return np.zeros(math.prod(tensor.shape[1:]) * WIDTHS[dtype], np.uint8)
    row = tensor.bytes // tensor.shape[0]
    total = np.zeros(tensor.shape[1:], np.float64)
    for raw in files.chunks_of(tensor, max(STEP // row, 1) * row):
        total += convert(raw, tensor.dtype, "F64").view("<f8").reshape(-1, *tensor.shape[1:]).sum(0)
    return convert((total / tensor.shape[0]).reshape(-1).view(np.uint8), "F64", dtype)
