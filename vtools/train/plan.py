"""The step planner: which conversations make each optimiser step, and at which learning rate. Pure functions."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence


def plan(lengths: Sequence[int], seed: int, epoch: int, batch: int) -> list[list[int]]:
    """The conversations of each step of an epoch, as indices: every one once, the last step may be short.

    It does not depend on how a step is then computed, so any number of devices trains the same steps.
    """
    order = list(range(len(lengths)))
    random.Random(f"vtools:{seed}:{epoch}").shuffle(order)
    return [order[start : start + batch] for start in range(0, len(order), batch)]


def micro_batches(lengths: Sequence[int], step: Sequence[int], budget: int) -> list[list[int]]:
    """Pack the conversations of a step into micro-batches of at most `budget` tokens (first fit, longest first).

    A conversation longer than the budget is a micro-batch by itself.
    """
    packs: list[list[int]] = []
    free: list[int] = []
    for index in sorted(step, key=lambda index: -lengths[index]):
        length = lengths[index]
        place = next((place for place, room in enumerate(free) if room >= length), None)
        if place is None:
            packs.append([index])
            free.append(budget - length)
        else:
            packs[place].append(index)
            free[place] -= length
    return packs


def steps_of(conversations: int, batch: int, epochs: int, max_steps: int | None) -> int:
    """Optimiser steps of a run; `max_steps`, where given, decides alone."""
    return max_steps if max_steps is not None else epochs * math.ceil(conversations / batch)


def warmup_steps(warmup: float, steps: int) -> int:
    """A share of the steps if below 1 (rounded up, as transformers' trainer does), else a number of steps."""
    return math.ceil(warmup * steps) if warmup < 1 else int(warmup)


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Linear warm-up, then half a cosine to zero; `step` counts from 0, and a warm-up begins at rate 0.

    The closed form of transformers.get_cosine_schedule_with_warmup, in the same order of operations.
    """
    if step < warmup:
        return peak * (step / max(1, warmup))
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * max(0.0, 0.5 * (1.0 + math.cos(math.pi * 0.5 * 2.0 * progress)))
