"""What a run costs: said beforehand, shown on the way, and stopped before a limit is passed."""

from __future__ import annotations

import json
import sys
import threading

import pytest
from chats import chat
from judging import Judge, grades
from loopback import Chat, Status
from running import command, execute, on_a_terminal, wait_until
from test_chat import questions
from test_judge import answers

from vtools.inference import progress
from vtools.inference.budget import PER_MESSAGE, Budget, Spent
from vtools.inference.client import Sampling
from vtools.inference.endpoint import Endpoint, EndpointError

PRICES = '{"model": {"m": {"in": 0, "out": 1000000}}}'  # a dollar per token that is written


@pytest.fixture
def priced(tmp_path):
    (tmp_path / "prices.json").write_text(PRICES)
    return ("--model", "m", "--prices", "prices.json")


def test_a_run_stops_before_a_call_could_pass_the_limit_and_goes_on_with_a_higher_one(vtools, priced, tmp_path):
    with Chat(lambda messages, body: "ten chars!") as server:  # 10 tokens by the count of this server
        ask = ("chat", "--base-url", server.url, *priced, "--max-tokens", 20, "-j", 4, "-o", "a.jsonl")
        stopped = vtools(*ask, "--max-usd", 55, stdin=questions(9))
        assert stopped.returncode == 1
        assert "--max-usd 55: stopped at 40.0000 USD, as the next call may cost 20.0000" in stopped.errors
        assert len((tmp_path / "a.jsonl.journal").read_bytes().splitlines()) == len(server.bodies) == 4
        done = vtools(*ask, "--max-usd", 1000, stdin=questions(9))
        assert done.returncode == 0 and "50.0000 USD spent" in done.errors
    assert len(server.bodies) == 9


def test_calls_under_way_may_leave_enough_for_another(vtools, priced):
    asked = threading.Semaphore(0)

    def reply(messages, body):
        asked.release()
        wait_until(lambda: len(server.bodies) >= 2)
        return "1"

    with Chat(reply) as server:  # each may cost 10 and costs 1: with two under way a third could pass 22
        ask = ("chat", "--base-url", server.url, *priced, "--max-tokens", 10, "-j", 3, "--max-usd", 22)
        assert vtools(*ask, stdin=questions(6)).returncode == 0


def test_what_may_have_been_answered_counts_as_the_most_and_what_was_refused_as_nothing():
    failures = iter([Status(500), Status(429)])

    def reply(messages, body):
        for failure in failures:
            raise failure
        raise Status(200, b'{"choices": [{"mess')

    with Chat(reply) as server:
        client = Endpoint(server.url, "m", retries=3)
        client.budget = Budget((0, 1e6))
        with pytest.raises(EndpointError, match="breaks off"):
            client.complete(chat("x"), Sampling(5, 0.0))
    assert client.budget.spent == 2 * 5


def test_a_call_that_is_repeated_without_its_limit_of_tokens_still_may_cost_what_was_asked_for():
    def reply(messages, body):
        if "max_tokens" in body:
            refused = {"message": "too long", "code": "context_length_exceeded", "param": "max_tokens"}
            raise Status(400, {"error": refused})
        raise Status(200, b'{"choices": [{"mess')

    with Chat(reply) as server:
        client = Endpoint(server.url, "m", retries=0)
        client.budget = Budget((0, 1e6))
        with pytest.raises(EndpointError, match="breaks off"):
            client.complete(chat("x"), Sampling(5, 0.0))
    assert client.budget.spent == 5


def test_a_prompt_counts_as_its_bytes_at_most():
    budget = Budget((1e6, 0), limit=PER_MESSAGE + 3)
    with budget.call(chat("abc"), 0) as bill:
        bill.tokens = 0, 0
    with pytest.raises(Spent), budget.call(chat("äö"), 0):
        pass


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--max-usd", 1, "--max-tokens", 5), "--max-usd needs --prices FILE"),
        (("--max-usd", 1, "--prices", "prices.json"), "--max-usd needs --max-tokens"),
        (("--prices", "prices.json", "--max-tokens", 5), "no price for the model other"),
    ],
)
def test_a_limit_that_could_not_be_kept_is_refused(vtools, priced, options, why):
    with Chat(lambda messages, body: "x", models=("other",)) as server:
        done = vtools("chat", "--base-url", server.url, *options, stdin=questions(1))
    assert done.returncode in (1, 2) and why in done.errors and server.bodies == []


