"""A training run that is killed, preempted or torn, and given again, ends with the weights of one left alone."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
from running import Result, begun, good, processes_of, ranks_of, run, start, wait_until, with_options
from training import finish, read_to


class Job:
    """One training command, and the model that it makes when nothing disturbs it."""

    def __init__(self, folder: Path, *more: object) -> None:
        base = tiny.make(folder / "base", dropout=0.1)  # so that the random numbers of each step count
        self.data = tiny.write(folder / "data.jsonl", tiny.conversations(40))
        held = tiny.write(folder / "held.jsonl", tiny.conversations(4, seed=5))
        self.arguments: list[object] = [
            "train",
            "--model",
            base,
            "--data",
            self.data,
            "--eval",
            held,
            "--eval-every",
            10,
        ]
        self.arguments += ["--batch", 8, "--max-steps", 60, "--lr", 5e-3, "--micro-tokens", 200]
        self.arguments = with_options([*self.arguments, "--save-every", 10], *more)
        done = self.finish(folder / "alone")
        self.metrics = exact(done.records)
        self.model = tiny.tree(folder / "alone")

    def finish(self, out: Path, *more: object) -> Result:
        return finish(*self.arguments[1:], "--out", out, *more)

    def started(self, out: Path) -> contextlib.AbstractContextManager[subprocess.Popen]:
        """The command under way."""
        return start(*self.arguments, "--out", out)


def exact(rows: list[dict[str, Any]]) -> dict[tuple[int, str], Any]:
    """The part of the metrics that has no clock in it, by step and kind."""
    found = {}
    for row in rows:
        for key in ("loss", "grad_norm", "lr", "eval_loss"):
            if key in row:
                found[row["step"], key] = row[key]
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
    resumed = exact(done.records)
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
    assert min(step for step, key in exact(done.records) if key == "loss") > 37


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
    (state,) = (folder / f"step-{newest}").glob("*.distcp")
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
        done = run(*with_options(job.arguments, "--out", out, *more))
        assert done.returncode == 1 and "Traceback" not in done.errors and not done.stdout
        return done.errors

    other = tiny.write(tmp_path / "other.jsonl", tiny.conversations(40, seed=1))
    assert "data was" in refused("--data", other)
    assert "--seed was 0, now 3" in refused("--seed", 3) and "--lr was" in refused("--lr", 1e-4)
    assert saved(out) == kept
    job.finish(out, "--resume", "never")
    assert tiny.tree(out) == job.model


# Many times, on two ranks


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A longer run on two ranks that saves every few steps."""
    return Job(tmp_path_factory.mktemp("pair"), "--nproc", 2, "--max-steps", 400, "--save-every", 7, "--eval-every", 90)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("victim", ["launcher", "rank", "asked"])
def test_ten_ends_at_random_moments_change_nothing(victim: str, pair: Job, tmp_path: Path) -> None:
    out = tmp_path / "out"
    moments = random.Random(victim)
    print("moments drawn from the seed", victim)
    for _ in range(10):
        with pair.started(out) as child:
            read_to(child, 1)
            time.sleep(moments.uniform(0, 0.6))
            if victim == "launcher":
                child.kill()
            elif victim == "rank":
                os.kill(moments.choice(ranks_of(child.pid)), signal.SIGKILL)
            else:
                child.terminate()
            _, stderr = child.communicate(timeout=120)
            assert child.returncode == {"launcher": -signal.SIGKILL, "rank": 1, "asked": 75}[victim], stderr.decode()
            assert b"Traceback" not in stderr
            wait_until(lambda: not processes_of(child.pid))
        assert not (out / "vtools.json").exists(), "the run ended before it could be disturbed: make it longer"
    done = pair.finish(out)
    assert tiny.tree(out) == pair.model
    resumed = exact(done.records)
    assert resumed and resumed == {key: pair.metrics[key] for key in resumed}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ends_during_a_save_change_nothing(pair: Job, tmp_path: Path) -> None:
    out = tmp_path / "out"
    caught = 0
    for victim in ("launcher", "rank", "launcher", "rank"):
        with pair.started(out) as child:
            read_to(child, 1)
            parts = out / "checkpoints"
            for _ in range(100_000):  # a save takes less than `wait_until` sleeps
                if any(parts.glob(".step-*.part")):
                    break
                time.sleep(0.0005)
            os.kill(child.pid if victim == "launcher" else ranks_of(child.pid)[-1], signal.SIGKILL)
            child.communicate(timeout=120)
            wait_until(lambda: not processes_of(child.pid))
        caught += any(parts.glob(".step-*.part"))
    assert caught, "no save was cut off"
    pair.finish(out)
    assert tiny.tree(out) == pair.model


