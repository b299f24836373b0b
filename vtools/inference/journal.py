"""The journal of paid answers: nothing is lost or asked for twice, and answers of two models are not mixed."""

import contextlib
import hashlib
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from vtools.files import atomic
from vtools.files.lock import own
from vtools.process import Failure
from vtools.records import jsonl, streams
from vtools.records.jsonl import Record, Reject


class OtherModel(Failure):
    """A server names its model otherwise than in the first row, which ends the run."""


@dataclass(slots=True)
class Task:
    """One question to ask: its origin, its content and the key of its record; or the Reject that prevents it.

    One that takes several calls may `keep` what it has so far under the same key, with a true field `unfinished`: if
    the rest fails, the next run gets this as `begun`.
    """

    value: streams.Value
    source: Record | None  # the input record, for the rejects file
    question: Any = None
    key: str = ""
    reject: Reject | None = None
    repaired: bool = False
    begun: Record | None = None
    keep: Callable[[Record], None] = lambda record: None


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


@dataclass(frozen=True, slots=True)
class Kind:
    """What a tool's rows are: `model` is the field with the name of the model that was asked, and `MODEL_reported` the
    one with the name that its server gave. `finished` says which rows of a complete FILE count; others are asked again.
    `same` has fields, with their values, that may not be different in any row of the file.
    """

    model: str
    finished: Callable[[Record], bool] = lambda record: True
    same: Mapping[str, str] = field(default_factory=dict)


class Journal:
    """Finished records by key, on disk: the output of an earlier run, and the journal of an unfinished one."""

    def __init__(self, out: str | None, kind: Kind) -> None:
        self._out, self._kind = out, kind
        self._places: dict[str, tuple[BinaryIO, int, int]] = {}
        self._again: set[str] = set()  # keys of rows that are asked for once more
        self._begun: dict[str, Record] = {}  # what is there of unfinished rows, by key
        self._stream: BinaryIO | None = None
        self._lock = threading.Lock()
        self._reported: dict[Any, str] = {}  # by the name that was asked, the one that the server gave
        self.times: list[int] = []  # milliseconds that each row took, without those by batch

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> Record | None:
        """The finished record with this key."""
        return None if key in self._again or key not in self._places else self._read(key)

    def begun(self, key: str) -> Record | None:
        """What an earlier run has of an unfinished record with this key."""
        return self._begun.get(key)

    def add(self, record: Record) -> None:
        """Store a record that has a `key`, or what there is of one that is `unfinished`; it is on disk afterwards.

        Raises OtherModel.
        """
        with self._lock:
            asked, told = record.get(self._kind.model), record.get(f"{self._kind.model}_reported")
            if told and self._reported.setdefault(asked, told) != told:
                where = f"{self._out}: " if self._out else ""
                raise OtherModel(
                    f"{where}{asked} was {self._reported[asked]} before and now answers as {told}: two models in one "
                    "file say nothing; name the one that you mean, or another file (-o)"
                )
            if self._stream is not None:
                self._stream.write(jsonl.dumps(record))
                self._stream.flush()
                os.fsync(self._stream.fileno())
                self._note(record)

    def _note(self, record: Record) -> None:
        """Know what is there of an unfinished record, until it is finished, and what its server calls its model."""
        if told := record.get(f"{self._kind.model}_reported"):
            self._reported.setdefault(record.get(self._kind.model), told)
        self._begun.pop(record["key"], None)
        if record.get("unfinished"):
            self._begun[record["key"]] = record

    @property
    def unfinished(self) -> bytes:
        """The lines of all records that are not finished."""
        return b"".join(map(jsonl.dumps, self._begun.values()))

    def begin(self, stream: BinaryIO) -> None:
        """Add to this file from now on."""
        self._stream = stream

    def written(self, key: str) -> None:
        """Note that a row with this key is in the new output."""
        self._places.pop(key, None)

    def others(self) -> Iterator[Record]:
        """What was paid for, or is not ours to drop, and this run has not written; in its order."""
        for key in list(self._places):
            yield self._read(key)

    def _read(self, key: str) -> Record:
        stream, offset, length = self._places[key]
        return orjson.loads(os.pread(stream.fileno(), length, offset))

    def read_output(self, path: str, copy: BinaryIO) -> None:
        """Copy the rows of FILE, which may have any form that records have, to a file of lines, and index that.

        Rows that cost nothing, because nobody was asked, are left out. Raises Failure if a row cannot be read.
        """
        for value in streams.values(path):
            record = jsonl.parse(value)[0]
            if isinstance(record, Reject):
                raise Failure(
                    f"{path}:{value.number}: {record.detail or record.reason}: not a row of an earlier run, and "
                    "nothing is written over; repair or remove it, or name another file (-o)"
                )
            key = record.get("key")
            if isinstance(key, str) and "ms" not in record:
                continue
            if not isinstance(key, str) or key in self._places:
                key = f"{path}:{value.number}"
            elif not self._kind.finished(record):
                self._again.add(key)
            line = jsonl.dumps(record)
            self._index(key, record, (copy, copy.tell(), len(line)))
            copy.write(line)
        copy.flush()

    def read_lines(self, stream: BinaryIO) -> int:
        """Index the lines of an unfinished run's journal; returns where the last whole line ends."""
        offset = end = 0
        for line in stream:
            with contextlib.suppress(Reject):
                record = jsonl.loads(line)[0] if line.endswith(b"\n") else None  # without its newline it is torn
                if isinstance(record, dict) and isinstance(record.get("key"), str):
                    self._note(record)
                    if not record.get("unfinished"):
                        self._index(record["key"], record, (stream, offset, len(line)))
                        self._again.discard(record["key"])
            offset += len(line)
            if line.endswith(b"\n"):
                end = offset
        return end

    def _index(self, key: str, record: Record, place: tuple[BinaryIO, int, int]) -> None:
        self._places[key] = place
        for name, wanted in self._kind.same.items():
            if record.get(name, wanted) != wanted:
                raise Failure(
                    f"{self._out}: has rows whose {name} is {record[name]}, and this run's is {wanted}: they do not "
                    "belong into one file; name another (-o)"
                )
        if told := record.get(f"{self._kind.model}_reported"):
            self._reported.setdefault(record.get(self._kind.model), told)
        if isinstance(record.get("ms"), int) and "batch" not in record:
            self.times.append(record["ms"])


