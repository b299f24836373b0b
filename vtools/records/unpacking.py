"""Unpacking gzip, zstd and parquet, detected by the first bytes, not by the file name."""

from collections.abc import Callable, Iterator
from typing import Any


class Torn(Exception):
    """The stream ended before its data did."""


def unpacked(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Chunks of the uncompressed bytes. Waits for three more bytes only if the first may be a magic number's."""
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= 4 or head[:1] not in (b"\x1f", b"\x28", b"P"):
            break
    chunks = prepend(head, chunks)
    if head[:2] == b"\x1f\x8b":
        import zlib

        return _decompressed(chunks, lambda: zlib.decompressobj(wbits=31), "gzip")
    if head[:4] == b"\x28\xb5\x2f\xfd":
        import zstandard

        return _decompressed(chunks, lambda: zstandard.ZstdDecompressor().decompressobj(), "zstd")
    if head[:4] == b"PAR1":
        return _parquet(chunks)
    return chunks


def _decompressed(chunks: Iterator[bytes], new: Callable[[], Any], name: str) -> Iterator[bytes]:
    stream: Any = None
    for chunk in chunks:
        while chunk:
            if stream is None:
                if chunk.count(0) == len(chunk):
                    break  # zero padding after the last member, as some tools write it
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


def _parquet(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Rows as JSON lines. Parquet has its index at the end, so the input is copied to disk first."""
    import tempfile

    import orjson
    import pyarrow
    import pyarrow.parquet

    with tempfile.TemporaryFile() as spool:
        spool.writelines(chunks)
        try:
            for batch in pyarrow.parquet.ParquetFile(spool).iter_batches(batch_size=64):
                for row in batch.to_pylist():
                    yield orjson.dumps(row, default=str) + b"\n"
        except (pyarrow.ArrowException, OSError) as error:
            raise Torn(f"the parquet data is damaged: {str(error).splitlines()[0]}") from None


def prepend(head: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Put the first bytes back in front of a stream."""
    yield head
    yield from chunks
