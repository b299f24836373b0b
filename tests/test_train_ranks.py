"""`vtools train` on several ranks: the same numbers as on one, and nobody left behind when one of them dies."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from loopback import closed_port
from running import begun, command, execute, good, processes_of, ranks_of, start, wait_until, with_options
from training import read_to


class Runs:
    """Training commands over the same base and data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = tiny.make(folder / "base")
        self.data = tiny.write(folder / "data.jsonl", tiny.conversations(40))
        self.held = tiny.write(folder / "held.jsonl", tiny.conversations(5, seed=5))

    def arguments(self, out: str, *more: object) -> list[object]:
        given = [
            "train", "--model", self.base, "--data", self.data, "--eval", self.held, "--out", self.folder / out, "--batch", 8,
            "--lr", 1e-3, "--micro-tokens", 200, "--save-dtype", "fp32",
        ]  # fmt: skip
        return with_options(given, *more)

    @contextlib.contextmanager
    def started(self, out: str, *more: object) -> Iterator[subprocess.Popen]:
        """A run under way, past its first step."""
        with start(*self.arguments(out, *more)) as child:
            read_to(child, 1)
            yield child


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-6), pytest.param("bf16", 1e-3, marks=pytest.mark.slow)])
def test_two_ranks_have_the_losses_and_the_weights_of_one(dtype: str, tolerance: float, runs: Runs) -> None:
    one, two = (
        good(*runs.arguments(f"{dtype}-{count}", "--dtype", dtype, "--max-steps", 6, "--nproc", count))
        for count in (1, 2)
    )
    assert len(one) == len(two) == 9
    for row, other in zip(one, two, strict=True):
        for key in ("loss", "eval_loss"):
            if key in row:
                assert other[key] == pytest.approx(row[key], rel=tolerance), (row["step"], key)
        for key in ("step", "epoch", "lr", "tokens", "trained_tokens"):
            assert other.get(key) == row.get(key)
    from safetensors.torch import load_file

    first, second = (load_file(runs.folder / f"{dtype}-{count}" / "model.safetensors") for count in (1, 2))
    assert first.keys() == second.keys()
    for name, weight in first.items():
        assert (weight - second[name]).abs().max() <= tolerance, name
    abouts = [json.loads((runs.folder / f"{dtype}-{count}" / "vtools.json").read_text()) for count in (1, 2)]
    assert abouts[0]["run"] == abouts[1]["run"]


@pytest.mark.slow
def test_torchrun_starts_the_same_run(runs: Runs) -> None:
    python, *rest = command(*runs.arguments("torchrun", "--dtype", "fp32", "--max-steps", 3))
    launcher = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = execute([*launcher, *rest], env={"GLOO_SOCKET_IFNAME": "lo"})
    assert done.returncode == 0, done.errors
    assert [row["step"] for row in done.records if "loss" in row] == [1, 2, 3]
    assert (runs.folder / "torchrun" / "vtools.json").exists()


@pytest.mark.slow
def test_two_machines_that_meet_train_one_run_and_refuse_to_train_two(runs: Runs, tmp_path: Path) -> None:
    other = tiny.write(tmp_path / "other.jsonl", tiny.conversations(40, seed=3))
    for out, data in (("nodes", runs.data), ("unlike", other)):
        with closed_port() as port, contextlib.ExitStack() as stack:
            arguments = ["--nnodes", 2, "--nproc", 1, "--rdzv", f"localhost:{port}", "--max-steps", 2]
            first, second = (
                stack.enter_context(
                    start(*runs.arguments(out, *arguments, "--data", file), env={"GLOO_SOCKET_IFNAME": "lo"})
                )
                for file in (runs.data, data)
            )
            outputs = [child.communicate(timeout=280) for child in (first, second)]
        messages = b"".join(stderr for _, stderr in outputs).decode()
        if out == "nodes":
            assert first.returncode == second.returncode == 0, messages
            assert b"".join(stdout for stdout, _ in outputs).count(b'"loss"') == 2  # only rank 0 speaks
        else:
            assert first.returncode == second.returncode == 1
            assert "given different runs: data was" in messages and "Traceback" not in messages


