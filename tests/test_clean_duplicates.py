"""vtools clean: duplicates, near ones too, and questions of a test."""

from __future__ import annotations

import json
import random
import unicodedata

import pytest
import running
from chats import chat, jsonl, shared
from cleaning import GOOD, QUESTION, ids, run
from hypothesis import given
from hypothesis import strategies as st
from running import execute

from vtools.clean import duplicates, near_duplicates
from vtools.records import conversation

# Duplicates


def test_the_first_of_equal_conversations_stays_and_white_space_at_the_edges_makes_no_difference(tmp_path):
    done = run(
        "--rejects",
        tmp_path / "r",
        stdin=jsonl(shared(*GOOD, id="a"), shared(GOOD[0] + "\r\n", "  " + GOOD[1], id="b")),
    )
    assert ids(done) == ["a"]
    row = json.loads((tmp_path / "r").read_bytes())
    assert (row["reason"], row["detail"], row["id"]) == ("dup_exact", "the same texts came before", "b")


TEXTS = st.lists(st.sampled_from(["a", "b", " ", "\n", "\r\n"]), max_size=4).map("".join)


@given(st.lists(TEXTS, min_size=1, max_size=4), st.lists(TEXTS, min_size=1, max_size=4), st.booleans(), st.booleans())
def test_two_conversations_have_one_key_only_if_their_roles_and_texts_are_the_same(one, other, system, other_system):
    def messages(texts, system):
        roles = ["system"] * system + ["user", "assistant"] * 2
        return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]

    def bare(texts):
        return [text.strip().replace("\r\n", "\n") for text in texts]

    first, second = messages(one, system), messages(other, other_system)
    same = bare(one) == bare(other) and [m["role"] for m in first] == [m["role"] for m in second]
    assert (conversation.text_key(first) == conversation.text_key(second)) == same


@given(st.lists(TEXTS, min_size=2, max_size=9), st.booleans())
def test_the_keys_of_the_starts_of_a_conversation_are_those_of_the_shorter_ones(texts, system):
    roles = ["system"] * system + ["user", "assistant"] * 5
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    ends = [end for end in range(1, len(messages)) if messages[end - 1]["role"] == "assistant"]
    assert duplicates.starts({"messages": messages}) == [conversation.text_key(messages[:end]) for end in ends]


def asked(*extra: dict, **keys) -> dict:
    """A record whose message N has the keys of `extra[N]`."""
    messages = [{**message, **more} for message, more in zip(chat(*GOOD), (*extra, {}, {}), strict=False)]
    return {"messages": messages, **keys}


CALL = [{"id": "c", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}]
WORSE = [{"role": "assistant", "content": "The worse answer."}]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (asked(tools=[{"name": "look_up"}]), asked()),
        (asked(tools=[{"name": "look_up"}]), asked(tools=[{"name": "look_it_up"}])),
        (asked(functions=[{"name": "look_up"}]), asked()),
        (asked(tools='[{"name": "look_up"}]'), asked()),
        (asked({}, {"tool_calls": CALL}), asked()),
        (asked({}, {"weight": 0}), asked()),
        (asked({}, {"train": False}), asked({}, {"train": True})),
        (asked(rejected=WORSE), asked()),
        (asked(rejected=WORSE), asked(rejected=[{**WORSE[0], "content": "Another one."}])),
        ({"messages": chat(*GOOD, system="Be brief.")}, {"messages": chat(*GOOD, system="Be kind.")}),
        ({"messages": chat(*GOOD, system="Be brief.")}, asked()),
    ],
)
def test_what_a_model_will_see_differently_is_no_duplicate(one, other):
    assert ids(run(stdin=jsonl({"id": "1", **one}, {"id": "2", **other}))) == ["1", "2"]
    assert ids(run(stdin=jsonl({"id": "1", **one}, {"id": "2", **one}))) == ["1"]


@pytest.mark.parametrize(
    "same",
    [
        *(asked(tools=nothing) for nothing in (None, [], {}, "", "[]", " null ")),
        asked({"name": "jo", "weight": 0}, {"tool_calls": None, "weight": 1}),
        asked(source={"uri": "x"}, rejected=[]),
    ],
)
def test_what_a_model_will_not_see_makes_no_difference(same):
    assert ids(run(stdin=jsonl({"id": "1", **asked()}, {"id": "2", **same}))) == ["1"]


def test_the_order_of_a_tools_keys_makes_no_difference():
    one, other = ({"name": "look_up", "n": 1}, {"n": 1, "name": "look_up"})
    assert ids(run(stdin=jsonl({"id": "1", **asked(tools=[one])}, {"id": "2", **asked(tools=[other])}))) == ["1"]


