"""What the answers of a run cost, and a limit that no call may pass."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from vtools.process import Failure

PER_MESSAGE = 32  # tokens that a template adds at most


class Spent(Failure):
    """The next call could pass the limit."""


class Bill:
    """One call: `tokens` read and written once they are known; what `may_cost` without them counts as the most."""

    tokens: tuple[int, int] | None = None
    may_cost = True


class Budget:
    """Dollars spent, by a price per million tokens in and out. Thread-safe."""

    def __init__(self, price: tuple[float, float], limit: float | None = None) -> None:
        self.price, self.limit = price, limit
        self.spent = self._held = 0.0
        self._changed = threading.Condition()
        self._over: str | None = None

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        """Dollars for so many tokens."""
        return (tokens_in * self.price[0] + tokens_out * self.price[1]) / 1e6

    @contextlib.contextmanager
    def call(self, messages: list[dict[str, Any]], max_tokens: int | None) -> Iterator[Bill]:
        """Hold the most that a call can cost while it runs, then count what it did cost.

        A token has at least one byte, so a prompt has at most as many tokens as bytes. Where the limit leaves too
        little, calls under way are waited for, which as a rule cost less than the most; Spent is raised when none is.
        """
        bytes_in = sum(len(message["content"].encode("utf-8", "replace")) + PER_MESSAGE for message in messages)
        most = self.cost(bytes_in, max_tokens or 0)
        with self._changed:
            while self.limit is not None and self._over is None and self.spent + self._held + most > self.limit:
                if self._held:
                    self._changed.wait()
                else:
                    self._over = (
                        f"--max-usd {self.limit:g}: stopped at {self.spent:.4f} USD, as the next call may cost "
                        f"{most:.4f}; raise the limit and repeat the command to ask for the rest"
                    )
            if self._over:
                self._changed.notify_all()
                raise Spent(self._over)
            self._held += most
        bill = Bill()
        try:
            yield bill
        finally:
            with self._changed:
                self._held = max(0.0, self._held - most)
                self.spent += self.cost(*bill.tokens) if bill.tokens else most if bill.may_cost else 0.0
                self._changed.notify_all()
