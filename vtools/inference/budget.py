"""What the answers of a run cost, and a limit that no call may pass."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from vtools.process import Failure

PER_MESSAGE = 32  # tokens that a template adds at most


class Spent(Failure):
    """The next call could pass the limit."""


class Bill:
    """One call: `tokens` read and written once they are known; what `may_cost` without them counts as the most."""

    tokens: tuple[int, int] | None = None
    may_cost = True


@dataclass
class Purse:
    """What several models spend together, and the limit that holds for all of them."""

    limit: float | None = None
    spent: float = 0.0
    held: float = 0.0  # the most that calls under way can cost
    over: str | None = None
    changed: threading.Condition = field(default_factory=threading.Condition)


class Budget:
    """Dollars spent, by a price per million tokens in and out. Thread-safe."""

    def __init__(self, price: tuple[float, float], limit: float | None = None, purse: Purse | None = None) -> None:
        """With the `purse` of another model's budget, whose limit holds then, both count together."""
        self.price, self.purse = price, purse or Purse(limit)

    @property
    def spent(self) -> float:
        """Dollars, of all models with this purse."""
        return self.purse.spent

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
        most, purse = self.cost(bytes_in, max_tokens or 0), self.purse
        with purse.changed:
            while purse.limit is not None and purse.over is None and purse.spent + purse.held + most > purse.limit:
                if purse.held:
                    purse.changed.wait()
                else:
                    purse.over = (
                        f"--max-usd {purse.limit:g}: stopped at {purse.spent:.4f} USD, as the next call may cost "
                        f"{most:.4f}; raise the limit and repeat the command to ask for the rest"
                    )
            if purse.over:
                purse.changed.notify_all()
                raise Spent(purse.over)
            purse.held += most
        bill = Bill()
        try:
            yield bill
        finally:
            with purse.changed:
                purse.held = max(0.0, purse.held - most)
                purse.spent += self.cost(*bill.tokens) if bill.tokens else most if bill.may_cost else 0.0
                purse.changed.notify_all()
