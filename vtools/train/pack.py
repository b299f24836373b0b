# ruff: noqa: TID253
"""Micro-batches: conversations laid end to end in one row, without padding, and the model run over them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from vtools.process import Failure
from vtools.train import attention

# A relative difference between packed and unpacked logits that rounding explains; contamination is far above it.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


class Packed(NamedTuple):
    """One row of tokens: where each conversation starts, and which positions predict a trained token."""

    input_ids: torch.Tensor  # [1, tokens] int64
    position_ids: torch.Tensor  # [1, tokens] int64, from 0 in each conversation
    starts: torch.Tensor  # [conversations + 1] int32
    longest: int
    predicting: torch.Tensor  # [trained] int64: positions whose next token is trained
    targets: torch.Tensor  # [trained] int64: those tokens


def pack(conversations: Iterable[tuple[Sequence[int], bytes]], device: torch.device) -> Packed:
    """Lay conversations (ids, mask) end to end. A mask is never 1 at a first token."""
    ids: list[int] = []
    positions: list[int] = []
    trained: list[int] = []
    starts = [0]
    for tokens, mask in conversations:
        trained += [len(ids) + place for place, wanted in enumerate(mask) if wanted]
        ids += tokens
        positions += range(len(tokens))
        starts.append(len(ids))
    row = torch.tensor(ids)
    goals = torch.tensor(trained, dtype=torch.int64)
    return Packed(
        row.unsqueeze(0).to(device),
        torch.tensor(positions).unsqueeze(0).to(device),
        torch.tensor(starts, dtype=torch.int32, device=device),
        max(end - start for start, end in pairwise(starts)),
        (goals - 1).to(device),
        row[goals].to(device),
    )


def hidden_states(model: PreTrainedModel, packed: Packed) -> torch.Tensor:
    """The last hidden states [tokens, width] of a packed row.

    Without use_cache=False, or with a 2-D mask, transformers would let conversations see each other.
    """
    return model.base_model(
        input_ids=packed.input_ids,
        position_ids=packed.position_ids,
        use_cache=False,
        cu_seq_lens_q=packed.starts,
        cu_seq_lens_k=packed.starts,
        max_length_q=packed.longest,
        max_length_k=packed.longest,
    ).last_hidden_state[0]


@torch.no_grad()
def difference(model: PreTrainedModel, conversations: Sequence[Sequence[int]], dtype: torch.dtype) -> float:
    """How far packed logits are from each conversation's own, relative to their size (Frobenius norm).

    Packed as in training, in `dtype`; unpacked by transformers' own eager attention in fp32.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    packed = pack([(ids, bytes(len(ids))) for ids in conversations], device)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        logits = (hidden_states(model, packed) @ model.get_output_embeddings().weight.T).float()
    model.set_attn_implementation("eager")
    try:
        alone = [
            model(torch.tensor([list(ids)], device=device), use_cache=False).logits[0].float() for ids in conversations
        ]
    finally:
        model.set_attn_implementation(attention.NAME)
        model.train(training)
    own = torch.cat(alone)
    return ((logits - own).norm() / own.norm()).item()


def self_check(model: PreTrainedModel, conversations: Sequence[Sequence[int]], dtype: torch.dtype) -> float:
    """Refuse a model whose packed logits are not those of each conversation alone; returns the difference."""
    found = difference(model, conversations, dtype)
    if not found <= TOLERANCE[dtype]:
        raise Failure(
            f"{type(model).__name__}: packed conversations give other logits than single ones "
            f"(relative difference {found:.2g}): this architecture cannot be trained here"
        )
    return found
