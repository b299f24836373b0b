# ruff: noqa: TID253
"""Attention within each conversation of a packed row, registered with transformers under its own name."""

import functools
import importlib.util
import inspect
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from vtools.process import Failure, install
from vtools.train import cpu_attention, device

# No mask is registered under these names, so transformers builds none and passes attention_mask=None.
NAME, FLASH_NAME = "vtools_documents", "vtools_documents_flash"


def choose(wanted: str, device_type: str) -> str:
    """The name of the implementation for `auto`, `flash-attn` or `torch`. Raises Failure."""
    there = importlib.util.find_spec("flash_attn") is not None
    if wanted == "flash-attn" and not (there and device_type == "cuda"):
        raise Failure(f"--attention flash-attn needs a GPU and flash-attn: {install('flash-attn')}")
    return FLASH_NAME if there and device_type == "cuda" and wanted != "torch" else NAME


def has_kernel(device: torch.device, dtype: torch.dtype, size: int) -> bool:
    """Whether a variable-length kernel exists: in 16-bit dtypes, on GPUs since Ampere, for this head size.

    FlashAttention 2 takes sizes that are multiples of 8 up to 256; scaled_dot_product_attention takes and pads others.
    """
    new = device.type == "meta" or (device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0))
    return new and dtype in (torch.bfloat16, torch.float16) and size % 8 == 0 and size <= 256


def head_size(config: Any) -> int:
    """The size of an attention head, by a text model's configuration."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def document_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    flash: bool = False,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within documents: q, k, v [1, heads, tokens, size] to [1, tokens, heads, size].

    `cu_seq_lens_q` (int32, documents + 1) holds the start of each document, and the end. The name is transformers', so
    that flash attention takes the same batch.
    """
    if cu_seq_lens_q is None and query.shape[0] == 1:  # StableLM's layers do not hand them on
        raise Failure(
            f"{type(module).__name__}: transformers' code for this architecture does not tell its attention where"
            " documents end, so it cannot be trained with packing"
        )
    if cu_seq_lens_q is None or max_length_q is None or query.shape[0] != 1:
        raise ValueError("packed rows need cu_seq_lens_q and max_length_q, and a batch size of 1")
    unknown = [name for name in ("s_aux", "position_bias") if options.get(name) is not None]
    if unknown:
        raise Failure(
            f"{type(module).__name__}: this kind of attention ({', '.join(unknown)}) cannot be trained with packing"
        )
    if has_kernel(value.device, value.dtype, value.shape[-1]) and (flash or not (dropout or softcap)):
        kernel: Any = functools.partial(_flash, dropout=dropout, softcap=softcap) if flash else _varlen
        row = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        window = (-1 if sliding_window is None else sliding_window - 1, 0)
        return kernel(*row, cu_seq_lens_q, max_length_q, scaling, window).unsqueeze(0), None
    if value.device.type == "cpu" and value.dtype == torch.bfloat16 and not (dropout or softcap) and device.fast_bf16():
        row = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return cpu_attention.attend(*row, cu_seq_lens_q, scale, sliding_window or 0).unsqueeze(0), None
    key, value = _repeated(key, query.shape[1]), _repeated(value, query.shape[1])
    lengths = [end - start for start, end in pairwise(cu_seq_lens_q.tolist())]
    outputs = []
    for q, k, v in zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True):
        length = q.shape[2]
        banded = sliding_window is not None and length > sliding_window
        mask = _band(length, sliding_window or length, value.device) if banded or softcap else None
        if softcap:
            output = _capped(q, k, v, mask, scaling, softcap, dropout)
        else:
            output = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=not banded, dropout_p=dropout, scale=scaling
            )
        outputs.append(output.transpose(1, 2))
    return torch.cat(outputs, dim=1), None


def _capped(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, scale: Any, cap: float, drop: float
) -> torch.Tensor:
    """Attention whose scores are capped at `cap` by tanh (Gemma 2: arXiv 2408.00118, section 2), under a mask."""
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = ((scores / cap).tanh() * cap).masked_fill(~mask, -torch.inf)
    probabilities = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    return F.dropout(probabilities, drop) @ value


def _varlen(query: Any, key: Any, value: Any, starts: Any, longest: int, scale: Any, window: Any) -> Any:
    """torch's own variable-length flash attention (CUDA, fp16 or bf16)."""
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters  # they differ from one torch version to the next
    options: dict[str, Any] = {"window_size": window}
    if "window_size" not in known:
        if window != (-1, 0):
            raise Failure(f"torch {torch.__version__} has no sliding-window attention: use a newer torch")
        options = {"is_causal": True}
    if "enable_gqa" in known:
        options["enable_gqa"] = True
    else:
        key, value = _repeated(key, query.shape[1]), _repeated(value, query.shape[1])
    return varlen_attn(query, key, value, starts, starts, longest, longest, scale=scale, **options)


def _flash(
    query: Any, key: Any, value: Any, starts: Any, longest: int, scale: Any, window: Any, dropout: float, softcap: Any
) -> Any:
    """The flash-attn package, whose kernels may be newer than torch's (CUDA, fp16 or bf16)."""
    from flash_attn import flash_attn_varlen_func

    options = {"dropout_p": dropout, "softmax_scale": scale, "causal": True, "window_size": window}
    options["softcap"] = softcap or 0.0
    options["deterministic"] = torch.are_deterministic_algorithms_enabled()
    return flash_attn_varlen_func(query, key, value, starts, starts, longest, longest, **options)


def _repeated(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Key or value heads (dimension 1) repeated to the number of query heads."""
    times = heads // tensor.shape[1]
    return tensor if times == 1 else tensor.repeat_interleave(times, dim=1)


def _band(length: int, window: int, device: torch.device) -> torch.Tensor:
    """The causal mask of sliding-window attention: each position sees itself and the `window - 1` before it."""
    ones = torch.ones(length, length, dtype=torch.bool, device=device)
    return ones.tril() & ones.triu(1 - window)


AttentionInterface.register(NAME, document_attention)
AttentionInterface.register(FLASH_NAME, functools.partial(document_attention, flash=True))
