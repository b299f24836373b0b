"""A tiny model and conversations in the hands of the trainer, and training commands that can be disturbed."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import tiny
from running import Result, run

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from vtools.models.load import load_model  # noqa: E402
from vtools.models.template import Template  # noqa: E402
from vtools.train import attention, data, ranks, shard, token_cache  # noqa: E402

CPU = torch.device("cpu")


def load(folder: Path) -> Any:
    network = load_model(str(folder))
    network.set_attn_implementation(attention.NAME)
    return network


def corpus_of(template: Template, folder: Path, number: int, seed: int = 0) -> data.Corpus:
    path = tiny.write(folder / f"{number}-{seed}.jsonl", tiny.conversations(number, seed))
    return token_cache.read([str(path)], template, 512, "error", quiet=True)


def sharded(folder: Path, alone: ranks.Ranks, dtype: Any = torch.float32, recompute: str = "none") -> Any:
    """The model as a run has it, on one rank."""
    network = shard.empty(folder)
    shard.shard(network, alone.mesh, dtype, recompute)
    shard.fill(network, shard.Weights(folder).read, CPU)
    return network


def finish(*arguments: object, **options: Any) -> Result:
    """A run of `vtools train` that must end well."""
    done = run("train", *arguments, **options)
    assert done.returncode == 0, done.errors
    return done


def read_to(child: subprocess.Popen, step: int) -> None:
    """Read metrics up to those of a step."""
    for line in child.stdout:
        row = json.loads(line)
        if row["step"] >= step and "loss" in row:
            return
    raise AssertionError(f"the run ended before step {step}: {child.communicate()[1].decode()}")
