"""Questions found in texts: runs of words, short questions, boilerplate, and what a hit says."""

from __future__ import annotations

import json
import random
import unicodedata

import pytest
from counting import assert_linear
from hypothesis import given, settings
from hypothesis import strategies as st

from vtools.process import Failure
from vtools.records import overlap
from vtools.records.question import Question
from vtools.records.words import with_operators

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
        ("काला घोड़ा, कील पर।", "काला घोड़ा कील पर"),  # Hindi
        ("বাংলা ভাষা", "বাংলা ভাষা"),  # Bengali
        ("தமிழ் மொழி!", "தமிழ் மொழி"),  # Tamil
        ("שָׁלוֹם עוֹלָם", "שָׁלוֹם עוֹלָם"),  # pointed Hebrew
        ("قَالَ الرَّجُلُ؟", "قَالَ الرَّجُلُ"),  # Arabic with harakat
        ("ที่บ้านเก่า", "ที่ บ้า น เก่า"),  # Thai: about syllables
        ("ស្រី មក", "ស្រី ម ក"),  # Khmer, with a consonant below another
        ("می\u200cروم un\xaddone", "میروم undone"),
        ("☀\ufe0f ÉTÉ _x_", "été x"),
        (" \n", ""),
    ],
)
def test_ascii_and_other_texts_are_cut_into_words_alike(text, words):
    for form in ("NFC", "NFD"):
        assert overlap.words(unicodedata.normalize(form, text)) == unicodedata.normalize("NFC", words).split()


def test_thirteen_words_are_thirteen_in_a_script_with_vowel_signs_too():
    words = [f"{letter}ि{other}ा" for letter in "कगचजतदनपबम" for other in "रलसह"]
    found = index(" ".join(words))
    assert hits(found, " ".join(words[4:17])) == ["q0"]
    assert hits(found, " ".join(words[4:16])) == []
    assert hits(index("दान करो"), "दिन कर") == []


def test_a_question_is_found_in_any_unicode_form():
    question = "Où est le café le plus proche de l'église, à côté de la forêt ?"
    for form in ("NFC", "NFD"):
        found = index(unicodedata.normalize(form, question))
        assert hits(found, *(unicodedata.normalize(other, question) for other in ("NFC", "NFD"))) == ["q0", "q0"]


def test_a_short_question_that_differs_in_an_operator_or_is_of_symbols_only_is_another_one():
    found = index("What is 3 + 4?", "🎲🎲?", "+-+", "???")
    assert hits(found, "what is 3 - 4", "What is 3 * 4", "what is 3, 4", "🎲", "-+-", "??") == []
    assert hits(found, "What is 3+4", "🎲🎲!", "+-+", "???") == ["q0", "q1", "q2", "q3"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x=a+b*c; print(x)", "x = a + b * c print x"), ("3 - 4 = -1, i++ i -= 1", "3 - 4 = - 1 i ++ i -= 1"),
        ("a != b && !c || *p->q", "a != b && ! c || p -> q"), ("C, C++ or C#?", "c c ++ or c #"), ("5% of $3 ≤ 4€", "5 % of $ 3 ≤ 4 €"),
        ("**Bold** and *it*: hi!", "bold and it hi"), ("# One\n\n- two\n  * three — four-five", "one two three four five"),
        ("![a](b) Wow! `code`", "a b wow code"), ("🎉🎉 done", "🎉🎉 done"), ("don´t", "don t"), ("a \u003d\u0338 b", "a ≠ b"), ("?!", "?!"), (" ", ""),
    ],
)  # fmt: skip
def test_operators_and_symbols_are_words_and_punctuation_and_markdown_are_not(text, words):
    assert with_operators(text) == words.split()


@settings(max_examples=200)
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


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "text", ["\u0301\u0316", "\u0316\u0301", "é - * !", "ក្", "เ", "\u200d", "a*", "=\u0338"], ids=ascii
)
def test_hostile_marks_and_operators_take_linear_time(text):
    """The square of this length would take hours."""
    assert with_operators("a" + text * 500_000)
    assert overlap.words("a" + text * 500_000)


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
