# ruff: noqa: TID253
"""The processes (ranks) of a run, and their communication apart from weights."""

import contextlib
import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from vtools.process import Failure

FILES_TIMEOUT = timedelta(hours=2)  # rank 0 may write a large model while the others wait
NCCL_TIMEOUT = timedelta(minutes=10)  # a GPU that waits longer for another waits for one that has died
DEFAULT_ROUTE = "198.51.100.1"  # an address of nobody (RFC 5737), which only the default route leads to
SIOCGIFADDR = 0x8915


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
    options: dict[str, Any] = {"timeout": FILES_TIMEOUT}
    if torch.cuda.is_available():
        device = torch.device("cuda", index_of(local, torch.cuda.device_count()))
        torch.cuda.set_device(device)
        options = {"timeout": NCCL_TIMEOUT, "device_id": device}  # NCCL starts at once, and so fails at once
    if size == 1:
        options |= {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    choose_interfaces()
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", **options)
    mesh = init_device_mesh(device.type, (size,))
    control, saving = (dist.new_group(backend="gloo", timeout=FILES_TIMEOUT) for _ in range(2))
    for group in (control, saving):
        group.bound_device_id = None  # inherited: their barriers would use the GPU
    return Ranks(rank, size, device, mesh, control, saving)


def index_of(local: int, visible: int) -> int:
    """The GPU of a machine's rank number `local`: its own of several, or the one that a scheduler shows to it."""
    if local < visible:
        return local
    if visible == 1:
        return 0
    raise Failure(f"LOCAL_RANK {local}: only {visible} GPUs are visible; start one rank per GPU")


def choose_interfaces() -> None:
    """Have gloo and NCCL use the network that leads to the other machines, unless the user has set it.

    By default gloo uses the address of the host's name: on many machines that is 127.0.1.1, or there is none.
    """
    if os.environ.get("WORLD_SIZE", "1") == os.environ.get("LOCAL_WORLD_SIZE", "1"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        return
    name = _interface(address_towards(os.environ["MASTER_ADDR"]))
    if name:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


def address_towards(host: str) -> str | None:
    """This machine's IPv4 address on the way to `host`; if that is this machine itself, on its default route."""
    for place in (host, DEFAULT_ROUTE):
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((place, 9))  # sends nothing
            address: str = probe.getsockname()[0]
            if host in ("localhost", "127.0.0.1") or not address.startswith("127."):
                return address
    return None


def _interface(address: str | None) -> str | None:
    """The name of the network interface with an IPv4 address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # it has no IPv4 address
                found = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()))[20:24]
                if socket.inet_ntoa(found) == address:
                    return name
    return None
