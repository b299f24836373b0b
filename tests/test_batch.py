"""`--batch`: the same rows by the endpoint's Batch API, for less, and nothing of it is lost or paid for twice."""

from __future__ import annotations

import json
import signal

import pytest
from batch_server import BatchServer, names
from judging import Judge, by_schema, grades, in_form
from loopback import Status
from running import bad, start, wait_until
from test_chat import lines, questions
from test_judge import answers

from vtools.inference import batch_store
from vtools.inference.batch_store import Store
from vtools.inference.client import Answer
from vtools.process import Failure
from vtools.records import prices


@pytest.fixture
def files(tmp_path):
    (tmp_path / "a.jsonl").write_text(answers("alpha", 8))
    (tmp_path / "b.jsonl").write_text(answers("beta", 8))
    return "judge", "a.jsonl", "b.jsonl"


def rows(path) -> list[dict]:
    """Without what is another thing by batch."""
    read = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: row[name] for name in row if name not in ("ms", "batch")} for row in read]


def moody(messages, body):
    """A judge that loves the first; of some questions it says nothing at first, or is cut off, or refuses them."""
    said = messages[1]["content"]
    if "question 3" in said and body["max_tokens"] == 2048:
        return "I think that", "length"
    if "question 4" in said and len(messages) == 2:
        return "Both are fine."
    if "question 5" in said:
        return "No."
    if "question 6" in said:
        raise Status(400, {"error": {"message": "this I do not read", "code": "content_filter"}})
    return grades(9, 7)


def test_the_rows_are_those_of_the_plain_way(vtools, files, tmp_path):
    with BatchServer(moody) as server:
        plain = vtools(*files, "--base-url", server.url, "-o", "plain.jsonl")
        asked = len(server.bodies)
        done = vtools(*files, "--base-url", server.url, "-o", "batch.jsonl", "--batch", "--rejects", "r.jsonl")
    assert plain.returncode == done.returncode == 1
    assert rows(tmp_path / "batch.jsonl") == rows(tmp_path / "plain.jsonl")
    assert len(server.bodies) == asked + 1 and len(server.carried) == asked - 1 - 2  # two were refused
    assert [len(batch) for batch in server.lines] == [15, 6]  # the second for what was cut off or not readable
    assert lines(tmp_path / "r.jsonl") == 2 and "HTTP 400: this I do not read" in (tmp_path / "r.jsonl").read_text()
    assert not (tmp_path / "batch.jsonl.batches").exists()
    read = [json.loads(line) for line in (tmp_path / "batch.jsonl").read_text().splitlines()]
    assert {row.get("batch") for row in read} == {None, "batch-0", "batch-1"}
    assert read[1]["ms"] == 60_000 and "batch-1: completed, 6 of 6 done" in done.errors


def test_a_schema_is_tried_once_and_by_a_direct_call(vtools, files, tmp_path):
    def reply(messages, body):
        if "response_format" not in body:
            return in_form(messages, [9, 7])
        return "" if "question 2" in messages[1]["content"] else by_schema(body, [9, 7])

    with BatchServer(reply) as server:
        server.answer = reply
        done = vtools(*files, "--base-url", server.url, "-o", "j.jsonl", "--batch")
    assert done.returncode == 0 and len(server.asked) == 1, done.errors
    assert [len(batch) for batch in server.lines] == [15, 2]  # two empty replies say nothing about the others
    made = [row["form"] for row in rows(tmp_path / "j.jsonl")]
    assert made == ["json"] * 4 + ["lines"] * 2 + ["json"] * 10


def test_every_turn_of_a_question_and_each_of_two_equal_ones_is_asked(vtools, tmp_path):
    turns = "".join(json.dumps({"id": n, "turns": ["first", "second"]}) + "\n" for n in (1, 1, 2))
    with BatchServer(lambda messages, body: f"answer {len(messages)}") as server:
        done = vtools("chat", "--base-url", server.url, "--batch", "-o", "a.jsonl", stdin=turns)
    assert done.returncode == 0, done.errors
    made = rows(tmp_path / "a.jsonl")
    assert [row["turns"] for row in made] == [["answer 1", "answer 3"]] * 3 and made[0]["key"] != made[1]["key"]
    assert len(set(names(server.lines))) == len(server.carried) == 5 and len(server.batches) == 2


