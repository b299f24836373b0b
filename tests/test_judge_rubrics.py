"""What a judge is asked by a rubric, in which ways it is asked, and what its record says."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from chats import jsonl
from judging import Judge, Probable, by_schema, grades, in_form
from loopback import Chat, Status

from vtools.inference.client import Sampling
from vtools.inference.endpoint import Endpoint, EndpointError
from vtools.inference.journal import Task
from vtools.judge import judging, prompt, rubric
from vtools.judge.answers import Single
from vtools.judge.asking import Asking
from vtools.judge.matches import Match
from vtools.process import Failure, UsageFailure
from vtools.records.question import Question

QUESTION = Question("q", ["Why is the sky blue?"], checklist=["Does it name scattering?", "Is it short?"])
SAMPLING = Sampling(100, 0.0, seed=0)
LOGPROBS = Sampling(2, 0.0, seed=0, logprobs=20)


@contextlib.contextmanager
def asking(server, sampling=SAMPLING):
    with contextlib.closing(Endpoint(server.url, "m", retries=0)) as client:
        yield Asking(client, sampling)


def record(server, name="vicuna", mode="pair", order="ab", question=QUESTION, sampling=SAMPLING, ask=None):
    chosen = rubric.read(name)
    judge = judging.Judge(chosen, chosen.mode(mode), sampling)
    turns = [f"reason {turn}" for turn in range(len(question.turns))]
    asked = Match(question, "a", "b", turns, ["other"], order, judge="m")
    if mode == "single":
        asked = Single(question, "a", turns, len(turns) - 1, judge="m")
    with contextlib.nullcontext(ask) if ask else asking(server, sampling) as asking_:
        return judge.record(Task(None, None, asked, "key"), asking_)


def shown(server, call=0):
    return "\n".join(message["content"] for message in server.bodies[call]["messages"])


@pytest.mark.parametrize(
    ("name", "mode", "said", "wanted"),
    [
        ("vicuna", "pair", [8, 6.5], {"scores": [8, 6.5], "verdict": "a"}),
        ("vicuna", "pair", [7, 7], {"scores": [7, 7], "verdict": "tie"}),
        ("vicuna", "single", [9], {"score": 9}),
        ("dialogue", "single", [4, 3, 5, 2], {"score": 3.5, "criteria": {"coherence": 4, "relevance": 3, "fluency": 5, "engagement": 2}}),
        ("dialogue", "pair", [4, 3, 5, 2, 5, 5, 5, 5], {"scores": [3.5, 5], "verdict": "b"}),
        ("mtbench", "pair", ["C"], {"scores": None, "verdict": "tie", "choice": "C", "games": 1}),
        ("mtbench", "single", [10], {"score": 10}),
        ("alpaca", "pair", ["M"], {"verdict": "b", "choice": "M"}),
        ("alpaca", "pair", ["m"], {"verdict": "a", "choice": "m"}),
        ("arena-hard", "pair", ["B>>A"], {"verdict": "b", "choice": "B>>A", "games": 3}),
        ("arena-hard", "pair", ["A=B"], {"verdict": "tie", "games": 1}),
        ("checklist", "single", ["yes", "no"], {"score": 0.5, "criteria": {"question 1": 1, "question 2": 0}}),
        ("checklist", "pair", ["yes", "no", "yes", "yes"], {"scores": [0.5, 1], "verdict": "b"}),
    ],
)  # fmt: skip
def test_every_rubric_gives_its_own_verdict_in_lines_and_by_schema(name, mode, said, wanted):
    with Judge(lambda messages, body: list(said)) as server:
        made = record(server, name, mode)
    assert wanted.items() <= made.items() and made["parse"] == "lines"
    with Chat(lambda messages, body: by_schema(body, said)) as server:
        made = record(server, name, mode)
    assert wanted.items() <= made.items() and made["parse"] == "json" and len(server.bodies) == 1
    about = rubric.read(name)
    assert (made["rubric"], made["rubric_digest"], made["mode"]) == (name, about.digest, mode)
    assert len(about.digest) == 16


def test_all_rubrics_are_tried_here_and_named_in_the_help(vtools):
    assert rubric.names() == ["alpaca", "arena-hard", "checklist", "dialogue", "mtbench", "vicuna"]
    text = " ".join(vtools("judge", "--help").stdout.decode().replace("│", " ").split())
    assert f"Use this rubric: {', '.join(rubric.names())}, or your own" in text


@pytest.mark.parametrize(
    ("name", "said", "wanted"),
    [
        ("vicuna", [9, 2], {"scores": [2, 9], "verdict": "b"}),
        ("arena-hard", ["A>>B"], {"verdict": "b", "choice": "A>>B", "games": 3}),
        ("dialogue", [5, 5, 5, 5, 1, 2, 1, 1], {"verdict": "b", "criteria": {"coherence": [1, 5], "relevance": [2, 5], "fluency": [1, 5], "engagement": [1, 5]}}),
    ],
)  # fmt: skip
def test_in_the_other_order_everything_is_put_back(name, said, wanted):
    with Judge(lambda messages, body: list(said)) as server:
        assert wanted.items() <= record(server, name, order="ba").items()


def test_the_judge_sees_what_the_rubric_is_about():
    with Judge(lambda messages, body: ["yes", "no"]) as server:
        record(server, "checklist", "single")
    assert "question 1: Does it name scattering?" in shown(server) and "question 2: yes" not in shown(server)
    with Judge(lambda messages, body: [1, 2, 3, 4]) as server:
        record(server, "dialogue", "single")
    assert "engagement: one would like to continue" in shown(server) and "from 1 (worst) to 5 (best)" in shown(server)
    with Judge(lambda messages, body: ["B"]) as server:
        record(server, "mtbench", question=Question("q", ["1 + 1?"], category="math", reference=["2, of course"]))
    assert "2, of course" in shown(server) and "whether an answer is correct" in shown(server)
    assert "Assistant A" in shown(server) and "Assistant 1" not in shown(server)
    assert "C if both are equal" in shown(server)


def test_a_turn_is_graded_after_those_before_it_and_by_its_own_reference():
    turns = Question("q", ["first?", "second?"], [{"role": "user", "content": "hello"}], reference=["ref 1", "ref 2"])
    with Judge(lambda messages, body: [5]) as server:
        made = record(server, mode="single", question=turns)
    assert made["turn"] == 2 and made["len"] == [8]
    text = shown(server)
    assert text.index("(user) hello") < text.index("(user) first?") < text.index("(assistant) reason 0")
    assert text.index("second?") < text.index("ref 2") < text.index("reason 1") and "ref 1" not in text


def test_the_mark_is_in_nothing_that_is_shown():
    taken = [f"{number:02x}" for number in range(256) if number != 0x7E]
    assert prompt.mark_of([" ".join(taken).upper()], 0, size=1) == "7e"
    assert len({prompt.mark_of(["a", "b"], seed) for seed in range(20)}) == 20
    assert prompt.mark_of(["a", "b"], 0) != prompt.mark_of(["b", "a"], 0) and len(prompt.mark_of([], 0)) == 8


def test_a_schema_is_tried_once_and_then_never_again_by_however_many_ask_at_a_time():
    def refuse(messages, body):
        if "response_format" in body:
            raise Status(422, {"error": {"message": "what is a response_format?"}})
        return in_form(messages, [4, 3])

    with Chat(refuse) as server, asking(server) as ask, ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: record(server, ask=ask), range(12)))
    assert [row["form"] for row in made] == ["lines"] * 12
    assert sum("response_format" in body for body in server.bodies) == 1 and len(server.bodies) == 13


def test_after_the_first_trial_all_ask_at_a_time():
    together = threading.Barrier(4)

    def reply(messages, body):
        if len(server.asked) > 1:
            together.wait(30)
        return by_schema(body, [4, 3])

    with Chat(reply) as server, asking(server) as ask, ThreadPoolExecutor(5) as pool:
        made = list(pool.map(lambda _: record(server, ask=ask), range(5)))
    assert [row["form"] for row in made] == ["json"] * 5 and len(server.bodies) == 5


@pytest.mark.parametrize("answer", ["", "Both are fine.\nAssistant 1: 9", "[8, 9]"])
def test_a_server_that_takes_a_schema_and_then_ignores_it_is_asked_for_lines(answer):
    def reply(messages, body):
        return answer if "response_format" in body else in_form(messages, [4, 3])

    with Chat(reply) as server, asking(server) as ask:
        first, second = record(server, ask=ask), record(server, ask=ask)
    assert first["scores"] == second["scores"] == [4, 3] and len(server.bodies) == 3
    assert first["usage"]["in"] == 6 and second["usage"]["in"] == 3  # what was of no use was paid for too


def test_an_error_that_is_not_about_the_schema_is_an_error():
    def busy(messages, body):
        if len(server.asked) == 1:
            raise Status(500)
        return by_schema(body, [4, 3])

    with Chat(busy) as server, asking(server) as ask:
        with pytest.raises(EndpointError, match="500"):
            record(server, ask=ask)
        assert record(server, ask=ask)["form"] == "json"


def test_json_that_is_not_the_schemas_is_asked_for_again_in_the_same_form():
    replies = iter(['{"explanation": "", "Assistant 1": 3}', '{"explanation": "", "Assistant 1": 3, "Assistant 2": 4}'])
    with Chat(lambda messages, body: next(replies)) as server:
        made = record(server)
    assert made["scores"] == [3, 4] and made["parse"] == "json" and made["again"] == ["verdict"]
    assert all("response_format" in body for body in server.bodies)
    assert "could not be read" in server.bodies[1]["messages"][-1]["content"]


@pytest.mark.parametrize("cut", ["", "<think>\nLet me see", "{lines}"])
def test_a_reply_that_was_cut_off_is_asked_for_again_whole_with_four_times_the_tokens(cut):
    def reply(messages, body):
        if body["max_tokens"] == 100:
            return cut.replace("{lines}", in_form(messages, [1, 10])), "length"
        return in_form(messages, [4, 3])

    with Judge(reply) as server:
        made = record(server)
    assert [body["max_tokens"] for body in server.bodies] == [100, 400]
    assert server.bodies[0]["messages"] == server.bodies[1]["messages"]
    assert (made["scores"], made["again"], made["finish"], made["usage"]["in"]) == ([4, 3], ["longer"], "stop", 6)


def test_one_that_is_cut_off_again_has_no_verdict_unless_it_gives_it_alone():
    with Judge(lambda messages, body: (in_form(messages, [1, 10]), "length")) as server:
        made = record(server)
    assert made["verdict"] is None and made["parse"] == "none" and made["again"] == ["longer", "verdict"]
    assert len(server.bodies) == 3


def test_what_was_paid_for_is_kept_if_asking_again_fails():
    def reply(messages, body):
        if len(messages) > 2:
            raise Status(400, {"error": {"message": "too long"}})
        return "Who knows?"

    with Judge(reply) as server:
        made = record(server)
    assert made["text"] == "Who knows?" and made["verdict"] is None and made["usage"]["in"] == 3


@pytest.mark.parametrize(
    ("tokens", "order", "wanted"),
    [
        ([("A", {"A": 0.6, " A": 0.1, "B": 0.2, " a": 0.1})], "ab", (0.9, 7 / 9, "a")),
        ([("A", {"A": 0.6, " A": 0.1, "B": 0.2, "Well": 0.1})], "ba", (0.9, 2 / 9, "b")),
        ([("C", {"C": 0.5, "A": 0.2, "B": 0.2})], "ab", (0.9, 0.5, "tie")),
        ([('A"', {'A"': 0.6, '"': 0.2, "A}": 0.1, "B": 0.1})], "ab", (0.7, 6 / 7, "a")),
        ([("Well", {"Well": 0.51, "A": 0.49})], "ab", (0.49, None, None)),
        ([(" ", {" ": 0.8, "B": 0.1}), ("B", {"B": 0.5, "A": 0.25})], "ab", (0.7, 0.2 / 0.7, "b")),
        ([("\n", {"\n": 0.6, "A": 0.1}), ("A", {"A": 0.5})], "ab", (0.4, None, None)),
        ([], "ab", (0, None, None)),
    ],
)
def test_by_log_probabilities_the_outcome_is_an_expectation_and_null_below_one_half(tokens, order, wanted):
    with Probable(*tokens) as server:
        made = record(server, order=order, sampling=LOGPROBS)
    mass, expectation, verdict = wanted
    assert made["verdict"] == verdict and made["mass"] == pytest.approx(mass)
    assert made["expectation"] == (None if expectation is None else pytest.approx(expectation))
    (asked,) = server.requests
    assert (asked.json["logprobs"], asked.json["top_logprobs"], asked.json["max_tokens"]) == (True, 20, 2)
    assert asked.json["messages"][-1] == {"role": "assistant", "content": '{"Verdict": "'}
    assert '{"Verdict": "B"} if Assistant 2 is better, {"Verdict"' in asked.json["messages"][-2]["content"]
    assert "CHOICE" not in asked.json["messages"][-2]["content"] and "response_format" not in asked.json


def test_a_grade_by_log_probabilities_is_the_mean_of_one_digit_on_the_rubrics_scale():
    with Probable(("9", {"9": 0.5, "1": 0.25, "5": 0.05, "0": 0.1, "10": 0.1})) as server:
        made = record(server, mode="single", sampling=LOGPROBS)
    mean = (9 * 0.5 + 1 * 0.25 + 5 * 0.05) / 0.8
    assert made["score"] == pytest.approx(1 + (mean - 1) / 8 * 9) and made["mass"] == 0.8


def test_how_sure_the_judge_was_of_giving_a_verdict_at_all_is_said(vtools, tmp_path):
    for model in "ab":
        (tmp_path / f"{model}.jsonl").write_bytes(jsonl({"id": "q", "model": model, "question": ["?"], "turns": [model]}))  # fmt: skip
    ask = ("judge", "a.jsonl", "b.jsonl", "--logprobs", "--model", "m", "--base-url")
    with Probable(("A", {"A": 0.6, "B": 0.25})) as server:
        done = vtools(*ask, server.url)
    assert [(row["verdict"], row["expectation"]) for row in done.records] == [
        ("a", pytest.approx(12 / 17)), ("b", pytest.approx(5 / 17)),
    ]  # fmt: skip
    assert done.returncode == 0 and "with a probability of 0.85 on average, 0.85 at least" in done.errors
    report = vtools("report", "--table", stdin=done.stdout).stdout.decode()
    assert "the judge changed its mind with the order in 100%" in report and "0 / 1 / 0" in report
    with Probable(("Well", {"Well": 0.6, "B": 0.25})) as server:
        done = vtools(*ask, server.url)
    assert [(row["verdict"], row["mass"]) for row in done.records] == [(None, 0.25)] * 2
    assert done.returncode == 1 and "2 of 2 judgments have no verdict" in done.errors


def test_a_server_without_log_probabilities_ends_the_run(vtools, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl({"id": "q", "model": "a", "question": ["?"], "turns": ["x"]}))
    with Judge(lambda messages, body: "A") as server:
        done = vtools("judge", "a.jsonl", "--mode", "single", "--logprobs", "--base-url", server.url)
    assert done.returncode == 1 and "gives no log-probabilities; leave out --logprobs" in done.errors


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["a.jsonl"], "--mode single"),
        (["a.jsonl", "--mode", "single", "--one-order"], "--one-order"),
        (["a.jsonl", "--mode", "single", "--rubric", "alpaca"], "the rubric alpaca is not for --mode single; it has pair"),
        (["a.jsonl", "--rubric", "vicunia", "--mode", "single"], "there are alpaca, arena-hard, checklist"),
        (["a.jsonl", "--rubric", "./none.toml", "--mode", "single"], "none.toml: No such file"),
        (["a.jsonl", "--rubric", "dialogue", "--mode", "single", "--logprobs"], "--logprobs reads one value"),
        (["a.jsonl", "--mode", "single", "--logprobs", "--max-tokens", "9"], "leave out --temperature and --max-tokens"),
        (["a.jsonl", "--mode", "single", "--logprobs", "--temperature", "1"], "leave out --temperature and --max-tokens"),
    ],
)  # fmt: skip
def test_options_that_contradict_each_other_are_refused(vtools, tmp_path, arguments, why):
    (tmp_path / "a.jsonl").write_bytes(jsonl({"id": "q", "model": "a", "question": ["?"], "turns": ["x"]}))
    done = vtools("judge", *arguments, "--base-url", "http://127.0.0.1:1/v1")
    assert done.returncode in (1, 2) and why in done.errors and done.errors.count("\n") == 1


OWN = '[instructions]\ngeneral = "Weigh brevity."\n[pair]\nscale = [0, 3]\ntie = 0.5\n'


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("general", "special", "[instructions] has no general"),
        ("[0, 3]", "[3, 0]", "[pair] scale: it must be two numbers"),
        ("[0, 3]", '"low"', "[pair] scale: it must be two numbers"),
        ("tie = 0.5", "ties = 0.5", "[pair] ties: unknown; there are scale"),
        ("tie = 0.5", "tie = -1", "[pair] tie: it must be a number of at least 0"),
        ("scale = [0, 3]", "", "[pair] needs one of scale"),
        ("scale = [0, 3]", "checklist = true\nscale = [0, 3]", "[pair] needs one of scale"),
        ("tie = 0.5", 'assistants = ["x", "x"]', "two different names"),
        ("scale = [0, 3]\ntie = 0.5", 'choices = {A = "c"}', "each must mean one of a, b, tie"),
        ("scale = [0, 3]\ntie = 0.5", 'choices = {"A B" = "a"}', "neither blanks"),
        ("scale = [0, 3]\ntie = 0.5", 'choices = {A = "a"}\ngames = {B = 2}', "[pair] games"),
        ("[pair]", '[criteria]\n"a: b" = "x"\n[pair]', "[criteria]: a name"),
        ("[pair]", '[criteria]\nexplanation = "x"\n[pair]', "[criteria]: a name"),
        ("[0, 3]", "[0, inf]", "[pair] scale: it must be two numbers"),
        ("[pair]", '[categories]\nx = "y"\n[pair]', "[categories] x: [instructions] has no y"),
        ("[pair]\nscale = [0, 3]\ntie = 0.5", "", "neither [pair] nor [single]"),
        ("[pair]", "[pair", "not a TOML file"),
        ('"Weigh brevity."', "7", "instructions must be a table of texts"),
    ],
)  # fmt: skip
def test_a_rubric_that_is_wrong_is_named_with_its_place(tmp_path, old, new, why):
    (tmp_path / "own.toml").write_text(OWN.replace(old, new))
    with pytest.raises(Failure, match=re.escape(why)) as caught:
        rubric.read(str(tmp_path / "own.toml"))
    assert str(caught.value).startswith(str(tmp_path / "own.toml"))


def test_an_own_rubric_has_its_own_scale_and_tie_and_a_changed_one_is_kept_out_of_the_same_file(vtools, tmp_path):
    for model in "ab":
        (tmp_path / f"{model}.jsonl").write_bytes(
            jsonl({"id": "q", "model": model, "question": ["?"], "turns": [model]})
        )
    with Judge(lambda messages, body: grades(0, 0.5)) as server:
        ask = ("judge", "a.jsonl", "b.jsonl", "--rubric", "own.toml", "--base-url", server.url, "-o", "j.jsonl", "--one-order")  # fmt: skip
        for text in (OWN, OWN + "# a remark\n"):
            (tmp_path / "own.toml").write_text(text)
            assert vtools(*ask).returncode == 0
            assert json.loads((tmp_path / "j.jsonl").read_text())["verdict"] == "tie"
        before = (tmp_path / "j.jsonl").read_bytes()
        (tmp_path / "own.toml").write_text(OWN.replace("0.5", "0.1"))
        for dry_run in ((), ("-n",)):
            mixed = vtools(*ask, *dry_run)
            assert (mixed.returncode, len(server.bodies)) == (1, 1) and "rubric_digest" in mixed.errors
        assert (tmp_path / "j.jsonl").read_bytes() == before
        assert vtools(*ask[:-2], "k.jsonl", "--one-order").returncode == 0
    assert json.loads((tmp_path / "k.jsonl").read_text())["verdict"] == "b"
    tenth = OWN.replace("tie = 0.5", "tie = 0.1")
    (tmp_path / "tenth.toml").write_text(tenth)
    with Judge(lambda messages, body: grades(2.1, 2)) as server:
        assert record(server, str(tmp_path / "tenth.toml"))["verdict"] == "tie"
    assert "Weigh brevity." in shown(server) and "from 0 (worst) to 3 (best)" in shown(server)


def test_single_grades_are_written_per_turn_and_reported_by_their_means(vtools, tmp_path):
    rows = [{"id": f"q{n}", "model": "tuned", "category": "math" if n else "roleplay", "question": ["one?", "two?"], "turns": [f"x{n}", f"y{n}"]} for n in range(2)]  # fmt: skip
    rows.append({"id": "bare", "model": "tuned", "question": ["one?"], "turns": ["x", "y"]})
    (tmp_path / "tuned.jsonl").write_bytes(jsonl(*rows))
    (tmp_path / "base.jsonl").write_bytes(jsonl({**rows[0], "model": "base"}))
    with Judge(lambda messages, body: [8 if "conversation so far" in messages[1]["content"] else 4]) as server:
        done = vtools("judge", "tuned.jsonl", "base.jsonl", "--mode", "single", "--base-url", server.url)
    assert done.returncode == 0, done.errors
    assert [(row["id"], row["model"], row["turn"], row["score"]) for row in done.records] == [
        ("q0", "base", 1, 4), ("q0", "base", 2, 8),
        ("q0", "tuned", 1, 4), ("q0", "tuned", 2, 8), ("q1", "tuned", 1, 4), ("q1", "tuned", 2, 8),
    ]  # fmt: skip
    assert "bad_schema 1" in done.errors
    report = vtools("report", "--json", stdin=done.stdout)
    base, tuned = report.records[0]["grades"]
    assert (tuned["n"], tuned["mean"], tuned["turns"], tuned["categories"]) == (
        4,
        6,
        {"1": 4, "2": 8},
        {"math": 6, "roleplay": 6},
    )
    assert base["model"] == "base" and base["rubric"] == "vicuna"
    text = vtools("report", "--table", stdin=done.stdout).stdout.decode()
    assert re.search(r"^tuned +4 +0 +0 +6\.00 +- +4\.00 +8\.00$", text, re.MULTILINE)
    assert re.search(r"^tuned +6\.00 +6\.00$", text, re.MULTILINE)


def test_a_question_without_a_checklist_is_left_out_and_counted():
    chosen = rubric.read("checklist")
    judge = judging.Judge(chosen, chosen.mode("single"), SAMPLING)
    tasks = [Task(None, None, Single(Question(name, ["?"], checklist=checks), "a", ["x"], 0)) for name, checks in (("q", ["Is it?"]), ("r", None))]  # fmt: skip
    kept, left = judge.keyed(iter(tasks), {"": ""})
    assert kept.key and not kept.reject
    assert left.reject.reason == "bad_schema" and "question r has no checklist" in left.reject.detail


def test_what_needs_several_values_is_not_for_log_probabilities():
    for name in ("dialogue", "checklist"):
        with pytest.raises(UsageFailure):
            rubric.read(name).mode("single").one_token_form("")
