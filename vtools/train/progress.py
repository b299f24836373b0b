"""What a training run is doing, shown on a terminal: a phase and its clock; then steps, loss, speed and time left."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from vtools.records import jsonl

TICK = 0.5  # seconds


class Progress:
    """One line on the terminal, for the length of a `with`; where the metrics are shown there too, phases alone."""

    def __init__(self, quiet: bool, steps: int = 0) -> None:
        self._bar: Any = None
        self._phase: tuple[str, float] | None = None
        self._ended = threading.Event()
        if not quiet and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=steps, leave=False, file=sys.stderr, bar_format="{desc}")
            self._clock = threading.Thread(target=self._tick, daemon=True)
            self._clock.start()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._ended.set()
            self._clock.join()
            self._bar.close()

    @contextlib.contextmanager
    def phase(self, what: str) -> Iterator[None]:
        """Show what is done, and for how long, for the length of the block."""
        before, self._phase = self._phase, (what, time.monotonic())
        self._draw()
        try:
            yield
        finally:
            self._phase = before
            if self._bar is not None:
                self._bar.clear()
            self._draw()

    def step(self, metrics: dict[str, Any]) -> None:
        """Show the metrics of a step."""
        if self._bar is not None and "loss" in metrics:
            left = timedelta(seconds=metrics["eta_s"])
            self._bar.n = metrics["step"]
            text = f"loss {metrics['loss']:.4f}, {metrics['tokens_per_s']:,.0f} tokens/s, {left} left"
            self._bar.set_postfix_str(text, refresh=False)
            self._draw()

    def _tick(self) -> None:
        while not self._ended.wait(TICK):
            self._draw()

    def _draw(self) -> None:
        if self._bar is None:
            return
        phase = self._phase
        if phase:
            seconds = timedelta(seconds=int(time.monotonic() - phase[1]))
            self._bar.bar_format = "{desc}"
            self._bar.set_description_str(f"vtools train: {phase[0]} ({seconds})")
        elif not jsonl.shares_terminal():
            self._bar.bar_format = "{desc}: {percentage:3.0f} %|{bar}| {n_fmt} of {total_fmt} steps, {elapsed}{postfix}"
            self._bar.set_description_str("vtools train")
