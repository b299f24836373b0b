"""Records in and out: parsing and repair, line-flushed writing, atomic files, rejects, counts, ordered workers."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import orjson

from vtools import __version__, bytestream, process
from vtools.process import Failure

Record = dict[str, Any]

REASONS = frozenset((
    "bad_json", "not_object", "torn_input", "bad_schema", "unknown_role", "role_order", "empty", "too_short",
    "blocked_word", "blocked_response", "refusal", "lang", "plugin", "html_parse", "dup_id", "dup_exact",
    "dup_near", "pii", "moderation", "rep_digits", "wrong_list", "special_token", "contaminated", "overlong",
    "template_error",
))  # fmt: skip
# Reasons that say the input itself is broken: without --rejects the run stops there.
BROKEN = frozenset(("bad_json", "not_object", "torn_input"))


class Reject(Exception):
    """A record that does not go on: a reason of the fixed list, and what exactly was wrong. Returned or raised."""

    def __init__(self, reason: str, detail: str = "") -> None:
        if reason not in REASONS:
            raise ValueError(f"{reason!r} is not a reason")
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def loads(raw: bytes) -> tuple[Any, bool]:
    """Parse one JSON value; the second result says whether it had to be repaired. Raises Reject("bad_json").

    Lone surrogates become U+FFFD and NaN or Infinity null; integers of any size are kept.
    """
    raw = raw.removeprefix(bytestream.BOM)
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

    try:
        value = json.loads(text, parse_constant=null)
        repaired, changed = _without_surrogates(value)
    except RecursionError:
        raise Reject("bad_json", "nested too deeply") from None
    except ValueError as error:
        raise Reject("bad_json", str(error)) from None
    return repaired, bool(nans or changed)


def _has_huge_number(value: Any) -> bool:
    """orjson reads an integer beyond 64 bits as a float, and so would lose its digits."""
    if type(value) is float:
        return abs(value) >= 2**63
    if type(value) is dict:
        return any(_has_huge_number(item) for item in value.values() if type(item) is not str)
    if type(value) is list:
        return any(_has_huge_number(item) for item in value if type(item) is not str)
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
    """One line of JSON with its newline, UTF-8, keys in their own order."""
    try:
        return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)
    except (orjson.JSONEncodeError, RecursionError):
        line = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return line.encode("utf-8", "backslashreplace") + b"\n"


class Output:
    """Where lines go: stdout, flushed line by line, or a file that appears whole or not at all."""

    def __init__(self, stream: IO[bytes], flush: bool) -> None:
        self.stream, self.flush, self.lines = stream, flush, 0

    def write(self, value: Any) -> None:
        self.stream.write(dumps(value))
        self.lines += 1
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


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[IO[bytes]]:
    """Write a file whole or not at all: a locked `.NAME.part` beside it, fsync, rename. Raises TryAgain if locked.

    The name is fixed, so that what a kill -9 leaves behind is taken over by the next run.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # /dev/stderr, a named pipe: nothing to rename
        with open(path, "wb") as stream:
            yield stream
        return
    part = path.with_name(f".{path.name}.part")
    while True:
        handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise process.TryAgain(f"{path}: another vtools process is writing it") from None
        try:
            if os.path.samestat(os.fstat(handle), os.stat(part)):
                break
        except FileNotFoundError:
            pass
        os.close(handle)  # the other process renamed it between our open and our lock
    os.ftruncate(handle, 0)
    stream = os.fdopen(handle, "wb")
    try:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise
    finally:
        with contextlib.suppress(OSError):
            stream.close()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Rejects:
    """The rejects file and the counts: `in == out + rejected` at every moment between two records."""

    def __init__(self, tool: str, path: str | None) -> None:
        self.tool = tool
        self.stream = open(path, "wb") if path else None  # noqa: SIM115  lives as long as the run
        self.received = self.kept = self.repaired = 0
        self.reasons: Counter[str] = Counter()
        self.extra: Counter[str] = Counter()
        self.first: str | None = None

    def add(self, reject: Reject, value: bytestream.Value, record: Any = None) -> None:
        """Count a reject and save what was rejected; without a rejects file, broken input ends the run here."""
        place = f"{value.file}:{value.number}"
        if self.stream is None and reject.reason in BROKEN:
            raise Failure(f"{place}: {reject.detail or reject.reason} (--rejects FILE saves such records and goes on)")
        self.reasons[reject.reason] += 1
        self.first = self.first or f"{place}: {reject.reason}: {reject.detail}"
        if self.stream:
            row = {
                "stage": self.tool,
                "reason": reject.reason,
                "detail": reject.detail,
                "line": value.number,
                "id": record.get("id") if isinstance(record, dict) else None,
                "source": value.file,
            }
            if record is None:
                row["raw_b64"] = base64.b64encode(value.raw).decode()
            else:
                row["record"] = record
            self.stream.write(dumps(row))
            self.stream.flush()

    @property
    def rejected(self) -> int:
        return self.reasons.total()

    def summary(self) -> dict[str, Any]:
        """The counts as one object, for --stats."""
        return {
            "tool": self.tool,
            "version": __version__,
            "in": self.received,
            "out": self.kept,
            "rejected": self.rejected,
            "reasons": dict(sorted(self.reasons.items())),
            "repaired": self.repaired,
            **self.extra,
        }

    def line(self) -> str:
        """The counts as one line for people."""
        parts = [f"{self.received} in, {self.kept} out, {self.rejected} rejected"]
        if self.reasons:
            parts.append("(" + ", ".join(f"{reason} {count}" for reason, count in self.reasons.most_common()) + ")")
        parts += [f"{name} {count}" for name, count in [("repaired", self.repaired), *self.extra.items()] if count]
        return f"vtools {self.tool}: " + ", ".join(parts).replace(", (", " (")


