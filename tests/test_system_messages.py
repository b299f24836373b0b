"""--system: the text that a template writes where a conversation has none. (--fold-system: test_fold_system.py.)"""

from __future__ import annotations

import json
import re

import pytest
import tiny
from chats import chat
from hypothesis import given, settings
from hypothesis import strategies as st

from vtools.models import system_messages
from vtools.models.template import Template, load_template
from vtools.models.tokenizer import load_tokenizer
from vtools.process import Failure

TEXT = 'You are "Vito",\n{% if x %} a \\n tool {{ y }} 😀'
SMOLLM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
LONE = re.compile("[\ue000\ue001\ud800-\udfff\r]")  # our marks, what no file holds, and a line end that files change


@pytest.fixture(scope="module")
def eot_tokenizer(eot):
    return load_tokenizer(eot)


def shown(template: Template, *texts: str, **system: str) -> str:
    return template.tokenizer.decode(template.prompt(chat(*texts, **system)), skip_special=False)


def test_a_template_says_its_own_system_text(smollm2, llama):
    assert load_template(None, load_tokenizer(smollm2)).system == SMOLLM
    assert load_template("vicuna-v1.1", load_tokenizer(llama)).system.startswith("A chat between a curious user")
    assert load_template("chatml", load_tokenizer(smollm2)).system is None
    assert load_template("llama-2", load_tokenizer(llama)).system is None


def test_none_empties_it_and_a_text_takes_its_place(smollm2):
    tokenizer = load_tokenizer(smollm2)
    turn = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    for asked, system in (("", ""), ("Be brief.", "Be brief.")):
        template = load_template(None, tokenizer, asked)
        assert shown(template, "Hi") == f"<|im_start|>system\n{system}<|im_end|>\n{turn}"
        assert shown(template, "Hi", system="Own.") == f"<|im_start|>system\nOwn.<|im_end|>\n{turn}"


def test_none_changes_nothing_where_the_template_has_no_text_of_its_own(smollm2, llama):
    for name, model in (("chatml", smollm2), ("llama-2", llama)):
        tokenizer = load_tokenizer(model)
        assert load_template(name, tokenizer, "").source == load_template(name, tokenizer).source


@pytest.mark.parametrize("name", ["vicuna-v1.1", "vicuna-v0", "alpaca", "llama-2"])
def test_it_stands_where_the_published_formats_have_a_system_message(llama, name):
    tokenizer = load_tokenizer(llama)
    plain, given = load_template(name, tokenizer), load_template(name, tokenizer, TEXT)
    assert given.prompt(chat("Hi", "Yes", "So")) == plain.prompt(chat("Hi", "Yes", "So", system=TEXT))
    assert given.render(chat("Hi", "Yes")) == plain.render(chat("Hi", "Yes", system=TEXT))


@settings(max_examples=200)
@given(st.text(max_size=40).map(lambda text: LONE.sub("", text)))
def test_any_text_is_stored_and_read_back_and_replaced(eot_tokenizer, text):
    tokenizer = eot_tokenizer
    plain = load_template(None, tokenizer)
    stored = system_messages.replaced(plain.source, text)
    assert Template("auto", stored, (), tokenizer).system == text
    assert system_messages.original(stored) == plain.source
    assert system_messages.replaced(stored, "other") == system_messages.replaced(plain.source, "other")


@pytest.mark.parametrize(
    "source", ["\n{{ messages[0].content }}", "  {% if true %} {{ messages[0].content }}{% endif %}"]
)
def test_the_rest_of_the_template_renders_as_before(smollm2, source):
    tokenizer = load_tokenizer(smollm2)
    messages = chat("Hi", system="S")
    before = Template("x", source, (), tokenizer)._cutter.program.render(messages)
    assert (
        Template("x", system_messages.replaced(source, "T"), (), tokenizer)._cutter.program.render(messages) == before
    )


def test_a_template_that_refuses_system_messages_says_so(eot, tmp_path):
    source = (
        "{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<|head|>{{ message.content }}<|eot|>{% endfor %}"
    )
    template = Template("auto", source, (), load_tokenizer(eot))
    assert template.system is None
    assert template.with_system("").source == source
    with pytest.raises(Failure, match="--system: the template auto has no place for a system message"):
        template.with_system("Be brief.")


