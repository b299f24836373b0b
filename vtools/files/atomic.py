"""Files and folders that appear whole or not at all: written under another name, synced, renamed."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from vtools import process
from vtools.files.lock import own


def part_of(path: Path) -> Path:
    """The name of a file or folder until it is whole. It is fixed, so that the next run reuses what a kill left."""
    return path.with_name(f".{path.name}.part")


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[IO[bytes]]:
    """Write a file whole or not at all. Raises TryAgain while another process writes it."""
    if os.path.exists(path) and not os.path.isfile(path):  # /dev/stderr, a named pipe: nothing to rename
        with open(path, "wb") as device:
            yield device
        return
    path = Path(os.path.realpath(path))  # keep a link a link
    part = part_of(path)
    stream: IO[bytes] | None = None
    try:
        with process.signals_held():
            handle = own(part, f"{path}: another vtools process is writing it")
            stream = os.fdopen(handle, "wb", 1 << 18)
        stream.truncate(0)
        yield stream
        stream.flush()
        os.fsync(stream.fileno())
        os.replace(part, path)
    except BaseException:
        if stream is not None:
            with contextlib.suppress(OSError):
                os.unlink(part)
        raise
    finally:
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    sync(path.parent)


def write(path: str | Path, data: bytes) -> None:
    """Write a small file whole or not at all."""
    with atomic(path) as stream:
        stream.write(data)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a folder to fill; it replaces `path` when the block ends without an error.

    The caller holds the lock on `path`.
    """
    part = part_of(path)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        seal(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def seal(path: Path) -> None:
    """Sync the folder filled at `part_of(path)` to disk and give it its name."""
    part = part_of(path)
    sync_all(part)
    shutil.rmtree(path, ignore_errors=True)  # an older, damaged one
    os.replace(part, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Sync a file, or the names in a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_all(folder: Path) -> None:
    """Sync a folder and everything in it to disk."""
    for root, _, names in os.walk(folder):
        for name in names:
            sync(Path(root, name))
        sync(Path(root))
