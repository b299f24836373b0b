"""Safetensors files: parsing, checking and writing headers.

The safetensors library reads headers too, but reports neither a tensor's file offset nor what is wrong.
"""

import math
import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import orjson

from vtools.process import Failure
from vtools.weights.tensor import WIDTHS, Tensor, described

LONGEST_HEADER = 100_000_000  # the limit of the safetensors library


def tensors(file: Path) -> list[Tensor]:
    """The tensors of a file, in the order of their bytes. Raises Failure."""
    with open(file, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(LONGEST_HEADER, size - 8):
            raise Failure(f"{file}: not a safetensors file, or cut off")
        raw = stream.read(length)
    found = _parse_header(raw, file)
    end = found[-1].start + found[-1].bytes if found else 8 + length
    if end != size:
        raise Failure(f"{file}: {size} bytes, its header says {end}: the file is cut off or damaged")
    return found


def header(
    tensors: Iterable[tuple[str, str, Sequence[int], int]], metadata: dict[str, str], reserved: int | None = None
) -> bytes:
    """The first bytes of a safetensors file of these tensors (name, dtype, shape, bytes).

    Padded with spaces to `reserved` bytes, or to a multiple of 8. Raises ValueError if they need more than `reserved`.
    Format: u64 little-endian length, that much JSON, then the tensors without gaps.
    """
    entries: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, dtype, shape, size in tensors:
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    raw = orjson.dumps(entries)
    if reserved is not None and 8 + len(raw) > reserved:
        raise ValueError(f"the header needs {8 + len(raw)} bytes, not {reserved}")
    raw += b" " * (-len(raw) % 8 if reserved is None else reserved - 8 - len(raw))
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
                raise ValueError(f"tensor {name}: its shape or offsets are not whole numbers")
            if min(shape, default=0) < 0 or (width and end - begin != math.prod(shape) * width):
                raise ValueError(f"tensor {name}: {end - begin} bytes do not make {described(dtype, shape)}")
            tensors.append(Tensor(name, dtype, shape, file, start + begin, end - begin))
        tensors.sort(key=lambda tensor: (tensor.start, tensor.bytes, tensor.name))
        for tensor in tensors:
            if tensor.start != start or tensor.bytes < 0:
                raise ValueError(f"tensor {tensor.name} does not begin where the one before it ends")
            start += tensor.bytes
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Failure(f"{file}: not a valid safetensors file: {error}") from None
    return tensors
