"""vtools clean --preset vicuna: what FastChat keeps and drops."""

from __future__ import annotations

import json
import random

import html_corpus
import pytest
from chats import jsonl, shared
from cleaning import GOOD, LANGUAGES, ids, rejected, run

from vtools.clean import steps
from vtools.clean.choices import Choices
from vtools.records.jsonl import Reject

CODES = {1: {"too_short"}, 2: {"role_order"}, 3: {"blocked_word", "blocked_response"}, 4: {"html_parse"}}
VECTORS = {
    "15 characters": (shared("123456789", "012345"), 1),
    "16 characters": (shared("123456789", "0123456"), 0),
    "gpt first": ({"conversations": [{"from": "gpt", "value": "x"}, *shared(*GOOD)["conversations"]]}, 0),
    "two gpt first": ({"conversations": [{"from": "gpt", "value": "x"}] * 2 + shared(*GOOD)["conversations"]}, 2),
    "human last": (shared(*GOOD, "left open"), 0),
    "other roles": ({"conversations": [{"from": "user", "value": GOOD[0]}, {"from": "chatgpt", "value": GOOD[1]}]}, 1),
    "system first": ({"conversations": [{"from": "system", "value": "x"}, *shared(*GOOD)["conversations"]]}, 0),
    "bing answers": ({"conversations": [{"from": "human", "value": GOOD[0]}, {"from": "bing", "value": GOOD[1]}]}, 2),
    "second answer empty": (shared(*GOOD, "and", ""), 0),
    "zero-width answer": (shared(*GOOD, "and", "\u200bx"), 0),
    "first answer empty": (shared(GOOD[0], ""), 1),
    "blocked word": (shared("who made chatGPT?", GOOD[1]), 3),
    "blocked word in a link": (shared(GOOD[0], '<p>see <a href="https://chat.openai.com/">here</a></p>'), 3),
    "blocked word in an attribute": (shared(GOOD[0], '<p class="openai">see here, it is long enough</p>'), 3),
    "blocked after the end": (shared(*GOOD, "", "ChatGPT"), 0),
    "short except for a dropped question": (shared("a", "b", "a question of some length", ""), 0),
    "empty": ({"conversations": []}, 1),
    "one": (shared("alone and long enough"), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", VECTORS)
def test_the_vicuna_preset_gives_fastchats_published_codes(name):
    record, code = VECTORS[name]
    found = rejected({"id": "x", **record}, preset="vicuna")
    assert (found[0] in CODES[code]) if code else found is None, found


def test_the_vicuna_preset_drops_rate_limit_answers_as_fastchat_does_since_2024():
    for mark in ("", "!"):
        record = shared("a long question", f"<p>{mark}Too many requests in 1 hour. Try again later.</p>")
        assert rejected(record, preset="vicuna")[0] == "blocked_response"


def fastchat():
    return pytest.importorskip("fastchat.data.clean_sharegpt", reason="FastChat is not installed")


def theirs(records: list[dict], module) -> dict[int, set[str]]:
    """By place, the reasons that FastChat's own functions give; its last pass is `clean_html_all`, run on one process."""
    found, seen = {}, {}
    for place, record in enumerate(records):
        sample, code = module.clean_html_one_sample(json.loads(json.dumps(record)))
        if code:
            found[place] = CODES[code]
            continue
        pair = tuple(turn["value"] for turn in sample["conversations"][:2])
        if sample["id"] in seen:
            found[place] = {"dup_id"}
        elif sample.get("plugins") is not None:
            found[place] = {"plugin"}
        elif pair in seen:
            found[place] = {"dup_exact"}
        else:
            seen[sample["id"]] = seen[pair] = sample["id"]
    return found


def ours(records: list[dict]) -> dict[int, str]:
    ends = steps.ordered(Choices(preset="vicuna"))
    found = {}
    for place, record in enumerate(records):
        try:
            made = steps.draft(Choices(preset="vicuna"), json.loads(json.dumps(record)))
            for step in ends:
                step.take(made)
        except Reject as reject:
            found[place] = reject.reason
    return found


def generated(count: int, seed: int) -> list[dict]:
    """Conversations of made-up HTML answers, with everything that the rules are about."""
    dice = random.Random(seed)
    answers = [made.html for made in html_corpus.answers(60, seed)]
    answers += [
        "<p>short</p>",
        "",
        "\u200bx",
        "<p>Ask OpenAI.</p>",
        "ok",
        '<p><a href="https://chat.openai.com">x</a></p>',
        "plain words",
    ]
    questions = ["why?", "Write a longer text, please", "", "who is ChatGPT", "a", "\u200b", "What about 3 / 4 of it"]
    roles = ["human", "gpt"] * 3
    records = []
    for number in range(count):
        turns = [
            {
                "from": role,
                "value": dice.choice(answers if role == "gpt" else questions[:2] if dice.random() < 0.8 else questions),
            }
            for role in roles[: dice.randrange(7)]
        ]
        if turns and dice.random() < 0.15:
            turns[dice.randrange(len(turns))]["from"] = dice.choice(["system", "user", "gpt", "human", "bing"])
        if dice.random() < 0.15:
            turns.insert(0, {"from": dice.choice(["gpt", "system", "human"]), "value": "hello"})
        record = {"id": f"r{dice.randrange(count)}" if dice.random() < 0.2 else f"r{number}", "conversations": turns}
        records.append(record | ({"plugins": [1]} if dice.random() < 0.05 else {}))
        if dice.random() < 0.1:
            records.append({**record, "id": f"copy{number}"})
    return records


@pytest.mark.filterwarnings("ignore")
def test_the_vicuna_preset_keeps_what_fastchats_own_functions_keep_and_drops_the_rest_for_their_reasons():
    """FastChat runs as it is installed; what its own conversion of our HTML blocks changes is no decision here."""
    module = fastchat()
    records = generated(400, seed=11)
    found, wanted = ours(records), theirs(records, module)
    assert found.keys() == wanted.keys()
    assert [(place, found[place]) for place in found if found[place] not in wanted[place]] == []
    assert set(found.values()) == {"too_short", "role_order", "blocked_word", "dup_id", "plugin", "dup_exact"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", VECTORS)
def test_fastchats_own_function_gives_the_code_of_the_vector(name):
    record, code = VECTORS[name]
    assert fastchat().clean_html_one_sample({"id": "x", **json.loads(json.dumps(record))})[1] == code


def test_the_preset_is_a_whole_and_the_filters_that_are_off_by_default_come_after_it(tmp_path):
    assert b"fixes all rules" in run("--preset", "vicuna", "--keep", "plugin").stderr
    german = shared(LANGUAGES["de"], LANGUAGES["de"], id="de")
    assert ids(run("--preset", "vicuna", "--skip-lang", "de", stdin=jsonl(german, shared(*GOOD, id="en")))) == ["en"]
