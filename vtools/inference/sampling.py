# ruff: noqa: TID253  imports torch at once: import this module inside a function
"""Drawing the next token of several requests at once, and log-probabilities.

All is computed row by row: what a request gets does not depend on the requests beside it.
"""

import torch

NUCLEUS = 256  # tokens in which a nucleus is looked for first: a full sort takes twenty times as long
COLDEST = 1e-6  # temperature: below it, logits divided by it would overflow
_MULTIPLIERS = (-7046029254386353131, -4658895280553007687, -7723592293110705685)  # SplitMix64's, as signed numbers


def uniform(seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """A number in [0, 1) for each seed and position of a token: int64 (requests,) to float32 (requests,).

    The same numbers give the same draw in every process. The mixing is SplitMix64's: Steele et al. 2014,
    "Fast Splittable Pseudorandom Number Generators".
    """
    increment, first, second = _MULTIPLIERS
    mixed = seeds
    for summand in (torch.zeros_like(positions), positions):  # so that neighbouring seeds and positions do not meet
        mixed = mixed + (summand + 1) * increment
        mixed = (mixed ^ _shifted(mixed, 30)) * first
        mixed = (mixed ^ _shifted(mixed, 27)) * second
        mixed = mixed ^ _shifted(mixed, 31)
    return _shifted(mixed, 40).float() * 2.0**-24


def _shifted(values: torch.Tensor, bits: int) -> torch.Tensor:
    """int64 shifted right as if unsigned."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def draw(
    scores: torch.Tensor, temperatures: torch.Tensor, top_ps: torch.Tensor, uniforms: torch.Tensor
) -> torch.Tensor:
    """The token at quantile `uniforms` of the softmax of each row of logits, restricted to its nucleus `top_ps`.

    `scores` float32 (requests, vocabulary), the others float32 (requests,), temperatures above 0; returns int64
    (requests,). Nucleus sampling: Holtzman et al. 2020, arXiv 1904.09751.
    """
    probabilities = torch.softmax(scores / temperatures.clamp(min=COLDEST)[:, None], dim=-1)
    cumulative = probabilities.cumsum(-1)
    tokens = _at(cumulative, cumulative[:, -1:].contiguous(), uniforms)
    rows = (top_ps < 1).nonzero()[:, 0]
    if len(rows):
        probabilities, top_ps, uniforms = probabilities[rows], top_ps[rows], uniforms[rows]
        size = min(NUCLEUS, probabilities.shape[-1])
        likely, order = probabilities.topk(size)
        tokens[rows] = _in_nucleus(likely, order, top_ps, uniforms)
        wide = (likely.sum(-1) < top_ps).nonzero()[:, 0]
        if len(wide) and size < probabilities.shape[-1]:
            likely, order = probabilities[wide].sort(dim=-1, descending=True, stable=True)
            tokens[rows[wide]] = _in_nucleus(likely, order, top_ps[wide], uniforms[wide])
    return tokens


def _in_nucleus(
    likely: torch.Tensor, order: torch.Tensor, top_ps: torch.Tensor, uniforms: torch.Tensor
) -> torch.Tensor:
    """Draw from the fewest of the sorted probabilities that reach `top_ps` together: the token, by `order`."""
    cumulative = likely.cumsum(-1)
    last = (cumulative[:, :-1] < top_ps[:, None]).sum(-1, keepdim=True)
    return order.gather(1, _at(cumulative, cumulative.gather(1, last), uniforms)[:, None])[:, 0]


def _at(cumulative: torch.Tensor, totals: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """The index at which each row's sum exceeds a share of its total; never one that adds nothing."""
    found = torch.searchsorted(cumulative, uniforms[:, None] * totals, right=True)
    return torch.minimum(found, torch.searchsorted(cumulative, totals))[:, 0]


def log_probabilities(
    scores: torch.Tensor, chosen: torch.Tensor, most: int
) -> tuple[list[float], list[list[int]], list[list[float]]]:
    """Natural log-probabilities of each row's chosen token; the ids and log-probabilities of the `most` likeliest.

    `scores` float32 (requests, vocabulary), `chosen` int64 (requests,).
    """
    logs = torch.log_softmax(scores, dim=-1)
    values, ids = logs.topk(min(most, logs.shape[-1]))
    return logs.gather(1, chosen[:, None])[:, 0].tolist(), ids.tolist(), values.tolist()
