# ruff: noqa: TID253  imports torch at once: import this module inside a function
"""Sampling the next token, with each request's own temperature, top_p and seed."""

import random
from typing import Any

import torch
from transformers import LogitsProcessorList
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList


class Sampler(ContinuousBatchingLogitsProcessorList):
    """Samples each request's next token with its own temperature, top_p and seed, and gives it the largest score.

    The library has one seed for all requests. Here a draw depends only on the request's seed and the token's position,
    so an answer does not depend on other requests.
    """

    def __init__(self) -> None:
        super().__init__(LogitsProcessorList())
        self.do_processing = True
        self._rows: list[Any] = []

    def check_kwargs(self, kwargs: dict[str, Any]) -> None:
        pass

    def prepare_tensor_args(self, requests_in_batch: list[Any], arg_storage: torch.Tensor) -> torch.Tensor:
        self._rows = [request.state for request in requests_in_batch if request.has_new_token]
        return arg_storage

    def __call__(self, input_ids: Any, scores: torch.Tensor, logits_processor_args: Any) -> torch.Tensor:
        """`scores` are float32 logits, (requests, vocabulary)."""
        for row, state in enumerate(self._rows):
            options = state.logit_processor_kwargs
            if options["temperature"] > 0:
                # Count both lists: under memory pressure generated tokens become part of the prompt.
                position = len(state.initial_tokens) + len(state.generated_tokens)
                uniform = random.Random(f"{options['seed']}/{position}").random()
                token = draw(scores[row], options["temperature"], options["top_p"], uniform)
                scores[row] = float("-inf")
                scores[row, token] = 0.0
        return scores


def draw(scores: torch.Tensor, temperature: float, top_p: float, uniform: float) -> int:
    """The token at quantile `uniform` (0 to 1) of the softmax of these logits, restricted to the nucleus `top_p`.

    Nucleus sampling: Holtzman et al. 2020, arXiv 1904.09751.
    """
    probabilities = torch.softmax(scores.double() / temperature, dim=-1)
    order = None
    if top_p < 1:
        probabilities, order = probabilities.sort(descending=True, stable=True)
        before = probabilities.cumsum(0)[:-1]
        probabilities[1:][before >= top_p] = 0  # the first token always stays
    cumulative = probabilities.cumsum(0)
    index = int(torch.searchsorted(cumulative, uniform * float(cumulative[-1]), right=True))
    index = min(index, len(cumulative) - 1)
    return int(order[index]) if order is not None else index