@contextlib.contextmanager
def keep(out: str | None, kind: Kind) -> Iterator[Journal]:
    """The journal of an output file; when the block succeeds, only records that are unfinished stay in it, or it goes.

    Raises TryAgain if another run holds it. For stdout or a pipe nothing is kept.
    """
    if out is None or not is_kept(out):
        yield Journal(None, kind)
        return
    journal, name = Journal(out, kind), Path(f"{out}.journal")
    with contextlib.ExitStack() as stack:
        handle = own(name, f"{out}: another vtools process is writing it; try again when it has ended")
        stream = stack.enter_context(os.fdopen(handle, "r+b"))
        try:
            _read_output(journal, out, stack)
            stream.truncate(journal.read_lines(stream))
            stream.seek(0, os.SEEK_END)
            journal.begin(stream)
            yield journal
        except BaseException:
            if os.fstat(stream.fileno()).st_size == 0:  # nothing was asked: leave no empty file
                os.unlink(name)
            raise
        if journal.unfinished:
            atomic.write(name, journal.unfinished)
        else:
            os.unlink(name)


@contextlib.contextmanager
def peek(out: str | None, kind: Kind) -> Iterator[Journal]:
    """What a run with this output file would find; read-only."""
    journal = Journal(out, kind)
    with contextlib.ExitStack() as stack:
        if out and is_kept(out):
            _read_output(journal, out, stack)
            if os.path.isfile(f"{out}.journal"):
                journal.read_lines(stack.enter_context(open(f"{out}.journal", "rb")))
        yield journal


def is_kept(out: str | None) -> bool:
    """Whether an output is a file, whose rows the next run finds."""
    return out is not None and out != "-" and (os.path.isfile(out) or not os.path.exists(out))


def _read_output(journal: Journal, out: str, stack: contextlib.ExitStack) -> None:
    if os.path.exists(out) and os.path.getsize(out):
        journal.read_output(out, stack.enter_context(_unnamed(Path(out))))


def _unnamed(beside: Path) -> Any:
    return tempfile.TemporaryFile(dir=beside.absolute().parent)
