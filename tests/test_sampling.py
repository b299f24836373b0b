"""Drawing tokens: the right distribution, and nothing of one request depends on those beside it."""

from __future__ import annotations

import math

import pytest


def drawn(scores, temperature: float, top_p: float, uniforms):
    """Tokens drawn from one row of logits, for each number."""
    import torch

    from vtools.inference.sampling import draw

    rows = len(uniforms)
    return draw(
        scores.expand(rows, -1), torch.full((rows,), temperature), torch.full((rows,), top_p), uniforms
    ).tolist()


def quantiles(count: int):
    import torch

    return (torch.arange(count) + 0.5) / count


@pytest.mark.parametrize(
    ("top_p", "wanted"), [(1.0, [500, 300, 150, 50]), (0.75, [625, 375, 0, 0]), (0.0, [1000, 0, 0, 0])]
)
def test_draws_follow_the_distribution_and_its_nucleus(top_p, wanted):
    import torch

    scores = torch.log(torch.tensor([0.05, 0.5, 0.15, 0.3])) * 2  # a temperature of 2 takes this back
    tokens = drawn(scores, 2.0, top_p, quantiles(1000))
    assert [tokens.count(token) for token in (1, 3, 2, 0)] == pytest.approx(wanted, abs=1)


@pytest.mark.parametrize("spread", [0.5, 5.0])  # a nucleus of thousands of tokens, and of a few
def test_a_nucleus_is_the_fewest_tokens_that_reach_top_p_in_a_vocabulary_of_any_size(spread):
    import torch

    torch.manual_seed(0)
    scores = torch.randn(5000) * spread
    weights = [math.exp(score) for score in scores.double().tolist()]
    order = sorted(range(5000), key=lambda token: -weights[token])
    size, reached = 0, 0.0
    while reached < 0.9 * sum(weights):
        reached += weights[order[size]]
        size += 1
    tokens = drawn(scores, 1.0, 0.9, quantiles(20000))
    assert set(tokens) <= set(order[: size + 1])  # one more than in the nucleus, for what rounding may add
    assert tokens.count(order[0]) == pytest.approx(20000 * weights[order[0]] / reached, abs=2)
    assert sum(tokens.count(token) for token in order[size // 2 : size]) == pytest.approx(
        20000 * sum(weights[token] for token in order[size // 2 : size]) / reached, abs=4
    )


def test_what_one_request_draws_has_the_same_bits_whoever_is_beside_it():
    import torch

    from vtools.inference.sampling import draw, log_probabilities

    torch.manual_seed(1)
    scores = torch.randn(24, 49152) * torch.linspace(0.2, 6, 24)[:, None]
    temperatures, top_ps = torch.rand(24) + 0.5, torch.tensor([1.0, 0.9, 0.5] * 8)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for uniforms in torch.rand(20, 24):
                together = draw(scores, temperatures, top_ps, uniforms)
                for row in (0, 1, 2, 11, 23):
                    alone = slice(row, row + 1)
                    assert draw(scores[alone], temperatures[alone], top_ps[alone], uniforms[alone]) == together[row]
            softmax = torch.softmax(scores, -1)
            logs, _, values = log_probabilities(scores, scores.argmax(-1), 5)
            for row in range(24):
                assert torch.equal(torch.softmax(scores[row : row + 1], -1)[0], softmax[row])
                best = scores[row : row + 1].argmax(-1)
                assert log_probabilities(scores[row : row + 1], best, 5)[0::2] == ([logs[row]], [values[row]])
    finally:
        torch.set_num_threads(threads)


def test_seeds_and_positions_give_numbers_that_are_even_and_unrelated():
    import torch

    from vtools.inference.sampling import uniform

    def numbers(seeds, positions):
        return uniform(torch.as_tensor(seeds).expand(100_000), torch.as_tensor(positions).expand(100_000))

    many = torch.arange(100_000)
    for found in (numbers(7, many), numbers(many, 40), numbers(-(2**63), many), numbers(many - many, many)):
        assert found.min() >= 0 and found.max() < 1
        counts = torch.histc(found, 20, 0, 1)
        assert (counts - 5000).abs().max() < 5 * 5000**0.5
        pairs = torch.corrcoef(torch.stack([found[1:], found[:-1]]))[0, 1]
        assert abs(pairs) < 5 / len(found) ** 0.5
    diagonal = numbers(many, many)  # seed 8 at position 1 is not seed 7 at position 2
    assert len(diagonal.unique()) > 99_000
    assert (numbers(many, 1) == numbers(many + 1, 0)).float().mean() < 0.001


@pytest.mark.parametrize("temperature", [1e-9, 1e-30, 0.01])
def test_a_temperature_near_zero_is_greedy_and_not_an_error(temperature):
    import torch

    scores = torch.tensor([3.0, 90.0, 89.0, -500.0])
    assert set(drawn(scores, temperature, 1.0, quantiles(50))) == {1}
