"""Input that can be read twice."""

import functools
import os
import tempfile
from collections.abc import Iterable, Iterator
from typing import IO

from vtools.records import streams
from vtools.records.naming import NONE, Names


class Sources:
    """Input that can be read twice: files directly, stdin and pipes through a temporary file."""

    def __init__(self, files: Iterable[str], names: Names = NONE) -> None:
        self.names = names
        self.files: list[tuple[str, IO[bytes] | None]] = []
        for file in list(files) or ["-"]:
            spool = None
            if file == "-" or not os.path.isfile(file):
                spool = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the run
                with streams.open_file(file) as stream:
                    while chunk := stream.read1(streams.CHUNK):  # type: ignore[attr-defined]
                        spool.write(chunk)
            self.files.append((file, spool))

    def values(self) -> Iterator[streams.Value]:
        """All raw values, from the beginning."""
        for file, spool in self.files:
            if spool is None:
                yield from streams.values(file, self.names)
            else:
                spool.seek(0)
                chunks = iter(functools.partial(spool.read, streams.CHUNK), b"")
                yield from streams.split(chunks, "stdin" if file == "-" else file, self.names)
