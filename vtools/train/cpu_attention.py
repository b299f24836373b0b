# ruff: noqa: TID253
"""Causal attention within documents, in bf16 on a CPU: matrix products over blocks of queries.

torch's own kernel for CPUs (scaled_dot_product_attention) takes about twice as long where the processor has bf16
instructions. Scores and probabilities are rounded to bf16, as in transformers' eager attention; the backward pass
computes them anew, block by block, as FlashAttention does (Dao et al. 2022, arXiv 2205.14135, section 3.1).
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch

BLOCK = 128  # queries whose scores are computed at a time
SCORES = 1 << 20  # at most, where one head has fewer: what caches hold, and malloc gives again without new pages


@torch.library.custom_op("vtools::document_attention", mutates_args=())
def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts: torch.Tensor, scale: float, window: int
) -> torch.Tensor:
    """Attention of query [tokens, heads, size] to key and value [tokens, fewer heads, size], in the shape of the query.

    `starts` (int32, documents + 1) holds the start of each document, and the end. Each position sees itself and the
    `window - 1` before it; 0 is all of them.
    """
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    for rows, seen, heads, groups in _blocks(query, key, starts, window):
        queries, keys, values = _heads(query[rows, heads]), _heads(key[seen, groups]), _heads(value[seen, groups])
        found = torch.bmm(_probabilities(queries, keys, scale, window), values)
        output[rows, heads] = found.view(queries.shape).transpose(0, 1)
    return output


@torch.library.custom_op("vtools::document_attention_backward", mutates_args=())
def attend_backward(
    slope: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    scale: float,
    window: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of query, key and value; `slope` is that of the output."""
    query_slope = torch.empty_like(query, memory_format=torch.contiguous_format)
    key_slope, value_slope = (torch.zeros(key.transpose(0, 1).shape) for _ in range(2))  # fp32: sums over blocks
    for rows, seen, heads, groups in _blocks(query, key, starts, window):
        queries, keys, values = _heads(query[rows, heads]), _heads(key[seen, groups]), _heads(value[seen, groups])
        above = _heads(slope[rows, heads]).view(len(keys), -1, keys.shape[2])
        probabilities = _probabilities(queries, keys, scale, window)
        value_slope[groups, seen] += torch.bmm(probabilities.mT, above)
        scores = torch._softmax_backward_data(torch.bmm(above, values.mT), probabilities, -1, above.dtype)
        key_slope[groups, seen] += torch.bmm(scores.mT, queries.view(above.shape))
        query_slope[rows, heads] = (torch.bmm(scores, keys) * scale).view(queries.shape).transpose(0, 1)
    key_slope *= scale
    key_slope, value_slope = (one.transpose(0, 1).to(key.dtype).contiguous() for one in (key_slope, value_slope))
    return query_slope, key_slope, value_slope


def _blocks(
    query: torch.Tensor, key: torch.Tensor, starts: torch.Tensor, window: int
) -> Iterator[tuple[slice, slice, slice, slice]]:
    """The queries of each block and the keys that any of them sees; the heads of both."""
    groups = key.shape[1]
    times = query.shape[1] // groups
    for start, end in pairwise(starts.tolist()):
        for first in range(start, end, BLOCK):
            last = min(first + BLOCK, end)
            seen = max(start, first - window + 1) if window else start
            size = max(1, SCORES // (times * (last - first) * (last - seen)))
            for group in range(0, groups, size):
                heads = slice(group * times, (group + size) * times)
                yield slice(first, last), slice(seen, last), heads, slice(group, group + size)


def _heads(rows: torch.Tensor) -> torch.Tensor:
    """[tokens, heads, size] as [heads, tokens, size]."""
    return rows.transpose(0, 1).contiguous()


def _probabilities(queries: torch.Tensor, keys: torch.Tensor, scale: float, window: int) -> torch.Tensor:
    """What each query [heads, tokens, size] takes of each key, by groups of heads: [groups, queries, keys]."""
    groups, (_, count, size), wide = len(keys), queries.shape, keys.shape[1]
    grouped = queries.view(groups, -1, size)
    scores = queries.new_empty(groups, grouped.shape[1], wide)
    torch.baddbmm(scores, grouped, keys.mT, beta=0, alpha=scale, out=scores)
    by_head = scores.view(groups, -1, count, wide)
    some = by_head if window else by_head[..., -count:]  # without a window, only the block's own keys may be later ones
    some += _hidden(count, some.shape[-1], window)
    return scores.softmax(-1)


@lru_cache(maxsize=64)
def _hidden(queries: int, keys: int, window: int) -> torch.Tensor:
    """What to add to bf16 scores of the last `queries` of `keys` positions, to hide what they do not see."""
    place = torch.arange(keys)
    own = place[keys - queries :].unsqueeze(1)
    seen = place <= own
    if window:
        seen &= place > own - window
    return torch.zeros(queries, keys, dtype=torch.bfloat16).masked_fill_(~seen, -torch.inf)


@attend.register_fake
def _(query: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


@attend_backward.register_fake
def _(
    slope: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: object
) -> tuple[torch.Tensor, ...]:
    return tuple(torch.empty_like(one, memory_format=torch.contiguous_format) for one in (query, key, value))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    query, key, value, starts, ctx.scale, ctx.window = inputs
    ctx.save_for_backward(query, key, value, starts)


def _slopes(ctx: Any, slope: torch.Tensor) -> tuple[Any, ...]:
    return *attend_backward(slope, *ctx.saved_tensors, ctx.scale, ctx.window), None, None, None


attend.register_autograd(_slopes, setup_context=_keep)
