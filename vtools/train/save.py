# ruff: noqa: TID253
"""Saving the finished model: safetensors, tokenizer, template, configs and provenance."""

import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import PreTrainedModel

from vtools import provenance
from vtools.files.atomic import part_of, sync, sync_all
from vtools.models import configs, tokenizer
from vtools.models.template import Template
from vtools.process import Failure
from vtools.train import card, lora, shard
from vtools.train.device import DTYPES
from vtools.train.ranks import Ranks
from vtools.weights.model_files import read, write_index
from vtools.weights.tensor import Files

SHARD_BYTES = 5_000_000_000  # of the largest file, as in transformers


def export(
    model: PreTrainedModel, template: Template, out: Path, dtype: str, about: dict[str, Any], ranks: Ranks
) -> None:
    """Save the model to `out`, gathered one tensor at a time; the file `about` it comes last and marks it complete.

    Raises Failure if a file cannot be written, or reads back differently.
    """
    part = part_of(out / "export")
    adapters = lora.adapters_of(model) is not None
    if ranks.rank:
        for _ in whole(model, DTYPES[dtype]):
            ranks.wait()  # GPUs wait for each other for minutes only, and rank 0 may write for longer
        ranks.wait()
        if adapters:
            lora.state(model)
        ranks.wait()
        return
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        _save_weights(model, part, DTYPES[dtype], ranks)
        ranks.wait()
        if adapters:
            lora.save(model, part / "adapter", about["base"])
        write_beside(model, template, part, dtype)
        (part / "README.md").write_text(card.card(about), encoding="utf-8")
        for path in part.rglob("*.safetensors"):
            shutil.copymode(part / "README.md", path)  # safetensors creates files that only their owner can read
        sync_all(part)
    except Failure:
        shutil.rmtree(part, ignore_errors=True)
        raise
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise Failure(f"{out}: the model cannot be saved ({error}); free space and repeat the command") from None
    names = {path.name for path in part.iterdir()}
    for old in out.glob("*.safetensors*"):
        if old.name not in names:
            old.unlink()
    shutil.rmtree(out / "adapter", ignore_errors=True)
    for path in sorted(part.iterdir()):
        os.replace(path, out / path.name)
    part.rmdir()
    sync(out)
    configs.write_json(out / provenance.FILE, about)
    ranks.wait()


def whole(model: PreTrainedModel, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the model by its name in files, gathered from all ranks to the CPU; LoRA merged.

    A tied matrix comes once. All ranks must iterate over all tensors, because gathering needs every rank.
    """
    shard.reshard(model)
    with torch.no_grad():
        for name, tensor in lora.merged(model):
            _refuse_infinite(name, tensor, dtype)
            yield name, tensor.to(dtype).cpu().contiguous()
    stored = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if name in stored:
            yield name, buffer.cpu().contiguous()


def _refuse_infinite(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> None:
    """Raise Failure, on all ranks alike, for a tensor that would be saved with NaN or infinity."""
    largest = shard.largest_of(tensor)
    if not math.isfinite(largest):
        raise Failure(f"tensor {name} contains NaN or infinity: training has diverged in its last step; lower --lr")
    if largest > torch.finfo(dtype).max:
        raise Failure(
            f"tensor {name} {shard.too_large(largest, dtype)}: nothing was saved; repeat the command with --save-dtype "
            "bf16 or fp32, which resumes from the last checkpoint"
        )


def _save_weights(model: PreTrainedModel, part: Path, dtype: torch.dtype, ranks: Ranks) -> None:
    """Write files of at most SHARD_BYTES, each read back and compared, and their index if there are several."""
    files: list[tuple[Path, list[str]]] = []
    total = held = 0
    tensors: dict[str, torch.Tensor] = {}

    def flush() -> None:
        path = part / f"{len(files):05}.part"
        save_file(tensors, path, metadata={"format": "pt"})
        _verify(path, tensors)
        files.append((path, list(tensors)))
        tensors.clear()

    for name, tensor in whole(model, dtype):
        size = tensor.numel() * tensor.element_size()
        if tensors and held + size > SHARD_BYTES:
            flush()
            held = 0
        tensors[name] = tensor
        held, total = held + size, total + size
        ranks.wait()
    flush()
    if len(files) == 1:
        files[0][0].rename(part / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, (path, names) in enumerate(files, start=1):
        name = f"model-{number:05}-of-{len(files):05}.safetensors"
        path.rename(part / name)
        weight_map |= dict.fromkeys(names, name)
    write_index(part, weight_map, total)


def _verify(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Read every saved tensor back and compare it with the model's."""
    with Files() as files:
        for found in read(path):
            ours = shard.bytes_of(tensors[found.name])
            saved = torch.empty_like(ours)
            files.read(path, found.start, saved.numpy().data)
            if not torch.equal(saved, ours):
                raise Failure(f"{path}: tensor {found.name} reads back differently than written; check the disk")


def write_beside(model: PreTrainedModel, template: Template, part: Path, dtype: str) -> None:
    """Write what a model's folder has beside the weights: configs, tokenizer, template."""
    _save_configs(model, part, dtype, template.tokenizer.folder)
    _copy_tokenizer(template, part)
    template.save(part)


def _save_configs(model: PreTrainedModel, part: Path, dtype: str, base: Path) -> None:
    config = model.config
    config.dtype = DTYPES[dtype]
    config.use_cache = True
    config.save_pretrained(part)
    named = configs.read_json(base / "generation_config.json")
    if not named:
        named = {key: getattr(config, key, None) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    written = configs.read_json(part / "config.json")
    configs.write_json(part / "config.json", configs.in_both_forms(written, configs.read_json(base / "config.json")))
    configs.write_json(part / "generation_config.json", configs.generation_settings(named))


def _copy_tokenizer(template: Template, part: Path) -> None:
    """The base's tokenizer files, without the name of code that is not copied, and with a limit that has grown."""
    source = template.tokenizer.folder
    for name in tokenizer.FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, part / name)
    if not (part / "tokenizer.json").exists():
        template.tokenizer.backend.save(str(part / "tokenizer.json"))
    path = part / "tokenizer_config.json"
    settings = configs.read_json(path)
    changed = {key: value for key, value in settings.items() if key != configs.CODE}
    limit, before = (configs.context_limit(configs.read_json(folder / "config.json")) for folder in (part, source))
    if limit and before and limit > before:
        changed["model_max_length"] = limit
    if changed != settings:
        configs.write_json(path, changed)
