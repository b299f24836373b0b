"""The machine: thread and allocator settings, peak speed of GPUs and CPUs, memory available to a rank."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vtools.process import Failure

if TYPE_CHECKING:
    import torch

# Dense (not sparse) bf16 FLOP/s with fp32 accumulation (fp16 on V100 and T4), from the vendors' datasheets, and the
# approximate GiB that torch finds.
GPUS = {
    "B200": (2250e12, 178), "H200": (989e12, 139), "GH200": (989e12, 94), "H100 PCIe": (756e12, 79),
    "H100 NVL": (835e12, 93), "H100": (989e12, 79), "H20": (148e12, 95), "A100": (312e12, 39), "A100-80G": (312e12, 79),
    "A40": (149.7e12, 44), "A10G": (70e12, 22), "A10": (125e12, 22), "L40S": (362e12, 44), "L40": (181e12, 44),
    "L4": (121e12, 22), "RTX 5090": (209.5e12, 31), "RTX 4090": (165.2e12, 23), "RTX 3090": (71e12, 23),
    "RTX A6000": (154.8e12, 47), "RTX 6000 Ada": (364e12, 47), "V100": (125e12, 15), "V100-32G": (125e12, 31),
    "T4": (65e12, 14), "MI300X": (1307e12, 191), "MI250X": (191.5e12, 63),
}  # fmt: skip
ASSUMED_MFU = 0.45  # of a GPU's datasheet peak
ASSUMED_SHARE = 0.5  # of a CPU's speed in one matrix product


SPINS = "1000"  # about 20 microseconds: longer than the gap between two operations, far shorter than a time slice
# About 0.4 milliseconds, for the workers of `serve`, which share the processors out. With 2 they are 3 % quicker on an
# idle machine, but half as quick where another program keeps one of two processors busy.
LONG_SPINS = "20000"
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
REPEATED = "AUTO,STRICT"  # MKL's kernels that do not depend on the number of rows


def spin(count: str) -> None:
    """Make waiting OpenMP threads spin so often, unless the user has set it. Call before torch is imported.

    By default they spin for milliseconds, and on a busy machine take that time from threads with work to do.
    """
    if all(os.environ.get(name) in (None, SPINS) for name in WAITING):
        os.environ["GOMP_SPINCOUNT"] = count


def repeat_products() -> None:
    """Make a row of a matrix product have the same bits whatever rows are beside it, unless the user has set it.

    It holds for MKL on Intel processors, in float32, and costs a third of the speed of a product of one row, nothing of
    one of sixteen. Call before torch is imported.
    """
    os.environ.setdefault("MKL_CBWR", REPEATED)


def products_repeat() -> bool:
    """Whether `repeat_products` is in force."""
    return os.environ.get("MKL_CBWR") == REPEATED


def tune_malloc(mapped: int, kept: int) -> None:
    """Have glibc mmap blocks from `mapped` bytes up (at most 32 MiB), and keep `kept` freed bytes.

    What is mapped or given back costs a page fault for every 4 KiB when it is needed again; a heap has gaps.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has no mallopt and needs none
    if mallopt is not None:
        m_trim_threshold, m_mmap_threshold = -1, -3
        mallopt(m_mmap_threshold, mapped)
        mallopt(m_trim_threshold, kept)


def gpu(name: str) -> tuple[float, int]:
    """Peak FLOP/s and bytes of memory of a GPU, by torch's name for it or a shorter one. Raises Failure."""
    patterns = {known: r".*\b".join(re.split("[ -]", known)) for known in GPUS}
    found = [known for known, pattern in patterns.items() if re.search(rf"\b{pattern}B?\b", name, re.IGNORECASE)]
    if not found:
        raise Failure(f"--gpu {name}: unknown; choose one of {', '.join(sorted(GPUS))}")
    peak, size = GPUS[max(found, key=len)]
    return peak, size << 30


def peak_flops(device_name: str) -> float | None:
    """A GPU's dense bf16 peak in FLOP/s; None if unknown."""
    with contextlib.suppress(Failure):
        return gpu(device_name)[0]
    return None


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; without importing torch."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in map(str.strip, named.split(",")) if name and name != "-1"]
    return [str(number) for number in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def available_memory(device: torch.device, processes: int = 1) -> int:
    """Bytes that a rank may use: what others left of a GPU's memory, or 1 / `processes` of the host's free memory."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0]) + torch.cuda.memory_reserved(device)
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return min([free, *_control_groups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))]) // processes


def _control_groups(own: Path, mounted: Path) -> Iterator[int]:
    """Bytes that each control group around this process still allows (cgroup v2 and v1)."""
    files = {
        "": ("memory.max", "memory.current", "inactive_file"),
        "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    }
    for line in own.read_text().splitlines() if own.exists() else []:
        _, controller, path = line.split(":", 2)
        if controller not in files:
            continue
        top, (most, used, cached) = mounted / controller, files[controller]
        for folder in [top / path[1:], *(top / path[1:]).parents]:
            with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
                free = int((folder / most).read_text()) - int((folder / used).read_text())
                # Page cache counts as used, but is freed on demand.
                stat = dict(entry.split() for entry in (folder / "memory.stat").read_text().splitlines())
                yield max(0, free + int(stat.get(cached, 0)))


def speed(device: torch.device, dtype: torch.dtype) -> tuple[float | None, float]:
    """Peak FLOP/s (a GPU's datasheet, or measured on this CPU) and the share of it that training is assumed to reach.

    None for fp32 on a GPU, which runs without tensor cores. Processes on one CPU share its peak.
    """
    import torch

    if device.type == "cuda":
        return None if dtype == torch.float32 else peak_flops(torch.cuda.get_device_name(device)), ASSUMED_MFU
    width, best = 512, float("inf")
    left, right = torch.ones(width, width, dtype=dtype), torch.ones(width, width, dtype=dtype)
    began = time.perf_counter()
    while time.perf_counter() - began < 0.2:
        start = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - start)
    return 2 * width**3 / best, ASSUMED_SHARE
