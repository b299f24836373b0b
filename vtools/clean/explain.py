"""`--explain`: what each step does to the records with one id. Others run too: some steps remember them."""

import sys
from collections.abc import Iterable

from vtools.clean import steps
from vtools.clean.choices import Choices
from vtools.clean.draft import Draft, Step
from vtools.process import Failure
from vtools.records import jsonl, streams
from vtools.records.conversation import Message
from vtools.records.jsonl import Output, Record, Reject


def tell(identity: str, choices: Choices, values: Iterable[streams.Value], ordered: list[Step], output: Output) -> None:
    """Write one line per step for every record with this id. Raises Failure if there is none."""
    found = False
    for value in values:
        record = jsonl.parse(value)[0]
        if isinstance(record, Reject):
            continue
        made = Draft(record)
        lines = outcomes(choices, ordered, made)
        if str(made.record.get("id")) != identity:  # an unreadable record keeps the id of its input
            continue
        found = True
        for line in lines:
            line = {"id": identity, "file": value.file, "line": value.number, **line}
            output.write(line)
            if sys.stderr.isatty():
                sizes = "" if line["before"] == line["after"] else f" ({line['before']} to {line['after']} characters)"
                reason = f"{line['reason']}: " if "reason" in line else ""
                print(f"{line['step']:>16}  {line['outcome']:8}{reason}{line['detail']}{sizes}", file=sys.stderr)
    if not found:
        raise Failure(f"--explain {identity}: no record has this id")


def outcomes(choices: Choices, ordered: list[Step], made: Draft) -> list[Record]:
    """Run a record through the steps until one drops it: each outcome, with the characters before and after."""
    lines: list[Record] = []
    pure = steps.pure(choices)
    for place, step in enumerate([*pure, *ordered]):
        if place == len(pure):
            steps.prepare(choices, made)
        before, texts = _characters(made), made.record.get("messages") if place else None
        try:
            detail = step.take(made)
        except Reject as reject:
            dropped = {"step": step.name, "outcome": "dropped", "reason": reject.reason, "detail": reject.detail}
            return [*lines, {**dropped, "before": before, "after": None}]
        if texts is not None:  # the first step reads the record
            detail = ": ".join(filter(None, (detail, _changed(texts, made.record["messages"])))) or None
        line = {"step": step.name, "outcome": "passed" if detail is None else "changed", "detail": detail or ""}
        lines.append({**line, "before": before, "after": _characters(made)})
    size = _characters(made)
    return [*lines, {"step": "write", "outcome": "kept", "detail": "", "before": size, "after": size}]


def _changed(before: list[Message], after: list[Message]) -> str:
    """Which messages changed."""
    pairs = enumerate(zip(before, after, strict=False))
    places = [place for place, (old, new) in pairs if old["content"] != new["content"]]
    cut = f"{len(before)} messages to {len(after)}" if len(after) != len(before) else ""
    texts = f"changed messages {', '.join(map(str, places))}" if places else ""
    return "; ".join(filter(None, (cut, texts)))


def _characters(made: Draft) -> int | None:
    """Characters in all texts together; None before the record is read."""
    try:
        return sum(len(message["content"]) for message in made.record["messages"])
    except (KeyError, TypeError):
        return None
