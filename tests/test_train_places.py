"""Where the ranks of `vtools train` are: which GPU is whose, by which network machines meet, and which of them meet."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pytest
import tiny
from loopback import closed_port
from running import command, execute, start

torch = pytest.importorskip("torch")

from vtools.process import Failure  # noqa: E402
from vtools.train import job, ranks  # noqa: E402
from vtools.train.request import Request  # noqa: E402

CHOSEN = """
import os, sys
from vtools.train import ranks
print(ranks.address_towards(sys.argv[1]))
ranks.choose_interfaces()
print(os.environ.get("GLOO_SOCKET_IFNAME"), os.environ.get("NCCL_SOCKET_IFNAME"))
"""
# A machine with one GPU, as far as joining goes: NCCL's place is taken by gloo.
ONE_GPU = """
import torch, torch.distributed as dist
torch.cuda.is_available = torch.cuda.is_initialized = lambda: True
torch.cuda.device_count = torch.accelerator.device_count = lambda: 1
torch.cuda.set_device = lambda device: print(device)
torch.accelerator.current_accelerator = lambda check_available=False: torch.device("cuda")
begin = dist.init_process_group
dist.init_process_group = lambda backends, **options: begin(backends.replace("nccl", "gloo"), **options)
from vtools.train import ranks
here = ranks.join()
print(dist.group.WORLD.bound_device_id)
for group in (dist.group.WORLD, here.control, here.saving):
    print(group._get_backend(torch.device("cuda")).options._timeout)
for group in (here.control, here.saving):
    dist.barrier(group=group)
print(here.gathered("word"))
"""
# A network like that of a machine: loopback, and one interface that leads to the others.
NETWORK = (
    "ip link set lo up && ip link add net7 type veth peer name net8 && ip addr add 10.1.2.3/24 dev net7"
    " && ip link set net7 up && ip link set net8 up && ip route add default via 10.1.2.1"
)


def test_a_rank_takes_its_own_gpu_or_the_only_one_that_it_is_shown() -> None:
    assert [ranks.index_of(local, 8) for local in range(8)] == list(range(8))
    assert [ranks.index_of(local, 1) for local in range(8)] == [0] * 8
    with pytest.raises(Failure, match="LOCAL_RANK 2: only 2 GPUs are visible"):
        ranks.index_of(2, 2)


def test_a_scheduler_may_show_each_rank_one_gpu_and_a_person_may_not_ask_for_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(Failure, match="--nproc 8: this machine has 1 GPU"):
        job._ranks_here(Request(nproc=8, gpu=None))
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert job._ranks_here(Request(nproc=None, gpu=None)) == 8


@pytest.mark.parametrize(
    ("host", "address", "interface"),
    [
        ("10.1.2.9", "10.1.2.3", "net7"),  # another machine of this network
        ("203.0.113.5", "10.1.2.3", "net7"),  # one beyond it
        ("10.1.2.3", "10.1.2.3", "net7"),  # this one
        ("127.0.1.1", "10.1.2.3", "net7"),  # this one, by what Debian writes into /etc/hosts
        ("localhost", "127.0.0.1", "lo"),
    ],
)
def test_machines_meet_by_the_network_that_leads_to_the_meeting_place(
    host: str, address: str, interface: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):  # chosen for the process group of this test process
        monkeypatch.delenv(name, raising=False)
    inside = ["unshare", "-rn", "sh", "-c", f'{NETWORK} && exec "$@"', "sh"]
    if not shutil.which("unshare") or execute([*inside, "true"]).returncode:
        pytest.skip("no network can be made here")
    python = command()[0]
    run = [*inside, python, "-c", CHOSEN, host]
    done = execute(run, env={"MASTER_ADDR": host, "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"})
    assert done.stdout.decode().split() == [address, interface, interface], done.errors
    done = execute(run, env={"MASTER_ADDR": host, "WORLD_SIZE": "16"})  # of a launcher that says less
    assert done.stdout.decode().split() == [address, interface, interface], done.errors
    set_by_user = {"GLOO_SOCKET_IFNAME": "mine", "NCCL_SOCKET_IFNAME": "=mine"}
    done = execute(run, env={"MASTER_ADDR": host, "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", **set_by_user})
    assert done.stdout.decode().split() == [address, "mine", "=mine"]


def test_gpus_wait_for_minutes_and_files_for_hours_and_neither_uses_the_other() -> None:
    done = execute([command()[0], "-c", ONE_GPU])
    assert done.returncode == 0, done.errors
    times = ["0:10:00", "2:00:00", "2:00:00"]
    assert done.stdout.decode().splitlines() == ["cuda:0", "cuda:0", *times, "['word']"]


def test_one_machine_needs_no_name_that_resolves() -> None:
    done = execute([command()[0], "-c", CHOSEN, "localhost"], env={"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8"})
    assert done.stdout.decode().split() == ["127.0.0.1", "lo", "None"]


@pytest.mark.slow
def test_two_runs_with_one_meeting_place_do_not_meet(tmp_path: Path) -> None:
    """Machines join the run of their own --out, so that each of two runs waits for its own second machine."""
    base, data = tiny.make(tmp_path / "base"), tiny.write(tmp_path / "data.jsonl", tiny.conversations(8))
    with closed_port() as port, contextlib.ExitStack() as stack:
        options = ["--batch", 4, "--max-steps", 1, "--warmup", 0, "--nnodes", 2, "--nproc", 1]
        options += ["--rdzv", f"localhost:{port}", "--model", base, "--data", data, "--dtype", "fp32"]
        children = [
            stack.enter_context(start("train", *options, "--out", tmp_path / out)) for out in ("a", "b", "a", "b")
        ]
        ended = [child.communicate(timeout=280) for child in children]
    assert [child.returncode for child in children] == [0] * 4, ended
    assert all((tmp_path / out / "model.safetensors").exists() for out in "ab")
