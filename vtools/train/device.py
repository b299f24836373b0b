# ruff: noqa: TID253
"""A device's compute dtype, determinism and peak memory."""

import ctypes
import functools
import os
import resource
from typing import Any

import torch

from vtools import machine
from vtools.models.configs import TORCH_NAMES

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, known_as) for name, known_as in TORCH_NAMES.items()}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def prepare(device: torch.device) -> None:
    """Make runs deterministic: no kernels that add in varying order."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is only repeatable with a fixed workspace
    else:
        machine.tune_malloc(mapped=32 << 20, kept=1 << 30)  # `tidy` gives back what is free, once per step


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bf16 where the hardware supports it, fp16 on older GPUs, fp32 on other CPUs."""
    if name != "auto":
        return DTYPES[name]
    if device.type == "cuda":
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.float16
        return torch.bfloat16
    return torch.bfloat16 if fast_bf16() else torch.float32


@functools.cache
def fast_bf16() -> bool:
    """Whether this CPU has instructions for bf16: without them oneDNN emulates it, slower than fp32."""
    emulated = torch.backends.cpu.get_cpu_capability().startswith("AVX") and not torch.cpu._is_avx512_bf16_supported()
    return torch.ops.mkldnn._is_mkldnn_bf16_supported() and not emulated


def tidy(device: torch.device) -> None:
    """Return free heap memory to the system: with rows of varying length the heap would grow during the whole run."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if device.type == "cpu" and trim is not None:
        trim(0)


def uncompiled() -> Any:
    """A context without compilation, for what runs once: it would count towards the compiler's limit per layer."""
    return torch.compiler.set_stance("force_eager")


def peak_memory(device: torch.device) -> int:
    """Peak memory of this rank in bytes: the device's, or on the CPU the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
