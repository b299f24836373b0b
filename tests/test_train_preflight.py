"""The check before the first step of `vtools train`: what would fail or differ in the end is said before it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
from running import run
from test_train_bases import altered

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file  # noqa: E402

from vtools.process import Failure  # noqa: E402
from vtools.train import job, preflight  # noqa: E402
from vtools.train.request import Request  # noqa: E402

TEMPLATE = tiny.TEMPLATE
OPTIONS: dict[str, Any] = {
    "template": None, "system": None, "fold_system": False, "max_tokens": 512, "overlong": "truncate", "rejects": None, "jobs": 1, "quiet": False,
    "evaluation": None, "rope_scaling": None, "batch": 1, "epochs": 3, "max_steps": None, "warmup": 0.03, "nproc": 1,
    "gpu": None, "lora": None, "lora_alpha": 8, "lora_targets": None, "train_embeddings": False, "dry_run": False,
    "resume": "auto", "keep": None, "save_dtype": "bf16", "out": None,
}  # fmt: skip


def changed(base: Path, folder: Path, template: str | None = None, config: dict | None = None, **settings: Any) -> Path:
    """A copy of a model with other settings of its tokenizer, another template or configuration."""
    shutil.copytree(base, folder)
    for name, new in (
        ("tokenizer_config.json", settings | ({"chat_template": template} if template else {})),
        ("config.json", config or {}),
    ):
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | new))
    return folder


@pytest.fixture
def said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Check a model before a run on these records; what is said."""

    def check(model: Path, records: list[dict[str, Any]] | None = None, **options: Any) -> str:
        data = tiny.write(tmp_path / "data.jsonl", records or tiny.conversations(12))
        request = Request(**OPTIONS | options | {"model": str(model), "data": options.get("data", [str(data)])})
        inputs = job.read(request)
        capsys.readouterr()
        preflight.check(request, inputs, request.chat_template)
        return capsys.readouterr().err

    return check


def test_of_a_sound_base_nothing_is_said(base: Path, said: Any) -> None:
    typed = {"prompt": "what does <|im_end|> mean?", "completion": "the cat <|im_start|> sat"}
    assert said(base, [*tiny.conversations(6), typed]) == ""
    assert said(base, lora=4) == ""


def test_a_tokenizer_that_transformers_builds_in_another_way_is_said_by_name(base, tmp_path, said):
    odd = changed(base, tmp_path / "odd", tokenizer_class="Qwen2Tokenizer")
    text = said(odd)
    assert f"transformers {transformers.__version__} reads this tokenizer as Qwen2Tokenizer, which makes" in text
    assert "those of tokenizer.json" in text and text.count("\n") == 1


def test_a_tokenizer_that_fails_in_transformers_is_refused(base: Path, tmp_path: Path, said: Any) -> None:
    with pytest.raises(Failure, match=r"as GemmaTokenizer, which fails \(Unk token .*: correct tokenizer_class in"):
        said(changed(base, tmp_path / "odd", tokenizer_class="GemmaTokenizer"))


def test_a_template_that_transformers_renders_otherwise_is_refused_with_the_place(base, tmp_path, said):
    other = changed(base, tmp_path / "other", "{{ unk_token }}" + TEMPLATE, unk_token="<|endoftext|>")
    with pytest.raises(Failure, match=r"renders conversation 1 as '<\|endoftext\|><\|im_start\|>"):
        said(other)


@pytest.mark.parametrize(
    "start",
    [
        "{{ strftime_now('%d %B %Y') }}",
        "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% else %}2023{% endif %}",
        "{% if tools is not none %}tools{% endif %}{{ {'b': 1, 'a': 'ü'} | tojson(sort_keys=true, indent=2) }}",
    ],
    ids=["date", "date or none", "tools and JSON"],
)
def test_what_templates_ask_for_is_as_in_transformers(start: str, base: Path, tmp_path: Path, said: Any) -> None:
    assert said(changed(base, tmp_path / "model", start + TEMPLATE)) == ""


def test_an_export_that_could_not_be_loaded_fails_before_the_first_step_and_in_the_dry_run(base, tmp_path):
    model = changed(base, tmp_path / "model")
    (model / "generation_config.json").write_text('{"max_new_tokens": -1}')
    data = tiny.write(tmp_path / "data.jsonl", tiny.conversations(12))
    for last in (["--out", tmp_path / "out"], ["-n"]):
        done = run("train", "--model", model, "--data", data, "--batch", 1, *last)
        assert done.returncode == 1 and done.stdout == b"", done.errors
        assert "the tuned model could not be loaded: `max_new_tokens` must be greater than 0" in done.errors
    assert not (tmp_path / "out").exists()


def test_an_answer_that_does_not_end_in_a_stop_is_refused(base: Path, tmp_path: Path, said: Any) -> None:
    ends_once = TEMPLATE.replace(
        "{{ '<|im_end|>\\n' }}",
        "{% if message.role == 'user' or loop.last %}{{ '<|im_end|>\\n' }}{% else %}{{ '\\n' }}{% endif %}",
    )
    assert ends_once != TEMPLATE
    model = changed(base, tmp_path / "model", ends_once)
    with pytest.raises(
        Failure, match=r"conversation \d+: an answer is trained to end in '.*', where no program would stop"
    ):
        said(model)
    once = [{"prompt": "the cat", "completion": "sat on a mat"}] * 3
    assert said(model, once) == ""


