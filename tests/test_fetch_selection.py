"""fetch: since a date, a sample, and the license of each kind of source."""

from __future__ import annotations

import json

import pytest
import running
from chats import jsonl
from piping import record
from running import good
from source_files import chatgpt


def test_since_keeps_what_was_made_or_continued_from_then_on(tmp_path):
    old = chatgpt(conversation_id="old", update_time=None, create_time=1_600_000_000)
    data = jsonl(chatgpt(), old, {"prompt": "Q", "completion": "A"})
    done = running.run("fetch", "--since", "2023-11-15", "--rejects", tmp_path / "rejects", stdin=data)
    assert [each["id"] for each in done.records] == ["c1"]
    reasons = [json.loads(line) for line in (tmp_path / "rejects").read_bytes().splitlines()]
    assert [(row["reason"], row["detail"]) for row in reasons] == [
        ("too_old", "it is from 2020-09-13T12:26:40Z"), ("too_old", "it has no time"),
    ]  # fmt: skip
    assert "--since soon: write a date as in --since 20" in running.bad("fetch", "--since", "soon", code=2)


def test_a_sample_has_the_same_records_in_any_order_and_its_size_is_its_share():
    rows = [record(number) for number in range(2000)]
    drawn = {each["id"] for each in good("fetch", "--sample", 0.1, stdin=jsonl(*rows))}
    assert 140 < len(drawn) < 260
    assert drawn == {each["id"] for each in good("fetch", "--sample", 0.1, stdin=jsonl(*reversed(rows)))}
    assert drawn < {each["id"] for each in good("fetch", "--sample", 0.3, stdin=jsonl(*rows))}
    assert drawn != {each["id"] for each in good("fetch", "--sample", 0.1, "--seed", 1, stdin=jsonl(*rows))}
    done = running.run("fetch", "--sample", 0.1, "--limit", 5, stdin=jsonl(*rows))
    assert len(done.records) == 5
    assert "5 in, 5 out, 0 rejected, not sampled" in done.errors


def test_a_license_is_set_by_kind():
    data = jsonl(chatgpt(), {"messages": [{"role": "user", "content": "Q"}], "title": "T"})
    first, second = good("fetch", "--license", "chatgpt=mine", "--license", "cc0-1.0", stdin=data)
    assert (first["source"]["license"], second["source"]["license"]) == ("mine", "cc0-1.0")
    assert second["source"]["title"] == "T"


@pytest.mark.parametrize(("given", "why"), [
    (["a", "b"], "--license b: the license of all is given twice"),
    (["chatgpt="], "--license chatgpt=: write NAME or KIND=NAME"),
    (["chatgtp=mine"], "--license chatgtp=mine: no source is called chatgtp; see vtools fetch --list-sources"),
])  # fmt: skip
def test_a_wrong_license_is_said(given, why):
    options = [word for one in given for word in ("--license", one)]
    assert why in running.bad("fetch", *options, code=2)
