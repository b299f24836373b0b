# ruff: noqa: TID253
"""Cross-entropy over the trained tokens, in chunks: the logits of a row are never in memory all at once."""

from typing import Any

import torch
from transformers import PreTrainedModel

from vtools.train import shard
from vtools.train.head import Head, head_of
from vtools.train.pack import Packed, hidden_states

# Logits per chunk: each chunk adds to the gradient of the head, and takes memory. Within a chunk, the CPU computes the
# softmax for as many logits as fit its caches.
CHUNK_LOGITS = {"cpu": 1 << 25, "cuda": 1 << 28}
SOFTMAX_LOGITS = {"cpu": 1 << 21, "cuda": 1 << 28}


class LinearCrossEntropy(torch.autograd.Function):
    """The summed cross-entropy (float64 scalar) of a head's logits against targets, times `scale`.

    Gradients are computed in the forward pass, chunk by chunk, so that logits are computed once and never kept. Matrix
    products run in the dtype of `hidden` and `weight`, everything else in fp32; `scale` is applied before rounding, as
    fp16 needs.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        scale: float,
        bias: torch.Tensor | None = None,
        cap: float | None = None,
    ) -> torch.Tensor:
        """hidden [tokens, width], weight [vocabulary, width], targets [tokens] int64, bias [vocabulary]."""
        head = Head(weight, bias, 1.0, cap)
        device = hidden.device.type
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        hidden_grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        bias_grad = (
            torch.zeros_like(bias, dtype=torch.float32) if bias is not None and ctx.needs_input_grad[4] else None
        )
        size = max(1, CHUNK_LOGITS.get(device, 1 << 25) // weight.shape[0])
        rows = max(1, SOFTMAX_LOGITS.get(device, 1 << 21) // weight.shape[0] // (1 if cap is None else 3))
        for start in range(0, len(targets), size):
            inputs = hidden[start : start + size]
            slope = head.uncapped(inputs)  # the logits, overwritten by their gradient
            for logits, goals in zip(slope.split(rows), targets[start : start + size].split(rows), strict=True):
                tangents = None if cap is None else logits.float().div_(cap).tanh_()
                capped = logits if tangents is None else tangents * cap
                logarithms = torch.log_softmax(capped, dim=-1, dtype=torch.float32)
                total -= logarithms.gather(1, goals.unsqueeze(1)).sum(dtype=torch.float64)
                if any(ctx.needs_input_grad):
                    probabilities = logarithms.exp_()
                    probabilities[torch.arange(len(goals), device=hidden.device), goals] -= 1
                    if tangents is not None:
                        probabilities -= probabilities * tangents.square_()  # the slope of tanh is 1 - tanh²
                    logits.copy_(probabilities.mul_(scale))
            if bias_grad is not None:
                bias_grad += slope.sum(0, dtype=torch.float32)
            if hidden_grad is not None:
                hidden_grad[start : start + size] = slope @ weight
            if weight_grad is not None:
                if weight.dtype == torch.float32:
                    weight_grad.addmm_(slope.T, inputs)
                else:
                    weight_grad += slope.T @ inputs
        ctx.save_for_backward(hidden_grad, weight_grad, bias_grad)
        return total * scale

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        slope = grad_outputs[0].float()
        hidden, weight, bias = (None if one is None else one.mul_(slope) for one in ctx.saved_tensors)
        return hidden, weight, None, None, bias, None


def summed_loss(model: PreTrainedModel, packed: Packed, scale: float = 1.0) -> torch.Tensor:
    """The loss summed over the trained tokens of a micro-batch, times `scale` (float64 scalar)."""
    hidden = hidden_states(model, packed).index_select(0, packed.predicting)
    return shard.with_head(model, _loss, hidden, packed.targets, scale, model)  # type: ignore[no-any-return]


def _loss(
    module: torch.nn.Module, hidden: torch.Tensor, targets: torch.Tensor, scale: float, model: PreTrainedModel
) -> torch.Tensor:
    head = head_of(model, module)
    hidden = hidden if head.multiplier == 1 else hidden * head.multiplier
    inputs: tuple[Any, ...] = (hidden, head.weight, targets, scale, head.bias, head.cap)
    if not torch.is_grad_enabled():  # inside the function it cannot be detected
        inputs = tuple(one.detach() if isinstance(one, torch.Tensor) else one for one in inputs)
    return LinearCrossEntropy.apply(*inputs)  # type: ignore[no-any-return]
