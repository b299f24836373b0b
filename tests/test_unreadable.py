"""Input that cannot be read: what is said, what to do, how the run ends, and that nothing invalid is ever written."""

from __future__ import annotations

import json

import pytest
from chats import chat, jsonl
from piping import record

from vtools.options import Common
from vtools.process import Failure
from vtools.records import filtering, streams


def turns(**roles: str) -> dict:
    return {"messages": [{"role": role, "content": text} for role, text in roles.items()]}


HELPED = {"messages": [*chat("What is a reed?"), {"role": "helper", "content": "A grass."}]}
ADVICE = {
    "--role helper=assistant": HELPED,
    "--role asker=user": turns(asker="What is a reed?", assistant="A grass."),
    "--role 'the sage=assistant'": {"conversations": [{"from": "human", "value": "Q"}, {"from": "The Sage", "value": "A"}]},
    "--columns user=question,assistant=the_answer": {"nr": 3, "question": "What is a reed?", "the_answer": "A grass."},
    "--columns user=COLUMN,assistant=COLUMN": {"frage": "What is a reed?", "antwort": "A grass."},
    "--columns messages=dialogue": {"dialogue": chat("What is a reed?", "A grass.")},
}  # fmt: skip


@pytest.mark.parametrize("said", ADVICE)
def test_if_no_record_can_be_read_the_first_is_quoted_with_what_to_do(vtools, said):
    done = vtools("fetch", stdin=jsonl(ADVICE[said], ADVICE[said]))
    assert (done.returncode, done.stdout) == (1, b"")
    reason = "unknown_role" if "--role" in said else "bad_schema"
    assert done.errors.startswith(f"vtools fetch: stdin:1: {reason}: ")
    assert done.errors.endswith(f"; {said} (none of the 2 records can be read)\n")
    assert done.errors.count("\n") == 1


@pytest.fixture(params=["fetch", "clean", "split", "stats"])
def command(request, eot) -> list[str]:
    return [request.param, *(["--tokenizer", eot] if request.param == "split" else [])]


def test_input_of_which_no_record_can_be_read_fails_and_rejects_are_saved_all_the_same(vtools, command, tmp_path):
    data = jsonl(HELPED, {"a": 1}, HELPED)
    for more in ([], ["--rejects", "rejects.jsonl"]):
        done = vtools(*command, *more, stdin=data)
        assert done.returncode == 1
        assert "stdin:1: unknown_role" in done.errors
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "rejects.jsonl").read_bytes().splitlines()]
    assert reasons == ["unknown_role", "bad_schema", "unknown_role"]


def test_lines_that_are_no_json_are_a_failure_with_rejects_too_if_there_is_nothing_else(vtools, command):
    done = vtools(*command, "--rejects", "rejects.jsonl", stdin=b"no\njson\n")
    assert done.returncode == 1
    assert "stdin:1: bad_json: not JSON at character 1: a value is missing (none of the 2 records" in done.errors


def test_no_input_and_records_that_are_dropped_are_no_failure(vtools, command):
    assert vtools(*command, stdin=b"").returncode == 0
    empty = jsonl({"messages": []}, {"messages": chat("A question without an answer?")})
    assert vtools(*command, stdin=empty).returncode == 0
    assert vtools(*command, stdin=jsonl(HELPED, record(1))).returncode == 0


def test_if_nothing_comes_out_the_closing_line_quotes_the_first_reason(vtools):
    done = vtools("clean", stdin=jsonl({"messages": chat("Hi", "Ho")}))
    assert done.returncode == 0
    assert "1 in, 0 out, 1 rejected (too_short 1), turns_in 2, " in done.errors
    assert ", the first: stdin:1: too_short: " in done.errors
    done = vtools("clean", stdin=jsonl({"messages": chat("Hi", "Ho")}, HELPED, HELPED))
    assert done.returncode == 0
    assert ", most cannot be read, the first: stdin:2: unknown_role: " in done.errors
    assert done.errors.endswith("; --role helper=assistant\n")


def test_if_almost_nothing_comes_out_the_closing_line_says_why(vtools):
    said = "most cannot be read, the first: stdin:2: unknown_role"
    assert said in vtools("fetch", stdin=jsonl(record(1), *[HELPED] * 100)).errors
    assert said not in vtools("fetch", stdin=jsonl(record(1), *[HELPED] * 99)).errors


VALID = {"id": "a", "messages": chat("Q", "A", system="S")}
INVALID = {
    "no id": {"messages": chat("Q", "A")},
    "an id that is a number": {**VALID, "id": 7},
    "no messages": {"id": "a"},
    "messages that are a text": {"id": "a", "messages": "Q"},
    "a message that is a text": {"id": "a", "messages": ["Q"]},
    "no text": {"id": "a", "messages": [{"role": "user"}]},
    "a text that is null": {"id": "a", "messages": [*chat("Q"), {"role": "assistant", "content": None}]},
    "a text in parts": {"id": "a", "messages": [{"role": "user", "content": [{"type": "text", "text": "Q"}]}]},
    "no role": {"id": "a", "messages": [{"content": "Q"}]},
    "another role": {"id": "a", "messages": [{"role": "human", "content": "Q"}]},
    "a role that is a list": {"id": "a", "messages": [{"role": ["user"], "content": "Q"}]},
}


@pytest.mark.parametrize("name", INVALID)
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_record_that_is_not_valid_is_never_written_but_counted_and_saved(tmp_path, name, jobs):
    """Whatever step should make such a record: here a step that does."""
    values = [streams.Value(line, "in", number) for number, line in enumerate(jsonl(VALID, {"bad": 1}, VALID).splitlines(), 1)]  # fmt: skip
    out: list[dict] = []
    counts = filtering.Rejects("clean", str(tmp_path / "rejects"))
    work = lambda given: INVALID[name] if "bad" in given else given  # noqa: E731
    several = lambda given: [VALID, INVALID[name]] if "bad" in given else given  # noqa: E731
    common = Common(quiet=True)
    for step in (work, several):
        filtering.run(counts, values, step, common, write=out.append)
    if jobs == 2:
        filtering.run(counts, values, work=dict, common=Common(quiet=True, jobs=2), write=out.append, finish=work)
    assert out == [VALID] * 2 * (jobs + 1)
    assert counts.reasons == {"bad_schema": jobs + 1}
    rows = [json.loads(line) for line in (tmp_path / "rejects").read_bytes().splitlines()]
    assert {(row["reason"], row["line"], str(row["record"])) for row in rows} == {("bad_schema", 2, "{'bad': 1}")}


def test_a_run_that_can_write_no_valid_record_fails():
    counts = filtering.Rejects("clean", None)
    with pytest.raises(Failure, match="in:1: bad_schema: the id is not a text"):
        filtering.run(counts, [streams.Value(b"{}", "in", 1)], dict, Common(quiet=True), write=print)
