# ruff: noqa: TID253
"""Starting a run's ranks through torch elastic, forwarding signals to them, and reporting how they ended."""

import contextlib
import gc
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from vtools import process
from vtools.files.lock import lock
from vtools.process import Failure, Interrupted, TryAgain, UsageFailure
from vtools.train import rank, ranks
from vtools.train.request import Job
from vtools.train.shrinking import Shrunk
from vtools.train.signals import SAVING


class Died(Failure):
    """A rank died without reporting a reason."""


FAILURES: dict[str, type[Failure]] = {kind.__name__: kind for kind in (Failure, TryAgain, UsageFailure, Shrunk)}
LESS_MEMORY = "use more ranks, --recompute full, a lower --micro-tokens, or --lora"
DEATH_REPORT_WAIT = 3.0  # seconds


def run(job: Job) -> None:
    """Run the job on all its ranks, here or with other machines. Raises Failure, TryAgain, Interrupted."""
    while True:
        try:
            if "RANK" in os.environ:
                return _under_torchrun(job)
            if job.inputs.nproc > 1 or job.request.nnodes > 1:
                return _launch(job)
            with _joined() as here:
                return rank.work(job, here, alone=True)
        except Shrunk as shrunk:
            if "RANK" in os.environ or job.request.nnodes > 1:  # other launchers may not have ended yet
                raise TryAgain(f"{shrunk}: repeat the command") from None
            if not job.request.quiet:
                process.say("train", str(shrunk))
        if dist.is_initialized():
            dist.destroy_process_group()
        gc.collect()
        torch.cuda.empty_cache()


@contextlib.contextmanager
def _joined() -> Iterator[ranks.Ranks]:
    """The process group, for the length of the block; after a failure it is not destroyed: peers may never answer."""
    try:
        yield ranks.join()
    except torch.cuda.OutOfMemoryError as error:
        raise Failure(f"{str(error).splitlines()[0]} {LESS_MEMORY}") from None
    dist.destroy_process_group()


def _under_torchrun(job: Job) -> None:
    """One of the ranks started by torchrun, which forwards signals itself."""
    with contextlib.ExitStack() as stack:
        here = stack.enter_context(_joined())
        if here.rank == 0:
            stack.enter_context(lock(job.out))
        try:
            rank.work(job, here, alone=False)
        except Failure as failure:
            if os.environ.get("LOCAL_RANK") == "0" or isinstance(failure, Shrunk):  # the first may be well
                raise
            time.sleep(1)  # torchrun kills all ranks when one ends; give each machine's first rank time to report
            os._exit(failure.exit_code)


def _launch(job: Job) -> None:
    """Start the ranks and wait for them. SIGTERM, SIGINT or SIGHUP lets them save first; a second one ends them."""
    request = job.request
    for name in ("torch.distributed.elastic", "torch.distributed.launcher", "torch.multiprocessing.spawn"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    asked: list[int] = []

    def forward(signum: int, frame: object) -> None:
        if signum == signal.SIGUSR1:  # a rank that is still starting would die of the signal
            (job.out / "SAVE").touch()
            return
        if not asked:
            process.announce("train", SAVING)
        asked.append(signum)
        children = multiprocessing.active_children()
        for child in children:
            if child.pid:
                os.kill(child.pid, signal.SIGKILL if len(asked) > 1 else signal.SIGTERM)
        if len(children) < job.inputs.nproc:  # still waiting for other machines, or for ranks to start
            raise Interrupted(signum)

    signals = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1]
    for signum in signals:
        if signum == signal.SIGUSR1 or signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, forward)
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // job.inputs.nproc)))
    host = (request.rdzv or "localhost").rpartition(":")[0] or "localhost"
    config = LaunchConfig(
        min_nodes=request.nnodes,
        max_nodes=request.nnodes,
        nproc_per_node=job.inputs.nproc,
        run_id=f"vtools-{job.out.resolve().name}",  # two runs may meet at one place, each with its own machines
        rdzv_backend="c10d",
        rdzv_endpoint=request.rdzv or "localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
        start_method="spawn",
        signals_to_handle="",
        # By default it is the host's name, which other machines may not know.
        local_addr="localhost" if request.nnodes == 1 else ranks.address_towards(host),
    )
    try:
        elastic_launch(config, _rank)(job, os.getpid())
    except ChildFailedError as error:
        ended = _failure(error, request.verbose)
        if asked and isinstance(ended, Died | Shrunk):
            ended = TryAgain("ended before it could save again; repeat the command to resume from the last checkpoint")
    else:
        return
    if asked and asked[0] != signal.SIGTERM and isinstance(ended, TryAgain):
        process.say("train", str(ended).removeprefix("preempted and "))
        raise Interrupted(asked[0])
    raise ended


def _rank(job: Job, launcher: int) -> None:
    """A rank's process."""
    process.die_with_parent(launcher)
    for signum in (signal.SIGINT, signal.SIGHUP):  # a terminal sends these to the launcher too, which forwards them
        signal.signal(signum, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # until there is something to save
    owner = job.request.nnodes > 1 and os.environ["RANK"] == "0"
    try:
        with lock(job.out) if owner else contextlib.nullcontext(), _joined() as here:
            rank.work(job, here, alone=False)
    except (Failure, BrokenPipeError):
        raise
    except RuntimeError:
        # When a rank dies, the others fail to reach it: the launcher must see the dead rank first.
        time.sleep(DEATH_REPORT_WAIT)
        raise


def _failure(error: ChildFailedError, verbose: bool) -> Failure:
    """The error for the user: a rank's own message, or how the first one died."""
    number, first = error.get_first_failure()
    if first.exitcode == -signal.SIGPIPE:
        process.die_of(signal.SIGPIPE)
    if first.exitcode < 0:
        name = signal.Signals(-first.exitcode).name
        hint = f" (out of memory? {LESS_MEMORY})" if name == "SIGKILL" else ""
        return Died(f"rank {number} died of {name}{hint}; checkpoints are intact: repeat the command to resume")
    details: Any = first.message
    if isinstance(details, dict):
        details = details.get("message", "")
    kind, _, text = str(details).partition(": ")
    if verbose and first.error_file_data:
        print(first.error_file_data["message"]["extraInfo"]["py_callstack"], file=sys.stderr)
    if kind in FAILURES:
        return FAILURES[kind](text)
    return Died(f"rank {number}: {kind}: {text.splitlines()[0] if text else ''}; checkpoints are intact")
