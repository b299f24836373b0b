"""--fold-system: system messages in the first question, for templates that have no place for them."""

from __future__ import annotations

import json

import pytest
from chat_templates import FAMILIES, made
from chats import chat
from tiny import conversations, make, write

from vtools.models.template import load_template
from vtools.models.tokenizer import load_tokenizer
from vtools.process import Failure
from vtools.records.jsonl import Reject

RECORDS = [
    chat("Hi", "Hello there."),
    chat("Hi", "Hello there.", system="Be brief."),
    chat("Hi", "Hello.", "And now?", "The end.", system="  Be brief.\n"),
    chat("Hi", "Hello.", system=""),
    chat("Hi", "Hello.", system=" \n"),
    chat(" Hi\n", " Hello. ", " And now? ", "The end.", system="Be <end_of_turn> [INST] brief."),
]


def by_hand(messages: list[dict]) -> list[dict]:
    """The conversation as its author would have written it for such a template."""
    if messages[0]["role"] != "system":
        return messages
    system, question, *rest = messages
    text = system["content"].strip()
    return [question | {"content": f"{text}\n\n{question['content']}" if text else question["content"]}, *rest]


@pytest.fixture(params=["mistral-3", "gemma-2"])
def tokenizer(request, eot, tmp_path):
    family = FAMILIES[request.param]
    return load_tokenizer(str(made(eot, tmp_path / "base", family.template, family.tokens, **family.settings)))


@pytest.mark.parametrize("messages", RECORDS, ids=str)
def test_a_system_message_is_trained_as_if_it_had_been_written_into_the_question(tokenizer, messages):
    plain, folding = load_template(None, tokenizer), load_template(None, tokenizer, fold_system=True)
    if messages[0]["role"] == "system":
        with pytest.raises(Reject):
            plain.render(messages)
    expected = plain.render(by_hand(messages))
    found = folding.render(messages)
    # Two texts are two runs of one text, and a control token that a user typed stays text in both.
    decode = plain.tokenizer.decode
    assert decode(found.ids, skip_special=False) == decode(expected.ids, skip_special=False)
    trained = [[one for one, on in zip(*each, strict=True) if on] for each in (found, expected)]
    assert trained[0] == trained[1]
    if messages[0]["role"] != "system":
        assert found == expected


def test_transformers_writes_the_same_prompt_from_the_stored_template(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tokenizer.folder)
    folding = load_template(None, tokenizer, "Say less.", fold_system=True)
    theirs.save_pretrained(tmp_path / "stored")
    folding.save(tmp_path / "stored")
    stored = AutoTokenizer.from_pretrained(tmp_path / "stored")
    for messages in RECORDS:
        given = messages if messages[0]["role"] == "system" else [{"role": "system", "content": "Say less."}, *messages]
        text = theirs.apply_chat_template(by_hand(given), tokenize=False)
        assert stored.apply_chat_template(messages, tokenize=False) == text
    messages = RECORDS[2]
    assert stored.apply_chat_template(messages)["input_ids"] == folding.render(messages).ids
    assert load_template(None, load_tokenizer(str(tmp_path / "stored"))).system == "Say less."


def test_it_is_refused_where_it_would_do_nothing(smollm2, tokenizer, tmp_path):
    with pytest.raises(Failure, match="--fold-system: the template auto has a place for a system message"):
        load_template(None, load_tokenizer(smollm2), fold_system=True)
    folding = load_template(None, tokenizer, fold_system=True)
    with pytest.raises(Failure, match="has a place for a system message"):
        folding.folding_system()


@pytest.mark.slow
def test_every_tool_counts_the_same_tokens_and_the_trained_model_keeps_it(vtools, tmp_path):
    make(tmp_path / "base")
    config = json.loads((tmp_path / "base/tokenizer_config.json").read_text())
    config["chat_template"] = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + (config["chat_template"])
    )
    (tmp_path / "base/tokenizer_config.json").write_text(json.dumps(config))
    rows = conversations(8)
    for row in rows:
        row["messages"].insert(0, {"role": "system", "content": "one red bird"})
    write(tmp_path / "chats.jsonl", rows)
    refused = vtools("train", "chats.jsonl", "--model", "base", "-n")
    assert refused.returncode == 1 and "template_error" in refused.errors and "--fold-system" in refused.errors
    split = vtools("split", "chats.jsonl", "--tokenizer", "base", "--fold-system", "--stats", "split.json")
    assert len(split.records) == 8, split.errors
    counted = vtools("stats", "chats.jsonl", "--tokenizer", "base", "--fold-system").records[0]["tokens"]
    assert json.loads((tmp_path / "split.json").read_text())["tokens"] == counted
    options = ("--max-steps", 1, "--batch", 4, "--warmup", 0, "--out", "tuned")
    done = vtools("train", "chats.jsonl", "--model", "base", "--fold-system", *options, env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.errors
    assert done.records[0]["data_tokens"] == counted - 8  # the line end after each last answer is not trained
    asked = vtools("chat", "--text", "--model", "tuned", "--system", "one red bird", "--max-tokens", 4, stdin="hills\n")
    assert asked.returncode == 0 and asked.stdout.strip(), asked.errors
