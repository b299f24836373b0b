"""Where a model's tensors lie on disk: files found, headers parsed, checked and made, bytes read and written in place.

The safetensors library reads headers too, but says neither where in the file a tensor begins nor what is wrong.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import orjson

from vtools.files.atomic import write
from vtools.process import Failure
from vtools.records import jsonl

# Bytes an element; types packed closer than a byte are not listed and are handled as plain bytes.
WIDTHS = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F32": 4, "I32": 4, "U32": 4, "F64": 8, "I64": 8, "U64": 8, "C64": 8,
}  # fmt: skip
BUFFERS = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached", "attention.masked_bias")
STEP = 1 << 20  # bytes read at a time where nothing else decides
MOST_HANDLES = 16
PICKLED = (".bin", ".pt", ".pth")
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


def read(file: Path) -> list[Tensor]:
    """The tensors of a safetensors or PyTorch (.bin) file, in the order of their bytes. Raises Failure."""
    with open(file, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        prefix = stream.read(8)
        # A safetensors file may begin with these letters too: they are the length of its header.
        if file.suffix in PICKLED or (prefix.startswith(b"PK\3\4") and file.suffix != ".safetensors"):
            from vtools.weights import pickled

            return sorted(pickled.tensors(file), key=lambda tensor: (tensor.start, -tensor.bytes, tensor.name))
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(LONGEST_HEADER, size - 8):
            raise Failure(f"{file}: not a safetensors file, or cut off")
        raw = stream.read(length)
    tensors = _parse_header(raw, file)
    end = tensors[-1].start + tensors[-1].bytes if tensors else 8 + length
    if end != size:
        raise Failure(f"{file}: {size} bytes, its header says {end}: the file is cut off or damaged")
    return tensors


def header(
    tensors: Iterable[tuple[str, str, Sequence[int], int]], metadata: dict[str, str], room: int | None = None
) -> bytes:
    """The first bytes of a safetensors file of these tensors (name, dtype, shape, bytes).

    Filled up with spaces to `room` bytes, or to a multiple of 8. Raises ValueError if they need more than `room`.
    Format: u64 little-endian length, that much JSON, then the tensors without gaps.
    """
    entries: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, dtype, shape, size in tensors:
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    raw = orjson.dumps(entries)
    if room is not None and 8 + len(raw) > room:
        raise ValueError(f"the header needs {8 + len(raw)} bytes, not {room}")
    raw += b" " * (-len(raw) % 8 if room is None else room - 8 - len(raw))
    return struct.pack("<Q", len(raw)) + raw


def _parse_header(header: bytes, file: Path) -> list[Tensor]:
    start = 8 + len(header)
    tensors = []
    try:
        for name, entry in orjson.loads(header).items():
            if name == "__metadata__":
                continue
            dtype, shape, (begin, end) = str(entry["dtype"]), tuple(entry["shape"]), entry["data_offsets"]
            width = WIDTHS.get(dtype)
            if not all(type(number) is int for number in (*shape, begin, end)):
                raise ValueError(f"tensor {name}: a shape and offsets are whole numbers")
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


def tensors(place: Path) -> dict[str, Tensor]:
    """Every tensor of a model (a folder or a single file) by its name, however it is sharded. Raises Failure.

    Of one that is in several files the last counts, as it does for transformers.
    """
    found: dict[str, Tensor] = {}
    for file in weight_files(place):
        for tensor in read(file):
            found[tensor.name] = tensor
    return found


def weight_files(place: Path) -> list[Path]:
    """The files of a model's weights, as transformers looks for them. Raises Failure if there are none.

    Safetensors before .bin; of each a whole file, else those that an index names. Without any of these, all there are.
    """
    if place.is_file():
        return [place]
    for whole in ("model.safetensors", "pytorch_model.bin"):
        index = place / f"{whole}.index.json"
        if (place / whole).is_file():
            return [place / whole]
        if index.is_file():
            try:
                names = sorted(set(jsonl.loads(index.read_bytes())[0]["weight_map"].values()))
            except (jsonl.Reject, KeyError, TypeError, AttributeError):
                names = []
            if not names or not all(isinstance(name, str) and inside(name) for name in names):
                raise Failure(f"{index}: not an index of weight files")
            files = [place / name for name in names]
            for file in files:
                if not file.is_file():
                    raise Failure(f"{file}: missing, though {index.name} names it")
            return files
    for pattern in ("*.safetensors", "pytorch_model*.bin"):
        if files := sorted(place.glob(pattern)):
            return files
    raise Failure(f"{place}: no weights: neither *.safetensors nor pytorch_model*.bin")


def write_index(folder: Path, files: dict[str, str], size: int) -> None:
    """Write the index of a model in several safetensors files: the file of each tensor, and the bytes of all."""
    index = {"metadata": {"total_size": size}, "weight_map": files}
    write(folder / "model.safetensors.index.json", orjson.dumps(index, option=orjson.OPT_INDENT_2) + b"\n")


def is_buffer(name: str) -> bool:
    """Whether a tensor is no weight: computed from the configuration, and stored by old versions of transformers."""
    return name.endswith(BUFFERS)


def holds_weights(file: Path) -> bool:
    """Whether a file is to be read for its tensors: safetensors, and .bin files of a model's name or that hold some."""
    if looks_like_weights(file.name):
        return True
    try:
        return file.suffix in PICKLED and bool(read(file))
    except Failure:  # training_args.bin and its like hold other things, which nobody should unpickle
        return False


