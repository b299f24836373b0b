"""split: exact token counts, no turn lost, hold-out sides that never mix, FastChat's cuts on demand."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import tiny
from conftest import ROOT, VTOOLS, chat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vtools.models import template
from vtools.models.template import load_template
from vtools.models.tokenizer import Tokenizer, load_tokenizer
from vtools.records import conversation, markdown
from vtools.records.jsonl import Reject
from vtools.split import cut_answers, segments, token_counts, vicuna

FIXTURES = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

# --- counts ---------------------------------------------------------------------------------------------------------

PIECES = ["Hi", " there", "\n", "\n\n", " \n ", "  ", "      ", "\t", "\r\n", "\x0b", "\x1c", "\x85", "\xa0", "\u2028", "\u3000", "\u180e", "\ufeff",
          "1. x", " 2023", "½", "'s", "I'LL", "```py\nx = 1\n```", "中文", "é", "e\u0301", "\u0301", "🙂", "👩‍👩‍👧", "a_b", "▁", "▁▁x", " ▁", "слово", "word", "Word,", "…", "—", "!\n\n", ".\n", ". ", "x\n",
          "<|im_end|>", "</s>", "<s>", "<|eot|>", "<|im_start|>", "<think>", "USER:", " ASSISTANT: ", "###", "### Human:", "[INST]", "<unk>", "<0x0A>", "<|head|>", ")", ":"]  # fmt: skip
TEXT = st.one_of(
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=12).map("".join), st.text(min_size=1, max_size=30)
)
ANSWER = TEXT.filter(lambda text: text.strip())
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


@settings(max_examples=200, deadline=None, suppress_health_check=FIXTURES)
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


@settings(max_examples=200, deadline=None, suppress_health_check=FIXTURES)
@given(text=st.lists(TEXT, max_size=6).map("".join), size=st.integers(1, 40))
def test_a_long_text_is_counted_in_pieces_to_the_token(counters, text, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_counts, "_CHUNK", size)
        for name, counts in counters.items():
            for place, encoder in enumerate(counts.encoders):
                whole = encoder.encode(text, add_special_tokens=False).ids
                assert counts.count(place, text) == len(whole), name


# --- segments -------------------------------------------------------------------------------------------------------

WORDS = st.integers(0, 120).map(lambda count: "word " * count + "end")
TALK = st.lists(st.tuples(WORDS, st.one_of(WORDS, ANSWER)), min_size=1, max_size=8).map(
    lambda turns: chat(*[text for turn in turns for text in turn])
)
ROLES = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), ANSWER), min_size=1, max_size=8).map(
    lambda turns: [{"role": role, "content": text} for role, text in turns]
)
SYSTEM = st.sampled_from([None, "Be kind."])


@pytest.fixture(scope="session")
def chatml(tmp_path_factory, eot):
    """The <|eot|> tokenizer with a template that writes something else into the last turn, as Qwen 3's does."""
    folder = tmp_path_factory.mktemp("last")
    (folder / "tokenizer.json").write_text((Path(eot) / "tokenizer.json").read_text())
    config = json.loads((Path(eot) / "tokenizer_config.json").read_text())
    think = "{% if loop.last %}<think> nothing to think about </think>{% endif %}{{ message.content }}"
    config["chat_template"] = config["chat_template"].replace("{{ message.content }}", think)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return str(folder)


def cut(messages, reference, limit, system=None, **options):
    """What becomes of a conversation, in its order, and its system message."""
    lead = chat(system=system)
    record = {"id": "x", "messages": lead + messages, "note": 1}
    made = segments.split(record, tokenizer=reference, template=None, max_tokens=limit, **options)
    assert record["messages"] == lead + messages  # nobody writes into it
    if isinstance(made, Reject):
        made = [segments.Segment(record, "x", {"turns_dropped": len(messages), "turns_in": len(messages)}, 0, made)]
    for part in made:
        assert part["messages"][: len(lead)] == lead
        assert part["note"] == 1
        assert part.base == segments.base_id(part) == "x"  # all of a conversation falls on one side, now and later
    assert len({part["id"] for part in made}) == len(made)
    return made, lead


