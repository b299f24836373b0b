"""Templates: token ids and masks against the vectors observed in FastChat, and against transformers' own rendering."""

from __future__ import annotations

import hashlib
import itertools
import re

import pytest
from chats import chat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vtools.models import template
from vtools.models.template import load_template
from vtools.models.tokenizer import load_tokenizer
from vtools.process import Failure
from vtools.records.jsonl import Reject

TRAINABLE = [*template.SOURCES]


@pytest.fixture(scope="session")
def tokenizers(llama, smollm2, eot):
    return {"llama": load_tokenizer(llama), "smollm2": load_tokenizer(smollm2), "eot": load_tokenizer(eot)}


@pytest.fixture(scope="session")
def vicuna(tokenizers):
    return load_template(None, tokenizers["llama"])


def trained(render, messages):
    ids, mask = render.render(messages)
    return [render.tokenizer.backend.id_to_token(number) for number, on in zip(ids, mask, strict=True) if on]


# What FastChat 0.2.36 gives with the real LLaMA vocabulary, and what is wanted where it loses the sample.
GOLDEN = [
    (("Hello!", "Hi there.", "How are you?", "I am good."), 62, "▁Hi ▁there . </s> ▁I ▁am ▁good . </s>"),
    (("Hi", "Ans with trailing space ", "Q", "A"), 57, "▁Ans ▁with ▁trailing ▁space ▁ </s> ▁A </s>"),
    (
        ("Hi", "1. first\n2. second", "Q2", "```py\nx=1\n```"),
        68,
        "▁ 1 . ▁first <0x0A> 2 . ▁second </s> ▁``` py <0x0A> x = 1 <0x0A> ``` </s>",
    ),
    (("q", "中文回答。", "Q", "日本語"), 63, "▁ 中 文 回 <0xE7> <0xAD> <0x94> 。 </s> ▁ 日 本 語 </s>"),
    (("q", " leading space answer"), 45, "▁▁ leading ▁space ▁answer </s>"),
    (("What does ASSISTANT: mean?", "It means x."), 53, "▁It ▁means ▁x . </s>"),
    (("q", "use </s> token", "q2", "a2"), None, "▁use ▁</ s > ▁token </s> ▁a 2 </s>"),
    (("q", "see ASSISTANT: here", "q2", "a2"), None, "▁see ▁A SS IST ANT : ▁here </s> ▁a 2 </s>"),
]


@pytest.mark.parametrize(("texts", "length", "pieces"), GOLDEN)
def test_vicuna_trains_exactly_the_golden_tokens(vicuna, texts, length, pieces):
    rendered = vicuna.render(chat(*texts))
    assert trained(vicuna, chat(*texts)) == pieces.split(" ")
    if length:
        assert len(rendered.ids) == length


def test_vicuna_prompt_is_the_golden_sequence(vicuna):
    golden = """1,319,13563,1546,263,12758,1404,322,385,23116,21082,20255,29889,450,20255,4076,8444,29892,13173,29892,322,
        1248,568,6089,304,278,1404,29915,29879,5155,29889,3148,1001,29901,15043,29991,319,1799,9047,13566,29901,6324,
        29991,2,3148,1001,29901,1128,526,366,29973,319,1799,9047,13566,29901"""
    assert vicuna.prompt(chat("Hello!", "Hi!", "How are you?")) == [int(number) for number in golden.split(",")]


def test_vicuna_system_message_is_the_published_one():
    system = re.search(r"{% else %}(.*?){% endif %}", template.SOURCES["vicuna-v1.1"])[1]
    assert len(system) == 154
    assert hashlib.sha256(system.encode()).hexdigest().startswith("1fa69e2371b762d1")


