# ruff: noqa: TID253
"""Predicting the memory that a rank needs, and choosing micro-batches and recomputation that fit."""

import copy
import functools
import weakref
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PreTrainedModel

from vtools.process import Failure
from vtools.train import attention, lora, shard
from vtools.train.flops import Shape, shape_of
from vtools.train.loss import CHUNK_LOGITS

Recompute = Literal["none", "selective", "full"]
MICRO_TOKENS = {"cpu": 2048, "cuda": 8192}
SMALLEST_MICRO_TOKENS = 512
# Step time relative to keeping all activations. Published: selective is 27 % faster than full recomputation.
SLOWDOWN: dict[Recompute, float] = {"none": 1.0, "selective": 1.04, "full": 1.3}
# Each micro-batch gathers and casts all weights and reduces all gradients: the time of about this many tokens.
TOKENS_OF_A_PASS = 512
ADAM_BYTES = 16  # fp32: weight, gradient, two moments
FRAGMENTS = 0.05  # allocator fragmentation, as a share of all temporary memory
RUNTIME_BYTES = {"cpu": 600_000_000, "cuda": 1_500_000_000}  # the process; plus CUDA's context, cuBLAS and NCCL


@dataclass(frozen=True)
class Activations:
    """Bytes per token: kept per layer from forward to backward pass, kept outside layers, and temporary."""

    kept: float
    outside: float
    passing: float  # at the peak, beyond what is kept: one recomputed layer and its gradients


def activations(
    config: Any, recompute: Recompute, dtype: torch.dtype, device_type: str, adapters: int | None = None
) -> Activations:
    """Measure the live storages of a packed forward and backward pass over tensors without memory.

    `adapters` is the LoRA rank. Compiled layers keep less. Sliding windows and attention dropout are ignored.
    """
    two, three = (_alive(config, layers, recompute, dtype, device_type, adapters) for layers in (2, 3))
    kept = three[0] - two[0]
    return Activations(kept, two[0] - 2 * kept, two[1] - two[0])


def _alive(
    config: Any, layers: int, recompute: Recompute, dtype: torch.dtype, device_type: str, adapters: int | None
) -> tuple[float, float]:
    """Live bytes per token after the forward pass, and at the peak of both passes."""
    tokens = 1 << 20  # so many that gradients of parameters are negligible; they are not real memory
    config = copy.deepcopy(config.get_text_config())
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    if getattr(config, "sliding_window", None):
        config.sliding_window = None
    config.attention_dropout = 0.0
    # Attention has its own kernel for 16-bit dtypes on CUDA, which accepts meta tensors. Other kernels are chosen by
    # device, so the tensors must claim to be on one.
    meta = device_type == "cuda" and dtype != torch.float32
    starts = torch.arange(0, tokens + 1, tokens // 4, dtype=torch.int32)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention.NAME)
        if adapters:
            lora.inject(model, adapters)
        shard.recompute_layers(model, recompute)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("meta" if meta else "cpu"):
        for module in model.modules():
            for name, old in module.named_parameters(recurse=False):  # sharding gathers all parameters in one dtype
                setattr(module, name, torch.nn.Parameter(torch.empty(old.shape, dtype=dtype), old.requires_grad))
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))
        ids = torch.empty(1, tokens, dtype=torch.int64)
        meter = _Meter([ids, *model.parameters(), *model.buffers()])
        with meter:
            hidden = model.base_model(
                input_ids=ids,
                position_ids=ids,
                use_cache=False,
                cu_seq_lens_q=starts,
                cu_seq_lens_k=starts,
                max_length_q=tokens // 4,
                max_length_k=tokens // 4,
            ).last_hidden_state
            after_forward = meter.alive
            hidden.sum().backward()
    return after_forward / tokens, meter.peak / tokens


