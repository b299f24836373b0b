"""`fetch --state` killed at random moments: every conversation is in the file and in the state exactly once."""

from __future__ import annotations

import json
import random
import sqlite3
from collections import Counter

import pytest
from misbehaving import Site
from running import start, wait_until
from test_fetch_crawl import listed

pytestmark = pytest.mark.timeout(1200)  # 21 runs, each of which asks for what the earlier ones had
BATCH = 100  # how many records of one source may come twice (fetch/keeping.py)


def killed_and_rerun(site, folder, number: int, kills: int, *output: str) -> list[list[str]]:
    """What the runs of a crawl have on stdout, each killed after it was asked for some more pages, but the last."""
    dice = random.Random(kills)
    (folder / "list").write_text(listed(site.urls(*(f"c{index}" for index in range(number)))))
    fetch = ("fetch", "--sources", "list", "--state", "s.db", "--rate", 100_000, *output)
    printed = []
    for end in [*sorted(dice.sample(range(1, number), kills)), None]:
        with open(folder / "out", "wb") as stdout, start(*fetch, cwd=folder, stdout=stdout) as run:
            if end is not None:
                wait_until(lambda end=end: len(site.visits) > end or run.poll() is not None, 300)
                run.kill()
            errors = run.stderr.read().decode()
            assert (run.wait(300) == 0) == (end is None), errors
        lines = (folder / "out").read_bytes().split(b"\n")
        assert end is not None or lines[-1] == b""
        printed.append([json.loads(line)["id"] for line in lines[:-1]])
    return printed


SIZES = [(60, 3), pytest.param(2000, 20, marks=pytest.mark.slow)]


@pytest.mark.parametrize(("number", "kills"), SIZES)
def test_killed_at_random_moments_and_rerun_each_record_is_in_the_file_and_the_state_once(tmp_path, number, kills):
    with Site() as site:
        killed_and_rerun(site, tmp_path, number, kills, "--append", "all.jsonl")
    data = (tmp_path / "all.jsonl").read_bytes()
    assert data.endswith(b"\n")
    found = [json.loads(line)["id"] for line in data.splitlines()]
    assert len(found) == number and set(found) == {f"c{index}" for index in range(number)}
    database = sqlite3.connect(tmp_path / "s.db")
    assert database.execute("SELECT count(*) FROM records").fetchone() == (number,)
    assert database.execute("SELECT status, count(*) FROM sources GROUP BY status").fetchall()[0][0] == "fetched"


@pytest.mark.parametrize(("number", "kills"), SIZES)
def test_killed_at_random_moments_stdout_repeats_only_what_was_in_flight(tmp_path, number, kills):
    with Site() as site:
        printed = killed_and_rerun(site, tmp_path, number, kills)
    counts = Counter(name for run in printed for name in run)
    assert set(counts) == {f"c{index}" for index in range(number)}
    assert counts.total() - number <= kills  # one source is one record: one is in flight at each kill
    assert max(counts.values()) <= 2


@pytest.mark.slow
def test_of_one_large_source_no_more_than_a_batch_comes_twice(tmp_path):
    from chats import chat, jsonl
    from loopback import Reply, Server

    body = jsonl(*({"id": f"c{number}", "messages": chat("Q", "word " * 500)} for number in range(5000)))
    with Server(lambda request: Reply(body)) as server:
        fetch = ("fetch", f"{server.url}/dump", "--rate", 1000, "--state", "s.db")
        with open(tmp_path / "out", "wb") as stdout, start(*fetch, cwd=tmp_path, stdout=stdout) as run:
            wait_until(lambda: (tmp_path / "out").stat().st_size > len(body) // 3)
            run.kill()
            run.wait()
        first = (tmp_path / "out").read_bytes().split(b"\n")[:-1]
        with open(tmp_path / "out", "wb") as stdout, start(*fetch, cwd=tmp_path, stdout=stdout) as run:
            assert run.wait(120) == 0
        second = (tmp_path / "out").read_bytes().splitlines()
    found = Counter(json.loads(line)["id"] for line in [*first, *second])
    assert len(found) == 5000 and found.total() <= 5000 + BATCH
