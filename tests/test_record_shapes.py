"""Records of every shape through fetch, clean and split: what comes out is valid, and every turn is accounted for."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from record_shapes import RECORD

from vtools.records import conversation

ROWS = st.lists(RECORD, min_size=40, max_size=80)


def through(vtools, folder, tool, data, *more):
    """The records that a tool writes, and its counts; no input is its mistake."""
    done = vtools(tool, "--rejects", "rejects", "--stats", "stats", *more, stdin=data)
    assert done.returncode in (0, 1) and "a bug" not in done.errors and "unexpected" not in done.errors, done.errors
    counts = json.loads((folder / "stats").read_text())
    rejects = [json.loads(line) for line in (folder / "rejects").read_bytes().splitlines()]
    assert counts["in"] == counts["out"] + counts["rejected"]
    if tool != "split":  # which rejects parts of records too
        assert len(rejects) == counts["rejected"]
    return done, counts


def check(vtools, folder, eot, rows):
    data = "".join(json.dumps(row) + "\n" for row in rows)
    fetched, counts = through(vtools, folder, "fetch", data)
    assert counts["in"] == len(rows)
    for record in fetched.records:
        assert conversation.flaw(record) is None
        assert conversation.read(record) == record
    again, _ = through(vtools, folder, "fetch", fetched.stdout)
    assert len(again.records) == len(fetched.records)
    cleaned = {}
    for source, lines in (("as they came", data), ("fetched", fetched.stdout)):
        for format in ("messages", "sharegpt"):
            done, counts = through(vtools, folder, "clean", lines, "--format", format, "--merge-same-role")
            assert counts["turns_in"] == counts["turns_out"] + counts["turns_dropped"]
            assert counts["turns_dropped"] == sum(counts["turn_reasons"].values())
            cleaned[source, format] = [
                (record["messages"], record.get("rejected")) for record in map(conversation.read, done.records)
            ]
    assert cleaned["as they came", "messages"] == cleaned["as they came", "sharegpt"]
    assert cleaned["as they came", "messages"] == cleaned["fetched", "messages"] == cleaned["fetched", "sharegpt"]
    twice, counts = through(vtools, folder, "clean", done.stdout, "--merge-same-role")
    assert [(record["messages"], record.get("rejected")) for record in twice.records] == cleaned["fetched", "sharegpt"]
    for lines in (data, done.stdout):
        _, counts = through(vtools, folder, "split", lines, "--tokenizer", eot, "--max-tokens", 64)
        assert counts["turns_in"] == counts["turns_out"] + counts["turns_dropped"] + counts["turns_lost"]


KEPT = [
    HealthCheck.too_slow,
    HealthCheck.data_too_large,
    HealthCheck.function_scoped_fixture,
    HealthCheck.large_base_example,
]


@settings(max_examples=2, phases=[Phase.generate], suppress_health_check=KEPT)
@given(ROWS)
def test_what_comes_out_is_valid_and_every_turn_is_accounted_for(vtools, tmp_path, eot, rows):
    check(vtools, tmp_path, eot, rows)


@pytest.mark.slow
@settings(max_examples=25, phases=[Phase.generate], suppress_health_check=KEPT)
@given(ROWS)
def test_a_thousand_random_records_of_every_shape_are_accounted_for(vtools, tmp_path, eot, rows):
    check(vtools, tmp_path, eot, rows)
