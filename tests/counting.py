"""Work counted in steps of Python, so that no clock decides whether it grows with its input or with its square.

What one step does in C is not counted: a test of that runs it on an input so long that its square would take hours.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path

from running import Result, command, measured

SLACK = 200  # steps


def steps(work: Callable[[], object]) -> int:
    """How many lines are run, and functions called, until it returns or raises SystemExit."""
    count, before = 0, sys.gettrace()

    def trace(frame: object, event: str, argument: object) -> object:
        nonlocal count
        count += 1
        return trace

    sys.settrace(trace)
    try:
        work()
    except SystemExit:
        pass
    finally:
        sys.settrace(before)
    return count


def grows_in_proportion(small: int, middle: int, large: int) -> bool:
    """Whether these counts, for an input, twice and four times as much, are linear: a square would add four times more."""
    return large - middle <= 2.2 * (middle - small) + SLACK


def assert_linear(work: Callable[[int], object], size: int) -> None:
    """Work on an input of a size takes steps in proportion to it."""
    work(size)  # what is done but once, as imports are
    counts = [steps(functools.partial(work, size * times)) for times in (1, 2, 4)]
    assert grows_in_proportion(*counts), counts


PROGRAM = f"""
import sys
sys.path.append({str(Path(__file__).parent)!r})
from counting import steps
from vtools import cli
report = sys.argv.pop(1)
print(steps(cli.main), file=open(report, "w"))
"""


def counted(report: Path, *arguments: object, **options: object) -> tuple[Result, int, int]:
    """`vtools ARGUMENTS` run to its end, its steps and its peak memory in bytes."""
    python, *_ = command()
    done, _, memory = measured([python, "-c", PROGRAM, str(report), *map(str, arguments)], **options)
    return done, int(report.read_text()), memory
