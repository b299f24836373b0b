"""`vtools train`: the schedule, the packing, the loss and the gradients, beside those written down from their definitions."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import given, strategies
from training import CPU, corpus_of, load, sharded

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from vtools.models.load import load_model  # noqa: E402
from vtools.models.template import Template, load_template  # noqa: E402
from vtools.models.tokenizer import load_tokenizer  # noqa: E402
from vtools.process import Failure  # noqa: E402
from vtools.train import attention, data, loop, loss, pack, schedule  # noqa: E402


@pytest.fixture(scope="module")
def template(base: Path) -> Template:
    return load_template(None, load_tokenizer(str(base)))


# The schedule


def test_an_epoch_trains_every_conversation_once_in_an_order_of_its_own() -> None:
    lengths = list(range(1, 102))
    first, again, second = (schedule.steps(lengths, 7, epoch, 8) for epoch in (0, 0, 1))
    assert first == again != second
    assert schedule.steps(lengths, 8, 0, 8) != first
    for steps in (first, second):
        assert [len(step) for step in steps] == [8] * 12 + [5]
        assert sorted(index for step in steps for index in step) == list(range(101))


@given(
    lengths=strategies.lists(strategies.integers(1, 400), min_size=1, max_size=60),
    ranks=strategies.integers(1, 8),
    budget=strategies.integers(1, 1000),
)
def test_every_rank_has_as_many_micro_batches_and_together_they_hold_the_step_once(
    lengths: list[int], ranks: int, budget: int
) -> None:
    step = list(range(0, len(lengths), 2)) or [0]
    shares = schedule.divide(lengths, step, ranks, budget)
    assert len(shares) == ranks and len({len(share) for share in shares}) == 1
    packs = [pack for share in shares for pack in share]
    assert sorted(index for pack in packs for index in pack) == step
    assert all(len(pack) <= 1 or sum(lengths[index] for index in pack) <= budget for pack in packs)


def test_ranks_share_a_step_of_real_lengths_evenly() -> None:
    source = random.Random(0)
    lengths = [min(2048, int(source.lognormvariate(6.6, 0.8)) + 1) for _ in range(1280)]
    for step in schedule.steps(lengths, 0, 0, 128):
        costs = [
            sum(schedule.cost(lengths[i]) for pack in share for i in pack)
            for share in schedule.divide(lengths, step, 8, 8192)
        ]
        assert max(costs) < 1.03 * sum(costs) / 8


def test_the_learning_rate_is_that_of_transformers_schedules_and_the_one_in_vicunas_log() -> None:
    from transformers import get_scheduler

    assert schedule.warmup_steps(0.04, 2133) == 86
    assert schedule.learning_rate(3, 2133, 86, 2e-5) == 6.976744186046513e-07
    for name, steps, warmup in (
        ("cosine", 2133, 86), ("cosine", 20, 0), ("cosine", 7, 1), ("cosine", 5, 5), ("cosine", 3, 8),
        ("linear", 20, 3), ("linear", 7, 0), ("constant_with_warmup", 9, 4),
    ):  # fmt: skip
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=2e-5)
        theirs = get_scheduler(name, optimizer, warmup, steps)
        for step in range(steps):
            assert schedule.learning_rate(step, steps, warmup, 2e-5, name.partition("_")[0]) == theirs.get_last_lr()[0]
            optimizer.step()
            theirs.step()
    assert schedule.learning_rate(2133, 2133, 86, 2e-5) == pytest.approx(0, abs=1e-20)


# Packing and the loss


def gradients(network: Any) -> dict[str, Any]:
    found = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
    network.zero_grad()
    return found


@pytest.mark.parametrize("tied", [True, False])
def test_packed_conversations_have_the_logits_and_gradients_of_single_ones(
    tied: bool, tmp_path: Path, template: Template
) -> None:
    network = load(tiny.make(tmp_path / "model", tied=tied))
    corpus = corpus_of(template, tmp_path, 5)
    conversations = [corpus.conversation(index) for index in range(5)]
    packed = pack.pack(conversations, CPU)
    weight = network.get_output_embeddings().weight
    logits = pack.hidden_states(network, packed) @ weight.T
    loss.summed_loss(network, packed).backward()
    ours = gradients(network)

    network.set_attn_implementation("eager")
    alone, total = [], torch.zeros(())
    for ids, mask in conversations:
        row = torch.tensor([list(ids)])
        own = network(row, use_cache=False).logits[0]
        alone.append(own.detach())
        wanted = torch.tensor(list(mask[1:]), dtype=torch.bool)
        total = total + torch.nn.functional.cross_entropy(own[:-1][wanted], row[0, 1:][wanted], reduction="sum")
    total.backward()
    assert (logits - torch.cat(alone)).abs().max() < 1e-5 * torch.cat(alone).abs().max()
    for name, reference in gradients(network).items():
        assert (ours[name] - reference).norm() < 1e-5 * reference.norm(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_contamination_between_packed_conversations_would_be_seen(
    dtype: Any, base: Path, template: Template, tmp_path: Path, alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, corpus = sharded(base, alone, dtype), corpus_of(template, tmp_path, 3)
    probe = [list(corpus.conversation(index)[0][:32]) for index in range(3)]
    assert pack.self_check(network, probe, dtype, CPU) < pack.TOLERANCE[dtype] / 2
    assert network.config._attn_implementation == attention.NAME

    honest = pack.hidden_states

    def one_document(model: Any, packed: pack.Packed) -> Any:
        end = packed.input_ids.shape[1]
        return honest(model, packed._replace(starts=torch.tensor([0, end], dtype=torch.int32), longest=end))

    monkeypatch.setattr(pack, "hidden_states", one_document)
    with pytest.raises(Failure, match="different logits"):
        pack.self_check(network, probe, dtype, CPU)


def test_positions_that_run_on_into_the_next_conversation_would_be_seen(
    base: Path, template: Template, tmp_path: Path, alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, corpus = sharded(base, alone), corpus_of(template, tmp_path, 3)
    probe = [list(corpus.conversation(index)[0][:32]) for index in range(3)]
    honest = pack.hidden_states

    def stretched(model: Any, packed: pack.Packed) -> Any:
        return honest(model, packed._replace(position_ids=2 * packed.position_ids))

    monkeypatch.setattr(pack, "hidden_states", stretched)
    with pytest.raises(Failure, match="different logits"):
        pack.self_check(network, probe, torch.float32, CPU)


def test_a_sliding_window_sees_as_far_back_as_it_says() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, 11, 8) for heads in (4, 2, 2))
    starts = torch.tensor([0, 7, 11], dtype=torch.int32)
    layer = torch.nn.Identity()
    found, _ = attention.document_attention(
        layer, query, key, value, None, cu_seq_lens_q=starts, max_length_q=7, sliding_window=3
    )
    wide_key, wide_value = (tensor.repeat_interleave(2, dim=1) for tensor in (key, value))
    place = torch.arange(11)
    document = (place >= 7).long()
    distance = place[:, None] - place[None, :]
    seen = (document[:, None] == document[None, :]) & (distance >= 0) & (distance < 3)
    scores = (query @ wide_key.transpose(2, 3) / math.sqrt(8)).masked_fill(~seen, -math.inf)
    assert torch.allclose(found, (scores.softmax(-1) @ wide_value).transpose(1, 2), atol=1e-6)


def test_the_gpu_kernel_accepts_grouped_queries_forward_and_backward() -> None:
    query, key, value = (
        torch.empty(1, heads, 12, 64, device="meta", dtype=torch.bfloat16, requires_grad=True) for heads in (4, 2, 2)
    )
    starts = torch.empty(3, dtype=torch.int32, device="meta")
    output, _ = attention.document_attention(
        torch.nn.Identity(), query, key, value, None, cu_seq_lens_q=starts, max_length_q=8
    )
    assert output.shape == (1, 12, 4, 64)
    output.sum().backward()
    assert key.grad is not None and key.grad.shape == key.shape


def test_the_loss_is_the_cross_entropy_of_the_trained_tokens_and_of_no_other(
    base: Path, template: Template, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loss.CHUNK_LOGITS, "cpu", 7 * 400)  # several chunks, the last one short
    network, corpus = load(base), corpus_of(template, tmp_path, 6)
    found = loss.summed_loss(network, pack.pack(map(corpus.conversation, range(6)), CPU)).item()

    exact = load_model(str(base), dtype="fp64")
    by_hand, answers = 0.0, 0
    for record in tiny.conversations(6):
        rendered = template.render(record["messages"])
        probabilities = exact(torch.tensor([rendered.ids]), use_cache=False).logits[0].log_softmax(-1)
        for place, trained in enumerate(rendered.mask):
            if trained:
                by_hand -= probabilities[place - 1, rendered.ids[place]].item()
        spoken = [ident for ident, trained in zip(rendered.ids, rendered.mask, strict=True) if trained]
        texts = [message["content"] + "<|im_end|>" for message in record["messages"] if message["role"] == "assistant"]
        assert template.tokenizer.decode(spoken, skip_special=False) == "".join(texts)
        answers += len(spoken)
    assert answers == corpus.trained_tokens
    assert found == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("cap", [None, 2.5], ids=["plain", "capped"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_chunked_cross_entropy_has_the_gradients_of_float64(
    dtype: Any, tolerance: float, cap: float | None, monkeypatch: Any
) -> None:
    monkeypatch.setitem(loss.CHUNK_LOGITS, "cpu", 10 * 300)
    monkeypatch.setitem(loss.SOFTMAX_LOGITS, "cpu", 12 * 300)
    torch.manual_seed(0)
    shapes = ((37, 48), (300, 48), (300,))
    hidden, weight, bias = (torch.randn(shape).mul_(0.4).to(dtype).requires_grad_() for shape in shapes)
    targets = torch.randint(300, (37,))
    found = loss.LinearCrossEntropy.apply(hidden, weight, targets, 1 / 37, bias, cap)
    found.backward()
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight, bias)]
    logits = exact[0] @ exact[1].T + exact[2]
    expected = torch.nn.functional.cross_entropy(logits if cap is None else (logits / cap).tanh() * cap, targets)
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), rel=tolerance / 10)
    for ours, reference in zip((hidden, weight, bias), exact, strict=True):
        assert (ours.grad - reference.grad).norm() < tolerance * reference.grad.norm()


def train(network: Any, corpus: data.Corpus, alone: Any, out: Path, **changes: Any) -> list[dict[str, Any]]:
    """The metrics of six steps."""
    rows: list[dict[str, Any]] = []
    recipe = {
        "steps": 6, "batch": 5, "micro_tokens": 10_000, "lr": 1e-3, "warmup": 1, "schedule": "cosine", "seed": 0,
        "dtype": torch.float32, "eval_every": 0,
    }  # fmt: skip
    saving = loop.Saving(out, (0, 0.0), 2, {}, False)
    loop.Trainer(network, corpus, None, loop.Recipe(**recipe | changes), saving, alone).run(rows.append)
    return rows


@pytest.mark.slow
def test_how_a_step_is_cut_into_micro_batches_does_not_change_its_loss(
    base: Path, template: Template, tmp_path: Path, alone: Any
) -> None:
    corpus = corpus_of(template, tmp_path, 13)
    curves = [train(sharded(base, alone), corpus, alone, tmp_path, micro_tokens=size) for size in (1, 150, 10_000)]
    for row, *others in zip(*curves, strict=True):
        for other in others:
            assert other["loss"] == pytest.approx(row["loss"], rel=1e-6)
            assert other["grad_norm"] == pytest.approx(row["grad_norm"], rel=1e-4)
            assert [other[key] for key in ("tokens", "trained_tokens", "lr")] == [
                row[key] for key in ("tokens", "trained_tokens", "lr")
            ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_activations_made_again_change_nothing(
    recompute: str, dtype: Any, base: Path, template: Template, tmp_path: Path, alone: Any
) -> None:
    corpus = corpus_of(template, tmp_path, 13)
    networks = (sharded(base, alone, dtype, how) for how in ("none", recompute))
    plain, again = (train(network, corpus, alone, tmp_path, dtype=dtype) for network in networks)
    assert [(row["loss"], row["grad_norm"]) for row in plain] == [(row["loss"], row["grad_norm"]) for row in again]


def test_gradients_of_an_embedding_that_is_also_the_head_are_added_in_fp32(
    template: Template, tmp_path: Path, alone: Any
) -> None:
    tied, untied = (load(tiny.make(tmp_path / str(one), tied=one)) for one in (True, False))
    weights = tied.state_dict()
    untied.load_state_dict(weights | {"lm_head.weight": weights["model.embed_tokens.weight"]})
    untied.save_pretrained(tmp_path / "False")
    corpus = corpus_of(template, tmp_path, 9)
    row = pack.pack(map(corpus.conversation, range(9)), CPU)
    gradients = []
    for folder in ("True", "False"):
        network = sharded(tmp_path / folder, alone, torch.bfloat16)
        network(loss.summed_loss, row).backward()
        gradients.append({name: one.grad.to_local() for name, one in network.named_parameters()})
    together, apart = gradients
    both = apart["model.embed_tokens.weight"] + apart["lm_head.weight"]
    assert torch.equal(together["model.embed_tokens.weight"], both)
    assert not torch.equal(both, both.bfloat16().float())  # it is not rounded either
    assert torch.equal(together["model.norm.weight"], apart["model.norm.weight"])


def test_a_micro_batch_without_a_conversation_changes_nothing(base: Path, alone: Any) -> None:
    network = sharded(base, alone)
    found = network(loss.summed_loss, pack.pack([], CPU))
    found.backward()
    assert found.item() == 0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in network.parameters())


def test_half_precision_scales_the_loss_and_skips_a_step_that_overflows(
    base: Path, template: Template, tmp_path: Path, alone: Any
) -> None:
    corpus = corpus_of(template, tmp_path, 13)
    exact = train(sharded(base, alone), corpus, alone, tmp_path)
    half = train(sharded(base, alone, torch.float16), corpus, alone, tmp_path, dtype=torch.float16)
    for row, other in zip(exact, half, strict=True):
        assert other["loss"] == pytest.approx(row["loss"], rel=1e-2)
        assert other["grad_norm"] == pytest.approx(row["grad_norm"], rel=3e-2)
    network = sharded(base, alone, torch.float16)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    trainer = loop.Trainer(network, corpus, None, loop.Recipe(**{
        "steps": 1, "batch": 5, "micro_tokens": 500, "lr": 1e-2, "warmup": 0, "schedule": "cosine", "seed": 0,
        "dtype": torch.float16, "eval_every": 0,
    }), loop.Saving(tmp_path, (0, 0.0), 2, {}, False), alone)  # fmt: skip
    trainer.result.scale = 2.0**40
    rows: list[dict[str, Any]] = []
    result = trainer.run(rows.append)
    assert rows[0]["grad_norm"] is None and result.scale == 2.0**39
    assert all(torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))
