# ruff: noqa: TID253
"""LoRA (Hu et al. 2021, arXiv 2106.09685) with PEFT's layers and file format: low-rank adapters on frozen weights."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from vtools.process import UsageFailure
from vtools.train.request import Request

ADAPTER = "default"


@dataclass(frozen=True)
class Adapters:
    """The shape of a model's adapters: B · A is added to a weight times alpha / rank."""

    rank: int
    alpha: int
    targets: tuple[str, ...] = ()  # names of linear layers; none is all of them except the head
    embeddings: bool = False  # whether embedding and head are trained in full beside them


def asked(request: Request) -> Adapters | None:
    """The adapters that a command line asks for, if any."""
    if not request.lora:
        return None
    return Adapters(request.lora, request.lora_alpha, tuple(request.lora_targets or ()), request.train_embeddings)


def inject(model: PreTrainedModel, adapters: Adapters) -> None:
    """Freeze a model (on the meta device) and add adapters. Raises UsageFailure for a target that it does not have."""
    from peft import LoraConfig, inject_adapter_in_model

    there = linear_layers(model)
    if unknown := [name for name in adapters.targets if name not in there]:
        raise UsageFailure(
            f"--lora-targets {','.join(unknown)}: no linear layer of this model; it has {', '.join(there)}"
        )
    config = LoraConfig(
        r=adapters.rank,
        lora_alpha=adapters.alpha,
        lora_dropout=0.0,
        target_modules=list(adapters.targets) or there,
        task_type="CAUSAL_LM",
    )
    inject_adapter_in_model(config, model, adapter_name=ADAPTER, low_cpu_mem_usage=True)
    whole = [one for module in _outer(model).values() for one in module.parameters()] if adapters.embeddings else []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or any(parameter is one for one in whole))
        if parameter.requires_grad:  # trained parameters stay in fp32
            parameter.data = parameter.data.float()


def linear_layers(model: PreTrainedModel) -> list[str]:
    """The names of the kinds of linear layers in a model, except the head: q_proj, v_proj, ..."""
    head = model.get_output_embeddings()
    every = [name for name, one in model.named_modules() if isinstance(one, torch.nn.Linear) and one is not head]
    return list(dict.fromkeys(name.rpartition(".")[2] for name in every))


def _outer(model: PreTrainedModel) -> dict[str, torch.nn.Module]:
    """Embedding and head by their full names."""
    both: tuple[Any, ...] = (model.get_input_embeddings(), model.get_output_embeddings())
    return {name: module for name, module in model.named_modules() if any(module is one for one in both)}


def adapters_of(model: PreTrainedModel) -> Adapters | None:
    """The adapters that a model has, if any."""
    config = _config(model)
    if config is None:
        return None
    embedding: Any = model.get_input_embeddings().weight
    return Adapters(config.r, config.lora_alpha, tuple(sorted(config.target_modules)), embedding.requires_grad)


def _config(model: PreTrainedModel) -> Any:
    return getattr(model, "peft_config", {}).get(ADAPTER)


def base_name(name: str) -> str:
    """A parameter's name in the base model's files."""
    return name.replace(".base_layer.", ".")


def initial(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor | None:
    """Initial values of an adapter matrix, the same on any number of ranks; None for a weight of the base.

    Kaiming uniform for A and zero for B, as in PEFT: initially the model is unchanged.
    """
    if "lora_B" in name:
        return torch.zeros(shape)
    if "lora_A" not in name:
        return None
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
    return torch.empty(shape).uniform_(-(shape[1] ** -0.5), shape[1] ** -0.5, generator=generator)


def merged(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter by its name in files, gathered from all ranks; with LoRA, W + scale · B · A in fp32."""
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            continue
        weight = _gathered(parameter)
        owner, found, _ = name.partition(".base_layer.")
        if found:
            layer: Any = model.get_submodule(owner)
            up, down = (_gathered(matrix[ADAPTER].weight).float() for matrix in (layer.lora_B, layer.lora_A))
            weight = weight.float() + layer.scaling[ADAPTER] * (up @ down)
        yield base_name(name), weight


def state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """What was trained, by its names in PEFT's files, gathered from all ranks; a tied matrix comes twice."""
    return {
        f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}": _gathered(parameter).cpu().clone().contiguous()
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter.requires_grad
    }


def save(model: PreTrainedModel, folder: Path, base: str) -> None:
    """Write what was trained in PEFT's format: adapter_model.safetensors (fp32) and adapter_config.json."""
    from safetensors.torch import save_file

    config = _config(model)
    assert config is not None
    folder.mkdir()
    save_file(state(model), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config.base_model_name_or_path = base
    config.inference_mode = True
    if model.get_input_embeddings().weight.requires_grad:
        config.ensure_weight_tying = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        names = [name.rpartition(".")[2] for name in _outer(model)]
        config.modules_to_save = names[:1] if config.ensure_weight_tying else names
    config.save_pretrained(str(folder))
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text())
    settings["target_modules"] = sorted(settings["target_modules"])  # the order of a set varies between processes
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def _gathered(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()
