"""`judge --stop-when-decided`: what the test guarantees, where runs stop, and what `report` says of them."""

from __future__ import annotations

import json
import re
import threading

import pytest
from chats import jsonl
from judging import Judge, grades
from loopback import Status
from running import wait_until
from stopping_odds import replay, sample, states, whole
from test_chat import lines, without_ms
from test_judge import answers, blog

from vtools.records.comparison import SequentialTest

STOP = ("--stop-when-decided", 0.95)
SURE = re.compile(r"(\S+) is better than (\S+): 95 % sure after (\d+) of (\d+) questions")


def test_of(level: float, planned: int, values: list[float | None]) -> SequentialTest:
    test = SequentialTest(level, planned)
    for value in values:
        test.add(value)
    return test


test_of.__test__ = False


@pytest.mark.parametrize(
    ("level", "planned", "values", "low", "high"),
    [
        (0.95, 80, [1.0] * 14 + [0.5] * 3 + [0.0] * 3, 0.481424, 0.951394),
        (0.9, 30, [1.0] * 1 + [0.5] * 2 + [0.0] * 7, 0.014433, 0.540236),
        (0.99, 400, [1.0] * 50 + [0.5] * 30 + [0.0] * 20, 0.496657, 0.767759),
    ],
)
def test_intervals_are_those_of_the_authors_own_program(level, planned, values, low, high):
    """confseq 0.0.11, betting_mart with a constant stake c / m, theta 1/2 and no other truncation, solved for m."""
    assert test_of(level, planned, values).interval() == pytest.approx((low, high), abs=1e-6)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_all_intervals_at_once_have_the_mean_as_often_as_promised(level):
    """Exactly, over every order; for questions drawn at random, and for those of one set of 30."""
    said = states(level, 30)
    cases = [(sample(rate, ties), rate) for rate in (0.5, 0.6, 0.9) for ties in (0.0, 0.1)]
    cases += [(whole(counts), (counts[0] + counts[1] / 2) / 30) for counts in ((15, 0, 15), (10, 8, 12), (25, 3, 2))]
    found = [replay(said, 30, odds, mean).always_covered for odds, mean in cases]
    assert min(found) >= level
    assert min(found) < level + 0.6 * (1 - level)  # and not by saying nothing


@pytest.mark.slow
def test_the_whole_set_is_agreed_with_at_three_fifths_of_the_calls():
    said = states(0.95, 80)
    small = [(sample(rate, ties), rate) for rate in (0.5, 0.55, 0.6, 0.65, 0.7) for ties in (0.0, 0.4)]
    large = [(sample(rate, ties), rate) for rate, ties in ((0.75, 0.0), (0.75, 0.4), (0.8, 0.2), (0.9, 0.0))]
    large += [(whole((76, 1, 3)), 76.5 / 80), (whole((14, 22, 44)), 25 / 80)]  # the blog's reviews
    for odds, mean in small + large:
        found = replay(said, 80, odds, mean)
        assert found.same_side >= 0.95 and found.covered >= 0.95 and found.always_covered >= 0.95
    for odds, mean in large:
        found = replay(said, 80, odds, mean)
        assert found.calls <= 0.6 and found.same_decision >= 0.95


def test_whatever_an_unknown_result_is_what_was_sure_stays_sure():
    values = [1.0, 1.0, None, 0.5, 1.0, 0.0, None, 1.0, 1.0]
    low, high = test_of(0.95, 40, values).interval()
    for one in (0.0, 0.5, 1.0):
        for other in (0.0, 1.0):
            known = [one, other]
            found = test_of(0.95, 40, [known.pop() if value is None else value for value in values]).interval()
            assert low <= found[0] and found[1] <= high
    assert test_of(0.95, 40, [1.0] * 8).decided == "b" and test_of(0.95, 40, [0.0] * 8).decided == "a"
    assert test_of(0.95, 40, [1.0] * 7).decided is None and test_of(0.95, 40, [None] * 40).decided is None


def shown_first(messages: list[dict], model: str, other: str) -> bool:
    prompt = messages[1]["content"]
    return prompt.index(f"{model} says") < prompt.index(f"{other} says")


def for_beta(messages: list[dict], body: dict) -> list[object]:
    """The judge of an answer that begins with b to be better, wherever it stands."""
    return grades(8, 5) if shown_first(messages, "b", "a") else grades(5, 8)


@pytest.fixture
def files(tmp_path):
    (tmp_path / "a.jsonl").write_text(answers("alpha-7b", 40))
    (tmp_path / "b.jsonl").write_text(answers("beta-13b", 40))
    return "a.jsonl", "b.jsonl"


def report(vtools, file: str) -> tuple[dict, str]:
    """The only table, as an object and as text."""
    return vtools("report", file, "--json").records[0]["pairs"][0], vtools("report", "--table", file).stdout.decode()


