"""`vtools judge` with several judges: who judges what, what it costs together, and who says that it was them."""

from __future__ import annotations

import json

import pytest
from chats import jsonl
from judging import Judge, grades
from test_judge import answers
from test_judge_joining import answer

from vtools.inference.address import Server
from vtools.inference.budget import Budget, Purse, Spent
from vtools.inference.client import Sampling
from vtools.judge import judging, rubric
from vtools.judge.matches import Match
from vtools.records.model_names import families, unpinned
from vtools.records.question import Question

MODELS = ("alpaca-13b", "bard", "claude-v1", "gpt-3.5-turbo", "vicuna-13b")
GPT, CLAUDE, MISTRAL = "gpt-4.1-2025-04-14", "claude-sonnet-4-5-20250929", "mistral-large-2411"
PRICES = {GPT: {"in": 2, "out": 8}, CLAUDE: {"in": 3, "out": 15}, MISTRAL: {"in": 2, "out": 6}}


def judges(*names: str) -> list[str]:
    return [word for name in names for word in ("--judge", name)]


@pytest.fixture
def files(tmp_path):
    """Three answers of each of three models."""
    for model in MODELS[2:]:
        (tmp_path / f"{model}.jsonl").write_text(answers(model))
    return [f"{model}.jsonl" for model in MODELS[2:]]


@pytest.fixture
def first():
    """A judge for whom the first is always better."""
    with Judge(lambda messages, body: grades(5, 4)) as server:
        yield server


