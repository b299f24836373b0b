"""What was paid for is never lost, and never taken for something else: a rerun of `chat` on the same FILE."""

from __future__ import annotations

import gzip
import json
import threading

import pytest
from loopback import Chat, Status
from running import wait_until
from test_chat import echo, lines, questions, without_ms

from vtools.inference import journal
from vtools.process import Failure

ANY = journal.Kind("model")


def rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.fixture
def server():
    with Chat(echo) as server:
        yield server


@pytest.fixture
def ask(vtools, server):
    """Ask so many questions with -o a.jsonl."""

    def ask(number: int, *options: object, model: str = "m"):
        return vtools("chat", "--base-url", server.url, "--model", model, "-o", "a.jsonl", *options, stdin=questions(number))  # fmt: skip

    return ask


def test_rows_that_a_run_does_not_ask_for_follow_after_its_own_and_are_counted(ask, server, tmp_path):
    assert ask(4).returncode == 0
    first = rows(tmp_path / "a.jsonl")
    done = ask(2)
    assert done.returncode == 0 and "a.jsonl: 2 rows of earlier runs" in done.errors
    assert rows(tmp_path / "a.jsonl") == first
    assert ask(2, "--temperature", 0).returncode == 0
    assert [row["id"] for row in rows(tmp_path / "a.jsonl")] == ["q0", "q1", "q0", "q1", "q2", "q3"]
    assert rows(tmp_path / "a.jsonl")[2:] == first
    assert len(server.bodies) == 4 + 2
    assert ask(4).returncode == 0 and len(server.bodies) == 6


def test_empty_input_beside_a_file_with_answers_is_an_error_and_leaves_it_as_it_is(ask, tmp_path):
    assert ask(2).returncode == 0
    before = (tmp_path / "a.jsonl").read_bytes()
    done = ask(0)
    assert done.returncode == 1 and "the input is empty, and a.jsonl has 2 rows" in done.errors
    assert (tmp_path / "a.jsonl").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl"]


def spread(data: bytes) -> bytes:
    return b"\n".join(json.dumps(json.loads(line), indent=2).encode() for line in data.splitlines())


def listed(data: bytes) -> bytes:
    return json.dumps([json.loads(line) for line in data.splitlines()]).encode()


@pytest.mark.parametrize("form", [gzip.compress, spread, listed, lambda data: b"\xef\xbb\xbf" + data])
def test_answers_are_found_in_every_form_that_records_are_read_in(ask, server, tmp_path, form):
    assert ask(3).returncode == 0
    plain = (tmp_path / "a.jsonl").read_bytes()
    (tmp_path / "a.jsonl").write_bytes(form(plain))
    done = ask(3)
    assert done.returncode == 0 and len(server.bodies) == 3, done.errors
    assert (tmp_path / "a.jsonl").read_bytes() == plain


