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
    over: Spent | None = None
    changed: threading.Condition = field(default_factory=threading.Condition)


class Budget:
    """Dollars spent, by a price per million tokens in and out, and by another for a `batch`. Thread-safe."""

    def __init__(
        self,
        price: tuple[float, float],
        limit: float | None = None,
        batch: tuple[float, float] = (0.0, 0.0),
        purse: Purse | None = None,
    ) -> None:
        """With the `purse` of another model's budget, whose limit holds then, both count together."""
        self.price, self.batch, self.purse = price, batch, purse or Purse(limit)

    @property
    def spent(self) -> float:
        """Dollars, of all models with this purse."""
        return self.purse.spent

    def cost(self, tokens_in: int, tokens_out: int, batch: bool = False) -> float:
        """Dollars for so many tokens."""
        price = self.batch if batch else self.price
        return (tokens_in * price[0] + tokens_out * price[1]) / 1e6

    def most(self, messages: list[dict[str, Any]], max_tokens: int | None, batch: bool = False) -> float:
        """Dollars that a call costs at most: a token has at least one byte, so a prompt has no more of them."""
        bytes_in = sum(len(message["content"].encode("utf-8", "replace")) + PER_MESSAGE for message in messages)
        return self.cost(bytes_in, max_tokens or 0, batch)

    def hold(self, dollars: float, committed: bool = False) -> bool:
        """Hold what a batch may cost; False if the limit leaves too little, unless it is `committed` already."""
        with self.purse.changed:
            if not committed and self._passes(dollars):
                return False
            self.purse.held += dollars
            return True

    def settle(self, held: float, spent: float) -> None:
        """Count what was spent in place of what was held."""
        with self.purse.changed:
            self.purse.held = max(0.0, self.purse.held - held)
            self.purse.spent += spent
            self.purse.changed.notify_all()

    @property
    def exceeded(self) -> bool:
        """Whether more is spent and held than the limit."""
        return self._passes(0.0)

    def over(self, dollars: float) -> Spent:
        """The failure of a call that may cost so much, which is more than the limit leaves."""
        return Spent(
            f"--max-usd {self.purse.limit:g}: stopped at {self.spent:.4f} USD, as the next call may cost "
            f"{dollars:.4f}; raise the limit and repeat the command to ask for the rest"
        )

    def _passes(self, dollars: float) -> bool:
        purse = self.purse
        return purse.limit is not None and purse.spent + purse.held + dollars > purse.limit

    @contextlib.contextmanager
    def call(self, messages: list[dict[str, Any]], max_tokens: int | None) -> Iterator[Bill]:
        """Hold the most that a call can cost while it runs, then count what it did cost.

        Where the limit leaves too little, calls under way are waited for, which as a rule cost less than the most;
        Spent is raised when none is.
        """
        most, purse = self.most(messages, max_tokens), self.purse
        with purse.changed:
            while purse.over is None and self._passes(most):
                if purse.held:
                    purse.changed.wait()
                else:
                    purse.over = self.over(most)
            if purse.over:
                purse.changed.notify_all()
                raise purse.over
            purse.held += most
        bill = Bill()
        try:
            yield bill
        finally:
            self.settle(most, self.cost(*bill.tokens) if bill.tokens else most if bill.may_cost else 0.0)
