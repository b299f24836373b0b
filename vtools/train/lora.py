# ruff: noqa: TID253
"""LoRA (Hu et al. 2021, arXiv 2106.09685) with PEFT's layers and file format: low-rank adapters on frozen weights."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

ADAPTER = "default"


def inject(model: PreTrainedModel, rank: int) -> None:
    """Freeze a model (on the meta device) and add adapters of this rank to every linear layer except the head."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    inject_adapter_in_model(config, model, adapter_name=ADAPTER, low_cpu_mem_usage=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_" in name:  # trained parameters stay in fp32
            parameter.data = parameter.data.float()


def rank_of(model: PreTrainedModel) -> int | None:
    """The rank of a model's adapters, if it has any."""
    config = _config(model)
    return None if config is None else config.r


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
    """The adapter matrices by their names in PEFT's files, gathered from all ranks."""
    return {
        f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}": _gathered(parameter).cpu().contiguous()
        for name, parameter in model.named_parameters()
        if ".lora_" in name
    }


def save(model: PreTrainedModel, folder: Path, base: str) -> None:
    """Write the adapters in PEFT's format: adapter_model.safetensors (fp32) and adapter_config.json."""
    from safetensors.torch import save_file

    config = _config(model)
    assert config is not None
    folder.mkdir()
    save_file(state(model), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config.base_model_name_or_path = base
    config.inference_mode = True
    config.save_pretrained(str(folder))
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text())
    settings["target_modules"] = sorted(settings["target_modules"])  # the order of a set varies between processes
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def _gathered(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()
