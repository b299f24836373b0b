"""Unpacking gzip, bzip2, xz, zstd, zip, tar and parquet, detected by the first bytes, not by the file name."""

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator
from typing import IO, Any

Chunks = Iterator[bytes]
Choose = Callable[[list[str]], Collection[str]]


class Torn(Exception):
    """The stream ended before its data did."""


class Foreign(Exception):
    """The data is of a kind that is known by its first bytes, but not read; the text says what to do."""


GZIP, ZSTD, XZ, PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0", b"PAR1"
BZIP2 = (b"BZh", b"1AY&SY", b"\x17rE8P\x90")  # followed by the block size and by a block, or by the end
ZIP = (b"PK\3\4", b"PK\5\6")  # with members, or empty
TAR = 257, (b"ustar\x0000", b"ustar  \0")  # the place of its magic number: POSIX's, GNU's
FOREIGN = {
    b"ARROW1": "an Arrow or Feather file; write it as parquet",
    b"\xff\xff\xff\xff": "an Arrow stream; write it as parquet",
    b"%PDF": "a PDF file",
    b"SQLite format 3\0": "an SQLite database; export its rows as JSON or CSV",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it first",
    b"Rar!\x1a\7": "a RAR archive; unpack it first",
    b"\x89HDF\r\n": "an HDF5 file; write its rows as JSON or parquet",
}
MAGIC = (GZIP, ZSTD, XZ, PARQUET, BZIP2[0] + b"9" + BZIP2[1], *ZIP, *FOREIGN)
SLICE = 1 << 10  # packed bytes that are unpacked at once: of zeros they become some 30 MB at most
BOMB = 1 << 26, 1000  # bytes and times its size to which no data of people unpacks
NESTED = 4  # packings inside each other: some archives contain themselves


def unpacked(
    chunks: Chunks, choose: Choose, depth: int = 0, known: Collection[bytes] = (), whole: IO[bytes] | None = None
) -> Iterator[tuple[str, Chunks]]:
    """The streams of a file, unpacked: one without a name, or those members of an archive that `choose` picks by name.

    `known` are the first bytes of what the caller reads though it is no JSON; `whole` is the file that the chunks are
    read from, if it can be read from any place. Waits for more than the first byte only if it may be a magic number's.
    Raises Torn and Foreign, and so may each stream.
    """
    head = b""
    for chunk in chunks:
        head += chunk
        if not any(magic.startswith(head[: len(magic)]) and len(head) < len(magic) for magic in MAGIC):
            break
    chunks = prepend(head, chunks)
    if depth == NESTED:
        raise Foreign("packed more than four times; unpack it first")
    if packing := _packing(head):
        yield from unpacked(_decompressed(chunks, *packing), choose, depth + 1, known)
    elif head.startswith(ZIP):
        with _on_disk(chunks, whole) as file:
            yield from _members("zip file", _zipped(file), choose, depth, known)
    elif head[TAR[0] :].startswith(TAR[1]):
        with _on_disk(chunks, whole) as file:
            yield from _members("tar archive", _in_tar(file), choose, depth, known)
    elif head.startswith(PARQUET):
        yield "", _parquet(chunks, whole)
    else:
        if not head.startswith(tuple(known)) and (kind := _foreign(head)):
            raise Foreign(kind)
        yield "", chunks


def _packing(head: bytes) -> tuple[Callable[[], Any], str] | None:
    if head.startswith(GZIP):
        import zlib

        return (lambda: zlib.decompressobj(wbits=31)), "gzip"
    if head.startswith(ZSTD):
        import zstandard

        return (lambda: zstandard.ZstdDecompressor().decompressobj()), "zstd"
    if head.startswith(XZ):
        import lzma

        return lzma.LZMADecompressor, "xz"
    if head.startswith(BZIP2[0]) and head[4:10] in BZIP2:
        import bz2

        return bz2.BZ2Decompressor, "bzip2"
    return None


def _foreign(head: bytes) -> str | None:
    for magic, kind in FOREIGN.items():
        if head.startswith(magic):
            return kind
    even, odd = head[:4:2], head[1:4:2]
    marked = head[:2] in (b"\xff\xfe", b"\xfe\xff") and 0 in head[2:4]
    if marked or any(
        one == b"\0\0" and 0 not in other and other.isascii() for one, other in ((even, odd), (odd, even))
    ):
        return "a UTF-16 file; convert it: iconv -f UTF-16 -t UTF-8 FILE"
    return None


