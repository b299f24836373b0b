# ruff: noqa: TID253
"""The processes (ranks) of a run, and their communication apart from weights."""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

GROUP_TIMEOUT = timedelta(hours=2)  # rank 0 may write a large model while the others wait


@dataclass(frozen=True)
class Ranks:
    """This process as one rank of the run."""

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh
    control: dist.ProcessGroup  # gloo, on the CPU: flags and sums
    saving: dist.ProcessGroup  # gloo: for checkpoints, written in parallel with training

    def sums(self, *values: float) -> list[float]:
        """The sum of each value over all ranks, in float64."""
        return self._reduced(values, torch.float64, dist.ReduceOp.SUM)

    def largest(self, *values: int) -> list[int]:
        """The maximum of each value over all ranks, such as whether any was asked to end."""
        return self._reduced(values, torch.int64, dist.ReduceOp.MAX)

    def _reduced(self, values: Any, dtype: torch.dtype, operation: Any) -> list[Any]:
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=dtype)
        dist.all_reduce(tensor, operation, group=self.control)
        return tensor.tolist()

    def gathered(self, value: Any) -> list[Any]:
        """Every rank's value, in the order of the ranks."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def wait(self) -> None:
        """Wait until all ranks are here (a barrier)."""
        if self.size > 1:
            dist.barrier(group=self.control)


def join() -> Ranks:
    """Join the run described by the environment (set by torch elastic or torchrun), or be a single rank."""
    places = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    rank, size, local = (int(os.environ.get(name, default)) for name, default in places.items())
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    options: dict[str, Any] = {"timeout": GROUP_TIMEOUT}
    if size == 1:
        options |= {"store": dist.HashStore(), "rank": 0, "world_size": 1}
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # so that a host with an unresolvable name can train
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", **options)
    mesh = init_device_mesh(device.type, (size,))
    control, saving = (dist.new_group(backend="gloo", timeout=GROUP_TIMEOUT) for _ in range(2))
    return Ranks(rank, size, device, mesh, control, saving)
