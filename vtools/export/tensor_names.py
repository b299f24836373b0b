# ruff: noqa: TID253  imported lazily by the command
"""The GGUF name and type of each tensor of the model."""

import math
from dataclasses import dataclass
from pathlib import Path

import gguf

from vtools.export.architecture import Architecture
from vtools.process import Failure
from vtools.weights.dtypes import FLOATS
from vtools.weights.model_files import is_buffer
from vtools.weights.tensor import Tensor

# The parts of a layer, by transformers' and llama.cpp's names.
PARTS = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
# The biases that llama.cpp reads; it refuses a file with others.
BIASES = {
    "llama": ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"),
    "qwen2": ("attn_q", "attn_k", "attn_v"),
    "qwen3": (),
}
# Mixes of K-quants: the type of most matrices, and of those whose row length is not a multiple of 256.
MIXES = {"q4_k_m": ("q4_k", "q5_0"), "q5_k_m": ("q5_k", "q5_1"), "q6_k": ("q6_k", "q8_0")}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor of the GGUF file: `shape` with rows first, `type` in lower case.

    Its bytes come from `source`, or are `values` themselves. `head` is the number of rows of an attention head whose
    two halves are to be interleaved, 0 for none.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    source: Tensor | None
    head: int = 0
    values: tuple[float, ...] = ()

    @property
    def bytes(self) -> int:
        block, size = gguf.GGML_QUANT_SIZES[ggml_type(self.type)]
        return math.prod(self.shape) // block * size


def ggml_type(name: str) -> gguf.GGMLQuantizationType:
    """GGUF's number of a type."""
    return gguf.GGMLQuantizationType[name.upper()]


def plan(folder: Path, tensors: dict[str, Tensor], model: Architecture, wanted: str) -> list[GgufTensor]:
    """Every tensor of the file, in order. Raises Failure if one is missing, unknown or has the wrong shape."""
    places = _places(model)
    used = {name for name in places if name in tensors}
    for name, tensor in tensors.items():
        if name in used or is_buffer(name) or (model.tied and name == "lm_head.weight"):
            continue
        raise Failure(f"{tensor.file}: tensor {name} does not belong to a {model.name} model; nothing was written")
    entries = []
    factors = model.rope_factors()
    if factors:
        entries.append(GgufTensor("rope_freqs.weight", "f32", (len(factors),), None, values=tuple(factors)))
    for name, (known_as, shape, head) in places.items():
        found = tensors.get(name)
        if found is None:
            if name.endswith(".bias"):
                continue
            raise Failure(f"{folder}: no tensor {name}, which a {model.name} model has")
        if found.shape != shape:
            raise Failure(f"{found.file}: tensor {name} is {found}, config.json asks for {list(shape)}")
        if found.dtype not in FLOATS:
            raise Failure(f"{found.file}: tensor {name} is {found}; only floats can be exported (quantised already?)")
        entries.append(GgufTensor(known_as, _type(known_as, shape, model, wanted), shape, found, head))
    return entries


def _places(model: Architecture) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """Name, shape and rows of a permuted head of every tensor the model may have, in the order of the file."""
    queries, keys = model.heads * model.head_size, model.key_heads * model.head_size
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm": (model.hidden,), "ffn_norm": (model.hidden,),
        "attn_q": (queries, model.hidden), "attn_k": (keys, model.hidden), "attn_v": (keys, model.hidden),
        "attn_output": (model.hidden, queries), "ffn_gate": (model.feed_forward, model.hidden),
        "ffn_up": (model.feed_forward, model.hidden), "ffn_down": (model.hidden, model.feed_forward),
    }  # fmt: skip
    if model.name == "qwen3":
        shapes |= {"attn_q_norm": (model.head_size,), "attn_k_norm": (model.head_size,)}
    places: dict[str, tuple[str, tuple[int, ...], int]] = {
        "model.embed_tokens.weight": ("token_embd.weight", (model.vocabulary, model.hidden), 0)
    }
    for layer in range(model.layers):
        for part, known_as in PARTS.items():
            if known_as not in shapes:
                continue
            # RoPE pairs the halves of a head in transformers, neighbours in llama.cpp's llama.
            head = model.head_size if model.interleaved and known_as in ("attn_q", "attn_k") else 0
            name, target, shape = f"model.layers.{layer}.{part}", f"blk.{layer}.{known_as}", shapes[known_as]
            places[f"{name}.weight"] = (f"{target}.weight", shape, head)
            if known_as in BIASES[model.name]:
                places[f"{name}.bias"] = (f"{target}.bias", shape[:1], head)
    places["model.norm.weight"] = ("output_norm.weight", (model.hidden,), 0)
    if not model.tied:
        places["lm_head.weight"] = ("output.weight", (model.vocabulary, model.hidden), 0)
    return places


def _type(name: str, shape: tuple[int, ...], model: Architecture, wanted: str) -> str:
    """The type of one tensor in a file of type `wanted`: vectors stay F32, the output matrix has at least 8 bits."""
    if len(shape) == 1:
        return "f32"
    if wanted in MIXES:
        return mixed(wanted, name, shape, model.layers, model.tied)
    if name == ("token_embd.weight" if model.tied else "output.weight") and wanted in ("q4_0", "q4_1", "q5_0", "q5_1"):
        wanted = "q8_0"
    return wanted if shape[-1] % gguf.GGML_QUANT_SIZES[ggml_type(wanted)][0] == 0 else "f16"


def mixed(wanted: str, name: str, shape: tuple[int, ...], layers: int, tied: bool) -> str:
    """The type of a matrix in a file of a K-quant mix; `name` is GGUF's, `shape` has the row length last.

    Q6_K goes to the output matrix (a tied embedding is one) and, in the first and last eighth of the layers and every
    third one between, to the value projection and the feed-forward down projection. The rules are
    those of https://github.com/ggml-org/llama.cpp/blob/master/src/llama-quant.cpp
    """
    layer = int(name.split(".")[1]) if name.startswith("blk.") else None
    more = layer is not None and (layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2)
    role = name.removesuffix(".weight").rpartition(".")[2]
    six = role == "output" or (role == "token_embd" and tied) or (role in ("attn_v", "ffn_down") and more)
    kind, narrow = MIXES["q6_k" if six else wanted]
    return next((one for one in (kind, narrow) if shape[-1] % gguf.GGML_QUANT_SIZES[ggml_type(one)][0] == 0), "f16")
