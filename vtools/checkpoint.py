"""Where a model's tensors lie on disk: files found, headers parsed and checked, bytes read with pread."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from vtools import jsonl
from vtools.process import Failure

# Bytes an element; types packed closer than a byte are not listed and are handled as plain bytes.
WIDTHS = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F32": 4, "I32": 4, "U32": 4, "F64": 8, "I64": 8, "U64": 8, "C64": 8,
}  # fmt: skip
LONGEST_HEADER = 100_000_000  # the limit of the safetensors library


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file; `start` is the file offset of its first byte."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def read_header(file: Path) -> tuple[str, list[Tensor]]:
    """The header of a safetensors file, verbatim, and its tensors in the order of their bytes.

    Format: u64 little-endian length, that much JSON, then the tensors without gaps. Raises Failure.
    """
    with open(file, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(LONGEST_HEADER, size - 8):
            raise Failure(f"{file}: not a safetensors file, or cut off")
        raw = stream.read(length)
    try:
        header = raw.decode()
    except UnicodeDecodeError:
        raise Failure(f"{file}: not a safetensors file: its header is not UTF-8") from None
    tensors = parse_header(header, file)
    end = tensors[-1].start + tensors[-1].bytes if tensors else 8 + length
    if end != size:
        raise Failure(f"{file}: {size} bytes, its header says {end}: the file is cut off or damaged")
    return header, tensors


def parse_header(header: str, file: Path) -> list[Tensor]:
    """The tensors that a header describes, in the order of their bytes. Raises Failure if they do not add up."""
    start = 8 + len(header.encode())
    tensors = []
    try:
        for name, entry in orjson.loads(header).items():
            if name == "__metadata__":
                continue
            dtype, shape, (begin, end) = str(entry["dtype"]), tuple(entry["shape"]), entry["data_offsets"]
            width = WIDTHS.get(dtype)
            if min(shape, default=0) < 0 or (width and end - begin != math.prod(shape) * width):
                raise ValueError(f"tensor {name}: {end - begin} bytes do not make {dtype} {list(shape)}")
            tensors.append(Tensor(name, dtype, shape, file, start + begin, end - begin))
        tensors.sort(key=lambda tensor: (tensor.start, tensor.bytes, tensor.name))
        for tensor in tensors:
            if tensor.start != start or tensor.bytes < 0:
                raise ValueError(f"tensor {tensor.name} does not begin where the one before it ends")
            start += tensor.bytes
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Failure(f"{file}: not a valid safetensors file: {error}") from None
    return tensors


def tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a model by its name, however it is sharded. Raises Failure if there are none that we read.

    Where two files hold the same name, the file that transformers would load wins.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise no_weights(folder)
    first = {folder / "model.safetensors"}
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            first = {folder / name for name in jsonl.loads(index.read_bytes())[0]["weight_map"].values()}
        except (jsonl.Reject, KeyError, TypeError, AttributeError):
            raise Failure(f"{index}: not an index of safetensors files") from None
        for file in sorted(first):
            if not file.is_file():
                raise Failure(f"{file}: missing, though {index.name} names it")
    found: dict[str, Tensor] = {}
    for file in sorted(files, key=lambda file: (file not in first, file)):
        for tensor in read_header(file)[1]:
            found.setdefault(tensor.name, tensor)
    return found


def no_weights(folder: Path) -> Failure:
    """The error for a folder without a safetensors file."""
    if any(folder.glob("*.bin")):
        return Failure(
            f"{folder}: its weights are .bin (pickle) files, which are not read yet: "
            "load the model once with transformers and save it again, which writes safetensors"
        )
    return Failure(f"{folder}: no *.safetensors file")


def model_files(folder: Path) -> tuple[list[str], list[str]]:
    """Paths (relative, sorted) of a model's files, and of the sub-folders that are not part of the model.

    Left out are hidden folders (.git, .cache) and the checkpoints of a training run.
    """
    files, left_out = [], []
    for root, folders, names in os.walk(folder):
        place = Path(root)
        for name in sorted(folders):
            if name.startswith((".", "checkpoint")) or (place / name).is_symlink():
                left_out.append(str((place / name).relative_to(folder)))
                folders.remove(name)
        for name in names:
            path = place / name
            if not path.exists():
                raise Failure(f"{path}: a link that leads nowhere")
            if path.is_file():
                files.append(str(path.relative_to(folder)))
    return sorted(files), left_out


class Files:
    """Open files, each opened once, read at any offset into the caller's memory."""

    def __init__(self) -> None:
        self.handles: dict[Path, int] = {}

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles.values():
            os.close(handle)

    def read(self, file: Path, start: int, view: memoryview) -> None:
        """Fill `view` with the bytes of `file` from `start`. Raises Failure if there are too few."""
        handle = self.handles.get(file)
        if handle is None:
            handle = self.handles[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        while len(view):
            try:
                got = os.preadv(handle, [view], start)
            except OSError as error:
                raise Failure(f"{file}: {error.strerror}") from None
            if not got:
                raise Failure(f"{file}: it became shorter while it was read")
            view, start = view[got:], start + got


def pieces(size: int, step: int) -> Iterator[tuple[int, int]]:
    """Offset and length of each of the pieces of at most `step` bytes that `size` bytes are cut into."""
    for start in range(0, size, step):
        yield start, min(step, size - start)
