"""What `vtools report` measures beside wins: the place, the length, families, agreement, people, what is missing."""

from __future__ import annotations

import random

import pytest
from chats import jsonl

from vtools.report import measures, reading


@pytest.fixture
def measure(tmp_path):
    """The measures of records, and of people's votes beside them."""

    def read(rows: list[dict], votes: list[dict] | None = None, **options) -> dict:
        files = []
        for name, each in (("judgments", rows), ("votes", votes or [])):
            files.append(tmp_path / f"{name}.jsonl")
            files[-1].write_bytes(jsonl(*each))
        found = [reading.read([str(file)]) for file in files]
        return measures.measure(found[0], found[1] if votes else None, **options)

    return read


def row(id: object, order: str, verdict: str | None, a: str = "A", b: str = "B", judge: str = "J", **fields) -> dict:
    return {"id": str(id), "order": order, "scores": None, "verdict": verdict, "a": a, "b": b, "judge": judge, **fields}


def both(id: object, verdicts: str, **fields) -> list[dict]:
    """The verdicts in both orders, as letters: a, b or t for a tie."""
    words = {"a": "a", "b": "b", "t": "tie", "-": None}
    return [row(id, order, words[letter], **fields) for order, letter in zip(("ab", "ba"), verdicts, strict=True)]


def test_who_is_better_is_sure_by_holms_test_over_all_tables_and_an_interval_that_agrees(measure):
    rows = [each for n in range(30) for each in both(n, "bb" if n < 22 else "aa")]
    (alone,) = measure(rows)["pairs"]
    assert (alone["better"], alone["sure"], alone["p"] < 0.05) == ("b", True, True)
    others = [{**each, "b": f"C{n}"} for n in range(9) for each in [*both("1", "ab"), *both("2", "ba")]]
    found = measure(rows + others)["pairs"]
    assert found[0]["p_holm"] == pytest.approx(min(1, 10 * alone["p"])) and not found[0]["sure"]
    assert found[1]["better"] is None


def test_the_worst_case_for_each_side_shows_what_missing_verdicts_could_change(measure):
    rows = [each for n in range(6) for each in both(n, "bb")] + both("x", "b-") + both("y", "--", unanswered={"a": "empty"})  # fmt: skip
    (table,) = measure(rows)["pairs"]
    assert (table["win_rate"], table["bounds"]) == (1, [6 / 8, 1])
    assert (table["unparsed"], table["unanswered"]) == (1, {"a": 1, "b": 0})


def test_a_judge_that_favours_a_place_is_found_by_an_exact_test(measure):
    rows = [each for n in range(12) for each in both(n, "ab" if n < 11 else "ba")]
    (table,) = measure(rows)["pairs"]
    assert (table["first_won"], table["second_won"]) == (11, 1)
    assert table["position_p"] == pytest.approx(2 * 13 / 2**12)
    assert "the judge favours the answer shown first: it won both times 11 to 1" in table["warnings"]


def test_the_answer_shown_first_stays_the_first_when_a_reversed_pair_is_turned(measure):
    (table,) = measure([*both("1", "ab"), *both("2", "ab", a="B", b="A")])["pairs"]
    assert (table["a"], table["b"], table["first_won"], table["second_won"]) == ("A", "B", 2, 0)


def test_the_longer_answers_share_of_wins_has_an_interval(measure):
    rows = [each for n in range(24) for each in both(n, "bb" if n % 2 else "aa", len=[20, 10 + 40 * (n % 3 > 0)])]
    (table,) = measure(rows)["pairs"]
    assert table["length"]["n"] == 24 and table["length"]["longer_wins"] == 0.5
    low, high = table["length"]["longer_wins_ci"]
    assert 0.3 < low < 0.5 < high < 0.7


def test_judges_of_one_family_are_compared_with_judges_of_others_on_the_same_questions(measure):
    rows = [each for n in range(20) for each in both(n, "bb", a="llama-3", b="gpt-4o", judge="gpt-4.1")]
    rows += [each for n in range(20) for each in both(n, "bb" if n % 2 else "aa", a="llama-3", b="gpt-4o", judge="claude-3")]  # fmt: skip
    (own,) = measure(rows)["own_family"]
    assert (own["judge"], own["model"], own["against"], own["family"]) == ("gpt-4.1", "gpt-4o", "llama-3", ["OpenAI"])
    assert (own["by"], own["n"], own["difference"]) == ("judges of other families", 20, 0.5)
    votes = [{"id": n, "a": "gpt-4o", "b": "llama-3", "vote": "gpt-4o"} for n in range(20)]
    by_people = measure(rows, votes)["own_family"][0]
    assert (by_people["by"], by_people["difference"]) == ("people", 0)