def test_a_tokenizer_that_prefixes_only_the_start_loses_one_token_a_turn(llama, tmp_path):
    """FastChat with legacy=False: 61 tokens instead of 62, the same nine trained."""
    import json
    from pathlib import Path

    source = json.loads(load_tokenizer(llama).backend.to_str())
    source["normalizer"] = None
    source["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps(source))
    (tmp_path / "tokenizer_config.json").write_text((Path(llama) / "tokenizer_config.json").read_text())
    render = load_template("vicuna-v1.1", load_tokenizer(str(tmp_path)))
    messages = chat("Hello!", "Hi there.", "How are you?", "I am good.")
    assert len(render.render(messages).ids) == 61
    assert trained(render, messages) == "▁Hi ▁there . </s> ▁I ▁am ▁good . </s>".split(" ")


def test_vicuna_v0_ends_each_answer_with_the_text_it_stops_on(tokenizers):
    render = load_template("vicuna-v0", tokenizers["llama"])
    pieces = trained(render, chat("Hello!", "Hi there.", "How are you?", "I am good."))
    assert pieces == "▁Hi ▁there . <0x0A> ## # ▁I ▁am ▁good . <0x0A> ## #".split(" ")
    assert render.stop_strings == ("###",)


@pytest.mark.parametrize("texts", [("q", "", "q2", "a2"), ("q", " \n", "q2", "a2")])
def test_an_empty_answer_is_rejected_and_named(vicuna, texts):
    with pytest.raises(Reject) as caught:
        vicuna.render(chat(*texts))
    assert caught.value.reason == "template_error"
    assert "messages[1]" in caught.value.detail


def test_a_template_that_refuses_a_conversation_says_why(vicuna):
    messages = [*chat("q", "a"), {"role": "system", "content": "late"}]
    with pytest.raises(Reject, match="not the first"):
        vicuna.render(messages)


def test_an_implicit_system_message_is_rendered_and_not_trained(tokenizers):
    render = load_template(None, tokenizers["smollm2"])
    ids, mask = render.render(chat("Hi", "Yes"))
    masked = render.tokenizer.decode([n for n, on in zip(ids, mask, strict=True) if not on], skip_special=False)
    assert "You are a helpful AI assistant named SmolLM" in masked
    assert trained(render, chat("Hi", "Yes")) == ["Yes", "<|im_end|>"]


def test_a_tokenizer_without_a_template_needs_one_named(tmp_path, eot):
    import json
    from pathlib import Path

    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((Path(eot) / name).read_text())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(Failure, match=r"vicuna-v1\.1\|vicuna-v0\|alpaca\|llama-2\|chatml"):
        load_template(None, load_tokenizer(str(tmp_path)))


def test_a_missing_end_token_is_an_error_before_anything_is_rendered(tokenizers):
    with pytest.raises(Failure, match=r"<\|im_end\|>"):
        load_template("chatml", tokenizers["llama"])


WORDS = ["Hi", " there", "\n", "  ", "\t", "1. x", "```py\nx = 1\n```", "中文", "é", "🙂", "a_b", "<|im_end|>", "</s>", "<s>",
         "<|eot|>", "<|im_start|>", "USER:", " ASSISTANT: ", "###", "### Human:", "[INST]", "[/INST]", "<unk>", "<|head|>", ")", ":", "."]  # fmt: skip
TEXT = st.one_of(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map("".join), st.text(min_size=1, max_size=30)
)
ANSWER = TEXT.filter(lambda text: text.strip())
CHATS = st.lists(st.tuples(TEXT, ANSWER), min_size=1, max_size=4).map(
    lambda turns: chat(*[t for turn in turns for t in turn])
)


@pytest.fixture(scope="session")
def templates(tokenizers):
    """Every template with every tokenizer that has the tokens for it: (tokenizer's name, template's name, template)."""
    return [
        (name, style, load_template(style, tokenizer))
        for name, tokenizer in tokenizers.items()
        for style in [*TRAINABLE, *(["auto"] if tokenizer.chat_template else [])]
        if style != "chatml" or name == "smollm2"
    ]


ENDS = {"vicuna-v0": "\n###", "llama-2": " {eos}"}


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=CHATS)
def test_trained_tokens_decode_to_exactly_the_answers_and_their_ends(templates, tokenizers, messages):
    for name, style, render in templates:
        tokenizer = tokenizers[name]
        ids, mask = render.render(messages)
        turns, before = [], False
        for number, on in zip(ids, mask, strict=True):
            if on and not before:
                turns.append([])
            if on:
                turns[-1].append(number)
            before = on
        answers = [message["content"] for message in messages if message["role"] == "assistant"]
        assert len(turns) == len(answers)
        end = ENDS.get(style, "{eos}").format(eos=tokenizer.eos)
        for turn, answer in zip(turns, answers, strict=True):
            if not survives(render, answer + end.replace(tokenizer.eos, "")):
                continue  # the tokenizer itself does not give this text back
            text = tokenizer.decode(turn, skip_special=False)
            # A word joined to its label carries the label's space; SentencePiece takes it off again when it decodes.
            assert text in (answer + end, " " + answer + end), (name, style)


def survives(render, text):
    """Whether the tokenizer gives this text back when it is encoded by itself."""
    ids = render._encode(template.FIRST, text, True)
    return render.tokenizer.decode(ids, skip_special=False) == text


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=CHATS)
def test_no_text_ever_becomes_a_control_token(templates, tokenizers, messages):
    plain = [{**message, "content": "x"} for message in messages]
    for name, style, render in templates:
        special = tokenizers[name].special_ids
        found = [number for number in render.render(messages).ids if number in special]
        assert found == [number for number in render.render(plain).ids if number in special], (name, style)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=CHATS)
