"""`vtools report`: the published figures from the published reviews, and what it says about bad judgments."""

from __future__ import annotations

import pytest
from chats import jsonl
from conftest import DATA

BLOG = DATA / "vicuna-blog"


def review(name: str):
    path = BLOG / "review" / f"review_{name}_vicuna-13b.jsonl"
    if not path.exists():
        pytest.skip(f"no {path} (set VTOOLS_TEST_DATA)")
    return path


def row(id: str, order: str, scores: list[float] | None, verdict: str | None = None, **fields) -> dict:
    if scores and verdict is None:
        verdict = "a" if scores[0] > scores[1] else "b" if scores[0] < scores[1] else "tie"
    return {"id": id, "order": order, "scores": scores, "verdict": verdict, "a": "A", "b": "B", "judge": "J", **fields}


def pair(id: str, ab: list[float], ba: list[float], **fields) -> list[dict]:
    return [row(id, "ab", ab, **fields), row(id, "ba", ba, **fields)]


def table(vtools, rows: list[dict], *args: str) -> dict:
    done = vtools("report", "--json", *args, stdin=jsonl(*rows))
    assert done.returncode == 0, done.errors
    (only,) = done.records[0]["pairs"]
    return only


def test_chatgpt_against_vicuna_is_as_published(vtools):
    done = vtools("report", review("gpt35"), "--questions", BLOG / "question.jsonl", "--json")
    (result,) = done.records[0]["pairs"]
    assert (result["score_a"], result["score_b"]) == (693.0, 638.0)
    assert round(result["score_ratio"], 4) == 0.9206
    assert result["b_wins"] + result["ties"] == 36 and result["n"] == 80 and result["unparsed"] == 0
    low, high = result["score_ratio_ci"]
    assert 0.87 < low < 0.89 and 0.95 < high < 0.97
    ratios = {name: round(counts["score_ratio"], 2) for name, counts in result["categories"].items()}
    assert ratios == {
        "coding": 0.72, "common-sense": 1.0, "counterfactual": 1.02, "fermi": 0.79, "generic": 0.97, "knowledge": 1.01,
        "math": 0.37, "roleplay": 0.98, "writing": 0.98,
    }  # fmt: skip
    text = vtools("report", "--table", review("gpt35")).stdout.decode()
    assert "A 693.0, B 638.0" in text and "92.06%" in text and "36/80" in text and "gpt-4-0328" in text
    assert "80 were shown in one order only" in text


def test_alpaca_against_vicuna_is_as_published(vtools):
    (result,) = vtools("report", review("alpaca-13b"), "--json").records[0]["pairs"]
    assert (result["score_a"], result["score_b"], result["b_wins"]) == (583.0, 704.0, 76)


def test_several_files_are_several_tables(vtools):
    pairs = vtools("report", review("gpt35"), review("alpaca-13b"), "--json").records[0]["pairs"]
    assert [(pair["a"], pair["b"]) for pair in pairs] == [("gpt35", "vicuna-13b"), ("alpaca-13b", "vicuna-13b")]


def test_a_question_is_worth_the_mean_of_both_orders_and_scores_are_means_over_them(vtools):
    rows = pair("1", [9, 7], [7, 9]) + pair("2", [8, 9], [9, 9]) + pair("3", [5, 4], [6, 4]) + pair("4", [5, 5], [5, 5])
    result = table(vtools, rows)
    assert (result["b_wins"], result["ties"], result["a_wins"], result["win_rate"]) == (1, 2, 1, 1.75 / 4)
    assert (result["score_a"], result["score_b"]) == (8 + 8.5 + 5.5 + 5, 8 + 9 + 4 + 5)
    assert (result["inconsistent"], result["first_won"], result["second_won"]) == (0.5, 1, 0)
    assert result["other_rule"] == {"rule": "strict", "b_wins": 0, "ties": 3, "a_wins": 1, "win_rate": 0.375}
    strict = table(vtools, rows, "--ties", "strict")
    assert (strict["b_wins"], strict["ties"], strict["a_wins"], strict["win_rate"]) == (0, 3, 1, 0.375)
    assert strict["other_rule"]["rule"] == "mean" and strict["other_rule"]["b_wins"] == 1