def _decompressed(chunks: Chunks, new: Callable[[], Any], name: str) -> Chunks:
    stream: Any = None
    taken = given = 0
    for chunk in chunks:
        made: list[bytes] = []
        for start in range(0, len(chunk), SLICE):
            piece = chunk[start : start + SLICE]
            taken += len(piece)
            while piece:
                if stream is None:
                    if piece.count(0) == len(piece):
                        break  # zero padding after the last member, as some tools write it
                    stream = new()
                try:
                    data = stream.decompress(piece)
                except Exception:  # zlib.error, ZstdError, LZMAError or OSError
                    yield b"".join(made)
                    raise Torn(f"the {name} data is damaged") from None
                given += len(data)
                if given > BOMB[0] and given > BOMB[1] * taken:
                    raise Torn(f"the {name} data unpacks to more than {BOMB[1]:,} times its size: a bomb")
                made.append(data)
                piece = b""
                if stream.eof:
                    piece, stream = stream.unused_data, None
        if any(made):
            yield b"".join(made)
    if stream is not None:
        raise Torn(f"the {name} data ends early")


@contextlib.contextmanager
def _on_disk(chunks: Chunks, whole: IO[bytes] | None) -> Iterator[IO[bytes]]:
    """What has its index at its end, as a file: it is copied to disk, unless it is there."""
    if whole:
        yield whole
        return
    import tempfile

    with tempfile.TemporaryFile() as spool:
        spool.writelines(chunks)
        spool.flush()
        yield spool


Members = Iterator[tuple[str, Callable[[], Chunks]]]


def _members(
    kind: str, found: Members, choose: Choose, depth: int, known: Collection[bytes]
) -> Iterator[tuple[str, Chunks]]:
    """The chosen members of an archive, or its only one; of one that is torn, those before that, and then Torn."""
    members: list[tuple[str, Callable[[], Chunks]]] = []
    torn = None
    try:
        members += found
    except Torn as error:
        torn = error
    picked = choose([name for name, _ in members])
    chosen = [member for member in members if member[0] in picked] or members[: len(members) == 1]
    if not chosen and not torn:
        names = ", ".join(name for name, _ in members[:4]) + ", ..." * (len(members) > 4)
        raise Foreign(f"a {kind} without JSON, JSONL or parquet in it ({names or 'it is empty'})")
    for name, content in chosen:
        for inner, part in unpacked(content(), choose, depth + 1, known):
            yield "/".join(filter(None, (name, inner))), part
    if torn:
        raise torn


def _in_tar(file: IO[bytes]) -> Members:
    import tarfile

    def content(member: Any) -> Chunks:
        file.seek(member.offset_data)
        left = member.size
        while left:
            chunk = file.read(min(left, 1 << 16))
            if not chunk:
                raise Torn(f"the tar data of {member.name} ends early")
            left -= len(chunk)
            yield chunk

    file.seek(0)
    try:
        archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115  it is as open as its file
        for member in archive:
            if member.isfile() and not member.issparse():
                yield member.name, functools.partial(content, member)
        file.seek(archive.offset)
        ended = file.read(1)  # two empty blocks are its end
    except (tarfile.TarError, OSError, ValueError):
        ended = b""
    if not ended:
        raise Torn("the tar data is damaged or ends early")


def _zipped(file: IO[bytes]) -> Members:
    import zipfile

    def content(member: Any) -> Chunks:
        if member.flag_bits & 1:
            raise Foreign(f"{member.filename} is encrypted in the zip file; unpack it first")
        return _member(archive, member)

    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, OSError, ValueError):
        raise Torn("the zip data is damaged or ends early") from None
    for member in archive.infolist():
        if not member.is_dir():
            yield member.filename, functools.partial(content, member)


def _member(archive: Any, member: Any) -> Chunks:
    import zipfile
    import zlib

    try:
        with archive.open(member) as stream:
            while chunk := stream.read1(1 << 16):
                yield chunk
    except NotImplementedError:
        raise Foreign(f"{member.filename} is packed in a way that is not read; unpack it first") from None
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, zlib.error):
        raise Torn(f"the zip data of {member.filename} is damaged") from None


def _parquet(chunks: Chunks, whole: IO[bytes] | None) -> Chunks:
    """Rows as JSON lines."""
    from vtools.records import parquet

    with _on_disk(chunks, whole) as file:
        if parquet.several(file):
            raise Foreign("several parquet files one after another; give each as a file of its own: FILE FILE")
        try:
            yield from parquet.rows(file)
        except parquet.Unreadable as error:
            raise Torn(str(error)) from None


def prepend(head: bytes, chunks: Chunks) -> Chunks:
    """Put the first bytes back in front of a stream."""
    yield head
    yield from chunks
