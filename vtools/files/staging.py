"""An output folder that appears whole or not at all, and that is resumed where a kill -9 stopped it.

During the work, OUT.partial holds `fresh` (what becomes OUT), `journal` (its finished parts) and, for a moment,
`replaced` (an older OUT). The journal's first line says what is being made; each further line names a finished part,
with the notes of its maker. The journal is not trusted: a part is hashed before it is reused.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from vtools import __version__, process
from vtools.files.atomic import part_of, sync, sync_all, write
from vtools.files.lock import lock
from vtools.process import Failure, UsageFailure

WHOLE = "."  # in the journal: the folder is whole and about to be renamed


def check(out: Path, inputs: list[Path], force: bool) -> None:
    """Refuse an output folder that is not empty, or that is, contains or lies inside an input.

    Raises Failure, and UsageFailure for a path that no folder can be renamed to.
    """
    if str(out) == "-":
        raise UsageFailure("-: a folder cannot go to a pipe; name a folder")
    try:
        place = out.resolve()
    except RuntimeError:
        raise Failure(f"{out}: a link that leads to itself") from None
    if not place.name or place == Path.cwd() or os.path.ismount(place):
        raise UsageFailure(f"{out}: cannot be replaced by renaming; name a folder inside it")
    for source in (source.resolve() for source in inputs):
        for ours in (place, _partial(place)):
            if ours == source or ours in source.parents:
                raise UsageFailure(f"{out}: is or contains the input {source}; choose another output folder")
        if source in place.parents:
            raise UsageFailure(f"{out}: is inside the input {source}; choose another output folder")
    if place.exists() and not place.is_dir():
        raise Failure(f"{out}: exists and is not a folder; choose another output folder")
    if place.is_dir() and any(place.iterdir()) and not force and not _landed(place):
        raise Failure(f"{out}: exists and is not empty; --force replaces it")


def _partial(place: Path) -> Path:
    """Where a folder is built: beside its final place, so that a rename suffices."""
    return place.with_name(place.name + ".partial")


def check_space(out: Path, need: int) -> int:
    """Bytes free where `out` will be, plus those of begun work on it. Raises Failure if fewer than `need`."""
    place = out.resolve()
    fresh = _partial(place) / "fresh"
    taken = sum(path.stat().st_blocks * 512 for path in fresh.rglob("*") if path.is_file()) if fresh.is_dir() else 0
    parent = place.parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free + taken
    if free < need:
        raise Failure(f"{out}: needs {need:,} bytes, the disk has {free:,} free")
    return free


def fingerprint(inputs: list[Path]) -> str:
    """A fingerprint of models, to detect changes: path, inode, size and times of each file."""
    digest = hashlib.blake2b(digest_size=16)
    for source in inputs:
        for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
            *folders, name = path.relative_to(source).parts or (source.name,)
            if name.startswith(".") or any(folder.startswith((".", "checkpoint")) for folder in folders):
                continue  # not part of a model (see weights/model_files.py), and written by other programs
            status = path.stat() if path.exists() else path.lstat()
            if not stat.S_ISDIR(status.st_mode):
                about = f" {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}\n"
                digest.update(os.fsencode(os.path.realpath(path)) + about.encode())
    return digest.hexdigest()


def copy(source: Path, target: Path) -> tuple[int, str]:
    """Copy a file, creating its folders; returns its size and SHA-256."""
    target.parent.mkdir(parents=True, exist_ok=True)
    sha256 = hashlib.sha256()
    with open(source, "rb") as reader, open(target, "wb") as writer:
        while data := reader.read(1 << 20):
            sha256.update(data)
            writer.write(data)
    return target.stat().st_size, sha256.hexdigest()


def unchanged(inputs: list[Path], before: str) -> None:
    """Raise Failure if inputs no longer have the fingerprint `before`."""
    if fingerprint(inputs) != before:
        names = ", ".join(map(str, inputs))
        raise Failure(f"{names}: a file changed while it was read; nothing was kept, run the command again")


class Work:
    """The folder to fill, and the journal of its finished parts."""

    def __init__(self, place: Path, making: str) -> None:
        """`making` says everything that determines the result: work begun for anything else is thrown away."""
        self.fresh, self._path = place / "fresh", place / "journal"
        self.done: dict[str, dict[str, Any]] = {}  # finished parts and their notes
        head = _head(making)
        lines = self._path.read_bytes().splitlines(keepends=True) if self._path.exists() else []
        if self.fresh.is_dir() and lines[:1] == [head]:
            self.done = _entries(lines[1:])
        else:
            write(self._path, head)  # first: it marks the folder as ours
            shutil.rmtree(self.fresh, ignore_errors=True)
            self.fresh.mkdir()
        self._stream = open(self._path, "ab", buffering=0)  # noqa: SIM115  closed by the owner of the folder
        if lines and not lines[-1].endswith(b"\n"):
            self._stream.write(b"\n")

    def finish(self, part: str, **entry: Any) -> None:
        """Note that a part is written; a later run finds its entry in `done`."""
        line = {"part": part, **entry}
        self._stream.write(_line({**line, "check": _check(line)}))

    def close(self) -> None:
        """Close the journal."""
        self._stream.close()


def _head(making: str) -> bytes:
    """The journal's first line."""
    return _line({"making": making, "by": __version__})