def test_a_judge_that_follows_the_order_or_cannot_be_read_is_named_and_warned_of(vtools):
    rows = [row for n in range(4) for row in pair(str(n), [9, 7], [7, 9])] + [
        row("x", "ab", None),
        row("x", "ba", [5, 6]),
    ]
    text = vtools("report", "--table", stdin=jsonl(*rows)).stdout.decode()
    assert "judge: J" in text
    assert "warning: 1 of 5 have no verdict" in text
    assert "warning: the judge changed its mind with the order in 100%" in text
    assert "the first answer won both times 4, the second 0" in " ".join(text.split())


def test_a_missing_verdict_counts_for_nobody(vtools):
    result = table(vtools, [*pair("1", [5, 9], [5, 9]), row("2", "ab", [9, 1]), row("2", "ba", None)])
    assert (result["n"], result["unparsed"], result["a_wins"], result["score_a"]) == (1, 1, 0, 5)


def test_identical_answers_are_ties_without_scores(vtools):
    same = [row("2", order, None, "tie") for order in ("ab", "ba")]
    result = table(vtools, pair("1", [5, 9], [5, 9]) + same)
    assert (result["ties"], result["scored"], result["score_b"]) == (1, 1, 9)
    assert any("leave out 1" in warning for warning in result["warnings"])


