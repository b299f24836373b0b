# ruff: noqa: TID253
"""Checkpoints that are whole or absent: written aside, synced, renamed; the newest whole one wins."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from vtools import jsonl
from vtools.process import Failure

STATE, NOTE = "state.safetensors", "note.json"


def save(
    folder: Path, step: int, model: PreTrainedModel, optimizer: torch.optim.Optimizer, note: dict[str, Any], keep: int
) -> Path:
    """Write folder/step-N with weights and AdamW's moments (all fp32), then remove all but the newest `keep`."""
    target = folder / f"step-{step}"
    part = folder / f".step-{step}.part"
    discard_parts(folder)
    part.mkdir(parents=True)
    state = {}
    for name, parameter in model.named_parameters():  # a tied weight has one name here
        state[f"weight/{name}"] = parameter.detach()
        state.update({f"{key}/{name}": value for key, value in optimizer.state.get(parameter, {}).items()})
    try:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, part / STATE)
        (part / NOTE).write_text(json.dumps({**note, "step": step}, indent=1))
        for path in (part / STATE, part / NOTE, part):
            jsonl.sync(path)
    except (SafetensorError, OSError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise Failure(
            f"{target}: cannot be saved ({error}); what was saved before is whole, free space and rerun"
        ) from None
    if target.exists():  # a torn one of this step, or one that was resumed from
        shutil.rmtree(target)
    os.replace(part, target)
    jsonl.sync(folder)
    for _, old in _steps(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def latest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint and its note; torn ones are passed over."""
    for _, path in _steps(folder):
        try:
            note = json.loads((path / NOTE).read_text())
            with safe_open(path / STATE, "pt"):  # which refuses a file shorter than its header says
                return path, note
        except (OSError, ValueError, SafetensorError):
            continue
    return None


def restore(path: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's weights and moments into the model and its fresh optimiser, bit by bit."""
    moments: dict[int, dict[str, torch.Tensor]] = {}
    with safe_open(path / STATE, "pt") as file:
        names: dict[str, dict[str, str]] = {}
        for key in file.keys():  # noqa: SIM118  not a dict
            kind, _, name = key.partition("/")
            names.setdefault(name, {})[kind] = key
        parameters = dict(model.named_parameters())
        if names.keys() != parameters.keys():
            raise Failure(f"{path}: holds the weights of another model; --resume never starts over")
        for index, (name, parameter) in enumerate(parameters.items()):
            kinds = names[name]
            with torch.no_grad():
                parameter.copy_(file.get_tensor(kinds.pop("weight")))
            moments[index] = {kind: file.get_tensor(key) for kind, key in kinds.items()}
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": {i: state for i, state in moments.items() if state}, "param_groups": groups})


def discard_parts(folder: Path) -> None:
    """Remove what a killed run left half written."""
    for part in folder.glob(".step-*.part"):
        shutil.rmtree(part)


def _steps(folder: Path) -> list[tuple[int, Path]]:
    """Checkpoints by step, the newest first."""
    found = [(int(path.name[5:]), path) for path in folder.glob("step-*") if path.name[5:].isdecimal()]
    return sorted(found, reverse=True)
