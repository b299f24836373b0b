"""`vtools train`: bases whose files and config.json disagree, and numbers that no model may hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
from running import run
from training import finish, sharded

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from vtools.models.template import load_template  # noqa: E402
from vtools.models.tokenizer import load_tokenizer  # noqa: E402
from vtools.process import Failure  # noqa: E402
from vtools.train import pack, save, shard  # noqa: E402

ROW = [5, 9, 77, 3, 120, 40]


def altered(base: Path, folder: Path, config: dict[str, Any] | None = None, **tensors: Any) -> Path:
    """A copy of a model with other tensors (None: without) and settings."""
    shutil.copytree(base, folder)
    stored = load_file(folder / "model.safetensors") | {name.replace("__", "."): one for name, one in tensors.items()}
    kept = {name: tensor for name, tensor in stored.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text()) | (config or {})
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def logits(folder: Path) -> Any:
    """Of a fixed row, in transformers."""
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(torch.tensor([ROW])).logits[0]


@pytest.mark.parametrize("same", [True, False], ids=["equal", "different"])
def test_a_head_stored_beside_a_tied_embedding_is_what_transformers_makes_of_it(
    same: bool, base: Path, tmp_path: Path, alone: Any
) -> None:
    embedding = load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    head = embedding.clone() if same else embedding.flip(0).contiguous()
    folder = altered(base, tmp_path / "base", lm_head__weight=head)
    network = sharded(folder, alone)
    network.set_attn_implementation("sdpa")
    with torch.no_grad():
        ours = network(pack.logits_alone, torch.tensor(ROW))
    assert torch.equal(ours, logits(folder))
    assert network.config.tie_word_embeddings is same
    (tmp_path / "out").mkdir()
    chosen = load_template(None, load_tokenizer(str(folder)))
    from test_train_weights import ABOUT

    save.export(network, chosen, tmp_path / "out", "fp32", ABOUT, alone)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(logits(tmp_path / "out"), ours)
    # Before version 5, transformers ties wherever config.json says so.
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is same
    assert ("lm_head.weight" in stored) is not same


def test_a_head_that_is_nowhere_is_named(base: Path, tmp_path: Path, alone: Any) -> None:
    with pytest.raises(Failure, match=r"no tensor lm_head\.weight.*set tie_word_embeddings to true"):
        sharded(altered(base, tmp_path / "base", {"tie_word_embeddings": False}), alone)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_a_base_with_nan_or_infinity_is_named_by_its_tensor_before_the_first_step(
    wrong: float, base: Path, tmp_path: Path
) -> None:
    norm = torch.ones(64)
    norm[7] = wrong
    folder = altered(base, tmp_path / "base", model__norm__weight=norm)
    with pytest.raises(Failure, match=r"model\.norm\.weight contains NaN or infinity"):
        shard.Weights(folder).read("model.norm.weight", (64,), 0, 64)
    assert shard.Weights(folder).read("model.norm.weight", (64,), 8, 64).numel() == 56


def test_weights_too_large_for_a_dtype_are_named_before_the_first_step(base: Path, tmp_path: Path) -> None:
    folder = altered(base, tmp_path / "base", model__norm__weight=torch.full((64,), -7e4))
    data = tiny.write(tmp_path / "data.jsonl", tiny.conversations(8))
    done = run(
        "train", "--model", folder, "--data", data, "--out", tmp_path / "out", "--save-dtype", "fp16", "--batch", 4
    )
    assert done.returncode == 1 and not any("loss" in row for row in done.records)
    assert (
        "tensor model.norm.weight reaches 70000, and float16 ends at 65504; give --save-dtype bf16 or fp32"
        in done.errors
    )


@pytest.mark.slow
def test_a_result_that_overflows_is_not_saved_and_the_run_goes_on_in_another_dtype(base: Path, tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.o_proj.weight"
    edge = load_file(base / "model.safetensors")[name]
    edge[0, :2] = torch.tensor([65504.0, -65504.0])  # the largest of fp16: a step away from zero is one too far
    folder = altered(base, tmp_path / "base", **{name: edge})
    data = tiny.write(tmp_path / "data.jsonl", tiny.conversations(8))
    out = tmp_path / "out"
    arguments = [
        "--model",
        folder,
        "--data",
        data,
        "--out",
        out,
        "--batch",
        4,
        "--max-steps",
        2,
        "--warmup",
        1,
        "--lr",
        30,
    ]
    arguments += ["--dtype", "fp32", "--keep", 1]
    done = run("train", *arguments, "--save-dtype", "fp16")
    assert done.returncode == 1 and "Traceback" not in done.errors, done.errors
    assert f"tensor {name} reaches 655" in done.errors and ", and float16 ends at 65504" in done.errors
    assert "--save-dtype bf16 or fp32, which resumes from the last checkpoint" in done.errors
    assert not list(out.glob("*.json")) and not list(out.glob(".export*"))
    assert "(resumed at 2)" in finish(*arguments, "--save-dtype", "fp32").errors
    assert load_file(out / "model.safetensors")[name].abs().max() > 65504
    again = run("train", *arguments, "--save-dtype", "bf16")
    assert again.returncode == 1 and "--save-dtype was fp32, now bf16" in again.errors
