"""recipes/refresh.sh, the line for cron: without an environment and without a terminal."""

from __future__ import annotations

import gzip
import json
import os
import subprocess

import pytest
from misbehaving import Site
from running import ROOT, begun, on_path, wait_until

RECIPE = ROOT / "recipes" / "refresh.sh"


@pytest.fixture
def site():
    with Site() as site:
        yield site


@pytest.fixture
def folder(tmp_path, site):
    folder = tmp_path / "chats of mine"
    folder.mkdir()
    (folder / "sources.txt").write_text("\n".join(site.urls("one", "two", "gone")))
    path = on_path(tmp_path / "bin")
    (folder / "environment").write_text(f"PATH='{path}'\nPYTHONPATH='{ROOT}'\nOPTIONS='--rate 1000'\nROTATE_MB=1\n")
    return folder


def refresh(folder) -> list[str]:
    return ["env", "-i", "/bin/bash", str(RECIPE), str(folder)]


def refreshed(folder, code: int = 0) -> str:
    done = subprocess.run(refresh(folder), capture_output=True, text=True, stdin=subprocess.DEVNULL, start_new_session=True, cwd="/")  # fmt: skip
    assert done.returncode == code and done.stderr == "", done
    assert done.stdout.count("\n") == 1
    return done.stdout


def ids(data: bytes) -> list[str]:
    return [json.loads(line)["id"] for line in data.splitlines()]


def test_each_run_adds_what_is_new_and_says_one_line(folder, site):
    assert "vtools fetch: 3 in, 2 out, 1 rejected (unavailable 1)" in refreshed(folder)
    assert "0 in, 0 out, 0 rejected, unchanged 2, waiting 1" in refreshed(folder)
    site.versions["two"] += 1
    assert "1 in, 1 out, 0 rejected" in refreshed(folder)
    assert ids((folder / "chats.jsonl").read_bytes()) == ["one", "two", "two 1"]
    assert len((folder / "refresh.log").read_text().splitlines()) == 3


def test_a_large_file_is_packed_away_and_nothing_of_it_comes_again(folder, site):
    refreshed(folder)
    with open(folder / "chats.jsonl", "ab") as file:
        file.write(b'{"id": "large", "text": "' + b"x" * 1_000_000 + b'"}\n')
    site.versions["one"] += 1
    refreshed(folder)
    (packed,) = folder.glob("chats-*.jsonl.gz")
    assert ids(gzip.decompress(packed.read_bytes())) == ["one", "two", "large"]
    assert ids((folder / "chats.jsonl").read_bytes()) == ["one 1"]


def test_two_at_once_are_one_that_works_and_one_that_exits_75(folder, site):
    (folder / "sources.txt").write_text("\n".join(site.urls("stall", "one")))
    with begun(refresh(folder), cwd="/") as first:
        wait_until(lambda: "stall" in site.asked)
        assert "another run has this folder" in refreshed(folder, code=75)
        site.ended.set()
        assert first.wait(60) == 0
    assert os.path.exists(folder / "chats.jsonl")


def test_a_list_that_is_missing_is_said_and_is_a_failure(folder):
    (folder / "sources.txt").unlink()
    assert "sources.txt: No such file" in refreshed(folder, code=1)