def test_a_prompt_is_the_start_of_the_training_sequence(templates, tokenizers, messages):
    for name, style, render in templates:
        prompt = render.prompt(messages[:-1])
        assert render.render(messages).ids[: len(prompt)] == prompt, (name, style)


@pytest.fixture(scope="session")
def stored(templates, tokenizers, tmp_path_factory):
    """Each template stored with its tokenizer, and that folder as transformers loads it."""
    transformers = pytest.importorskip("transformers")
    loaded = []
    for name, style, render in templates:
        folder = tmp_path_factory.mktemp(f"{name}-{style}")
        source = tokenizers[name]
        source.backend.save(str(folder / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": source.bos, "eos_token": source.eos}
        (folder / "tokenizer_config.json").write_text(__import__("json").dumps(config))
        render.save(folder)
        loaded.append((name, style, render, transformers.AutoTokenizer.from_pretrained(folder), folder))
    return loaded


def by_jinja(tokenizer, messages):
    ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    return list(ids)


def holds_special(tokenizer, messages):
    return any(text in message["content"] for message in messages for text in tokenizer.added)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=CHATS)
def test_the_stored_template_gives_transformers_the_same_ids(stored, tokenizers, messages):
    for message in messages:
        if message["role"] == "assistant":
            message["content"] = message["content"].strip()
    for name, style, render, tokenizer, _ in stored:
        if holds_special(tokenizers[name], messages) or not all(m["content"].strip() for m in messages[1::2]):
            continue
        assert by_jinja(tokenizer, messages) == render.render(messages).ids, (name, style)


def test_where_the_two_renderings_differ_is_listed(stored):
    """Text that looks like a control token, and white space at an answer's edges: the pieces keep them as text."""
    differ = set()
    cases = {
        "end token in an answer": lambda end: chat("q", f"use {end} here"),
        "end token in a question": lambda end: chat(f"what is {end}?", "a"),
        "answer begins with newlines": lambda end: chat("q", "\n\nanswer"),
        "answer ends with spaces": lambda end: chat("q", "answer  "),
        "plain": lambda end: chat("q", "a"),
    }
    for _, _, render, tokenizer, _ in stored:
        for case, make in cases.items():
            messages = make(render.tokenizer.eos)
            if by_jinja(tokenizer, messages) != render.render(messages).ids:
                differ.add(case)
    assert differ >= {"end token in an answer", "end token in a question"}
    assert "plain" not in differ


def test_a_stored_template_is_found_again_with_its_stop_strings(stored):
    for _, _, render, _, folder in stored:
        again = load_template(None, load_tokenizer(str(folder)))
        messages = chat("Hello!", "Hi there.", "How are you?", "I am good.")
        assert again.render(messages) == render.render(messages)
        assert again.stop_strings == render.stop_strings
        assert again.stop_ids >= render.stop_ids


def variant(eot, folder, added=(), template_=None, **config):
    """The <|eot|> tokenizer with more added tokens (text: flags), another template, other settings."""
    import json
    from pathlib import Path

    import tokenizers as library

    folder.mkdir(exist_ok=True)
    backend = library.Tokenizer.from_file(str(Path(eot) / "tokenizer.json"))
    for text, flags in dict(added).items():
        backend.add_tokens([library.AddedToken(text, **{"special": False, "normalized": False, **flags})])
    backend.save(str(folder / "tokenizer.json"))
    settings = json.loads((Path(eot) / "tokenizer_config.json").read_text()) | config
    settings["chat_template"] = template_ or settings["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return load_template(None, load_tokenizer(str(folder)))


def same_as_transformers(render, messages):
    transformers = pytest.importorskip("transformers")
    return (
        by_jinja(transformers.AutoTokenizer.from_pretrained(render.tokenizer.folder), messages)
        == render.render(messages).ids
    )


LOOP = "{% for message in messages %}<|head|>{{ message.role }}<|/head|>{{ '\\n' }}TEXT{{ 'END' }}{% endfor %}{% if add_generation_prompt %}<|head|>assistant<|/head|>{{ '\\n' }}{% endif %}"


def test_an_end_token_that_swallows_the_white_space_after_it_is_rendered_so(eot, tmp_path):
    """Phi-3's <|end|> is such a token."""
    render = variant(
        eot,
        tmp_path,
        {"<|end|>": {"special": True, "rstrip": True}},
        LOOP.replace("TEXT", "{{ message.content }}").replace("END", "<|end|>\\n"),
    )
    messages = chat("Hi", "Hello", "And?", "So.")
    assert same_as_transformers(render, messages)
    assert trained(render, messages).count("<|end|>") == 2
    prompt = render.prompt(messages[:3])
    assert render.render(messages).ids[: len(prompt)] == prompt


def test_a_line_break_that_is_a_token_of_its_own_is_text_all_the_same(eot, tmp_path):
    """Gemma's vocabulary has one, and its template writes it."""
    render = variant(
        eot, tmp_path, {"\n": {}}, LOOP.replace("TEXT", "{{ message.content }}").replace("END", "<|eot|>\\n")
    )
    messages = chat("Hello\nworld", "a\nb")
    assert same_as_transformers(render, messages)
    assert trained(render, messages) == ["a", "\n", "b", "<|eot|>"]


def test_the_declared_end_token_is_trained_even_if_it_is_not_flagged_special(eot, tmp_path):
    render = variant(
        eot,
        tmp_path,
        {"<|stop|>": {}},
        LOOP.replace("TEXT", "{{ message.content }}").replace("END", "<|stop|>"),
        eos_token="<|stop|>",
    )
    assert trained(render, chat("Hi", "yes"))[-1] == "<|stop|>"


def test_what_the_template_writes_after_the_prompt_is_the_models_to_write(eot, tmp_path):
    """Qwen3 puts an empty <think> in front of the last answer, but not into the prompt."""
    body = "{% if message.role == 'assistant' and loop.last %}<think>{% endif %}{{ message.content }}"
    render = variant(eot, tmp_path, {"<think>": {}}, LOOP.replace("TEXT", body).replace("END", "<|eot|>"))
    messages = chat("Hi", "yes", "And?", "no")
    assert [piece for piece in trained(render, messages) if piece.startswith("<")] == ["<|eot|>", "<think>", "<|eot|>"]
    prompt = render.prompt(messages[:3])
    assert render.render(messages).ids[: len(prompt)] == prompt


def test_a_template_that_trims_texts_gets_trimmed_texts(eot, tmp_path):
    """Llama 3's does; its own prompts never hold the white space."""
    render = variant(eot, tmp_path, {}, LOOP.replace("TEXT", "{{ message.content | trim }}").replace("END", "<|eot|>"))
    messages = chat(" Hi \n", " yes ", "\nAnd? ", "no")
    assert same_as_transformers(render, messages)


def test_a_template_that_asks_for_the_date_gives_the_same_tokens_every_day(eot, tmp_path):
    dated = "{{ strftime_now('%d %b %Y') }}" + LOOP.replace("TEXT", "{{ message.content }}").replace("END", "<|eot|>")
    render = variant(eot, tmp_path, {}, dated)
    text = render.tokenizer.decode(render.prompt(chat("Hi")), skip_special=False)
    assert text.startswith("01 Jan 2024")


def test_a_template_that_fails_rejects_the_record_and_not_the_run(eot, tmp_path):
    render = variant(eot, tmp_path, {}, "{{ 1 / 0 }}")
    with pytest.raises(Reject, match="division by zero"):
        render.render(chat("Hi", "yes"))


def test_a_token_that_is_not_special_stays_a_token_in_answers_only(eot, tmp_path):
    """<think> of a reasoning model: its data holds it as one token; typed by a user it is text."""
    from pathlib import Path

    import tokenizers as library

    backend = library.Tokenizer.from_file(str(Path(eot) / "tokenizer.json"))
    backend.add_tokens([library.AddedToken("<think>", special=False)])
    backend.save(str(tmp_path / "tokenizer.json"))
    config = (Path(eot) / "tokenizer_config.json").read_text()
    # As Qwen3's does, the template itself opens the tag in front of some answers.
    (tmp_path / "tokenizer_config.json").write_text(
        config.replace("{% endfor %}", "{% if loop.last %}<think>{% endif %}{% endfor %}")
    )
    tokenizer = load_tokenizer(str(tmp_path))
    render = load_template(None, tokenizer)
    ids, mask = render.render(chat("what is <think>?", "<think>hm</think> a tag"))
    found = [on for number, on in zip(ids, mask, strict=True) if number == tokenizer.id_of("<think>")]
    assert found == [True, False]  # the answer's, and the template's own after it


@pytest.mark.parametrize(
    ("model", "name"), [("llama", name) for name in TRAINABLE if name != "chatml"] + [("smollm2", "chatml")]
)
def test_an_answer_with_a_weight_of_zero_is_context_and_changes_no_token(tokenizers, model, name):
    render = load_template(name, tokenizers[model])
    messages = chat("Hi", "One answer.", "More?", "Another answer.", "And?", "The last one.")
    whole = render.render(messages)
    middle = [*messages[:3], {**messages[3], "weight": 0}, *messages[4:]]
    ids, mask = render.render(middle)
    assert ids == whole.ids
    answers = [list(run) for on, run in itertools.groupby(range(len(ids)), lambda place: whole.mask[place]) if on]
    assert len(answers) == 3
    assert [place for place, on in enumerate(mask) if on] == answers[0] + answers[2]
    assert not any(render.render([{**message, "train": False} for message in messages]).mask)
