"""vtools clean --explain: each step that a record goes through."""

from __future__ import annotations

import json
import random

from chats import jsonl, shared
from cleaning import GOOD, run


def explained(*arguments: object, stdin: bytes) -> list[dict]:
    done = run(*arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_explain_tells_each_step_that_a_record_went_through():
    record = shared("Mail jo@corp.io", "<p>An <b>answer</b> of some length</p>", "and then", "", id="x")
    told = explained("--explain", "x", "--pii", "redact", stdin=jsonl(shared(*GOOD, id="other"), record))
    assert [line["step"] for line in told] == ["read", "plugin", "html", "turns", "pii", "too_short", "blocked_response", "rep_digits", "wrong_list", "dup_exact", "write"]  # fmt: skip
    by_step = {line["step"]: line for line in told}
    assert {line["outcome"] for line in told} == {"passed", "changed", "kept"}
    assert (by_step["html"]["outcome"], by_step["html"]["detail"]) == ("changed", "turbohtml: changed messages 1")
    assert (by_step["html"]["before"], by_step["html"]["after"]) == (61, 51)
    assert (by_step["turns"]["detail"], by_step["pii"]["detail"]) == ("4 messages to 2", "email 1: changed messages 0")
    assert told[-1] == {"id": "x", "file": "stdin", "line": 2, "step": "write", "outcome": "kept", "detail": "", "before": 40, "after": 40}  # fmt: skip
    assert "markdownify" in explained("--explain", "x", "--engine", "reference", stdin=jsonl(record))[2]["detail"]


def test_explain_ends_at_the_step_that_drops_a_record_and_names_the_one_before_it():
    data = jsonl(shared(*GOOD, id="first"), shared("1", "2", id="x"), shared(*GOOD, id="x"), shared(*GOOD, id="x2"))
    told = explained("--explain", "x", stdin=data)
    dropped = [line for line in told if line["outcome"] == "dropped"]
    assert [(line["line"], line["step"], line["reason"], line["detail"]) for line in dropped] == [
        (2, "too_short", "too_short", "2 characters in all"),
        (3, "dup_exact", "dup_exact", "the same texts came before, as record first"),
    ]
    assert {line["id"] for line in told} == {"x"}
    told = explained(
        "--explain", "first", "--dedupe", "longest", stdin=data + jsonl(shared(*GOOD, "go", "on", id="long"))
    )
    assert told[-1]["detail"] == "record long is a longer version of the same chat"


def test_explain_agrees_with_the_run_itself(tmp_path):
    dice = random.Random(1)
    records = [shared(*dice.choices(["a", "0" * 20, "the answer to it", "</s>", "", "x" * 20], k=dice.randrange(5)), id=str(n)) for n in range(40)]  # fmt: skip
    options = ["--special-tokens", "drop", "--near-duplicates", "0.8"]
    run(*options, "--rejects", tmp_path / "r", stdin=jsonl(*records))
    reasons = {row["id"]: row["reason"] for row in map(json.loads, (tmp_path / "r").read_bytes().splitlines())}
    assert len(set(reasons.values())) > 3
    for name in [*list(reasons)[::6], *[record["id"] for record in records if record["id"] not in reasons][:2]]:
        told = explained(*options, "--explain", name, stdin=jsonl(*records))
        assert told[-1].get("reason") == reasons.get(name)


def test_explain_of_an_id_that_no_record_has_fails_and_says_so():
    done = run("--explain", "nobody", stdin=jsonl(shared(*GOOD)))
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"vtools clean: --explain nobody: no record has this id\n"
    assert run("--explain", "x", "--rejects", "r").returncode == 2
