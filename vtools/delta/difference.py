# ruff: noqa: TID253  imported lazily by the commands
"""The exact difference of two bit patterns, and how it is coded.

A chunk of a `bits` delta is made from the little-endian words of base and target, `width` bytes each (1, 2, 4 or 8):
difference = (target - base) mod 2**(8 * width). All of it is integer arithmetic, so nothing is rounded.

Codec `raw` stores the differences as they are. Codec `planes` is what make-delta calls `--codec zstd`. Where the lowest
four bits of the differences are random, they are set apart. The rest is cut into byte planes: all lowest bytes, then
all second bytes, and so on. Before that, each difference becomes (difference + c) xor c, mod 2**(8 * width), where c
has the highest bit of every plane but the highest plane: each byte then counts from -128 to 127, and small differences
of either sign leave zeros in all higher planes. A chunk of n words is

  1 byte           how many low bits are set apart: 0 or 4
  width * 5 bytes  for each plane, the lowest first: the way it is stored (1 byte), and its stored length (4 bytes,
                   little-endian)
  the planes       one after the other
  n / 2 bytes      only if four bits are set apart: those of the first half of the words in the low half of each byte,
                   those of the second half in the high half; if n is odd, the first half has one word more

A plane is stored in one of three ways:

  0  as it is: n bytes
  1  one zstd frame
  2  k of its bytes, all others being zero: the number k (4 bytes, little-endian), then one zstd frame of k distances
     and the k bytes. A distance is the number of bytes of the plane skipped before this one. It fits in a byte,
     because every 256th byte of the plane is one of the k, even where it is zero. Besides these, k is at most n / 8.

Codec `zstd`, of older deltas, is only read. Its differences are zig-zag coded (0, -1, 1, -2 as 0, 1, 2, 3), and a chunk
is one zstd frame of all planes, with nothing set apart.
"""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import zstandard

from vtools.weights.dtypes import Bytes

Words = np.ndarray[Any, np.dtype[np.unsignedinteger[Any]]]
Part = tuple[int, Bytes]  # how a plane is stored, and what is stored

CHUNK = 1 << 20  # bytes of target in a chunk: what is made of it stays in the processor's cache
AS_IS, PACKED, FEW = range(3)
WORTH = 31 / 32  # a plane that zstd leaves longer than this is stored as it is, which costs nothing to read
SPARSE = 1 / 8  # a plane with at most this share of bytes other than zero is smaller, and quicker to read, as FEW
SAMPLE = 1 << 13  # words of a chunk that decide whether low bits are set apart
PLANE = struct.Struct("<BI")


class Damaged(Exception):
    """A chunk that cannot be decoded."""


def encode(target: Bytes, base: Bytes, width: int, codec: str) -> bytes:
    """The chunk that `decode` turns back into `target`, given the same `base` (equal lengths, in bytes)."""
    word = f"<u{width}"
    difference = target.view(word) - base.view(word)
    if codec == "raw":
        return difference.tobytes()
    apart = 0
    if width > 1:
        apart = min(0, 4, key=lambda bits: len(_packed(difference[:SAMPLE], bits)))
    return _packed(difference, apart)


