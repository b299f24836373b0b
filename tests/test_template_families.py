"""Each family's template on each kind of record: transformers' ids or a reject, and only answers and ends are trained."""

from __future__ import annotations

import pytest
from chat_templates import FAMILIES, made
from chats import chat

from vtools.models.template import load_template
from vtools.models.tokenizer import load_tokenizer
from vtools.process import Failure
from vtools.records.jsonl import Reject

RECORDS = {
    "plain": chat("Hi", "Hello there."),
    "system": chat("Hi", "Hello there.", system="Be brief."),
    "several turns": chat("Hi", "Hello.", "And now?", "The end.", "Why?", "So it is."),
    "several turns and system": chat("Hi", "Hello.", "And now?", "The end.", system="Be brief."),
    "thinking": chat("Hi", "<think>\nA greeting.\n</think>\n\nHello."),
    "thinking, several turns": chat("Hi", "<think>\nA.\n</think>\n\nHello.", "And?", "<think>\nB.\n</think>\n\nBye."),
    "tools as text": chat("Hi", "Calling.", "<tool_response>\n4\n</tool_response>", "It is 4."),
    "empty system": chat("Hi", "Hello.", system=""),
    "a switch in the system text": chat("Hi", "Hello.", "And?", "No.", system="Be brief. /no_think"),
    "white space": chat("  Hi \n", "\n  Hello. \n\n", " And?", "Yes \n", system=" Be brief.\n"),
    "an end in a text": chat("What is END?", "An end."),
    "emoji": chat("Hi 👋", "你好 👋🏽", "नमस्ते", "ok"),
}
# An answer's line break after the template's own is one token with it for transformers; the model that is prompted with
# the first writes the second by itself, as another token.
JOINED = {"qwen-2.5", "qwen-3", "chatml", "zephyr"}
REFUSED = {
    "mistral-3": {"system", "several turns and system", "empty system", "a switch in the system text", "white space"},
    "gemma-2": {"system", "several turns and system", "empty system", "a switch in the system text", "white space"},
    "qwen-3": {"thinking, several turns"},  # the first answer's is removed
    "deepseek-r1": {"thinking", "thinking, several turns"},  # all are removed
}


@pytest.fixture(scope="session", params=FAMILIES)
def family(request, eot, tmp_path_factory):
    """A family's name, our template, transformers' tokenizer."""
    transformers = pytest.importorskip("transformers")
    found = FAMILIES[request.param]
    folder = made(eot, tmp_path_factory.mktemp(request.param), found.template, found.tokens, **found.settings)
    return (
        request.param,
        load_template(None, load_tokenizer(str(folder))),
        transformers.AutoTokenizer.from_pretrained(folder),
    )


def decoded(render, ids, mask):
    """The trained parts of a rendering, as text."""
    parts, run = [], []
    for number, on in [*zip(ids, mask, strict=True), (None, False)]:
        if on:
            run.append(number)
        elif run:
            parts.append(render.tokenizer.decode(run, skip_special=False))
            run = []
    return parts


@pytest.mark.parametrize("kind", RECORDS)
def test_a_record_is_rendered_as_transformers_does_or_rejected_with_the_reason(family, kind):
    name, render, theirs = family
    end = FAMILIES[name].end
    messages = [{**message, "content": message["content"].replace("END", end)} for message in RECORDS[kind]]
    if kind in REFUSED.get(name, ()):
        with pytest.raises(Reject) as refused:
            render.render(messages)
        assert refused.value.reason == "template_error"
        assert ("does not write this answer" in str(refused.value)) == ("thinking" in kind)
        return
    ids, mask = render.render(messages)
    text = theirs.apply_chat_template(messages, tokenize=False)
    assert render.tokenizer.decode(ids, skip_special=False) == theirs.decode(
        theirs(text, add_special_tokens=False).input_ids
    )
    apart = kind == "an end in a text" or (kind == "white space" and name in JOINED)
    assert (ids == list(theirs.apply_chat_template(messages, tokenize=True, return_dict=False))) != apart
    answers = [message["content"].strip() for message in messages if message["role"] == "assistant"]
    trained = decoded(render, ids, mask)
    assert len(trained) == len(answers)
    for answer, part in zip(answers, trained, strict=True):
        assert part.endswith(end)
        written = part.removesuffix(end).strip()
        assert written.removeprefix("<think>\n\n</think>").strip() == answer


