"""`vtools report` reads judgments in the formats in use, checks every value, and keeps both orders apart."""

from __future__ import annotations

import json
import re

import pytest
from chats import jsonl

from vtools.process import Failure
from vtools.report import reading

OURS = {"id": "q", "order": "ab", "scores": None, "verdict": "a", "a": "A", "b": "B", "judge": "J"}


def measured(vtools, rows: list[dict], *args: object) -> dict:
    done = vtools("report", "--json", *args, stdin=jsonl(*rows))
    assert done.returncode == 0, done.errors
    return done.records[0]


def only(vtools, rows: list[dict], *args: object) -> dict:
    (table,) = measured(vtools, rows, *args)["pairs"]
    return table


def write(path, *rows: dict) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(jsonl(*rows))


def review(id: int, scores: list[float], **fields) -> dict:
    return {"question_id": id, "score": scores, "text": "", "reviewer_id": "gpt-4-0328-math", **fields}


def test_reviewers_that_are_numbers_are_one_judge_and_a_score_of_0_counts(vtools):
    rows = [review(n, [0, n], reviewer_id=n) for n in (1, 2, 3)] + [review(4, [-1, -1], reviewer_id=1)]
    table = only(vtools, rows)
    assert (table["n"], table["unparsed"], table["b_wins"], table["score_a"], table["score_b"]) == (3, 1, 3, 0, 6)
    assert table["judge"] == "unknown" and table["score_ratio"] is None


def test_models_of_reviews_are_named_by_their_answers_or_the_file_and_files_of_one_name_are_two_pairs(vtools, tmp_path):
    for folder in ("x", "y"):
        write(tmp_path / folder / "review_m_n.jsonl", *(review(q, [8, 9], text=folder) for q in range(2)))
    done = vtools("report", "--json", "x/review_m_n.jsonl", "y/review_m_n.jsonl")
    assert [(pair["a"], pair["b"], pair["n"]) for pair in done.records[0]["pairs"]] == [
        ("m", "n", 2), ("m (y/review_m_n.jsonl)", "n (y/review_m_n.jsonl)", 2),
    ]  # fmt: skip
    write(tmp_path / "r.jsonl", *(review(q, [8, 9], answer1_id=f"one{q}", answer2_id=f"two{q}") for q in range(2)))
    for name in ("one", "two"):
        rows = ({"answer_id": f"{name}{q}", "question_id": q, "model_id": name.upper(), "text": "x"} for q in range(2))
        write(tmp_path / f"{name}.jsonl", *rows)
    (pair,) = vtools("report", "--json", "r.jsonl", "--answers", "one.jsonl", "--answers", "two.jsonl").records[0]["pairs"]  # fmt: skip
    assert (pair["a"], pair["b"]) == ("ONE", "TWO")
    same = [review(q, [8, 9], answer1_id="gpt35", answer2_id="vicuna") for q in range(2)]
    assert (only(vtools, same)["a"], only(vtools, same)["b"]) == ("gpt35", "vicuna")


def test_alpacaevals_annotations_are_joined_on_the_instruction_and_their_fractions_are_shares(vtools, tmp_path):
    def row(instruction: str, preference: float | None, first: str = "base") -> dict:
        names = {"generator_1": first, "generator_2": "mine" if first == "base" else "base"}
        texts = {"instruction": instruction, "output_1": "x" * 10, "output_2": "y" * 20}
        return {**texts, **names, "annotator": "J", "preference": preference}

    rows = [row("one", 1.75), row("two", 1.0), row("three", 0), row("four", -1), row("five", None), row("one", 1.75)]
    rows.append(row("six", 1.25, first="mine"))  # the reversed pair: mine wins
    (tmp_path / "annotations.json").write_text(json.dumps(rows))
    done = vtools("report", "--json", "annotations.json")
    (table,) = done.records[0]["pairs"]
    assert (table["a"], table["b"], done.records[0]["copies"]) == ("base", "mine", 1)
    assert (table["b_wins"], table["ties"], table["a_wins"], table["unparsed"]) == (2, 1, 1, 2)
    assert table["game_rate"] == (0.75 + 0 + 0.5 + 0.75) / 4 and table["one_order"] == 0
    assert table["bounds"] == [2.5 / 6, 4.5 / 6]


