"""A training run that is killed, preempted or torn, and given again, ends with the weights of one left alone."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import tiny

pytest.importorskip("torch")
pytest.importorskip("transformers")


class Job:
    """One training command, and the model that it makes when nothing disturbs it."""

    def __init__(self, folder: Path) -> None:
        base = tiny.make(folder / "base", dropout=0.1)  # so that the random numbers of each step count
        self.data = tiny.write(folder / "data.jsonl", tiny.conversations(40))
        held = tiny.write(folder / "held.jsonl", tiny.conversations(4, seed=5))
        self.arguments: list[object] = ["--model", base, "--data", self.data, "--eval", held, "--eval-every", 10]
        self.arguments += ["--batch", 8, "--max-steps", 60, "--lr", 5e-3, "--micro-tokens", 200]
        self.arguments += ["--save-every", 10]
        done = self.finish(folder / "alone")
        self.metrics = exact(done.stdout)
        self.model = tiny.tree(folder / "alone")

    def finish(self, out: Path, *more: object) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            tiny.command(*self.arguments, "--out", out, *more), capture_output=True, env=tiny.environment(), timeout=240
        )
        assert done.returncode == 0, done.stderr.decode()
        return done

    @contextlib.contextmanager
    def started(self, out: Path) -> Iterator[subprocess.Popen[bytes]]:
        """The command under way, in a session of its own, its metrics read through a pipe."""
        child = subprocess.Popen(
            tiny.command(*self.arguments, "--out", out),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=tiny.environment(),
            start_new_session=True,
        )
        try:
            yield child
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.communicate()


def exact(stdout: bytes) -> dict[tuple[int, str], Any]:
    """The part of the metrics that has no clock in it, by step and kind."""
    found = {}
    for line in stdout.splitlines():
        row = json.loads(line)
        for key in ("loss", "grad_norm", "lr", "eval_loss"):
            if key in row:
                found[row["step"], key] = row[key]
    return found


def read_to(child: subprocess.Popen[bytes], step: int) -> None:
    """Read metrics up to that of a step."""
    assert child.stdout is not None
    for line in child.stdout:
        row = json.loads(line)
        if row["step"] >= step and "loss" in row:
            return
    raise AssertionError(f"the run ended before step {step}")


def processes_of(session: int) -> list[str]:
    """Living processes of a session, by /proc."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, own = path.read_text().rpartition(")")[2].split()[:4]
            if int(own) == session and state != "Z":
                found.append(path.parent.name)
    return found


def saved(out: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (out / "checkpoints").glob("step-*"))


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return Job(tmp_path_factory.mktemp("job"))


def test_a_run_killed_between_two_checkpoints_leaves_no_process_and_resumes_to_the_same_bytes(
    job: Job, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with job.started(out) as child:
        read_to(child, 23)
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait(timeout=60) == -signal.SIGKILL
        assert processes_of(child.pid) == []
    assert saved(out) and max(saved(out)) >= 20 and len(saved(out)) <= 2
    assert not (out / "vtools.json").exists()
    done = job.finish(out)
    assert b"resumed at" in done.stderr
    assert tiny.tree(out) == job.model
    resumed = exact(done.stdout)
    assert resumed and resumed == {key: job.metrics[key] for key in resumed}


@pytest.mark.slow
def test_sigterm_saves_and_exits_75_and_the_rerun_ends_with_the_same_bytes(job: Job, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for step in (13, 37):  # twice in a row
        with job.started(out) as child:
            read_to(child, step)
            child.terminate()
            _, stderr = child.communicate(timeout=120)
        assert child.returncode == 75, stderr.decode()
        assert b"preempted and saved" in stderr and b"Traceback" not in stderr
        assert max(saved(out)) >= step
    done = job.finish(out)
    assert tiny.tree(out) == job.model
    assert min(step for step, key in exact(done.stdout) if key == "loss") > 37


@pytest.mark.slow
def test_a_request_by_signal_or_by_file_saves_and_the_run_goes_on(job: Job, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with job.started(out) as child:
        read_to(child, 12)
        child.send_signal(signal.SIGUSR1)
        read_to(child, 15)
        by_signal = [step for step in saved(out) if step % 10]
        read_to(child, 22)
        (out / "SAVE").touch()
        read_to(child, 26)
        by_file = [step for step in saved(out) if step > 20 and step % 10]
        _, stderr = child.communicate(timeout=120)
    assert child.returncode == 0, stderr.decode()
    assert by_signal and by_file
    assert tiny.tree(out) == job.model  # and SAVE is gone


@pytest.mark.slow
def test_torn_checkpoints_are_passed_over(job: Job, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with job.started(out) as child:
        read_to(child, 31)
        child.kill()
        child.wait(timeout=60)
    newest, older = sorted(saved(out), reverse=True)
    folder = out / "checkpoints"
    state = folder / f"step-{newest}" / "state.safetensors"
    os.truncate(state, state.stat().st_size // 2)
    (folder / "step-999").mkdir()  # no note: never finished
    shutil.copytree(folder / f"step-{older}", folder / ".step-50.part")
    done = job.finish(out, "--keep", 2)
    assert f"resumed at {older}".encode() in done.stderr
    shutil.rmtree(folder)
    assert tiny.tree(out) == job.model


@pytest.mark.slow
def test_a_run_resumed_with_other_data_or_settings_is_refused_and_names_the_difference(
    job: Job, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with job.started(out) as child:
        read_to(child, 11)
        child.kill()
        child.wait(timeout=60)
    kept = saved(out)

    def refused(*more: object) -> str:
        done = subprocess.run(
            tiny.command(*job.arguments, "--out", out, *more), capture_output=True, env=tiny.environment(), timeout=240
        )
        assert done.returncode == 1 and b"Traceback" not in done.stderr and not done.stdout
        return done.stderr.decode()

    other = tiny.write(tmp_path / "other.jsonl", tiny.conversations(40, seed=1))
    assert "data was" in refused("--data", other)
    assert "--seed was 0, now 3" in refused("--seed", 3) and "--lr was" in refused("--lr", 1e-4)
    assert saved(out) == kept
    job.finish(out, "--resume", "never")
    assert tiny.tree(out) == job.model
