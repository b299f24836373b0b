"""`judge` killed at random moments beside a server that fails: what is answered is asked for once."""

from __future__ import annotations

import random

import pytest
from running import start, wait_until
from test_chat import lines
from unreliable import Unreliable, answers

JOBS, QUESTIONS, KILLS = 16, 160, 10
CALLS = QUESTIONS * 2


@pytest.mark.slow
def test_after_ten_kills_no_answer_is_paid_for_twice_but_those_under_way(vtools, tmp_path):
    dice = random.Random(1)
    for model in ("alpha", "beta"):
        (tmp_path / f"{model}.jsonl").write_text(answers(model, QUESTIONS))
    journal = tmp_path / "j.jsonl.journal"
    lost = 0
    with Unreliable(0.1, silence=1, retry_after=0.2) as server:
        ask = ("judge", "alpha.jsonl", "beta.jsonl", "--base-url", server.url, "-j", JOBS, "--timeout", 1, "-o", "j.jsonl")  # fmt: skip
        for end in sorted(dice.sample(range(1, CALLS), KILLS)):
            with start(*ask, cwd=tmp_path) as judge:
                wait_until(lambda end=end: lines(journal) >= end or judge.poll() is not None)
                assert judge.poll() is None
                judge.kill()
                judge.wait()
            wait_until(lambda: server.under_way == 0)
            lost_now = server.answered - lost - lines(journal)
            # 16 requests, and answers that came and are not yet on disk: there are half as many threads again.
            assert 0 <= lost_now <= JOBS + JOBS // 2
            lost += lost_now
        done = vtools(*ask)
        assert done.returncode == 0, done.errors
    assert lines(tmp_path / "j.jsonl") == CALLS and not journal.exists()
    assert server.answered == CALLS + lost and lost <= KILLS * JOBS
