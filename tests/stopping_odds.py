"""What a test that stops early does on average, exactly: every order of the outcomes, each with its probability.

The test sees only how many questions each model has won, so that all orders of 80 questions are 91,880 such states.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple

from vtools.records.comparison import SequentialTest

State = tuple[int, int, int]  # questions that b has won, tied, lost
Odds = Callable[[State], tuple[float, float, float]]  # of the next one
ROUNDING = 1e-9


class Found(NamedTuple):
    """Shares of all orders, weighted by their probability; `calls` is the mean share of the questions asked."""

    calls: float
    early: float  # stopped before the last question
    same_side: float  # not stopped early on the side on which the whole set is not
    same_decision: float  # decided as a fixed interval of the whole set decides, at the same level
    covered: float  # the interval at which it stops has the mean
    always_covered: float  # all intervals have it


def states(level: float, planned: int) -> dict[State, tuple[str | None, float, float]]:
    """What the test says in each state: its decision and its interval."""
    found = {}
    for state in _states(planned):
        test = SequentialTest(level, planned)
        for value, number in zip((1.0, 0.5, 0.0), state, strict=True):
            for _ in range(number):
                test.add(value)
        found[state] = test.decided, *test.interval()
    return found


def sample(rate: float, ties: float) -> Odds:
    """Questions drawn from endlessly many: the rate at which b wins, ties half, and the share of ties."""
    won = rate - ties / 2
    return lambda state: (won, ties, 1 - won - ties)


def whole(counts: State) -> Odds:
    """The questions of one set in random order; of which b wins, ties and loses so many."""
    total = sum(counts)
    return lambda state: tuple((all_ - done) / (total - sum(state)) for all_, done in zip(counts, state, strict=True))


def replay(said: dict[State, tuple[str | None, float, float]], planned: int, odds: Odds, mean: float) -> Found:
    """The test on questions with these odds, whose true mean is `mean`."""
    z = 1.959964
    mass = {((0, 0, 0), None, True): 1.0}  # by state, decision, and whether all intervals so far had the mean
    calls = covered = early = 0.0
    for asked in range(1, planned + 1):
        after: dict = defaultdict(float)
        for (state, decided, fine), share in mass.items():
            for place, chance in enumerate(odds(state)):
                if chance > ROUNDING:
                    moved = (*state[:place], state[place] + 1, *state[place + 1 :])
                    now, low, high = said[moved]
                    holds = low - ROUNDING <= mean <= high + ROUNDING
                    part = share * chance
                    if decided is None and (now or asked == planned):
                        calls += part * asked / planned
                        covered += part * holds
                        early += part * (asked < planned)
                    after[moved, decided or now, fine and holds] += part
        mass = after
    same_side = same_decision = always = 0.0
    for (state, decided, fine), share in mass.items():
        rate = (state[0] + state[1] / 2) / planned
        error = z * math.sqrt(state[0] * (1 - rate) ** 2 + state[1] * (0.5 - rate) ** 2 + state[2] * rate**2) / planned
        fixed = "b" if rate - error > 0.5 else "a" if rate + error < 0.5 else None
        same_side += share * (decided is None or (rate > 0.5 if decided == "b" else rate < 0.5))
        same_decision += share * (decided == fixed)
        always += share * fine
    return Found(calls, early, same_side, same_decision, covered, always)


def _states(planned: int) -> Iterator[State]:
    for won in range(planned + 1):
        for tied in range(planned + 1 - won):
            for lost in range(planned + 1 - won - tied):
                yield won, tied, lost