def test_a_dry_run_of_a_panel_gives_exact_counts_and_costs(vtools, tmp_path):
    """Three judges, five models, 80 questions. Worked out by hand:

    10 pairs in both orders are 1,600 judgments per judge. GPT and Claude each leave out the 4 pairs with one of their
    own, so 960 are left. Alpaca and Vicuna say the same to 5 questions: 10 per judge need no call. Bard says nothing
    to 3: of its 4 pairs, GPT and Claude judge 3, and 18 need no call, of Mistral's 24.
    """
    for model in MODELS:
        rows = []
        for number in range(80):
            name = "v-or-a" if number < 5 and model in ("alpaca-13b", "vicuna-13b") else model[:6]
            said = "" if model == "bard" and number < 3 else f"{name:6} says {number:02} at length".ljust(400, ".")
            rows.append(answer(number, model, [said], f"question {number:02}"))
        (tmp_path / f"{model}.jsonl").write_bytes(jsonl(*rows))
    (tmp_path / "prices.json").write_text(json.dumps({"model": PRICES}))
    done = vtools(
        "judge", *(f"{model}.jsonl" for model in MODELS), *judges(GPT, f"{CLAUDE}=http://127.0.0.1:9/v1", MISTRAL),
        "--base-url", "http://127.0.0.1:8/v1", "-n", "--prices", "prices.json", "--max-tokens", 1000,
        "--max-usd", 30, "-j", 10,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout == b"", done.errors
    said = [line.removeprefix("vtools judge: ") for line in done.errors.splitlines()]
    calls = {GPT: 960 - 10 - 18, CLAUDE: 960 - 10 - 18, MISTRAL: 1600 - 10 - 24}
    whole = rubric.read("vicuna")
    turns = ["x" * 400]  # every call's prompt has the same length, as every question and answer has
    one = Match(Question("0", ["question 00"]), "a", "b", turns, turns, "ab")
    messages = judging.Judge(whole, whole.mode("pair"), Sampling(1000, 0.0, seed=0)).prompt(one).messages("lines")
    size = sum(len(message["content"].encode()) for message in messages)
    tokens = {name: calls[name] * size // 4 for name in calls}
    usd = {name: (tokens[name] * PRICES[name]["in"] + calls[name] * 1000 * PRICES[name]["out"]) / 1e6 for name in calls}
    assert said == [
        f"{GPT} leaves out its own family, 640 of 1,600 judgments: gpt-3.5-turbo (OpenAI)",
        f"{CLAUDE} leaves out its own family, 640 of 1,600 judgments: claude-v1 (Anthropic)",
        *(
            f"would ask {name} at http://127.0.0.1:{port}/v1 {asked} times; about {tokens[name]:,} tokens in "
            f"(4 bytes each) and at most {most} out, without retries; at most {usd[name]:.2f} USD; {free} need no "
            "call, 0 judgments exist already"
            for name, port, asked, most, free in (
                (GPT, 8, "932", "932,000", 28), (CLAUDE, 9, "932", "932,000", 28), (MISTRAL, 8, "1,566", "1,566,000", 34),
            )
        ),
        f"3,430 calls in all; about {sum(tokens.values()):,} tokens in (4 bytes each) and at most 3,430,000 out, "
        f"without retries; at most {sum(usd.values()):.2f} USD, more than --max-usd 30; at most 1.9 h at -j 10 and 50 "
        "tokens/s; 90 need no call, 0 judgments exist already, 0 records are left out",
    ]  # fmt: skip
    assert round(sum(usd.values()) - sum(tokens[name] * PRICES[name]["in"] / 1e6 for name in calls), 3) == 30.832


def test_each_judge_is_asked_where_it_is_and_one_that_is_added_is_asked_for_its_own_alone(vtools, tmp_path, files, first):  # fmt: skip
    (tmp_path / "prices.json").write_text('{"model": {"one": {"in": 0, "out": 1e4}, "two": {"in": 0, "out": 5e4}}}')
    with Judge(lambda messages, body: grades(4, 6)) as second:
        ask = ("judge", *files, *judges("one", f"two={second.url}"), "--base-url", first.url, "-o", "j.jsonl")
        done = vtools(*ask, "--prices", "prices.json", "--max-usd", 1000)
        assert done.returncode == 0, done.errors
        assert [len(server.bodies) for server in (first, second)] == [18, 18]
        assert {body["model"] for body in second.bodies} == {"two"}
        rows = [json.loads(line) for line in (tmp_path / "j.jsonl").read_bytes().splitlines()]
        spent = sum(row["usage"]["out"] * {"one": 0.01, "two": 0.05}[row["judge"]] for row in rows)
        assert f"{spent:.4f} USD spent" in done.errors
        assert [(row["judge"], row["verdict"]) for row in rows[:4]] == [("one", "a"), ("two", "b"), ("one", "b"), ("two", "a")]  # fmt: skip
        again = vtools(*ask, *judges("three"))
        assert again.returncode == 0, again.errors
        assert [len(server.bodies) for server in (first, second)] == [36, 18]
    assert {body["model"] for body in first.bodies[18:]} == {"three"}
    added = [json.loads(line) for line in (tmp_path / "j.jsonl").read_bytes().splitlines()]
    assert [row for row in added if row["judge"] != "three"] == rows
    assert [row["judge"] for row in added[:3]] == ["one", "two", "three"]


def test_a_judge_that_answers_under_another_name_stops_the_panel_and_what_was_paid_stays(vtools, tmp_path, files, first):  # fmt: skip
    def reply(messages, body):
        second.reported = "other" if changes and len(second.bodies) > 3 else "served-two"
        return grades(5, 4)

    changes = True
    with Judge(reply) as second:
        ask = ("judge", *files, *judges("one", f"two={second.url}"), "--base-url", first.url, "-o", "j.jsonl", "-j", 1)
        stopped = vtools(*ask)
        assert stopped.returncode == 1
        assert "two was served-two before and now answers as other" in stopped.errors
        kept = (tmp_path / "j.jsonl.journal").read_bytes().splitlines()
        asked = len(first.bodies) + len(second.bodies)
        changes = False
        assert vtools(*ask).returncode == 0
    assert len(kept) == asked - 1  # all but the one under another name
    assert len(first.bodies) + len(second.bodies) == 2 * 18 + 1


def test_a_judge_leaves_out_its_own_family_or_keeps_it_on_request(vtools, files, first):
    ask = ("judge", *files, "--base-url", first.url, "--one-order")
    done = vtools(*ask, *judges(GPT, MISTRAL))
    pairs = {(row["judge"], row["a"], row["b"]) for row in done.records}
    assert {pair[1:] for pair in pairs if pair[0] == GPT} == {("claude-v1", "vicuna-13b")}
    assert len({pair for pair in pairs if pair[0] == MISTRAL}) == 3
    assert f"{GPT} leaves out its own family, 6 of 9 judgments: gpt-3.5-turbo (OpenAI)" in done.errors
    kept = vtools(*ask, *judges(GPT, MISTRAL), "--own-family")
    assert len(kept.records) == 18
    warning = f"warning: {GPT} may favour its own family, in 6 of 9: gpt-3.5-turbo (OpenAI)"
    assert warning in kept.errors
    nobody = vtools(*ask, *judges(GPT, CLAUDE), "-n").errors
    assert "warning: no judge is left for claude-v1 and gpt-3.5-turbo" in nobody
    alone = vtools(*ask, "--model", GPT)
    assert len(alone.records) == 9 and warning in alone.errors


def test_a_candidate_is_of_the_family_that_its_records_name_under_any_name_for_it(vtools, tmp_path, first):
    (tmp_path / "a.jsonl").write_text(answers("gpt-4o"))
    done = vtools("judge", "a.jsonl", "--name", "A", "--mode", "single", "--model", GPT, "--base-url", first.url, "-n")
    assert f"warning: {GPT} may favour its own family, in 3 of 3: A (OpenAI)" in done.errors


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (judges(GPT, "claude-v1"), "nothing is left for claude-v1 to judge, as its own family is everywhere: claude-v1 (Anthropic)"),
        (judges("one", "one=http://127.0.0.1:9/v1"), "--judge one is given 2 times"),
        (judges("one=127.0.0.1:9"), "--judge one=127.0.0.1:9: give a name, and a URL after ="),
        (judges("one=http://127.0.0.1:9/v1", "two=http://127.0.0.1:8/v1"), "each --judge names a URL of its own"),
        ([*judges("one", "two"), "--model", "three"], "--judge and --model both say who judges"),
        ([*judges("one"), "--own-family"], "--own-family is about a panel"),
        ([*judges("one", "two"), "--batch", "-o", "j.jsonl"], "--batch asks one judge: repeat the command"),
        ([*judges("one", "two"), "--stop-when-decided", 0.9], "is about one judge's verdicts"),
    ],
)  # fmt: skip
def test_a_panel_that_means_nothing_is_refused(vtools, tmp_path, files, first, options, why):
    done = vtools("judge", files[0], files[2], "--base-url", first.url, *options, env={"VTOOLS_MODEL": "named"})
    assert done.returncode == 2 and why in done.errors and first.bodies == [], done.errors


