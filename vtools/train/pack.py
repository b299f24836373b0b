# ruff: noqa: TID253
"""Micro-batches: conversations packed end to end into one row without padding, and running the model on them."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from vtools.process import Failure
from vtools.train import shard
from vtools.train.head import head_of

# The relative difference between packed and unpacked logits that rounding explains; contamination is far larger.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}


class Packed(NamedTuple):
    """One row of tokens, with the start of each conversation and the positions that predict a trained token."""

    input_ids: torch.Tensor  # [1, tokens] int64
    position_ids: torch.Tensor  # [1, tokens] int64, from 0 in each conversation
    starts: torch.Tensor  # [conversations + 1] int32
    longest: int
    predicting: torch.Tensor  # [trained] int64: positions whose next token is trained
    targets: torch.Tensor  # [trained] int64: those tokens


def pack(conversations: Iterable[tuple[Any, Any]], device: torch.device) -> Packed:
    """Pack conversations (int32 ids, mask bytes) end to end. A mask is never 1 at a first token.

    Without conversations, a row of two tokens that trains nothing: a rank without work still takes part. (A row of one
    token would be compiled separately.)
    """
    pairs = list(conversations) or [([0, 0], b"\0\0")]
    rows = [np.asarray(ids, dtype=np.int64) for ids, _ in pairs]
    lengths = [len(row) for row in rows]
    row = np.concatenate(rows)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    trained = np.flatnonzero(np.concatenate([np.frombuffer(mask, dtype=np.uint8) for _, mask in pairs]))
    position = np.arange(len(row)) - np.repeat(starts[:-1], lengths)
    return Packed(
        _on(row, device).unsqueeze(0),
        _on(position, device).unsqueeze(0),
        _on(starts.astype(np.int32), device),
        max(lengths),
        _on(trained - 1, device),
        _on(row[trained], device),
    )


def _on(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """An array as a tensor on the device, copied asynchronously."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def hidden_states(model: PreTrainedModel, packed: Packed) -> torch.Tensor:
    """The last hidden states [tokens, width] of a packed row.

    Without use_cache=False, or with a 2-D mask, conversations would attend to each other in transformers.
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


def logits(model: PreTrainedModel, packed: Packed) -> torch.Tensor:
    """The logits [tokens, vocabulary] of a packed row, in fp32."""
    return shard.with_head(model, _logits, hidden_states(model, packed), model)  # type: ignore[no-any-return]


def _logits(module: torch.nn.Module, hidden: torch.Tensor, model: PreTrainedModel) -> torch.Tensor:
    return head_of(model, module).logits(hidden)


def logits_alone(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """The logits [tokens, vocabulary] of one conversation [tokens], by transformers' own forward pass, in fp32."""
    return type(model).forward(model, ids.unsqueeze(0), use_cache=False).logits[0].to(torch.float32, copy=True)


@torch.no_grad()
def self_check(
    model: PreTrainedModel, conversations: Sequence[Sequence[int]], dtype: torch.dtype, device: torch.device
) -> float:
    """Refuse a model whose packed logits differ from those of each conversation alone, with eager attention.

    Returns the relative difference (Frobenius norm). `model(work, ...)` runs work(model, ...); see vtools.train.shard.
    """
    model.eval()
    packed = pack([(ids, bytes(len(ids))) for ids in conversations], device)
    together = model(logits, packed)
    own = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        rows = [packed.input_ids[0, start:end] for start, end in pairwise(packed.starts.tolist())]
        alone = torch.cat([model(logits_alone, row) for row in rows])
    finally:
        model.set_attn_implementation(own)
    found = ((together - alone).norm() / alone.norm()).item()
    if not found <= TOLERANCE[dtype]:
        raise Failure(
            f"{type(model).__name__.removeprefix('FSDP')}: packed conversations give different logits than single ones "
            f"(relative difference {found:.2g}): this architecture cannot be trained with packing"
        )
    return found
