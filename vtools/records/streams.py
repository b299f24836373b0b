"""Any input as a stream of raw JSON values: JSONL or one array, plain, gzip, zstd or parquet, from a file or a pipe."""

import io
import sys
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

from vtools.process import Failure
from vtools.records import arrays
from vtools.records.unpacking import Torn, prepend, unpacked

CHUNK = 1 << 16
BOM = b"\xef\xbb\xbf"


class Value(NamedTuple):
    """One raw JSON value: its bytes, its file, its line (or index in the array), and the error if it was cut off."""

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
    """Unpack chunks of bytes and cut them into values: array elements if the first byte is `[`, else lines."""
    chunks = unpacked(iter(chunks))
    head = b""
    try:
        for chunk in chunks:
            head += chunk
            start = arrays.BETWEEN.sub(b"", head, count=1)
            if start:
                cut = _elements if start[:1] == b"[" else _lines
                yield from cut(prepend(head, chunks), file)
                return
    except Torn as torn:
        yield Value(head, file, 1, str(torn))


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
    number, cut = 0, arrays.elements(chunks)
    while True:
        try:
            raw, torn = next(cut)
        except StopIteration as end:
            if end.value:
                yield from _lines(end.value, file, number)
            return
        number += 1
        yield Value(raw, file, number, torn)


def open_file(file: str) -> BinaryIO:
    """Open a file without unpacking it; `-` is stdin. Raises Failure if stdin is closed."""
    if file == "-":
        if sys.stdin is None:
            raise Failure("stdin is closed; name a FILE")
        if sys.stdin.isatty():
            print("reading JSONL from the terminal; end with Ctrl-D", file=sys.stderr)
        return io.BufferedReader(io.FileIO(0, closefd=False), CHUNK)
    return open(file, "rb")
