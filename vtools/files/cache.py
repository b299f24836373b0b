"""What is made once and kept for the next run: converted models and tokenizers, tokenised data."""

import contextlib
import hashlib
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vtools.files.atomic import atomic_folder
from vtools.files.lock import lock


def home() -> Path:
    """Where it is kept: $VTOOLS_CACHE, else the user's cache folder."""
    root = os.environ.get("VTOOLS_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(root) if root else base / "vtools"


def made_once(source: Path, kind: str, make: Callable[[Path], Any]) -> Path:
    """A folder that `make(folder)` fills from a file, anew only when the file or the `kind` is another."""
    status = source.stat()
    key = f"{source.resolve()}:{status.st_size}:{status.st_mtime_ns}:{kind}"
    target = home() / f"{source.stem}-{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}"
    if target.is_dir():
        return target
    with lock(home(), wait=True):
        if not target.is_dir():
            print(f"{source}: converting once, into {target}", file=sys.stderr)
            with atomic_folder(target) as part, contextlib.redirect_stderr(io.StringIO()):
                make(part)
    return target