def records(files: Iterable[str]) -> Iterator[Record]:
    """Every object of every file, for tools that need them all: any broken line is a Failure."""
    for value in _values(files):
        record = _parse(value)[0]
        if isinstance(record, Reject):
            raise Failure(f"{value.file}:{value.number}: {record.detail or record.reason}")
        yield record


def _values(files: Iterable[str]) -> Iterator[bytestream.Value]:
    for file in list(files) or ["-"]:
        yield from bytestream.values(file)


def _parse(value: bytestream.Value) -> tuple[Record | Reject, bool]:
    """A raw value to its object; a last line without its newline counts as torn only if it does not parse."""
    try:
        record, repaired = loads(value.raw)
        if value.torn:
            return Reject("torn_input", value.torn), False
    except Reject as reject:
        if value.torn is not None:
            return Reject("torn_input", value.torn or f"the last line is cut off: {reject.detail}"), False
        return reject, False
    if not isinstance(record, dict):
        return Reject("not_object", f"a JSON {type(record).__name__}, not an object"), False
    return record, repaired


Outcome = Record | list[Record] | Reject
Work = Callable[[Record], Outcome]


def _attempt(work: Work, record: Record) -> Outcome:
    try:
        return work(record)
    except Reject as reject:
        return reject


def run(
    tool: str,
    work: Work,
    *,
    write: Callable[[Record], None],
    files: Iterable[str] = (),
    values: Iterable[bytestream.Value] | None = None,
    finish: Callable[[Record], Record | Reject] | None = None,
    rejects: str | None = None,
    counts: Rejects | None = None,
    stats: str | None = None,
    jobs: int = 1,
    quiet: bool = False,
) -> Rejects:
    """Run a filter: every record through `work` (in `jobs` processes), then in input order through `finish`.

    `work` is pure: a record in; a record, several, or a Reject out. `finish` may keep state (duplicates).
    `values` replaces `files` for a tool that makes its own input, `counts` replaces `rejects` for one that counts more
    than records. Writes the closing line and the stats file.
    """
    counts = counts or Rejects(tool, rejects)
    source = _values(files) if values is None else values
    outcomes = _serial(work, source) if jobs <= 1 else _parallel(work, source, jobs)
    with progress(tool, quiet) as tick:
        for value, outcome, repaired in outcomes:
            counts.received += 1
            counts.repaired += repaired
            tick()
            if finish and not isinstance(outcome, Reject):
                finished = [finish(record) for record in (outcome if isinstance(outcome, list) else [outcome])]
                kept = [record for record in finished if not isinstance(record, Reject)]
                outcome = kept or next(record for record in finished if isinstance(record, Reject))
            if isinstance(outcome, Reject):
                record = _parse(value)[0]
                counts.add(outcome, value, None if isinstance(record, Reject) else record)
            else:
                for record in outcome if isinstance(outcome, list) else [outcome]:
                    write(record)
                counts.kept += 1
    if counts.stream is None and counts.received and counts.reasons["bad_schema"] == counts.received:
        raise Failure(f"{counts.first} (no record has a shape that vtools reads)")
    close(counts, stats, quiet)
    return counts


