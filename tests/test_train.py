"""`vtools train`: what is trained, with which numbers, and what ends up in the folder."""

from __future__ import annotations

import fcntl
import importlib
import inspect
import json
import math
import random
import resource
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import given, strategies

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from vtools.models.load import load_model  # noqa: E402
from vtools.models.template import Template, load_template  # noqa: E402
from vtools.models.tokenizer import load_tokenizer  # noqa: E402
from vtools.process import Failure  # noqa: E402
from vtools.train import attention, data, loop, loss, pack, run_identity, save, schedule, shard, token_cache  # noqa: E402
from vtools.train import ranks as processes  # noqa: E402

CPU = torch.device("cpu")
METRICS = [
    "step", "epoch", "loss", "lr", "grad_norm", "tokens", "trained_tokens", "data_ms", "tokens_per_s", "mfu", "mem_gb",
    "ms", "ckpt_ms", "eta_s",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Token caches of tests stay out of the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VTOOLS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def alone() -> processes.Ranks:
    """A process group of this process."""
    return processes.join()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("train") / "base")


@pytest.fixture(scope="module")
def template(base: Path) -> Template:
    return load_template(None, load_tokenizer(str(base)))


def load(folder: Path) -> Any:
    network = load_model(str(folder))
    network.set_attn_implementation(attention.NAME)
    return network


def corpus_of(template: Template, folder: Path, number: int, seed: int = 0) -> data.Corpus:
    path = tiny.write(folder / f"{number}-{seed}.jsonl", tiny.conversations(number, seed))
    return token_cache.read(str(path), template, 512, "error", quiet=True)


def sharded(folder: Path, alone: processes.Ranks, dtype: Any = torch.float32, recompute: str = "none") -> Any:
    """The model as a run has it, on one rank."""
    network = shard.empty(folder)
    shard.shard(network, alone.mesh, dtype, recompute)
    shard.fill(network, shard.Weights(folder).read, CPU)
    return network


def run(*arguments: object, stdin: bytes = b"", **extra: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        tiny.command(*arguments), input=stdin, capture_output=True, env=tiny.environment(**extra), timeout=240
    )


def lines(stdout: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stdout.splitlines()]


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


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_chunked_cross_entropy_has_the_gradients_of_float64(dtype: Any, tolerance: float, monkeypatch: Any) -> None:
    monkeypatch.setitem(loss.CHUNK_LOGITS, "cpu", 10 * 300)
    torch.manual_seed(0)
    hidden, weight = (torch.randn(37, 48).to(dtype), torch.randn(300, 48).mul_(0.2).to(dtype))
    hidden.requires_grad_(), weight.requires_grad_()
    targets = torch.randint(300, (37,))
    found = loss.LinearCrossEntropy.apply(hidden, weight, targets, 1 / 37)
    found.backward()
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    expected = torch.nn.functional.cross_entropy(exact[0] @ exact[1].T, targets)
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), rel=tolerance / 10)
    for ours, reference in zip((hidden, weight), exact, strict=True):
        assert (ours.grad - reference.grad).norm() < tolerance * reference.grad.norm()


def train(network: Any, corpus: data.Corpus, alone: Any, out: Path, **changes: Any) -> list[dict[str, Any]]:
    """The metrics of six steps."""
    rows: list[dict[str, Any]] = []
    recipe = {
        "steps": 6, "batch": 5, "micro_tokens": 10_000, "lr": 1e-3, "warmup": 1, "schedule": "cosine", "seed": 0,
        "dtype": torch.float32, "eval_every": 0,
    }  # fmt: skip
    saving = loop.Saving(out, (0, 0.0), 2, {}, False)
    loop.Trainer(network, corpus, None, loop.Recipe(**recipe | changes), saving, alone).run(rows.append, lambda n: None)
    return rows


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


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_activations_made_again_change_nothing(
    recompute: str, base: Path, template: Template, tmp_path: Path, alone: Any
) -> None:
    corpus = corpus_of(template, tmp_path, 13)
    plain, again = (train(sharded(base, alone, recompute=how), corpus, alone, tmp_path) for how in ("none", recompute))
    assert [(row["loss"], row["grad_norm"]) for row in plain] == [(row["loss"], row["grad_norm"]) for row in again]


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
    result = trainer.run(rows.append, lambda n: None)
    assert rows[0]["grad_norm"] is None and result.scale == 2.0**39
    assert all(torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))