def test_transformers_renders_the_stored_template_to_the_same_tokens(smollm2, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = load_tokenizer(smollm2)
    for text in ("", TEXT):
        template = load_template(None, tokenizer, text)
        folder = tmp_path / str(len(text))
        AutoTokenizer.from_pretrained(tokenizer.folder).save_pretrained(folder)
        template.save(folder)
        for messages in (chat("Hi"), chat("Hi", system="Own."), chat("a", "b", "c")):
            theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, add_generation_prompt=True)
            assert theirs["input_ids"] == template.prompt(messages)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny model whose template has a system text of its own, and conversations without any."""
    folder = tmp_path_factory.mktemp("system")
    tiny.make(folder / "base")
    path = folder / "base/tokenizer_config.json"
    config = json.loads(path.read_text())
    config["chat_template"] = (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nthe cat<|im_end|>\n{% endif %}" + tiny.TEMPLATE
    )
    path.write_text(json.dumps(config))
    tiny.write(folder / "chats.jsonl", tiny.conversations(12))
    return folder


def test_every_tool_counts_the_same_tokens_with_it_and_the_dry_run_shows_it(vtools, base, tmp_path):
    found = {}
    for text in ("none", "saw one red bird"):
        given = ("--system", text)
        model = ("--tokenizer", base / "base")
        split = vtools("split", base / "chats.jsonl", *model, *given, "--stats", "split.json", "-o", "segments.jsonl")
        assert split.returncode == 0 and split.errors.count("\n") == 1, split.errors
        assert split.errors.endswith(f"; the model's own template, default system text: {text}\n")
        counted = vtools("stats", base / "chats.jsonl", *model, *given).records[0]["tokens"]
        plan = vtools("train", "--model", base / "base", "--data", base / "chats.jsonl", *given, "-n", "--batch", 4)
        assert plan.returncode == 0, plan.errors
        assert json.loads((tmp_path / "split.json").read_text())["tokens"] == counted
        assert plan.records[0]["data_tokens"] == counted - 12  # the line end after each last answer is not trained
        assert plan.records[0]["system"] == ("" if text == "none" else text)
        assert f"system text where a conversation has none: {text}" in plan.errors
        found[text] = counted
    whole = vtools("stats", base / "chats.jsonl", "--tokenizer", base / "base", "--template", "auto").records[0][
        "tokens"
    ]
    tokens = load_tokenizer(str(base / "base")).backend.encode
    for text, counted in found.items():
        longer = len(tokens("the cat").ids) - (0 if text == "none" else len(tokens(text).ids))
        assert whole - counted == 12 * longer


@pytest.mark.slow
def test_it_is_trained_with_stored_with_the_weights_and_served(vtools, base, tmp_path):
    run = vtools(
        "train", "--model", base / "base", "--data", base / "chats.jsonl", "--out", "tuned", "--system", "one red bird",
        "--max-steps", 1, "--batch", 4, "--warmup", 0, env={"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.errors
    assert load_template(None, load_tokenizer(str(tmp_path / "tuned"))).system == "one red bird"
    asked = ("chat", "--text", "--model", "tuned", "--max-tokens", 8, "--temperature", 0)
    plain = vtools(*asked, stdin="hills\n")
    same = vtools(*asked, "--system", "one red bird", stdin="hills\n")
    other = vtools(*asked, "--system", "none", stdin="hills\n")
    assert plain.returncode == same.returncode == other.returncode == 0, plain.errors + other.errors
    assert plain.stdout == same.stdout != other.stdout


def test_a_server_is_sent_a_text_and_cannot_be_told_to_leave_out_its_own(vtools):
    asked = vtools(
        "chat", "--text", "--base-url", "http://127.0.0.1:9/v1", "--model", "m", "--system", "none", stdin="x\n"
    )
    assert asked.returncode == 2
    assert "start that server with --system none" in asked.errors


def test_only_tokens_have_a_template(vtools):
    asked = vtools("stats", "--system", "none", stdin="")
    assert asked.returncode == 2
    assert "--template, --system and --fold-system count tokens: they need --tokenizer MODEL" in asked.errors
