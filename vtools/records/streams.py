"""Any input as a stream of raw JSON values, whatever its packing and layout, from a file or a pipe."""

import io
import itertools
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

from vtools.process import Failure
from vtools.records import arrays, objects
from vtools.records.naming import NONE, Names
from vtools.records.unpacking import Foreign, Torn, prepend, unpacked

CHUNK = 1 << 16
LONGEST = 1 << 28  # bytes from one value to the next: more would be held in memory
BOM = b"\xef\xbb\xbf"
BETWEEN = b" \t\r\n,"  # what may separate two values
DATA = (".json", ".jsonl", ".ndjson", ".parquet")
TABLES = (".csv", ".tsv")
ARCHIVES = (".zip", ".tar", ".tgz")
PACKED = (".gz", ".bz2", ".xz", ".zst")
# In the exports of ChatGPT and Claude, what is about the account lies beside the conversations.
ACCOUNT = ("user.json", "users.json")
EXPORTED = re.compile(r"conversations(-\d+)?\.json")


class Value(NamedTuple):
    """One raw JSON value: its bytes, its file, its line (or index in the array), and the error if it was cut off.

    `foreign` says why it is no JSON, where that is known before it is parsed, and `reason` how that is counted. A value
    that stands for a whole source of which there is nothing has the number 0.
    """

    raw: bytes
    file: str
    number: int
    torn: str | None = None
    foreign: str | None = None
    reason: str = "bad_json"

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return f"{self.file}:{self.number}" if self.number else self.file


class Kind(NamedTuple):
    """A kind of file that holds conversations but is no JSON: its first bytes, the ends of its names, its values."""

    magic: bytes
    ends: tuple[str, ...]
    values: Callable[[Iterator[bytes], str], Iterator[Value]]


def data(files: Iterable[str], names: Names = NONE, kinds: Sequence[Kind] = ()) -> list[str]:
    """Those files of a folder or of a zip file that hold records, by their names; tables do only with --columns.

    Of an account's export, they are the conversations alone.
    """
    found = [file for file in files if _is_data(file, names, kinds)]
    exports = {_place(file)[0] for file in found if EXPORTED.fullmatch(_place(file)[1])}
    exports &= {_place(file)[0] for file in found if _place(file)[1] in ACCOUNT}
    return [file for file in found if _place(file)[0] not in exports or EXPORTED.fullmatch(_place(file)[1])]


def _place(file: str) -> tuple[str, str]:
    folder, _, name = file.rpartition("/")
    return folder, name


def _is_data(name: str, names: Names, kinds: Sequence[Kind]) -> bool:
    *folders, file = name.split("/")
    if file.startswith(".") or "__MACOSX" in folders:
        return False
    file = file.lower()
    for packed in PACKED:
        file = file.removesuffix(packed)
    ends = TABLES if names.columns else tuple(end for kind in kinds for end in kind.ends)
    return file.endswith((*DATA, *ARCHIVES, *ends))


def values(file: str, names: Names = NONE, kinds: Sequence[Kind] = ()) -> Iterator[Value]:
    """Yield the raw values of a file (`-` is stdin). The last one carries `torn` if the input broke off."""
    with open_file(file) as stream:
        chunks = iter(lambda: stream.read1(CHUNK), b"")  # type: ignore[attr-defined]
        whole = stream if file != "-" and stat.S_ISREG(os.fstat(stream.fileno()).st_mode) else None
        yield from split(chunks, "stdin" if file == "-" else file, names, kinds, whole)


def split(
    chunks: Iterable[bytes], file: str, names: Names = NONE, kinds: Sequence[Kind] = (), whole: BinaryIO | None = None
) -> Iterator[Value]:
    """Unpack chunks of bytes and cut them into values; the rows of a table too, if `names` has columns.

    Else files of these `kinds` are read as they are told to. `whole` is the file on disk that the chunks are read from.
    """
    kinds = () if names.columns else kinds
    since = 0  # the last value, in bytes

    def limited(part: Iterator[bytes]) -> Iterator[bytes]:
        nonlocal since
        for chunk in part:
            since += len(chunk)
            if since > LONGEST:
                raise Torn(f"{LONGEST >> 20} MB without the end of a record")
            yield chunk

    try:
        known = [kind.magic for kind in kinds]
        for member, part in unpacked(iter(chunks), lambda files: data(files, names, kinds), 0, known, whole):
            for value in _cut(part, f"{file}/{member}" if member else file, names, kinds, limited):
                since = 0
                yield value
    except Torn as torn:
        yield Value(b"", file, 1, torn=str(torn))
    except Foreign as kind:
        yield Value(b"", file, 1, foreign=str(kind))


