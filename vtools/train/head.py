# ruff: noqa: TID253
"""The head of a model: what becomes of hidden states until they are logits."""

from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel


class Head(NamedTuple):
    """Logits are (multiplier * hidden) @ weight.T + bias, or cap * tanh(x / cap) of that."""

    weight: torch.Tensor  # [vocabulary, width]
    bias: torch.Tensor | None  # [vocabulary]: Phi 1 and 2
    multiplier: float  # not 1: Granite, Cohere, MiniCPM
    cap: float | None  # Gemma 2

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The logits [tokens, vocabulary], in fp32, of hidden states [tokens, width]."""
        found = self.uncapped(hidden * self.multiplier).float()
        return found if self.cap is None else (found / self.cap).tanh() * self.cap

    def uncapped(self, hidden: torch.Tensor) -> torch.Tensor:
        """What is capped, if it is, of hidden states that have been multiplied."""
        return hidden @ self.weight.T if self.bias is None else torch.addmm(self.bias, hidden, self.weight.T)


def head_of(model: PreTrainedModel, module: Any) -> Head:
    """The head of a model whose module it is, by the names that transformers' configurations have for it."""
    config = model.config.get_text_config()
    multiplier = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
    return Head(
        module.weight, getattr(module, "bias", None), multiplier, getattr(config, "final_logit_softcapping", None)
    )
