"""The jobs for SkyPilot: read by it, started through a stand-in for it, and preempted on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import tiny
from running import ROOT, begun, execute, on_path, processes_of, wait_until

SKY = ROOT / "recipes" / "sky"
QUESTIONS = str(ROOT / "recipes" / "data" / "questions.jsonl")
INTERVAL = 10  # steps between checkpoints of the rehearsed job
PARSED = """
import json, sys, sky
for file in sys.argv[1:]:
    task = sky.Task.from_yaml(file)
    offers = [[str(r.infra.cloud), r.infra.region, r.use_spot, r.job_recovery, r.max_hourly_cost] for r in task.resources]
    mounts = {place: store.mode.name for place, store in task.storage_mounts.items()}
    print(json.dumps({"offers": offers, "mounts": mounts, "volumes": list(task.volumes), "nodes": task.num_nodes, "run": task.run}))
"""


def run_section(file: Path) -> str:
    """What a job runs: the last section of its file."""
    return textwrap.dedent(file.read_text().partition("\nrun: |\n")[2])


@pytest.fixture(scope="module")
def sky_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python with SkyPilot, in an environment of its own: its click is not ours."""
    folder = tmp_path_factory.mktemp("sky")
    commands = [[sys.executable, "-m", "venv", folder], [folder / "bin/pip", "install", "-q", "skypilot>=0.14.1,<0.15"]]
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"SkyPilot cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    return str(folder / "bin/python")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_skypilot_reads_every_job_with_two_regions_spot_recovery_a_ceiling_and_what_outlives_the_machine(
    sky_python, tmp_path
):
    files = sorted(SKY.glob("*.yaml"))
    for run in ("vicuna-7b-v1.1-2048", "vicuna-13b-v1.1-2048"):  # what is uploaded must be there
        (tmp_path / "runs" / run).mkdir(parents=True)
        for name in ("train", "held", "identity", "questions", "others"):
            (tmp_path / "runs" / run / f"{name}.jsonl").touch()
    env = {"SKYPILOT_DISABLE_USAGE_COLLECTION": "1", "HOME": str(tmp_path), "PYTHONPATH": ""}
    done = execute([sky_python, "-c", PARSED, *map(str, files)], cwd=tmp_path, env=env)
    assert done.returncode == 0, done.errors
    parsed = dict(zip([file.stem for file in files], done.records, strict=True))
    assert set(parsed) == {"data", "evaluate", "serve-workers", "train", "train-nodes"}
    for name, job in parsed.items():
        assert len({region for _, region, *_ in job["offers"]}) >= 2
        spots = [spot for _, _, spot, *_ in job["offers"]]
        assert all(spots) if name != "serve-workers" else {True, False} == set(spots)  # or on demand
        for _, _, _, recovery, ceiling in job["offers"]:
            assert ceiling > 0
            assert recovery["strategy"] == "EAGER_NEXT_REGION" and recovery["recover_on_exit_codes"] == [75]
    assert {cloud for cloud, *_ in parsed["train"]["offers"]} == {"AWS", "GCP", "Azure"}
    assert len({region for _, region, spot, *_ in parsed["serve-workers"]["offers"] if spot}) >= 3
    for name in ("data", "evaluate", "train"):
        assert parsed[name]["mounts"] == {"/bucket": "MOUNT_CACHED"}
    assert parsed["train-nodes"]["volumes"] == ["/bucket"] and parsed["train-nodes"]["nodes"] == 2
    assert parsed["train"]["run"] == run_section(SKY / "train.yaml")  # what the rehearsal runs


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_skypilot_follows_the_launch_as_far_as_it_can_without_a_cloud(sky_python, tmp_path):
    run = tmp_path / "run-v1.1"
    run.mkdir()
    for name in ("train", "held"):
        (run / f"{name}.jsonl").touch()
    (run / "plan.json").write_text('{"seconds": 36000}')
    home = {"HOME": str(tmp_path), "PYTHONPATH": "", "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    command = ["bash", str(SKY / "launch.sh"), str(run), "hf:base", "vicuna-v1.1", "2048", QUESTIONS, "", "-y"]
    try:
        done = execute(command, env={**home, "SKY_HOME": str(Path(sky_python).parents[1])}, timeout=600)
    finally:
        execute([str(Path(sky_python).with_name("sky")), "api", "stop"], env=home)
    assert "YAML to run: " in done.stdout.decode()  # the options are read, and the job is
    assert done.returncode == 1 and "Usage:" not in done.errors
    assert "No in-progress managed jobs" in (run / "sky.log").read_text()  # which is no error of ours
    assert done.errors.endswith("the job run-v1-1 did not succeed; repeat the command to go on with it\n")


class Machine:
    """Spot machines, one after the other, that run a job's own run section; only the bucket outlives them."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder, self.base = folder / "machine", base
        self.out = folder / "bucket" / "tiny-v1.1"
        self.metrics = self.out / "metrics.jsonl"
        (folder / "bucket").mkdir(parents=True)
        self.path = on_path(folder / "bin")

    def started(self) -> contextlib.AbstractContextManager[subprocess.Popen]:
        """The job under way on a new machine."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for name in ("data", "home", "tmp"):
            (self.folder / name).mkdir(parents=True)
        tiny.write(self.folder / "data/train.jsonl", tiny.conversations(40))
        tiny.write(self.folder / "data/identity.jsonl", tiny.conversations(4, seed=3))
        tiny.write(self.folder / "data/held.jsonl", tiny.conversations(4, seed=5))
        env = {
            "DATA_AT": str(self.folder / "data"), "BUCKET_AT": str(self.out.parent), "SKYPILOT_TASK_ID": "task-1", "RUN": f"runs/{self.out.name}",
            "MODEL": str(self.base), "PRESET": "vicuna-v1.1", "WINDOW": "512", "SAVE_EVERY": str(INTERVAL),
            "OPTIONS": "--batch 8 --max-steps 60 --lr 5e-3 --micro-tokens 400", "PATH": self.path,
            "HOME": str(self.folder / "home"), "TMPDIR": str(self.folder / "tmp"), "VTOOLS_CACHE": str(self.folder / "cache"),
        }  # fmt: skip
        return begun(["bash", "-c", run_section(SKY / "train.yaml")], cwd=self.folder, env=env)

    def steps(self) -> list[int]:
        """The steps that were trained, in the order of the metrics: after a preemption some come again."""
        lines = self.metrics.read_text().splitlines() if self.metrics.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("}")]
        return [row["step"] for row in rows if "loss" in row]

    def finish(self) -> None:
        with self.started() as job:
            assert job.communicate(timeout=240)[1] is not None and job.returncode == 0

    def preempted(self, how: str, after: int) -> None:
        """Run the job for `after` more steps, and take the machine away."""
        known = len(self.steps())
        with self.started() as job:
            wait_until(lambda: len(self.steps()) >= known + after or job.poll() is not None, 240)
            if how == "during a save":
                parts, deadline = self.out / "tuned" / "checkpoints", time.monotonic() + 60
                while not any(parts.glob(".step-*.part")) and job.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.0003)  # a save takes less than `wait_until` sleeps
            if how == "SIGTERM, then SIGKILL":
                os.killpg(job.pid, signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    job.wait(30)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)
            job.wait(60)
            wait_until(lambda: not processes_of(job.pid))
            if how == "SIGTERM, then SIGKILL":
                assert job.returncode == 75  # which recover_on_exit_codes recovers