def _cut(
    chunks: Iterator[bytes], file: str, names: Names, kinds: Sequence[Kind],
    limited: Callable[[Iterator[bytes]], Iterator[bytes]],
) -> Iterator[Value]:  # fmt: skip
    """Array elements if the first byte is `[`, unless they are turns; else lines, or objects of several lines."""
    head: list[bytes] = []
    ahead = limited(chunks)
    try:
        for chunk in ahead:
            head.append(chunk)
            start = arrays.BETWEEN.sub(b"", chunk, count=1)
            if start:
                whole = b"".join(head)
                kind = next((kind for kind in kinds if start.startswith(kind.magic)), None)
                if kind:  # it knows itself how much it can hold
                    yield from kind.values(prepend(whole, chunks), file)
                    return
                ahead = prepend(whole, ahead)
                if start[:1] == b"[":
                    yield from _elements(ahead, file)
                elif start[:1] == b"{" or not names.columns:
                    yield from _objects(_lines(ahead, file))
                else:
                    from vtools.records import tables

                    for row in tables.rows(_lines(ahead, file, blank=True), names.columns.values()):
                        yield Value(*row)
                return
    except Torn as torn:
        yield Value(b"".join(head), file, 1, str(torn))


def _lines(chunks: Iterator[bytes], file: str, number: int = 0, blank: bool = False) -> Iterator[Value]:
    """Lines without their ends; those of white space alone only if `blank`."""
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
                if blank or line.strip(b" \t\r\n"):
                    yield Value(line, file, number)
    except Torn as error:
        torn = str(error)
    line = b"".join(rest)
    if torn or line.strip(b" \t\r\n"):
        yield Value(line, file, number + 1, torn or "")


def _elements(chunks: Iterator[bytes], file: str) -> Iterator[Value]:
    """The elements of an array, or whole arrays if the first element is a turn: then each is one conversation."""
    kept: list[bytes] | None = []

    def noted() -> Iterator[bytes]:
        for chunk in chunks:
            if kept is not None:
                kept.append(chunk)
            yield chunk

    number, cut = 0, arrays.elements(noted())
    while True:
        try:
            raw, torn = next(cut)
        except StopIteration as end:
            if end.value:
                yield from _objects(_lines(end.value, file, number))
            return
        if kept is not None:
            if objects.is_turn_text(raw):
                yield from _objects(_lines(prepend(b"".join(kept), chunks), file), joined=True)
                return
            kept = None
        number += 1
        yield Value(raw, file, number, torn)


def _objects(lines: Iterator[Value], joined: bool = False) -> Iterator[Value]:
    """Lines as they are if the first is one value; values that may take several lines if it is not or if `joined`."""
    first = next(lines, None)
    if first is None:
        return
    second = None
    if not joined:
        ends, still_open = objects.values_in(first.raw)
        if still_open:
            second = next(lines, None)
            joined = objects.goes_on(first.raw, second.raw if second else b"")
        else:
            joined = objects.are_several(first.raw, ends)
    ahead = [first] if second is None else [first, second]
    yield from ahead if not joined else ()
    yield from _joined(itertools.chain(ahead, lines)) if joined else lines


def _joined(lines: Iterator[Value]) -> Iterator[Value]:
    """The values of lines, joined until their brackets are closed; a value that never ends is given as it is."""
    held: list[bytes] = []
    start: Value | None = None
    torn: str | None = None
    brackets = objects.Brackets()
    for line in lines:
        if start and brackets.are_broken_by(line.raw):
            yield start._replace(raw=b"\n".join(held))
            held, start, brackets = [], None, objects.Brackets()
        position = 0
        for end in brackets.ends(line.raw):
            held.append(line.raw[position:end])
            yield (start or line)._replace(raw=b"\n".join(held).lstrip(BETWEEN), torn=None)
            held, start, position = [], None, end
        rest, torn = line.raw[position:], line.torn
        if start or rest.strip(BETWEEN):
            held.append(rest)
            start = start or line
            if not brackets.open:
                yield line._replace(raw=rest.lstrip(BETWEEN))
                held, start = [], None
        elif torn:
            yield line._replace(raw=b"")
    if start:
        yield start._replace(raw=b"\n".join(held), torn=torn or "")


def open_file(file: str) -> BinaryIO:
    """Open a file without unpacking it; `-` is stdin. Raises Failure if stdin is closed."""
    if file == "-":
        if sys.stdin is None:
            raise Failure("stdin is closed; name a FILE")
        if sys.stdin.isatty():
            print("reading JSONL from the terminal; end with Ctrl-D", file=sys.stderr)
        return io.BufferedReader(io.FileIO(0, closefd=False), CHUNK)
    return open(file, "rb")
