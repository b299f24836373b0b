"""split: segments hold every turn, and none is too long but a single pair."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from chats import chat
from hypothesis import given, settings
from hypothesis import strategies as st
from splitting import ANSWER, FIXTURES, WORDS, new_turns

from vtools.models.template import load_template
from vtools.models.tokenizer import load_tokenizer
from vtools.records.jsonl import Reject
from vtools.split import segments

TALK = st.lists(st.tuples(WORDS, st.one_of(WORDS, ANSWER)), min_size=1, max_size=8).map(
    lambda turns: chat(*[text for turn in turns for text in turn])
)
ROLES = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), ANSWER), min_size=1, max_size=8).map(
    lambda turns: [{"role": role, "content": text} for role, text in turns]
)
SYSTEM = st.sampled_from([None, "Be kind."])


@pytest.fixture(scope="session")
def chatml(tmp_path_factory, eot):
    """The <|eot|> tokenizer with a template that writes something else into the last turn, as Qwen 3's does."""
    folder = tmp_path_factory.mktemp("last")
    (folder / "tokenizer.json").write_text((Path(eot) / "tokenizer.json").read_text())
    config = json.loads((Path(eot) / "tokenizer_config.json").read_text())
    think = "{% if loop.last %}<think> nothing to think about </think>{% endif %}{{ message.content }}"
    config["chat_template"] = config["chat_template"].replace("{{ message.content }}", think)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return str(folder)


def cut(messages, reference, limit, system=None, **options):
    """What becomes of a conversation, in its order, and its system message."""
    lead = chat(system=system)
    record = {"id": "x", "messages": lead + messages, "note": 1}
    made = segments.split(record, tokenizer=reference, template=None, max_tokens=limit, **options)
    assert record["messages"] == lead + messages  # nobody writes into it
    if isinstance(made, Reject):
        made = [segments.Segment(record, "x", {"turns_dropped": len(messages), "turns_in": len(messages)}, 0, made)]
    for part in made:
        assert part["messages"][: len(lead)] == lead
        assert part["note"] == 1
        assert part.base == segments.base_id(part) == "x"  # all of a conversation falls on one side, now and later
    assert len({part["id"] for part in made}) == len(made)
    return made, lead


@settings(max_examples=100, suppress_health_check=FIXTURES)
@given(
    messages=st.one_of(TALK, ROLES),
    limit=st.integers(60, 400),
    system=SYSTEM,
    overlap=st.integers(0, 3),
    data=st.data(),
)
def test_segments_hold_every_turn_and_none_is_too_long_but_a_single_pair(
    eot, chatml, messages, limit, system, overlap, data
):
    reference = data.draw(st.sampled_from([eot, chatml]))
    made, lead = cut(messages, reference, limit, system, overlap_turns=overlap)
    render = load_template(None, load_tokenizer(reference))
    assert [message for part in made for message in new_turns(part, lead)] == messages
    for part in made:
        assert not part.reject
        length = len(render.render(part["messages"]).ids)
        alone = [m["role"] for m in part["messages"][len(lead) :]].count("user") < 2
        assert length <= limit or alone
        if "segment" in part:
            assert part["segment"]["tokens"] == length == part.tokens
    # Greedy: no segment could have taken the next one's first pair.
    for part, following in zip(made, made[1:], strict=False):
        new = new_turns(following, lead)
        pair = next((place for place in range(1, len(new)) if new[place]["role"] == "user"), len(new))
        assert len(render.render(part["messages"] + new[:pair]).ids) > limit
        repeated = following["messages"][len(lead) : len(lead) + following["segment"].get("overlap", 0)]
        assert part["messages"][len(part["messages"]) - len(repeated) :] == repeated
        assert [m["role"] for m in repeated].count("user") <= overlap