def decode(payload: Bytes, base: Bytes, width: int, codec: str) -> Bytes:
    """The target's bytes, in the memory of `payload` if it can be. Raises Damaged if it does not fit `base`."""
    word = f"<u{width}"
    if codec == "raw":
        if len(payload) != len(base):
            raise Damaged("wrong length")
        difference = payload.view(word)
        difference += base.view(word)
        return payload
    if codec == "zstd":
        planes = np.frombuffer(unpack(payload, len(base)), np.uint8).reshape(width, -1)
        difference = np.array(planes.T, order="C").view(word).reshape(-1)
        sign = difference & 1
        np.negative(sign, out=sign)
        difference >>= 1
        difference ^= sign
    else:
        difference = _unpacked(payload, len(base) // width, word)
    difference += base.view(word)
    return difference.view(np.uint8)


def _signs(width: int, apart: int) -> int:
    """The highest bit of each plane but the highest."""
    return sum(0x80 << 8 * number for number in range(width - 1)) << apart


def _packed(difference: Words, apart: int) -> bytes:
    """A chunk of codec `planes`."""
    # Repeats in weights are chance, and short ones cost more than they save: looking for few and long ones gives
    # smaller frames in less time.
    wanted = zstandard.ZstdCompressionParameters.from_level(1, min_match=7, hash_log=6)
    compressor = zstandard.ZstdCompressor(compression_params=wanted)
    head, parts, low = bytes([apart]), [], b""
    signs = _signs(difference.itemsize, apart)
    words = difference + difference.dtype.type(signs)
    words ^= signs
    if apart:
        half = (len(words) + 1) // 2
        nibbles = (words & 15).astype(np.uint8)
        nibbles[: len(words) - half] |= nibbles[half:] << 4
        low = nibbles[:half].tobytes()
        words = words >> np.uint8(apart)
    for number in range(words.itemsize):
        kind, stored = _stored((words >> (8 * number)).astype(np.uint8), compressor)
        head += PLANE.pack(kind, len(stored))
        parts.append(stored)
    return b"".join((head, *parts, low))


def _stored(plane: Bytes, compressor: zstandard.ZstdCompressor) -> tuple[int, bytes]:
    """How a plane is stored, and what is stored."""
    if np.count_nonzero(plane) <= SPARSE * len(plane):
        listed = plane != 0
        listed[255::256] = True
        places = np.flatnonzero(listed)
        distances = (np.diff(places, prepend=-1) - 1).astype(np.uint8)
        frame = compressor.compress(np.concatenate((distances, plane[places])).data)
        return FEW, struct.pack("<I", len(places)) + frame
    frame = compressor.compress(plane.data)
    return (PACKED, frame) if len(frame) <= WORTH * len(plane) else (AS_IS, plane.tobytes())


def _unpacked(payload: Bytes, count: int, word: str) -> Words:
    """The differences in a chunk of codec `planes`. Raises Damaged."""
    width = np.dtype(word).itemsize
    start = 1 + width * PLANE.size
    if len(payload) < start:
        raise Damaged("wrong length")
    apart, parts = int(payload[0]), []
    for kind, length in PLANE.iter_unpack(payload[1:start].data):
        parts.append((kind, payload[start : start + length]))
        start += length
    low, half = payload[start:], (count + 1) // 2
    if apart not in (0, 4) or start + len(low) != len(payload) or len(low) != (half if apart else 0):
        raise Damaged("wrong length")
    words = _joined(parts, count, word)
    if apart:
        words <<= apart
        words[:half] |= low & 15
        words[half:] |= low[: count - half] >> 4
    return words


def _joined(parts: Sequence[Part], count: int, word: str) -> Words:
    """The sum of all planes, the lowest first, each byte counted from -128 to 127. Raises Damaged."""
    signed = word.replace("u", "i")
    words = None
    for kind, part in reversed(parts):  # eight times as fast as transposing
        if words is not None:
            words <<= 8
        if kind == FEW:
            continue
        plane = part if kind == AS_IS else np.frombuffer(unpack(part, count), np.uint8)
        if len(plane) != count or kind not in (AS_IS, PACKED):
            raise Damaged("wrong length")
        if words is None:
            words = plane.view(np.int8).astype(signed)
        else:
            words += plane.view(np.int8)
    if words is None:
        words = np.zeros(count, signed)
    for number, (kind, part) in enumerate(parts):
        if kind == FEW:
            places, values = _listed(part, count)
            words[places] += values.view(np.int8).astype(signed) << (8 * number)
    return words.view(word)


def _listed(part: Bytes, count: int) -> tuple[np.ndarray[Any, np.dtype[np.intp]], Bytes]:
    """The places of a plane that is stored as a few of its `count` bytes, and these bytes. Raises Damaged."""
    listed = int.from_bytes(part[:4].tobytes(), "little")
    if listed > SPARSE * count + count // 256:  # each takes many times its byte in memory
        raise Damaged("too many bytes listed")
    distances, values = np.frombuffer(unpack(part[4:], 2 * listed), np.uint8).reshape(2, -1)
    places = np.cumsum(distances, dtype=np.intp)
    places += np.arange(listed)
    if listed and places[-1] >= count:
        raise Damaged("wrong length")
    return places, values


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
