"""An assistant message at the end of a prompt is continued: the prompt ends as training would stand inside that answer."""

from __future__ import annotations

import pytest
from chat_templates import FAMILIES, made
from chats import chat

from vtools.inference.detokenize import Detokenizer
from vtools.models.published_templates import SOURCES
from vtools.models.template import INSIDE, load_template
from vtools.models.tokenizer import load_tokenizer
from vtools.records.jsonl import Reject

STARTS = ["ab", "The cat sat on", "Sure! Here is\n\n1. one", "你好 👋🏽", "x <|im_end|> y </s> z"]
PUBLISHED = [(model, name) for name in SOURCES for model in ("llama", "eot", "smollm2") if (name == "chatml") == (model == "smollm2")]  # fmt: skip
QUESTION = chat("Hi", "Hello there.", "And now?", system="Be brief.")


def start(text: str) -> list[dict[str, str]]:
    return [*QUESTION, {"role": "assistant", "content": text}]


@pytest.fixture(scope="session", params=[*PUBLISHED, *FAMILIES], ids=str)
def render(request, eot, llama, smollm2, tmp_path_factory):
    """Each published template, and one of each model family."""
    if isinstance(request.param, tuple):
        model, name = request.param
        return load_template(name, load_tokenizer({"llama": llama, "eot": eot, "smollm2": smollm2}[model]))
    found = FAMILIES[request.param]
    folder = made(eot, tmp_path_factory.mktemp("family"), found.template, found.tokens, **found.settings)
    return load_template(None, load_tokenizer(str(folder)))


def asked(render, messages):
    """The messages, without the system message where the template has no place for one."""
    return messages if render._has_system_role else messages[1:]


@pytest.mark.parametrize("text", STARTS)
def test_a_prompt_that_ends_in_an_answer_is_the_training_sequence_up_to_its_last_character(render, text):
    messages = asked(render, start(text))
    prompt, whole = render.prompt(messages), render.render(messages)
    assert whole.ids[: len(prompt)] == prompt
    end = render.tokenizer.decode(whole.ids[len(prompt) :], skip_special=False)
    assert (
        end.strip()
        == "".join(render._cutter.names.get(piece.token, piece.text) for piece in render.answer_ends).strip()
    )
    assert whole.mask[len(prompt) - 1]


def test_what_the_answers_of_a_template_begin_with_is_followed_by_the_text_alone(render):
    """Where no text of the template joins the answer's, its ids are those of the prompt and then those of the text."""
    messages = asked(render, QUESTION)
    own = render._cutter.before_answer[1]
    if own or render.untrained_prompt is not None:
        pytest.skip("the model writes something before the text itself")
    text = render.prompt([*messages, {"role": "assistant", "content": "ab"}])[len(render.prompt(messages)) :]
    assert text in [encoder.encode("ab", add_special_tokens=False).ids for encoder in render.encoders]


def test_the_white_space_at_the_end_of_a_text_is_kept_and_a_blank_text_is_no_answer(render):
    messages = asked(render, start("one two \n"))
    assert render.tokenizer.decode(render.prompt(messages)).endswith("one two \n")
    for blank in ("", " \n"):
        assert render.prompt(asked(render, start(blank))) == render.prompt(asked(render, QUESTION))


@pytest.mark.parametrize(("before", "after"), [("The cat", " sat on it"), ("unbe", "lievable"), ("Hi 👋", "🏽 there"), ("a", "\n\nb")])  # fmt: skip
def test_text_that_continues_another_joins_it_without_a_space_lost_or_added(render, before, after):
    prompt = render.prompt(asked(render, start(before)))
    ids = render.encoders[INSIDE].encode(after, add_special_tokens=False).ids
    text = Detokenizer(render.tokenizer.decode, (), before=prompt[-16:])
    assert "".join(text.push([number], place == len(ids) - 1) for place, number in enumerate(ids)) == after


def test_an_unfinished_thought_is_continued_or_refused_and_never_altered(render):
    text = "<think>\nThe user"
    try:
        prompt = render.prompt(asked(render, start(text)))
    except Reject as refused:
        assert "does not write this answer" in refused.detail
    else:
        assert render.tokenizer.decode(prompt, skip_special=False).endswith(text)