def test_a_batch_that_was_accepted_without_a_reply_is_found_again(vtools, files, tmp_path):
    with BatchServer(lambda messages, body: grades(9, 7)) as server:
        ask = (*files, "--base-url", server.url, "--batch", "-o", "j.jsonl")
        with start(*ask, cwd=tmp_path) as judge:

            def dies(step):
                if step == "submit" and judge.poll() is None:
                    judge.kill()
                    judge.wait()
                    return "acted"
                return None

            server.dies = dies
            wait_until(lambda: judge.poll() is not None)
        assert judge.returncode == -signal.SIGKILL and len(server.batches) == 1
        server._file(b"", "another's")
        server.batches["another"] = {"id": "another", "input_file_id": "file-9", "metadata": {"vtools": "x"}}
        plainly = [argument for argument in ask if argument != "--batch"]
        assert "16 requests are submitted or answered by batch; add --batch" in bad(*plainly, cwd=tmp_path, code=2)
        done = vtools(*ask)
    assert done.returncode == 0, done.errors
    assert server.steps.count("submit") == server.steps.count("upload") == 1
    assert len(server.carried) == 15 and lines(tmp_path / "j.jsonl") == 16


def test_what_another_command_submitted_is_kept_for_it(vtools, files, tmp_path):
    with BatchServer(lambda messages, body: grades(9, 7)) as server:
        ask = (*files, "--base-url", server.url, "--batch", "-o", "j.jsonl")
        with start(*ask, cwd=tmp_path) as judge:
            server.looks = 1_000_000
            wait_until(lambda: "poll" in server.steps)
            judge.send_signal(signal.SIGINT)
            said = judge.communicate()[1].decode()
        assert judge.returncode == -signal.SIGINT
        assert "1 batch with 15 requests at http" in said and "go on; the same command collects their answers" in said
        (batch,) = server.batches.values()
        batch["looks"], server.looks = -1_000_000, 0  # this one goes on while the next run's ends
        changed = vtools(*ask, "--seed", 1)
        assert changed.returncode == 0, changed.errors
        assert (
            "keeps 1 answers and 1 batch with 15 requests on their way that another command than this" in changed.errors
        )
        batch["looks"] = 0
        assert vtools(*ask).returncode == 0
    assert server.steps.count("submit") == 2 and len(set(server.carried)) == len(server.carried) == 31
    assert lines(tmp_path / "j.jsonl") == 32 and len(server.bodies) == 1
    assert not (tmp_path / "j.jsonl.batches").exists()


def test_what_failed_for_another_reason_than_itself_is_asked_again(vtools, files):
    left = iter([{"status": "expired", "expired_at": 5000, "done": 10}])
    failing = iter([Status(500), Status(429)])

    def reply(messages, body):
        if server.batches:
            for failure in failing:
                raise failure
        return grades(9, 7)

    with BatchServer(reply) as server:
        server.fate = lambda requests: next(left, {})
        unheard = iter(["not"])
        server.dies = lambda step: next(unheard, None) if step == "poll" else None
        done = vtools(*files, "--base-url", server.url, "--batch", "-o", "j.jsonl")
    assert done.returncode == 0, done.errors
    assert "16 in, 16 out" in done.errors and len(server.carried) == 15
    assert "batch-0: no word from the server" in done.errors
    assert [len(batch) for batch in server.lines] == [15, 5, 2]


def test_a_batch_that_fails_gives_the_words_of_its_server_and_costs_nothing(vtools, files):
    words = {"code": "invalid_json_line", "line": 3, "message": "This line is not parseable."}
    with BatchServer(lambda messages, body: grades(9, 7)) as server:
        server.fate = lambda requests: {"status": "failed", "errors": {"data": [words]}}
        ask = (*files, "--base-url", server.url, "--batch", "-o", "j.jsonl")
        done = vtools(*ask)
        assert done.returncode == 1 and "batch-0 failed with 15 requests" in done.errors
        assert "line 3: This line is not parseable." in done.errors
        server.fate = lambda requests: {}
        assert vtools(*ask).returncode == 0
    assert len(server.asked) == 2 and len(server.carried) == 15  # the schema, and the first call


@pytest.mark.slow
def test_a_batch_that_is_cancelled_at_the_provider_is_not_submitted_again_before_the_command_is_repeated(vtools, files):
    ends = iter([{"status": "cancelled", "cancelled_at": 2000, "done": 5}])
    with BatchServer(lambda messages, body: grades(9, 7)) as server:
        server.fate = lambda requests: next(ends, {})
        ask = (*files, "--base-url", server.url, "--batch", "-o", "j.jsonl")
        done = vtools(*ask)
        assert done.returncode == 1 and "5 of 15 requests answered, then it was cancelled there" in done.errors
        assert len(server.batches) == 1
        assert vtools(*ask).returncode == 0
    assert [len(batch) for batch in server.lines] == [15, 10] and len(server.carried) == 15


@pytest.mark.slow
def test_an_account_that_may_not_have_so_many_tokens_gets_smaller_batches_one_at_a_time(vtools, files):
    words = {"code": "token_limit_exceeded", "message": "Enqueued token limit reached"}
    failed = {"status": "failed", "errors": {"data": [words]}}
    with BatchServer(lambda messages, body: grades(9, 7)) as server:
        server.fate = lambda requests: failed if len(requests) > 4 else {}
        done = vtools(*files, "--base-url", server.url, "--batch", "-o", "j.jsonl")
    assert done.returncode == 0, done.errors
    assert [len(batch) for batch in server.lines] == [15, 7, 3, 3, 3, 3, 3] and len(server.carried) == 15


