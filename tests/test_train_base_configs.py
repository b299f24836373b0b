"""`vtools train` on bases as they are published: what is saved is read alike everywhere, or the base is refused by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import base_configs
import exporting
import llama_cpp
import pytest
import tiny
from base_configs import BASES, EXPORTED, LIMIT, TRAINED, WINDOW
from running import good, run
from test_model_configs import transformers_4  # noqa: F401

np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")

from training import CPU, sharded  # noqa: E402

from vtools.train import pack  # noqa: E402

ROW = np.random.default_rng(0).integers(3, 300, 2 * LIMIT + 50).tolist()  # longer than the base's limit, and its window
READER = """
import json, sys, numpy, torch
from transformers import AutoModelForCausalLM
for line in sys.stdin:
    folder, row = json.loads(line)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        numpy.save(f"{folder}/logits.npy", model(torch.tensor([row])).logits[0].numpy())
    print("done", flush=True)
"""
Logits = Callable[[Path], Any]


def reader(path: list[str]) -> Iterator[Logits]:
    """The logits of ROW by a model in a folder, as computed by the transformers that is first in this path."""
    process = subprocess.Popen(
        [sys.executable, "-c", READER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path), "TRANSFORMERS_VERBOSITY": "error"},
    )

    def logits(folder: Path) -> Any:
        process.stdin.write(json.dumps([str(folder), ROW]) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "done\n", process.communicate()[1][-2000:]
        return np.load(folder / "logits.npy")

    yield logits
    process.stdin.close()
    process.wait()


@pytest.fixture(scope="module")
def in_5() -> Iterator[Logits]:
    yield from reader([])


@pytest.fixture(scope="module")
def in_4(transformers_4: Path) -> Iterator[Logits]:  # noqa: F811
    yield from reader([str(transformers_4)])


def tuned(base: Path, folder: Path, *more: object, **options: Any) -> Any:
    folder.mkdir(exist_ok=True)
    data = tiny.write(folder / "data.jsonl", tiny.conversations(16))
    arguments = [data, "--model", base, "--out", folder / "out", "--max-steps", 2, "--batch", 4, "--warmup", 0]
    arguments += ["--lr", 1e-2, "--schedule", "constant", "--dtype", "fp32", "--save-dtype", "fp32", "--nproc", 1]
    return run("train", *arguments, *more, **options)


def assert_refused(done: Any, words: str) -> None:
    assert done.returncode == 1 and words in done.errors, done.errors
    assert len([line for line in done.errors.splitlines() if words in line]) == 1 and "Traceback" not in done.errors


def difference(one: Any, other: Any) -> float:
    """The largest, relative to the largest logit: fp32 in another order of additions stays below 1e-5."""
    return float(abs(one - other).max() / abs(one).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", BASES)
def test_a_published_base_is_tuned_and_read_alike_everywhere_or_refused_by_name(
    name: str, tmp_path: Path, alone: Any, in_5: Logits, in_4: Logits
) -> None:
    expected = BASES[name]
    base, out = base_configs.make(name, tmp_path / "base"), tmp_path / "out"
    done = tuned(base, tmp_path, *expected.options or ("--max-tokens", expected.context))
    if expected.train != TRAINED:
        assert_refused(done, expected.train)
        assert not any("loss" in row for row in done.records) and not (out / "config.json").exists()
        out = base
    else:
        assert done.returncode == 0, done.errors
        before = in_5(base)
        exporting.change(base, **expected.trained_as)
        # The tuned weights under the base's own settings, and as the trainer computes with them.
        shutil.copy(out / "model.safetensors", base / "model.safetensors")
        wanted = in_5(base)
        assert difference(before, wanted) > 1e-2
        assert pack.self_check(sharded(base, alone), [ROW, ROW[:WINDOW], ROW[::-1]], torch.float32, CPU) < 1e-5
        assert "auto_map" not in (out / "config.json").read_text() + (out / "tokenizer_config.json").read_text()
        read = {"5": difference(wanted, in_5(out)), "4.57": difference(wanted, in_4(out))}
        if not expected.apart_in_4:
            read["4.57, its own config.json"] = difference(wanted, in_4(base))
        print(f"{name}: {read}")
        assert max(read.values()) < 1e-5, read
    file = tmp_path / "model.gguf"
    done = run("export", out, "--type", "f32", "-o", file)
    if expected.export != EXPORTED:
        assert_refused(done, expected.export)
        return
    assert done.returncode == 0 and expected.told in done.errors, done.errors
    keys = exporting.metadata(file)
    assert keys[f"{keys['general.architecture']}.context_length"] == expected.context
    if llama_cpp.library() is None:
        return
    found = llama_cpp.ask(file, rows=[ROW])["tops"][0]
    reference = wanted - wanted.max(1, keepdims=True)
    reference -= np.log(np.exp(reference).sum(1, keepdims=True))
    worst = [
        max(abs(mine[number] - value) for number, value in theirs)
        for mine, theirs in zip(reference, found, strict=True)
    ]
    print(f"{name}: llama.cpp within {max(worst):.4f}")
    assert max(worst[: WINDOW if expected.told else None]) < 0.02


def length_in_vllm(config: dict[str, Any]) -> int:
    """The limit that vLLM 0.2 to 0.6 compute: from the smallest that is stated, and from the factor."""
    scaling = config["rope_scaling"]
    stated = min(config[key] for key in ("max_position_embeddings", "max_sequence_length") if key in config)
    return int(
        (scaling["original_max_position_embeddings"] if scaling["rope_type"] == "yarn" else stated) * scaling["factor"]
    )


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_a_stretched_model_carries_its_limit_everywhere(kind: str, base: Path, tmp_path: Path) -> None:
    limit = 1800
    done = tuned(base, tmp_path, "--max-tokens", limit, "--rope-scaling", kind)
    assert done.returncode == 0, done.errors
    out = tmp_path / "out"
    config = json.loads((out / "config.json").read_text())
    assert config["max_position_embeddings"] == length_in_vllm(config) == limit
    assert config["rope_scaling"]["factor"] == (4.0 if kind == "linear" else limit / 512)
    assert json.loads((out / "tokenizer_config.json").read_text())["model_max_length"] == limit
    assert "up to 1,800 tokens" in (out / "README.md").read_text()
    good("export", out, "--type", "f32", "-o", tmp_path / "model.gguf")
    assert exporting.metadata(tmp_path / "model.gguf")["llama.context_length"] == limit
    again = tuned(out, tmp_path / "again", "--max-tokens", limit + 1)
    assert again.returncode == 2 and f"supports {limit} positions, and its RoPE is scaled already" in again.errors
