"""vtools clean: which turns stay, and that every turn of the input is written or counted by the reason that it is not."""

from __future__ import annotations

import json

import pytest
import running
from chats import chat, jsonl, shared
from cleaning import GOOD, cleaned, rejected, run
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vtools.clean import clean_record
from vtools.records import conversation
from vtools.records.jsonl import Reject

RIVERS = ("Name a river of the north.", "The Glomma, in the east of its land.")
LAKES = ("And a lake?", "The Mjøsa, which it flows past.")


def counted(tmp_path, *options, stdin: bytes, tool: str = "clean") -> tuple[dict, str]:
    """The stats of a run whose turns add up, and its closing line."""
    done = running.run(tool, *options, "--stats", tmp_path / "stats", stdin=stdin)
    assert done.returncode == 0, done.errors
    stats = json.loads((tmp_path / "stats").read_bytes())
    assert stats["turns_in"] == stats["turns_out"] + stats["turns_dropped"]
    return stats, done.errors


# Empty questions and answers


@pytest.mark.parametrize(
    ("texts", "kept"),
    [
        ((*RIVERS, "Which?", "", *LAKES), (*RIVERS, *LAKES)),
        ((*RIVERS, "", "The lost answer.", *LAKES), (*RIVERS, *LAKES)),
        (("", "", *RIVERS), RIVERS),
        ((*RIVERS, "\u200b", " \n", *LAKES, "Which?", "<p></p>"), (*RIVERS, *LAKES)),
    ],
)
def test_a_pair_with_an_empty_question_or_answer_goes_and_those_around_it_stay(texts, kept):
    assert cleaned(*texts) == list(kept)
    record = {"messages": chat(*texts, system="Be brief.")}
    assert clean_record(record)["messages"] == chat(*kept, system="Be brief.")


def test_a_conversation_of_empty_pairs_is_rejected_whole():
    assert rejected(shared("Which?", "", "", "Lost."))[0] == "empty"


def test_fastchats_rules_cut_at_the_first_empty_text_and_the_cut_turns_are_counted(tmp_path):
    pairs = shared(*RIVERS, "Which?", "", *LAKES, "Left?")["conversations"]
    data = jsonl({"id": "a", "conversations": [{"from": "gpt", "value": "Hello!"}, *pairs]})
    stats, line = counted(tmp_path, "--preset", "vicuna", stdin=data)
    assert stats["turn_reasons"] == {"empty": 4, "no_question": 1, "unanswered": 1}
    assert (stats["turns_in"], stats["turns_out"]) == (8, 2)
    assert "turns_in 8, turns_out 2, turns_dropped 6 (empty 4, no_question 1, unanswered 1)" in line


# Counts


def test_turns_that_go_are_counted_by_reason_in_the_closing_line_and_the_stats(tmp_path):
    data = jsonl(
        {
            "conversations": [
                {"from": "gpt", "value": "Hello!"},
                *shared(*RIVERS, "Which?", "", *LAKES)["conversations"],
            ]
        },
        shared(*GOOD, "left open"),
        shared(*GOOD),
        shared(*GOOD),
        shared("1", "2"),
        {"messages": chat(*GOOD, "More?", "More.", system="Be brief.")},
        {"conversations": [{"from": "nobody", "value": "x"}]},
    )
    stats, line = counted(tmp_path, stdin=data)
    # The system message is no turn, and neither is what cannot be read.
    assert (stats["turns_in"], stats["turns_out"]) == (7 + 3 + 2 + 2 + 2 + 4, 4 + 2 + 4)
    assert stats["turn_reasons"] == {"empty": 2, "no_question": 1, "rejected": 6, "unanswered": 1}
    assert "turns_in 20, turns_out 10, turns_dropped 10 (rejected 6, empty 2, no_question 1, unanswered 1)\n" in line
    assert "turns" not in counted(tmp_path, stdin=jsonl(shared(*GOOD)))[1]


def test_turns_that_are_merged_stay_and_are_counted_as_such(tmp_path):
    roles = ["user", "user", "assistant", "assistant", "user"]
    data = jsonl({"messages": [{"role": role, "content": f"text {place}"} for place, role in enumerate(roles)]})
    stats, line = counted(tmp_path, "--merge-same-role", stdin=data)
    assert (stats["turns_in"], stats["turns_out"], stats["turns_merged"]) == (5, 4, 2)
    assert stats["turn_reasons"] == {"unanswered": 1}
    assert "turns_dropped 1 (unanswered 1)" in line


# Merging


def test_an_answer_that_is_context_is_not_merged_with_one_that_is_trained():
    weights = [{"weight": 0}, {"weight": 0}, {"weight": 1}, {}]
    answers = [{"role": "assistant", "content": f"answer {n}", **weight} for n, weight in enumerate(weights)]
    record = {"messages": [*chat("A question of some length?"), *answers]}
    merged = clean_record(record, merge_same_role=True)
    assert [(m["content"], m.get("weight")) for m in merged["messages"][1:]] == [
        ("answer 0\n\nanswer 1", 0),
        ("answer 2\n\nanswer 3", 1),
    ]
    assert clean_record(merged, merge_same_role=True) == merged
    assert rejected(record)[0] == "role_order"


