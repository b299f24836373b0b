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
from vtools.records import jsonl, streams
from vtools.records.jsonl import Record, Reject

# Reasons that mean broken input: without --rejects they end the run.
BROKEN = frozenset(("bad_json", "not_object", "torn_input"))


class Rejects:
    """The rejects file and the counts: `in == out + rejected` at every moment between two records."""

    def __init__(self, tool: str, path: str | None, files: Iterable[str] = ()) -> None:
        """`files` are the inputs. Raises UsageFailure if the rejects file is one of them."""
        inputs = (file for file in files if os.path.exists(file))
        if path and os.path.exists(path) and any(os.path.samefile(path, file) for file in inputs):
            raise UsageFailure(f"--rejects {path}: is an input file; choose another")
        self.tool = tool
        self.stream = open(path, "wb") if path else None  # noqa: SIM115  lives as long as the run
        self.received = self.kept = self.repaired = 0
        self.reasons: Counter[str] = Counter()
        self.extra: Counter[str] = Counter()
        self.first: str | None = None
        self.value: streams.Value | None = None  # the value whose outcome is being written

    def add(self, reject: Reject, value: streams.Value, record: Any = None) -> None:
        """Count a reject and save it; without a rejects file, broken input raises Failure."""
        place = f"{value.file}:{value.number}"
        if self.stream is None and reject.reason in BROKEN:
            raise Failure(f"{place}: {reject.detail or reject.reason} (--rejects FILE saves these and continues)")
        self.reasons[reject.reason] += 1
        self.first = self.first or f"{place}: {reject.reason}: {reject.detail}"
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
        return ", ".join(parts).replace(", (", " (")


Outcome = Record | list[Record] | Reject
Work = Callable[[Record], Outcome]
Done = tuple[Record | Reject | None, Outcome, bool]  # record as read, if at hand; outcome; whether repaired


def run(
    counts: Rejects, values: Iterable[streams.Value], work: Work, common: Common, *,
    write: Callable[[Record], None], finish: Callable[[Any], Record | Reject] | None = None,
) -> None:  # fmt: skip
    """Run a filter: each value through `work` (in `common.jobs` processes), then in input order through `finish`.

    `work` is pure: a record in; a record, several, or a Reject out. `finish` may keep state (such as duplicates).
    Writes the closing line and the stats file.
    """
    gc.set_threshold(20_000)  # records have no cycles; looking for them at the default rate took a tenth of the time
    outcomes: Iterable[tuple[streams.Value, Done]]
    if common.jobs == 1:
        outcomes = ((value, _outcome(work, value)) for value in values)
    else:
        from vtools.records import parallel  # here: its imports are a tenth of a filter's start-up

        outcomes = parallel.in_processes(functools.partial(_outcome, work, apart=True), values, common.jobs, _size)
    with jsonl.progress(counts.tool, common.quiet) as tick:
        for value, (read, outcome, repaired) in outcomes:
            counts.received += 1
            counts.repaired += repaired
            counts.value = value
            tick()
            made = outcome if isinstance(outcome, list) else [outcome]
            if finish:
                made = [one if isinstance(one, Reject) else finish(one) for one in made]
            kept = [one for one in made if not isinstance(one, Reject)]
            if made and not kept:
                given = read or jsonl.parse(value)[0]  # as read: `work` changes nothing in place
                counts.add(made[0], value, None if isinstance(given, Reject) else given)  # type: ignore[arg-type]
                continue
            for record in kept:
                write(record)
            counts.kept += 1
    if counts.stream is None and counts.received and counts.reasons["bad_schema"] == counts.received:
        raise Failure(f"{counts.first} (no record has a format that vtools reads)")
    close(counts, common)


def close(counts: Rejects, common: Common) -> None:
    """Write the stats file and the closing line."""
    if common.stats:
        with jsonl.output(common.stats) as out:
            out.write(counts.summary())
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