def new_turns(part, lead):
    return part["messages"][len(lead) + part.get("segment", {}).get("overlap", 0) :]


@settings(max_examples=100, deadline=None, suppress_health_check=FIXTURES)
@given(
    messages=st.one_of(TALK, ROLES),
    limit=st.integers(60, 400),
    system=SYSTEM,
    overlap=st.integers(0, 3),
    data=st.data(),
)
def test_segments_hold_every_turn_and_none_is_too_long_but_a_single_pair(
    eot, chatml, messages, limit, system, overlap, data
):
    reference = data.draw(st.sampled_from([eot, chatml]))
    made, lead = cut(messages, reference, limit, system, overlap_turns=overlap)
    render = load_template(None, load_tokenizer(reference))
    assert [message for part in made for message in new_turns(part, lead)] == messages
    for part in made:
        assert not part.reject
        length = len(render.render(part["messages"]).ids)
        alone = [m["role"] for m in part["messages"][len(lead) :]].count("user") < 2
        assert length <= limit or alone
        if "segment" in part:
            assert part["segment"]["tokens"] == length == part.tokens
    # Greedy: no segment could have taken the next one's first pair.
    for part, following in zip(made, made[1:], strict=False):
        new = new_turns(following, lead)
        pair = next((place for place in range(1, len(new)) if new[place]["role"] == "user"), len(new))
        assert len(render.render(part["messages"] + new[:pair]).ids) > limit
        repeated = following["messages"][len(lead) : len(lead) + following["segment"].get("overlap", 0)]
        assert part["messages"][len(part["messages"]) - len(repeated) :] == repeated
        assert [m["role"] for m in repeated].count("user") <= overlap