def lost(steps: list[int]) -> list[int]:
    """How many steps were trained again after each preemption."""
    return [max(before - after + 1, 0) for before, after in zip(steps, steps[1:], strict=False) if after <= before]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_job_preempted_ten_times_in_three_ways_ends_with_the_weights_of_one_left_alone(tmp_path):
    base = tiny.make(tmp_path / "base", dropout=0.1)  # so that the random numbers of each step count
    alone = Machine(tmp_path / "alone", base)
    alone.finish()
    expected = tiny.tree(alone.out / "tuned")
    assert alone.steps() == list(range(1, 61)) and "model.safetensors" in expected
    ways = ("SIGTERM, then SIGKILL", "SIGKILL", "during a save")
    for number in range(10):
        source = random.Random(number)
        machine = Machine(tmp_path / f"spot-{number}", base)
        for how in (ways[number % 3], ways[(number + 1) % 3]):
            machine.preempted(how, source.randint(1, 24))
        machine.finish()
        assert tiny.tree(machine.out / "tuned") == expected, number
        again = lost(machine.steps())
        print(f"{number}: {ways[number % 3]}; {ways[(number + 1) % 3]}: {again} steps trained again")
        assert max(again, default=0) <= INTERVAL


# A `sky` whose queue has the jobs that were launched, which end as the file `ends` says, and which remembers its command lines.
STAND_IN = """#!/bin/sh
cd "$(dirname "$0")"
echo "$*" >> called
case "$1 $2" in
    "jobs launch") echo "{\\"job_id\\": $(cat called | wc -l), \\"job_name\\": \\"$4\\", \\"status\\": \\"$(cat ends)\\"," \
        '"recovery_count": 3, "job_duration": 7200}' >> jobs ;;
    "jobs queue") if [ -s jobs ]; then echo "[$(paste -sd, jobs)]"; else echo "$(cat empty)" >&2 && exit 1; fi ;;
esac
"""


