"""train on a terminal: what it is doing is always named, and Ctrl-C is answered."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from running import command, on_a_terminal, run, start
from tiny import conversations, make, write
from training import read_to


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    folder = tmp_path_factory.mktemp("progress")
    held = write(folder / "held.jsonl", conversations(4, seed=5))
    data = write(folder / "data.jsonl", conversations(24))
    return [
        "train",
        data,
        "--model",
        make(folder / "base"),
        "--eval",
        held,
        "--batch",
        4,
        "--lr",
        1e-3,
        "--dtype",
        "fp32",
    ]


def test_every_phase_is_named_and_steps_show_loss_speed_and_time_left(given: list[object], tmp_path: Path) -> None:
    arguments = [*given, "--out", tmp_path / "out", "--max-steps", 12, "--samples", 1]
    shown = on_a_terminal(command(*arguments), tmp_path)
    for phase in (
        "checking the run (0:00:0", "loading ", "computing the held-out loss (0:00:0", "answering samples (",
        f"saving {tmp_path / 'out'} (",
    ):  # fmt: skip
        assert f"vtools train: {phase}" in shown
    assert "of 12 steps" in shown and "loss " in shown and " tokens/s, " in shown and " left" in shown
    assert shown.rstrip().splitlines()[-1].endswith(f"; saved {tmp_path / 'out'}")


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_ctrl_c_is_answered_saves_and_the_same_command_goes_on(ranks: int, given: list[object], tmp_path: Path) -> None:
    arguments = [*given, "--out", tmp_path / "out", "--max-steps", 3000, "--nproc", ranks]
    with start(*arguments) as child:
        read_to(child, 2)
        child.send_signal(signal.SIGINT)
        rows, said = (output.decode() for output in child.communicate(timeout=120))
    assert child.returncode == -signal.SIGINT
    step = json.loads(rows.splitlines()[-1])["step"] if rows else 2
    asked, saved = said.splitlines()[-2:]
    assert asked == "vtools train: saving after this step; a second signal ends at once"
    assert saved == f"vtools train: saved at step {step} of 3000; repeat the command to resume"
    with start(*arguments) as child:
        assert f'"step":{step},"steps":3000' in child.stdout.readline().decode()
        read_to(child, step + 1)
        child.send_signal(signal.SIGINT)
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=60)
    assert child.returncode == -signal.SIGINT


def test_a_run_says_once_which_template_and_default_system_text_it_trains(given: list[object], tmp_path: Path) -> None:
    text = "one red bird that flew over seven green hills to find some cold rain"
    done = run(*given, "--out", tmp_path / "out", "--max-steps", 2, "--warmup", 0, "--system", text)
    said = "the model's own template, default system text: one red bird that flew over seven green hills to find some …"
    assert done.errors.count(said) == 1 and done.errors.count("system text") == 1


def test_nothing_is_drawn_where_there_is_no_terminal(given: list[object], tmp_path: Path) -> None:
    done = run(*given, "--out", tmp_path / "out", "--max-steps", 2, "--warmup", 0)
    assert done.returncode == 0 and "\r" not in done.errors and "loading" not in done.errors
