# ruff: noqa: TID253
"""Cross-entropy over the trained tokens, in chunks: the logits of a whole row are never in memory."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from vtools.train.pack import Packed, hidden_states

CHUNK_LOGITS = {"cpu": 1 << 25, "cuda": 1 << 28}


class LinearCrossEntropy(torch.autograd.Function):
    """The summed cross-entropy (float64 scalar) of `hidden @ weight.T` against targets.

    Gradients are made in the forward pass, chunk by chunk, so that logits are computed once and never kept. Matrix
    products run in `dtype`, everything else in fp32.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        """hidden [tokens, width], weight [vocabulary, width], targets [tokens] int64."""
        wanted = any(ctx.needs_input_grad[:2])
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        hidden_grad = torch.empty_like(hidden) if wanted else None
        weight_grad = torch.zeros_like(weight) if wanted else None
        size = max(1, CHUNK_LOGITS.get(hidden.device.type, 1 << 25) // weight.shape[0])
        with torch.autocast(hidden.device.type, enabled=False):
            head = weight.to(dtype)
            for start in range(0, len(targets), size):
                inputs, goals = hidden[start : start + size].to(dtype), targets[start : start + size]
                rows = torch.arange(len(goals), device=hidden.device)
                logits = (inputs @ head.T).float()
                norms = logits.logsumexp(dim=-1)
                total += (norms - logits[rows, goals]).sum(dtype=torch.float64)
                if hidden_grad is None or weight_grad is None:
                    continue
                probabilities = logits.sub_(norms.unsqueeze(1)).exp_()
                probabilities[rows, goals] -= 1
                slope = probabilities.to(dtype)
                hidden_grad[start : start + size] = slope @ head
                if dtype == weight_grad.dtype:
                    weight_grad.addmm_(slope.T, inputs)
                else:
                    weight_grad += slope.T @ inputs
        ctx.save_for_backward(hidden_grad, weight_grad)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        hidden_grad, weight_grad = ctx.saved_tensors
        scale = grad_outputs[0].to(weight_grad.dtype)
        return hidden_grad.mul_(scale), weight_grad.mul_(scale), None, None


def summed_loss(model: PreTrainedModel, packed: Packed, dtype: torch.dtype) -> torch.Tensor:
    """The loss of a micro-batch summed over its trained tokens (float64 scalar), computed in `dtype`."""
    with torch.autocast(packed.input_ids.device.type, dtype=dtype, enabled=dtype != torch.float32):
        hidden = hidden_states(model, packed)
    weight = model.get_output_embeddings().weight
    return LinearCrossEntropy.apply(hidden.index_select(0, packed.predicting), weight, packed.targets, dtype)  # type: ignore[no-any-return]