def test_a_shorter_version_has_the_same_tools_and_system_message_as_the_longer_one():
    longer = chat(*GOOD, "And then?", "Then comes the end.")
    data = jsonl(
        {"id": "none", "messages": longer[:2]},
        {"id": "tools", "messages": longer[:2], "tools": ["t"]},
        {"id": "system", "messages": chat(*GOOD, system="Be brief.")},
        {"id": "context", "messages": [longer[0], {**longer[1], "weight": 0}]},
        {"id": "pair", "messages": longer[:2], "rejected": WORSE},
        {"id": "longer", "messages": longer, "tools": ["t"]},
        {"id": "longer system", "messages": chat(system="Be brief.") + longer, "tools": []},
        {"id": "longer context", "messages": [longer[0], {**longer[1], "weight": 0}, *longer[2:]]},
    )
    kept = ids(run("--dedupe", "longest", stdin=data))
    assert kept == ["none", "pair", "longer", "longer system", "longer context"]


def test_the_longest_share_of_a_chat_stays_wherever_it_stands(tmp_path):
    rounds = [f"text number {number} of a chat" for number in range(6)]
    records = [
        shared(*rounds[:2], id="one"), shared(*rounds[:6], id="three"), shared(*rounds[:4], id="two"), shared(*rounds[:6], id="again"),
        shared(*rounds[:3], "another answer here", id="branch"), shared("another chat", "of its own", id="other"),
    ]  # fmt: skip
    data = jsonl(*records)
    done = run("--dedupe", "longest", "--rejects", tmp_path / "r", stdin=data)
    assert ids(done) == ["three", "branch", "other"]
    assert b"reads all input before it writes" in done.stderr
    rows = [json.loads(line) for line in (tmp_path / "r").read_bytes().splitlines()]
    assert [(row["id"], row["reason"]) for row in rows] == [
        ("one", "dup_exact"),
        ("two", "dup_exact"),
        ("again", "dup_exact"),
    ]
    assert rows[0]["detail"] == "record three is a longer version of the same chat"
    assert rows[2]["detail"] == "the same texts came before"
    (tmp_path / "in.jsonl").write_bytes(data)
    again = run("--dedupe", "longest", "-j", "2", tmp_path / "in.jsonl")
    script = '"$@" <(cat in.jsonl)'
    piped = execute(["bash", "-c", script, "-", *running.command("clean", "-q", "--dedupe", "longest")], cwd=tmp_path)
    assert again.stdout == done.stdout == piped.stdout
    assert ids(run(stdin=data)) == ["one", "three", "two", "branch", "other"]


def test_broken_input_is_told_once_and_in_its_place_by_two_passes(tmp_path):
    data = jsonl(shared(*GOOD, id="a")) + b"not json\n" + jsonl(shared(*GOOD, "more of it", "and more", id="b"))
    done = run("--dedupe", "longest", stdin=data)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"stdin:2:" in done.stderr
    done = run("--dedupe", "longest", "--rejects", tmp_path / "r", stdin=data)
    assert ids(done) == ["b"]
    assert len((tmp_path / "r").read_bytes().splitlines()) == 2


def variant(words: list[str], changed: int, dice: random.Random) -> list[str]:
    words = list(words)
    for place in dice.sample(range(len(words)), changed):
        words[place] = f"other{place}"
    return words


def test_a_near_duplicate_is_dropped_with_the_record_that_it_is_like(tmp_path):
    dice = random.Random(5)
    words = [f"w{dice.randrange(10_000)}" for _ in range(300)]
    near_one, far = variant(words, 3, dice), variant(words, 60, dice)
    records = [
        shared("the same question?", " ".join(text), id=name)
        for name, text in zip("anf", (words, near_one, far), strict=True)
    ]
    done = run("--near-duplicates", "0.8", "--rejects", tmp_path / "r", stdin=jsonl(*records))
    assert ids(done) == ["a", "f"]
    row = json.loads((tmp_path / "r").read_bytes())
    assert (row["reason"], row["id"]) == ("dup_near", "n")
    assert row["detail"].endswith(" similar to record a")
    assert 0.8 <= float(row["detail"].split()[0]) < 1
    assert ids(run("--near-duplicates", "0.99", stdin=jsonl(*records))) == ["a", "n", "f"]


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 0.95])
def test_near_duplicates_above_the_threshold_are_found_and_those_well_below_never(threshold):
    dice = random.Random(7)
    found = missed = wrong = 0
    for _ in range(150):
        words = [f"w{dice.randrange(100_000)}" for _ in range(200)]
        other = variant(words, dice.randrange(round(60 * (1.05 - threshold))), dice)
        one, two = ({tuple(text[at : at + near_duplicates.SHINGLE]) for at in range(196)} for text in (words, other))
        truth = len(one & two) / len(one | two)
        seen = near_duplicates.Near(threshold)
        sketches = [near_duplicates.sketch([{"role": "user", "content": " ".join(text)}]) for text in (words, other)]
        assert seen.before(sketches[0], "a") is None
        hit = seen.before(sketches[1], "b") is not None
        found += hit and truth >= threshold
        missed += not hit and truth >= min(1, threshold + 0.08)
        wrong += hit and truth < threshold - 0.15
    assert found > 10
    assert missed <= found * 0.1
    assert wrong == 0


def test_a_sketch_is_the_same_in_every_process():
    code = "from vtools.clean import near_duplicates; print(near_duplicates.sketch([{'role': 'user', 'content': 'a b c d e f g h'}]).digest())"
    one, two = (running.python(code, env={"PYTHONHASHSEED": seed}).stdout for seed in "12")
    assert one == two != b""


