"""vtools clean: HTML to Markdown, whole, in linear time, and never twice."""

import json
from collections import Counter
from dataclasses import fields
from pathlib import Path

import html_corpus
import pytest
from chats import jsonl
from counting import assert_linear
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from vtools.clean import clean_record
from vtools.clean.html import convert, engines, fast_path, page, placeholders
from vtools.records import conversation
from vtools.records.jsonl import Reject

pytest.importorskip("turbohtml")
from cleaning import ENGINES, answer, cleaned, run

GOLDEN = Path(__file__).parent / "golden"


# HTML


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("row", json.loads((GOLDEN / "clean_html.json").read_text()), ids=lambda row: row["name"])
def test_an_answer_becomes_the_markdown_of_the_golden_table(row, engine):
    assert answer(row["html"], engine) == row["markdown"]


@pytest.mark.parametrize("row", json.loads((GOLDEN / "clean_plain.json").read_text()), ids=lambda row: row["name"])
def test_a_text_that_is_no_html_is_kept_byte_for_byte_on_both_sides(row):
    text = row["text"]
    assert cleaned(text, text + " and an answer") == [text, text + " and an answer"]


def test_html_in_a_question_is_text():
    question = '<p>Why does <div id="x">foo</div> not\n\n\n  work?</p> 1 / 2 &lt; List<String>'
    assert cleaned(question, "<p>Because it is a block.</p>") == [question, "Because it is a block."]


@pytest.mark.parametrize("engine", ENGINES)
def test_code_tables_math_lists_and_paragraphs_survive_whole_in_every_era(engine):
    wanted, kept, missing = Counter(), Counter(), []
    for made in html_corpus.answers(300, seed=7):
        found = html_corpus.found(convert.to_markdown(made.html, engine), made.truth.math)
        for part in fields(html_corpus.Truth):
            want = Counter(map(repr, getattr(made.truth, part.name)))
            have = Counter(map(repr, getattr(found, part.name)))
            wanted[part.name] += want.total()
            kept[part.name] += (want & have).total()
            missing += [(part.name, item) for item in want - have]
    assert min(wanted.values()) > 300
    assert kept == wanted, missing[:5]


def test_noise_of_the_page_is_gone_from_every_era():
    for made in html_corpus.answers(200, seed=9):
        inside = "\n".join(body for _, body in made.truth.code)
        markdown = convert.to_markdown(made.html, "auto")
        assert markdown.count("Copy code") == inside.count("Copy code")
        assert markdown.count("1 / 2") == 0


def test_a_message_that_breaks_one_engine_goes_to_the_other_and_is_rejected_when_both_fail(monkeypatch):
    def broken(document):
        raise RuntimeError("no")

    monkeypatch.setattr(engines, "chosen", lambda name: (broken, engines.reference))
    assert answer("<p>still <b>here</b></p>") == "still **here**"
    monkeypatch.setattr(engines, "chosen", lambda name: (broken, broken))
    with pytest.raises(Reject) as caught:
        answer("<p>lost</p>")
    assert caught.value.reason == "html_parse"


HOSTILE = {  # a length, and HTML of it
    "backticks": (20_000, lambda n: "<p>" + "`" * n + "</p><pre><code>" + "`" * n + "</code></pre>"),
    "angles": (1_000_000, lambda n: "<p>" + "<" * n + "</p>"),
    "items": (100_000, lambda n: "<ul>" + "<li>x" * n + "</ul>"),
    "stray items": (100_000, lambda n: "<p>x</p>" + "<li>" * n),
    "deep divs": (3_000, lambda n: "<div>" * n + "x" + "</div>" * n),
    "deep lists": (3_000, lambda n: "<ul><li>x" * n + "</li></ul>" * n),
    "deep quotes": (3_000, lambda n: "<blockquote>" * n + "x"),
    "deep tables": (3_000, lambda n: "<table><tr><td>" * n + "x"),
    "open bold": (20_000, lambda n: "<p>" + "<b>x" * n),
    "open tags": (300_000, lambda n: "<p>" + "<a " * n),
    "open quotes": (100_000, lambda n: "<p>" + "<a ='<b =\"" * n),
    "open code": (50_000, lambda n: "<p>x</p>" + "<pre><code>" * n),
    "open math": (30_000, lambda n: "<p>" + '<span class="katex">' * n + "x"),
    "open comments": (200_000, lambda n: "<p>" + "<!--" * n),
    "counters": (50_000, lambda n: "Copy1 chars / 1 words" * n + "<p>x</p>"),
    "breaks after tags": (20_000, lambda n: "<p>" + "<sup>" * n + "<br>" * n),
    "breaks in bold": (20_000, lambda n: "<p>x" + "<b><br></b>" * n),
    "tall cells": (20_000, lambda n: "<table>" + "<tr><td rowspan=9>x" * n),
    "captions": (20_000, lambda n: "<table>" + "<caption>x" * n),
    "crowded items": (20_000, lambda n: "<ul>" + "<li>x<hr>" * n),
    "stars": (100_000, lambda n: "<p>" + "*a " * n),
    "references": (50_000, lambda n: "<p>" + "&#2;0&#3;&#x1;&" * n),
}