def test_of_an_empty_answer_beside_another_only_the_empty_one_goes():
    answers = [
        {"role": "assistant", "content": "", "train": False},
        {"role": "assistant", "content": "The answer to it.", "train": True},
    ]
    record = {"messages": [*chat("A question of some length?"), *answers]}
    assert clean_record(record, merge_same_role=True)["messages"] == [*record["messages"][:1], answers[1]]


# Random conversations

TEXTS = st.sampled_from(["", " \u200b", "ok", "a longer text about rivers", "<p>a page of text</p>", "<p> </p>", "0" * 20, "\n1. a\n1. b", "Error in body stream", "</s>", "jo@corp.io"])  # fmt: skip
KEYS = st.sampled_from([{}, {}, {"weight": 0}, {"train": False}, {"name": "x"}, {"tool_calls": None}])
TURN = st.builds(
    lambda role, text, keys: {"role": role, "content": text, **keys},
    st.sampled_from(["user", "assistant", "user", "assistant", "system"]),
    TEXTS,
    KEYS,
)
PAIRS = st.lists(st.tuples(TEXTS, TEXTS), max_size=4).map(
    lambda pairs: chat(*[text for pair in pairs for text in pair])
)
ASIDE = st.sampled_from([{}, {}, {}, {"plugins": ["p"]}, {"tools": [1]}, {"rejected": chat("x")[:0]}, {"rejected": [{"role": "assistant", "content": ""}]}, {"rejected": [{"role": "assistant", "content": "worse"}]}])  # fmt: skip
WHOLE = st.builds(
    lambda front, middle, back, aside: {"messages": front + middle + back, **aside},
    st.lists(TURN, max_size=2),
    PAIRS,
    st.lists(TURN, max_size=2),
    ASIDE,
)
RECORDS = st.lists(WHOLE | st.just({"messages": [{"role": "nobody", "content": "x"}]}) | st.just({"x": 1}), max_size=20)
OPTIONS = st.sampled_from([[], ["--merge-same-role"], ["--preset", "vicuna"], ["--dedupe", "longest"], ["--special-tokens", "drop", "--pii", "drop"], ["--keep", "html", "--keep", "too_short"]])  # fmt: skip


def turns(messages: list[dict], every: bool) -> int:
    return sum(every or message["role"] != "system" for message in messages)


def readable(records: list[dict], every: bool) -> int:
    """The turns of the records that can be read; FastChat's rules count `every` message."""
    found = 0
    for record in records:
        try:
            joined = conversation.read(record)[
                "messages"
            ]  # several system messages in a row are one, but not to FastChat
            found += len(record.get("messages") or record["conversations"]) if every else turns(joined, every)
        except Reject as reject:
            # FastChat's rules know no role but their own two, and drop what has another one.
            found += len(record["messages"]) if every and reject.reason == "unknown_role" else 0
    return found


@settings(max_examples=6, suppress_health_check=[HealthCheck.too_slow])
@given(RECORDS, OPTIONS)
@example([{"messages": [{"role": "system", "content": ""}] * 2}], ["--preset", "vicuna"])
def test_every_turn_is_written_merged_or_counted_by_its_reason_in_clean_and_in_split(
    tmp_path_factory, eot, records, options
):
    folder = tmp_path_factory.mktemp("turns")
    every = "vicuna" in options
    records = [shared(*GOOD, id="good"), *records, *records[:3]]
    data = jsonl(*records)
    runs = [
        run(*options, "-j", jobs, "--stats", folder / f"s{jobs}", "--rejects", folder / f"r{jobs}", stdin=data)
        for jobs in (1, 2)
    ]
    assert [done.returncode for done in runs] == [0, 0], runs[0].errors
    assert runs[0].stdout == runs[1].stdout
    assert runs[0].stderr == runs[1].stderr
    for name in "sr":
        assert (folder / f"{name}1").read_bytes() == (folder / f"{name}2").read_bytes()
    assert run(*options, stdin=runs[0].stdout).stdout == runs[0].stdout
    stats = json.loads((folder / "s1").read_bytes())
    assert stats["turns_in"] == readable(records, every)
    assert stats["turns_in"] == stats["turns_out"] + stats["turns_dropped"]
    assert stats["turns_dropped"] == sum(stats["turn_reasons"].values())
    written = sum(turns(record["messages"], every) for record in runs[0].records)
    assert stats["turns_out"] - stats["turns_merged"] == written
    gone = [json.loads(line).get("record") for line in (folder / "r1").read_bytes().splitlines()]
    assert stats["turn_reasons"].get("rejected", 0) == readable(gone, every)

    for source, known in ((runs[0].stdout, written), (data, None)):
        split, _ = counted(folder, "--tokenizer", eot, "--max-tokens", "24", "--overlong", "drop", stdin=source, tool="split")  # fmt: skip
        assert split["turns_in"] == (known if known is not None else split["turns_in"])
