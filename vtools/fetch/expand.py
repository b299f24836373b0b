"""Folders and globs as the data files that they stand for."""

import glob
import os
from collections.abc import Iterable, Iterator

from vtools.process import Failure, say
from vtools.records import streams
from vtools.records.naming import Names


def expanded(sources: Iterable[str], names: Names, written: Iterable[str | None], quiet: bool) -> list[str]:
    """The sources with each folder and each glob replaced by its data files, sorted by name.

    What else is in a folder is skipped, and said; so are the files of `written`, which this run writes. Raises Failure
    if there is nothing to read.
    """
    found: list[str] = []
    for given in sources:
        if given == "-" or given.startswith(("http://", "https://")) or os.path.isfile(given):
            found.append(given)
        elif os.path.isdir(given):
            found += _data_files(given, names, written, quiet)
        elif not os.path.exists(given) and glob.has_magic(given):
            matches = sorted(glob.glob(given, recursive=True))
            if not matches:
                raise Failure(f"{given}: no file matches")
            for match in matches:
                found += _data_files(match, names, written, quiet) if os.path.isdir(match) else [match]
        else:
            found.append(given)  # a pipe, or a file that is missing: opening it says so
    return found


def _data_files(folder: str, names: Names, written: Iterable[str | None], quiet: bool) -> list[str]:
    ours = {os.path.realpath(path) for path in written if path}
    found: list[str] = []
    skipped: list[str] = []
    for path in sorted(_files_below(folder)):
        wanted = streams.is_data(os.path.relpath(path, folder), names) and os.path.realpath(path) not in ours
        (found if wanted else skipped).append(path)
    shown = ", ".join(os.path.relpath(path, folder) for path in skipped[:4]) + ", ..." * (len(skipped) > 4)
    if not found:
        tables = "; CSV and TSV need --columns" if any(name.endswith(streams.TABLES) for name in skipped) else ""
        raise Failure(f"{folder}: no JSON, JSONL or parquet file in it ({shown or 'it is empty'}){tables}")
    if skipped and not quiet:
        say("fetch", f"{folder}: {len(found)} files; skipped {len(skipped)} that hold no records: {shown}")
    return found


def _files_below(folder: str) -> Iterator[str]:
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(parent, name) for name in files)
