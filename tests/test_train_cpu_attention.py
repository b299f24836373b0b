"""Attention of `vtools train` in bf16 on a CPU, beside its definition in float64."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, strategies

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from vtools.train import cpu_attention  # noqa: E402

ROUNDED = 8e-3  # the relative difference that two roundings to bf16 explain (each is up to 2 ** -8)


def rows(lengths: list[int], heads: int, groups: int, size: int) -> tuple[list[Any], Any]:
    """Random query, key, value and slope of the output, and where documents of these lengths start."""
    torch.manual_seed(sum(lengths))
    tokens = sum(lengths)
    made = [torch.randn(tokens, count, size).bfloat16() for count in (heads, groups, groups, heads)]
    return made, torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)


def attended(made: list[Any], starts: Any, scale: float, window: int) -> list[Any]:
    """The output, and the gradients of query, key and value."""
    inputs = [one.clone().requires_grad_() for one in made[:3]]
    output = cpu_attention.attend(*inputs, starts, scale, window)
    output.backward(made[3])
    return [output.detach(), *(one.grad for one in inputs)]


def defined(made: list[Any], starts: Any, scale: float, window: int) -> list[Any]:
    """The same by the definition, document by document, in float64."""
    inputs = [one.double().requires_grad_() for one in made[:3]]
    outputs = []
    for start, end in pairwise(starts.tolist()):
        query, key, value = (one[start:end].transpose(0, 1) for one in inputs)
        key, value = (one.repeat_interleave(len(query) // len(one), 0) for one in (key, value))
        place = torch.arange(end - start)
        ago = place.unsqueeze(1) - place
        hidden = (ago < 0) | (ago >= window if window else False)
        scores = (query @ key.mT * scale).masked_fill(hidden, -torch.inf)
        outputs.append((scores.softmax(-1) @ value).transpose(0, 1))
    output = torch.cat(outputs)
    output.backward(made[3].double())
    return [output.detach(), *(one.grad for one in inputs)]


@pytest.mark.parametrize(
    ("lengths", "heads", "groups", "size", "window"),
    [
        ([300, 1, 129, 128], 9, 3, 64, 0),
        ([257, 40], 4, 4, 16, 0),
        ([500, 3], 4, 1, 32, 100),
        ([300], 2, 2, 80, 300),
        ([2100], 32, 8, 16, 0),  # scores for several passes over the heads
    ],
)
def test_it_is_attention_as_float64_has_it(lengths: list[int], heads: int, groups: int, size: int, window: int) -> None:
    made, starts = rows(lengths, heads, groups, size)
    found, expected = (work(made, starts, size**-0.5, window) for work in (attended, defined))
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape and one.dtype == torch.bfloat16
        assert (one - other).norm() < ROUNDED * other.norm()
        # No document is wrong in the shade of a larger one.
        for start, end in pairwise(starts.tolist()):
            assert (one[start:end] - other[start:end]).norm() < 2 * ROUNDED * other[start:end].norm() + 1e-6


@given(
    lengths=strategies.lists(strategies.integers(1, 150), min_size=1, max_size=4),
    window=strategies.sampled_from([0, 1, 7, 64]),
)
def test_a_document_has_the_bits_that_it_has_alone(lengths: list[int], window: int) -> None:
    made, starts = rows(lengths, 4, 2, 16)
    together = attended(made, starts, 0.25, window)
    for again, one in zip(attended(made, starts, 0.25, window), together, strict=True):
        assert torch.equal(again, one)
    for start, end in pairwise(starts.tolist()):
        own = torch.tensor([0, end - start], dtype=torch.int32)
        for alone, one in zip(attended([one[start:end] for one in made], own, 0.25, window), together, strict=True):
            assert torch.equal(alone, one[start:end])