def test_a_run_stops_when_it_is_sure_a_rerun_asks_nothing_and_one_without_the_option_the_rest(vtools, tmp_path, files):
    with Judge(for_beta) as server:
        ask = ("judge", *files, "--base-url", server.url, "--model", "m")
        before = vtools(*ask, *STOP, "-n")
        assert " at most 80 times" in before.errors
        done = vtools(*ask, *STOP, "-j", 2, "-o", "j.jsonl")
        assert done.returncode == 0, done.errors
        assert SURE.search(done.errors).groups() == ("beta-13b", "alpha-7b", "8", "40")
        rows = [json.loads(line) for line in (tmp_path / "j.jsonl").read_bytes().splitlines()]
        asked = len(server.bodies)
        assert len(rows) == asked and 16 <= asked < 40  # of 80; what was under way is kept
        assert [row["stopping"]["place"] for row in rows[:16]] == [n // 2 + 1 for n in range(16)]
        order = [row["id"] for row in rows[:16:2]]
        assert order != sorted(order, key=lambda name: int(name[1:]))

        table, text = report(vtools, "j.jsonl")
        assert table["stopping"] | {"left_out": 0} == {
            "level": 0.95, "decided": "b", "after": 8, "of": 40, "left_out": 0
        }  # fmt: skip
        assert (table["n"], table["win_rate"], table["score_ratio_ci"]) == (8, 1, None)
        assert table["win_rate_ci"] == pytest.approx(test_of(0.95, 40, [1.0] * 8).interval())
        assert "stopped early            after 8 of 40 questions: 95 % sure that B is better" in text

        bytes_before = (tmp_path / "j.jsonl").read_bytes()
        assert " 0 times" in vtools(*ask, *STOP, "-n", "-o", "j.jsonl").errors
        assert vtools(*ask, *STOP, "-j", 8, "-o", "j.jsonl").returncode == 0
        assert len(server.bodies) == asked and (tmp_path / "j.jsonl").read_bytes() == bytes_before
        assert vtools(*ask, *STOP, "-j", 8, "-o", "other.jsonl").returncode == 0
        others = (tmp_path / "other.jsonl").read_bytes().splitlines()[:16]
        assert [without_ms(line) for line in others] == [without_ms(line) for line in bytes_before.splitlines()[:16]]

        asked, before = len(server.bodies), len(rows)
        assert vtools(*ask, "-j", 8, "-o", "j.jsonl").returncode == 0
        assert len(server.bodies) - asked == 80 - before
    table, text = report(vtools, "j.jsonl")
    assert table["stopping"] is None and table["n"] == 40 and "stopped" not in text
    assert b"stopping" not in (tmp_path / "j.jsonl").read_bytes()


def test_after_a_kill_the_same_decision_is_reached_and_nothing_is_asked_twice(vtools, start, tmp_path, files):
    release, holding = threading.Event(), True

    def reply(messages, body):
        if holding and len(server.bodies) > 8:
            release.wait(60)
        return for_beta(messages, body)

    with Judge(reply) as server:
        ask = ("judge", *files, "--base-url", server.url, "--model", "m", *STOP, "-j", 2, "-o", "j.jsonl")
        judge = start(*ask)
        wait_until(lambda: lines(tmp_path / "j.jsonl.journal") == 8)
        judge.kill()
        judge.wait()
        answered = [json.loads(line)["key"] for line in (tmp_path / "j.jsonl.journal").read_bytes().splitlines()]
        prompts = [body["messages"][1]["content"] for body in server.bodies[:8]]
        holding = False
        release.set()
        before = len(server.bodies)
        done = vtools(*ask)
        again = [body["messages"][1]["content"] for body in server.bodies[before:]]
    assert done.returncode == 0 and SURE.search(done.errors)[3] == "8"
    assert len(answered) == 8 and len(set(prompts) & set(again)) == 0
    assert 8 <= len(again) <= 8 + 4 and len(set(again)) == len(again)


def test_a_missing_verdict_and_a_failed_call_prove_nothing_for_either_side(vtools, tmp_path, files):
    bad: list[str] = []

    def reply(messages, body):
        number = re.search(r"question \d+", messages[1]["content"])[0]
        if len(bad) < 2 and number not in bad:
            bad.append(number)
        if broken and number == bad[0]:
            raise Status(400, {"error": {"message": "too long"}})
        return "Who knows?" if broken and number in bad else for_beta(messages, body)

    with Judge(reply) as server:
        ask = ("judge", *files, "--base-url", server.url, *STOP, "-j", 1, "-o", "j.jsonl")
        broken = True
        done = vtools(*ask)
        assert done.returncode == 1 and SURE.search(done.errors)[3] == "14"
        table, _ = report(vtools, "j.jsonl")
        assert table["stopping"]["after"] == 14 and table["n"] == 12
        assert table["win_rate_ci"] == pytest.approx(test_of(0.95, 40, [None] * 2 + [1.0] * 12).interval())
        broken = False
        done = vtools(*ask)
    assert done.returncode == 0 and SURE.search(done.errors)[3] == "8"
    assert report(vtools, "j.jsonl")[0]["stopping"]["after"] == 8


def test_each_pair_stops_by_itself_and_one_that_is_alike_takes_all_questions(vtools, tmp_path, files):
    (tmp_path / "c.jsonl").write_text(answers("beta-again", 40).replace("b says", "c says"))

    def reply(messages, body):
        prompt = messages[1]["content"]
        if "a says" not in prompt:  # of two that are alike, the first
            return grades(8, 5)
        best = "b" if "b says" in prompt else "c"
        return grades(8, 5) if shown_first(messages, best, "a") else grades(5, 8)

    with Judge(reply) as server:
        done = vtools("judge", *files, "c.jsonl", "--base-url", server.url, *STOP, "-j", 1)
    assert done.returncode == 0, done.errors
    assert [found[3] for found in SURE.finditer(done.errors)] == ["8", "8"]
    assert "beta-13b and beta-again: not 95 % sure after 40 of 40 questions which is better" in done.errors
    assert len(server.bodies) <= 80 + 2 * 16 + 4
    (tmp_path / "j.jsonl").write_bytes(done.stdout)
    text = vtools("report", "--table", "j.jsonl").stdout.decode()
    assert text.count("stopped early") == 2
    assert "not decided              after 40 of 40 questions: not 95 % sure which is better" in text


def test_judgments_of_another_order_do_not_count_with_those_of_a_run_that_stopped(vtools):
    def row(place: int, order: str, verdict: str, seed: int = 0) -> dict:
        stopping = {"level": 0.95, "seed": seed, "of": 80, "orders": 2, "place": place}
        return {
            "id": f"{seed}.{place}", "order": order, "scores": None, "verdict": verdict, "a": "A", "b": "B", "judge": "J",
            "stopping": stopping,
        }  # fmt: skip

    rows = [row(place, order, "b") for place in range(1, 14) for order in ("ab", "ba")]
    rows += [row(place, order, "a", seed=1) for place in range(1, 14) for order in ("ab", "ba")]
    (table,) = vtools("report", "--json", stdin=jsonl(*rows)).records[0]["pairs"]
    assert table["stopping"] == {"level": 0.95, "decided": "b", "after": 11, "of": 80, "left_out": 15}
    assert (table["n"], table["b_wins"], table["a_wins"]) == (11, 11, 0)
    assert any("15 further questions" in warning for warning in table["warnings"])
    del rows[0]["stopping"]["of"]
    done = vtools("report", "--table", stdin=jsonl(*rows))
    assert done.returncode == 1 and "question 0.1" in done.errors and done.errors.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--stop-when-decided", 0.95, "--mode", "single"), "--mode single"),
        (("--stop-when-decided", 95), "from 0.5 to below 1"),
    ],
)
def test_what_means_nothing_is_refused(vtools, files, options, why):
    done = vtools("judge", *files, "--base-url", "http://127.0.0.1:9/v1", *options)
    assert done.returncode == 2 and why in done.errors and done.errors.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "better", "most"), [("alpaca-13b", "B", 48), ("gpt35", "A", 80)])
def test_the_blogs_reviews_replayed_decide_as_all_of_them_do(vtools, name, better, most):
    """The judge gives the scores that GPT-4 gave in 2023."""
    reviews = [json.loads(line) for line in blog(f"review/review_{name}_vicuna-13b.jsonl").read_text().splitlines()]
    given = {str(review["question_id"]): review["score"] for review in reviews}
    texts = {json.loads(line)["text"]: str(json.loads(line)["question_id"]) for line in blog("question.jsonl").open()}

    def reply(messages, body):
        asked = max((text for text in texts if text in messages[1]["content"]), key=len)
        first, second = given[texts[asked]]
        return grades(first, second)

    files = [blog(f"answer/answer_{name}.jsonl"), blog("answer/answer_vicuna-13b.jsonl")]
    with Judge(reply) as server:
        for seed in range(5):
            done = vtools(
                "judge", *files, "--name", "A", "--name", "B", "--questions", blog("question.jsonl"), "--one-order",
                "--base-url", server.url, *STOP, "--seed", seed, "-j", 1,
            )  # fmt: skip
            assert done.returncode == 0, done.errors
            found = SURE.search(done.errors)
            assert found and found[1] == better and int(found[3]) <= most
