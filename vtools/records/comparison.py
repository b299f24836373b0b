"""Which of two models is better: the outcome of a question, and a test that may be looked at after each of them."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

WON = {"a": 0.0, "tie": 0.5, "b": 1.0}  # what b wins of a question, by its outcome
AIM = 0.5  # the share of the questions after which the stake decides soonest
MOST_STAKED = 0.75
STEPS = 40  # of bisection: ends of an interval are exact to 1e-12


def outcome(verdicts: Iterable[str | None]) -> str | None:
    """`a`, `b` or `tie` from the verdicts on a question; also a tie if they disagree; None if one is missing."""
    agreed = set(verdicts)
    if None in agreed or not agreed:
        return None
    return "tie" if len(agreed) > 1 or agreed == {"both_bad"} else agreed.pop()


@dataclass(frozen=True, slots=True)
class Design:
    """How a comparison is stopped early: at which level, by which random order, of how many questions, each judged in
    how many orders of the answers. All of it is known before the first verdict."""

    level: float
    seed: int
    of: int
    orders: int

    def stamp(self, place: int) -> dict[str, Any]:
        """The field `stopping` of the judgments of the question at this place, from 1, in the random order."""
        return {**asdict(self), "place": place}

    @classmethod
    def read(cls, stamp: Mapping[str, Any]) -> "Design":
        """The design of a stamp. Raises KeyError, TypeError or ValueError for what is none."""
        return cls(float(stamp["level"]), int(stamp["seed"]), int(stamp["of"]), int(stamp["orders"]))


class SequentialTest:
    """Whether the mean of values from 0 to 1 is above or below one half, tested after every value.

    The values are a random sample, in random order. With probability `level`, the intervals after one, two and all
    later numbers of values hold the true mean, all of them at once: one may stop at any, for any reason.

    The interval has the means against which no bet was won. Against a mean m, a gambler stakes a share c of his money
    on each value x, which leaves him `1 + c (x / m - 1)` times the money. That is 1 on average if m is the true mean,
    so that he ever has k times his money with a probability of 1/k at most (Ville's inequality). He bets on larger
    values and, with other money, on smaller ones; a mean is excluded once either is multiplied by `2 / (1 - level)`.
    Source: the hedged capital process of Waudby-Smith and Ramdas, Estimating means of bounded random variables by
    betting, Journal of the Royal Statistical Society B 86 (2024), 1-27; c is their sqrt(2 log(2 / alpha) / (n s^2)) m
    for a fixed n, here a share AIM of the `planned` values, with the largest variance s^2 of 1/4, at m = 1/2.
    """

    def __init__(self, level: float, planned: int) -> None:
        self.count = 0
        self._bar = math.log(2 / (1 - level))
        self._stake = min(MOST_STAKED, math.sqrt(2 * self._bar / (AIM * max(planned, 1))))
        self._least, self._lost = Counter[float](), Counter[float]()  # values, and 1 - values

    def add(self, value: float | None) -> None:
        """Add the next value. None is one that is not known: whatever it is, what is sure stays sure."""
        self.count += 1
        self._least[0.0 if value is None else value] += 1
        self._lost[0.0 if value is None else 1 - value] += 1

    @property
    def decided(self) -> str | None:
        """`b` if the mean is surely above one half, `a` if it is surely below, else None."""
        if self._excludes(self._least, 0.5):
            return "b"
        return "a" if self._excludes(self._lost, 0.5) else None

    def interval(self) -> tuple[float, float]:
        """The lower and the upper end of the interval for the mean."""
        return self._lowest(self._least), 1 - self._lowest(self._lost)

    def _excludes(self, values: Counter[float], mean: float) -> bool:
        """Whether the mean is surely above this one."""
        won = (number * math.log1p(self._stake * (value / mean - 1)) for value, number in values.items())
        return math.fsum(won) >= self._bar

    def _lowest(self, values: Counter[float]) -> float:
        """The greatest mean below which all are excluded: what is won falls with the mean."""
        low, high = 0.0, 1.0
        for _ in range(STEPS):
            middle = (low + high) / 2
            low, high = (middle, high) if self._excludes(values, middle) else (low, middle)
        return low
