"""One owner at a time: a lock file that one process holds, and the folder that it guards."""

import contextlib
import errno
import fcntl
import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from vtools.process import TryAgain

# What network file systems answer that have no locks: NFS without its lock service, Lustre mounted without `flock`.
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


def own(path: Path, busy: str, wait: bool = False) -> int:
    """Lock a file, created if missing, until the returned file descriptor is closed.

    Raises TryAgain(busy) while another process holds it, unless told to `wait`. Where the file system has no locks,
    says so once and goes on.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            hold(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), path)
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        except FileNotFoundError:
            pass
        except OSError as error:
            os.close(handle)
            if not isinstance(error, BlockingIOError):
                raise
            raise TryAgain(busy) from None
        os.close(handle)  # its owner renamed or removed it between our open and lock


def hold(handle: int, operation: int, path: Path) -> None:
    """fcntl.flock, but where the file system of `path` has no locks, says so once."""
    try:
        fcntl.flock(handle, operation)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        _say_unlocked(path.parent)


@functools.cache
def _say_unlocked(folder: Path) -> None:
    print(
        f"vtools: {folder}: this file system has no locks, so nothing stops a second vtools process from writing here: "
        "run one at a time (or mount NFS with its lock service, Lustre with -o flock)",
        file=sys.stderr,
    )


@contextlib.contextmanager
def lock(folder: Path | str, wait: bool = False, tidy: bool = False) -> Iterator[None]:
    """Lock an output folder for the length of the block; if another process holds it, wait or raise TryAgain.

    With `tidy`, a folder that was made here and has nothing in it at the end is removed.
    """
    folder = Path(folder)
    tidy = tidy and not folder.exists()
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # removed by its owner, which finished meanwhile
            busy = f"{folder}: another vtools process is writing here; try again when it has finished"
            handle = own(folder / ".lock", busy, wait)
            break
    try:
        yield
    finally:
        if tidy and os.listdir(folder) == [".lock"]:
            (folder / ".lock").unlink()
            with contextlib.suppress(OSError):  # another process is in it already
                folder.rmdir()
        os.close(handle)
