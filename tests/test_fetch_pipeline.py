"""fetch | clean | split | train --dry-run: what any source gives is trained, turn by turn as it was written."""

from __future__ import annotations

import json
import subprocess

import pytest
from running import command, environment, good, run
from source_files import TALK, files, said
from test_fetch_sources import NAMES

TURNS = [(("user", "assistant")[place % 2], text) for place, text in enumerate(TALK)]


def piped(given: str, folder, base) -> list[dict]:
    """The segments of a file, by three programs in one pipe."""
    stages = (("fetch", given, "-q"), ("clean", "-q"), ("split", "-q", "--tokenizer", str(base), "--max-tokens", "512"))
    running: list[subprocess.Popen] = []
    for stage in stages:
        stdin = running[-1].stdout if running else subprocess.DEVNULL
        running.append(subprocess.Popen(command(*stage), stdin=stdin, stdout=subprocess.PIPE, cwd=folder, env=environment()))  # fmt: skip
        if len(running) > 1:
            stdin.close()
    lines = running[-1].stdout.read().splitlines()
    assert [each.wait(120) for each in running] == [0, 0, 0], given
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_the_file_of_every_source_goes_through_the_pipeline_as_it_was_written(tmp_path, base):
    segments = []
    for name in NAMES:
        (tmp_path / "in").write_bytes(files(tmp_path)[name])
        found = max(piped("in", tmp_path, base), key=lambda segment: len(segment["messages"]))
        spoken = [said(message) for message in found["messages"] if message["role"] != "system"]
        assert [(role, text.removeprefix("Of plants:\n")) for role, text in spoken] == TURNS, name
        segments.append({**found, "id": name})
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(segment) + "\n" for segment in segments))
    planned = run("train", "train.jsonl", "--model", base, "--dry-run", "--out", "tuned", cwd=tmp_path)
    assert planned.returncode == 0, planned.errors
    assert not (tmp_path / "tuned").exists()
    answers = [text for role, text in TURNS if role == "assistant"]
    assert all(answer in planned.stdout.decode() + planned.errors for answer in answers)
    counted = good("stats", "train.jsonl", cwd=tmp_path)[0]
    assert counted["records"] == len(NAMES)