@pytest.mark.timeout(100)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_html_takes_linear_time_and_ends_without_a_crash(name):
    n, made = HOSTILE[name]
    assert_linear(lambda size: convert.to_markdown(made(size), "fast"), n // 20)
    convert.to_markdown(made(8 * n), "fast")  # what is not counted: its square would take minutes


@pytest.mark.parametrize("name", ["backticks", "deep divs", "deep lists", "deep quotes", "open bold", "open tags"])
def test_hostile_html_does_not_break_the_reference_engine(name):
    n, made = HOSTILE[name]
    assert "x" in convert.to_markdown(made(n) + "<p>x</p>", "reference")


def test_text_below_the_deepest_level_that_is_kept_is_not_lost():
    words = [f"w{number}" for number in range(700)]
    for engine in ENGINES:
        markdown = answer("".join(f"<ul><li>{word}" for word in words), engine)
        assert markdown.replace("-", " ").split() == words


# Most answers take a short way to the engine; the long one is for any HTML.

TAME = st.sampled_from(
    "word two,  three. a_b *x* 2*3 _y_ 1. - # &lt;b&gt; AT&amp;T [l](x) [s] ~~ \\\\ \\n ` é日本 &nbsp; \xa0 ( ) ! : $ | > \n".split(
        " "
    )
)
SENTENCE = st.lists(TAME | st.sampled_from(["<code>a`|b</code>", "<code>x</code>", " ", "  "]), max_size=6).map(
    " ".join
)
INLINE = st.lists(
    SENTENCE
    | st.builds("{0}<{1}>{2}</{1}>{3}".format, SENTENCE, st.sampled_from(["strong", "em"]), SENTENCE, SENTENCE),
    max_size=3,
).map("".join)
LEAF = st.one_of(
    INLINE.map("<p>{}</p>".format), INLINE.map("<h3>{}</h3>".format), INLINE, st.just("<hr>"),
    st.sampled_from(["c++", "", "js"]).map('<pre><div><span>{0}</span>Copy code</div><code class="language-{0}">a\n\n\tb &lt; c\n</code></pre>'.format),
    st.lists(INLINE, min_size=1, max_size=3).map(
        lambda cells: "<table><thead><tr>" + "".join(f"<th>{cell}</th>" for cell in cells) + "</tr></thead>\n<tbody><tr>"
        + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr></tbody></table>"
    ),
)  # fmt: skip
BLOCKS = st.recursive(
    LEAF,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map("\n".join),
        st.builds(
            lambda tag, items: f"<{tag}>\n" + "\n".join(f"<li>{item}</li>" for item in items) + f"\n</{tag[:2]}>",
            st.sampled_from(["ul", "ol", 'ol start="3"']), st.lists(inner, min_size=1, max_size=3),
        ),
        inner.map("<blockquote>{}</blockquote>".format), inner.map('<div class="x">{}</div>'.format),
    ),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=1500, suppress_health_check=[HealthCheck.too_slow])
@given(BLOCKS, st.sampled_from(ENGINES))
def test_the_short_way_gives_what_the_long_way_gives(text, engine):
    short, long = fast_path.document(text), page.document(text)
    if short is not None:
        event("short")
        layout = getattr(engines, engine)
        assert placeholders.restored(layout(short.html), short.kept) == placeholders.restored(
            layout(long.html), long.kept
        )


def test_answers_as_the_site_wrote_them_take_the_short_way():
    text = (
        '<div class="markdown prose"><p>Here is <strong>one</strong>: a &lt; b and <code>x</code>.</p>\n<ol>\n<li>'
        "<p>First</p>\n<ul>\n<li>inner</li>\n</ul>\n</li>\n</ol><pre><div><span>c</span><button>Copy code</button></div>"
        "<code>int a;\n</code></pre><table><thead><tr><th>A</th></tr></thead><tbody><tr><td>1</td></tr></tbody></table></div>"
    )
    assert fast_path.document(text) is not None


