"""One owner at a time: a lock file that one process holds, and the folder that it guards."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from vtools.process import TryAgain


def own(path: Path, busy: str, wait: bool = False) -> int:
    """Lock a file, created if missing, until the returned file descriptor is closed.

    Raises TryAgain(busy) while another process holds it, unless told to `wait`.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        except FileNotFoundError:
            pass
        except BlockingIOError:
            os.close(handle)
            raise TryAgain(busy) from None
        os.close(handle)  # its owner renamed or removed it between our open and lock


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
