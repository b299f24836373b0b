"""A small model on this machine as the judge, by the log-probabilities that `vtools serve` gives."""

from __future__ import annotations

import json

import pytest
from conftest import DATA
from serving import Server

BLOG = DATA / "vicuna-blog"
QUESTIONS = 8  # of the blog's 80, which take ten times as long


@pytest.mark.slow
def test_smollm2_gives_a_mass_for_every_call_and_its_report_says_what_it_is_worth(vtools, tmp_path, smollm2):
    names = [BLOG / "answer" / f"answer_{name}.jsonl" for name in ("gpt35", "vicuna-13b")]
    if not all(name.exists() for name in names):
        pytest.skip(f"no answers in {BLOG} (set VTOOLS_TEST_DATA)")
    for name in names:
        (tmp_path / name.name).write_text("".join(name.read_text().splitlines(keepends=True)[:QUESTIONS]))
    server = Server(f"smollm2={smollm2}")
    try:
        ask = ("--base-url", server.url, "--model", "smollm2", "--questions", BLOG / "question.jsonl")
        done = vtools("judge", *(name.name for name in names), *ask, "--logprobs", "-j", 8)
    finally:
        server.end()
    assert len(done.records) == 2 * QUESTIONS and {row["form"] for row in done.records} == {"logprobs"}
    assert all(0 < row["mass"] <= 1 for row in done.records)
    assert all((row["verdict"] is None) == (row["mass"] < 0.5) for row in done.records)
    text = vtools(
        "report", "--table", stdin=b"".join(json.dumps(row).encode() + b"\n" for row in done.records)
    ).stdout.decode()
    print(done.errors, text, sep="\n")
    assert "warning: " in text
