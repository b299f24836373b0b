"""A tensor in a file: where its bytes are, and reading and writing them in place."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vtools.process import Failure

if TYPE_CHECKING:
    from vtools.weights.dtypes import Bytes

# Bytes per element; types smaller than a byte are not listed and are handled as plain bytes.
WIDTHS = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F32": 4, "I32": 4, "U32": 4, "F64": 8, "I64": 8, "U64": 8, "C64": 8,
}  # fmt: skip
# Float dtypes by the user's names, and by those of safetensors.
DTYPE_NAMES = {"fp16": "F16", "bf16": "BF16", "fp32": "F32", "fp64": "F64"}
_SHOWN = {stored: name for name, stored in DTYPE_NAMES.items()}
STEP = 1 << 20  # bytes read at a time by default
MOST_HANDLES = 16


def dtype_name(dtype: str) -> str:
    """The user's name for a dtype of safetensors."""
    return _SHOWN.get(dtype, dtype.lower())


def described(dtype: str, shape: Sequence[int]) -> str:
    """Dtype and shape, for people."""
    return f"{dtype_name(dtype)} {list(shape)}"


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file; `start` is the file offset of its first byte."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    bytes: int

    def __str__(self) -> str:
        return described(self.dtype, self.shape)


class Files:
    """A cache of open files, read and written at any offset from and to the caller's memory."""

    def __init__(self) -> None:
        self.handles: dict[tuple[Path, int], int] = {}

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in list(self.handles.values()):  # a thread that reads ahead may still be running
            os.close(handle)

    def _handle(self, file: Path, flags: int) -> int:
        handle = self.handles.pop((file, flags), None)
        if handle is None:
            if len(self.handles) == MOST_HANDLES:
                os.close(self.handles.pop(next(iter(self.handles))))
            handle = os.open(file, flags | os.O_CLOEXEC)
        self.handles[file, flags] = handle  # most recently used last
        return handle

    def read(self, file: Path, start: int, view: memoryview) -> None:
        """Fill `view` with the bytes of `file` from `start`. Raises Failure if there are too few."""
        handle = self._handle(file, os.O_RDONLY)
        while len(view):
            try:
                got = os.preadv(handle, [view], start)
            except OSError as error:
                raise Failure(f"{file}: {error.strerror}") from None
            if not got:
                raise Failure(f"{file}: became shorter while it was read; run the command again")
            view, start = view[got:], start + got

    def take(self, file: Path, start: int, size: int) -> Bytes:
        """`size` bytes of `file` from `start`, in new memory. Raises Failure if there are fewer."""
        from vtools.weights.dtypes import empty  # NumPy is not needed to read headers

        raw = empty(size)
        self.read(file, start, raw.data)
        return raw

    def chunks(self, file: Path, start: int, size: int, step: int = STEP) -> Iterator[Bytes]:
        """The same bytes, `step` at a time."""
        for offset in range(0, size, step):
            yield self.take(file, start + offset, min(step, size - offset))

    def chunks_of(self, tensor: Tensor, step: int = STEP) -> Iterator[Bytes]:
        """The bytes of a tensor, `step` at a time. Raises Failure if the file has become shorter."""
        return self.chunks(tensor.file, tensor.start, tensor.bytes, step)

    def write(self, file: Path, start: int, view: memoryview) -> None:
        """Write `view` into an existing file from `start`. Raises OSError."""
        handle = self._handle(file, os.O_WRONLY)
        while len(view):
            done = os.pwrite(handle, view, start)
            view, start = view[done:], start + done
