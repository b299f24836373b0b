"""The journal of paid answers: a rerun after a kill asks only for the remaining ones."""

import contextlib
import hashlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from vtools import process
from vtools.files.lock import own
from vtools.inference.client import TOKENS
from vtools.inference.endpoint import EndpointError
from vtools.options import Common
from vtools.records import filtering, jsonl, parallel, streams
from vtools.records.jsonl import Record, Reject


@dataclass(slots=True)
class Task:
    """One question to ask: its origin, its content and the key of its record; or the Reject that prevents it."""

    value: streams.Value
    source: Record | None  # the input record, for the rejects file
    question: Any = None
    key: str = ""
    reject: Reject | None = None
    repaired: bool = False


def tasks(files: Iterable[str], read: Callable[[Record], Any]) -> Iterator[Task]:
    """Every record of the files as a task, with the result of `read` or the Reject that it raised."""
    for value in jsonl.values(files):
        record, repaired = jsonl.parse(value)
        task = Task(value, None if isinstance(record, Reject) else record, repaired=repaired)
        try:
            if isinstance(record, Reject):
                raise record
            task.question = read(record)
        except Reject as reject:
            task.reject = reject
        yield task


def key(*parts: Any) -> str:
    """32 hexadecimal digits from everything that an answer depends on (BLAKE2b of canonical JSON, 128 bits)."""
    canonical = orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(canonical, digest_size=16).hexdigest()


class Keys:
    """Makes equal keys of one input unique, so that the same question asked twice gets two answers."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def unique(self, key: str) -> str:
        """The key itself the first time, then `KEY-2`, `KEY-3`…"""
        self.seen[key] += 1
        return key if self.seen[key] == 1 else f"{key}-{self.seen[key]}"


class Journal:
    """Finished records by key, on disk: the output of an earlier run, and the journal of an unfinished one."""

    def __init__(self) -> None:
        self._index: dict[str, tuple[BinaryIO, int, int]] = {}
        self._stream: BinaryIO | None = None
        self._lock = threading.Lock()

    def get(self, key: str) -> Record | None:
        """The finished record with this key."""
        place = self._index.get(key)
        if place is None:
            return None
        stream, offset, length = place
        return orjson.loads(os.pread(stream.fileno(), length, offset))

    def add(self, record: Record) -> None:
        """Store a record that has a `key`; it is on disk when this returns."""
        if self._stream is not None:
            with self._lock:
                self._stream.write(jsonl.dumps(record))
                self._stream.flush()
                os.fsync(self._stream.fileno())

    def _read(self, stream: BinaryIO, finished: Callable[[Record], bool] = lambda record: True) -> int:
        """Index a file of records, skipping foreign lines; returns where its last whole line ends."""
        offset = end = 0
        for line in stream:
            with contextlib.suppress(orjson.JSONDecodeError):
                record = orjson.loads(line) if line.endswith(b"\n") else None  # without its newline it is torn
                if isinstance(record, dict) and isinstance(record.get("key"), str) and finished(record):
                    self._index[record["key"]] = (stream, offset, len(line))
            offset += len(line)
            if line.endswith(b"\n"):
                end = offset
        return end


@contextlib.contextmanager
def keep(path: str | None, finished: Callable[[Record], bool] = lambda record: True) -> Iterator[Journal]:
    """The journal of an output file, removed when the block succeeds. Raises TryAgain if another run holds it.

    `finished` says which records of an older, complete FILE count. For stdout or a pipe nothing is kept.
    """
    journal = Journal()
    if path is None or path == "-" or (os.path.exists(path) and not os.path.isfile(path)):
        yield journal
        return
    name = Path(f"{path}.journal")
    with contextlib.ExitStack() as stack:
        handle = own(name, f"{path}: another vtools process is writing it; try again when it has ended")
        stream = stack.enter_context(os.fdopen(handle, "r+b"))
        if os.path.exists(path):
            journal._read(stack.enter_context(open(path, "rb")), finished)
        stream.truncate(journal._read(stream))
        stream.seek(0, os.SEEK_END)
        journal._stream = stream
        try:
            yield journal
        except BaseException:
            if os.fstat(stream.fileno()).st_size == 0:  # nothing was asked: leave no empty file
                os.unlink(name)
            raise
        os.unlink(name)


def peek(path: str | None, finished: Callable[[Record], bool] = lambda record: True) -> set[str]:
    """The keys that a run with this output file would not ask for again; read-only."""
    journal = Journal()
    for name, counts in ((path, finished), (f"{path}.journal", lambda record: True)):
        if path and name and os.path.isfile(name):
            with open(name, "rb") as stream:
                journal._read(stream, counts)
    return set(journal._index)


def run(
    tool: str,
    tasks: Iterable[Task],
    ask: Callable[[Task], Record],
    common: Common,
    *,
    write: Callable[[jsonl.Output, Record], None],
    finished: Callable[[Record], bool] = lambda record: True,
) -> str | None:
    """`filtering.run` for work that waits: each task through `ask`, several at a time; finished ones come from FILE.

    A failed question does not affect the others; the returned text reports failures, and a rerun asks for them again.
    """
    counts, out = filtering.Rejects(tool, common.rejects), common.out
    failed = None
    with keep(out, finished) as journal, jsonl.output(out) as output, jsonl.progress(tool, common.quiet) as tick:

        def work(task: Task) -> tuple[Record | Reject, bool]:
            if task.reject:
                return task.reject, False
            if (known := journal.get(task.key)) is not None:
                return known, True
            try:
                record = ask(task)
            except Reject as reject:
                return reject, False
            except process.TryAgain:
                raise
            except process.Failure as failure:
                if isinstance(failure, EndpointError) and failure.fatal:
                    raise
                return Reject("unanswered", str(failure)), False
            journal.add(record)
            return record, False

        for task, (outcome, known) in parallel.in_threads(work, tasks, common.jobs):
            counts.received += 1
            counts.repaired += task.repaired
            tick()
            if isinstance(outcome, Reject):
                counts.add(outcome, task.value, task.source)
                if outcome.reason == "unanswered":
                    failed = failed or f"{task.value.file}:{task.value.number}: {outcome.detail}"
                continue
            write(output, outcome)
            counts.kept += 1
            counts.extra["reused"] += known
            usage = None if known else outcome.get("usage")
            if usage:
                for name in TOKENS:
                    counts.extra[f"tokens {name}"] += usage[name]
    filtering.close(counts, common)
    if failed:
        again = f" ({out} has the others; repeat the command to ask only for these)" if out and out != "-" else ""
        return f"{counts.reasons['unanswered']} of {counts.received} failed{again}; the first: {failed}"
    if common.rejects is None and counts.received and counts.reasons["bad_schema"] == counts.received:
        return f"{counts.first} (no record has a shape that vtools {tool} reads)"
    return None
