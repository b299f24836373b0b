"""`vtools stats`: what is in a file of records, or of training metrics; as numbers and as a picture."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from vtools import conversation, jsonl, options
from vtools.jsonl import Record, Reject
from vtools.process import Failure

TURN_BINS = (1, 2, 4, 8, 16, 32, 64)
LENGTH_BINS = (256, 1024, 4096, 16384, 65536)


def stats(
    files: options.Files = None,
    plot: Annotated[str | None, typer.Option("--plot", metavar="FILE", help="Draw a picture: .svg, or .png.")] = None,
    out: options.Out = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Count records, or sum up the metrics of a training run.

    Writes one JSON object; on a terminal a table goes to stderr beside it. Conversations, rejects files and the
    metrics of `vtools train` are told apart by themselves.

    \b
    Examples:
      vtools stats train.jsonl
      vtools stats metrics.jsonl --plot loss.svg
    """
    records = jsonl.records(files or [])
    first = next(records, None)
    metrics = first is not None and "step" in first and "messages" not in first
    lines = [] if first is None else _chain(first, records)
    try:
        if metrics:
            steps = list(lines)
            summary = sum_up(steps)
            if plot:
                plot_metrics(steps, plot)
        else:
            summary = count(lines)
            if plot:
                plot_turns(summary, plot)
    finally:
        records.close()
    with jsonl.output(out) as output:
        output.write(summary)
    if sys.stderr.isatty() and not quiet:
        for key, value in summary.items():
            print(f"{key:>16}  {value}", file=sys.stderr)


def _chain(first: Record, rest: Iterable[Record]) -> Iterable[Record]:
    yield first
    yield from rest


def count(lines: Iterable[Record]) -> dict[str, Any]:
    """Counts over conversations, in one pass: roles, turns, lengths in characters, sources, licences, rejects."""
    roles: Counter[str] = Counter()
    turns: Counter[str] = Counter()
    lengths: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    licences: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    records = messages = characters = 0
    for value in lines:
        if "reason" in value and "stage" in value:  # a rejects file
            reasons[f"{value['stage']}: {value['reason']}"] += 1
            continue
        records += 1
        try:
            record = conversation.read(value)
        except Reject as reject:
            reasons[f"stats: {reject.reason}"] += 1
            continue
        found = record["messages"]
        roles.update(message["role"] for message in found)
        length = sum(len(message["content"]) for message in found)
        messages, characters = messages + len(found), characters + length
        turns[_bin(sum(message["role"] == "user" for message in found), TURN_BINS)] += 1
        lengths[_bin(length, LENGTH_BINS)] += 1
        source = record.get("source")
        source = source if isinstance(source, dict) else {}
        sources[str(source.get("kind"))] += 1
        licences[str(source.get("license"))] += 1
    return {
        "records": records,
        "messages": messages,
        "characters": characters,
        "roles": dict(roles.most_common()),
        "user_turns": _ordered(turns, TURN_BINS),
        "record_characters": _ordered(lengths, LENGTH_BINS),
        "sources": dict(sources.most_common()),
        "licences": dict(licences.most_common()),
        "reasons": dict(reasons.most_common(20)),
    }


def _bin(number: int, bounds: tuple[int, ...]) -> str:
    for bound in bounds:
        if number <= bound:
            return f"<={bound}"
    return f">{bounds[-1]}"


def _ordered(counts: Counter[str], bounds: tuple[int, ...]) -> dict[str, int]:
    names = [f"<={bound}" for bound in bounds] + [f">{bounds[-1]}"]
    return {name: counts[name] for name in names if counts[name]}


def sum_up(steps: list[Record]) -> dict[str, Any]:
    """First and last values of a training run's metrics."""
    trained = [step for step in steps if "loss" in step]
    held_out = [step for step in steps if "eval_loss" in step]
    summary: dict[str, Any] = {"steps": max((step.get("step", 0) for step in steps), default=0)}
    if trained:
        summary |= {"first_loss": trained[0]["loss"], "last_loss": trained[-1]["loss"]}
        for key in ("tokens", "trained_tokens"):
            summary[key] = sum(step.get(key, 0) for step in trained)
    if held_out:
        summary |= {"first_eval_loss": held_out[0]["eval_loss"], "last_eval_loss": held_out[-1]["eval_loss"]}
    return summary


def plot_metrics(steps: list[Record], path: str) -> None:
    """Draw the loss of a run over its steps, and the held-out loss where it was measured."""
    from vtools import chart

    # A resumed run repeats no step, but a killed one may have printed steps after its last checkpoint: the last wins.
    series = {}
    for key, name in (("loss", "training loss"), ("eval_loss", "held-out loss")):
        points = {
            step["step"]: step[key] for step in steps if "step" in step and isinstance(step.get(key), int | float)
        }
        series[name] = sorted(points.items())
    if not any(series.values()):
        raise Failure("no loss in these metrics, so there is nothing to draw")
    chart.lines(path, "Loss", series, "step", "loss a trained token")


def plot_turns(summary: dict[str, Any], path: str) -> None:
    """Draw how many records have how many user turns."""
    from vtools import chart

    chart.stacked_bars(path, "Records by number of user turns", [("all records", summary["user_turns"])])