def test_a_file_that_is_no_output_of_a_run_is_not_written_over(ask, server, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id":"mine"}\nmy notes\n')
    done = ask(2)
    assert done.returncode == 1 and "a.jsonl:2: " in done.errors and "name another file (-o)" in done.errors
    assert (tmp_path / "a.jsonl").read_text() == '{"id":"mine"}\nmy notes\n' and server.bodies == []
    (tmp_path / "a.jsonl").write_text('{"id":"mine"}\n')
    assert ask(1).returncode == 0
    assert [row["id"] for row in rows(tmp_path / "a.jsonl")] == ["q0", "mine"]


def test_bare_answers_are_not_written_over(ask, server, tmp_path):
    (tmp_path / "a.jsonl").write_text("an answer\n")
    done = ask(1, "--text")
    assert done.returncode == 2 and "choose another -o" in done.errors and server.bodies == []
    assert (tmp_path / "a.jsonl").read_text() == "an answer\n"


def test_an_answer_of_an_unfinished_run_stays_when_the_next_asks_for_others(vtools, start, server, tmp_path):
    release = threading.Event()

    def reply(messages, body):
        if messages[-1]["content"] == "question 1":
            release.wait(60)
        return "paid for"

    server.answer = reply
    asked = ("chat", "--base-url", server.url, "-o", "a.jsonl")
    (tmp_path / "q.jsonl").write_text(questions(2))
    killed = start(*asked, "q.jsonl", "-j", 1)
    wait_until(lambda: lines(tmp_path / "a.jsonl.journal") == 1)
    killed.kill()
    killed.wait()
    release.set()
    assert vtools(*asked, stdin='{"id":"other","prompt":"x"}').returncode == 0
    assert [row["id"] for row in rows(tmp_path / "a.jsonl")] == ["other", "q0"]


def test_a_retrained_model_under_the_same_name_gives_new_answers(ask, server, tmp_path):
    server.fingerprint = "one"
    assert ask(2).returncode == 0
    server.fingerprint = "two"
    assert ask(2).returncode == 0 and len(server.bodies) == 4
    server.fingerprint = "one"
    assert ask(2).returncode == 0 and len(server.bodies) == 4


def test_a_model_that_is_replaced_while_it_is_asked_stops_the_run(ask, server, tmp_path):
    def reply(messages, body):
        if messages[-1]["content"] == "question 1":
            server.fingerprint = "two"
        return "?"

    server.fingerprint, server.answer = "one", reply
    done = ask(3, "-j", 1)
    assert done.returncode == 1 and "another model is served as m since this run began" in done.errors


def test_without_a_fingerprint_the_url_and_the_name_tell_models_from_each_other(vtools, server, tmp_path):
    with Chat(echo) as other:
        for url, calls in ((server.url, 1), (server.url, 1), (other.url, 2), (server.url, 2)):
            assert vtools("chat", "--base-url", url, "-o", "a.jsonl", stdin=questions(1)).returncode == 0
            assert len(server.bodies) + len(other.bodies) == calls


def test_a_server_that_changes_the_name_of_its_model_stops_the_run(ask, server, tmp_path):
    server.reported = "m-2024"
    assert ask(2).returncode == 0
    assert {row["model_reported"] for row in rows(tmp_path / "a.jsonl")} == {"m-2024"}
    before = (tmp_path / "a.jsonl").read_bytes()
    server.reported = "m-2025"
    done = ask(4)
    assert done.returncode == 1 and "a.jsonl: m was m-2024 before and now answers as m-2025" in done.errors
    assert (tmp_path / "a.jsonl").read_bytes() == before


def test_answers_of_another_model_are_kept_out_of_the_file_before_they_are_paid_for(ask, server):
    server.models = ("m", "n")
    assert ask(1).returncode == 0
    done = ask(1, model="n")
    assert done.returncode == 1 and "has rows whose model is m, and this run's is n" in done.errors
    assert len(server.bodies) == 1


def test_a_fatal_error_waits_for_the_answers_that_are_under_way(ask, server, tmp_path):
    failed, answered = threading.Event(), list[str]()

    def reply(messages, body):
        if messages[-1]["content"] == "question 1":
            wait_until(lambda: len(server.bodies) == 2)
            failed.set()
            raise Status(402, {"error": {"message": "no credit"}})
        assert failed.wait(60)
        answered.append(messages[-1]["content"])
        return "paid for"

    server.answer = reply
    done = ask(9, "-j", 2)
    assert done.returncode == 1 and "HTTP 402: no credit" in done.errors
    kept = sorted(row["question"][0] for row in rows(tmp_path / "a.jsonl.journal"))
    assert kept == sorted(answered) and "question 0" in kept and len(kept) < 8


def test_a_dry_run_knows_which_answers_are_there(ask, server):
    assert ask(3, "--max-tokens", 9).returncode == 0
    done = ask(5, "--max-tokens", 9, "-n")
    assert "2 questions (2 turns)" in done.errors and "3 answers exist already" in done.errors
    assert len(server.bodies) == 3


def test_a_journal_line_without_its_newline_is_torn_however_whole_it_looks(tmp_path):
    """Cut off by a kill between the record and its newline, its place would be written over by the next one."""
    (tmp_path / "J.journal").write_text('{"key":"k0","n":0}\n{"key":"k1","n":1}')
    with pytest.raises(ZeroDivisionError), journal.keep(str(tmp_path / "J"), ANY) as kept:
        assert kept.get("k0") == {"key": "k0", "n": 0}
        assert kept.get("k1") is None
        kept.add({"key": "k2", "n": 2})
        1 / 0  # noqa: B018  a crash leaves the journal
    assert (tmp_path / "J.journal").read_text().splitlines() == ['{"key":"k0","n":0}', '{"key":"k2","n":2}']


def test_two_rows_with_one_key_are_both_kept(tmp_path):
    (tmp_path / "J").write_text('{"key":"k","ms":1,"n":0}\n{"key":"k","ms":1,"n":1}\n')
    with journal.peek(str(tmp_path / "J"), ANY) as kept:
        assert kept.get("k")["n"] == 0
        assert [row["n"] for row in kept.others()] == [0, 1]


def test_rows_that_cost_nothing_are_not_kept_when_they_are_not_asked_for(tmp_path):
    (tmp_path / "J").write_text('{"key":"a","verdict":"tie"}\n{"key":"b","ms":5,"verdict":"tie"}\n')
    with journal.peek(str(tmp_path / "J"), ANY) as kept:
        assert [row["key"] for row in kept.others()] == ["b"] and kept.times == [5]


def test_rows_of_two_models_in_one_journal_are_refused(tmp_path):
    (tmp_path / "J").write_text('{"key":"a","ms":1,"model":"x"}\n')
    with (
        pytest.raises(Failure, match="model is x, and this run's is y"),
        journal.keep(str(tmp_path / "J"), journal.Kind("model", same={"model": "y"})),
    ):
        pass
    assert not (tmp_path / "J.journal").exists()


def test_a_killed_and_repeated_run_has_the_same_bytes_as_a_whole_one(ask, vtools, server, tmp_path):
    assert ask(3).returncode == 0
    whole = without_ms((tmp_path / "a.jsonl").read_bytes())
    (tmp_path / "a.jsonl.journal").write_bytes((tmp_path / "a.jsonl").read_bytes().splitlines(keepends=True)[1])
    (tmp_path / "a.jsonl").unlink()
    assert ask(3).returncode == 0 and len(server.bodies) == 5
    assert without_ms((tmp_path / "a.jsonl").read_bytes()) == whole


THREE = '{"id":"q","turns":["one","two","three"]}\n'


def test_of_a_question_of_several_turns_that_fails_only_the_rest_is_asked_by_the_next_run(vtools, server, tmp_path):
    def reply(messages, body):
        if messages[-1]["content"] == "three":
            raise Status(400, {"error": {"message": "not today"}})
        return f"echo {len(messages)}"

    ask = ("chat", "--base-url", server.url, "--model", "m", "-o", "a.jsonl")
    server.answer = reply
    done = vtools(*ask, stdin=THREE + questions(1))
    assert done.returncode == 1 and [row["id"] for row in rows(tmp_path / "a.jsonl")] == ["q0"]
    assert vtools(*ask, stdin=questions(2)).returncode == 0  # what it does not ask for stays, too
    assert len(server.bodies) == 3 + 1 + 1 and lines(tmp_path / "a.jsonl.journal") == 1
    forecast = vtools(*ask, "-n", stdin=THREE)
    assert "1 questions (1 turns)" in forecast.errors and "0 answers exist already" in forecast.errors
    server.answer = lambda messages, body: f"echo {len(messages)}"
    done = vtools(*ask, stdin=THREE)
    assert done.returncode == 0 and "tokens in 3, tokens out 6" in done.errors  # those of one call
    assert len(server.bodies) == 6 and [message["content"] for message in server.bodies[-1]["messages"]] == [
        "one", "echo 1", "two", "echo 3", "three",
    ]  # fmt: skip
    resumed = rows(tmp_path / "a.jsonl")[0]
    whole = vtools(*ask[:-2], stdin=THREE).records[0]
    assert {**resumed, "ms": 0} == {**whole, "ms": 0} and resumed["usage"]["in"] == 9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl"]


def test_a_kill_between_two_turns_loses_none_of_them(vtools, start, server, tmp_path):
    release = threading.Event()

    def reply(messages, body):
        if messages[-1]["content"] == "two":
            release.wait(60)
        return "paid for"

    server.answer = reply
    (tmp_path / "q.jsonl").write_text(THREE)
    ask = ("chat", "--base-url", server.url, "-o", "a.jsonl", "q.jsonl")
    killed = start(*ask)
    wait_until(lambda: len(server.bodies) == 2)
    killed.kill()
    killed.wait()
    release.set()
    assert vtools(*ask).returncode == 0
    assert [body["messages"][-1]["content"] for body in server.bodies] == ["one", "two", "two", "three"]


def test_half_an_answer_of_another_model_is_not_gone_on_with(vtools, server, tmp_path):
    def reply(messages, body):
        if messages[-1]["content"] == "two":
            raise Status(400)
        return "?"

    ask = ("chat", "--base-url", server.url, "-o", "a.jsonl")
    server.fingerprint, server.answer = "one", reply
    assert vtools(*ask, stdin=THREE).returncode == 1
    server.fingerprint, server.answer = "two", echo
    assert vtools(*ask, stdin=THREE).returncode == 0
    assert [body["messages"][-1]["content"] for body in server.bodies] == ["one", "two", "one", "two", "three"]


def test_turns_of_two_models_are_never_one_answer(vtools, server, tmp_path):
    def reply(messages, body):
        server.reported = f"m-{len(messages)}"
        return "?"

    server.answer = reply
    done = vtools("chat", "--base-url", server.url, "-o", "a.jsonl", stdin=THREE)
    assert done.returncode == 1 and "m was m-1 before and now answers as m-3" in done.errors
    assert len(server.bodies) == 2 and not (tmp_path / "a.jsonl").exists()
    server.answer, server.reported = echo, "m-5"
    done = vtools("chat", "--base-url", server.url, "-o", "a.jsonl", stdin=THREE)
    assert done.returncode == 1 and "m was m-1 before and now answers as m-5" in done.errors
