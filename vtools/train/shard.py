# ruff: noqa: TID253
"""The model of one rank: created without weights, sharded over the ranks (FSDP2), filled with its rows of the base."""

import contextlib
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping

from vtools.models import configs
from vtools.process import Failure
from vtools.train import attention
from vtools.weights import tied_head
from vtools.weights.model_files import tensors
from vtools.weights.tensor import Files, Tensor

FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
# What `selective` keeps: expensive matrix products and attention; norms, RoPE and activations are recomputed.
KEPT = {
    "aten::mm", "aten::addmm", "aten::_scaled_dot_product_flash_attention_for_cpu", "torch_attn::_varlen_attn",
    "flash_attn::_flash_attn_varlen_forward", "vtools::document_attention",
}  # fmt: skip


def empty(
    folder: Path,
    rope: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    attention_name: str = attention.NAME,
) -> PreTrainedModel:
    """The model of a folder, with its buffers, and parameters on the meta device. Raises Failure."""
    try:
        own = configs.read_json(folder / "config.json")
        if own.get(configs.CODE) and own.get("model_type") not in CONFIG_MAPPING:
            raise ValueError(f"its code comes with it (model type {own.get('model_type')}), and is not run here")
        config = AutoConfig.from_pretrained(folder)
        if rope:
            _stretch(config, rope)
        if getattr(config, "tie_word_embeddings", False) and keeps_its_head(folder):
            config.tie_word_embeddings = False
        _refuse_history(config)
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
            config.architectures = [type(model).__name__]  # sharding the model changes its class
    except Failure:
        raise
    except Exception as error:  # transformers raises errors of every class
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]  # a heading, and what is below it
        if isinstance(error, KeyError) and " " not in reason:  # not a sentence, but the key alone
            reason = f"config.json names {reason}, which transformers {transformers.__version__} does not have"
        raise Failure(f"{folder}: cannot be loaded: {reason}") from None
    if get_model_conversion_mapping(model, add_legacy=False):
        raise Failure(
            f"{folder}: a {type(model).__name__} has other tensors in its files than in transformers, which renames or "
            "joins them; it cannot be trained here"
        )
    model.tie_weights()
    model.set_attn_implementation(attention_name)
    model.config.use_cache = False
    return model


def keeps_its_head(folder: Path) -> bool:
    """Whether the files hold a head that differs from the embedding, which transformers 5 does not tie to it."""
    with contextlib.suppress(Failure):  # no weights here: a dry run of a model on the hub
        return tied_head.apart(tensors(folder))
    return False


