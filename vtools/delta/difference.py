# ruff: noqa: TID253  imported lazily by the commands
"""The exact difference of two bit patterns, and how it is coded.

A chunk of a `bits` delta is made from the little-endian words (8, 16, 32 or 64 bits) of base and target:
difference = (target - base) mod 2**width; with codec `raw` it is stored as it is; with `zstd` it is zig-zag coded
(small differences of either sign become small numbers), split into byte planes (all lowest bytes, then all second
bytes, ...) and packed as one zstd frame, level 1. Both directions are integer arithmetic, so nothing is rounded.
"""

import numpy as np
import zstandard

from vtools.weights.dtypes import Bytes

# Bytes of target in a chunk: zstd packs large ones better, raw ones stay in the processor's cache.
CHUNKS = {"zstd": 4 << 20, "raw": 1 << 20}


class Damaged(Exception):
    """A chunk that cannot be decoded."""


def encode(target: Bytes, base: Bytes, width: int, codec: str) -> bytes:
    """The chunk that `decode` turns back into `target`, given the same `base` (equal lengths, in bytes)."""
    word = f"<u{width}"
    difference = target.view(word) - base.view(word)
    if codec == "raw":
        return difference.tobytes()
    sign = (difference.view(f"<i{width}") >> (8 * width - 1)).view(word)
    difference <<= 1
    difference ^= sign
    planes = np.ascontiguousarray(difference.view(np.uint8).reshape(-1, width).T)
    return pack(planes.data)


def decode(payload: Bytes, base: Bytes, width: int, codec: str) -> Bytes:
    """The target's bytes, in the memory of `payload` if it can be. Raises Damaged if it does not fit `base`."""
    word = f"<u{width}"
    if codec == "raw":
        if len(payload) != len(base):
            raise Damaged("wrong length")
        difference = payload.view(word)
        difference += base.view(word)
        return payload
    planes = np.frombuffer(unpack(payload, len(base)), np.uint8).reshape(width, -1)
    difference = planes[-1].astype(word)
    for plane in planes[-2::-1]:  # eight times as fast as transposing
        difference <<= 8
        difference |= plane
    sign = -(difference & 1)
    difference >>= 1
    difference ^= sign
    difference += base.view(word)
    return difference.view(np.uint8)


def pack(data: memoryview | bytearray) -> bytes:
    """A zstd frame, level 1, that says how long its contents are."""
    return zstandard.ZstdCompressor(level=1).compress(data)


def unpack(payload: Bytes, size: int) -> bytes:
    """The contents of a zstd frame. Raises Damaged if they are not `size` bytes."""
    try:
        # Asked first, because the library allocates whatever a frame claims to hold.
        if zstandard.frame_content_size(payload.data) != size:
            raise Damaged("wrong length")
        return zstandard.ZstdDecompressor().decompress(payload.data)
    except zstandard.ZstdError as error:
        raise Damaged(str(error)) from None
