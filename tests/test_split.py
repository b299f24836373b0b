"""split: exact token counts, no turn lost, hold-out sides that never mix."""

from __future__ import annotations

import json
import re

import pytest
from conftest import chat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vtools import model, template
from vtools.split import segments

WORDS = st.integers(0, 120).map(lambda count: "word " * count + "end")
TALK = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=8).map(
    lambda turns: chat(*[text for turn in turns for text in turn])
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=TALK, limit=st.integers(60, 400), system=st.sampled_from([None, "Be kind."]))
def test_segments_hold_every_turn_and_none_is_too_long_but_a_single_pair(eot, messages, limit, system):
    lead = [{"role": "system", "content": system}] if system else []
    record = {"id": "x", "messages": lead + messages}
    made = segments.split(record, reference=eot, template=None, limit=limit)
    made = made if isinstance(made, list) else [made]
    render = template.load(None, model.tokenizer(eot))
    assert [m for part in made for m in part["messages"][len(lead) :]] == messages
    for part in made:
        assert part["messages"][: len(lead)] == lead
        length = len(render.render(part["messages"]).ids)
        assert length <= limit or len(part["messages"]) == len(lead) + 2
        if "segment" in part:
            assert part["segment"]["tokens"] == length
    # Greedy: no segment could have taken the next one's first pair.
    for part, following in zip(made, made[1:], strict=False):
        longer = part["messages"] + following["messages"][len(lead) : len(lead) + 2]
        assert len(render.render(longer).ids) > limit


def test_ids_say_where_a_segment_starts(vtools, eot):
    record = {"id": "abc", "messages": chat(*["word " * 40] * 6)}
    done = vtools("split", "--tokenizer", eot, "--max-tokens", 200, stdin=json.dumps(record))
    assert [part["id"] for part in done.records] == ["abc_0", "abc_2", "abc_4"]
    assert done.records[1]["segment"]["of"] == "abc"
    assert (done.records[1]["segment"]["index"], done.records[1]["segment"]["count"]) == (1, 3)


def test_a_conversation_that_fits_is_unchanged(vtools, eot):
    record = {"id": "abc", "messages": chat("Hi", "Hello"), "note": 1}
    (part,) = vtools("split", "--tokenizer", eot, stdin=json.dumps(record)).records
    assert part.pop("vtools")[0]["op"] == "split"
    assert part == record


def test_a_pair_too_long_by_itself_is_kept_and_counted(vtools, eot):
    records = [
        {"id": "a", "messages": chat("word " * 200, "word " * 200)},
        {"id": "b", "messages": chat("Hi", "Hello")},
    ]
    done = vtools("split", "--tokenizer", eot, "--max-tokens", 100, stdin="\n".join(map(json.dumps, records)))
    assert [part["id"] for part in done.records] == ["a", "b"]
    assert "overlong 1" in done.errors


def test_an_empty_answer_is_rejected_by_its_place(vtools, eot, tmp_path):
    record = {"id": "a", "messages": chat("q", "a", "q2", "")}
    done = vtools("split", "--tokenizer", eot, "--rejects", "r", stdin=json.dumps(record))
    (reject,) = [json.loads(line) for line in (tmp_path / "r").read_text().splitlines()]
    assert (reject["reason"], reject["id"]) == ("template_error", "a")
    assert "messages[3]" in reject["detail"]
    assert done.returncode == 0


def hold_out(vtools, eot, data, tmp_path, *more):
    args = [
        "--tokenizer",
        eot,
        "--max-tokens",
        120,
        "--hold-out",
        "20%",
        "--hold-out-file",
        "held.jsonl",
        "-o",
        "train.jsonl",
    ]
    assert vtools("split", *args, *more, stdin=data).returncode == 0
    return [
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("train.jsonl", "held.jsonl")
    ]


def test_no_conversation_is_on_both_sides_and_a_rerun_gives_the_same_sides(vtools, eot, tmp_path):
    # ShareGPT V3's own ids are segments already: Abc0007_0 and Abc0007_4 are one conversation.
    records = [
        {"id": f"Abc{n:04}_{part}", "messages": chat(*["word " * 30] * 4)} for n in range(200) for part in (0, 4)
    ]
    data = "\n".join(map(json.dumps, records))
    train, held = hold_out(vtools, eot, data, tmp_path)
    sides = [{re.sub("_.*", "", part["id"]) for part in side} for side in (train, held)]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 200
    assert 20 <= len(sides[1]) <= 60
    assert hold_out(vtools, eot, data, tmp_path, "-j", 2) == [train, held]
    _, held_backwards = hold_out(vtools, eot, "\n".join(map(json.dumps, records[::-1])), tmp_path)
    assert {part["id"] for part in held_backwards} == {part["id"] for part in held}


@pytest.mark.parametrize(
    "args", [["--hold-out", "1%"], ["--hold-out", "2", "--hold-out-file", "x"], ["--template", "nonsense"]]
)
def test_options_that_make_no_sense_stop_before_reading(vtools, eot, args):
    assert vtools("split", "--tokenizer", eot, *args).returncode in (1, 2)


def test_without_a_tokenizer_it_asks_for_one(vtools):
    done = vtools("split", env={"VTOOLS_MODEL": ""})
    assert done.returncode == 2
    assert "--tokenizer MODEL" in done.errors


def test_ids_that_only_look_like_segments_are_conversations_of_their_own(vtools, eot, tmp_path):
    records = [{"id": f"identity_{n}", "messages": chat("Hi", f"Hello {n}")} for n in range(100)]
    train, held = hold_out(vtools, eot, "\n".join(map(json.dumps, records)), tmp_path)
    assert 5 <= len(held) <= 40
    assert len(train) + len(held) == 100


def test_a_segment_key_of_somebody_else_passes_through(vtools, eot):
    record = {"id": "a", "messages": chat("Hi", "Hello"), "segment": "train"}
    (part,) = vtools("split", "--tokenizer", eot, stdin=json.dumps(record)).records
    assert part["segment"] == "train"