# The saved model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard_bytes", [save.SHARD_BYTES, 100_000])
def test_an_exported_model_gives_the_logits_it_was_trained_to(
    tied: bool, shard_bytes: int, tmp_path: Path, alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setattr(save, "SHARD_BYTES", shard_bytes)
    folder = tiny.make(tmp_path / "model", tied=tied, seed=3)
    # As LLaMA's own file has it, without do_sample.
    generation = json.loads((folder / "generation_config.json").read_text()) | {"temperature": 0.6}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    chosen = load_template("vicuna-v1.1", load_tokenizer(str(folder)))
    network = sharded(folder, alone)
    with torch.no_grad():
        network.get_input_embeddings().weight.add_(0.01)
    rows = torch.tensor([5, 9, 77, 3, 120, 40])
    network.set_attn_implementation("sdpa")
    before = network(pack.logits_alone, rows)
    out = tmp_path / "out"
    out.mkdir()
    (out / "model-00001-of-00099.safetensors").write_bytes(b"of an earlier run")
    save.export(network, chosen, out, "fp32", ABOUT, alone)
    again = AutoModelForCausalLM.from_pretrained(out)
    assert torch.equal(again(rows.unsqueeze(0)).logits[0], before)
    assert again.config.architectures == ["LlamaForCausalLM"]
    assert again.config.use_cache and again.config.tie_word_embeddings == tied
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["use_cache"] is True and generation["eos_token_id"] == 2 and generation["temperature"] == 0.6
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == chosen.source
    weights = sorted(path.name for path in out.glob("*.safetensors*"))
    if shard_bytes == save.SHARD_BYTES and shard_bytes > 1e9:
        assert weights == ["model.safetensors"]
    else:
        assert len(weights) > 2 and "model.safetensors.index.json" in weights
    assert sorted({path.name for path in out.iterdir()} - set(weights)) == [
        "README.md", "chat_template.jinja", "config.json", "generation_config.json", "tokenizer.json",
        "tokenizer_config.json", "vtools.json",
    ]  # fmt: skip
    assert (out / weights[0]).stat().st_mode & 0o777 == (out / "config.json").stat().st_mode & 0o777


ABOUT = {
    "base": "base", "template": "chatml", "versions": {"vtools": "0"}, "arguments": {"lr": 1e-4},
    "data": {"conversations": 2, "data_tokens": 3, "data_trained_tokens": 1, "sources": {"own": 2}, "licenses": {}},
    "result": {"steps": 1, "loss": 1.5, "eval_loss_before": None, "eval_loss_after": None},
}  # fmt: skip


def test_a_base_in_torchs_own_files_is_read_as_one_in_safetensors(tmp_path: Path, alone: Any) -> None:
    folder = tiny.make(tmp_path / "model", tied=False)
    plain = {name: parameter.detach() for name, parameter in load_model(str(folder)).named_parameters()}
    weights = shard.Weights(folder)
    rows = {name: weights.read(name, tuple(parameter.shape), 1, 3) for name, parameter in plain.items()}
    names = list(plain)
    for number, part in enumerate((names[:5], names[5:]), start=1):
        torch.save({name: plain[name] for name in part}, folder / f"pytorch_model-{number:05}-of-00002.bin")
    mapping = {name: f"pytorch_model-{1 + (name in names[5:]):05}-of-00002.bin" for name in names}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": mapping}))
    (folder / "model.safetensors").rename(folder / "elsewhere")
    for name, parameter in plain.items():
        shape = tuple(parameter.shape)
        assert torch.equal(shard.Weights(folder).read(name, shape, 0, shape[0]), parameter)
        assert torch.equal(rows[name], parameter[1:3])
    (folder / "pytorch_model-00001-of-00002.bin").write_bytes(b"not a checkpoint")
    with pytest.raises(Failure, match="00001-of-00002"):
        shard.Weights(folder)


def test_a_base_that_is_not_what_its_config_says_is_refused_by_the_name_of_the_tensor(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2, 3), "b": torch.ones(2, dtype=torch.int8)}, tmp_path / "model.safetensors")
    weights = shard.Weights(tmp_path)
    assert torch.equal(weights.read("a", (2, 3), 1, 2), torch.ones(1, 3))
    for name, shape, says in (("a", (3, 2), r"a is \[2, 3\]"), ("b", (2,), "b is I8"), ("c", (1,), "no tensor c")):
        with pytest.raises(Failure, match=says):
            weights.read(name, shape, 0, 1)