def test_a_rank_that_dies_ends_the_run_with_a_word_about_it_and_no_process_left(runs: Runs) -> None:
    with runs.started("died", "--max-steps", 5000, "--nproc", 2) as child:
        os.kill(ranks_of(child.pid)[1], signal.SIGKILL)
        _, stderr = child.communicate(timeout=120)
        assert child.returncode == 1
        message = stderr.decode()
        assert "died of SIGKILL" in message and "repeat the command to resume" in message and "Traceback" not in message
        wait_until(lambda: not processes_of(child.pid))


@pytest.mark.slow
def test_ranks_die_with_their_launcher(runs: Runs) -> None:
    with runs.started("orphans", "--max-steps", 5000, "--nproc", 2) as child:
        assert len(ranks_of(child.pid)) == 2
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait(timeout=60) == -signal.SIGKILL
        wait_until(lambda: not processes_of(child.pid))


@pytest.mark.parametrize(("signum", "ends"), [(signal.SIGTERM, 75), (signal.SIGINT, -signal.SIGINT)])
def test_a_signal_lets_all_ranks_save_first(signum: signal.Signals, ends: int, runs: Runs) -> None:
    out = f"asked-{signum.name}"
    with runs.started(out, "--max-steps", 5000, "--nproc", 2) as child:
        child.send_signal(signum)
        _, stderr = child.communicate(timeout=120)
        assert child.returncode == ends, stderr.decode()
        assert (b"preempted and saved at step" in stderr) == (signum == signal.SIGTERM)
        wait_until(lambda: not processes_of(child.pid))
    (saved,) = (runs.folder / out / "checkpoints").iterdir()
    assert json.loads((saved / "note.json").read_text())["step"] >= 1


def status(pid: int, key: str) -> list[str]:
    """What /proc says about each thread of a process."""
    paths = Path(f"/proc/{pid}/task").glob("*/status")
    return [re.search(rf"^{key}:\s*(\w+)", path.read_text(), re.MULTILINE)[1] for path in paths]


def stopped(pid: int) -> bool:
    """Whether all threads have stopped: one that has not may still take a signal."""
    return set(status(pid, "State")) == {"T"}


def pending(pid: int, signum: int) -> bool:
    """Whether a signal has been sent to a process that is stopped."""
    return bool(int(status(pid, "ShdPnd")[0], 16) >> signum - 1 & 1)


@pytest.mark.slow
def test_a_second_signal_does_not_wait_for_the_save(runs: Runs) -> None:
    with runs.started("impatient", "--max-steps", 5000, "--nproc", 2) as child:
        ranks = ranks_of(child.pid)
        for rank in ranks:
            os.kill(rank, signal.SIGSTOP)  # a save that takes its time
        wait_until(lambda: all(map(stopped, ranks)))
        child.send_signal(signal.SIGTERM)
        wait_until(lambda: all(pending(rank, signal.SIGTERM) for rank in ranks))
        child.send_signal(signal.SIGTERM)
        _, stderr = child.communicate(timeout=120)
        assert child.returncode == 75 and b"Traceback" not in stderr
        wait_until(lambda: not processes_of(child.pid))


def test_a_run_whose_parent_dies_saves_and_ends(runs: Runs) -> None:
    metrics, script = runs.folder / "orphan.jsonl", '"$@" & echo $! >&2; wait'
    orphan = command(*runs.arguments("orphan", "--max-steps", 100_000))
    with open(metrics, "wb") as stdout, begun(["sh", "-c", script, "sh", *orphan], stdout=stdout) as shell:
        launcher = Path(f"/proc/{int(shell.stderr.readline())}")
        wait_until(lambda: b'"loss"' in metrics.read_bytes() or not launcher.exists())
        shell.kill()
        assert b"preempted and saved at step" in shell.stderr.read()  # to the end: the launcher has gone
    assert list((runs.folder / "orphan" / "checkpoints").glob("step-*/note.json"))
