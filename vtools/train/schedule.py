"""Which conversations form each optimiser step, and its learning rate. Pure functions."""

import math
import random
from collections.abc import Sequence


def steps(lengths: Sequence[int], seed: int, epoch: int, batch: int) -> list[list[int]]:
    """The conversations of each step of an epoch, as indices: each one once, the last step may be smaller.

    Independent of how a step is computed, so any number of devices trains the same steps.
    """
    order = list(range(len(lengths)))
    random.Random(f"vtools:{seed}:{epoch}").shuffle(order)
    return [order[start : start + batch] for start in range(0, len(order), batch)]


def divide(lengths: Sequence[int], step: Sequence[int], ranks: int, budget: int) -> list[list[list[int]]]:
    """The micro-batches of each rank, as indices [rank][micro-batch][conversation]: the same number for every rank.

    A micro-batch has at most `budget` tokens, or one longer conversation, or none (if there are too few). The longest
    conversations go first, each into the cheapest micro-batch that it fits (Graham's LPT rule). Micro-batches of like
    cost run at the same time, because ranks wait for each other at each one.
    """
    order = sorted(step, key=lambda index: -lengths[index])
    rounds = max(1, math.ceil(sum(lengths[index] for index in step) / (budget * ranks)))
    while (packs := _filled(lengths, order, rounds * ranks, budget)) is None:
        rounds += 1
    packs.sort(key=lambda pack: -sum(cost(lengths[index]) for index in pack))
    return [packs[rank::ranks] for rank in range(ranks)]


def cost(length: int) -> float:
    """The cost of a conversation, in tokens: quadratic attention equals the rest at 24,000 tokens (7B model)."""
    return length + length * length / 24_000


def _filled(lengths: Sequence[int], order: Sequence[int], number: int, budget: int) -> list[list[int]] | None:
    """`order` distributed over `number` micro-batches, or None if they cannot hold it."""
    packs: list[list[int]] = [[] for _ in range(number)]
    tokens, costs = [0] * number, [0.0] * number
    for index in order:
        length = lengths[index]
        fitting = [place for place in range(number) if not packs[place] or tokens[place] + length <= budget]
        if not fitting:
            return None
        place = min(fitting, key=lambda place: costs[place])
        packs[place].append(index)
        tokens[place] += length
        costs[place] += cost(length)
    return packs


def number_of_steps(conversations: int, batch: int, epochs: int, max_steps: int | None) -> int:
    """Optimiser steps of a run; `max_steps`, if given, decides alone."""
    return max_steps if max_steps is not None else epochs * math.ceil(conversations / batch)


def warmup_steps(warmup: float, steps: int) -> int:
    """A share of the steps if below 1 (rounded up, as transformers' trainer does), else a number of steps."""
    return math.ceil(warmup * steps) if warmup < 1 else int(warmup)


def learning_rate(step: int, steps: int, warmup: int, peak: float, schedule: str = "cosine") -> float:
    """Linear warm-up from 0, then half a cosine or a line to zero, or constant; `step` counts from 0.

    The closed forms of transformers.get_scheduler, with the same order of operations.
    """
    if step < warmup:
        return peak * (step / max(1, warmup))
    if schedule == "constant":
        return peak
    if schedule == "linear":
        return peak * max(0.0, (steps - step) / max(1, steps - warmup))
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * max(0.0, 0.5 * (1.0 + math.cos(math.pi * 0.5 * 2.0 * progress)))
