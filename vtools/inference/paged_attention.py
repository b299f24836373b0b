# ruff: noqa: TID253  imports torch at once: import this module inside a function
"""Attention of a batch of requests of different lengths, each over its own keys alone.

Without flash attention, transformers' continuous batching computes every query against the keys of all requests and
masks those of the others: for 16 requests 16 times the work, and sums that depend on who else is served. Here a token's
sums have the same terms in the same order, be it in a prompt, in a piece of one, or the next one beside others.
"""

import dataclasses
import inspect
import itertools
import threading
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.generation.continuous_batching.cache import PagedAttentionCache

NAME = "vtools_paged"
STEP = 32  # a token sees keys up to the next multiple of this, the later ones masked, in whatever batch it comes

_TAKES_KWARGS = "kwargs" in inspect.signature(PagedAttentionCache.update).parameters  # since transformers 5.23


@dataclasses.dataclass(slots=True)
class _Part:
    """What is computed in one call: the next token of several requests, or some tokens of one request's prompt."""

    queries: torch.Tensor | slice  # int64: their places in the batch
    keys: slice  # of those that the plan reads
    requests: int  # whose next token this is; 0 for those of a prompt
    mask: torch.Tensor  # added to the scores


@dataclasses.dataclass(slots=True)
class _Plan:
    read: torch.Tensor  # int64: the places in the cache of the keys of all parts
    parts: list[_Part]


_current = threading.local()  # the plan of this thread's batch, the same for each layer


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    cache: Any = None,
    **batch: Any,
) -> tuple[torch.Tensor, None]:
    """Full attention behind transformers' interface, over the keys in `cache` and the new ones.

    `query` (1, heads, tokens, width), `key` and `value` (1, key heads, tokens, width) are those of the new tokens of
    all requests. Returns (1, tokens, heads, width).
    """
    if getattr(_current, "read_index", None) is not batch["read_index"]:
        _current.plan = _planned(batch, query.dtype)
        _current.read_index = batch["read_index"]  # held, so that no later list has its identity
    plan: _Plan = _current.plan
    keys, values = _updated(cache, key, value, module.layer_idx, batch | {"read_index": [plan.read]})
    groups = keys.shape[1]
    asked = query[0].transpose(0, 1)
    tokens, heads, width = asked.shape
    answers = torch.empty((tokens, heads, width), dtype=query.dtype, device=query.device)
    for part in plan.parts:
        ask, key, value = asked[part.queries], keys[part.keys], values[part.keys]
        if part.requests:
            # The heads that share keys take the place of the tokens.
            shape = (part.requests, -1, groups, width)
            key, value = (tensor.view(shape).transpose(1, 2) for tensor in (key, value))
            ask = ask.view(part.requests, groups, heads // groups, width)
            found = scaled_dot_product_attention(ask, key, value, attn_mask=part.mask, scale=scaling)
            answers[part.queries] = found.reshape(part.requests, heads, width)
        else:
            ask, key, value = (tensor.transpose(0, 1)[None] for tensor in (ask, key, value))
            found = scaled_dot_product_attention(ask, key, value, attn_mask=part.mask, scale=scaling, enable_gqa=True)
            answers[part.queries] = found[0].transpose(0, 1)
    return answers[None], None


def _planned(batch: dict[str, Any], dtype: torch.dtype) -> _Plan:
    query_ends = batch["cu_seq_lens_q"].tolist()
    lengths = batch["cu_seq_lens_k"]
    key_ends = (next(iter(lengths.values())) if isinstance(lengths, dict) else lengths).tolist()
    places = batch["read_index"][0]
    if not len(places):  # all keys are new
        places = batch["write_index"][0]
    parts: list[_Part] = []
    read: list[torch.Tensor] = []
    single: dict[int, list[int]] = {}  # requests with one new token, by the length that their keys are padded to
    place = 0
    for request, (first, end) in enumerate(itertools.pairwise(query_ends)):
        start, stop = key_ends[request], key_ends[request + 1]
        size, new = stop - start, end - first
        if new == 1:
            single.setdefault(_padded(size), []).append(request)
            continue
        for low in range((size - new) // STEP * STEP, size, STEP):
            begin, length = max(low, size - new), low + STEP
            mask = torch.full((min(length, size) - begin, length), -torch.inf, dtype=dtype).triu(begin + 1)
            queries = slice(begin + end - size, min(length, size) + end - size)
            parts.append(_Part(queries, slice(place, place + length), 0, mask))
        read.append(places[torch.arange(_padded(size)).clamp(max=size - 1) + start])
        place += _padded(size)
    for length, requests in single.items():
        starts = torch.tensor([key_ends[request] for request in requests])[:, None]
        lasts = torch.tensor([key_ends[request + 1] - 1 for request in requests])[:, None]
        wanted = starts + torch.arange(length)
        mask = torch.zeros(wanted.shape, dtype=dtype).masked_fill(wanted > lasts, -torch.inf)[:, None, None]
        ends = torch.tensor([query_ends[request] for request in requests])
        whole = len(requests) == len(query_ends) - 1
        parts.append(_Part(slice(None) if whole else ends, slice(place, place + wanted.numel()), len(requests), mask))
        read.append(places[torch.minimum(wanted, lasts).flatten()])
        place += wanted.numel()
    return _Plan(torch.cat(read), parts)


def _padded(keys: int) -> int:
    return -(-keys // STEP) * STEP


def _updated(
    cache: Any, key: torch.Tensor, value: torch.Tensor, layer: int, batch: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Store the new keys and values; return those that `batch` reads, each (keys, key heads, width)."""
    if _TAKES_KWARGS:
        keys, values = cache.update(key, value, layer, batch)
        return keys[0].transpose(0, 1), values[0].transpose(0, 1)
    return cache.update(key, value, layer, batch["read_index"], batch["write_index"])


AttentionInterface.register(NAME, attend)
