"""config.json of a Llama-family model as the hyper-parameters of a GGUF file."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtools.models.configs import context_limit, rope_settings
from vtools.process import Failure


class Unsupported(Exception):
    """A setting that GGUF or llama.cpp cannot represent."""


# model_type to GGUF's architecture, and whether its RoPE in llama.cpp pairs neighbours (2i, 2i+1), not halves.
SUPPORTED = {
    "llama": ("llama", True), "mistral": ("llama", True), "qwen2": ("qwen2", False), "qwen3": ("qwen3", False),
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """A decoder of the Llama family; `rope` holds the rotary settings under transformers' names."""

    name: str
    interleaved: bool
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    key_heads: int
    head_size: int
    context: int
    epsilon: float
    vocabulary: int
    tied: bool
    rope: dict[str, Any]
    window: int | None

    def metadata(self) -> dict[str, Any]:
        """The GGUF keys, in a fixed order. Raises Unsupported for a rope scaling that GGUF has no key for."""
        keys = {
            "vocab_size": self.vocabulary, "context_length": self.context, "embedding_length": self.hidden,
            "block_count": self.layers, "feed_forward_length": self.feed_forward, "attention.head_count": self.heads,
            "attention.head_count_kv": self.key_heads, "attention.key_length": self.head_size,
            "attention.value_length": self.head_size, "attention.layer_norm_rms_epsilon": self.epsilon,
            "rope.dimension_count": self.head_size, "rope.freq_base": float(self.rope["rope_theta"]),
            **self._scaling(),
        }  # fmt: skip
        return {f"{self.name}.{key}": value for key, value in keys.items()}

    def _scaling(self) -> dict[str, Any]:
        kind = self.rope["rope_type"]
        if kind in ("default", "llama3"):  # llama3's factors are a tensor
            return {}
        if kind == "linear":
            return {"rope.scaling.type": "linear", "rope.scaling.factor": float(self.rope["factor"])}
        if kind == "yarn":
            return self._yarn()
        raise Unsupported(f"rope scaling {kind!r} has no form in GGUF; only linear, yarn and llama3 have")

    def _yarn(self) -> dict[str, Any]:
        # llama.cpp has keys for these, but does not read them for these architectures.
        fixed = {"beta_fast": 32, "beta_slow": 1, "truncate": True}
        for key, value in fixed.items():
            if self.rope.get(key) not in (None, value):
                raise Unsupported(f"yarn with {key} {self.rope[key]}; llama.cpp supports only {value}")
        original = self.rope["original_max_position_embeddings"]
        factor = float(self.rope.get("factor") or self.context / original)
        keys = {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": factor,
            "rope.scaling.original_context_length": int(original),
        }
        # llama.cpp applies the paper's scale, and multiplies it by this.
        suggested = _attention_scale(factor, 1)
        wanted, scale, all_dims = (self.rope.get(key) for key in ("attention_factor", "mscale", "mscale_all_dim"))
        if wanted is None and scale and all_dims:
            wanted = _attention_scale(factor, scale) / _attention_scale(factor, all_dims)
        if wanted is not None and wanted != suggested:
            keys["rope.scaling.attn_factor"] = float(wanted / suggested)
        return keys

    def rope_factors(self) -> list[float] | None:
        """llama3's divisors of the rotary frequencies, one per pair of dimensions; None for other kinds.

        Raises Unsupported for architectures that have no such tensor in llama.cpp.
        Source of the formula: transformers.modeling_rope_utils._compute_llama3_parameters.
        """
        if self.rope["rope_type"] != "llama3":
            return None
        if self.name != "llama":
            raise Unsupported(f"rope scaling 'llama3': llama.cpp supports it for llama models only, not {self.name}")
        factor, original = float(self.rope["factor"]), self.rope["original_max_position_embeddings"]
        low, high = float(self.rope["low_freq_factor"]), float(self.rope["high_freq_factor"])
        divisors = []
        for pair in range(self.head_size // 2):
            turns = original / (2 * math.pi * self.rope["rope_theta"] ** (2 * pair / self.head_size))
            smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
        return divisors


def _attention_scale(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def read(folder: Path) -> Architecture:
    """The architecture of the model in a folder. Raises Failure for one that is not exported."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kind = config.get("model_type")
        if kind not in SUPPORTED:
            raise Failure(f"{path}: model type {kind!r} cannot be exported to GGUF; supported: {', '.join(SUPPORTED)}")
        heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
        context = int(context_limit(config) or config.get("max_position_embeddings") or 2048)
        sliding = config.get("use_sliding_window", kind == "mistral") and config.get("sliding_window")
        architecture = Architecture(
            *SUPPORTED[kind],
            layers=int(config["num_hidden_layers"]),
            hidden=hidden,
            feed_forward=int(config["intermediate_size"]),
            heads=heads,
            key_heads=int(config.get("num_key_value_heads") or heads),
            head_size=int(config.get("head_dim") or hidden // heads),
            context=context,
            epsilon=float(config.get("rms_norm_eps") or 1e-6),
            vocabulary=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings")),
            rope=_rope(config),
            window=int(sliding) if sliding and sliding < context else None,
        )
        for key, value in architecture.metadata().items():
            if isinstance(value, int) and not 0 < value < 1 << 32:
                raise Unsupported(f"{key} {value}; GGUF allows 1 to {(1 << 32) - 1}")
        architecture.rope_factors()
    except FileNotFoundError:
        raise Failure(f"{path}: missing; MODEL must be a folder saved by transformers") from None
    except Unsupported as error:
        raise Failure(f"{path}: {error}") from None
    except KeyError as error:
        raise Failure(f"{path}: no {error.args[0]}") from None
    except (ValueError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise Failure(f"{path}: not a model's configuration: {error}") from None
    if config.get("hidden_act", "silu") != "silu":
        raise Failure(f"{path}: hidden_act {config['hidden_act']!r}: llama.cpp supports only silu for this model type")
    if config.get("quantization_config"):
        raise Failure(f"{path}: the weights are quantised already; export the model they were made from")
    return architecture


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """The rotary settings, with the limit before scaling."""
    rope = rope_settings(config)
    if not rope.get("original_max_position_embeddings"):
        stated = config.get("original_max_position_embeddings") or config.get("max_position_embeddings")
        rope["original_max_position_embeddings"] = stated or 2048
    part = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1
    if part != 1:
        raise ValueError(f"partial_rotary_factor {part}: GGUF's llama rotates only whole heads")
    return rope
