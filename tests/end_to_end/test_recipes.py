"""What the README tells a reader to type, typed."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import hub
import pytest
import tiny
from conftest import ROOT


def test_the_readme_pipeline_works_when_pasted(tmp_path):
    block = re.search(r"## A pipeline\n.*?```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    assert len(block.splitlines()) <= 6
    tiny.make(tmp_path / "model")
    tiny.write(tmp_path / "raw.jsonl", tiny.conversations(40))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "vtools").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m vtools "$@"\n')
    (tmp_path / "bin" / "vtools").chmod(0o755)
    env = tiny.environment(PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}", VTOOLS_MODEL="model")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "tuned" / "model.safetensors").exists()
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["steps"] == 3


@pytest.mark.slow
def test_the_vicuna_recipe_shows_its_plan_and_trains_only_when_told_to(tmp_path):
    tiny.make(tmp_path / "model")
    shared = [
        {"id": row["id"], "conversations": [{"from": m["role"], "value": m["content"]} for m in row["messages"]]}
        for row in tiny.conversations(200)
    ]
    (tmp_path / "shared.json").write_text(json.dumps(shared))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "vtools").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m vtools "$@"\n')
    (tmp_path / "bin" / "vtools").chmod(0o755)
    env = tiny.environment(
        PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}", VTOOLS_CACHE=str(tmp_path / "cache"), WINDOW="512"
    )
    command = ["bash", str(ROOT / "recipes" / "vicuna-7b.sh"), "model", "shared.json", "run"]
    plan = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert plan.returncode == 0, plan.stderr
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["usd"] is not None
    assert not (tmp_path / "run" / "tuned").exists()
    done = subprocess.run(command, cwd=tmp_path, env=env | {"TRAIN": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
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
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "vtools").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m vtools "$@"\n')
    (tmp_path / "bin" / "vtools").chmod(0o755)
    with hub.serving(root) as (url, _):
        env = tiny.environment(
            PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            HF_ENDPOINT=url,
            HF_HOME=str(tmp_path / "cache"),
            TYPE="q8_0",
        )
        env.pop("HF_HUB_OFFLINE", None)
        command = ["bash", str(ROOT / "recipes" / "published-vicuna.sh")]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tuned = load_file(tmp_path / "vicuna-7b" / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(tuned[name], weights[name].half() + change[name])
    stored = gguf.GGUFReader(tmp_path / "vicuna-7b.gguf").fields["tokenizer.chat_template"].contents()
    assert "USER: " in stored and stored == (tmp_path / "vicuna-7b" / "chat_template.jinja").read_text()


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_quickstart_shows_every_result_and_a_second_call_skips_what_is_done(tmp_path):
    if not (ROOT / ".venv" / "bin" / "vtools").exists():
        pytest.skip("no .venv here: bash recipes/setup.sh makes it")
    env = {key: value for key, value in os.environ.items() if not key.startswith("OPENAI")}
    command = ["bash", str(ROOT / "recipes" / "quickstart.sh"), str(tmp_path / "run")]
    first = subprocess.run(command, env=env, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    shown = first.stdout
    print(shown)
    assert re.search(r"fetch +17672 in +17671 out +1 rejected \(torn_input 1\)", shown)
    before, after = map(
        float, re.search(r"held-out real conversations: ([\d.]+) before, ([\d.]+) after", shown).groups()
    )
    assert after < before
    rows = {name: read(tmp_path / "run" / f"who-{name}.jsonl") for name in ("base", "tuned")}
    assert not any("Vito" in row["turns"][0] for row in rows["base"])
    assert sum("Vito" in row["turns"][0] or "vtools" in row["turns"][0] for row in rows["tuned"]) >= 3
    assert "byte-identical" in shown
    assert "license unknown" in shown
    assert "plumbing check" in (tmp_path / "run" / "report.txt").read_text()
    pictures = ["loss.png"] if "no chart: 1 value" in first.stderr else ["loss.png", "judged.png"]
    for name in pictures:
        assert (tmp_path / "run" / name).read_bytes().startswith(b"\x89PNG")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(f"largest process: {peak / 2**20:.2f} GiB")
    assert peak < 6 * 2**20

    second = subprocess.run(command, env=env, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert "$ vtools" not in second.stdout
    told = "What happened in this run"
    assert second.stdout.partition(told)[2] == shown.partition(told)[2]


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]