class _Meter(TorchDispatchMode):
    """Counts the bytes of live storages created under it, except those of `known` tensors."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._counted = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self._counted:
                storage = tensor.untyped_storage()
                self._counted.add(storage._cdata)
                self.alive += storage.nbytes()
                self.peak = max(self.peak, self.alive)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return result

    def _gone(self, key: int, size: int) -> None:
        self.alive -= size
        self._counted.discard(key)


@dataclass(frozen=True)
class Memory:
    """Peak bytes on one rank, by purpose."""

    state: int  # this rank's shards of weights, gradients and Adam's moments
    gathered: int  # gathered weights and gradients of the root and of active layers
    activations: int
    logits: int
    overhead: int
    total: int
    available: int


def needed(
    shape: Shape,
    layer: Activations,
    world: int,
    micro_tokens: int,
    dtype: torch.dtype,
    device_type: str,
    available: int,
) -> Memory:
    """The memory of one of `world` ranks for micro-batches of `micro_tokens` (at least the longest conversation)."""
    size = dtype.itemsize
    trained = shape.trainable / shape.parameters
    state = (ADAM_BYTES * shape.trainable + shape.frozen_bytes) / world
    # The root and two layers (one active, one prefetched); the gradients of the root and of a layer, and two in fp32
    # being reduced.
    gathered = 1.0 * (shape.root_parameters + 2 * shape.layer_parameters) * size
    gathered += trained * (shape.root_parameters * size + shape.layer_parameters * (size + 2 * 4))
    active = micro_tokens * (shape.layers * layer.kept + layer.outside + layer.passing)
    # A chunk of logits in fp32 and its exponentials; the trained positions' hidden states, their gradient and its
    # scatter; the head's gradient in fp32 and a chunk's contribution to it.
    chunk = min(max(1, CHUNK_LOGITS[device_type] // shape.vocabulary), micro_tokens)
    logits = 8.0 * chunk * shape.vocabulary + 3 * micro_tokens * shape.hidden * size
    logits += trained * shape.vocabulary * shape.hidden * (4 + size)
    overhead = RUNTIME_BYTES[device_type] + FRAGMENTS * (gathered + active + logits)
    total = state + gathered + active + logits + overhead
    return Memory(*map(int, (state, gathered, active, logits, overhead, total, available)))


@dataclass(frozen=True)
class Plan:
    """How micro-batches are computed."""

    recompute: Recompute
    micro_tokens: int
    compiled: bool
    memory: Memory


def choose(
    model: PreTrainedModel,
    world: int,
    longest: int,
    dtype: torch.dtype,
    device_type: str,
    available: int,
    recompute: Recompute | Literal["auto"] = "auto",
    micro_tokens: int | None = None,
    compiled: bool | None = None,
) -> Plan:
    """The fastest plan that fits `available` bytes per rank, respecting given settings. Raises Failure.

    A micro-batch is never smaller than the `longest` conversation, because conversations are never cut.
    """
    shape, adapters = shape_of(model), lora.rank_of(model)
    sizes = [micro_tokens or max(MICRO_TOKENS[device_type], longest)]
    while not micro_tokens and sizes[-1] > max(longest, SMALLEST_MICRO_TOKENS):
        sizes.append(max(sizes[-1] // 2, longest, SMALLEST_MICRO_TOKENS))
    modes = list(SLOWDOWN) if recompute == "auto" else [recompute]
    measured = functools.cache(lambda mode: activations(model.config, mode, dtype, device_type, adapters))
    ways = sorted(product(modes, sizes), key=lambda way: SLOWDOWN[way[0]] * (1 + TOKENS_OF_A_PASS / way[1]))

    def taken(way: tuple[Recompute, int], ranks: int) -> Memory:
        return needed(shape, measured(way[0]), ranks, max(way[1], longest), dtype, device_type, available)

    for way in ways:
        found = taken(way, world)
        if found.total <= available:
            return Plan(*way, compiled=device_type == "cuda" if compiled is None else compiled, memory=found)
    least = min(ways, key=lambda way: taken(way, world).total)
    found = taken(least, world)
    doubled = (world << power for power in range(1, 11))
    enough = next((ranks for ranks in doubled if taken(least, ranks).total <= available), None)
    remedies = {
        f"{enough} GPUs (--nproc)": device_type == "cuda" and enough,
        "--lora": shape.trainable == shape.parameters
        and found.total - found.state + shape.parameters * dtype.itemsize / world < available,
        "a lower --micro-tokens": micro_tokens and micro_tokens > longest,
        "a lower --max-tokens": found.state + found.gathered + found.overhead < available,
        "a smaller model": True,
    }
    raise Failure(
        f"not enough memory: each {'GPU' if device_type == 'cuda' else 'process'} needs {_gb(found.total)} and has "
        f"{_gb(available)} ({_gb(found.state)} weights, gradients and optimizer, {_gb(found.gathered)} gathered, "
        f"{_gb(found.activations + found.logits)} for {max(least[1], longest)} tokens); "
        f"use {' or '.join(remedy for remedy, helps in remedies.items() if helps)}"
    )


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
