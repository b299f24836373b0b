"""Reading and writing records: parsing and repair, reject reasons, line-flushed output, progress."""

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from vtools import process
from vtools.files.atomic import atomic
from vtools.process import Failure
from vtools.records import objects, streams
from vtools.records.naming import NONE, Names

Record = dict[str, Any]

REASONS = frozenset((
    "bad_json", "not_object", "torn_input", "bad_schema", "unknown_role", "role_order", "empty", "too_short",
    "blocked_word", "blocked_response", "refusal", "lang", "plugin", "html_parse", "dup_id", "dup_exact",
    "dup_near", "pii", "moderation", "rep_digits", "wrong_list", "special_token", "contaminated", "overlong",
    "template_error", "unanswered", "unmatched", "bad_label", "tool", "thinking", "media", "unavailable",
    "too_old",
))  # fmt: skip


KINDS = {
    dict: "an object", list: "a list", str: "a text", int: "a number", float: "a number", bool: "true or false",
    type(None): "null",
}  # fmt: skip


class Reject(Exception):
    """A rejected record: a reason from the fixed list, and the details. Returned or raised."""

    turns = 0  # of the record, where its filter counts them

    def __init__(self, reason: str, detail: str = "") -> None:
        if reason not in REASONS:
            raise ValueError(f"{reason!r} is not a reason")
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def loads(raw: bytes) -> tuple[Any, bool]:
    """Parse one JSON value; the second result says whether it had to be repaired. Raises Reject("bad_json").

    Lone surrogates become U+FFFD and NaN or Infinity null; integers are kept up to Python's 4,300 digits.
    """
    import orjson  # here and below: a fifth of start-up for a command that reads nothing

    raw = raw.removeprefix(streams.BOM)
    try:
        value = orjson.loads(raw)
        if not _has_huge_number(value):
            return value, False
    except (orjson.JSONDecodeError, RecursionError):
        pass
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise Reject("bad_json", f"not UTF-8 at byte {error.start}") from None
    nans = 0

    def null(constant: str) -> None:
        nonlocal nans
        nans += 1

    def finite(number: str) -> float | None:
        value = float(number)
        if math.isfinite(value):
            return value
        null(number)
        return None

    try:
        value = json.loads(text, parse_constant=null, parse_float=finite)
        repaired, changed = _without_surrogates(value)
    except RecursionError:
        raise Reject("bad_json", "nested too deeply") from None
    except ValueError as error:
        from vtools.records import syntax

        raise Reject("bad_json", syntax.explained(text, error)) from None
    return repaired, bool(nans or changed)


def _has_huge_number(value: Any) -> bool:
    """Whether a value has an integer beyond 64 bits, which orjson reads as a float, losing digits."""
    for item in value.values() if type(value) is dict else value if type(value) is list else (value,):
        kind = type(item)
        if kind is str:  # the common case
            continue
        if kind is float:
            if abs(item) >= 2**63:
                return True
        elif (kind is dict or kind is list) and _has_huge_number(item):
            return True
    return False


def _without_surrogates(value: Any) -> tuple[Any, bool]:
    if isinstance(value, str):
        if value.isascii():
            return value, False
        fixed = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return fixed, fixed != value
    if isinstance(value, dict):
        pairs = [(_without_surrogates(key), _without_surrogates(item)) for key, item in value.items()]
        return {key[0]: item[0] for key, item in pairs}, any(key[1] or item[1] for key, item in pairs)
    if isinstance(value, list):
        items = [_without_surrogates(item) for item in value]
        return [item[0] for item in items], any(item[1] for item in items)
    return value, False


def dumps(value: Any) -> bytes:
    """One line of JSON in UTF-8 with its newline, keys in their given order."""
    import orjson

    try:
        return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)
    except (orjson.JSONEncodeError, RecursionError):
        line = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return line.encode("utf-8", "backslashreplace") + b"\n"


class Output:
    """Output for JSON lines: stdout, flushed line by line, or a file that appears whole or not at all."""

    def __init__(self, stream: IO[bytes], flush: bool) -> None:
        self.stream, self.flush = stream, flush
        self._shows = stream.isatty()

    def write(self, value: Any) -> None:
        line = dumps(value)
        self.stream.write(process.shown(line.decode()).encode() if self._shows else line)
        if self.flush:
            self.stream.flush()


_stdout_shows_data = False


@contextlib.contextmanager
def output(path: str | Path | None) -> Iterator[Output]:
    """Open stdout (`None` or `-`) or a file for records."""
    global _stdout_shows_data
    if path is None or str(path) == "-":
        _stdout_shows_data = True
        process.die_when_reader_goes()
        yield Output(sys.stdout.buffer, flush=True)
    else:
        with atomic(path) as stream:
            yield Output(stream, flush=False)


def records(files: Iterable[str]) -> Generator[Record]:
    """Every object of every file, for tools that need them all: a broken line raises Failure."""
    for value in values(files):
        record = parse(value)[0]
        if isinstance(record, Reject):
            raise Failure(f"{value.file}:{value.number}: {record.detail or record.reason}")
        yield record


def values(files: Iterable[str], names: Names = NONE) -> Iterator[streams.Value]:
    """The raw values of all files, one after another; no file means stdin."""
    for file in list(files) or ["-"]:
        yield from streams.values(file, names)


def parse(value: streams.Value) -> tuple[Record | Reject, bool]:
    """Parse a raw value: its object or a Reject, and whether it was repaired. A list of turns is a conversation.

    A last line without its newline counts as torn only if it does not parse.
    """
    if value.foreign:
        return Reject(value.reason, value.foreign), False
    try:
        record, repaired = loads(value.raw)
        if value.torn:
            return Reject("torn_input", value.torn), False
    except Reject as reject:
        if value.number == 1:
            from vtools.records import syntax

            reject = Reject(reject.reason, syntax.kind(value.raw) or reject.detail)
        if value.torn is not None:
            return Reject("torn_input", value.torn or f"the last line is cut off: {reject.detail}"), False
        return reject, False
    if isinstance(record, dict):
        return record, repaired
    if isinstance(record, list) and record and objects.is_turn(record[0]):
        return {"messages": record}, repaired
    return Reject("not_object", f"{KINDS[type(record)]}, not an object"), False


def shares_terminal() -> bool:
    """Whether stdout shows data on the terminal of stderr."""
    return _stdout_shows_data and sys.stdout.isatty() and os.path.sameopenfile(1, 2)


@contextlib.contextmanager
def progress(tool: str, quiet: bool, total: int | None = None, unit: str = " records") -> Iterator[Callable[..., Any]]:
    """A progress bar if stderr is a terminal that does not show the data too; yields the function that advances it."""
    if quiet or shares_terminal() or not sys.stderr.isatty():
        yield lambda n=1: None
        return
    from tqdm import tqdm

    scaled = unit == "B"  # 1.23GB/s
    with tqdm(
        desc=f"vtools {tool}", total=total, unit=unit, unit_scale=scaled, file=sys.stderr, leave=False, mininterval=0.2
    ) as bar:
        yield bar.update
