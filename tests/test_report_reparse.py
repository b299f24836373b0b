"""`vtools report --reparse`: published judges' replies, which keep to older forms, are read again and never guessed."""

from __future__ import annotations

import json

import pytest
from chats import jsonl
from conftest import DATA

from vtools.report import reparse

REVIEWS = DATA / "vicuna-blog" / "review"


def labelled(first: object, second: object, heading: str = "Scores:") -> str:
    return f"First I solve it: 2 + 2 = 4.\n\n{heading}\nAssistant 1: {first}\nAssistant 2: {second}\n\nThat is all."


@pytest.mark.parametrize("name", ["review_alpaca-13b_vicuna-13b.jsonl", "review_gpt35_vicuna-13b.jsonl"])
def test_all_of_gpt4s_reviews_are_read_and_give_the_published_scores(name):
    if not (REVIEWS / name).exists():
        pytest.skip(f"no {REVIEWS / name} (set VTOOLS_TEST_DATA)")
    reviews = [json.loads(line) for line in (REVIEWS / name).read_text().splitlines()]
    assert len(reviews) == 80
    assert [reparse.blog({**review, "score": [-1, -1]})["score"] for review in reviews] == [
        review["score"] for review in reviews
    ]


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        ("8 9\nBoth are helpful.", (8, 9)),
        ("\n8.5, 9\nBoth are helpful.", (8.5, 9)),
        ("0 10\nThe first is empty.", (0, 10)),
        (labelled(10, 6), (10, 6)),
        (labelled("8/10.", "0/10."), (8, 0)),
        (labelled("1 (no steps)", "8 (good steps)", "I give the following scores:\n"), (1, 8)),
        ("In conclusion, the scores are (1, 5) for Assistant 1 and 2.", (1, 5)),
        # Not a score, or not one that can be told:
        ("Assistant 1:\n1. names eight\nAssistant 2:\n2. names nine", None),
        ("Scores:\nAssistant 1:\n8 tips are given\nAssistant 2:\n9 tips", None),
        ("Assistant 1: 8\nAssistant 2: 9", None),
        (labelled(2, 5, "Errors:"), None),
        (labelled("3 + 4", "7"), None),
        (labelled("4 out of 5", "3 out of 5"), None),
        (labelled(11, 6), None),
        (labelled(8, 6) + "\n" + labelled(6, 8), None),
        (labelled(8, 6).replace("Assistant 2: 6", ""), None),
        ("The end of the segment is (10, 4), so Assistant 2 is right.", None),
        ("2024 12\nA date.", None),
        ("I would rate them 8 and 9.", None),
        ("8/10", None),
        ("", None),
    ],
)  # fmt: skip
def test_two_scores_are_read_from_the_blogs_forms_and_never_guessed(reply, wanted):
    assert reparse.scores(reply) == wanted


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        ("Rating: [[8]]", 8), ("[[8.5]] and then [[3]]", 3), ("[[8/10]]", 8), ("[[05]]", 5), ("[[11]]", None),
        ("The list a[0] is wrong. Rating: 7", None), ("see ref [1]. I rate it 9/10", None), ("$ERROR$", None),
        ("[[0]]", 0), ("[[10]]", 10), ("[[1000]]", None), ("[[8, 9]]", None),
    ],
)  # fmt: skip
def test_a_rating_is_the_last_in_brackets_and_from_0_to_10(reply, wanted):
    assert reparse.rating(reply) == wanted


def test_a_letter_counts_unless_there_are_two_different_ones():
    assert [reparse.letter(text) for text in ("[[A]]", "so [[C]], as said: [[C]]", "[[A]], no: [[B]]", "A", "[[D]]")] == [
        "A", "C", None, None, None,
    ]  # fmt: skip


def test_what_is_stored_does_not_count_and_a_score_of_0_does(vtools):
    texts = ["0 8\nThe first is empty.", "9 1\n", "I cannot tell."]
    rows = [{"question_id": n, "text": text, "score": [5, 5], "reviewer_id": "gpt-4"} for n, text in enumerate(texts)]
    stored = vtools("report", "--json", stdin=jsonl(*rows)).records[0]["pairs"][0]
    again = vtools("report", "--json", "--reparse", "blog", stdin=jsonl(*rows)).records[0]["pairs"][0]
    assert (stored["ties"], stored["unparsed"]) == (3, 0)
    assert (again["score_a"], again["score_b"], again["n"], again["unparsed"]) == (9, 9, 2, 1)


def test_mt_benchs_judgments_are_read_again_of_pairs_and_of_single_answers(vtools):
    about = {"model_1": "x", "model_2": "y", "judge": ["gpt-4", "pair-v2"], "g1_winner": "tie", "g2_winner": "tie"}
    games = [("[[A]]", "[[B]]"), ("[[B]]", "[[A]]"), ("[[A]] or [[B]]", "[[A]]"), ("[[C]]", "[[C]]")]
    pairs = [
        {"question_id": n, **about, "g1_judgment": first, "g2_judgment": second}
        for n, (first, second) in enumerate(games)
    ]
    grade = {"model": "x", "judge": ["gpt-4", "single-v1"], "score": 1, "turn": 2}
    singles = [{"question_id": n, **grade, "judgment": text} for n, text in enumerate(["Rating: [[0]]", "[[9]]", "9"])]
    again = vtools("report", "--json", "--reparse", "mtbench", stdin=jsonl(*pairs, *singles)).records[0]
    (pair,), (graded,) = again["pairs"], again["grades"]
    assert (pair["a_wins"], pair["b_wins"], pair["ties"], pair["unparsed"]) == (1, 1, 1, 1)
    assert (graded["mean"], graded["n"], graded["unparsed"]) == (4.5, 3, 1)
    stored = vtools("report", "--json", stdin=jsonl(*singles)).records[0]["grades"][0]
    assert (stored["mean"], stored["judge"], stored["rubric"]) == (1, "gpt-4", "single-v1")


@pytest.mark.parametrize("style", ["blog", "mtbench"])
def test_what_has_no_reply_to_read_again_is_named(vtools, style):
    mine = {"id": "q", "order": "ab", "scores": None, "verdict": "a", "a": "A", "b": "B", "judge": "J"}
    done = vtools("report", "--reparse", style, stdin=jsonl(mine))
    assert done.returncode == 1 and done.errors.count("\n") == 1 and "(id, order, scores" in done.errors
