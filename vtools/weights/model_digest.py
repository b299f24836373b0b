"""The digest that identifies a model: BLAKE3 of all bytes of its weights, its configuration and its tokenizer."""

import mmap
import os
import sys
from pathlib import Path

from vtools.files import cache
from vtools.weights.model_files import weight_files

WINDOW = 256 << 20  # bytes in memory at once; BLAKE3 hashes them on all cores
WORTH_SAYING = 4_000_000_000  # bytes: seconds of work


def digest(folder: Path, quiet: bool = False) -> str:
    """The digest of a model's folder, 32 hexadecimal digits. Raises Failure if it has no weights.

    Each file of weights is read once; its digest is kept in the cache until the file changes. Where several processes
    want it, one reads.
    """
    from blake3 import blake3

    files = weight_files(folder)
    whole = blake3()
    for name in ("config.json", "tokenizer.json"):
        if (folder / name).is_file():
            whole.update((folder / name).read_bytes())
    size = sum(file.stat().st_size for file in files)

    def read(file: Path) -> str:
        if size > WORTH_SAYING and file == files[0] and not quiet:
            print(f"{folder}: reading its {size / 1e9:.1f} GB once, to know it again", file=sys.stderr)
        return _of_file(file)

    for file in files:
        whole.update(f"{file.name}:{cache.noted(file, 'blake3', read)}:".encode())
    return whole.hexdigest(length=16)


def _of_file(file: Path) -> str:
    from blake3 import blake3

    found = blake3(max_threads=blake3.AUTO)
    with open(file, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        for start in range(0, size, WINDOW):
            length = min(WINDOW, size - start)
            with mmap.mmap(stream.fileno(), length, offset=start, access=mmap.ACCESS_READ) as window:
                found.update(window)
    return found.hexdigest()
