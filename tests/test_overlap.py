"""Questions found in texts: runs of words, short questions, boilerplate, and what a hit says."""

from __future__ import annotations

import json
import random

import pytest
from counting import assert_linear
from hypothesis import given, settings
from hypothesis import strategies as st

from vtools.process import Failure
from vtools.records import overlap
from vtools.records.question import Question

LONG = "Imagine you are writing a blog post comparing two popular smartphone models, and you need a table of their features."


def index(*texts: str, n: int = overlap.N) -> overlap.Index:
    return overlap.Index([("q.jsonl", Question(f"q{number}", [text])) for number, text in enumerate(texts)], n)


def hits(found: overlap.Index, *texts: str) -> list[str]:
    return [hit.id for hit in found.hits(texts)]


def test_a_question_is_found_whatever_its_case_punctuation_and_line_breaks():
    (hit,) = index(LONG).hits(["intro", f"so: {LONG.upper().replace(' ', chr(10)).replace(',', ' --')} thanks"])
    assert (hit.file, hit.id) == ("q.jsonl", "q0")
    assert hit.words == "imagine you are writing a blog post comparing two popular smartphone models and you need a table of their features"  # fmt: skip
    assert str(hit) == f"question q0 of q.jsonl: {hit.words}"


def test_thirteen_words_in_a_row_are_a_hit_and_twelve_are_not():
    words = [f"word{number}" for number in range(30)]
    found = index(" ".join(words))
    for start in (0, 9, 17):
        assert hits(found, "before " + " ".join(words[start : start + 13]) + " after") == ["q0"]
    assert hits(found, "before " + " ".join(words[4:16]) + " after") == []
    assert hits(index(" ".join(words), n=12), "before " + " ".join(words[4:16]) + " after") == ["q0"]


def test_the_shared_words_are_told_and_no_more_than_forty():
    words = [f"word{number}" for number in range(60)]
    (hit,) = index(" ".join(words)).hits([" ".join(["x", *words[3:20], "y"])])
    assert hit.words == " ".join(words[3:20])
    (hit,) = index(" ".join(words)).hits([" ".join(words)])
    assert hit.words == " ".join(words[:40])


def test_a_question_of_eight_to_twelve_words_must_be_there_as_a_whole():
    found = index("How can I improve my time management skills?")
    assert hits(found, "Tell me. How can I improve my time management skills? Be brief.") == ["q0"]
    assert hits(found, "How can I improve my time management?") == []


def test_a_shorter_question_is_only_a_whole_text():
    found = index("What is love?")
    assert hits(found, "what is LOVE") == ["q0"]
    assert hits(found, "what is love if not the heat of the night") == []


def test_every_turn_of_a_question_is_looked_for():
    question = Question("two", ["Write a poem about the sea and all of its colours.", LONG])
    assert hits(overlap.Index([("q", question)]), LONG) == ["two"]


def test_boilerplate_of_more_than_ten_questions_is_no_hit_and_their_own_words_are():
    boilerplate = "answer the following multiple choice question with one letter and give no explanation at all please"
    own = [f"which of these {number} is the tallest mountain in the country number {number} of the long list" for number in range(11)]  # fmt: skip
    found = index(*(f"{boilerplate}: {text}" for text in own))
    assert hits(found, boilerplate) == []
    assert set(hits(found, own[4])) == {"q4"}
    assert len(set(hits(index(*(f"{boilerplate}: {text}" for text in own[:10])), boilerplate))) == 10


def test_a_question_that_is_all_boilerplate_is_still_found_as_a_whole():
    assert hits(index(*[LONG] * 12), LONG)
    assert hits(index(*[LONG] * 12), LONG.rpartition(" of ")[0]) == []


def test_questions_in_scripts_without_spaces_are_found_by_their_characters():
    question = "请解释一下为什么天空是蓝色的，并举一个日常生活中的例子。"
    assert hits(index(question), f"你好！{question.replace('，', ' ')}谢谢") == ["q0"]
    assert hits(index(question), "请解释一下为什么天空是灰色的") == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't panic: 1.5 snake_case", "don t panic 1 5 snake case"),
        ("Don’t panic: 1.5 snake_case", "don t panic 1 5 snake case"),
        ("naïve CAFÉ", "naïve café"),
        ("日本 go 語go", "日 本 go 語 go"),
        (" \n", ""),
    ],
)
def test_ascii_and_other_texts_are_cut_into_words_alike(text, words):
    assert overlap.words(text) == words.split()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("a b cc ddd eeee".split()), max_size=12), max_size=4),
    st.lists(st.sampled_from("a b cc ddd eeee".split()), max_size=30),
    st.integers(3, 6),
)
def test_the_index_finds_what_a_search_of_every_place_finds(questions, text, n):
    def there(words: list[str]) -> bool:
        if len(words) < n:
            return bool(words) and words == text
        starts = range(len(words) - n + 1)
        return any(text[at : at + n] == words[start : start + n] for start in starts for at in range(len(text)))

    found = overlap.Index(
        [("q", Question(str(number), [" ".join(words)])) for number, words in enumerate(questions)], n
    )
    assert bool(list(found.hits([" ".join(text)]))) == any(map(there, questions))


def test_hostile_repetition_takes_linear_time():
    found = index("ha " * 200, "ha " * 13 + "stop", n=13)
    assert_linear(lambda size: list(found.hits(["ha " * size])), 1_000)


def test_files_of_every_question_shape_are_read_and_a_wrong_one_is_named(tmp_path):
    rows = [{"question_id": 81, "turns": [LONG]}, {"question_id": 2, "text": LONG}, {"id": "m", "messages": [{"role": "user", "content": LONG}]}]  # fmt: skip
    file = tmp_path / "q.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert hits(overlap.read([str(file)]), LONG) == ["81", "2", "m"]
    file.write_text('{"id": "x"}\n')
    with pytest.raises(Failure, match=r"q\.jsonl: question 1: no turns"):
        overlap.read([str(file)])
    file.write_text("")
    with pytest.raises(Failure, match="no questions in it"):
        overlap.read([str(file)])


def test_a_question_is_found_wherever_it_stands():
    dice = random.Random(3)
    words = [f"w{number}" for number in range(500)]
    questions = [dice.sample(words, 25) for _ in range(200)]
    found = index(*map(" ".join, questions))
    for number, question in enumerate(questions):
        filler = dice.choices(words, k=300)
        place = dice.randrange(300)
        assert f"q{number}" in hits(found, " ".join(filler[:place] + question[5:20] + filler[place:]))
