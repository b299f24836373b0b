"""The cache of what is made once and kept for later runs: converted models and tokenizers, tokenised data."""

import contextlib
import hashlib
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vtools.files.atomic import atomic_folder, write
from vtools.files.lock import lock


def home() -> Path:
    """The cache folder: $VTOOLS_CACHE, else the user's."""
    root = os.environ.get("VTOOLS_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(root) if root else base / "vtools"


def made_once(source: Path, kind: str, make: Callable[[Path], Any]) -> Path:
    """A cached folder that `make(folder)` fills from a file; rebuilt only if the file or `kind` changes."""
    status = source.stat()
    target = home() / f"{source.stem}-{_key(source, status.st_size, status.st_mtime_ns, kind)}"
    if target.is_dir():
        return target
    with lock(home(), wait=True):
        if not target.is_dir():
            print(f"{source}: converting once, into {target}", file=sys.stderr)
            with atomic_folder(target) as part, contextlib.redirect_stderr(io.StringIO()):
                make(part)
    return target


def noted(source: Path, kind: str, find: Callable[[Path], str]) -> str:
    """A short text that `find(source)` reads from a large file; asked again only if the file or `kind` changes.

    Of several processes one asks, and the others wait. A cache that cannot be written is not used.
    """
    status = source.stat()
    # The time of the last change of any kind too: copies may keep the time of the bytes.
    note = home() / "notes" / _key(source, status.st_size, status.st_mtime_ns, status.st_ctime_ns, kind)
    with contextlib.suppress(OSError):
        return note.read_text()
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            stack.enter_context(lock(note.parent, wait=True))
        with contextlib.suppress(OSError):
            return note.read_text()
        found = find(source)
        with contextlib.suppress(OSError):
            write(note, found.encode())
        return found


def _key(source: Path, *parts: object) -> str:
    key = ":".join(map(str, (source.resolve(), *parts)))
    return hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
