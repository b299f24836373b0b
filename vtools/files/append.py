"""A file that only grows, by whole lines: a torn last line is repaired at start, what is written survives a kill."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from vtools.files.atomic import sync
from vtools.files.lock import own
from vtools.process import Failure, say

TAIL = 1 << 16  # bytes read at a time to find where the last whole line ends


@contextlib.contextmanager
def appending(path: str, tool: str, wait: bool = False) -> Iterator[BinaryIO]:
    """Open a file to add lines to it; one that has no newline at its end is cut back to its last whole line.

    Raises TryAgain while another process adds to it, Failure if it is no file.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise Failure(f"{path}: is not a file that lines can be added to; name another, or leave it out for stdout")
    place = Path(os.path.realpath(path))
    handle = own(place, f"{path}: another vtools process is adding to it; try again when it has ended", wait)
    with os.fdopen(handle, "r+b", 1 << 18) as stream:
        size = stream.seek(0, os.SEEK_END)
        whole = _whole(stream, size)
        if whole < size:
            say(tool, f"{path}: {size - whole:,} bytes of a torn last line were cut off")
            stream.truncate(whole)
        stream.seek(whole)
        sync(place.parent)
        yield stream
        settle(stream)


def settle(stream: BinaryIO) -> None:
    """Have what was written on disk."""
    stream.flush()
    os.fsync(stream.fileno())


def _whole(stream: BinaryIO, size: int) -> int:
    """Where the last whole line ends."""
    end = size
    while end:
        start = max(0, end - TAIL)
        stream.seek(start)
        found = stream.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
