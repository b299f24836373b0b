"""delta.json: what a delta was made from, what it must restore, and the hashes that prove it.

A delta folder contains
  delta.json                        this manifest
  delta-00001-of-0000N.safetensors  one for each file of weights of the target: a U8 tensor for each target tensor, its
                                    chunks (see difference.py) one after the other, and `__gaps__`
  files/...                         every other file of the target as it is, under its own relative path
A file of weights is its tensors, each `start` bytes into the file, and the bytes between them (a safetensors header, a
.bin file's pickle and zip directory), which `__gaps__` holds end to end as one zstd frame, so that the result is the
same file byte for byte. `codec` names the layout of the chunks. `chunks` are the stored lengths of a tensor's chunks;
each stands for `chunk_bytes` bytes of the target, the last for the rest. `base` is the base tensor subtracted
(converted to the target's dtype, its missing rows zero), or null where the target tensor is stored whole, as a
difference to zero. `base_files` are the SHA-256 of the base's configuration and tokenizer. The last key, `blake3`, is
the hash of all the others as compact JSON.
"""

import dataclasses
import itertools
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Self

import orjson
from blake3 import blake3

from vtools import __version__
from vtools.process import Failure
from vtools.weights.model_files import inside

NAME = "delta.json"
FORMAT = "vtools-delta"
VERSIONS = {"raw": 1, "zstd": 1, "planes": 2}  # codec: the version of the format that brought it (see difference.py)
CARRIED = "files"
GAPS = "__gaps__"
LONGEST_CHUNK = 64 << 20
LARGEST_GAPS = 128 << 20  # bytes of a file between its tensors; held in memory


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
    start: int
    bytes: int
    blake3: str
    base: Base | None
    chunks: list[int]

    @classmethod
    def parse(cls, entry: dict[str, Any]) -> Self:
        """A tensor's entry in the manifest. Raises ValueError, KeyError or TypeError if malformed."""
        change = cls(**{**entry, "base": Base(**entry["base"]) if entry["base"] is not None else None})
        _whole(change.start, change.bytes, *change.shape, *change.chunks, *(change.base.shape if change.base else ()))
        _text(change.name, change.dtype, change.blake3, *((change.base.name, change.base.dtype) if change.base else ()))
        return change


@dataclass
class File:
    """One target file: with `delta`, weights given by changes and gaps; without, copied whole."""

    path: str
    bytes: int
    sha256: str
    delta: str | None = None
    gaps_blake3: str | None = None
    tensors: list[Change] = field(default_factory=list)

    @classmethod
    def parse(cls, entry: dict[str, Any]) -> Self:
        """A file's entry in the manifest. Raises ValueError, KeyError or TypeError if malformed."""
        file = cls(**{**entry, "tensors": [Change.parse(tensor) for tensor in entry["tensors"]]})
        _whole(file.bytes)
        _text(file.sha256)
        for path in (file.path, file.delta):
            if path is not None and not inside(path):
                raise ValueError(f"{path!r} leads out of the folder")
        if (file.delta is None) != (file.gaps_blake3 is None):
            raise ValueError(f"{file.path}: an incomplete entry for a file of weights")
        end = 0
        for change in file.tensors:
            if change.start < end or change.start + change.bytes > file.bytes:
                raise ValueError(f"{file.path}: tensor {change.name} is outside the file, or overlaps another")
            end = change.start + change.bytes
        if file.delta is not None and sum(length for _, length in file.gaps()) > LARGEST_GAPS:
            raise ValueError(f"{file.path}: more than {LARGEST_GAPS:,} bytes of it are not tensors")
        return file

    def gaps(self) -> list[tuple[int, int]]:
        """Offset and length of each gap between the file's tensors."""
        edges = [(0, 0), *((change.start, change.start + change.bytes) for change in self.tensors), (self.bytes, 0)]
        return [(end, start - end) for (_, end), (start, _) in itertools.pairwise(edges) if start > end]


@dataclass
class Manifest:
    """The whole of delta.json."""

    base: str
    base_files: dict[str, str]
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
    head = {"format": FORMAT, "version": VERSIONS[manifest.codec], "method": "bits", "made_by": f"vtools {__version__}"}
    return seal(head | dataclasses.asdict(manifest))


def seal(value: dict[str, Any]) -> bytes:
    """A JSON object with the hash of its contents as its last key."""
    sealed = value | {"blake3": blake3(orjson.dumps(value)).hexdigest()}
    return orjson.dumps(sealed, option=orjson.OPT_INDENT_2) + b"\n"


def load(folder: Path) -> tuple[Manifest, str]:
    """A delta's manifest, checked, and its hash. Raises Failure, also for paths that lead out of the folder."""
    path = folder / NAME
    try:
        value = orjson.loads(path.read_bytes())
        if value["format"] != FORMAT:
            raise ValueError(f"its format is {value['format']!r}, not {FORMAT!r}")
        version = value["version"]
        if version not in VERSIONS.values() or value["method"] != "bits":
            raise Failure(f"{path}: version {version!r}, method {value['method']!r}: made by a newer vtools")
        claimed = value.pop("blake3")
        if blake3(orjson.dumps(value)).hexdigest() != claimed:
            raise ValueError("its contents do not match its hash")
        codec = value["codec"]
        if VERSIONS.get(codec) != version:
            raise ValueError(f"version {version!r} has no codec {codec!r}")
        files = [File.parse(entry) for entry in value["files"]]
        for names in ([PurePosixPath(file.path) for file in files], [file.delta for file in files if file.delta]):
            if len(set(names)) < len(names):
                raise ValueError("a file is named twice")
        if not files:
            raise ValueError("no files")
        manifest = Manifest(str(value["base"]), dict(value["base_files"]), codec, int(value["chunk_bytes"]), files)
        if not 0 < manifest.chunk_bytes <= LONGEST_CHUNK:
            raise ValueError(f"chunks of {manifest.chunk_bytes} bytes")
        if manifest.chunk_bytes % 8:
            raise ValueError("the chunk size is no multiple of 8")
    except (FileNotFoundError, NotADirectoryError):
        raise Failure(f"{path}: missing; make-delta writes it, and without it there are no hashes to check") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Failure(f"{path}: not a manifest, or damaged ({type(error).__name__}: {error}); get it again") from None
    return manifest, claimed


def damaged(file: object, name: str, detail: str) -> Failure:
    """The error for a delta that does not match its manifest."""
    return Failure(f"{file}: tensor {name}: {detail}: the delta is damaged; download it again")


def _whole(*numbers: object) -> None:
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("a size, an offset or a shape is not a whole number")


def _text(*values: object) -> None:
    if not all(isinstance(value, str) for value in values):
        raise ValueError("a name or a hash is not a text")
