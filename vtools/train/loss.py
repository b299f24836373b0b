# ruff: noqa: TID253
"""Cross-entropy over the trained tokens, in chunks: the logits of a whole row are never in memory."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from vtools.train.pack import Packed, hidden_states

# On a GPU each chunk adds to the whole gradient of the head, so chunks are few; on the CPU memory is dearer.
CHUNK_LOGITS = {"cpu": 1 << 25, "cuda": 1 << 28}


class LinearCrossEntropy(torch.autograd.Function):
    """The summed cross-entropy (float64 scalar) of `hidden @ weight.T` against targets.

    Gradients are made in the forward pass, chunk by chunk, so that logits are computed once and never kept. Matrix
    products run in the dtype of `hidden` and `weight`, everything else in fp32.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """hidden [tokens, width], weight [vocabulary, width], targets [tokens] int64."""
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        hidden_grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        size = max(1, CHUNK_LOGITS.get(hidden.device.type, 1 << 25) // weight.shape[0])
        for start in range(0, len(targets), size):
            inputs, goals = hidden[start : start + size], targets[start : start + size]
            rows = torch.arange(len(goals), device=hidden.device)
            logits = (inputs @ weight.T).float()
            norms = logits.logsumexp(dim=-1)
            total += (norms - logits[rows, goals]).sum(dtype=torch.float64)
            if hidden_grad is None and weight_grad is None:
                continue
            probabilities = logits.sub_(norms.unsqueeze(1)).exp_()
            probabilities[rows, goals] -= 1
            slope = probabilities.to(weight.dtype)
            if hidden_grad is not None:
                hidden_grad[start : start + size] = slope @ weight
            if weight_grad is not None:
                if weight.dtype == torch.float32:
                    weight_grad.addmm_(slope.T, inputs)
                else:
                    weight_grad += slope.T @ inputs
        ctx.save_for_backward(hidden_grad, weight_grad)
        ctx.dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        hidden_grad, weight_grad = ctx.saved_tensors
        scale = grad_outputs[0].float()
        return (
            None if hidden_grad is None else hidden_grad.mul_(scale),
            None if weight_grad is None else weight_grad.mul_(scale).to(ctx.dtype),
            None,
        )


def summed_loss(model: PreTrainedModel, packed: Packed) -> torch.Tensor:
    """The loss of a micro-batch summed over its trained tokens (float64 scalar), in the dtype of the weights."""
    hidden = hidden_states(model, packed).index_select(0, packed.predicting)
    loss = LinearCrossEntropy.apply(hidden, model.get_output_embeddings().weight, packed.targets)
    return loss  # type: ignore[no-any-return]
