"""vtools clean: questions that the site escaped beside the HTML answers."""

import pytest
from chats import shared
from cleaning import cleaned
from hypothesis import given
from hypothesis import strategies as st

from vtools.clean import clean_record, steps
from vtools.clean.choices import Choices

ANSWER = "<p>It compares both.</p>"


def asked(*questions: str, answer: str = ANSWER) -> list[str]:
    return cleaned(*(text for question in questions for text in (question, answer)))[::2]


def test_a_question_that_the_site_escaped_is_read_as_it_was_asked():
    assert asked("is a &lt; b &amp;&amp; c &gt; d in &quot;C&quot;?") == ['is a < b && c > d in "C"?']
    assert asked("what is &amp;nbsp; in HTML?", "and &lt;br&gt;?") == ["what is &nbsp; in HTML?", "and <br>?"]


@pytest.mark.parametrize(
    "questions",
    [
        ["is a &lt; b, or a < c?"], ["Tom & Jerry &lt;3"], ["what is &nbsp; in &lt;p&gt;?"], ["> a quote\n\na &lt; b"],
        ["what does &lt; mean?", "and if (a < b)?"],
    ],
)  # fmt: skip
def test_a_question_beside_a_character_that_the_site_would_have_escaped_is_kept(questions):
    assert asked(*questions) == questions


def test_entities_stay_where_the_answers_were_markdown():
    assert asked("is a &lt; b?", answer="It compares both.") == ["is a &lt; b?"]
    assert asked("is a &lt; b?", answer="<hr>\n\n- it compares both") == ["is a &lt; b?"]


@given(st.lists(st.text('a&;<>"ltgmp# \n'), min_size=1, max_size=3))
def test_what_was_resolved_once_is_not_resolved_again(questions):
    record = shared(*(text for question in questions for text in (f"Q {question}", ANSWER)))
    once = clean_record(record)
    assert clean_record(once) == once


def test_converted_answers_are_counted():
    made = steps.draft(Choices(), shared("A question?", ANSWER, "Another?", "No HTML.", "More?", "<p>a</p><p>b</p>"))
    assert made.converted == 2
