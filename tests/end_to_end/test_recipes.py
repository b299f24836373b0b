"""The recipes, run with tiny models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
from hub import Hub
from running import ROOT, Result, execute, on_path


def bash(*arguments: object, cwd: Path, **env: str) -> Result:
    """A script that must end well, and finds `vtools` on its path."""
    env["PATH"] = on_path(cwd / "bin")
    done = execute(["bash", *map(str, arguments)], cwd=cwd, env=env, timeout=600)
    assert done.returncode == 0, done.errors
    return done


@pytest.mark.slow
def test_the_vicuna_recipe_shows_its_plan_and_trains_only_when_told_to(tmp_path):
    tiny.make(tmp_path / "model")
    shared = [
        {"id": row["id"], "conversations": [{"from": m["role"], "value": m["content"]} for m in row["messages"]]}
        for row in tiny.conversations(200)
    ]
    (tmp_path / "shared.json").write_text(json.dumps(shared))
    recipe = [ROOT / "recipes" / "vicuna-7b.sh", "model", "shared.json", "run"]
    bash(*recipe, cwd=tmp_path, WINDOW="512")
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["usd"] is not None
    assert not (tmp_path / "run" / "tuned").exists()
    bash(*recipe, cwd=tmp_path, WINDOW="512", TRAIN="1")
    assert (tmp_path / "run" / "delta" / "delta.json").exists() and (tmp_path / "run" / "loss.svg").exists()


@pytest.mark.slow
def test_the_recipe_of_the_published_vicuna_ends_in_a_file_for_llama_cpp(tmp_path):
    torch = pytest.importorskip("torch")
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("huggingface_hub")
    from safetensors.torch import load_file

    root = tmp_path / "hub"
    base, delta = root / "huggyllama/llama-7b", root / "lmsys/vicuna-7b-delta-v1.1"
    tiny.make(base, tied=False)
    delta.mkdir(parents=True)
    weights = load_file(base / "model.safetensors")
    change = {name: (torch.randn_like(tensor.float()) * tensor.float().std() / 20).half() for name, tensor in weights.items()}  # fmt: skip
    torch.save(change, delta / "pytorch_model.bin")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (delta / name).write_bytes((base / name).read_bytes())
    with Hub(root) as hub:
        home = str(tmp_path / "cache")
        recipe = ROOT / "recipes" / "published-vicuna.sh"
        bash(recipe, cwd=tmp_path, HF_ENDPOINT=hub.url, HF_HOME=home, HF_HUB_OFFLINE="0", TYPE="q8_0")
    tuned = load_file(tmp_path / "vicuna-7b" / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(tuned[name], weights[name].half() + change[name])
    stored = gguf.GGUFReader(tmp_path / "vicuna-7b.gguf").fields["tokenizer.chat_template"].contents()
    assert "USER: " in stored and stored == (tmp_path / "vicuna-7b" / "chat_template.jinja").read_text()
