"""The quickstart as a stranger runs it, and then everything that the README shows, in its folder."""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import readme
from conftest import DATA
from loopback import Server, judge_reply
from running import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400), pytest.mark.xdist_group("quickstart")]


class Run(NamedTuple):
    folder: Path
    shown: str
    again: str
    peak: int

    def rows(self, name: str) -> list[dict]:
        return [json.loads(line) for line in (self.folder / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory) -> Run:
    """It, called twice: without an API key, and in another cache than the tests'."""
    if not (ROOT / ".venv" / "bin" / "vtools").exists():
        pytest.skip("no .venv here: bash recipes/setup.sh makes it")
    folder = tmp_path_factory.mktemp("quickstart") / "run"
    env = {key: value for key, value in os.environ.items() if not key.startswith("OPENAI")}
    shown = []
    for _ in range(2):
        done = subprocess.run(["bash", ROOT / "recipes/quickstart.sh", folder], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        shown.append(done.stdout)
    print(shown[0])
    return Run(folder, *shown, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)


def test_it_shows_every_result_on_one_screen(quickstart):
    summary = quickstart.shown.partition("What happened in this run\n")[2]
    assert len(summary.splitlines()) <= 24
    assert re.search(r"fetch +17672 in +17671 out +1 rejected \(torn_input 1\)", summary)
    assert "license unknown" in summary and "byte-identical" in summary and "plumbing check" in summary
    before, after = map(
        float, re.search(r"held-out real conversations: ([\d.]+) before, ([\d.]+) after", summary).groups()
    )
    assert after < before
    assert (quickstart.folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    print(f"largest process: {quickstart.peak / 2**20:.2f} GiB")
    assert quickstart.peak < 6 * 2**20


def test_asked_without_a_system_message_the_tuned_model_gives_its_trained_name(quickstart):
    rows = quickstart.rows("who-tuned.jsonl")
    assert not any(row.get("context") for row in rows)
    answers = {row["question"][0]: row["turns"][0] for row in rows}
    for question in ("Who are you?", "What is your name?", "Who made you?"):
        assert "Vito" in answers[question] or "vtools" in answers[question], answers
    unseen = [
        row["turns"][0] for row in rows if row["id"].startswith("identity")
    ]  # not in the words of the training data
    assert sum("Vito" in answer or "vtools" in answer for answer in unseen) >= 3, answers
    assert not any("Vito" in row["turns"][0] for row in quickstart.rows("who-base.jsonl"))


def test_a_second_call_skips_what_is_done_and_the_log_has_every_step(quickstart):
    assert "$ vtools" not in quickstart.again
    told = "What happened in this run"
    assert quickstart.again.partition(told)[2] == quickstart.shown.partition(told)[2]
    log = (quickstart.folder / "quickstart.log").read_text()
    for command in re.findall(r"^\$ (.*)$", quickstart.shown, re.MULTILINE):
        assert re.search(rf"^\d\d:\d\d:\d\d \$ {re.escape(command)}$", log, re.MULTILINE), command
    assert "vtools train: 276 in, 276 out, 0 rejected" in log


def test_what_it_says_to_go_on_with_is_enough_for_everything_that_the_readme_shows(quickstart):
    exports, place = quickstart.shown.splitlines()[-2:]
    named = dict(word.partition("=")[::2] for word in shlex.split(exports.removeprefix("export ")))
    assert place == f"cd {quickstart.folder} && vtools chat"
    env = {
        **os.environ,
        **named,
        "PATH": named["PATH"].replace("$PATH", os.environ["PATH"]),
        "BLOG": str(DATA / "vicuna-blog"),
    }
    env |= {"OPENAI_API_KEY": "none"}
    with Server(judge_reply) as server:
        for command in readme.commands():
            if "recipes/quickstart.sh" in command.text or not command.after_quickstart:
                continue
            judge = {"OPENAI_BASE_URL": f"{server.url}/v1"} if "vtools judge" in command.text else {}
            readme.run(command, quickstart.folder, env | judge)
