"""An output folder that appears whole or not at all, and whose making goes on where a kill -9 stopped it.

OUT.partial holds, while the work goes on, `fresh` (what becomes OUT), `journal` (what in it is finished) and, for a
moment, `replaced` (an older OUT). The journal's first line says what is being made, each further line names a finished
part and what its maker wants to know about it again. Nothing in it is believed: whoever reuses a part hashes it first.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from vtools import jsonl, process
from vtools.process import Failure, UsageFailure


def check(out: Path, inputs: list[Path], force: bool) -> None:
    """Refuse an output folder that holds something or that is, or holds, an input. Raises Failure."""
    place = out.resolve()
    if not place.name:
        raise UsageFailure(f"{out}: not a folder to write to")
    for source in inputs:
        if place == source.resolve() or place in source.resolve().parents:
            raise UsageFailure(f"{out}: it is, or holds, the input {source}; choose another output folder")
    if place.exists() and not place.is_dir():
        raise Failure(f"{out}: in the way, and not a folder")
    if place.is_dir() and any(place.iterdir()) and not force:
        raise Failure(f"{out}: exists and is not empty; --force replaces it")


def check_space(out: Path, need: int) -> int:
    """Bytes free where `out` will be, with those that a begun work on it has. Raises Failure if fewer than `need`."""
    place = out.resolve()
    fresh = place.with_name(place.name + ".partial") / "fresh"
    taken = sum(path.stat().st_blocks * 512 for path in fresh.rglob("*") if path.is_file()) if fresh.is_dir() else 0
    parent = place.parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free + taken
    if free < need:
        raise Failure(f"{out}: needs {need:,} bytes, the disk has {free:,} free")
    return free


def fingerprint(inputs: list[Path]) -> str:
    """What tells that inputs are still those of an interrupted run: every file's path, size and time of change."""
    digest = hashlib.blake2b(digest_size=16)
    for source in inputs:
        for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
            status = path.stat()
            digest.update(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


class Work:
    """The folder to fill, and the journal of its finished parts."""

    def __init__(self, place: Path, making: str) -> None:
        """`making` says all that determines the result: what was begun for anything else is thrown away."""
        self.fresh, self._path = place / "fresh", place / "journal"
        self.done: dict[str, dict[str, Any]] = {}
        head = jsonl.dumps({"making": making})
        lines = self._path.read_bytes().splitlines(keepends=True) if self._path.exists() else []
        if self.fresh.is_dir() and lines[:1] == [head]:
            for line in lines[1:]:
                with contextlib.suppress(ValueError, KeyError, TypeError):  # torn or damaged: the part is made again
                    entry = orjson.loads(line)
                    if entry.pop("check") == _check(entry):
                        self.done[entry.pop("part")] = entry
        else:
            shutil.rmtree(self.fresh, ignore_errors=True)
            self.fresh.mkdir()
            with jsonl.atomic(self._path) as stream:
                stream.write(head)
        self._stream = open(self._path, "ab", buffering=0)  # noqa: SIM115  closed by the owner of the folder
        if lines and not lines[-1].endswith(b"\n"):
            self._stream.write(b"\n")

    def finish(self, part: str, **entry: Any) -> None:
        """Note that a part is written: a later run finds the entry in `done`."""
        line = {"part": part, **entry}
        self._stream.write(jsonl.dumps({**line, "check": _check(line)}))

    def close(self) -> None:
        """Close the journal."""
        self._stream.close()


def _check(entry: dict[str, Any]) -> str:
    return hashlib.blake2b(orjson.dumps(entry), digest_size=8).hexdigest()


@contextlib.contextmanager
def folder(out: Path, inputs: list[Path], force: bool, making: str) -> Iterator[Work]:
    """Yield the work on a folder that becomes `out` when the block ends well.

    A failed block leaves nothing; a killed or interrupted one leaves OUT.partial, locked while somebody is at work on
    it, and the same command continues. A folder that is replaced (`force`) goes only after the new one is whole.
    Raises TryAgain when another process is at work.
    """
    place = out.resolve()
    partial = place.with_name(place.name + ".partial")
    if partial.exists() and not (partial / ".lock").exists() and (not partial.is_dir() or any(partial.iterdir())):
        raise Failure(f"{partial}: in the way, and not ours; move it")
    with process.lock(partial), contextlib.ExitStack() as stack:
        replaced = partial / "replaced"
        if replaced.exists() and not place.exists():  # killed between the two renames below
            os.rename(replaced, place)
        keep = False
        try:
            check(out, inputs, force)
            shutil.rmtree(replaced, ignore_errors=True)
            work = Work(partial, making)
            stack.callback(work.close)
            yield work
            for root, _, _ in os.walk(work.fresh):
                jsonl.sync(Path(root))
            if place.exists():
                os.rename(place, replaced)
            os.rename(work.fresh, place)
            jsonl.sync(place.parent)
        except (process.Interrupted, KeyboardInterrupt, BrokenPipeError):
            keep = True
            print(f"{partial}: kept; the same command continues, or remove it", file=sys.stderr)
            raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise Failure(f"{out}: the disk is full; nothing was kept") from None
            raise
        finally:
            if replaced.exists() and not place.exists():
                os.rename(replaced, place)
            if not keep:
                shutil.rmtree(partial, ignore_errors=True)
