"""Any input as a stream of raw JSON values: JSONL or one array, plain, gzip, zstd or parquet, from a file or a pipe."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

from vtools.process import Failure

CHUNK = 1 << 16
_BETWEEN = re.compile(rb"[ \t\r\n\xef\xbb\xbf]*+")  # what may stand before an array and between two
BOM = b"\xef\xbb\xbf"
# All repeats are possessive, so that what does not end costs one pass and not one for each of its characters.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
# The same, ten times as fast; it does not match strings with a quote after two or more backslashes.
_SIMPLE = rb'"[^"]*+"(?:(?<=[^\\]\\")[^"]*+")*+(?<!\\")'
_FLAT = rb'[^"\[\]{}]++|' + _SIMPLE
_NESTED = rb"[\[{](?:" + _FLAT + rb"|[\[{](?:" + _FLAT + rb")*+[\]}])*+[\]}]"
# The next comma or bracket of the array itself; the next bracket inside an element; past all that is nested twice only.
# A quote instead is a string that is no simple one or has not ended yet.
_TOP = re.compile(rb'(?:[^"\[\]{},]++|' + _SIMPLE + rb"|" + _NESTED + rb')*+([\[\]{},"])')
_DEEP = re.compile(rb"(?:" + _FLAT + rb"|" + _NESTED + rb')*+([\[\]{}"])')


class Torn(Exception):
    """The stream ended before its data did."""


class Value(NamedTuple):
    """One raw JSON value: its bytes, the file it is from, its line (or place in the array), whether it was cut off."""

    raw: bytes
    file: str
    number: int
    torn: str | None = None


def values(file: str) -> Iterator[Value]:
    """Yield the raw values of a file (`-` is stdin). The last one carries `torn` if the input broke off."""
    with open_file(file) as stream:
        chunks = iter(lambda: stream.read1(CHUNK), b"")  # type: ignore[attr-defined]
        yield from split(chunks, "stdin" if file == "-" else file)


def split(chunks: Iterable[bytes], file: str) -> Iterator[Value]:
    """Unpack chunks of bytes and cut them into values: elements if the first byte is `[`, lines otherwise."""
    chunks = _unpacked(iter(chunks), file)
    head = b""
    try:
        for chunk in chunks:
            head += chunk
            start = _BETWEEN.sub(b"", head, count=1)
            if start:
                cut = _elements if start[:1] == b"[" else _lines
                yield from cut(_prepend(head, chunks), file)
                return
    except Torn as torn:
        yield Value(head, file, 1, str(torn))


def _prepend(head: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    yield head
    yield from chunks


def _lines(chunks: Iterator[bytes], file: str, number: int = 0) -> Iterator[Value]:
    rest: list[bytes] = []
    torn = None
    try:
        for chunk in chunks:
            first, *others = chunk.split(b"\n")
            rest.append(first)
            for other in others:
                number += 1
                line = b"".join(rest)
                rest = [other]
                if line.strip(b" \t\r\n"):
                    yield Value(line, file, number)
    except Torn as error:
        torn = str(error)
    line = b"".join(rest)
    if torn or line.strip(b" \t\r\n"):
        yield Value(line, file, number + 1, torn or "")


def _elements(chunks: Iterator[bytes], file: str) -> Iterator[Value]:
    """Cut an array (or several, one after the other) at its top-level commas, without parsing what is between.

    Anything else that follows an array is taken as lines.
    """
    buffer, position, start, depth, number, dropped = b"", 0, 0, 0, 0, 0
    torn = "the array is not closed"
    wanted = 1  # bytes to read before the next attempt: more while one string does not end, so that time stays linear
    while True:
        pieces, got = [], 0
        try:
            while got < wanted:
                piece = next(chunks)
                pieces.append(piece)
                got += len(piece)
        except StopIteration:
            pass
        except Torn as error:
            torn = str(error)
        if not pieces:
            break
        keep = min(start, position) if depth else position
        buffer, dropped = buffer[keep:] + b"".join(pieces), dropped + keep
        start, position, wanted = start - keep, position - keep, 1
        while True:
            if depth == 0:
                position = _BETWEEN.match(buffer, position).end()  # type: ignore[union-attr]
                if position == len(buffer):
                    break
                if buffer[position : position + 1] != b"[":
                    yield from _lines(_prepend(buffer[position:], chunks), file, number)
                    return
                start, depth = position + 1, 1
                position = start
            token = (_TOP if depth == 1 else _DEEP).match(buffer, position)
            if token is None:
                position = len(buffer)
                break
            kind, position = token[1], token.end()
            if kind == b'"':
                string = _STRING.match(buffer, position - 1)
                if string is None:
                    position -= 1
                    break
                position = string.end()
            elif depth == 1 and kind in b"],":
                raw = buffer[start : position - 1].strip()
                start = position
                if raw:
                    number += 1
                    yield Value(raw, file, number)
            if kind in b"[{":
                depth += 1
            elif kind in b"]}":
                depth -= 1
        if depth:  # neither searching a long string again nor copying a long element may become quadratic
            wanted = max(1, len(buffer) - position, (len(buffer) - start) // 2)
    if depth > 0:
        rest, place = buffer[start:].strip(), f"{torn}: it breaks off at byte {dropped + len(buffer)}"
        if depth == 1 and position == len(buffer) and rest.endswith((b"}", b"]", b'"')):  # only the bracket is missing
            number += 1
            yield Value(rest, file, number)
            rest = b""
        yield Value(rest, file, number + 1, place)


def open_file(file: str) -> BinaryIO:
    """Open a file as it is, compressed or not; `-` is stdin. Raises Failure if stdin is closed."""
    if file == "-":
        if sys.stdin is None:
            raise Failure("stdin is closed")
        if sys.stdin.isatty():
            print("reading JSONL from the terminal; end with Ctrl-D", file=sys.stderr)
        return io.BufferedReader(io.FileIO(0, closefd=False), CHUNK)
    return open(file, "rb")


def _unpacked(chunks: Iterator[bytes], file: str) -> Iterator[bytes]:
    """Chunks of the uncompressed bytes. Only a first byte that may be magic is worth waiting for three more."""
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= 4 or head[:1] not in (b"\x1f", b"\x28", b"P"):
            break
    chunks = _prepend(head, chunks)
    if head[:2] == b"\x1f\x8b":
        import zlib

        return _decompressed(chunks, lambda: zlib.decompressobj(wbits=31), "gzip")
    if head[:4] == b"\x28\xb5\x2f\xfd":
        import zstandard

        return _decompressed(chunks, lambda: zstandard.ZstdDecompressor().decompressobj(), "zstd")
    if head[:4] == b"PAR1":
        return _parquet(chunks, file)
    return chunks


def _decompressed(chunks: Iterator[bytes], new: Callable[[], Any], name: str) -> Iterator[bytes]:
    stream: Any = None
    for chunk in chunks:
        while chunk:
            if stream is None:
                if chunk.count(0) == len(chunk):
                    break  # zero padding after the last member, as tapes and some tools write it
                stream = new()
            try:
                data = stream.decompress(chunk)
            except Exception as error:  # zlib.error or ZstdError
                raise Torn(f"the {name} data is damaged: {error}") from None
            if data:
                yield data
            chunk = b""
            if stream.eof:
                chunk, stream = stream.unused_data, None
    if stream is not None:
        raise Torn(f"the {name} data ends early")


def _parquet(chunks: Iterator[bytes], file: str) -> Iterator[bytes]:
    """Parquet keeps its index at the end, so a copy on disk is needed; rows come out as JSON lines."""
    import tempfile

    import orjson

    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise Failure(f"{file}: reading parquet needs pyarrow: pip install 'vtools[hub]'") from None
    with tempfile.TemporaryFile() as spool:
        spool.writelines(chunks)
        try:
            for batch in pyarrow.parquet.ParquetFile(spool).iter_batches(batch_size=64):
                for row in batch.to_pylist():
                    yield orjson.dumps(row, default=str) + b"\n"
        except (pyarrow.ArrowException, OSError) as error:
            raise Torn(f"the parquet data is damaged: {str(error).splitlines()[0]}") from None