def test_battles_votes_and_both_kinds_of_ties_are_read(vtools):
    battles = [
        {"question_id": n, "model_a": "x", "model_b": "y", "winner": winner, "judge": f"user_{n}"}
        for n, winner in enumerate(["model_a", "model_b", "tie", "tie (bothbad)", "model_b", "?"])
    ]
    battles.append({"question_id": 9, "model_a": "y", "model_b": "x", "winner": "model_a", "judge": "user_9"})
    table = only(vtools, battles)
    assert (table["judge"], table["b_wins"], table["ties"], table["a_wins"], table["unparsed"]) == (
        "people",
        3,
        2,
        1,
        1,
    )
    votes = [{"id": "1", "a": "x", "b": "y", "votes": {"a": 1, "b": 2}}, {"id": "2", "a": "x", "b": "y", "vote": "x"}]
    table = only(vtools, [*votes, {"id": "2", "a": "x", "b": "y", "vote": "tie"}])
    assert (table["n"], table["b_wins"], table["a_wins"], table["win_rate"]) == (2, 1, 1, (2 / 3 + 1 / 4) / 2)


def test_arena_hards_two_games_and_their_weights_are_read(vtools):
    def row(uid: str, *scores: str | None) -> dict:
        games = [{"score": score, "judgment": {"answer": "words"}} for score in scores]
        return {"uid": uid, "model": "mine", "judge": "J", "baseline": "base", "games": games}

    table = only(vtools, [row("1", "B>>A", "A>B"), row("2", "A=B", "B>A"), row("3", "A>B", None)])
    assert (table["a"], table["b"], table["n"], table["unparsed"]) == ("base", "mine", 2, 1)
    assert (table["b_wins"], table["a_wins"], table["win_rate"]) == (1, 1, (1 + 0.25) / 2)
    assert table["game_rate"] == (3 + 1 + 0.5 + 0) / 6


def test_repeats_are_averaged_inside_their_order_and_the_same_key_counts_once(vtools):
    rows = [OURS | {"verdict": each} for each in ("a", "a", "b", "b")] + [OURS | {"order": "ba", "verdict": "b"}]
    assert only(vtools, rows)["win_rate"] == (0.5 + 1) / 2
    keyed = [OURS | {"key": "k", "verdict": "a"}] * 3 + [OURS | {"key": "l", "order": "ba", "verdict": "b"}]
    table = only(vtools, keyed)
    assert (table["win_rate"], table["repeated"]) == (0.5, 2)


def test_a_reversed_pair_is_turned_around_with_its_orders_scores_and_missing_answers(vtools):
    rows = [OURS | {"id": "1", "scores": [9, 1]}, OURS | {"id": "1", "order": "ba", "scores": [9, 2]}]
    turned = {"a": "B", "b": "A", "id": "2", "verdict": "b"}
    rows += [OURS | turned | {"order": "ba", "scores": [1, 9]}, OURS | turned | {"order": "ab", "scores": [2, 9]}]
    rows += [OURS | turned | {"id": "3", "verdict": None, "unanswered": {"a": "empty"}}]
    table = only(vtools, rows)
    assert (table["a"], table["a_wins"], table["both_orders"], table["score_a"], table["score_b"]) == ("A", 2, 2, 18, 3)
    assert table["unanswered"] == {"a": 0, "b": 1}


def test_an_unknown_word_is_no_verdict_and_never_a_loss(vtools):
    table = only(vtools, [OURS | {"verdict": "better", "id": "1"}, OURS | {"verdict": "both_bad", "id": "2"}])
    assert (table["unparsed"], table["ties"], table["a_wins"], table["b_wins"]) == (1, 1, 0, 0)


