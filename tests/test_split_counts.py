"""split: every template's tokens are counted exactly, most words once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chats import chat
from hypothesis import given, settings
from hypothesis import strategies as st
from splitting import ANSWER, FIXTURES, TEXT

from vtools.models import template
from vtools.models.template import load_template
from vtools.models.tokenizer import Tokenizer, load_tokenizer
from vtools.split import token_counts

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


CHATS = st.tuples(
    st.sampled_from([None, "Be kind.", " \n"]), st.lists(st.tuples(TEXT, ANSWER), min_size=1, max_size=4)
).map(lambda made: chat(*[text for turn in made[1] for text in turn], system=made[0]))


def variant(folder: Path, source: str, change) -> Tokenizer:
    """A tokenizer whose JSON `change` has changed."""
    folder.mkdir()
    made = json.loads(load_tokenizer(source).backend.to_str())
    change(made)
    (folder / "tokenizer.json").write_text(json.dumps(made))
    config = Path(source) / "tokenizer_config.json"
    (folder / "tokenizer_config.json").write_text(config.read_text())
    return load_tokenizer(str(folder))


@pytest.fixture(scope="session")
def tokenizers(llama, smollm2, eot, tmp_path_factory):
    """Tokenizers of all the kinds whose words are counted once, and of some that must be asked for each text."""
    folder = tmp_path_factory.mktemp("variants")

    def old_llama(made):
        made["pre_tokenizer"] = None
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        made["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]}

    def first_only(made):
        made["pre_tokenizer"]["prepend_scheme"] = "first"

    def joined(made):  # a merge across a space: no cut there is harmless
        merge(made, ("t", "▁"), ("t▁", "h"))

    def thinking(made):
        added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
        made["added_tokens"].append({"id": len(made["model"]["vocab"]), "content": "<think>", **added})

    def merge(made, *pairs):
        for left, right in pairs:
            made["model"]["vocab"].setdefault(left + right, len(made["model"]["vocab"]))
            made["model"]["merges"].append([left, right])

    def line_ends(made):  # as the vocabularies of newer models have them: punctuation with what ends the line
        merge(made, (".", "Ċ"), ("!", "Ċ"), ("!Ċ", "Ċ"), ("Ċ", "Ċ"), ("ĊĊ", "Ċ"), ("č", "Ċ"), ("Ġ", "Ċ"), ("Ġ", "Ġ"))

    def ending(made):  # text may come out as the end token, and is then cut inside its name
        merge(made, ("s", ">"), ("</", "s>"))

    def qwen(made):
        line_ends(made)
        made["normalizer"] = {"type": "NFC"}
        made["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = LLAMA3.replace("{1,3}", "")

    regex = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}

    def gpt2(made):
        line_ends(made)
        made["pre_tokenizer"] = {**regex, "add_prefix_space": True}

    def digits(made, prefix=False):
        steps = [{"type": "Digits", "individual_digits": True}, {**regex, "add_prefix_space": prefix}]
        made["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}

    def unknown(made):
        made["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\s?\S+\s?"

    return {
        "llama": load_tokenizer(llama),
        "smollm2": load_tokenizer(smollm2),
        "eot": load_tokenizer(eot),
        "old-llama": variant(folder / "old", llama, old_llama),
        "first-only": variant(folder / "first", llama, first_only),
        "joined": variant(folder / "joined", llama, joined),
        "thinking-llama": variant(folder / "thinking-llama", llama, thinking),
        "thinking": variant(folder / "thinking", eot, thinking),
        "ending": variant(folder / "ending", llama, ending),
        "line-ends": variant(folder / "line-ends", eot, line_ends),
        "qwen": variant(folder / "qwen", eot, qwen),
        "gpt2": variant(folder / "gpt2", eot, gpt2),
        "digits": variant(folder / "digits", eot, digits),
        "prefixed": variant(folder / "prefixed", eot, lambda made: digits(made, prefix=True)),
        "unknown": variant(folder / "unknown", eot, unknown),
    }


@pytest.fixture(scope="session")
def renderings(tokenizers):
    return [
        (name, style, token_counts.Rendering(load_template(style, tokenizer)))
        for name, tokenizer in tokenizers.items()
        for style in [*template.SOURCES, *(["auto"] if tokenizer.chat_template else [])]
        if (style != "chatml" or name == "smollm2")
        and (name in ("llama", "smollm2", "eot") or style in ("vicuna-v1.1", "auto"))
    ]


def test_words_are_counted_once_wherever_no_token_can_cross_a_cut(tokenizers):
    kinds = {
        name: token_counts.unit(json.loads(tokenizer.backend.to_str()))[0] for name, tokenizer in tokenizers.items()
    }
    assert {name for name, kind in kinds.items() if kind is None} == {"joined", "prefixed", "unknown"}


@settings(max_examples=200, suppress_health_check=FIXTURES)
@given(messages=CHATS)
def test_every_template_counts_to_the_token_what_it_renders(renderings, messages):
    for name, style, rendering in renderings:
        if name == "ending":
            assert 2 not in rendering.template.encode(template.Run(template.INSIDE, False, 0, "</s>"))
        rendering.known.clear()
        length = len(rendering.template.render(messages).ids)
        assert rendering.count(messages) == length, (name, style)
        assert rendering.count(messages) == length, (name, style)
        if rendering.fits_surely(rendering.template.runs(messages), 300):
            assert length <= 300


@pytest.fixture(scope="session")
def counters(tokenizers):
    return {name: token_counts.Counts(one, template.encoders(one)) for name, one in tokenizers.items()}


@settings(max_examples=200, suppress_health_check=FIXTURES)
@given(text=st.lists(TEXT, max_size=6).map("".join), size=st.integers(1, 40))
def test_a_long_text_is_counted_in_pieces_to_the_token(counters, text, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_counts, "_CHUNK", size)
        for name, counts in counters.items():
            for place, encoder in enumerate(counts.encoders):
                whole = encoder.encode(text, add_special_tokens=False).ids
                assert counts.count(place, text) == len(whole), name
