"""vtools clean --moderation: what a moderation server flags, by one that also fails."""

from __future__ import annotations

import json

import pytest
from chats import jsonl, shared
from cleaning import GOOD, ids, run
from loopback import Reply, Request, Server, closed_port


def moderation(failures=(), answer=None) -> Server:
    """One that flags the word `bad`; the failures are given first, as (status, headers)."""

    def results(texts):
        for text in texts:
            scores = {"violence": 0.9 if "bad" in text else len(text) / 1000, "new/kind": 0.001}
            yield {"flagged": "bad" in text, "categories": {"violence": "bad" in text, "new/kind": False}, "category_scores": scores}  # fmt: skip

    def reply(request: Request) -> Reply:
        status, headers = failures.pop(0) if failures else (200, {})
        if status != 200:
            return Reply.json({"error": {"message": "not today"}}, status, headers)
        if answer is not None:
            return Reply.json(answer)
        asked = request.json
        return Reply.json({"id": "m", "model": asked["model"], "results": list(results(asked["input"]))})

    server = Server(reply)
    server.url += "/v1"
    return server


FLAGGED = [
    shared(*GOOD, id="good"),
    shared("a bad question, that is", GOOD[1], id="bad"),
    shared(GOOD[0], "fine and long enough", id="fine"),
]


@pytest.mark.parametrize("jobs", ["1", "3"])
def test_what_the_moderation_server_flags_is_dropped_with_its_raw_scores(tmp_path, jobs):
    with moderation() as server:
        options = ["--moderation", server.url, "--moderation-model", "guard", "-j", jobs, "--rejects", tmp_path / "r"]
        done = run(*options, stdin=jsonl(*FLAGGED), env={"OPENAI_API_KEY": "secret"})
    assert ids(done) == ["good", "fine"]
    row = json.loads((tmp_path / "r").read_bytes())
    scores = {"violence": 0.9, "new/kind": 0.001}
    assert (row["reason"], row["detail"]) == (
        "moderation",
        f"messages[0]: violence; category_scores {json.dumps(scores)}",
    )
    kept = json.loads(done.stdout.splitlines()[0])["moderation"]
    assert kept == {"model": "guard", "category_scores": {"violence": len(GOOD[0]) / 1000, "new/kind": 0.001}}
    assert {(request.path, request.json["model"]) for request in server.requests} == {("/v1/moderations", "guard")}
    assert list(GOOD) in [request.json["input"] for request in server.requests]
    assert {request.headers["Authorization"] for request in server.requests} == {"Bearer secret"}


def test_a_busy_moderation_server_is_asked_again_as_late_as_it_says():
    with moderation([(429, {"Retry-After": "2"}), (503, {}), (500, {"Retry-After": "0"})]) as server:
        assert ids(run("--moderation", server.url, stdin=jsonl(FLAGGED[0]))) == ["good"]
    first, second, _, _ = server.requests
    assert second.time - first.time >= 2


def test_a_moderation_server_that_goes_down_ends_the_run_after_all_that_came_before():
    failures = []
    with moderation(failures) as server:
        for jobs in ("1", "2"):
            failures[:] = [(200, {}), (401, {})]
            done = run("--moderation", server.url, "-j", jobs, stdin=jsonl(FLAGGED[0], FLAGGED[2], FLAGGED[2]))
            assert done.returncode == 1
            assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == ["good"]
            assert done.stderr.count(b"\n") == 1
            assert b"/v1/moderations: HTTP 401" in done.stderr
            assert b"OPENAI_API_KEY" in done.stderr
    with closed_port() as port:
        done = run("--moderation", f"http://127.0.0.1:{port}/v1", stdin=jsonl(FLAGGED[0]))
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"is the server running?" in done.stderr


def test_texts_that_the_server_will_not_judge_are_rejected_and_the_run_goes_on(tmp_path):
    with moderation([(413, {})]) as server:
        done = run("--moderation", server.url, "--rejects", tmp_path / "r", stdin=jsonl(*FLAGGED[::2]))
    assert ids(done) == ["fine"]
    row = json.loads((tmp_path / "r").read_bytes())
    assert (row["reason"], row["detail"][:21]) == ("moderation", "not judged: HTTP 413:")


@pytest.mark.parametrize("reply", [{}, {"results": []}, [], {"results": [{}, {}]}, {"choices": []}])
def test_a_server_that_is_no_moderation_endpoint_is_said_to_be_none(reply):
    with moderation(answer=reply) as server:
        done = run("--moderation", server.url, stdin=jsonl(FLAGGED[0]))
    assert done.returncode == 1
    assert b"not one of a moderation endpoint" in done.stderr
    assert run("--moderation", "localhost:1", stdin=b"").returncode == 2
