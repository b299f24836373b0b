"""`vtools train` that runs out of memory in its first step goes on with a smaller plan, and ends with that plan's bits."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import tiny
from running import ROOT, bad, good, run, start, with_options
from training import read_to

# Processes with this on their path have layers which run out of memory on rows of more than LIMIT tokens.
SMALL_MEMORY = """
import importlib.abc, importlib.machinery, os, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "transformers.models.llama.modeling_llama":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module
        def exec_module(module):
            execute(module)
            import torch
            whole = module.LlamaDecoderLayer.forward
            def forward(self, hidden_states, *rest, **more):
                real = type(hidden_states) is torch.Tensor and hidden_states.device.type == "cpu"
                if real and hidden_states.shape[1] > LIMIT and int(os.environ.get("RANK", 0)) == RANK:
                    raise torch.OutOfMemoryError("CUDA out of memory.")
                return whole(self, hidden_states, *rest, **more)
            module.LlamaDecoderLayer.forward = forward
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""


def small_memory(folder: Path, limit: int, rank: int = 0) -> dict[str, str]:
    """An environment in which layers of one rank run out of memory on rows of more than `limit` tokens."""
    folder.mkdir()
    text = SMALL_MEMORY.replace("> LIMIT", f"> {limit}").replace("== RANK", f"== {rank}")
    (folder / "sitecustomize.py").write_text(text)
    return {"PYTHONPATH": f"{folder}:{ROOT}"}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """An untied model and conversations for it; a step has over 2,048 tokens."""
    folder = tmp_path_factory.mktemp("shrinking")
    data = tiny.write(folder / "data.jsonl", tiny.conversations(80))
    base = tiny.make(folder / "base", tied=False)
    return [
        "train", "--model", base, "--data", data, "--batch", 40, "--max-steps", 4, "--lr", 1e-2, "--warmup", 0,
        "--dtype", "fp32", "--recompute", "none", "--save-dtype", "fp32",
    ]  # fmt: skip


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_first_step_that_runs_out_of_memory_is_repeated_with_smaller_micro_batches(
    given: list[Any], tmp_path: Path
) -> None:
    done = run(*given, "--out", tmp_path / "small", env=small_memory(tmp_path / "memory", 600))
    assert done.returncode == 0, done.errors
    for before, after in ((2048, 1024), (1024, 512)):
        assert f"out of memory with micro-batches of {before} tokens and recompute none" in done.errors
        assert f"micro-batches of {after} tokens and recompute none will be used instead" in done.errors
    assert not (tmp_path / "small" / ".plan.json").exists()
    good(*given, "--out", tmp_path / "told", "--micro-tokens", 512)
    assert weights(tmp_path / "small") == weights(tmp_path / "told")
    good(*given, "--out", tmp_path / "large")
    assert weights(tmp_path / "small") != weights(tmp_path / "large")  # otherwise the comparison shows nothing


@pytest.mark.slow
def test_ranks_follow_the_one_that_ran_out_of_memory(given: list[Any], tmp_path: Path) -> None:
    given = with_options(given, "--max-steps", 2)
    two = [*given, "--nproc", 2]
    done = run(*two, "--out", tmp_path / "small", env=small_memory(tmp_path / "memory", 1030, rank=1))
    assert done.returncode == 0, done.errors
    assert done.errors.count("out of memory with micro-batches of 2048 tokens") == 1
    told = good(*two, "--out", tmp_path / "told", "--micro-tokens", 1024)
    assert weights(tmp_path / "small") == weights(tmp_path / "told")
    alone = good(*given, "--out", tmp_path / "alone")
    losses, expected = ([row["loss"] for row in rows if "loss" in row] for rows in (told, alone))
    assert losses == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_a_run_killed_after_it_shrank_is_resumed_with_the_same_bits_where_there_is_more_memory(
    given: list[Any], tmp_path: Path
) -> None:
    good(*given, "--out", tmp_path / "told", "--micro-tokens", 1024)
    for name, saving in (("early", "1h"), ("late", "1")):  # before its first checkpoint, and after it
        out, memory = tmp_path / name, small_memory(tmp_path / f"memory-{name}", 1100)
        with start(*given, "--out", out, "--save-every", saving, env=memory) as child:
            read_to(child, 3)
            child.send_signal(signal.SIGKILL)
        assert json.loads((out / ".plan.json").read_text())["plan"]["micro_tokens"] == 1024
        good(*given, "--out", out, "--save-every", saving)
        assert weights(out) == weights(tmp_path / "told")


def test_where_no_plan_is_smaller_the_options_that_would_help_are_named(given: list[Any], tmp_path: Path) -> None:
    given = with_options(given, "--out", tmp_path / "out", "--recompute", "full", "--micro-tokens", 2048)
    said = bad(*given, "--quiet", env=small_memory(tmp_path / "memory", 600))
    assert "out of memory with micro-batches of 2048 tokens and recompute full; use more ranks" in said
    assert "a lower --micro-tokens" in said
