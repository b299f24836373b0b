"""vtools clean --drop-refusals: an answer that only declines, in ten languages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chats import shared
from cleaning import GOOD, rejected

from vtools.clean import refusals

# By language, ten refusals and ten answers that only resemble one: written for this test.
WRITTEN = json.loads((Path(__file__).parent / "golden" / "refusals.json").read_text("utf-8"))


@pytest.mark.parametrize("language", WRITTEN)
def test_ten_refusals_are_known_and_ten_answers_that_resemble_one_are_kept(language):
    written = WRITTEN[language]
    assert [len(written["refusals"]), len(written["answers"])] == [10, 10]
    missed = [text for text in written["refusals"] if not refusals.found(text)]
    wrong = [text for text in written["answers"] if refusals.found(text)]
    found = len(written["refusals"]) - len(missed)
    precision, recall = found / (found + len(wrong)), found / len(written["refusals"])
    assert (precision, recall, missed, wrong) == (1.0, 1.0, [], [])


def test_the_words_of_a_refusal_are_named_and_it_may_be_in_html():
    for text in ("I'm sorry, but I can\u2019t help with that.", "<p><b>I'm sorry</b>, but I can't help with that.</p>"):
        reason, detail = rejected(shared(*GOOD, "And?", text), drop_refusals=True)
        assert (reason, detail) == ("refusal", "messages[3]: i'm sorry, but i can't help")


@pytest.mark.parametrize("language", WRITTEN)
def test_a_refusal_in_a_longer_answer_is_a_part_of_it(language):
    refusal, answer = WRITTEN[language]["refusals"][0], WRITTEN[language]["answers"][5]
    assert refusals.found(f"{answer}\n\n{refusal}") is None
    assert refusals.found(f"{refusal}\n\n{answer * 20}") is None
    assert refusals.found(f"{refusal}\n\n- {answer}\n- {answer}\n") is None
    assert refusals.found(f"{refusal}\n\n```\nprint(1)\n```") is None


def test_an_answer_after_the_refusal_counts_and_an_offer_does_not():
    refusal = "I can't browse the web."
    assert refusals.found(f"{refusal} However, I can help you with something else.")
    assert refusals.found(f"{refusal} If you paste the page, I'll read it.")
    assert (
        refusals.found(f"{refusal} However, the river is 612 km long and rises in the mountains of the east.") is None
    )
    assert refusals.found(f"{refusal} But I can tell you what I know: the river is 612 km long.") is None


def test_beginnings_that_are_repeated_take_no_time_to_speak_of_and_are_no_refusal():
    for piece in ("i'm sorry, ", "as an ai ", "but ", "- x\n", "1. ", "申し訳", "我", "je ne peux ", "thank you for "):
        for size in (300, 900, 50_000):
            assert refusals.found((piece * size)[:size]) is None
