"""split: what becomes of a pair that is too long by itself."""

from __future__ import annotations

import json
import re

import pytest
from chats import chat
from hypothesis import given, settings
from hypothesis import strategies as st
from splitting import TEXT, saved

from vtools.records import markdown
from vtools.split import cut_answers

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


@pytest.mark.parametrize(
    "character", ["की", "ที่", "e\u0301", "\u1112\u1161\u11ab", "👩🏽\u200d💻", "ශ්\u200dරී", "❤\ufe0f"], ids=ascii
)
def test_a_cut_in_a_text_without_spaces_leaves_the_marks_of_a_letter_with_it(character):
    text = character * 40
    for limit in range(2 * len(character), 3 * len(character)):
        assert cut_answers.truncate(text, len, limit) == character * 2
        parts = cut_answers.parts(text, len, limit)
        assert "".join(parts) == text
        assert all(len(part) % len(character) == 0 for part in parts)
    assert "".join(cut_answers.parts("a" + "\u0301" * 500, len, 20)) == "a" + "\u0301" * 500


def test_a_code_block_longer_than_a_segment_is_cut_between_its_lines():
    block = "~~~~\n" + "".join(f"line {number}\n" for number in range(100)) + "~~~~\n"
    parts = cut_answers.parts(block, words, 25)
    assert "".join(parts) == block
    assert all(part.endswith("\n") for part in parts)


@settings(max_examples=300)
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