def _stretch(config: Any, rope: dict[str, Any]) -> None:
    """Scale the positions of a configuration: {"rope_type": …, "factor": …, "max_position_embeddings": the new limit}.

    vLLM, FastChat and SGLang take the limit before linear scaling for the one that is stated, and multiply it by the
    factor; llama.cpp and transformers take the limit as stated. `max_sequence_length`, which the former look at too,
    makes all of them right.
    """
    before = dict(getattr(config, "rope_parameters", None) or {})
    asked = f"--rope-scaling {rope['rope_type']}"
    if not before or any(isinstance(settings, dict) for settings in before.values()):
        raise ValueError(f"{asked}: its layers have no rotary embeddings, or those of several kinds")
    scaling = {key: rope[key] for key in ("rope_type", "factor")}
    limit = rope["max_position_embeddings"]
    if rope["rope_type"] == "yarn":
        scaling["original_max_position_embeddings"] = config.max_position_embeddings
        if hasattr(config, "max_sequence_length"):
            config.max_sequence_length = limit
    else:
        config.max_sequence_length = int(limit // rope["factor"])
    config.rope_parameters = before | scaling
    config.max_position_embeddings = limit
    try:
        config.validate_rope()
    except (ValueError, KeyError) as error:  # not one that this architecture has
        raise ValueError(f"{asked}: {error}") from None


def _refuse_history(config: Any) -> None:
    """Refuse rotary embeddings that depend on the longest row seen so far, and so on packing."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    for settings in (rope, *rope.values()):
        kind = settings.get("rope_type") if isinstance(settings, dict) else None
        if kind in ("dynamic", "longrope"):
            raise ValueError(f"{kind} position embeddings depend on the row length and cannot be trained with packing")


def layers_of(model: PreTrainedModel) -> torch.nn.ModuleList:
    """The decoder's layers. Raises Failure for an architecture without a plain list of them, or with none."""
    layers = getattr(model.base_model, "layers", None)
    if not isinstance(layers, torch.nn.ModuleList) or not len(layers):
        raise Failure(f"{type(model).__name__}: an architecture without a plain list of layers cannot be trained here")
    return layers


def shard(
    model: PreTrainedModel, mesh: DeviceMesh, dtype: torch.dtype, recompute: str = "none", compiled: bool = False
) -> None:
    """Shard the model's parameters over the ranks of `mesh`; they are gathered in `dtype` when needed.

    Weights and gradients stay in fp32; gradients are summed, not averaged. Afterwards `model(work, …)` runs
    `work(model, …)` with the last norm gathered, and layers, embedding and head while they run. An embedding that is
    also the head stays gathered.
    """
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    if compiled and recompute == "selective":
        torch._functorch.config.activation_memory_budget = 0.5  # type: ignore[attr-defined]
    recompute_layers(model, recompute, compiled)
    for layer in layers_of(model):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embedding.weight is not head.weight:
        fully_shard(embedding, mesh=mesh, mp_policy=policy)
        fully_shard(head, mesh=mesh, mp_policy=policy, reshard_after_forward=False)  # its backward pass follows at once
        head.run = functools.partial(_run, head)
        register_fsdp_forward_method(head, "run")
    model.forward = functools.partial(_run, model)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule) and mesh.size() > 1:
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum


def reshard(model: PreTrainedModel) -> None:
    """Shard the model again after a forward pass without a backward pass, which leaves root and head gathered."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def with_head(model: PreTrainedModel, work: Callable[..., Any], *arguments: Any) -> Any:
    """Run `work(head, …)` with the head's weight gathered, inside a run of the model."""
    head: Any = model.get_output_embeddings()
    return head.run(work, *arguments) if "run" in vars(head) else work(head, *arguments)


def recompute_layers(model: PreTrainedModel, recompute: str, compiled: bool = False) -> None:
    """Set each layer's forward function for training: compiled or not, its activations kept or recomputed."""
    if compiled:
        torch._dynamo.config.specialize_float = True  # epsilons are constant
    for layer in layers_of(model):
        # Compile inside recomputation: the other order finds nothing to compile. transformers' own recomputation covers
        # the layer or its hooks, depending on the version.
        if compiled:
            layer.forward = torch.compile(layer.forward, dynamic=True)
        if recompute == "full" or (recompute == "selective" and not compiled):
            layer.forward = _recomputing(layer.forward, recompute == "selective")


def _run(module: torch.nn.Module, work: Callable[..., Any], *arguments: Any) -> Any:
    for parameter in module.parameters():
        # Gradients of what is gathered here are added in fp32: the head's, and those of an embedding that is also the
        # head. A group's gradients must have one dtype.
        if parameter.requires_grad and not isinstance(parameter, DTensor):
            parameter.grad_dtype = torch.float32
    return work(module, *arguments)


def _recomputing(forward: Callable[..., Any], selective: bool) -> Callable[..., Any]:
    """A layer's forward function whose activations are recomputed in the backward pass."""

    def policy(context: Any, operation: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if operation.name() in KEPT else CheckpointPolicy.PREFER_RECOMPUTE

    options: dict[str, Any] = {"use_reentrant": False}
    if selective:
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, policy)
    return functools.partial(checkpoint, forward, **options)