def test_only_what_follows_an_answer_ends_one(family):
    name, render, theirs = family
    declared = {theirs.eos_token_id, theirs.convert_tokens_to_ids(FAMILIES[name].end)}
    assert render.stop_ids == declared
    assert render.stop_strings == ()


@pytest.mark.parametrize("kind", ["plain", "several turns", "tools as text", "emoji"])
def test_a_prompt_is_transformers_prompt_and_the_start_of_what_is_trained(family, kind):
    name, render, theirs = family
    messages = RECORDS[kind]
    prompt = render.prompt(messages[:-1])
    assert prompt == list(
        theirs.apply_chat_template(messages[:-1], add_generation_prompt=True, tokenize=True, return_dict=False)
    )
    if name != "deepseek-r1":  # its prompt opens a thought, which its answers lack
        assert render.render(messages).ids[: len(prompt)] == prompt


@pytest.mark.parametrize("kind", ["plain", "several turns", "emoji"])
def test_a_saved_template_ends_a_prompt_where_a_trained_answer_begins_for_transformers_too(family, kind, eot, tmp_path):
    transformers = pytest.importorskip("transformers")
    name, render, theirs = family
    theirs.save_pretrained(tmp_path)
    render.save(tmp_path)
    messages = RECORDS[kind]
    ids, mask = render.render(messages)
    begun = max(place for place in range(1, len(mask)) if mask[place] and not mask[place - 1])
    saved = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert ids[:begun] == list(
        saved.apply_chat_template(messages[:-1], add_generation_prompt=True, tokenize=True, return_dict=False)
    )
    assert ids[:begun] == load_template(None, load_tokenizer(str(tmp_path))).prompt(messages[:-1])
    assert saved.apply_chat_template(messages, tokenize=False) == theirs.apply_chat_template(messages, tokenize=False)
    assert (render.untrained_prompt is not None) == (name == "deepseek-r1")


LOOP = (
    "{% for message in messages %}{% if message.role == 'user' %}{{ 'Q: ' + message.content + '\\n' }}"
    "{% else %}{{ 'A: ' + message.content + END }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'A:' }}{% endif %}"
)
TALK = chat("Hi", "Hello.", "And?", "Bye.")


def loaded(eot, folder, template, tokens=None, **settings):
    return load_template(None, load_tokenizer(str(made(eot, folder, template, tokens or {}, **settings))))


def test_an_end_of_plain_text_is_trained_and_stops_the_answer(eot, tmp_path):
    render = loaded(eot, tmp_path, LOOP.replace("END", "'<reply_over>\\n'"))
    assert decoded(render, *render.render(TALK)) == [" Hello.<reply_over>", " Bye.<reply_over>"]
    assert render.stop_strings == ("<reply_over>",)
    render.check()
    render.save(tmp_path)
    assert load_template(None, load_tokenizer(str(tmp_path))).stop_strings == ("<reply_over>",)


def test_a_space_that_ends_prompts_is_the_answers_and_the_saved_template_leaves_it_out(eot, tmp_path):
    render = loaded(eot, tmp_path, LOOP.replace("END", "'<|eot|>'").replace("{{ 'A:' }}", "{{ 'A: ' }}"))
    assert decoded(render, *render.render(TALK)) == [" Hello.<|eot|>", " Bye.<|eot|>"]
    assert render.answer_lead == " "
    assert render.untrained_prompt == "\nA: "
    saved = render.as_trained()
    assert saved.prompt(TALK[:-1]) == render.render(TALK).ids[: len(saved.prompt(TALK[:-1]))]
    assert saved.as_trained() is saved


