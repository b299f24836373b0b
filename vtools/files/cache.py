"""The cache of what is made once and kept for later runs: converted models and tokenizers, tokenised data."""

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
    """The cache folder: $VTOOLS_CACHE, else the user's."""
    root = os.environ.get("VTOOLS_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(root) if root else base / "vtools"


def made_once(source: Path, kind: str, make: Callable[[Path], Any]) -> Path:
    """A cached folder that `make(folder)` fills from a file; rebuilt only if the file or `kind` changes."""
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