@pytest.mark.slow
def test_a_run_goes_on_with_the_same_losses_on_more_and_on_fewer_ranks(tmp_path: Path) -> None:
    base = tiny.make(tmp_path / "base")  # without dropout, whose random numbers are each rank's own
    data = tiny.write(tmp_path / "data.jsonl", tiny.conversations(40))
    arguments = [
        "train",
        "--model",
        base,
        "--data",
        data,
        "--batch",
        8,
        "--max-steps",
        24,
        "--lr",
        1e-3,
        "--dtype",
        "fp32",
    ]

    def losses(out: str, *more: object) -> dict[int, float]:
        rows = good(*arguments, "--out", tmp_path / out, *more)
        return {row["step"]: row["loss"] for row in rows if "loss" in row}

    alone = losses("alone")
    for first, second in ((1, 2), (2, 1)):
        out = f"{first}-{second}"
        with start(*arguments, "--out", tmp_path / out, "--nproc", first, "--save-every", 10) as child:
            read_to(child, 12)
            child.terminate()
            child.communicate(timeout=120)
        assert child.returncode == 75
        rest = losses(out, "--nproc", second)
        assert rest and min(rest) > 12 and max(rest) == 24
        for step, loss in rest.items():
            assert loss == pytest.approx(alone[step], rel=1e-5)


@pytest.mark.slow
def test_a_preempted_small_model_is_saved_and_says_how_soon(smollm2: str, tmp_path: Path) -> None:
    words = ["some bird", "a cat sat", "hills and rain", "one more mat"]
    records = [
        {"id": str(index), "messages": [{"role": "user", "content": word}, {"role": "assistant", "content": word * 50}]}
        for index, word in enumerate(words * 4)
    ]
    data = tiny.write(tmp_path / "data.jsonl", records)
    arguments = ["--model", smollm2, "--data", data, "--out", tmp_path / "out", "--batch", 4, "--epochs", 500]
    with start("train", *arguments, env={"OMP_NUM_THREADS": "2"}) as child:
        read_to(child, 1)
        child.terminate()
        before = time.monotonic()
        _, stderr = child.communicate(timeout=120)
        seconds = time.monotonic() - before
    assert child.returncode == 75, stderr.decode()
    assert saved(tmp_path / "out")
    print(f"SIGTERM to saved: {seconds:.1f} s")


# `vtools`, which says when it begins an evaluation.
EVALUATING = """
import sys
from vtools import cli
from vtools.train import loop

held_out_loss = loop.Trainer._held_out_loss

def told(self, corpus):
    print("evaluating at", self.result.step, file=sys.stderr, flush=True)
    return held_out_loss(self, corpus)

loop.Trainer._held_out_loss = told
cli.main()
"""


@pytest.mark.slow
def test_a_run_asked_to_end_during_an_evaluation_saves_what_it_had_trained(tmp_path: Path) -> None:
    held = tiny.write(tmp_path / "held.jsonl", tiny.conversations(1500, seed=6))
    job = Job(tmp_path / "job", "--eval", held, "--max-steps", 20)
    out = tmp_path / "out"
    evaluating = [sys.executable, "-c", EVALUATING, *map(str, job.arguments), "--out", str(out)]
    with begun(evaluating) as child:
        assert b"evaluating at 10\n" in iter(child.stderr.readline, b"")
        child.terminate()
        stdout, stderr = child.communicate(timeout=120)
    assert child.returncode == 75, stderr.decode()
    rows = map(json.loads, stdout.splitlines())
    assert [row["step"] for row in rows if "eval_loss" in row] == [0] and saved(out) == [10]
    job.finish(out)
    assert tiny.tree(out) == job.model