def test_adapters_merged_into_the_weights_are_what_peft_computes_from_its_files(base: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    path = tiny.write(tmp_path / "data.jsonl", tiny.conversations(20))
    out = tmp_path / "out"
    done = run(
        "--model", base, "--data", path, "--out", out, "--batch", 4, "--max-steps", 5, "--lora", 4, "--lr", 1e-2,
        "--dtype", "fp32", "--save-dtype", "fp32",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    losses = [row["loss"] for row in lines(done.stdout) if "loss" in row]
    assert losses[-1] < losses[0]
    rows = torch.tensor([[5, 9, 77, 3, 120, 40]])
    untouched = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = untouched(rows).logits
    adapted = PeftModel.from_pretrained(untouched, out / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert torch.allclose(adapted(rows).logits, merged(rows).logits, atol=1e-5)
    assert (merged(rows).logits - before).abs().max() > 1e-2
    frozen = merged.get_input_embeddings().weight
    assert torch.equal(frozen, load_model(str(base)).get_input_embeddings().weight)
    assert json.loads((out / "adapter" / "adapter_config.json").read_text())["r"] == 4


def test_a_longer_context_stretches_the_positions_as_vicuna_16k_did(base: Path, tmp_path: Path) -> None:
    path = tiny.write(tmp_path / "data.jsonl", tiny.conversations(8))
    arguments = ["--model", base, "--data", path, "--out", tmp_path / "out", "--batch", 4, "--max-steps", 2]
    refused = run(*arguments, "--max-tokens", 1800)
    assert refused.returncode == 2 and b"--rope-scaling linear" in refused.stderr
    done = run(*arguments, "--max-tokens", 1800, "--rope-scaling", "linear", "--dtype", "fp32")
    assert done.returncode == 0, done.stderr.decode()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["rope_parameters"]["rope_type"] == "linear" and config["rope_parameters"]["factor"] == 4.0
    trained = load_model(str(tmp_path / "out"))
    plain = load_model(str(base))
    assert torch.allclose(trained.model.rotary_emb.inv_freq, plain.model.rotary_emb.inv_freq / 4)


# The command


@pytest.fixture(scope="module")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One whole run from stdin, of data that holds a bad line, an unanswered and an overlong conversation."""
    folder = tmp_path_factory.mktemp("finished")
    records: list[Any] = tiny.conversations(20)
    records[3] = {"id": "unanswered", "messages": [{"role": "user", "content": "anyone there?"}]}
    records[5] = {
        "id": "shaped",
        "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "a cat"}],
    }
    records[7]["messages"][1]["content"] = "the cat sat " * 60
    text = "".join(json.dumps(record) + "\n" for record in records[:9]) + "{torn\n"
    text += "".join(json.dumps(record) + "\n" for record in records[9:])
    held = tiny.write(folder / "held.jsonl", tiny.conversations(4, seed=9))
    arguments = [
        "--model",
        base,
        "--out",
        folder / "out",
        "--eval",
        held,
        "--eval-every",
        4,
        "--batch",
        4,
        "--epochs",
        4,
    ]
    arguments += ["--lr", 1e-2, "--max-tokens", 128, "--rejects", folder / "rejects.jsonl", "--dtype", "fp32"]
    done = run(*arguments, stdin=text.encode())
    assert done.returncode == 0, done.stderr.decode()
    return {
        "folder": folder,
        "arguments": arguments,
        "text": text,
        "stdout": done.stdout,
        "stderr": done.stderr.decode(),
    }


def test_metrics_have_one_line_a_step_and_the_held_out_loss_falls(finished: dict[str, Any]) -> None:
    rows = lines(finished["stdout"])
    head, *rest = rows
    assert head["steps"] == 20 and head["conversations"] == 19 and head["truncated"] >= 1
    steps = [row for row in rest if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 21))
    for row in steps:
        assert list(row) == METRICS
        # No peak is known for a CPU, and an invented one would flatter.
        assert all(math.isfinite(value) if key != "mfu" else value is None for key, value in row.items())
        assert 0 < row["trained_tokens"] < row["tokens"]
    assert sum(row["tokens"] for row in steps) == 4 * head["data_tokens"]
    assert sum(row["trained_tokens"] for row in steps) == 4 * head["data_trained_tokens"]
    assert steps[4]["epoch"] == 1.0 and steps[-1]["epoch"] == 4.0
    assert steps[0]["lr"] == 0 and steps[1]["lr"] == 1e-2
    held = [row for row in rest if "eval_loss" in row]
    assert [row["step"] for row in held] == [0, 4, 8, 12, 16, 20]
    assert all(set(row) == {"step", "eval_loss", "eval_tokens", "ms"} for row in held)
    assert held[-1]["eval_loss"] < held[0]["eval_loss"] - 1
    assert [row["step"] for row in rest[:2]] == [0, 1] and rest[-1]["step"] == 20 and "eval_loss" in rest[-1]


def test_what_cannot_be_trained_is_counted_and_saved_with_its_reason(finished: dict[str, Any]) -> None:
    rejects = lines((finished["folder"] / "rejects.jsonl").read_bytes())
    assert Counter(row["reason"] for row in rejects) == {"bad_json": 1, "template_error": 1}
    assert next(row for row in rejects if row["reason"] == "template_error")["id"] == "unanswered"
    assert lines(finished["stdout"])[0]["reasons"] == {"bad_json": 1, "template_error": 1}
    assert "21 in, 19 out, 2 rejected" in finished["stderr"]


def test_the_folder_says_what_the_model_was_made_from(finished: dict[str, Any]) -> None:
    out = finished["folder"] / "out"
    about = json.loads((out / "vtools.json").read_text())
    assert about["data"]["sources"] == {"own": 10, "sharegpt": 8, "unknown": 1}
    assert about["data"]["licenses"] == {"none": 18, "unknown": 1}
    assert about["result"]["steps"] == 20
    assert about["run"]["--dtype"] == about["arguments"]["dtype"] == "fp32"
    rows = lines(finished["stdout"])
    assert about["result"]["loss"] == next(row for row in reversed(rows) if "loss" in row)["loss"]
    held = [row["eval_loss"] for row in rows if "eval_loss" in row]
    assert [about["result"][f"eval_loss_{when}"] for when in ("before", "after")] == [held[0], held[-1]]
    assert {"vtools", "torch", "transformers", "python"} <= about["versions"].keys()
    from safetensors.torch import load_file

    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    assert not (out / "checkpoints").exists()
    assert not [path for path in out.iterdir() if path.name.startswith(".") and path.name != ".lock"]


def test_what_decides_about_a_run_goes_by_the_names_of_options(finished: dict[str, Any]) -> None:
    import typer.main

    from vtools import cli

    about = json.loads((finished["folder"] / "out" / "vtools.json").read_text())
    known = {
        name for option in typer.main.get_command(cli.build(["train"])).commands["train"].params for name in option.opts
    }
    named = {key for key in about["run"] if key.startswith("--")}
    parameters = inspect.signature(importlib.import_module("vtools.train").train).parameters.keys()
    assert parameters >= run_identity.BY_OUTCOME | run_identity.UNDECIDING
    assert named <= known and {"--model", "--lr", "--seed"} <= named
    assert {f"--{key.replace('_', '-')}" for key in about["arguments"]} <= known


def test_a_finished_run_given_again_changes_nothing_and_another_is_refused(finished: dict[str, Any]) -> None:
    out = finished["folder"] / "out"
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir()}
    again = run(*finished["arguments"], stdin=finished["text"].encode())
    assert again.returncode == 0 and again.stdout == b"" and b"nothing to do" in again.stderr
    other = run(*finished["arguments"], "--lr", 3e-3, stdin=finished["text"].encode())
    assert other.returncode == 1 and b"--lr was 0.01, now 0.003" in other.stderr
    other = run(*finished["arguments"], stdin=finished["text"].encode() + b'{"prompt": "a", "completion": "b"}\n')
    assert other.returncode == 1 and b"data was" in other.stderr and b"Traceback" not in other.stderr
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir()}


def test_a_locked_folder_is_left_alone(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with open(out / ".lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        done = run("--model", base, "--out", out, stdin=b"")
    assert done.returncode == 75 and b"another vtools process" in done.stderr


def test_a_dry_run_shows_the_job_and_its_cost_and_reads_no_weights(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "without weights"
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    path = tiny.write(tmp_path / "data.jsonl", tiny.conversations(9))
    arguments = ["--model", folder, "--data", path, "--batch", 2, "--epochs", 3, "-n"]
    prices = tmp_path / "prices.json"
    prices.write_text('{"gpu": {"h200": 2}}')
    done = run(*arguments, "--gpu", "h200", "--nproc", 8, "--prices", prices)
    assert done.returncode == 0, done.stderr.decode()
    (row,) = lines(done.stdout)
    assert row["conversations"] == 9 and row["steps"] == 15 and 0 < row["trained_share"] < 1
    assert row["ranks"] == 8 and row["device"] == "h200" and row["dtype"] == "bf16" and row["problem"] is None
    assert row["usd"] == pytest.approx(row["seconds"] / 3600 * 8 * 2, abs=0.01)
    assert 0 < row["memory_gb"]["total"] < row["memory_gb"]["available"] > 140
    (here,) = lines(run(*arguments).stdout)
    assert here["device"] == "cpu" and here["seconds"] is not None and here["usd"] is None
    assert here["flops"] == row["flops"]
    unknown = run(*arguments, "--prices", prices)
    assert unknown.returncode == 1 and b"no price for the gpu here; it has h200" in unknown.stderr
    shown = done.stderr.decode()
    answers = [message["content"] for message in tiny.conversations(9)[0]["messages"] if message["role"] == "assistant"]
    for answer in answers:
        assert f"<|im_start|>assistant\n⟦{answer}<|im_end|>⟧" in shown


@pytest.mark.parametrize(
    ("preset", "changes", "expected"),
    [
        ("vicuna-v1.1", [], {"batch": 128, "lr": 2e-5, "warmup": 0.03, "epochs": 3, "max_tokens": 2048}),
        ("vicuna-v0", [], {"batch": 32, "lr": 2e-5, "warmup": 0.03, "epochs": 3, "max_tokens": 2048}),
        ("alpaca", [], {"batch": 128, "lr": 2e-5, "warmup": 0.03, "epochs": 3, "max_tokens": 512}),
        ("alpaca", ["--lr", "1e-5", "--epochs", "5"], {"batch": 128, "lr": 1e-5, "epochs": 5, "template": "alpaca"}),
    ],
)
def test_a_preset_is_the_published_recipe_and_a_flag_wins_over_it(
    preset: str, changes: list[str], expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vtools import cli
    from vtools.train import dry_run

    seen: list[Any] = []
    monkeypatch.setattr(dry_run, "foreseen", lambda request: seen.append(request) or {})
    with pytest.raises(SystemExit):
        cli.build(["train"])(["train", "--model", "x", "--preset", preset, "-n", *changes])
    request = vars(seen[0])
    assert {key: request[key] for key in expected} == expected
    assert request["template"] == preset and request["schedule"] == "cosine"


@pytest.mark.parametrize(
    ("stdin", "says"),
    [
        (b"", "no conversations"),
        (b'{"messages": [{"role": "user", "content": "hello"}]}\n', "no conversation has a token to train"),
        (b'{"prompt": "a", "completion": "b"}\n', "--warmup 0"),
        (b'{"prompt": "a", "comp', "stdin:1"),
    ],
)
def test_input_that_teaches_nothing_is_refused_with_advice(stdin: bytes, says: str, base: Path, tmp_path: Path) -> None:
    done = run("--model", base, "--out", tmp_path / "out", "--epochs", 1, stdin=stdin)
    message = done.stderr.decode()
    assert done.returncode == 1 and says in message and "Traceback" not in message
    assert done.stdout == b""


def test_a_loss_that_is_no_number_stops_the_run_and_spares_what_was_saved(base: Path, tmp_path: Path) -> None:
    path = tiny.write(tmp_path / "data.jsonl", tiny.conversations(12))
    out = tmp_path / "out"
    done = run(
        "--model", base, "--data", path, "--out", out, "--batch", 4, "--lr", 1e38, "--warmup", 2, "--save-every", 1,
        "--dtype", "fp32",
    )  # fmt: skip
    message = done.stderr.decode()
    assert done.returncode == 1 and "diverged" in message and "--lr" in message and "Traceback" not in message
    assert all(math.isfinite(row["loss"]) for row in lines(done.stdout) if "loss" in row)
    assert (out / "checkpoints" / "step-1" / "note.json").exists()
    assert not (out / "vtools.json").exists()


def test_a_disk_without_room_ends_the_run_in_one_line_and_leaves_no_torn_checkpoint(base: Path, tmp_path: Path) -> None:
    path = tiny.write(tmp_path / "data.jsonl", tiny.conversations(12))
    limit = 600_000  # bytes a file: a checkpoint has twice as many
    done = subprocess.run(
        tiny.command("--model", base, "--data", path, "--out", tmp_path / "out", "--batch", 4, "--save-every", 2),
        capture_output=True,
        env=tiny.environment(),
        timeout=240,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    message = done.stderr.decode()
    assert done.returncode == 1 and "cannot be saved" in message and "Traceback" not in message
    assert len([row for row in lines(done.stdout) if "loss" in row]) == 2
    assert list((tmp_path / "out" / "checkpoints").iterdir()) == []


def test_a_tokenizer_larger_than_the_model_is_refused_before_training(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    config["vocab_size"] = 60
    (folder / "config.json").write_text(json.dumps(config))
    path = tiny.write(tmp_path / "data.jsonl", tiny.conversations(4))
    done = run("--model", folder, "--data", path, "-n")
    assert done.returncode == 1 and b"only 60 rows" in done.stderr