def _line(value: dict[str, Any]) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)


def _entries(lines: list[bytes]) -> dict[str, dict[str, Any]]:
    """A journal's entries by part."""
    found = {}
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):  # torn or damaged: write the part again
            entry = orjson.loads(line)
            if entry.pop("check") == _check(entry):
                found[entry.pop("part")] = entry
    return found


def _landed(place: Path) -> bool:
    """Whether a folder was put in place by a run that was killed before it could clean up."""
    journal = _partial(place) / "journal"
    if not place.is_dir() or not journal.is_file():
        return False
    return _entries(journal.read_bytes().splitlines()).get(WHOLE) == {"inode": place.stat().st_ino}


def _check(entry: dict[str, Any]) -> str:
    return hashlib.blake2b(orjson.dumps(entry), digest_size=8).hexdigest()


@contextlib.contextmanager
def folder(out: Path, inputs: list[Path], force: bool, making: str) -> Iterator[Work]:
    """Yield the work on a folder, which becomes `out` when the block ends without an error.

    A failed block leaves nothing except what an earlier run had finished. A killed or interrupted one leaves
    OUT.partial, and the same command resumes. A replaced folder (`force`) is removed only after the new one is whole.
    Raises Failure, also when the disk is full; TryAgain while another process is at work; OSError.
    """
    place = out.resolve()
    partial = _partial(place)
    if os.path.lexists(partial) and not _ours(partial):
        raise Failure(f"{partial}: exists and is not made by vtools; move it away")
    with lock(partial), contextlib.ExitStack() as stack:
        replaced = partial / "replaced"
        if _landed(place):  # killed after the last rename
            if (partial / "journal").read_bytes().startswith(_head(making)):
                os.rename(place, partial / "fresh")  # check it once more, and finish as usual
            else:
                shutil.rmtree(replaced, ignore_errors=True)
                (partial / "journal").unlink()
        if replaced.exists() and not place.exists() and (partial / "fresh").exists():  # killed between the two renames
            os.rename(replaced, place)
        keep = done = False
        try:
            check(out, inputs, force)
            shutil.rmtree(replaced, ignore_errors=True)
            work = Work(partial, making)
            stack.callback(work.close)
            keep = bool(work.done)  # a mistake now, such as a wrong base, must not undo the work of an earlier run
            yield work
            sync_all(work.fresh)
            work.finish(WHOLE, inode=work.fresh.stat().st_ino)
            if place.exists():
                shutil.copymode(place, work.fresh)
                os.rename(place, replaced)
            os.rename(work.fresh, place)
            keep, done = False, True
            with contextlib.suppress(PermissionError):  # a parent folder with write but no read permission
                sync(place.parent)
        except (process.Interrupted, KeyboardInterrupt, BrokenPipeError):
            keep = not done
            raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise Failure(f"{out}: the disk is full" + ("" if keep else "; nothing was kept")) from None
            raise
        finally:
            if replaced.exists() and not place.exists():
                os.rename(replaced, place)
            if keep:
                print(f"{partial}: kept; repeat the command to resume, or remove it", file=sys.stderr)
            else:
                for name in ("fresh", "replaced"):
                    shutil.rmtree(partial / name, ignore_errors=True)
                shutil.rmtree(partial, ignore_errors=True)  # the journal last: it marks the rest as ours


def _ours(partial: Path) -> bool:
    """Whether a folder is unfinished work of an earlier run: it has our journal, or nothing except a lock."""
    if partial.is_symlink() or not partial.is_dir():
        return False
    journal = partial / "journal"
    if not journal.is_file():
        return all(path.name in (".lock", part_of(journal).name) for path in partial.iterdir())
    with open(journal, "rb") as stream:
        return stream.readline(4096).startswith(b'{"making":')
