"""The metrics of a training run: first and last values, and the curve of the loss."""

from typing import Any

from vtools.records.jsonl import Record


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


def picture(steps: list[Record], path: str) -> bytes:
    """The loss of a run by step, and the held-out loss where it was measured."""
    from vtools import plots

    # A killed run may have printed steps after its last checkpoint, which the resumed run repeats: the last line wins.
    series = {}
    for key, name in (("loss", "training loss"), ("eval_loss", "held-out loss")):
        points = {
            step["step"]: step[key] for step in steps if "step" in step and isinstance(step.get(key), int | float)
        }
        series[name] = sorted(points.items())
    title = "Loss of the training run (lower is better)"
    return plots.picture(path, plots.lines(title, series, "step", "loss per trained token"))
