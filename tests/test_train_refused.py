"""What cannot be trained is named in one line before any work; what hardly teaches anything is said."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
from running import bad, run

from vtools.process import Failure
from vtools.train import job
from vtools.train.request import Request


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    return tiny.make(tmp_path_factory.mktemp("made") / "base")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("data") / "data.jsonl", tiny.conversations(12))


def changed(base: Path, folder: Path, **settings: Any) -> Path:
    """A copy of the model with other settings in config.json."""
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    return folder


REFUSED = [
    ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "its weights are quantised (gptq)"),
    ({"quantization_config": {"quant_method": "fp8"}}, "its weights are quantised (fp8)"),
    ({"text_config": {"vocab_size": 9}, "quantization_config": {"quant_method": "awq"}}, "weights are quantised (awq)"),
    ({"num_local_experts": 8}, "a mixture of 8 experts; only dense models can be trained here"),
    ({"n_routed_experts": 64}, "a mixture of 64 experts"),
    ({"text_config": "llama"}, "config.json: text_config is 'llama', not a JSON object"),
    ({"vocab_size": "400"}, "config.json: vocab_size is '400', not a number"),
]


@pytest.mark.parametrize(("settings", "says"), REFUSED)
def test_a_base_that_cannot_be_trained_is_named_before_any_work(settings, says, base, tmp_path):
    model = str(changed(base, tmp_path / "model", **settings))
    with pytest.raises(Failure, match=re.escape(says)):
        job.read(Request(model=model, template=None, system=None, fold_system=False))


def test_a_failed_start_leaves_no_folder_behind(base, data, tmp_path):
    model = changed(base, tmp_path / "model", **REFUSED[0][0])
    done = run("train", "--model", model, "--data", data, "--out", tmp_path / "out")
    assert done.returncode == 1 and REFUSED[0][1] in done.errors and done.errors.count("\n") == 1
    assert not (tmp_path / "out").exists()


UNLOADABLE = [
    ({"hidden_size": "64"}, "Validation error for field 'hidden_size': TypeError: Field 'hidden_size' expected int"),
    ({"hidden_act": "nope"}, "cannot be loaded: config.json names 'nope', which transformers"),
    ({"num_hidden_layers": 0}, "an architecture without a plain list of layers cannot be trained here"),
]


@pytest.mark.parametrize(("settings", "says"), UNLOADABLE)
def test_a_setting_that_transformers_refuses_is_named_with_the_reason(settings, says, base, tmp_path):
    from vtools.train import shard

    with pytest.raises(Failure, match=re.escape(says)):
        shard.layers_of(shard.empty(changed(base, tmp_path / "model", **settings)))


def test_an_adapter_is_named_with_its_base(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    with pytest.raises(Failure, match=r"an adapter \(LoRA\), not a model: merge it into some/base first"):
        job.read(Request(model=str(tmp_path)))


@pytest.mark.slow
def test_an_architecture_that_keeps_documents_apart_in_no_way_is_named(base, data, tmp_path):
    transformers = pytest.importorskip("transformers")
    vocabulary = json.loads((base / "config.json").read_text())["vocab_size"]
    config = transformers.StableLmConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=vocabulary,
    )  # fmt: skip
    shutil.copytree(base, tmp_path / "model")
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    done = run("train", "--model", tmp_path / "model", "--data", data, "--out", tmp_path / "out", "--max-steps", 2)
    assert done.returncode == 1 and "does not tell its attention where documents end" in done.errors
    assert "Traceback" not in done.errors


def test_a_template_whose_answers_never_end_is_refused(base, tmp_path):
    shutil.copytree(base, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(
        "{% for message in messages %}{{ message.role + ': ' + message.content + '\\n' }}{% endfor %}"
    )
    with pytest.raises(Failure, match="the model would never stop; choose another --template"):
        job.read(Request(model=str(tmp_path / "model"), template=None, system=None, fold_system=False))


IDLE = [
    (["--eval-every", 5], "--eval-every needs --eval FILE"),
    (["--rdzv", "host:5"], "--rdzv needs --nnodes N"),
    (["--lr", "nan"], "--lr nan: give a finite number"),
    (["--lr", "inf"], "--lr inf: give a finite number"),
    (["--warmup", "nan"], "--warmup nan: give a finite number"),
]


@pytest.mark.parametrize(("options", "says"), IDLE)
def test_an_option_that_could_do_nothing_is_refused(options, says, tmp_path):
    assert says in bad("train", "--model", tmp_path, "--out", tmp_path / "out", *options, code=2)


def test_a_scaling_that_is_not_needed_is_said_to_be_left_out(base, data):
    done = run("train", "--model", base, "--data", data, "--rope-scaling", "linear", "--batch", 1, "-n")
    assert f"--rope-scaling linear: left out, since {base} supports 512 positions (--max-tokens 512)" in done.errors


def test_few_steps_and_cut_conversations_are_said(base, data):
    done = run("train", "--model", base, "--data", data, "--max-tokens", 60, "-n")
    assert "12 conversations at --batch 128 are only 3 steps: --batch 1 would be 36" in done.errors
    assert "10 of 12 conversations have over 60 tokens and were cut; raise --max-tokens" in done.errors
    assert "12 in, 12 out, 0 rejected, truncated 10" in done.errors
    quiet = run("train", "--model", base, "--data", data, "--batch", 1, "-n")
    assert "are only" not in quiet.errors and "were cut" not in quiet.errors
