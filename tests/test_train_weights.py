"""`vtools train`: the weights that it reads and those that it saves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from running import run
from training import finish, sharded

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from vtools.models.load import load_model  # noqa: E402
from vtools.models.template import load_template  # noqa: E402
from vtools.models.tokenizer import load_tokenizer  # noqa: E402
from vtools.process import Failure  # noqa: E402
from vtools.train import pack, save, shard  # noqa: E402


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
    "base": "base", "template": "chatml", "run": {"rope scaling": None}, "versions": {"vtools": "0"}, "arguments": {"lr": 1e-4},
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


def test_a_longer_context_stretches_the_positions_as_vicuna_16k_did(base: Path, tmp_path: Path) -> None:
    path = tiny.write(tmp_path / "data.jsonl", tiny.conversations(8))
    arguments = ["--model", base, "--data", path, "--out", tmp_path / "out", "--batch", 4, "--max-steps", 2]
    refused = run("train", *arguments, "--max-tokens", 1800)
    assert refused.returncode == 2 and b"--rope-scaling linear" in refused.stderr
    finish(*arguments, "--max-tokens", 1800, "--rope-scaling", "linear", "--dtype", "fp32")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["rope_parameters"]["rope_type"] == "linear" and config["rope_parameters"]["factor"] == 4.0
    trained = load_model(str(tmp_path / "out"))
    plain = load_model(str(base))
    assert torch.allclose(trained.model.rotary_emb.inv_freq, plain.model.rotary_emb.inv_freq / 4)