def similar(one: list[dict], other: list[dict], threshold: float = 0.8) -> bool:
    seen = near_duplicates.Near(threshold)
    assert seen.before(near_duplicates.sketch(one), "one") is None
    return seen.before(near_duplicates.sketch(other), "other") is not None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("7 - 2", "7 + 2"), ("y = m * k + t", "y = m / k - t"), ("🎲🎲", "🃏"), ("???", "!!!!!"), ("- - -", "* * *"), ("ok #", "ok $"),
        ("नाम रखो", "नीम रीखा"), ("নাম", "নিম"), ("ปิด", "ปัด"), ("סַפָּר", "סֵפֶר"), ("كَتَبَ", "كُتِبَ"), ("pêche", "péché"), ("a < b", "a > b"),
    ],
)  # fmt: skip
def test_texts_that_differ_in_operators_symbols_or_vowel_signs_are_no_near_duplicates(one, other):
    for question in ("", "Solve"):
        assert not similar(chat(question, one), chat(question, other))
        assert similar(chat(question, one), chat(question, one + "\n"))


PROSE = "The old ferry crosses the wide river twice a day, except in winter, when the ice is thick enough for sledges and nobody waits"


@pytest.mark.parametrize("form", [str.upper, lambda text: text.replace(",", " -").replace(" ", "\n"), lambda text: f"**{text.replace('river', '*river*')}**!", lambda text: "\n- ".join(["#", text])])  # fmt: skip
def test_a_copy_in_other_case_punctuation_or_markdown_is_a_near_duplicate(form):
    assert similar(chat("Is it so?", PROSE), chat("is it so", form(PROSE)))


def test_one_text_in_two_unicode_forms_is_a_near_duplicate():
    forms = [unicodedata.normalize(form, "Où va-t-on à pied l'été, près d'ici ?") for form in ("NFC", "NFD")]
    assert forms[0] != forms[1]
    assert similar(chat("?", forms[0]), chat("?", forms[1]), 1.0)
    assert similar(chat("?", "می\u200cروم"), chat("?", "میروم"), 1.0)


def test_a_long_system_message_that_all_records_share_makes_no_near_duplicates():
    system = " ".join(f"rule{number} of the house" for number in range(200))
    one, other = (
        chat("Which day is it?", "It is Monday.", system=system),
        chat("Name a bird.", "A heron.", system=system),
    )
    assert not similar(one, other)
    assert similar(one, chat("Which day is it?", "It is Monday.", system="Another one."), 1.0)
    assert not similar(chat(system=system), chat("Name a bird."))


def test_texts_shorter_than_a_shingle_are_near_duplicates_only_of_themselves():
    seen = near_duplicates.Near(0.8)
    sketches = [
        near_duplicates.sketch([{"role": "user", "content": text}])
        for text in ("one two", "One, two!", "one three", "")
    ]
    assert [seen.before(sketch, "") is None for sketch in sketches] == [True, False, True, True]


# Questions of a test


def test_a_conversation_that_holds_a_question_is_dropped_and_the_question_named(tmp_path):
    (tmp_path / "mt.jsonl").write_bytes(
        jsonl({"question_id": 81, "turns": [QUESTION, "Rewrite your previous response."]})
    )
    (tmp_path / "own.jsonl").write_bytes(
        jsonl({"id": "x", "text": "What is the airspeed velocity of an unladen swallow?"})
    )
    records = [
        shared(f"Hi! {QUESTION.lower()}", GOOD[1], id="asked"), shared(GOOD[0], f"For example: {QUESTION}", id="quoted"),
        shared("Write a travel blog post about Hawaii.", GOOD[1], id="near"), shared("What is the airspeed velocity of an unladen swallow", GOOD[1], id="short"),
        shared(GOOD[0], GOOD[1], "Rewrite your previous response. Now!", GOOD[1], id="later"),
    ]  # fmt: skip
    files = ["--decontaminate", tmp_path / "mt.jsonl", "--decontaminate", tmp_path / "own.jsonl"]
    done = run(*files, "--rejects", tmp_path / "r", stdin=jsonl(*records))
    assert ids(done) == ["near", "later"]
    rows = [json.loads(line) for line in (tmp_path / "r").read_bytes().splitlines()]
    assert {row["reason"] for row in rows} == {"contaminated"}
    assert rows[0]["detail"].startswith(f"question 81 of {tmp_path / 'mt.jsonl'}: compose an engaging travel blog post")
    assert (
        rows[2]["detail"]
        == f"question x of {tmp_path / 'own.jsonl'}: what is the airspeed velocity of an unladen swallow"
    )
    assert ids(run(*files[:2], "--decontaminate-ngram", "4", stdin=jsonl(*records)))[0] == "short"


def test_a_questions_file_that_cannot_be_read_ends_the_run_before_it_begins(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"id": 1}\n')
    done = run("--decontaminate", tmp_path / "q.jsonl", stdin=jsonl(shared(*GOOD)))
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"q.jsonl: question 1: no turns" in done.stderr