def fill(model: PreTrainedModel, read: Callable[[str, tuple[int, ...], int, int], torch.Tensor], device: Any) -> None:
    """Allocate and load every parameter: `read(name, shape, start, stop)` returns some of its rows.

    Buffers stay as they are: values computed at construction, such as RoPE frequencies, are in no file.
    """
    made: dict[int, torch.nn.Parameter] = {}  # by the id of the parameter it replaces, so that tied ones stay tied
    for name, parameter in model.named_parameters():
        start, stop = rows_of(parameter)
        rows = torch.empty((stop - start, *parameter.shape[1:]), dtype=parameter.dtype, device=device)
        if stop > start:
            rows.copy_(read(name, tuple(parameter.shape), start, stop))
        if isinstance(parameter, DTensor):
            mesh, placements = parameter.device_mesh, parameter.placements
            rows = DTensor.from_local(
                rows, mesh, placements, run_check=False, shape=parameter.shape, stride=parameter.stride()
            )
        made[id(parameter)] = torch.nn.Parameter(rows, requires_grad=parameter.requires_grad)
    every = model.named_parameters(remove_duplicate=False)
    model.load_state_dict({name: made[id(parameter)] for name, parameter in every}, strict=False, assign=True)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))


def rows_of(parameter: torch.Tensor) -> tuple[int, int]:
    """The rows of a parameter on this rank: FSDP2 shards the first dimension, as torch.chunk does."""
    rows = parameter.shape[0]
    if not isinstance(parameter, DTensor):
        return 0, rows
    share = -(-rows // parameter.device_mesh.size())
    rank = parameter.device_mesh.get_local_rank()
    return min(rank * share, rows), min((rank + 1) * share, rows)


class Weights:
    """The tensors of a model's folder by name, read by rows."""

    def __init__(self, folder: Path, dtypes: dict[str, torch.dtype] | None = None) -> None:
        """`dtypes` are those that weights must fit into, by the option that chooses each."""
        self.folder, self._files, self._dtypes = folder, Files(), dtypes or {}
        self.stored = tensors(folder)

    def read(self, name: str, shape: tuple[int, ...], start: int, stop: int) -> torch.Tensor:
        """Rows of a tensor that must have this shape and contain no NaN or infinity. Raises Failure."""
        found = self.find(name, shape)
        rows = torch.empty((stop - start, *shape[1:]), dtype=FLOATS[found.dtype])
        self._files.read(found.file, found.start + start * found.bytes // shape[0], bytes_of(rows).numpy().data)
        largest = largest_of(rows)
        if not math.isfinite(largest):
            raise Failure(f"{found.file}: tensor {name} contains NaN or infinity: damaged, or from a run that diverged")
        for option, dtype in self._dtypes.items():
            if largest > torch.finfo(dtype).max:
                raise Failure(f"{found.file}: tensor {name} {too_large(largest, dtype)}; give {option} bf16 or fp32")
        return rows

    def find(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Where a tensor is that must have this shape. Raises Failure."""
        found = self.stored.get(name)
        if found is None:
            hint = "; if the head is the embedding, set tie_word_embeddings to true" if name == tied_head.HEAD else ""
            raise Failure(f"{self.folder}: no tensor {name}, which config.json requires{hint}")
        if found.shape != shape:
            raise Failure(f"{self.folder}: tensor {name} is {list(found.shape)}, config.json requires {list(shape)}")
        if found.dtype not in FLOATS:
            raise Failure(f"{found.file}: tensor {name} is {found.dtype}; only floating-point weights can be trained")
        return found


def largest_of(tensor: torch.Tensor) -> float:
    """The largest magnitude in a tensor; NaN if it contains NaN."""
    low, high = torch.aminmax(tensor)
    return max(-low.item(), high.item()) if low == low else math.nan


def too_large(largest: float, dtype: torch.dtype) -> str:
    """Words for a magnitude that is beyond a dtype."""
    return f"reaches {largest:g}, and {str(dtype).removeprefix('torch.')} ends at {torch.finfo(dtype).max:g}"


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """The memory of a contiguous tensor, byte by byte."""
    return tensor.flatten().view(torch.uint8)
