"""Input files as bytes that are read twice: once for their digest, then for their records."""

import contextlib
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from vtools.process import Failure
from vtools.records import jsonl, streams

State = tuple[int, ...]


class Input(NamedTuple):
    """One input: its path (or `stdin`), a digest of its bytes, and what holds them if they cannot be opened again."""

    name: str
    digest: str
    state: State
    kept: IO[bytes] | None = None

    def chunks(self) -> Iterator[bytes]:
        """Its bytes. Raises Failure if they are no longer those of the digest."""
        with contextlib.nullcontext(self.kept) if self.kept else open(self.name, "rb") as stream:
            yield from iter(lambda: stream.read1(streams.CHUNK), b"")  # type: ignore[attr-defined]
            if _state(stream) != self.state:
                raise Failure(f"{self.name}: changed while it was being read; wait until it is complete, and run again")


def _state(stream: IO[bytes]) -> State:
    status = os.fstat(stream.fileno())
    return status.st_ino, status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def read_once(files: Sequence[str], home: Path, quiet: bool) -> Iterator[list[Input]]:
    """Read the files (`-` is stdin) for their digests; pipes are spooled to unnamed files in `home`."""
    sizes = [os.path.getsize(file) if os.path.isfile(file) else None for file in files]
    total = None if None in sizes else sum(-(-size // (1 << 20)) for size in sizes if size)
    with contextlib.ExitStack() as stack:
        with jsonl.progress("train: input", quiet, total, " MiB") as tick:
            inputs = [_read_once(file, home, stack, tick) for file in files]
        yield inputs


def _read_once(file: str, home: Path, stack: contextlib.ExitStack, tick: Callable[[], object]) -> Input:
    digest = hashlib.blake2b(digest_size=16)
    with contextlib.ExitStack() as here:
        stream = here.enter_context(streams.open_file(file))
        state, start, spool = _state(stream), 0, None
        if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            start = stream.tell()  # another program may have read part of stdin
        else:
            with writing(home):
                home.mkdir(parents=True, exist_ok=True)
                spool = stack.enter_context(tempfile.TemporaryFile(dir=home))
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
            if spool:
                with writing(home):
                    spool.write(chunk)
            tick()
        kept: IO[bytes] | None = spool or (stream if file == "-" else None)
        if kept:
            stack.push(here.pop_all())
            with writing(home):
                kept.seek(start)  # flushes the spool to its file
            return Input("stdin" if file == "-" else file, digest.hexdigest(), _state(kept), kept)
    return Input(file, digest.hexdigest(), state)


@contextlib.contextmanager
def writing(home: Path) -> Iterator[None]:
    """Explain what to do if the cache cannot be written."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Failure(
            f"{home}: tokenised data cannot be kept there: {error.strerror or error}; "
            f"free space, or set VTOOLS_CACHE to another folder"
        ) from None