def looks_like_weights(name: str) -> bool:
    """Whether a file's name is that of a model's weights."""
    suffix = Path(name).suffix
    return suffix == ".safetensors" or (suffix in PICKLED and Path(name).name.startswith("pytorch_model"))


def about_weights(name: str) -> bool:
    """Whether a file's name says that it holds weights, of any library, or lists such files."""
    return name.endswith((".safetensors", ".index.json", ".h5", ".msgpack", ".gguf", *PICKLED))


def inside(path: str) -> bool:
    """Whether a relative path, given by a file that a stranger may have made, stays in its folder."""
    parts = PurePosixPath(path)
    return bool(parts.parts) and not parts.is_absolute() and ".." not in parts.parts and "\0" not in path


def model_files(folder: Path) -> tuple[list[str], list[str]]:
    """Paths (relative, sorted) of a model's files, and of what is not part of the model.

    Left out are what is hidden (.git, .cache, .env, but not .gitattributes), the checkpoints of a training run and
    half-written files (.part). Raises Failure for a link that leads nowhere and for a name that is not UTF-8, OSError
    for a folder that cannot be read.
    """
    if folder.is_file():
        return [folder.name], []
    files, left_out = [], []

    def refuse(error: OSError) -> None:
        raise error

    for root, folders, names in os.walk(folder, onerror=refuse):
        place = Path(root)
        for name in sorted(folders):
            if name.startswith((".", "checkpoint")) or (place / name).is_symlink():
                left_out.append(str((place / name).relative_to(folder)))
                folders.remove(name)
        for name in sorted(names):
            path = place / name
            if name.endswith(".part") or (name.startswith(".") and name != ".gitattributes"):
                if name != ".lock":  # that of train's folder: nobody misses it
                    left_out.append(str(path.relative_to(folder)))
                continue
            if not path.exists():
                raise Failure(f"{path}: a link that leads nowhere")
            try:
                str(path.relative_to(folder)).encode()
            except UnicodeEncodeError:
                raise Failure(f"{str(path)!r}: its name is not UTF-8; rename it") from None
            if path.is_file():
                files.append(str(path.relative_to(folder)))
    return sorted(files), left_out


class Files:
    """Open files, the last ones used, read and written at any offset from and to the caller's memory."""

    def __init__(self) -> None:
        self.handles: dict[tuple[Path, int], int] = {}

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles.values():
            os.close(handle)

    def _handle(self, file: Path, flags: int) -> int:
        handle = self.handles.pop((file, flags), None)
        if handle is None:
            if len(self.handles) == MOST_HANDLES:
                os.close(self.handles.pop(next(iter(self.handles))))
            handle = os.open(file, flags | os.O_CLOEXEC)
        self.handles[file, flags] = handle  # the last one used stands last
        return handle

    def read(self, file: Path, start: int, view: memoryview) -> None:
        """Fill `view` with the bytes of `file` from `start`. Raises Failure if there are too few."""
        handle = self._handle(file, os.O_RDONLY)
        while len(view):
            try:
                got = os.preadv(handle, [view], start)
            except OSError as error:
                raise Failure(f"{file}: {error.strerror}") from None
            if not got:
                raise Failure(f"{file}: it became shorter while it was read")
            view, start = view[got:], start + got

    def write(self, file: Path, start: int, view: memoryview) -> None:
        """Write `view` into an existing file from `start`. Raises OSError."""
        handle = self._handle(file, os.O_WRONLY)
        while len(view):
            done = os.pwrite(handle, view, start)
            view, start = view[done:], start + done


def pieces(size: int, step: int) -> Iterator[tuple[int, int]]:
    """Offset and length of each of the pieces of at most `step` bytes that `size` bytes are cut into."""
    for start in range(0, size, step):
        yield start, min(step, size - start)
