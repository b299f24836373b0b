"""`judge --batch` killed at every step of its batches: nothing is submitted or paid for twice."""

from __future__ import annotations

import pytest
from batch_server import BatchServer
from judging import grades
from running import start, wait_until
from test_batch import rows
from test_judge import answers

# Where the client dies, and whether the server still acts on what it was sent, or has sent half of its reply.
ENDS = [
    ("chat", "not"), ("upload", "not"), ("upload", "acted"), ("files", "acted"), ("submit", "not"), ("submit", "acted"),
    ("list", "acted"), ("poll", "acted"), ("content", "not"), ("content", "half"), ("content", "acted"),
    ("upload", "acted"), ("submit", "acted"), ("poll", "not"), ("content", "half"),
]  # fmt: skip


def half_unreadable(messages, body):
    """A judge whose first reply to some has no verdict, so that a second batch asks for it."""
    return "Both are fine." if len(messages) == 2 and "question 4" in messages[1]["content"] else grades(9, 7)


@pytest.mark.slow
def test_nothing_is_submitted_or_paid_for_twice_wherever_it_is_killed(vtools, tmp_path):
    (tmp_path / "a.jsonl").write_text(answers("alpha", 8))
    (tmp_path / "b.jsonl").write_text(answers("beta", 8))
    with BatchServer(half_unreadable) as server:
        ask = ("judge", "a.jsonl", "b.jsonl", "--base-url", server.url)
        assert vtools(*ask, "-o", "plain.jsonl").returncode == 0
        before = len(server.bodies)
        for at, end in ENDS:
            with start(*ask, "--batch", "-o", "j.jsonl", cwd=tmp_path) as judge:

                def dies(step, at=at, end=end, judge=judge):
                    if step != at or judge.poll() is not None:
                        return None
                    if end != "half":
                        judge.kill()
                        judge.wait()
                    return end

                server.dies = dies
                if end == "half":
                    served = server.steps.count(at)
                    wait_until(lambda at=at, served=served: server.steps.count(at) > served, 600)
                    judge.kill()
                wait_until(lambda judge=judge: judge.poll() is not None, 600)
                assert judge.returncode == -9, (at, end, judge.stderr.read())
        server.dies = lambda step: None
        done = vtools(*ask, "--batch", "-o", "j.jsonl")
    assert done.returncode == 0, done.errors
    assert rows(tmp_path / "j.jsonl") == rows(tmp_path / "plain.jsonl")
    assert [len(batch) for batch in server.lines] == [15, 2]
    assert len(server.carried) == len(set(server.carried)) == 17
    assert len(server.bodies) - before == 1
    assert len([file for file in server.files.values() if file["filename"] != "results"]) == 2
    assert not (tmp_path / "j.jsonl.batches").exists()
