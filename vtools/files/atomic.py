"""Files and folders that appear whole or not at all: made beside their place, synced, renamed."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from vtools import process
from vtools.files.lock import own


def part_of(path: Path) -> Path:
    """Where a file or folder is made until it is whole. The name is fixed: the next run takes over what a kill left."""
    return path.with_name(f".{path.name}.part")


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[IO[bytes]]:
    """Write a file whole or not at all. Raises TryAgain while another process writes it."""
    if os.path.exists(path) and not os.path.isfile(path):  # /dev/stderr, a named pipe: nothing to rename
        with open(path, "wb") as device:
            yield device
        return
    path = Path(os.path.realpath(path))  # a link stays a link
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
    """Yield the folder to fill, which becomes `path`, in the place of what is there, when the block ends well.

    The caller owns the place by a lock.
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
    """Make a folder that was filled at `part_of(path)` safe from a power cut and give it its name."""
    part = part_of(path)
    sync_all(part)
    shutil.rmtree(path, ignore_errors=True)  # a damaged one
    os.replace(part, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, safe from a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_all(folder: Path) -> None:
    """The same for a folder and all that it holds."""
    for root, _, names in os.walk(folder):
        for name in names:
            sync(Path(root, name))
        sync(Path(root))
