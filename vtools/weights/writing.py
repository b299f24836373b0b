"""Writing files of tensors in place: preallocated, tensors in parallel, each hashed and noted in the journal."""

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from vtools import machine
from vtools.files.atomic import sync
from vtools.files.staging import Work
from vtools.records import jsonl
from vtools.weights import model_files, safetensors
from vtools.weights.dtypes import Bytes
from vtools.weights.tensor import Files

Chunks = Callable[[Files], Iterator[Bytes]]
SYNC = 128 << 20  # bytes after which a file is flushed to disk, so that the final sync is short


@dataclass
class Part:
    """One tensor to write: where, and the function that yields its bytes in order."""

    name: str
    path: str
    start: int
    bytes: int
    chunks: Chunks
    check: Callable[[str], None] = lambda digest: None  # raises Failure if the BLAKE3 is wrong
    measure: Callable[[Bytes], float] = lambda data: 0.0
    about: dict[str, Any] = field(default_factory=dict)  # more keys for its line on stdout


@dataclass(frozen=True, slots=True)
class NewTensor:
    """One tensor of a safetensors file to write."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    chunks: Chunks


@dataclass
class Written:
    """The outcome for all parts."""

    measured: float = 0.0  # the sum over all parts and chunks
    reused: int = 0  # parts already written by an earlier run


class _Stopped(Exception):
    """Another tensor failed."""


def reuse_memory() -> None:
    """Make glibc keep freed chunks: fresh pages for each would double the CPU time."""
    machine.tune_malloc(mapped=32 << 20, kept=256 << 20)


def allocate(path: Path, size: int) -> None:
    """Preallocate a file's space on disk; existing content stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        os.ftruncate(handle, size)
        if size:
            os.posix_fallocate(handle, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):  # a file system without preallocation
            raise
    finally:
        os.close(handle)


def header(entries: list[NewTensor]) -> bytes:
    """The first bytes of a safetensors file of these tensors."""
    facts = ((entry.name, entry.dtype, entry.shape, entry.bytes) for entry in entries)
    return safetensors.header(facts, {"format": "pt"})


def begin(files: dict[str, list[NewTensor]], work: Work) -> list[Part]:
    """Preallocate safetensors files, write headers, and an index if there are several; returns the parts to write."""
    parts = []
    for path, entries in files.items():
        first = header(entries)
        allocate(work.fresh / path, len(first) + sum(entry.bytes for entry in entries))
        with open(work.fresh / path, "r+b") as stream:
            stream.write(first)
        start = len(first)
        for entry in entries:
            parts.append(Part(entry.name, path, start, entry.bytes, entry.chunks))
            start += entry.bytes
    if len(files) > 1:
        model_files.write_index(work.fresh, {part.name: part.path for part in parts}, sum(part.bytes for part in parts))
    return parts


def write(parts: list[Part], work: Work, threads: int, lines: jsonl.Output, tick: Callable[[int], Any]) -> Written:
    """Write the parts into allocated files, in parallel but reported in order, and sync the files.

    Raises the first failure in that order.
    """
    stop, local, guard = threading.Event(), threading.local(), threading.Lock()
    written, synced, unsynced = Written(), [], 0

    def hashed(part: Part, chunks: Iterator[Bytes]) -> tuple[str, float]:
        digest, measured = blake3(), 0.0
        for data in chunks:
            if stop.is_set():
                raise _Stopped
            digest.update(data.data)
            measured += part.measure(data)
            with guard:
                tick(len(data))
        return digest.hexdigest(), measured

    def make(part: Part) -> tuple[str, float, int, bool]:
        if stop.is_set():
            raise _Stopped
        if not hasattr(local, "files"):  # one per thread, because the kernel reads ahead per file descriptor
            local.files = stack.enter_context(Files())
        started, place, files = time.monotonic(), work.fresh / part.path, local.files
        noted = work.done.get(f"{part.path}:{part.name}")
        digest, measured = hashed(part, files.chunks(place, part.start, part.bytes)) if noted else ("", 0.0)
        reused = noted is not None and noted.get("blake3") == digest
        if not reused:
            digest, measured = hashed(part, _written(part, files, place))
        part.check(digest)
        return digest, measured, round((time.monotonic() - started) * 1000), reused

    following = [*(part.path for part in parts[1:]), None][: len(parts)]
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(1) as disk, ThreadPoolExecutor(threads) as pool:
        made = {id(part): pool.submit(make, part) for part in _heavy_first(parts, threads)}
        try:
            for part, path in zip(parts, following, strict=True):
                digest, measured, milliseconds, reused = made.pop(id(part)).result()
                if not reused:
                    work.finish(f"{part.path}:{part.name}", blake3=digest)
                about = {"tensor": part.name, **part.about}
                lines.write({**about, "bytes": part.bytes, "blake3": digest, "ms": milliseconds})
                written.measured += measured
                written.reused += reused
                unsynced += part.bytes
                if path != part.path or unsynced >= SYNC:  # in the background, while the next ones are computed
                    synced.append(disk.submit(sync, work.fresh / part.path))
                    unsynced = 0
            for future in synced:
                future.result()
        except BaseException:
            stop.set()
            raise
    return written


def _heavy_first(parts: list[Part], threads: int) -> list[Part]:
    """The order to begin in: first those that, begun last, would leave all threads but one idle."""
    heavy: list[Part] = []
    others: list[Part] = []
    after = 0
    for part in reversed(parts):
        (heavy if part.bytes * threads > after else others).append(part)
        after += part.bytes
    return heavy + others[::-1]


def _written(part: Part, files: Files, place: Path) -> Iterator[Bytes]:
    """The chunks of a part, each after it is written."""
    position = part.start
    for data in part.chunks(files):
        files.write(place, position, data.data)
        position += len(data)
        yield data