def test_judges_agree_as_far_as_their_outcomes_are_the_same_whichever_pair_is_turned_around(measure):
    rows = [each for n in range(8) for each in both(n, "aabbttab"[2 * (n % 4) : 2 * (n % 4) + 2], judge="J")]
    turned = {"aa": "bb", "bb": "aa", "tt": "tt", "ab": "ba"}
    rows += [each for n in range(8) for each in both(n, turned["aabbttab"[2 * (n % 4) : 2 * (n % 4) + 2]], a="B", b="A", judge="K")]  # fmt: skip
    found = measure(rows)["agreement"]
    assert found["two"][0] | {"agreement_ci": None} == {
        "judges": ["J", "K"], "n": 8, "agreement": 1, "agreement_ci": None, "n_without_ties": 4, "without_ties": 1,
        "kappa": 1, "kappa_ci": None,
    }  # fmt: skip
    assert measure(rows[:16])["agreement"] is None


def test_peoples_votes_on_some_questions_correct_the_win_rate_of_all(measure):
    dice = random.Random(8)
    truth = {n: dice.random() < 0.4 for n in range(300)}  # whether people prefer b
    judged = {n: wins or dice.random() < 0.5 for n, wins in truth.items()}  # the judge favours b
    rows = [each for n, wins in judged.items() for each in both(n, "bb" if wins else "aa")]
    votes = [
        {"id": n, "a": "B", "b": "A", "vote": "B" if truth[n] else "A", "voter": v} for n in range(100) for v in range(2)
    ]  # fmt: skip
    table = measure(rows, votes)["pairs"][0]
    people = table["human"]
    assert table["win_rate_ci"][0] > 0.6 and people["questions"] == 100
    low, high = people["win_rate_ci"]
    assert low < 0.4 < high and high - low < 0.2 and abs(people["win_rate"] - 0.4) < 0.06
    assert 0.3 < people["trust"] < 1 and people["ceiling"]["agreement"] == 1
    assert people["agreement"] == sum(truth[n] == judged[n] for n in range(100)) / 100
    assert measure(rows, votes[:20])["pairs"][0]["human"]["win_rate_ci"] is None  # of 10 questions


def test_three_models_get_ratings_with_ranks_and_a_first_place_per_judge(measure):
    dice = random.Random(9)
    rows = []
    for n in range(40):
        for a, b, chance in (("x", "y", 0.5), ("x", "z", 0.9), ("y", "z", 0.9)):
            verdict = "b" if dice.random() < chance else "a"
            rows += both(n, verdict * 2, a=a, b=b)
    (group,) = measure(rows)["ratings"]
    assert group["models"][0]["model"] == "z" and group["questions"] == 40
    assert group["models"][0]["rank"] == [1, 1] and {each["rank"][1] for each in group["models"][1:]} == {3}
    assert group["first_place"]["J"]["wins"] == pytest.approx(0.5)
    (named,) = measure(rows, baseline="z")["ratings"]
    best = named["models"][0]
    assert (best["model"], best["rating"], best["win_rate"]) == ("z", 0, 0.5)
    assert all(each["rating_ci"][1] < 0 for each in named["models"][1:])
    (davidson,) = measure(rows + both("t", "tt", a="x", b="y"), davidson=True)["ratings"]
    assert davidson["ties"] == "davidson" and 0 < davidson["tie_parameter"] < 0.1


def test_five_models_against_a_baseline_get_rates_without_what_their_length_wins(measure):
    dice, rows = random.Random(10), []
    for n in range(60):
        base = 300 + 40 * (n % 5)
        for m in range(5):  # all are equally good; the judge likes long answers, which the last models write
            length = base + 150 * (m - 2) + dice.randrange(-200, 200)
            wins = dice.random() < 0.5 + 0.4 * ((length > base) - (length < base))
            rows += both(n, "bb" if wins else "aa", a="base", b=f"m{m}", len=[base, length])
    (found,) = measure(rows)["length_adjusted"]
    rates = {each["model"]: (each["win_rate"], each["adjusted"]) for each in found["models"]}
    assert found["baseline"] == "base" and found["effect"] > 1
    assert rates["m4"][0] > 0.7 and rates["m0"][0] < 0.3
    assert all(abs(adjusted - 0.5) < abs(plain - 0.5) for plain, adjusted in (rates["m0"], rates["m4"]))
    assert measure([each for each in rows if each["b"] != "m4"])["length_adjusted"] == []


def test_what_length_and_layout_win_is_fitted_beside_the_ratings_and_does_not_change_them(measure):
    dice, rows = random.Random(11), []
    for n in range(60):
        for a, b in (("x", "y"), ("x", "z"), ("y", "z")):
            lengths = [dice.randrange(100, 900), dice.randrange(100, 900)]
            verdict = "b" if dice.random() < (0.8 if lengths[1] > lengths[0] else 0.2) else "a"
            rows += both(n, verdict * 2, a=a, b=b, len=lengths)
    (group,) = measure(rows)["ratings"]
    low, high = group["style"]["characters"]["wins_ci"]
    assert list(group["style"]) == ["characters"] and 0.6 < low < group["style"]["characters"]["wins"] < high < 0.95
    (without,) = measure([{name: value for name, value in each.items() if name != "len"} for each in rows])["ratings"]
    assert without["style"] == {} and without["models"] == group["models"]