@pytest.mark.parametrize(
    ("status", "why"), [(404, "leave out --batch if this server has no Batch API"), (401, "check OPENAI_API_KEY")]
)
def test_a_server_without_a_batch_api_is_told(vtools, files, status, why):
    class Refusing(Judge):
        def _reply(self, request):
            return Status(status).reply if "/files" in request.path else super()._reply(request)

        @property
        def asked(self):
            return [request for request in super().asked if "/files" not in request.path]

    with Refusing(lambda messages, body: grades(9, 7)) as server:
        done = vtools(*files, "--base-url", server.url, "--batch", "-o", "j.jsonl")
    assert done.returncode == 1 and why in done.errors and f"HTTP {status}" in done.errors


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ((), "--batch needs -o FILE"),
        (("-o", "-"), "--batch needs -o FILE"),
        (("-o", "x", "-j", 4), "-j is for requests that run at once"),
        (("-o", "x", "--text"), "leave out --batch or --text"),
        (("-o", "x", "--model", "owner/name"), "owner/name runs in this process"),
    ],
)
def test_what_means_nothing_with_it_is_refused(tmp_path, options, why):
    env = {"OPENAI_BASE_URL": ""}
    assert why in bad("chat", "--batch", *options, stdin=questions(1), cwd=tmp_path, code=2, env=env)


def test_a_batch_is_held_against_the_limit_at_its_most_and_costs_half(vtools, tmp_path):
    (tmp_path / "prices.json").write_text('{"model": {"m": {"in": 0, "out": 1000000}}}')  # a dollar per token written
    with BatchServer(lambda messages, body: "ten chars!") as server:
        ask = ("chat", "--base-url", server.url, "--model", "m", "--prices", "prices.json", "--max-tokens", 20)
        ask = (*ask, "-o", "a.jsonl", "--batch")
        dry = vtools(*ask, "-n", stdin=questions(8)).errors
        # The first, direct, costs 10; then at 10 each at most, 2 fit, which cost 5 each, and then 1, and then none.
        stopped = vtools(*ask, "--max-usd", 34, stdin=questions(8))
        assert stopped.returncode == 1 and [len(batch) for batch in server.lines] == [2, 1]
        halfway = vtools(*ask, "-n", stdin=questions(8)).errors
        assert "--max-usd 34: stopped at 25.0000 USD, as the next call may cost 10.0000" in stopped.errors
        done = vtools(*ask, "--max-usd", 1000, stdin=questions(8))
        assert done.returncode == 0 and "20.0000 USD spent" in done.errors
        after = vtools(*ask, "-n", stdin=questions(9)).errors
    assert "at most 80.00 USD by batch" in dry and "within 24 hours" in dry and "at most 10.00 USD" in after
    assert "4 requests are answered or on their way already (a.jsonl.batches)" in halfway
    assert len(server.asked) == 1 and len(server.carried) == 7


def test_the_price_of_a_batch_is_half_or_what_the_file_says(tmp_path):
    path = tmp_path / "prices.json"
    path.write_text('{"model": {"a": {"in": 2, "out": 8}, "b": {"in": 2, "out": 8, "batch": {"in": 1.5, "out": 3}}}}')
    found = prices.read(str(path))
    assert found.batch_tokens("a") == (1, 4) and found.batch_tokens("b") == (1.5, 3)
    path.write_text('{"model": {"a": {"in": 2, "out": 8, "batch": 0.5}}}')
    with pytest.raises(Failure, match="not prices in the form"):
        prices.read(str(path))


def test_files_stay_below_the_limits_and_a_torn_answer_is_no_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(batch_store, "MOST_REQUESTS", 3)
    monkeypatch.setattr(batch_store, "MOST_BYTES", 1000)
    requests = [(f"r{n}", {"messages": "x" * (900 if n == 4 else 10)}, 1.0) for n in range(8)]
    store = Store(tmp_path, "u", "m")
    spools = list(store.write(requests))
    assert [spool.names for spool in spools] == [["r0", "r1", "r2"], ["r3"], ["r4"], ["r5", "r6", "r7"]]
    assert [spool.held for spool in spools] == [3, 1, 1, 3]
    store.add("r0", Answer("yes", "stop", None, None, 5))
    store.sync()
    with open(tmp_path / "answers.jsonl", "ab") as stream:
        stream.write(b'{"name": "r1", "ans')
    again = Store(tmp_path, "u", "m")
    assert sorted(spool.names for spool in again.spools) == sorted(spool.names for spool in spools)
    again.add("r2", Answer("no", "stop", None, None, 5))
    again.sync()
    assert again.names == {"r0", "r2"} and again.answer("r2").text == "no" and again.answer("r0").text == "yes"
