"""Running a filter: records through a pure function, in ordered worker processes, with rejects and counts."""

import base64
import functools
import gc
import os
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from vtools import __version__
from vtools.options import Common
from vtools.process import Failure, UsageFailure, say
from vtools.records import advice, conversation, jsonl, streams
from vtools.records.jsonl import Record, Reject

# Reasons that mean broken input: without --rejects they end the run.
BROKEN = frozenset(("bad_json", "not_object", "torn_input", "unavailable"))
# Reasons that mean a record whose shape or roles are not known: if every record has one, the run fails.
UNREADABLE = BROKEN | {"bad_schema", "unknown_role", "bad_label", "tool", "thinking", "media"}


class Rejects:
    """The rejects file and the counts: `in == out + rejected` at every moment between two records."""

    def __init__(self, tool: str, path: str | None, files: Iterable[str] = ()) -> None:
        """`files` are the inputs. Raises UsageFailure if the rejects file is one of them."""
        inputs = (file for file in files if os.path.exists(file))
        if path and os.path.exists(path) and any(os.path.samefile(path, file) for file in inputs):
            raise UsageFailure(f"--rejects {path}: is an input file; choose another")
        self.tool = tool
        self.stream = open(path, "wb") if path else None  # noqa: SIM115  lives as long as the run
        self.goes_on = False  # past broken input, also without a rejects file
        self.received = self.kept = self.repaired = 0
        self.reasons: Counter[str] = Counter()
        self.extra: Counter[str] = Counter()
        self.first: str | None = None
        self.unreadable: str | None = None  # the first such reject, and what to do
        self.value: streams.Value | None = None  # the value whose outcome is being written

    def add(self, reject: Reject, value: streams.Value, record: Any = None) -> None:
        """Count a reject and save it; without a rejects file, broken input raises Failure."""
        if self.stream is None and reject.reason in BROKEN and not self.goes_on:
            hint = "" if value.foreign else " (--rejects FILE saves these and continues)"
            raise Failure(f"{value.place}: {reject.detail or reject.reason}{hint}")
        self.reasons[reject.reason] += 1
        said = f"{value.place}: {reject.reason}: {reject.detail}"
        self.first = self.first or said
        if self.unreadable is None and reject.reason in UNREADABLE:
            todo = advice.for_record(reject, record)
            self.unreadable = said + (f"; {todo}" if todo else "")
        self.save(reject, value, record)

    def save(self, reject: Reject, value: streams.Value, record: Any = None) -> None:
        """Write a line to the rejects file, if there is one, without counting."""
        if self.stream is None:
            return
        row = {
            "stage": self.tool,
            "reason": reject.reason,
            "detail": reject.detail,
            "line": value.number,
            "id": record.get("id") if isinstance(record, dict) else None,
            "source": value.file,
        }
        row |= {"raw_b64": base64.b64encode(value.raw).decode()} if record is None else {"record": record}
        self.stream.write(jsonl.dumps(row))
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
        parts += self.turns()
        if self.rejected and (self.kept == 0 or self.kept * 100 < self.received):
            most = self._unread() * 2 > self.rejected
            parts.append(f"most cannot be read, the first: {self.unreadable}" if most else f"the first: {self.first}")
        return ", ".join(parts).replace(", (", " (")

    def turns(self) -> list[str]:
        """The counts of turns for that line, of a tool that counts them there."""
        return []

    def _unread(self) -> int:
        return sum(self.reasons[reason] for reason in UNREADABLE)

    def check_readable(self) -> None:
        """Raise Failure if not one of the records could be read, nor was known already."""
        if self.received and self._unread() == self.received and not (self.extra["known"] or self.extra["unchanged"]):
            others = f"none of the {self.received:,} records can" if self.received > 1 else "the only record cannot"
            raise Failure(f"{self.unreadable} ({others} be read)")


Outcome = Record | list[Record] | Reject | None  # None: known from an earlier run
Work = Callable[[Record], Outcome]
Done = tuple[Record | Reject | None, Outcome, bool]  # record as read, if at hand; outcome; whether repaired


def run(
    counts: Rejects, values: Iterable[streams.Value], work: Work, common: Common, *,
    write: Callable[[Record], None], finish: Callable[[Any], Record | Reject] | None = None, leaves: bool = True,
    progress: bool = True,
) -> None:  # fmt: skip
    """Run a filter: each value through `work` (in `common.jobs` processes), then in input order through `finish`.

    `work` is pure: a record in; a record, several, or a Reject out. `finish` may keep state (such as duplicates).
    Writes the closing line and the stats file. If what is written `leaves` as a conversation, each is checked here,
    the only way out, and it is a Failure if no record at all can be read. Without `progress`, the caller shows it.
    """
    gc.set_threshold(20_000)  # records have no cycles; looking for them at the default rate took a tenth of the time
    outcomes: Iterable[tuple[streams.Value, Done]]
    if common.jobs == 1:
        outcomes = ((value, _outcome(work, value)) for value in values)
    else:
        from vtools.records import parallel  # here: its imports are a tenth of a filter's start-up

        outcomes = parallel.in_processes(functools.partial(_outcome, work, apart=True), values, common.jobs, _size)
    with jsonl.progress(counts.tool, common.quiet or not progress) as tick:
        for value, (read, outcome, repaired) in outcomes:
            if outcome is None:
                counts.extra["known"] += 1
                continue
            counts.received += 1
            counts.repaired += repaired
            counts.value = value
            tick()
            made: list[Record | Reject] = list(outcome) if isinstance(outcome, list) else [outcome]
            if finish:
                made = [one if isinstance(one, Reject) else finish(one) for one in made]
            kept = [one for one in made if not isinstance(one, Reject)]
            if leaves and (flaws := [flaw for one in kept if (flaw := conversation.flaw(one))]):
                kept, made = [], [Reject("bad_schema", flaws[0])]
            if made and not kept:
                given = read or jsonl.parse(value)[0]  # as read: `work` changes nothing in place
                counts.add(made[0], value, None if isinstance(given, Reject) else given)  # type: ignore[arg-type]
                continue
            for record in kept:
                write(record)
            counts.kept += 1
    close(counts, common, leaves)


def close(counts: Rejects, common: Common, leaves: bool = False) -> None:
    """Write the stats file and the closing line; `leaves` as in `run`."""
    if common.stats:
        with jsonl.output(common.stats) as out:
            out.write(counts.summary())
    if leaves:
        counts.check_readable()
    if not common.quiet:
        say(counts.tool, counts.line())


def _outcome(work: Work, value: streams.Value, apart: bool = False) -> Done:
    """The outcome of a raw value. A process `apart` does not send records back: rereading rejects is cheaper."""
    read, repaired = jsonl.parse(value)
    at_hand = None if apart else read
    try:
        return at_hand, read if isinstance(read, Reject) else work(read), repaired
    except Reject as reject:  # under no other name: its traceback holds this frame, which would hold it
        return at_hand, reject, repaired


def _size(value: streams.Value) -> int:
    return len(value.raw)
