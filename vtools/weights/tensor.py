"""A tensor in a file: where its bytes lie, and how they are read and written in place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vtools.process import Failure

# Bytes an element; types packed closer than a byte are not listed and are handled as plain bytes.
WIDTHS = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F32": 4, "I32": 4, "U32": 4, "F64": 8, "I64": 8, "U64": 8, "C64": 8,
}  # fmt: skip
STEP = 1 << 20  # bytes read at a time where nothing else decides
MOST_HANDLES = 16


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
        return f"{self.dtype} {list(self.shape)}"


class Files:
    """Open files, the last ones used, read and written at any offset from and to the caller's memory."""

    def __init__(self) -> None:
        self.handles: dict[tuple[Path, int], int] = {}

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles.values():
            os.close(handle)

    def _handle(self, file: Path, flags: int) -> int:
        handle = self.handles.pop((file, flags), None)
        if handle is None:
            if len(self.handles) == MOST_HANDLES:
                os.close(self.handles.pop(next(iter(self.handles))))
            handle = os.open(file, flags | os.O_CLOEXEC)
        self.handles[file, flags] = handle  # the last one used stands last
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
                raise Failure(f"{file}: it became shorter while it was read")
            view, start = view[got:], start + got

    def write(self, file: Path, start: int, view: memoryview) -> None:
        """Write `view` into an existing file from `start`. Raises OSError."""
        handle = self._handle(file, os.O_WRONLY)
        while len(view):
            done = os.pwrite(handle, view, start)
            view, start = view[done:], start + done


def pieces(size: int, step: int) -> Iterator[tuple[int, int]]:
    """Offset and length of each of the pieces of at most `step` bytes that `size` bytes are cut into."""
    for start in range(0, size, step):
        yield start, min(step, size - start)