def test_a_template_whose_prompts_cannot_end_where_answers_begin_is_refused_before_training(eot, tmp_path):
    asks = "{{ 'Q: ' + message.content + ('!' if loop.last else '') + '\\n' }}"
    source = LOOP.replace("{{ 'Q: ' + message.content + '\\n' }}", asks).replace("END", "'<|eot|>'")
    with pytest.raises(Failure, match=r"ends a prompt with '!\\nA:' and writes answers otherwise"):
        loaded(eot, tmp_path, source).check()


def test_an_end_that_is_an_added_token_without_a_flag_is_trained_and_stored(eot, tmp_path):
    render = loaded(eot, tmp_path, LOOP.replace("END", "'<reply_over>\\n'"), {"<reply_over>": {}})
    assert decoded(render, *render.render(TALK)) == [" Hello.<reply_over>", " Bye.<reply_over>"]
    assert render.stop_ids == {render.tokenizer.id_of("<reply_over>")}
    render.save(tmp_path)
    assert load_tokenizer(str(tmp_path)).end_ids == [render.tokenizer.id_of("<reply_over>")]
    ids, _ = render.render(chat("Hi", "say <reply_over> twice"))
    assert ids.count(render.tokenizer.id_of("<reply_over>")) == 1  # typed inside an answer it would end it


@pytest.mark.parametrize("end", ["''", "'\\n'", "('' if loop.last else '<|head|>')"])
def test_a_template_without_an_end_is_refused_before_training(eot, tmp_path, end):
    render = loaded(eot, tmp_path, LOOP.replace("END", end))
    with pytest.raises(Failure, match="would never stop; choose another --template"):
        render.check()


def test_what_the_author_marks_as_generated_is_what_is_trained(eot, tmp_path):
    transformers = pytest.importorskip("transformers")
    marked = LOOP.replace(
        "{{ 'A: ' + message.content + END }}",
        "{{ 'A: ' }}\n{%- generation -%}\n{{ message.content + '<|eot|>' }}\n{%- endgeneration %}\n{{- '\\n' }}",
    )
    render = loaded(eot, tmp_path, marked, eos_token="<|eot|>")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
        TALK, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, mask = render.render(TALK)
    assert ids == theirs["input_ids"]
    assert mask == [bool(on) for on in theirs["assistant_masks"]]
    assert decoded(render, ids, mask) == ["Hello.<|eot|>", "Bye.<|eot|>"]
    assert render.stop_ids == {render.tokenizer.id_of("<|eot|>")}


LOOKING = {
    "removes a word": "message.content | replace('secret', '')",
    "shortens": "message.content[:20]",
    "answers a switch": "(message.content + '!' if 'loud' in message.content else message.content)",
    "changes the case": "message.content | lower",
}


@pytest.mark.parametrize("how", LOOKING)
def test_a_template_that_changes_an_answer_rejects_it_and_keeps_the_others(eot, tmp_path, how):
    render = loaded(
        eot, tmp_path, LOOP.replace("'A: ' + message.content", "'A: ' + " + LOOKING[how]).replace("END", "'<|eot|>'")
    )
    assert render.looks_at_texts
    assert decoded(render, *render.render(chat("hi", "hello."))) == [" hello.<|eot|>"]
    with pytest.raises(Reject, match=r"messages\[3\]: the template auto does not write this answer"):
        render.render(chat("hi", "hello.", "And?", "A LOUD loud secret is here: this text is too long."))


@pytest.mark.parametrize(
    "name", ["qwen-2.5", "chatml", "llama-3", "llama-3.1", "mistral-3", "gemma-2", "phi-3", "vicuna", "zephyr"]
)
def test_templates_that_do_not_look_at_texts_are_rendered_once(eot, tmp_path, name):
    found = FAMILIES[name]
    assert not loaded(eot, tmp_path, found.template, found.tokens, **found.settings).looks_at_texts
