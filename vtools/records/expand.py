"""Folders and globs as the data files that they stand for."""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence

from vtools.process import Failure, say
from vtools.records import streams
from vtools.records.naming import NONE, Names


def expanded(
    tool: str, sources: Iterable[str], names: Names = NONE, others: Iterable[str | None] = (), quiet: bool = False,
    kinds: Sequence[streams.Kind] = (),
) -> list[str]:  # fmt: skip
    """The sources with each folder and each glob replaced by its data files, sorted by name.

    What else is in a folder is skipped, and said; so is what is one of `others`, or below it: files and folders that
    this run writes, or reads for another purpose. Raises Failure if there is nothing to read.
    """
    found: list[str] = []
    for given in sources:
        if given == "-" or given.startswith(("http://", "https://", "hf:")) or os.path.isfile(given):
            found.append(given)
        elif os.path.isdir(given):
            found += _data_files(tool, given, names, others, quiet, kinds)
        elif not os.path.exists(given) and glob.has_magic(given):
            matches = sorted(glob.glob(given, recursive=True))
            if not matches:
                raise Failure(f"{given}: no file matches")
            for match in matches:
                found += _data_files(tool, match, names, others, quiet, kinds) if os.path.isdir(match) else [match]
        else:
            found.append(given)  # a pipe, or a file that is missing: opening it says so
    return found


def _data_files(
    tool: str, folder: str, names: Names, others: Iterable[str | None], quiet: bool, kinds: Sequence[streams.Kind]
) -> list[str]:
    used = {os.path.realpath(path) for path in others if path}
    there = [os.path.relpath(path, folder) for path in sorted(_files_below(folder))]
    wanted = set(streams.data(there, names, kinds))
    wanted = {file for file in wanted if not _is_below(os.path.realpath(os.path.join(folder, file)), used)}
    found = [os.path.join(folder, file) for file in there if file in wanted]
    skipped = [file for file in there if file not in wanted]
    shown = ", ".join(skipped[:4]) + ", ..." * (len(skipped) > 4)
    if not found:
        tables = (
            "; CSV and TSV need `vtools fetch --columns`"
            if any(file.endswith(streams.TABLES) for file in skipped)
            else ""
        )
        raise Failure(f"{folder}: no JSON, JSONL or parquet file in it ({shown or 'it is empty'}){tables}")
    if skipped and not quiet:
        say(tool, f"{folder}: {len(found)} files; skipped {len(skipped)}: {shown}")
    return found


def _is_below(path: str, folders: set[str]) -> bool:
    return any(path == folder or path.startswith(folder + os.sep) for folder in folders)


def _files_below(folder: str) -> Iterator[str]:
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(parent, name) for name in files)
