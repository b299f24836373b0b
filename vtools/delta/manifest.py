"""delta.json: what a delta was made from, what it must give, and the hashes that prove it.

A delta folder holds
  delta.json                        this manifest
  delta-00001-of-0000N.safetensors  one for each safetensors file of the target: a U8 tensor for each target tensor,
                                    its chunks (see bits.py) one after the other
  files/...                         every other file of the target as it is, under its own relative path
`header` is the JSON header of the target's safetensors file, verbatim, so that the result is the same file byte for
byte. `chunks` are the stored lengths of a tensor's chunks; each stands for `chunk_bytes` bytes of the target, the last
for the rest. `base` is the base tensor subtracted (converted to the target's dtype, its missing rows zero), or null
where the target tensor is stored whole, as a difference to zero.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import orjson

from vtools import __version__
from vtools.process import Failure

NAME = "delta.json"
FORMAT, VERSION = "vtools-delta", 1
CARRIED = "files"


@dataclass
class Base:
    """The base tensor that was subtracted."""

    name: str
    dtype: str
    shape: list[int]
    blake3: str


@dataclass
class Change:
    """One target tensor."""

    name: str
    dtype: str
    shape: list[int]
    bytes: int
    blake3: str
    base: Base | None
    chunks: list[int]


@dataclass
class File:
    """One target file: with `delta`, a safetensors file given by its header and tensors; without, carried whole."""

    path: str
    bytes: int
    sha256: str
    delta: str | None = None
    header: str | None = None
    tensors: list[Change] = field(default_factory=list)


@dataclass
class Manifest:
    """The whole of delta.json."""

    base: str
    codec: str
    chunk_bytes: int
    files: list[File]

    @property
    def bytes(self) -> int:
        """Size of the target in bytes."""
        return sum(file.bytes for file in self.files)

    @property
    def tensors(self) -> int:
        return sum(len(file.tensors) for file in self.files)


def dump(manifest: Manifest) -> bytes:
    """The manifest as JSON; the same delta gives the same bytes."""
    head = {"format": FORMAT, "version": VERSION, "method": "bits", "made_by": f"vtools {__version__}"}
    return orjson.dumps(head | dataclasses.asdict(manifest), option=orjson.OPT_INDENT_2) + b"\n"


def load(folder: Path) -> Manifest:
    """Read and check a delta's manifest. Raises Failure, also for paths that lead out of the folder."""
    path = folder / NAME
    try:
        value = orjson.loads(path.read_bytes())
        if value["format"] != FORMAT:
            raise ValueError(f"its format is {value['format']!r}, not {FORMAT!r}")
        if value["version"] != VERSION or value["method"] != "bits":
            raise Failure(f"{path}: version {value['version']}, method {value['method']}: made by a newer vtools")
        files = [_file(entry) for entry in value["files"]]
        manifest = Manifest(str(value["base"]), str(value["codec"]), int(value["chunk_bytes"]), files)
        if manifest.codec not in ("zstd", "raw") or not (0 < manifest.chunk_bytes <= 1 << 30):
            raise ValueError(f"codec {manifest.codec}, chunks of {manifest.chunk_bytes} bytes")
        if manifest.chunk_bytes % 8:
            raise ValueError("the chunk size is no multiple of 8")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Failure(f"{path}: not a manifest, or damaged: {type(error).__name__}: {error}") from None
    return manifest


def _file(entry: dict[str, Any]) -> File:
    file = File(**{**entry, "tensors": [_change(tensor) for tensor in entry["tensors"]]})
    for path in (file.path, file.delta):
        if path is not None and not _inside(path):
            raise ValueError(f"{path!r} leads out of the folder")
    if (file.delta is None) != (file.header is None):
        raise ValueError(f"{file.path}: half a safetensors file")
    return file


def _change(entry: dict[str, Any]) -> Change:
    return Change(**{**entry, "base": Base(**entry["base"]) if entry["base"] is not None else None})


def _inside(path: str) -> bool:
    parts = PurePosixPath(path)
    return bool(parts.parts) and not parts.is_absolute() and ".." not in parts.parts and "\0" not in path
