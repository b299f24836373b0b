"""How far a run of questions is: on a terminal one line that is redrawn, elsewhere one line per minute."""

import sys
import time
from typing import Self

from vtools.inference.budget import Budget
from vtools.process import CLEAR, say
from vtools.records import jsonl

REDRAWN = 0.2  # seconds
SAID = 60.0  # seconds


class Progress:
    """Counts what is done. `total` is None where the input is a stream whose end is not known."""

    def __init__(self, tool: str, unit: str, total: int | None, quiet: bool, budget: Budget | None) -> None:
        self.tool, self.unit, self.total, self.budget = tool, unit, total, budget
        self._live = sys.stderr.isatty()
        self._silent = quiet or jsonl.shares_terminal()
        self._started = self._last = time.monotonic()
        self.done = self.asked = self.failed = 0

    def tick(self, asked: bool, failed: bool) -> None:
        """Count a question that is done; `asked` if its answer did not come from an earlier run."""
        self.done += 1
        self.asked += asked
        self.failed += failed
        now = time.monotonic()
        if self._silent or now - self._last < (REDRAWN if self._live else SAID):
            return
        self._last = now
        if self._live:
            print(f"{CLEAR}vtools {self.tool}: {self.text(now)}", end="", file=sys.stderr, flush=True)
        else:
            say(self.tool, self.text(now))

    def drop(self) -> None:
        """Count one question less: it is not needed."""
        if self.total is not None:
            self.total -= 1

    def text(self, now: float) -> str:
        """The counts, the cost and the time left, as far as they are known."""
        of = "" if self.total is None else f" of {self.total:,}"
        parts = [f"{self.done:,}{of} {self.unit}"]
        if self.failed:
            parts.append(f"{self.failed:,} failed")
        if self.budget:
            parts.append(f"{self.budget.spent:.2f} USD")
        if self.total is not None and self.asked:
            parts.append(f"{lasting((self.total - self.done) * (now - self._started) / self.asked)} left")
        return ", ".join(parts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._live and not self._silent:
            print(CLEAR, end="", file=sys.stderr, flush=True)


def lasting(seconds: float) -> str:
    """A time in words: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