# Cleaning twice

FRAGMENTS = st.sampled_from(
    [
        "<p>", "</p>", "<div>", "</div>", "<ul>", "<ol start=3>", "<li>", "</li>", "</ul>", "</ol>", "<pre>", "<code>", "</code>",
        "</pre>", "<b>", "</b>", "<em>", "</em>", "<a href='u_*('>", "</a>", "<br>", "<hr>", "<h2>", "</h2>", "<table>", "<tr>", "<td>",
        "</td>", "</table>", "<blockquote>", "</blockquote>", "<sup>", '<span class="katex">', '<annotation encoding="application/x-tex">',
        "</annotation>", "</span>", "<img src=x alt=']'>", "&lt;p&gt;", "&lt;div class=x&gt;", "&amp;lt;", "&nbsp;", "&#2;0&#3;", "2 / 2\n\n",
        "Copy1 chars / 2 words", "```\n", "`", "*", "**", "_", "\\", "1. ", "- ", "# ", "> ", "[x](y)", "|", "~~", "$", "!", " ", "\n", "\n\n",
        "word", "x", "1", "2", "é", "日本", "\x00", "\x02", "\u200b", "\u3000", "\u2028", "<!--", "-->", "<", ">", "<p", "(", ")", "===",
    ]
)  # fmt: skip
TEXTS = st.one_of(
    st.text(max_size=40),
    st.lists(FRAGMENTS, max_size=25).map("".join),
    st.lists(FRAGMENTS, max_size=25).map(lambda pieces: "<p>" + "".join(pieces)),
    st.integers(0, 10_000).map(lambda seed: html_corpus.answers(1, seed)[0].html),
)
CONVERSATIONS = st.lists(
    st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt", "gpt", "human", "system"]), "value": TEXTS}),
    max_size=5,
)
thorough = settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])


def attempt(record, **options):
    try:
        return clean_record(record, **options)
    except Reject as reject:
        assert reject.reason != "html_parse", reject
        return None


@thorough
@given(TEXTS, st.sampled_from(ENGINES))
@example("<div>&lt;p <b>x</b>&gt;", "fast")
@example("<p>&lt;p&gt;x&lt;/p&gt;", "fast")
@example("<p>Copy1 chars / 2 words&lt;p&gt;</p>", "fast")
@example("Copy1 chars / 2 words2 / 2 <div>2 / 2 &lt;div&gt;", "fast")
@example("<OL>0</OL><UL", "fast")
@example("<div>" * 99 + "<ol>0</ol><ul>", "fast")
@example("<blockquote><ol>0</ol><ul></ul></blockquote>", "fast")
def test_markdown_is_not_converted_again(text, engine):
    once = convert.to_markdown(text, engine)
    assert convert.to_markdown(once, engine) == once
    assert convert.without_controls(once) == once


@thorough
@given(CONVERSATIONS, st.booleans())
def test_cleaning_twice_gives_the_same_record(turns, merge):
    once = attempt({"conversations": turns}, merge_same_role=merge)
    if once is not None:
        assert attempt(once, merge_same_role=merge) == once
        assert attempt(conversation.to_sharegpt(once), merge_same_role=merge) == once


@settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(CONVERSATIONS, max_size=30), st.booleans())
def test_nothing_vanishes_and_two_processes_write_the_same_bytes(tmp_path_factory, conversations, merge):
    folder = tmp_path_factory.mktemp("clean")
    data = jsonl(
        *({"conversations": turns} for turns in conversations), *({"conversations": turns} for turns in conversations)
    )
    options = ["--merge-same-role"] if merge else []
    one = run("--rejects", str(folder / "1"), "--stats", str(folder / "stats"), *options, stdin=data)
    two = run("--rejects", str(folder / "2"), "-j", "2", *options, stdin=data)
    assert (one.returncode, two.returncode) == (0, 0)
    assert one.stdout == two.stdout
    assert (folder / "1").read_bytes() == (folder / "2").read_bytes()
    stats = json.loads((folder / "stats").read_bytes())
    assert stats["in"] == 2 * len(conversations) == stats["out"] + stats["rejected"]
    assert stats["out"] == len(one.stdout.splitlines())
    assert stats["rejected"] == len((folder / "1").read_bytes().splitlines())
    again = run("--rejects", str(folder / "3"), *options, stdin=one.stdout)
    assert again.stdout == one.stdout