def test_the_limit_holds_for_all_judges_together():
    purse = Purse(10)
    cheap, dear = Budget((0, 1e6), purse=purse), Budget((0, 2e6), purse=purse)
    with cheap.call([], 4) as bill:
        bill.tokens = 0, 4
    with dear.call([], 3) as bill:
        bill.tokens = 0, 3
    assert cheap.spent == dear.spent == 10
    with pytest.raises(Spent, match="stopped at 10"), cheap.call([], 1):
        pass


def test_each_provider_gets_a_key_of_its_own(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "general")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "special")
    keys = [Server(f"https://{host}/v1").key for host in ("api.anthropic.com", "api.mistral.ai", "example.org")]
    assert keys == ["special", "general", "general"]


def test_a_name_that_its_provider_moves_is_warned_about_with_the_one_to_pin(vtools, files, first):
    first.reported = "gpt-4o-2024-08-06"
    ask = ("judge", *files[::2], "--base-url", first.url, "--model", "gpt-4o")
    assert "warning: gpt-4o may mean another model tomorrow: name one with a date" in vtools(*ask, "-n").errors
    pin = "gpt-4o means gpt-4o-2024-08-06 today and may mean another model tomorrow: name that one"
    assert vtools(*ask).errors.count(pin) == 1
    assert "tomorrow" not in vtools(*ask[:-1], "gpt-4o-2024-08-06").errors


@pytest.mark.parametrize(
    ("name", "told", "warned"),
    [
        ("gpt-4", None, True), ("openai/gpt-5.1", None, True), ("o3-mini", "o3-mini-2025-01-31", True),
        ("claude-3-5-sonnet-latest", None, True), ("mistral-large-latest", "mistral-large-2411", True),
        ("deepseek-chat", None, True), ("claude-sonnet-4-5", "claude-sonnet-4-5-20250929", True),
        ("gpt-4-0613", None, False), ("claude-sonnet-4-6", "claude-sonnet-4-6", False), ("tuned", "tuned", False),
        ("gpt-oss-120b", None, False), ("gemini-1.5-pro-002", None, False), ("m", "served-m", False),
    ],
)  # fmt: skip
def test_names_with_and_without_a_date(name, told, warned):
    assert (unpinned(name, told) is not None) == warned


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("OpenAI", "gpt-4o openai/o3 o4-mini-2025-04-16 chatgpt-4o-latest text-davinci-003 answer_gpt35 gpt-oss-20b"),
        ("Anthropic", "claude-v1 anthropic.claude-3-5-sonnet-20240620-v1:0 Claude-Opus-4"),
        ("Google", "gemini-2.5-pro gemma2:2b bard palm-2-chat-bison fastchat-t5-3b"),
        ("Llama", "meta-llama/Llama-3.1-70B-Instruct vicuna-13b:20230322-clean-lang alpaca-13b koala-13b codellama"),
        ("Mistral", "mixtral-8x7b mistral-large-2411 HuggingFaceH4/zephyr-7b-beta"),
        ("Qwen", "Qwen/Qwen2.5-72B-Instruct qwq-32b deepseek-ai/DeepSeek-R1-Distill-Qwen-32B"),
        ("DeepSeek", "deepseek-chat deepseek-ai/DeepSeek-R1-Distill-Qwen-32B"),
    ],
)
def test_a_family_is_known_by_its_names(family, names):
    assert all(family in families(name) for name in names.split())
    assert [name for name in ("tuned", "gpt-j-6b", "tinyllama", "delphi", "marco-o1") if family in families(name)] == []


def test_a_model_of_no_known_family_is_its_own_alone():
    assert families("./models/Tuned") & families("tuned") and not families("tuned") & families("base")
