# ruff: noqa: TID253
"""Tokens that a template writes and the base never learned, by the rows of its embedding and head."""

import contextlib
from typing import Any

import torch
from transformers import PreTrainedModel

from vtools.models.template import Template
from vtools.records.jsonl import Reject
from vtools.train import lora, shard

NOTHING = 1e-12
NEAR = 0.02  # of a row's length: closer ones are equal. Rows added by transformers differ from the mean by less.
ROWS = 8192  # read at once
MOST_COMPARED = 512


def found(base: shard.Weights, network: PreTrainedModel, chosen: Template) -> list[str]:
    """Names of the template's control tokens with a row that is zero, the mean of all, or that of another added token.

    A row of random numbers, as older programs added them, cannot be told from a trained one.
    """
    written = _written(chosen)
    added = [chosen.tokenizer.id_of(text) for text in chosen.tokenizer.added]
    both: tuple[Any, ...] = (network.get_input_embeddings(), network.get_output_embeddings())
    strange = set()
    for name, parameter in network.named_parameters():
        if not any(parameter is module.weight for module in both):
            continue
        name, shape = lora.base_name(name), tuple(parameter.shape)
        compared = [number for number in added if number is not None and number < shape[0]][:MOST_COMPARED]
        rows = {number: base.read(name, shape, number, number + 1)[0].float() for number in {*compared, *written}}
        mean = _mean(base, name, shape)
        for number in written:
            own = rows[number]
            others = [mean, *(other for key, other in rows.items() if key != number)]
            if own.norm() < NOTHING or any((own - other).norm() < NEAR * own.norm() for other in others):
                strange.add(number)
    return [text for number, text in written.items() if number in strange]


def _written(chosen: Template) -> dict[int, str]:
    """The control tokens that a template writes, by id, in their order."""
    pieces = []
    for roles in (("system", "user", "assistant"), ("user", "assistant", "user", "assistant")):
        with contextlib.suppress(Reject):
            pieces += chosen.skeleton(roles, False)
    texts = {chosen.tokenizer.id_of(text): text for text in chosen.tokenizer.added}
    return {piece.token: texts[piece.token] for piece in pieces if piece.token is not None}


def _mean(base: shard.Weights, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    total = torch.zeros(shape[1])
    for start in range(0, shape[0], ROWS):
        total += base.read(name, shape, start, min(start + ROWS, shape[0])).sum(0, dtype=torch.float32)
    return total / shape[0]