def close(counts: Rejects, stats: str | None, quiet: bool) -> None:
    """Write the stats file and the closing line."""
    if stats:
        with output(stats) as out:
            out.write(counts.summary())
    if not quiet:
        print(counts.line(), file=sys.stderr)


def _serial(work: Work, values: Iterable[bytestream.Value]) -> Iterator[tuple[bytestream.Value, Outcome, bool]]:
    for value in values:
        record, repaired = _parse(value)
        yield value, record if isinstance(record, Reject) else _attempt(work, record), repaired


def _work_batch(work: Work, batch: list[bytestream.Value]) -> list[tuple[Outcome, bool]]:
    return [(outcome, repaired) for _, outcome, repaired in _serial(work, batch)]


def _parallel(
    work: Work, values: Iterable[bytestream.Value], jobs: int
) -> Iterator[tuple[bytestream.Value, Outcome, bool]]:
    """`_serial` in `jobs` processes: the same outcomes in the same order, a bounded number of batches under way."""
    import multiprocessing
    import queue
    import threading
    from collections import deque
    from concurrent.futures import Future, ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    pool = ProcessPoolExecutor(
        jobs, multiprocessing.get_context("fork"), initializer=process.child_of_pool, initargs=(os.getpid(),)
    )
    pool.submit(int).result()  # fork the workers before any thread of ours runs
    incoming: queue.Queue[bytestream.Value | BaseException | None] = queue.Queue(1000)

    def read() -> None:
        try:
            for value in values:
                incoming.put(value)
            incoming.put(None)
        except BaseException as error:
            incoming.put(error)

    threading.Thread(target=read, daemon=True, name="reader").start()
    window: deque[tuple[list[bytestream.Value], Future[list[tuple[Outcome, bool]]]]] = deque()
    batch: list[bytestream.Value] = []
    size = 0
    ended = False
    try:
        while not ended or batch or window:
            item: bytestream.Value | BaseException | None
            try:
                # A slow input must not wait for a full batch, nor finished work for more input.
                item = incoming.get(timeout=0.05) if not ended else None
            except queue.Empty:
                item = None
            else:
                ended = ended or item is None
            if isinstance(item, BaseException):
                raise item
            if item is not None:
                batch.append(item)
                size += len(item.raw)
            if batch and (item is None or size > 1 << 18 or len(batch) >= 256):
                window.append((batch, pool.submit(_work_batch, work, batch)))
                batch, size = [], 0
            while window and (window[0][1].done() or len(window) > 2 * jobs or ended):
                done, future = window.popleft()
                for value, (outcome, repaired) in zip(done, future.result(), strict=True):
                    yield value, outcome, repaired
    except BrokenProcessPool:
        raise Failure(
            "a worker process was killed (out of memory?); the output stops at the last whole record"
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def progress(tool: str, quiet: bool, total: int | None = None, unit: str = " records") -> Iterator[Callable[..., Any]]:
    """A bar on stderr if it is a terminal that does not also show the data; yields the function that advances it."""
    shared = _stdout_shows_data and sys.stdout.isatty() and os.path.sameopenfile(1, 2)
    if quiet or shared or not sys.stderr.isatty():
        yield lambda n=1: None
        return
    from tqdm import tqdm

    with tqdm(desc=f"vtools {tool}", total=total, unit=unit, file=sys.stderr, leave=False, mininterval=0.2) as bar:
        yield bar.update


def stamp(record: Record, op: str, **details: Any) -> Record:
    """Note in the record which tool has worked on it; the same note again changes nothing."""
    note = {"op": op, "v": __version__, **details}
    notes = record.get("vtools")
    notes = list(notes) if isinstance(notes, list) else []
    if note not in notes:
        notes.append(note)
    record.pop("vtools", None)
    record["vtools"] = notes
    return record


def now() -> str:
    """The time in UTC to the second, for `fetched_at` alone."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