def test_an_answer_that_grows_together_with_what_stands_before_it_is_said(
    base: Path, tmp_path: Path, said: Any
) -> None:
    begun = TEMPLATE.replace(
        "{{ message.content }}", "{% if message.role == 'assistant' %} ca{% endif %}{{ message.content }}"
    )
    begun = begun.replace("assistant\\n' }}{% endif %}", "assistant\\n ca' }}{% endif %}")
    model = changed(base, tmp_path / "model", begun)
    text = said(model, [{"prompt": "who sat?", "completion": "t sat on a mat"}] * 3)
    assert "conversation 1 as a whole has other tokens in transformers: " in text and text.count("\n") == 1
    assert said(model, [{"prompt": "who sat?", "completion": " sat on a mat"}] * 3) == ""


def test_tokens_that_differ_from_the_very_first_are_shown(base: Path, tmp_path: Path, said: Any) -> None:
    joined = (
        "{% for message in messages %}{{ message.content }}"
        "{% if message.role == 'assistant' %}{{ '<|im_end|>' }}{% endif %}{% endfor %}"
    )
    text = said(changed(base, tmp_path / "model", joined), [{"prompt": " ca", "completion": "t sat on a mat"}] * 3)
    assert "' cat sat on' where ' cat" in text


@pytest.mark.parametrize("name", ["vicuna-v1.1", "vicuna-v0", "alpaca", "llama-2", "chatml"])
def test_the_published_templates_pass(name: str, base: Path, tmp_path: Path, said: Any) -> None:
    model = changed(base, tmp_path / "model", bos_token="<|endoftext|>")
    assert said(model, template=name) == ""


def test_tensors_of_no_use_are_named_and_missing_ones_refused(base: Path, tmp_path: Path, said: Any) -> None:
    name = "model.layers.0.self_attn.q_proj.bias"
    text = said(altered(base, tmp_path / "more", **{name: torch.ones(64)}))
    assert f"1 tensors are not part of a LlamaForCausalLM and are left out ({name})" in text
    with pytest.raises(Failure, match=r"no tensor model\.norm\.weight, which config\.json requires"):
        said(altered(base, tmp_path / "less", model__norm__weight=None))
    with pytest.raises(Failure, match=r"tensor model\.norm\.weight is \[63\], config\.json requires \[64\]"):
        said(altered(base, tmp_path / "short", model__norm__weight=torch.ones(63)))
    apart = load_file(base / "model.safetensors")["model.embed_tokens.weight"].flip(0).contiguous()
    assert "its head differs from its embedding" in said(altered(base, tmp_path / "head", lm_head__weight=apart))


def test_a_disk_that_is_too_small_is_named_with_the_sizes(base: Path, tmp_path: Path, said: Any) -> None:
    free = shutil.disk_usage(tmp_path).free
    layer = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 32}
    each = 4 * 4096 * 4096 + 3 * 4096 * 11008  # parameters of a layer
    out = tmp_path / "out"

    def of(layers: int) -> Path:
        """A model of this size without weights, which a dry run does not need."""
        folder = changed(base, tmp_path / str(layers), config={**layer, "num_hidden_layers": layers, "head_dim": 128})
        (folder / "model.safetensors").unlink()
        return folder

    with pytest.raises(
        Failure, match=r"not enough disk space: a checkpoint takes [\d.]+ GB, the result [\d.]+ GB, and"
    ):
        said(of(free // (14 * each) + 2), dry_run=True, out=out)
    tight = of(free // (30 * each) + 1)
    text = said(tight, dry_run=True, out=out)
    assert "2 checkpoints, one being written and the result need" in text
    assert said(tight, dry_run=True, out=out, gpu="h200") == said(tight, dry_run=True) == ""
    assert not out.exists()


UNTRAINED = {
    "zero": lambda rows: torch.zeros(64),
    "another's": lambda rows: rows[0] * (1 + 1e-4),
    "the mean": lambda rows: torch.cat([rows[:1], rows[2:]]).mean(0),  # of those that were there before it,
}


@pytest.mark.parametrize("kind", list(UNTRAINED))
def test_with_adapters_a_token_that_the_base_never_learned_is_named(kind: str, base, tmp_path, said) -> None:
    rows = load_file(base / "model.safetensors")["model.embed_tokens.weight"].clone()
    rows[1] = UNTRAINED[kind](rows)
    model = altered(base, tmp_path / "base", model__embed_tokens__weight=rows)
    text = said(model, lora=4)
    assert "the base has never learned <|im_start|>, which the template writes" in text and "--train-embeddings" in text
    assert said(model, lora=4, train_embeddings=True) == said(model) == ""


def test_a_finished_run_is_not_checked_again(base: Path, tmp_path: Path, said: Any) -> None:
    other = changed(base, tmp_path / "other", "{{ unk_token }}" + TEMPLATE, unk_token="<|endoftext|>")
    out = tmp_path / "out"
    out.mkdir()
    (out / "vtools.json").write_text("{}")
    assert said(other, out=out) == ""
    with pytest.raises(Failure):
        said(other, out=out, resume="never")


def test_records_are_compared_from_the_cache_as_well(base: Path, tmp_path: Path, said: Any) -> None:
    data = tiny.write(tmp_path / "more.jsonl", tiny.conversations(12))
    other = changed(base, tmp_path / "other", "{{ unk_token }}" + TEMPLATE, unk_token="<|endoftext|>")
    for _ in range(2):
        with pytest.raises(Failure, match="renders conversation 1"):
            said(other, data=[str(data)])
    assert os.listdir(tmp_path)