def test_launching_says_what_it_will_cost_and_what_it_did_cost_and_launches_what_did_not_succeed(tmp_path):
    home, run = tmp_path / "sky/bin", tmp_path / "run-v1.1"
    home.mkdir(parents=True)
    run.mkdir()
    (home / "sky").write_text(STAND_IN)
    (home / "sky").chmod(0o755)
    (home / "empty").write_text("sky.exceptions.ClusterNotUpError: No in-progress managed jobs.")  # as `sky` says it
    (run / "plan.json").write_text('{"seconds": 36000}')
    (tmp_path / "prices.json").write_text('{"gpu": {"a100-80g": 2, "a100-80g-spot": 1}}')
    env = {
        "SKY_HOME": str(home.parent),
        "PRICES": str(tmp_path / "prices.json"),
        "BUCKET": "mine",
        "OPENAI_API_KEY": "",
    }
    command = ["bash", str(SKY / "launch.sh"), str(run), "hf:base", "vicuna-v0", "2048", QUESTIONS, "", "-y"]

    def launches() -> list[str]:
        return [line for line in (home / "called").read_text().splitlines() if line.startswith("jobs launch")]

    (home / "empty").rename(home / "failed")
    done = execute(command, env=env)
    assert done.returncode == 1 and not launches()  # without a queue, nobody knows what runs
    (home / "failed").rename(home / "empty")
    (home / "ends").write_text("FAILED")
    done = execute(command, env=env)
    assert done.returncode == 1 and "the job run-v1-1 did not succeed; repeat the command" in done.errors
    assert "After: FAILED, 3 recoveries, 2.0 hours" in done.errors
    (home / "ends").write_text("SUCCEEDED")
    said = [execute(command, env=env).errors for _ in range(2)]
    assert said[0] == said[1] and len(launches()) == 2
    assert "Before: about 10.0 hours of 8 x a100-80g-spot, $80.00" in said[0]
    assert "After: SUCCEEDED, 3 recoveries, 2.0 hours of 8 x a100-80g-spot, $16.00" in said[0]
    assert "Before: about 10.0 hours of 8 x a100-80g, $160.00" in execute(command, env=env | {"ON_DEMAND": "1"}).errors
    for words in ("-n run-v1-1", f"--env RUN={run}", "--env PRESET=vicuna-v0", "--env BUCKET=mine", "-y", "train.yaml"):
        assert words in launches()[-1]
    judged = execute(command, env=env | {"OPENAI_API_KEY": "sk-000", "VTOOLS_JUDGE": "gpt-4"})
    assert judged.returncode == 0 and len(launches()) == 3 and "sk-000" not in "".join(launches())
    for words in ("-n run-v1-1-evaluate", "--secret OPENAI_API_KEY", "--env VTOOLS_JUDGE=gpt-4", "evaluate.yaml"):
        assert words in launches()[-1]
    assert (run / "questions.jsonl").read_text() == Path(QUESTIONS).read_text() and not (
        run / "others.jsonl"
    ).read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_job_that_evaluates_ends_with_the_report_of_the_model_in_the_bucket(installed, tmp_path, smollm2):
    """Its own run section, on what a smoke run of a recipe has put into the bucket."""
    bucket = tmp_path / "bucket"
    done = execute(
        ["bash", f"{installed['VTOOLS_RECIPES']}/vicuna-7b.sh", "", "", str(bucket / "run-v1.1")],
        cwd=tmp_path,
        env=installed,
        timeout=600,
    )
    assert done.returncode == 0, done.errors
    for name in ("report.txt", "judgments.jsonl", "answers-base.jsonl", "answers-tuned.jsonl"):
        (bucket / "run-v1.1" / name).unlink()
    shutil.copy(bucket / "run-v1.1/questions.jsonl", tmp_path)
    (tmp_path / "others.jsonl").touch()
    env = installed | {"BUCKET_AT": str(bucket), "DATA_AT": str(tmp_path), "RUN": "runs/run-v1.1", "MODEL": smollm2}
    done = execute(["bash", "-c", run_section(SKY / "evaluate.yaml")], cwd=tmp_path, env=env, timeout=600)
    assert done.returncode == 0, done.errors
    assert "The blog, GPT-4" in done.stdout.decode()
    assert len((bucket / "run-v1.1/answers-tuned.jsonl").read_text().splitlines()) == 4