@settings(max_examples=150, suppress_health_check=FIXTURES)
@given(
    messages=st.one_of(TALK, TALK, ROLES),
    limit=st.integers(30, 250),
    system=SYSTEM,
    overlong=st.sampled_from(["drop", "truncate", "split-answer"]),
    overlap=st.integers(0, 2),
)
def test_no_segment_is_too_long_and_every_turn_is_written_or_rejected(eot, messages, limit, system, overlong, overlap):
    made, lead = cut(messages, eot, limit, system, overlong=overlong, overlap_turns=overlap)
    render = load_template(None, load_tokenizer(eot))
    written = [part for part in made if not part.reject]
    for part in written:
        length = len(render.render(part["messages"]).ids)
        assert length <= limit
        assert part.get("segment", {}).get("tokens", length) == length
    counts = sum((Counter(part.counts) for part in made), Counter())
    assert counts["turns_in"] == len(messages) == counts["turns_out"] + counts["turns_dropped"]
    about = [part["segment"] for part in written if "segment" in part]
    assert [(one["index"], one["count"]) for one in about] == [(place, len(about)) for place in range(len(about))]
    if [m["role"] for m in messages] != ["user", "assistant"] * (len(messages) // 2):
        return
    again = []
    for part in made:
        turns = new_turns(part, lead)
        if part.get("segment", {}).get("part"):  # the question once more, and more of the answer
            assert turns[:-1] == again[-2:-1]
            again[-1] = again[-1] | {"content": again[-1]["content"] + turns[-1]["content"]}
        elif part.get("segment", {}).get("truncated"):
            whole = messages[len(again) + 1]["content"]
            assert whole.startswith(turns[-1]["content"])
            assert len(whole) == len(turns[-1]["content"]) + part["segment"]["truncated"]
            again += [*turns[:-1], turns[-1] | {"content": whole}]
        else:
            again += turns
    assert again == messages


@settings(max_examples=100, suppress_health_check=FIXTURES)
@given(messages=TALK, limit=st.integers(60, 400))
def test_what_split_says_fits_train_takes_uncut(eot, messages, limit):
    from vtools.train import data

    render = load_template(None, load_tokenizer(eot))
    for part in cut(messages, eot, limit, overlong="split-answer")[0]:
        if not part.reject:
            row = data.tokenise(part, render, limit, "error")
            assert not row["truncated"]


def test_a_segment_may_be_exactly_as_long_as_the_limit(eot, chatml):
    messages = chat(*["word " * (5 + turn) for turn in range(8)])
    for reference in (eot, chatml):
        render = load_template(None, load_tokenizer(reference))
        for pairs in (1, 2, 3):
            length = len(render.render(messages[: 2 * pairs]).ids)
            assert len(cut(messages, reference, length)[0][0]["messages"]) == 2 * pairs
            assert len(cut(messages, reference, length - 1)[0][0]["messages"]) == 2 * max(pairs - 1, 1)


@pytest.mark.parametrize("pairs", [3, 40, 150])
def test_many_pairs_are_cut_as_they_would_be_one_by_one(eot, chatml, pairs):
    """Long conversations are looked at in windows, and those of a template that adds nothing up by halving."""
    for reference in (eot, chatml):
        render = load_template(None, load_tokenizer(reference))
        messages = chat(*["word " * (number * 7 % 23 + 1) for number in range(2 * pairs)])
        made, _ = cut(messages, reference, 700)
        expected, begin = [], 0
        for end in range(2, 2 * pairs + 1, 2):
            if end == 2 * pairs or len(render.render(messages[begin : end + 2]).ids) > 700:
                expected.append(messages[begin:end])
                begin = end
        assert [part["messages"] for part in made] == expected


def test_a_template_that_counts_its_turns_is_counted_as_it_renders(eot, tmp_path):
    """One that writes the number of each turn, and a word more from the fourth pair on: nothing adds up."""
    config = json.loads((Path(eot) / "tokenizer_config.json").read_text())
    number = "{{ loop.index }}{% if loop.index > 6 %} again and again and again{% endif %} {{ message.content }}"
    config["chat_template"] = config["chat_template"].replace("{{ message.content }}", number)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_text((Path(eot) / "tokenizer.json").read_text())
    render = load_template(None, load_tokenizer(str(tmp_path)))
    messages = chat(*["word " * (turn % 5 + 1) for turn in range(60)])
    made, _ = cut(messages, str(tmp_path), 200)
    assert len(made) > 3
    assert [message for part in made for message in part["messages"]] == messages
    for part, following in zip(made, [*made[1:], None], strict=True):
        assert len(render.render(part["messages"]).ids) == part.tokens <= 200
        assert following is None or len(render.render(part["messages"] + following["messages"][:2]).ids) > 200


def test_a_segment_begins_with_the_turns_before_it_when_asked(vtools, eot):
    record = {"id": "abc", "messages": chat(*["word " * 30 + str(number) for number in range(16)])}
    args = ["--tokenizer", eot, "--max-tokens", 500, "--overlap-turns", 1]
    made = vtools("split", *args, stdin=json.dumps(record)).records
    assert len(made) > 2
    assert [part["segment"].get("overlap", 0) for part in made] == [0] + [2] * (len(made) - 1)
    start = 0
    for part, before in zip(made, [None, *made], strict=False):
        assert part["id"] == f"abc_{start}"
        if before:
            assert part["messages"][:2] == before["messages"][-2:]
        start += len(part["messages"]) - part["segment"].get("overlap", 0)
    assert [m for part in made for m in new_turns(part, [])] == record["messages"]


@pytest.mark.parametrize("overlong", ["keep", "truncate", "split-answer"])
def test_a_rejected_answer_stays_with_the_segment_that_ends_in_the_chosen_one(eot, overlong):
    rejected = [{"role": "assistant", "content": "No."}]
    record = {"id": "x", "messages": chat(*["word " * 30] * 8), "rejected": rejected}
    parts = segments.split(record, tokenizer=eot, template=None, max_tokens=400, overlong=overlong)
    assert len(parts) > 1
    assert [part.get("rejected") for part in parts] == [None] * (len(parts) - 1) + [rejected]
    record["messages"] = chat("word", "word " * 500)
    parts = segments.split(record, tokenizer=eot, template=None, max_tokens=150, overlong=overlong)
    assert [part.get("rejected") for part in parts] == [rejected if overlong == "keep" else None] * len(parts)