def test_turns_of_one_question_are_one_draw_and_20_questions_have_an_interval(vtools):
    rows = [row for n in range(40) for row in pair(str(n % 20), [5, 6 - n % 2 * 2], [5, 6 - n % 2 * 2], turn=n // 20)]
    result = table(vtools, rows)
    assert (result["questions"], result["judged"], result["win_rate"]) == (20, 40, 0.5)
    assert 16 < result["effective_n"] < 20  # both turns of a question say the same: they are one
    assert result["win_rate_ci"] == pytest.approx([0.28, 0.72], abs=0.01)
    assert table(vtools, [each for each in rows if each["id"] != "7"])["win_rate_ci"] is None


def test_each_order_is_a_game_and_a_strong_verdict_three(vtools):
    rows = [row("1", "ab", None, "b", games=3), row("1", "ba", None, "tie"), *pair("2", [9, 1], [1, 2])]
    result = table(vtools, rows)
    assert result["game_rate"] == (3 + 0.5 + 0 + 1) / (3 + 1 + 1 + 1) and result["win_rate"] == 0.625
    text = vtools("report", "--table", stdin=jsonl(*rows)).stdout.decode()
    assert "B's win rate, ties half  62.5%" in text and "B's share of all games   75.0%" in text
    assert "games" not in vtools("report", "--table", stdin=jsonl(*pair("1", [5, 9], [5, 9]))).stdout.decode()


def test_by_log_probabilities_the_games_are_shared_out_as_the_judge_expects_in_both_orders(vtools):
    rows = [row("1", "ab", None, "a", expectation=0.75), row("1", "ba", None, "b", expectation=0.25)]
    rows += [row("2", order, None, "b", expectation=0.125) for order in ("ab", "ba")]
    rows += [row("3", order, None, "tie") for order in ("ab", "ba")]  # the same answer twice: nobody was asked
    rows += [row("4", "ab", None, "a", expectation=0.9), row("4", "ba", None, None, expectation=None)]
    result = table(vtools, rows)
    assert (result["n"], result["unparsed"], result["a_wins"], result["ties"], result["b_wins"]) == (3, 1, 0, 2, 1)
    assert result["game_rate"] == (0.25 + 0.75 + 2 * 0.875 + 2 * 0.5) / 6


def test_a_mean_grade_has_an_interval_over_questions(vtools):
    grade = {"mode": "single", "judge": "J", "rubric": "R", "model": "M", "parse": "lines"}
    rows = [{**grade, "id": str(n), "turn": turn, "score": 4 + 4 * (n % 2)} for n in range(20) for turn in (1, 2, 3)]
    rows += [{**grade, "model": "L", "id": "1", "turn": 1, "score": 5}, {**grade, "id": "x", "turn": 1, "score": None}]
    (means, alone) = vtools("report", "--json", stdin=jsonl(*rows)).records[0]["grades"]
    half = 2.093 * 2 / 19**0.5  # Student's t of 19 degrees of freedom: all turns of a question together
    assert (means["mean"], means["mean_ci"], means["unparsed"]) == (6, pytest.approx([6 - half, 6 + half], abs=1e-3), 1)
    assert alone["mean_ci"] is None
    text = vtools("report", "--table", stdin=jsonl(*rows)).stdout.decode()
    rows = [line.split() for line in text.splitlines()]
    assert "model n no answer unparsed mean 95 % turn 1 turn 2 turn 3".split() in rows
    assert "M 61 0 1 6.00 5.04 to 6.96 6.00 6.00 6.00".split() in rows


def test_fastchats_judgments_are_read(vtools):
    shared = {"model_1": "x", "model_2": "y", "judge": ["gpt-4", "pair-v2"], "turn": 1}
    rows = [
        {"question_id": 81, "g1_winner": "model_2", "g2_winner": "model_2", **shared},
        {"question_id": 82, "g1_winner": "model_1", "g2_winner": "model_2", **shared},
        {"question_id": 83, "g1_winner": "error", "g2_winner": "tie", **shared},
    ]
    result = table(vtools, rows)
    assert (result["judge"], result["a"], result["b"]) == ("gpt-4", "x", "y")
    assert (result["b_wins"], result["ties"], result["a_wins"], result["unparsed"]) == (1, 1, 0, 1)
    assert result["score_ratio"] is None


def test_the_picture_is_drawn(vtools, tmp_path):
    pytest.importorskip("matplotlib")
    rows = [row for name in "12" for row in pair(name, [5, 9], [5, 9], category="math")]
    done = vtools("report", "--plot", "wins.svg", stdin=jsonl(*rows))
    assert done.returncode == 0, done.errors
    drawn = (tmp_path / "wins.svg").read_text()
    assert all(text in drawn for text in ("B: B", "A: A (2)", "math (2)", "B wins", "the better B"))


def test_one_question_is_no_picture(vtools, tmp_path):
    pytest.importorskip("matplotlib")
    done = vtools("report", "--plot", "wins.svg", stdin=jsonl(*pair("1", [5, 9], [5, 9], category="math")))
    assert done.returncode == 1 and "no chart: 1 value," in done.errors and b'"b_wins"' in done.stdout
    assert not (tmp_path / "wins.svg").exists()


@pytest.mark.parametrize(
    ("text", "why"), [("", "no judgments"), ('{"id":"x","turns":["y"]}', "not a judgment"), ("{", "stdin:1")]
)
def test_what_is_no_judgment_is_an_error_of_one_line(vtools, text, why):
    done = vtools("report", stdin=text)
    assert done.returncode == 1 and why in done.errors and done.errors.count("\n") == 1


def test_a_panel_gives_each_question_to_whom_more_of_its_judges_prefer(vtools):
    said = {  # what judges J, K and L say of each question; L's reply to the last cannot be read
        "1": ("b", "b", "a"), "2": ("b", "tie", "tie"), "3": ("a", "b", "tie"), "4": ("a", "a", "a"), "5": ("b", "b", None),
    }  # fmt: skip
    points = {"a": [8, 4], "b": [4, 8], "tie": [6, 6], None: None}
    rows = [
        row(id, order, points[verdict], verdict, judge=judge)
        for id, verdicts in said.items() for judge, verdict in zip("JKL", verdicts, strict=True) for order in ("ab", "ba")
    ]  # fmt: skip
    done = vtools("report", "--json", stdin=jsonl(*rows))
    (panel,) = done.records[0]["panels"]
    assert [each["judge"] for each in done.records[0]["pairs"]] == panel["judges"] == ["J", "K", "L"]
    assert (panel["n"], panel["b_wins"], panel["ties"], panel["a_wins"]) == (5, 3, 1, 1)
    assert (panel["agreed"], panel["by_several"]) == (2, 5)
    assert panel["score_b"] == round((8 + 8 + 4) / 3 + (8 + 6 + 6) / 3 + 6 + 4 + 8, 4)
    assert panel["win_rate"] == 0.7 and panel["win_rate_ci"] is None
    text = vtools("report", "--table", stdin=jsonl(*rows)).stdout.decode().split("\n\n\n")[-1]
    assert "judges: J, K, L; each question goes to the model that more of them prefer" in text
    assert "all judges agree         2/5" in text and "warning: 1 lack the verdict of a judge" in text


def test_grades_of_several_judges_are_summarised_together_for_those_who_graded_every_model(vtools):
    graded = {"J": {"x": 9, "y": 5}, "K": {"x": 7, "y": 4}, "L": {"x": 1}}  # L left out y, its own
    rows = [
        {"id": "q", "mode": "single", "judge": judge, "rubric": "r", "model": model, "turn": 1, "score": score}
        for judge, models in graded.items()
        for model, score in models.items()
    ]
    means = vtools("report", "--json", stdin=jsonl(*rows)).records[0]["grades"]
    assert {each["model"]: each["mean"] for each in means if each["judge"] == "J + K"} == {"x": 8, "y": 4.5}