def test_what_is_mixed_or_contradicts_itself_is_warned_about_with_its_counts(vtools):
    digests = [{"rubric": "vicuna", "rubric_digest": digest, "judge_reported": digest} for digest in ("one", "one", "two")]  # fmt: skip
    rows = [OURS | {"id": str(n), "scores": [1, 9]} | digest for n, digest in enumerate(digests)]
    warnings = only(vtools, rows)["warnings"]
    assert "judgments by more than one prompt are mixed here: vicuna (one) 2, vicuna (two) 1" in warnings
    assert "judgments by more than one model behind the judge's name are mixed here: one 2, two 1" in warnings
    assert "3 verdicts contradict their own scores: the verdict counts" in warnings


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (OURS | {"order": "xy"}, "order is 'xy', not 'ab' or 'ba'"),
        (OURS | {"scores": [1]}, "scores is a list, not two numbers"),
        (OURS | {"scores": ["8", 9]}, "scores is a list, not two numbers"),
        (OURS | {"verdict": True}, "verdict is true or false, not a text"),
        (OURS | {"expectation": 1.5}, "expectation is 1.5, not a number from 0 to 1"),
        (OURS | {"id": None}, "no id or question_id"),
        (OURS | {"a": 3}, "a is 3, not a text"),
        (OURS | {"games": "3"}, "games is '3', not a number from 1 to 100"),
        (review(1, [1, 2, 3]), "score is a list, not two numbers"),
        ({"instruction": "x", "preference": 3}, "preference is 3, not a number from 1 to 2"),
        ({"id": 1, "model": "m", "passed": "yes"}, "passed is 'yes', not true or false"),
        ({"id": 1, "model": "m", "score": "high"}, "score is 'high', not a number"),
        ({"uid": "1", "model": "m", "games": {}}, "games is an object, not a list of two objects"),
        ({"turns": ["x"], "id": 1}, "not a judgment"),
    ],
)  # fmt: skip
def test_a_bad_value_is_an_error_with_its_file_and_line(tmp_path, row, why):
    write(tmp_path / "j.jsonl", *[OURS] * 2, row)
    with pytest.raises(Failure, match=re.escape(f"{tmp_path / 'j.jsonl'}:3: {why}")):
        reading.read([str(tmp_path / "j.jsonl")])


def test_the_format_can_be_named_where_a_record_looks_like_another(vtools):
    rows = [{"id": "1", "a": "x", "b": "y", "verdict": "x", "order": "ab"}]
    assert only(vtools, rows)["unparsed"] == 1
    assert only(vtools, rows, "--read", "votes")["a_wins"] == 1


def test_votes_in_a_file_of_their_own_need_no_more_than_a_winner(vtools, tmp_path):
    write(tmp_path / "votes.jsonl", *({"id": n, "a": "B", "b": "A", "winner": "B"} for n in range(2)))
    rows = [OURS | {"id": str(n), "order": order} for n in range(3) for order in ("ab", "ba")]
    people = only(vtools, rows, "--human", "votes.jsonl")["human"]
    assert (people["questions"], people["people"], people["judge"], people["agreement"]) == (2, 1, 0, 0)
    done = vtools("report", "--baseline", "A", stdin=jsonl(*rows))
    assert done.returncode == 2 and "need three models" in done.errors


def test_scores_and_programs_checks_of_single_answers_are_summarised(vtools):
    rows = [{"id": n, "model": "m", "score": 4 + n} for n in range(3)]
    rows += [{"task_id": n, "model": "m", "passed": n > k} for n in range(3) for k in range(2)]
    found = measured(vtools, rows)
    assert found["grades"][0]["mean"] == 5
    assert found["checks"] == [{"model": "m", "questions": 3, "answers": 6, "pass": {"1": {"rate": 0.5, "ci": None}, "2": {"rate": 2 / 3, "ci": None}}}]  # fmt: skip