def test_a_dry_run_says_calls_tokens_dollars_and_minutes(vtools, priced, tmp_path):
    (tmp_path / "a.jsonl").write_text(answers("alpha"))
    (tmp_path / "b.jsonl").write_text(answers("beta"))
    with Judge(lambda messages, body: grades(5, 4)) as server:
        ask = ("judge", "a.jsonl", "b.jsonl", "--base-url", server.url, *priced, "-j", 2, "-o", "j.jsonl")
        first = vtools(*ask, "-n", "--max-tokens", 500, "--max-usd", 2999).errors
        assert vtools(*ask).returncode == 0
        (tmp_path / "b.jsonl").write_text(answers("gamma"))
        second = vtools(*ask, "-n").errors
    assert " 6 times" in first and "at most 3,000 out" in first
    assert "at most 3000.00 USD, more than --max-usd 2999" in first
    assert "at most 30 s at -j 2 and 50 tokens/s" in first
    assert "as earlier ones took 0.0 s each" in second
    turns = json.dumps({"id": 1, "turns": ["one", "two"]})
    chatted = vtools("chat", "-n", "--base-url", "http://127.0.0.1:9/v1", *priced, "--max-tokens", 50, stdin=turns)
    assert "1 questions (2 turns)" in chatted.errors and "at most 100.00 USD" in chatted.errors


def test_progress_is_a_line_per_minute_where_stderr_is_no_terminal(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SAID", 0.0)
    shown = progress.Progress("judge", "judgments", 4, False, Budget((0, 1)))
    shown.tick(asked=False, failed=False)
    shown.tick(asked=True, failed=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "vtools judge: 1 of 4 judgments, 0.00 USD",
        "vtools judge: 2 of 4 judgments, 1 failed, 0.00 USD, 0 s left",
    ]
    monkeypatch.setattr(progress, "SAID", 60.0)
    for _ in range(9):
        shown.tick(asked=True, failed=False)
    progress.Progress("judge", "judgments", 4, True, None).tick(asked=True, failed=False)
    assert capsys.readouterr().err == ""


def test_the_time_left_follows_from_what_was_asked_and_not_from_what_was_there():
    shown = progress.Progress("chat", "answers", 100, True, None)
    shown.done, shown.asked = 50, 10
    assert shown.text(shown._started + 100) == "50 of 100 answers, 8 min left"
    assert [progress.lasting(seconds) for seconds in (40, 600, 7200)] == ["40 s", "10 min", "2.0 h"]
    assert progress.Progress("chat", "answers", None, True, None).text(0) == "0 answers"


def test_on_a_terminal_progress_is_one_line_that_is_redrawn_and_goes(tmp_path):
    release = threading.Event()

    def reply(messages, body):
        if messages[-1]["content"] == "question 2":
            release.wait(0.5)
        return "x"

    with Chat(reply) as server:
        asked = command("chat", "--base-url", server.url, "-o", "a.jsonl", "-j", 1)
        seen = on_a_terminal(asked, tmp_path, questions(4).encode())
    assert "\r\x1b[Kvtools chat: 3 answers" in seen
    assert seen.count("\n") == 1 and "4 in, 4 out" in seen


def test_answers_on_a_terminal_cannot_steer_it(tmp_path):
    code = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)"
    with Chat(lambda messages, body: "a\x1b[2Jb\u202ec\x9b1m") as server:
        for options in ((), ("--text",)):
            (tmp_path / "q.jsonl").write_text("hello\n" if options else questions(1))
            asked = command("chat", "q.jsonl", "--base-url", server.url, "-q", *options)
            seen = execute([sys.executable, "-c", code, *asked], cwd=tmp_path).stdout.decode()
            assert "a\\u001b[2Jb\\u202ec\\u009b1m" in seen and "\x1b" not in seen, seen
