"""An output folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

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
    """Bytes free where `out` will be. Raises Failure if they are fewer than `need`."""
    parent = out.resolve().parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if free < need:
        raise Failure(f"{out}: needs {need:,} bytes, the disk has {free:,} free")
    return free


@contextlib.contextmanager
def folder(out: Path, inputs: list[Path], force: bool) -> Iterator[Path]:
    """Yield an empty folder that becomes `out` when the block ends well and vanishes when it does not.

    Work goes on in OUT.partial, which is locked; what a kill -9 leaves there, the next run clears away. A folder that
    is replaced (`force`) goes only after the new one is whole. Raises TryAgain when another process is at work.
    """
    place = out.resolve()
    work = place.with_name(place.name + ".partial")
    if work.exists() and not (work / ".lock").exists() and (not work.is_dir() or any(work.iterdir())):
        raise Failure(f"{work}: in the way, and not ours; move it")
    with process.lock(work):
        fresh, replaced = work / "fresh", work / "replaced"
        if replaced.exists() and not place.exists():  # killed between the two renames below
            os.rename(replaced, place)
        try:
            check(out, inputs, force)
            for leftover in (fresh, replaced):
                if leftover.exists():
                    shutil.rmtree(leftover)
            fresh.mkdir()
            yield fresh
            for root, _, _ in os.walk(fresh):
                jsonl.sync(Path(root))
            if place.exists():
                os.rename(place, replaced)
            os.rename(fresh, place)
            jsonl.sync(place.parent)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise Failure(f"{out}: the disk is full; nothing was kept") from None
            raise
        finally:
            if replaced.exists() and not place.exists():
                os.rename(replaced, place)
            shutil.rmtree(work, ignore_errors=True)
