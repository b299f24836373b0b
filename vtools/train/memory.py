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
# Multiprocessors of the largest known GPU (RTX 5090): the kernel of attention splits its work over them.
MULTIPROCESSORS = 170
FRAGMENTS = 0.05  # allocator fragmentation, as a share of all temporary memory
RUNTIME_BYTES = {"cpu": 600_000_000, "cuda": 1_500_000_000}  # the process; plus CUDA's context, cuBLAS and NCCL


@dataclass(frozen=True)
class Activations:
    """Bytes per token: kept per layer from forward to backward pass, kept outside layers, and temporary."""

    kept: float
    outside: float
    passing: float  # at the peak, beyond what is kept: one recomputed layer and its gradients


def activations(
    config: Any, recompute: Recompute, dtype: torch.dtype, device_type: str, adapters: lora.Adapters | None = None
) -> Activations:
    """Measure the live storages of a packed forward and backward pass over tensors without memory.

    Compiled layers keep less. Sliding windows and attention dropout are ignored.
    """
    two, three = (_alive(config, layers, recompute, dtype, device_type, adapters) for layers in (2, 3))
    kept = three[0] - two[0]
    return Activations(kept, two[0] - 2 * kept, two[1] - two[0])


def _alive(
    config: Any, layers: int, recompute: Recompute, dtype: torch.dtype, device_type: str, adapters: lora.Adapters | None
) -> tuple[float, float]:
    """Live bytes per token after the forward pass, and at the peak of both passes."""
    tokens = 1 << 20  # so many that gradients of parameters are negligible; they are not real memory
    config = copy.deepcopy(config.get_text_config())
    for name, value in vars(config).items():  # an entry for each layer: layer_types, no_rope_layers
        if isinstance(value, list) and len(value) == config.num_hidden_layers:
            setattr(config, name, [value[place % len(value)] for place in range(layers)])
    config.num_hidden_layers = layers
    if getattr(config, "sliding_window", None):
        config.sliding_window = None
    config.attention_dropout = 0.0
    # Attention's own kernel accepts meta tensors. Other kernels are chosen by device, so the tensors must claim to be
    # on one.
    meta = device_type == "cuda" and attention.has_kernel(torch.device("meta"), dtype, attention.head_size(config))
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
    """Bytes on one rank at the moment when it needs the most, by purpose."""

    state: int  # this rank's shards of weights, gradients and Adam's moments
    gathered: int  # weights gathered from all ranks and gradients being reduced, with the buffers of both
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
    documents: int = 1,
) -> Memory:
    """The memory of one of `world` ranks for micro-batches of `micro_tokens` (at least the longest conversation).

    `documents` is the largest number of conversations in one.
    """
    size = dtype.itemsize
    trained, outer = shape.layers_trained, shape.outer_trained
    state = (ADAM_BYTES * shape.trainable + shape.frozen_bytes) / world
    # Copies of gathered weights: on one rank what is used and a tensor being cast; on several also a flat buffer of
    # what is used, and of what comes next with this rank's share of it.
    copies = (2 if world == 1 else 3 + 1 / world) * size
    reduced = 4 + 4 / world  # a gradient being reduced in fp32, and this rank's sum of it
    layers = shape.layer_parameters * (copies + trained * (size + 4 + reduced))  # 4: the layer before, still reducing
    root = shape.root_parameters * (size + outer * 4)
    embedding, head = shape.embedding_parameters, shape.head_parameters
    kept = micro_tokens * (shape.layers * layer.kept + layer.outside)
    # A chunk of logits in fp32 and its exponentials; the trained positions' hidden states, their gradient and its
    # scatter; the head's gradient in fp32 and a chunk's contribution to it.
    chunk = min(max(1, CHUNK_LOGITS[device_type] // shape.vocabulary), micro_tokens)
    logits = 8.0 * chunk * shape.vocabulary + 3 * micro_tokens * shape.hidden * size
    logits += outer * shape.vocabulary * shape.hidden * (4 + size)
    backward = micro_tokens * layer.passing + _attention_buffers(shape, dtype, device_type, micro_tokens, documents)
    moments = (
        (root + layers + outer * 4 * head, kept + backward, 3.0 * micro_tokens * shape.hidden * size),
        (root + head * (copies + outer * reduced), kept, logits),
        # The embedding's gradient comes last, then all that remains is reduced at once.
        (root + embedding * (copies + outer * (size + reduced)) + shape.root_parameters * outer * reduced, 0, 0),
    )
    gathered, active, logits = max(moments, key=sum)
    overhead = RUNTIME_BYTES[device_type] + FRAGMENTS * (gathered + active + logits)
    total = state + gathered + active + logits + overhead
    return Memory(*map(int, (state, gathered, active, logits, overhead, total, available)))


def _attention_buffers(shape: Shape, dtype: torch.dtype, device_type: str, tokens: int, documents: int) -> float:
    """Bytes that FlashAttention 2's deterministic backward pass allocates besides its results.

    Queries' gradients in fp32, once for each group of thread blocks that add in turn, with 128 rows between documents
    and head sizes in multiples of 32; keys' and values' gradients for each query head where heads are grouped.
    """
    size = shape.attention_width // shape.heads
    if device_type != "cuda" or not attention.has_kernel(torch.device("meta"), dtype, size):
        return 0
    most = range(1, max(1, min(documents, tokens // 2)) + 1)
    rows = max(-(-MULTIPROCESSORS // (number * shape.heads)) * (tokens + 128 * number) for number in most)
    expanded = 2 * dtype.itemsize * tokens * shape.attention_width if shape.key_heads != shape.heads else 0
    return 4.0 * rows * shape.heads * -(-size // 32) * 32 + expanded


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
    documents: int = 1,
) -> Plan:
    """The fastest plan that fits `available` bytes per rank, respecting given settings. Raises Failure.

    A micro-batch is never smaller than the `longest` conversation, because conversations are never cut, and holds at
    most as many `documents`.
    """
    shape, adapters = shape_of(model), lora.adapters_of(model)
    sizes = [micro_tokens or max(MICRO_TOKENS[device_type], longest)]
    while not micro_tokens and sizes[-1] > max(longest, SMALLEST_MICRO_TOKENS):
        sizes.append(max(sizes[-1] // 2, longest, SMALLEST_MICRO_TOKENS))
    modes = list(SLOWDOWN) if recompute == "auto" else [recompute]
    measured = functools.cache(lambda mode: activations(model.config, mode, dtype, device_type, adapters))
    ways = sorted(product(modes, sizes), key=lambda way: SLOWDOWN[way[0]] * (1 + TOKENS_OF_A_PASS / way[1]))

    def taken(way: tuple[Recompute, int], ranks: int) -> Memory:
        size = max(way[1], longest)
        return needed(shape, measured(way[0]), ranks, size, dtype, device_type, available, documents)

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