@settings(max_examples=150, deadline=None, suppress_health_check=FIXTURES)
@given(
    messages=st.one_of(TALK, TALK, ROLES),
    limit=st.integers(30, 250),
    system=SYSTEM,
    overlong=st.sampled_from(["drop", "truncate", "split-answer"]),
    overlap=st.integers(0, 2),
)
def test_no_segment_is_too_long_and_every_turn_is_written_or_rejected(eot, messages, limit, system, overlong, overlap):
    made, lead = cut(messages, eot, limit, system, overlong=overlong, overlap_turns=overlap)
    render = load_template(None, load_tokenizer(eot))
    written = [part for part in made if not part.reject]
    for part in written:
        length = len(render.render(part["messages"]).ids)
        assert length <= limit
        assert part.get("segment", {}).get("tokens", length) == length
    counts = sum((Counter(part.counts) for part in made), Counter())
    assert counts["turns_in"] == len(messages) == counts["turns_out"] + counts["turns_dropped"]
    about = [part["segment"] for part in written if "segment" in part]
    assert [(one["index"], one["count"]) for one in about] == [(place, len(about)) for place in range(len(about))]
    if [m["role"] for m in messages] != ["user", "assistant"] * (len(messages) // 2):
        return
    again = []
    for part in made:
        turns = new_turns(part, lead)
        if part.get("segment", {}).get("part"):  # the question once more, and more of the answer
            assert turns[:-1] == again[-2:-1]
            again[-1] = again[-1] | {"content": again[-1]["content"] + turns[-1]["content"]}
        elif part.get("segment", {}).get("truncated"):
            whole = messages[len(again) + 1]["content"]
            assert whole.startswith(turns[-1]["content"])
            assert len(whole) == len(turns[-1]["content"]) + part["segment"]["truncated"]
            again += [*turns[:-1], turns[-1] | {"content": whole}]
        else:
            again += turns
    assert again == messages


@settings(max_examples=100, deadline=None, suppress_health_check=FIXTURES)
@given(messages=TALK, limit=st.integers(60, 400))
def test_what_split_says_fits_train_takes_uncut(eot, messages, limit):
    from vtools.train import data

    render = load_template(None, load_tokenizer(eot))
    for part in cut(messages, eot, limit, overlong="split-answer")[0]:
        if not part.reject:
            row = data.tokenise(part, render, limit, "error")
            assert not row["truncated"]


def test_a_segment_may_be_exactly_as_long_as_the_limit(eot, chatml):
    messages = chat(*["word " * (5 + turn) for turn in range(8)])
    for reference in (eot, chatml):
        render = load_template(None, load_tokenizer(reference))
        for pairs in (1, 2, 3):
            length = len(render.render(messages[: 2 * pairs]).ids)
            assert len(cut(messages, reference, length)[0][0]["messages"]) == 2 * pairs
            assert len(cut(messages, reference, length - 1)[0][0]["messages"]) == 2 * max(pairs - 1, 1)


@pytest.mark.parametrize("pairs", [3, 40, 150])
def test_many_pairs_are_cut_as_they_would_be_one_by_one(eot, chatml, pairs):
    """Long conversations are looked at in windows, and those of a template that adds nothing up by halving."""
    for reference in (eot, chatml):
        render = load_template(None, load_tokenizer(reference))
        messages = chat(*["word " * (number * 7 % 23 + 1) for number in range(2 * pairs)])
        made, _ = cut(messages, reference, 700)
        expected, begin = [], 0
        for end in range(2, 2 * pairs + 1, 2):
            if end == 2 * pairs or len(render.render(messages[begin : end + 2]).ids) > 700:
                expected.append(messages[begin:end])
                begin = end
        assert [part["messages"] for part in made] == expected


def test_a_template_that_counts_its_turns_is_counted_as_it_renders(eot, tmp_path):
    """One that writes the number of each turn, and a word more from the fourth pair on: nothing adds up."""
    config = json.loads((Path(eot) / "tokenizer_config.json").read_text())
    number = "{{ loop.index }}{% if loop.index > 6 %} again and again and again{% endif %} {{ message.content }}"
    config["chat_template"] = config["chat_template"].replace("{{ message.content }}", number)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_text((Path(eot) / "tokenizer.json").read_text())
    render = load_template(None, load_tokenizer(str(tmp_path)))
    messages = chat(*["word " * (turn % 5 + 1) for turn in range(60)])
    made, _ = cut(messages, str(tmp_path), 200)
    assert len(made) > 3
    assert [message for part in made for message in part["messages"]] == messages
    for part, following in zip(made, [*made[1:], None], strict=True):
        assert len(render.render(part["messages"]).ids) == part.tokens <= 200
        assert following is None or len(render.render(part["messages"] + following["messages"][:2]).ids) > 200


# --- a pair that is too long ----------------------------------------------------------------------------------------

CODE = (
    "First a word.\n\n```python\n"
    + "print('hello')\n\n" * 12
    + "```\n\nThen the rest of it. "
    + "And more of it. " * 40
)


def words(text):
    return len(text.split())


def test_an_answer_is_cut_between_paragraphs_and_not_in_a_code_block():
    parts = cut_answers.parts(CODE, words, 16)
    assert "".join(parts) == CODE
    assert all(words(part) <= 16 for part in parts)
    assert parts[1].startswith("```python")
    assert list(markdown.fences(parts[1])) == [(0, parts[1].index("```\n\n") + 4)]
    assert all("```" not in part for part in parts if part != parts[1])


def test_a_blank_line_inside_a_code_block_is_no_end_of_a_paragraph():
    text = "One two three four.\n\nfive\n```\nx\n\ny\n```\nsix" + " more" * 30
    assert cut_answers.parts(text, words, 12)[0] == "One two three four.\n\nfive\n```\nx\n\ny\n```\n"


def test_an_answer_is_truncated_at_the_end_of_a_word():
    assert (
        cut_answers.truncate("international relations " * 9, len, 60)
        == "international relations international relations"
    )
    assert cut_answers.truncate("中文回答" * 9, len, 10) == ("中文回答" * 9)[:10]


def test_a_code_block_longer_than_a_segment_is_cut_between_its_lines():
    block = "~~~~\n" + "".join(f"line {number}\n" for number in range(100)) + "~~~~\n"
    parts = cut_answers.parts(block, words, 25)
    assert "".join(parts) == block
    assert all(part.endswith("\n") for part in parts)


@settings(max_examples=300, deadline=None)
@given(text=st.lists(TEXT, max_size=12).map("".join), limit=st.integers(1, 30))
def test_the_parts_of_an_answer_are_the_answer(text, limit):
    def count(part):
        assert part.strip()
        return len(part.encode())

    parts = cut_answers.parts(text, count, limit)
    if parts:
        assert "".join(parts) == text
        assert all(part.strip() and len(part.encode()) <= limit for part in parts)
    else:  # only where a character with the white space around it is as long as half a part
        longest = max(len(run.encode()) for run in re.findall(r"\s*\S\s*", text) or [text])
        assert 2 * longest > limit or not text.strip()
    shortened = cut_answers.truncate(text, count, limit) if text.strip() else ""
    assert text.startswith(shortened)
    assert len(shortened.encode()) <= limit


def overlong(vtools, eot, how, *more):
    """One conversation whose second pair cannot fit, and whose third has a question that cannot."""
    messages = chat("Hi", "Hello", "Tell me", CODE * 2, "q " * 300, "What?", "Bye", "Bye!", system="Be kind.")
    args = ["--tokenizer", eot, "--max-tokens", 200, "--rejects", "rejects", "--stats", "stats", "--overlong", how]
    done = vtools("split", *args, *more, stdin=json.dumps({"id": "abc", "messages": messages, "lang": "en"}) + "\n")
    assert done.returncode == 0, done.errors
    return done, messages


def saved(tmp_path):
    rejects = [json.loads(line) for line in (tmp_path / "rejects").read_text().splitlines()]
    stats = json.loads((tmp_path / "stats").read_text())
    assert stats["in"] == stats["out"] + stats["rejected"]
    assert stats["turns_in"] == stats["turns_out"] + stats["turns_dropped"] + stats["turns_lost"]
    return rejects, stats


def test_keep_writes_a_pair_that_is_too_long_as_it_is(vtools, eot, tmp_path):
    done, messages = overlong(vtools, eot, "keep")
    assert [part["id"] for part in done.records] == ["abc_0", "abc_2", "abc_4", "abc_6"]
    assert done.records[1]["messages"] == messages[:1] + messages[3:5]
    rejects, stats = saved(tmp_path)
    assert not rejects
    assert (stats["overlong"], stats["turns_out"], stats["turns_dropped"]) == (2, 8, 0)
    assert "segments 4, overlong 2" in done.errors


def test_drop_puts_the_pair_with_the_rejects_and_keeps_the_rest(vtools, eot, tmp_path):
    done, messages = overlong(vtools, eot, "drop", "-q")
    assert [part["id"] for part in done.records] == ["abc_0", "abc_6"]
    rejects, stats = saved(tmp_path)
    assert [(row["reason"], row["id"], row["line"], row["source"]) for row in rejects] == [
        ("overlong", "abc_2", 1, "stdin"),
        ("overlong", "abc_4", 1, "stdin"),
    ]
    assert rejects[0]["record"]["messages"] == messages[:1] + messages[3:5]
    assert (stats["out"], stats["rejected"], stats["overlong_dropped"], stats["turns_dropped"]) == (1, 0, 2, 4)
    again = vtools("split", "--tokenizer", eot, stdin=json.dumps(rejects[0]["record"])).records
    assert again[0]["messages"] == messages[:1] + messages[3:5]


def test_a_rejected_part_says_where_its_record_stands(vtools, eot, tmp_path):
    whole = {"id": "whole", "messages": chat("Hi", "Hello")}
    part = {"id": "part", "messages": chat("Hi", "Hello", "word " * 99, "word " * 99)}
    (tmp_path / "a").write_text("\n".join(map(json.dumps, [whole, part, whole])) + "\n")
    (tmp_path / "b").write_text("no JSON\n\n" + json.dumps(part) + "\n")
    args = ["--tokenizer", eot, "--max-tokens", 100, "--overlong", "drop", "--rejects", "rejects", "--stats", "stats"]
    assert vtools("split", "a", "b", *args).returncode == 0
    rejects, _ = saved(tmp_path)
    assert [(row["source"], row["line"], row["id"]) for row in rejects] == [
        ("a", 2, "part_2"),
        ("b", 1, None),
        ("b", 3, "part_2"),
    ]


def test_a_conversation_of_which_nothing_is_left_is_a_reject(vtools, eot, tmp_path):
    lines = [json.dumps({"id": name, "messages": chat("word " * 99, "word " * 99)}) for name in ("a", "b")]
    done = vtools("split", "--tokenizer", eot, "--max-tokens", 100, "--overlong", "drop", "--rejects", "rejects",
                  "--stats", "stats", stdin="\n".join(lines))  # fmt: skip
    assert done.records == []
    rejects, stats = saved(tmp_path)
    assert [(row["id"], row["line"], row["reason"]) for row in rejects] == [("a", 1, "overlong"), ("b", 2, "overlong")]
    assert (stats["rejected"], stats["overlong"], stats["overlong_dropped"], stats["turns_dropped"]) == (2, 2, 2, 4)


def test_truncate_cuts_the_answer_at_the_end_of_a_word(vtools, eot, tmp_path):
    done, messages = overlong(vtools, eot, "truncate")
    assert [part["id"] for part in done.records] == ["abc_0", "abc_2", "abc_6"]
    part = done.records[1]
    answer = part["messages"][2]["content"]
    assert messages[4]["content"].startswith(answer)
    assert re.match(r"\s", messages[4]["content"][len(answer) :])
    assert part["segment"]["truncated"] == len(messages[4]["content"]) - len(answer)
    assert 190 <= part["segment"]["tokens"] <= 200
    _, stats = saved(tmp_path)
    assert (stats["truncated"], stats["overlong"], stats["overlong_dropped"], stats["turns_dropped"]) == (1, 2, 1, 2)


def test_split_answer_repeats_the_question_with_each_part(vtools, eot, tmp_path):
    done, messages = overlong(vtools, eot, "split-answer")
    parts = [part for part in done.records if "part" in part["segment"]]
    assert len(parts) > 2
    assert [part["id"] for part in parts] == ["abc_2", *(f"abc_2.{number}" for number in range(1, len(parts)))]
    assert "".join(part["messages"][2]["content"] for part in parts) == messages[4]["content"]
    assert all(part["messages"][:2] == [messages[0], messages[3]] for part in parts)
    assert all(part["segment"]["tokens"] <= 200 and part["segment"]["parts"] == len(parts) for part in parts)
    _, stats = saved(tmp_path)
    assert (stats["split_answers"], stats["overlong_dropped"], stats["turns_out"]) == (1, 1, 6)


def test_a_segment_begins_with_the_turns_before_it_when_asked(vtools, eot):
    record = {"id": "abc", "messages": chat(*["word " * 30 + str(number) for number in range(16)])}
    args = ["--tokenizer", eot, "--max-tokens", 500, "--overlap-turns", 1]
    made = vtools("split", *args, stdin=json.dumps(record)).records
    assert len(made) > 2
    assert [part["segment"].get("overlap", 0) for part in made] == [0] + [2] * (len(made) - 1)
    start = 0
    for part, before in zip(made, [None, *made], strict=False):
        assert part["id"] == f"abc_{start}"
        if before:
            assert part["messages"][:2] == before["messages"][-2:]
        start += len(part["messages"]) - part["segment"].get("overlap", 0)
    assert [m for part in made for m in new_turns(part, [])] == record["messages"]


# --- the command ----------------------------------------------------------------------------------------------------


def test_ids_say_where_a_segment_starts(vtools, eot):
    record = {"id": "abc", "messages": chat(*["word " * 40] * 6)}
    done = vtools("split", "--tokenizer", eot, "--max-tokens", 200, stdin=json.dumps(record))
    assert [part["id"] for part in done.records] == ["abc_0", "abc_2", "abc_4"]
    assert done.records[1]["segment"]["of"] == "abc"
    assert (done.records[1]["segment"]["index"], done.records[1]["segment"]["count"]) == (1, 3)


def test_a_conversation_that_fits_is_unchanged(vtools, eot):
    record = {"id": "abc", "messages": chat("Hi", "Hello"), "note": 1}
    (part,) = vtools("split", "--tokenizer", eot, stdin=json.dumps(record)).records
    assert part.pop("vtools")[0]["op"] == "split"
    assert part == record


def test_a_pair_too_long_by_itself_is_kept_and_counted(vtools, eot):
    records = [
        {"id": "a", "messages": chat("word " * 200, "word " * 200)},
        {"id": "b", "messages": chat("Hi", "Hello")},
    ]
    done = vtools("split", "--tokenizer", eot, "--max-tokens", 100, stdin="\n".join(map(json.dumps, records)))
    assert [part["id"] for part in done.records] == ["a", "b"]
    assert "overlong 1" in done.errors


def test_an_empty_answer_is_rejected_by_its_place(vtools, eot, tmp_path):
    record = {"id": "a", "messages": chat("q", "a", "q2", "")}
    done = vtools("split", "--tokenizer", eot, "--rejects", "r", stdin=json.dumps(record))
    (reject,) = [json.loads(line) for line in (tmp_path / "r").read_text().splitlines()]
    assert (reject["reason"], reject["id"]) == ("template_error", "a")
    assert "messages[3]" in reject["detail"]
    assert done.returncode == 0


def test_sharegpt_format_writes_the_same_segments_in_the_shape_that_fastchat_reads(vtools, eot):
    data = json.dumps({"id": "a", "messages": chat(*["word " * 30] * 6)})
    written = [
        [json.loads(line) for line in done.stdout.splitlines()]
        for shape in ("messages", "sharegpt")
        for done in [vtools("split", "--tokenizer", eot, "--max-tokens", 120, "--format", shape, stdin=data)]
    ]
    assert len(written[0]) > 1
    assert written[1] == [conversation.to_sharegpt(record) for record in written[0]]


def hold_out(vtools, eot, data, tmp_path, *more):
    args = [
        "--tokenizer",
        eot,
        "--max-tokens",
        120,
        "--hold-out",
        "20%",
        "--hold-out-file",
        "held.jsonl",
        "-o",
        "train.jsonl",
    ]
    assert vtools("split", *args, *more, stdin=data).returncode == 0
    return [
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("train.jsonl", "held.jsonl")
    ]


def test_no_conversation_is_on_both_sides_and_a_rerun_gives_the_same_sides(vtools, eot, tmp_path):
    # ShareGPT V3's own ids are segments already: Abc0007_0 and Abc0007_4 are one conversation.
    records = [
        {"id": f"Abc{n:04}_{part}", "messages": chat(*["word " * 30] * 4)} for n in range(200) for part in (0, 4)
    ]
    data = "\n".join(map(json.dumps, records))
    train, held = hold_out(vtools, eot, data, tmp_path)
    sides = [{re.sub("_.*", "", part["id"]) for part in side} for side in (train, held)]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 200
    assert 20 <= len(sides[1]) <= 60
    assert hold_out(vtools, eot, data, tmp_path, "-j", 2) == [train, held]
    _, held_backwards = hold_out(vtools, eot, "\n".join(map(json.dumps, records[::-1])), tmp_path)
    assert {part["id"] for part in held_backwards} == {part["id"] for part in held}


@pytest.mark.parametrize(
    "args", [["--hold-out", "1%"], ["--hold-out", "2", "--hold-out-file", "x"], ["--template", "nonsense"]]
)
def test_options_that_make_no_sense_stop_before_reading(vtools, eot, args):
    assert vtools("split", "--tokenizer", eot, *args).returncode in (1, 2)


def test_without_a_tokenizer_it_asks_for_one(vtools):
    done = vtools("split", env={"VTOOLS_MODEL": ""})
    assert done.returncode == 2
    assert "--tokenizer MODEL" in done.errors


def test_ids_that_only_look_like_segments_are_conversations_of_their_own(vtools, eot, tmp_path):
    records = [{"id": f"identity_{n}", "messages": chat("Hi", f"Hello {n}")} for n in range(100)]
    train, held = hold_out(vtools, eot, "\n".join(map(json.dumps, records)), tmp_path)
    assert 5 <= len(held) <= 40
    assert len(train) + len(held) == 100


def test_a_segment_key_of_somebody_else_passes_through(vtools, eot):
    record = {"id": "a", "messages": chat("Hi", "Hello"), "segment": "train"}
    (part,) = vtools("split", "--tokenizer", eot, stdin=json.dumps(record)).records
    assert part["segment"] == "train"


def test_a_segment_that_is_cut_again_stays_on_its_side(vtools, eot):
    record = {"id": "abc", "messages": chat(*["word " * 40] * 12)}
    once = vtools("split", "--tokenizer", eot, "--max-tokens", 400, stdin=json.dumps(record)).stdout
    twice = vtools("split", "--tokenizer", eot, "--max-tokens", 200, stdin=once).records
    assert {part["segment"]["of"] for part in twice} == {"abc"}
    assert {segments.base_id(part) for part in twice} == {"abc"}
    assert [m for part in twice for m in part["messages"]] == record["messages"]


MIXED = "".join(
    json.dumps({"id": f"chat{n}", "messages": chat(*["word " * (n * 7 % 90), "word " * (n % 150)] * (n % 7))}) + "\n"
    for n in range(300)
)


@pytest.mark.parametrize("how", ["keep", "drop", "truncate", "split-answer"])
def test_the_same_bytes_for_any_number_of_processes_and_any_hash_seed(vtools, llama, tmp_path, how):
    seen = set()
    for jobs, seed in ((1, "0"), (2, "7"), (3, "99")):
        args = ["--tokenizer", llama, "--max-tokens", 250, "--overlong", how, "--overlap-turns", 1, "-j", jobs,
                "--rejects", "rejects", "--stats", "stats", "--hold-out", "20%", "--hold-out-file", "held"]  # fmt: skip
        done = vtools("split", *args, stdin=MIXED + "no JSON\n", env={"PYTHONHASHSEED": seed})
        assert done.returncode == 0, done.errors
        rejects, stats = saved(tmp_path)
        assert stats["in"] == 301
        seen.add((done.stdout, done.errors, *((tmp_path / name).read_bytes() for name in ("rejects", "stats", "held"))))
    assert len(seen) == 1
    lines = [row["line"] for row in rejects]
    assert lines == sorted(lines)


def test_it_loads_neither_torch_nor_transformers(llama, tmp_path):
    (tmp_path / "in").write_text(MIXED)
    load_tokenizer(llama)  # converted once, by transformers
    code = (
        "import sys; from vtools import cli\n"
        f"sys.argv = ['vtools', 'split', 'in', '-q', '-o', 'out', '--tokenizer', {llama!r}]\n"
        "try: cli.main()\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'transformers', 'numpy', 'huggingface_hub') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.stdout == "[]\n", done.stderr


def peak(args, folder):
    """The peak resident memory, in bytes, of a run that must succeed."""
    done, _, memory = tiny.measured([*VTOOLS, *map(str, args)], cwd=folder)
    assert done.returncode == 0, done.stderr
    return memory


@pytest.mark.slow
@pytest.mark.parametrize("how", ["keep", "split-answer"])
def test_an_answer_of_many_megabytes_takes_a_few_times_its_size(llama, tmp_path, how):
    args = ["split", "in", "--tokenizer", llama, "-q", "-o", "out", "--overlong", how]
    (tmp_path / "in").write_text(json.dumps({"id": "a", "messages": chat("q", "a")}))
    small = peak(args, tmp_path)
    answer = "".join(f"word{n % 5000} and {n * n % 97} so on,\n" for n in range(1_000_000))
    (tmp_path / "in").write_text(json.dumps({"id": "a", "messages": chat("q", answer)}))
    assert peak(args, tmp_path) - small < 7 * len(answer)


@pytest.mark.slow
def test_the_words_that_are_remembered_do_not_fill_the_memory(llama, tmp_path):
    """As many different words as a million conversations have, and more."""
    source = random.Random(0)
    with open(tmp_path / "in", "w") as out:
        for number in range(1000):
            texts = [" ".join("".join(source.choices("абвгдежзиклмнопр", k=24)) for _ in range(400)) for _ in range(2)]
            out.write(json.dumps({"id": str(number), "messages": chat(*texts)}) + "\n")
    assert peak(["split", "in", "--tokenizer", llama, "-q", "-o", "out"], tmp_path) < 150 << 20


# --- FastChat -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def spaces(tmp_path_factory):
    """A tokenizer that counts words, with a first token of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "word": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<unk>", "<s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    folder = tmp_path_factory.mktemp("spaces")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    return str(folder)


# Rounds of so many words: the samples that FastChat writes (first message, rounds), and the rounds that it loses.
FASTCHAT = [
    ([(10, 10)] * 2, [(0, 2)], 0),
    ([(10, 20)] * 3, [(0, 2)], 1),
    ([(20, 20)] * 2, [(0, 1)], 1),
    ([(50, 100), (5, 5), (5, 5)], [(0, 1), (2, 2)], 0),
    ([(50, 100)], [], 1),
    ([(5, 5), (80, 80), (5, 5), (5, 5)], [(0, 1), (2, 1), (4, 2)], 0),
]


@pytest.mark.parametrize(("rounds", "samples", "lost"), FASTCHAT)
def test_the_preset_cuts_and_loses_as_fastchat_does_and_says_so(vtools, spaces, tmp_path, rounds, samples, lost):
    turns = [
        {"from": role, "value": "word " * count}
        for pair in rounds
        for role, count in zip(("human", "gpt"), pair, strict=True)
    ]
    record = {"id": "X", "conversations": turns, "note": 1}
    args = ["--preset", "vicuna", "--max-tokens", 100, "--rejects", "rejects", "--stats", "stats"]
    done = vtools("split", "--tokenizer", spaces, *args, stdin=json.dumps(record))
    assert done.records == [
        {"id": f"X_{start}", "model": "", "conversations": turns[start : start + 2 * count]} for start, count in samples
    ]
    rejects, stats = saved(tmp_path)
    assert stats["turns_lost"] == 2 * lost
    assert (f"turns_lost {2 * lost}" in done.errors) == bool(lost)
    assert sum(len(row["record"]["conversations"]) for row in rejects) == 2 * lost
    assert all(row["reason"] == "overlong" for row in rejects)


@pytest.fixture(scope="session")
def fastchat(llama):
    """FastChat's own functions, with the LLaMA tokenizer."""
    module = pytest.importorskip("fastchat.data.split_long_conversation")
    module.tokenizer = module.transformers.AutoTokenizer.from_pretrained(llama)

    def run(samples, limit):
        module.max_length = limit
        return module.filter_invalid_roles([made for sample in samples for made in module.split_one_sample(sample)])

    run.tokens = lambda text: len(module.tokenizer(text).input_ids)
    return run


FROM = st.sampled_from(["human", "gpt"] * 9 + ["system", "chatgpt", "tool"])


@settings(max_examples=200, deadline=None, suppress_health_check=FIXTURES)
@given(
    values=st.lists(st.tuples(FROM, st.one_of(st.just(""), TEXT, WORDS)), max_size=9),
    regular=st.booleans(),
    limit=st.integers(20, 300),
)
def test_the_preset_writes_what_fastchats_own_function_writes(fastchat, llama, values, regular, limit):
    turns = [
        {"from": ("human", "gpt")[place % 2] if regular else role, "value": text}
        for place, (role, text) in enumerate(values)
    ]
    sample = {"id": "X", "model": None, "conversations": turns}
    for _, text in values:
        assert vicuna.counter(llama)(text) == fastchat.tokens(text)
    made = vicuna.split(dict(sample), tokenizer=llama, max_tokens=limit)
    expected = fastchat([sample], limit)
    if isinstance(made, Reject):
        assert expected == []
        return
    assert [part for part in made if not part.reject] == expected
    lost = sum(part.counts.get("turns_lost", 0) for part in made)
    assert sum(len(part["conversations"]) for part in made) == len(turns)
    assert len(turns) - sum(len(part["conversations"]) for part in expected) == lost


def test_the_preset_takes_no_other_way_of_cutting(vtools, spaces):
    for more in (["--overlong", "drop"], ["--overlap-turns", 1], ["--template", "alpaca"]):
        done = vtools("split", "--tokenizer", spaces, "--preset", "vicuna", *more)
        assert done.returncode == 2
        assert "--preset vicuna" in done.errors
