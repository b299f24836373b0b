"""vtools clean: HTML to Markdown, turns in order, filters, and the rule that nothing vanishes."""

import base64
import functools
import gzip
import itertools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import fields
from pathlib import Path

import html_corpus
import pytest
import tiny
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from vtools.clean import clean_record, filters
from vtools.clean.html import convert, engines, fast_path, page, placeholders
from vtools.records import conversation
from vtools.records.jsonl import Reject

GOLDEN = Path(__file__).parent / "golden"
ENGINES = ("fast", "reference")
pytest.importorskip("turbohtml")


def run(*arguments: str, stdin: bytes = b"", **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "vtools", "clean", *arguments], input=stdin, capture_output=True, timeout=120, **options
    )


def lines(*values) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def chat(*texts: str, **keys) -> dict:
    """A conversation: question, answer, question, answer…"""
    roles = itertools.cycle(("human", "gpt"))
    return {**keys, "conversations": [{"from": next(roles), "value": text} for text in texts]}


def cleaned(*texts: str, **options) -> list[str]:
    return [message["content"] for message in clean_record(chat(*texts), **options)["messages"]]


def answer(text: str, engine: str = "auto") -> str:
    return cleaned("A question long enough?", text, engine=engine)[1]


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


def test_both_engines_write_the_same_lines():
    for made in html_corpus.answers(300, seed=8):
        fast, reference = (convert.to_markdown(made.html, engine).split("\n") for engine in ENGINES)
        assert [line for line in fast if line] == [line for line in reference if line]


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


HOSTILE = {
    "backticks": "<p>" + "`" * 20_000 + "</p><pre><code>" + "`" * 20_000 + "</code></pre>",
    "angles": "<p>" + "<" * 1_000_000 + "</p>",
    "items": "<ul>" + "<li>x" * 100_000 + "</ul>",
    "stray items": "<p>x</p>" + "<li>" * 100_000,
    "deep divs": "<div>" * 3_000 + "x" + "</div>" * 3_000,
    "deep lists": "<ul><li>x" * 3_000 + "</li></ul>" * 3_000,
    "deep quotes": "<blockquote>" * 3_000 + "x",
    "deep tables": "<table><tr><td>" * 3_000 + "x",
    "open bold": "<p>" + "<b>x" * 20_000,
    "open tags": "<p>" + "<a " * 300_000,
    "open quotes": "<p>" + "<a ='<b =\"" * 100_000,
    "open code": "<p>x</p>" + "<pre><code>" * 50_000,
    "open math": "<p>" + '<span class="katex">' * 30_000 + "x",
    "open comments": "<p>" + "<!--" * 200_000,
    "counters": "Copy1 chars / 1 words" * 50_000 + "<p>x</p>",
    "stars": "<p>" + "*a " * 100_000,
    "references": "<p>" + "&#2;0&#3;&#x1;&" * 50_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_html_takes_linear_time_and_ends_without_a_crash(name):
    """Twice the input must not take four times as long; the floor keeps a busy machine from failing it."""
    text, seconds = HOSTILE[name], []
    for size in (text, text + text):
        start = time.process_time()
        convert.to_markdown(size, "fast")
        seconds.append(time.process_time() - start)
    assert seconds[1] < 3.5 * seconds[0] + 1


@pytest.mark.parametrize("name", ["backticks", "deep divs", "deep lists", "deep quotes", "open bold", "open tags"])
def test_hostile_html_does_not_break_the_reference_engine(name):
    assert "x" in convert.to_markdown(HOSTILE[name] + "<p>x</p>", "reference")


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


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
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
thorough = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])


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


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(CONVERSATIONS, max_size=30), st.booleans())
def test_nothing_vanishes_and_two_processes_write_the_same_bytes(tmp_path_factory, conversations, merge):
    folder = tmp_path_factory.mktemp("clean")
    data = lines(
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


# Roles and order


def roles(record) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in clean_record(record)["messages"]]


def turns(*pairs) -> dict:
    return {"conversations": [{"from": role, "value": text} for role, text in pairs]}


def test_a_conversation_runs_from_the_first_question_to_the_last_answer():
    given = turns(
        ("gpt", "hello there"),
        ("chatgpt", "again"),
        ("human", "a question"),
        ("bing", "an answer"),
        ("user", "left open"),
    )
    assert roles(given) == [("user", "a question"), ("assistant", "an answer")]


def test_a_leading_system_message_is_kept():
    given = turns(("system", "be kind"), ("gpt", "hi"), ("human", "a question"), ("gpt", "an answer"))
    assert [role for role, _ in roles(given)] == ["system", "user", "assistant"]


@pytest.mark.parametrize(
    "blank", ["", " \n\t", "\u200b", "\ufeff \u200b", "<p></p>", "<div><p>\u200b</p>&nbsp;</div>", "\x00"]
)
def test_an_empty_answer_ends_the_conversation_before_its_question(blank):
    assert cleaned("first question", "first answer", "second", blank, "third", "answer") == [
        "first question",
        "first answer",
    ]
    with pytest.raises(Reject) as caught:
        cleaned("only question here", blank)
    assert caught.value.reason == "empty"


def test_an_answer_that_begins_with_a_zero_width_space_is_no_empty_answer():
    assert cleaned("a question there", "\u200banswer")[1] == "\u200banswer"


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"conversations": []}, "empty"),
        (turns(("human", "no answer at all")), "empty"),
        (turns(("gpt", "no question at all")), "empty"),
        (turns(("human", "one"), ("human", "two"), ("gpt", "answered")), "role_order"),
        (turns(("human", "one"), ("gpt", "an answer"), ("gpt", "another")), "role_order"),
        (turns(("human", "one"), ("system", "now be kind"), ("gpt", "an answer")), "role_order"),
        (turns(("human", "one"), ("tool", "x"), ("gpt", "an answer")), "unknown_role"),
        (turns(("human", "123456789"), ("gpt", "012345")), "too_short"),
        (turns(("human", None), ("gpt", "an answer")), "bad_schema"),
        ({"text": "no conversation"}, "bad_schema"),
        (chat("use a plug-in, please", "done, it says", plugins=[{"id": "p"}]), "plugin"),
        (chat("a long question", "!Too many requests in 1 hour. Try again later."), "blocked_response"),
        (chat("count to a lot", "here: 1 000000000 2"), "rep_digits"),
        (chat("list things, please", "Sure:\n1. one\n1. next\n1. last"), "wrong_list"),
    ],
)
def test_a_record_is_rejected_for_its_reason(record, reason):
    with pytest.raises(Reject) as caught:
        clean_record(record)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "record",
    [
        chat("12345678", "87654321", plugins=None),
        chat("Why does it say this?", "It says: Too many requests in 1 hour. Try again later."),
        chat("count to a lot", "00000000 11111111"),
        chat("list things, please", "Sure:\n1. one\n2. next\n\nand\n1. first\n2. second"),
        chat("\n1. a\n1. b\n1. c", "a question's list is the user's own"),
    ],
)
def test_a_record_at_the_near_side_of_a_rule_is_kept(record):
    assert clean_record(record)


def test_every_shape_is_read_and_unknown_keys_pass_through():
    pair = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": "an answer"}]
    for record in (
        {"messages": pair},
        {"items": [{"from": "human", "value": "a question"}, {"from": "gpt", "value": "<p>an answer</p>"}]},
        {"instruction": "a question", "input": "", "output": "an answer"},
        {"prompt": "a question", "completion": "an answer"},
    ):
        out = clean_record({"model": "m", **record})
        assert out["messages"] == pair
        assert out["model"] == "m"
        assert out["vtools"][0]["op"] == "clean"


# The command


def test_the_same_texts_are_kept_once_whatever_their_ids_and_the_same_id_may_hold_other_texts():
    first, other = chat("a question?", "<p>an answer</p>", id="x"), chat("a question?", "another answer", id="x")
    done = run(stdin=lines(first, chat("a question?", "an answer\n", id="y"), other))
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == ["x", "x"]
    assert b"3 in, 2 out, 1 rejected (dup_exact 1)" in done.stderr


def test_a_filter_is_switched_off_by_its_name():
    record = chat("use a plug-in, please", "000000000\n1. a\n1. b\n1. ", plugins=[])
    names = [name for name in ("plugin", "rep_digits", "wrong_list", "dup_exact")]
    done = run(*itertools.chain(*(("--keep", name) for name in names)), stdin=lines(record, record))
    assert len(done.stdout.splitlines()) == 2
    assert run("--keep", "role_order", stdin=lines(record)).returncode == 2


def test_merging_joins_messages_of_a_role_with_a_blank_line():
    given = turns(("human", "one"), ("human", "two"), ("gpt", "<p>first</p>"), ("gpt", ""), ("gpt", "second"))
    done = run("--merge-same-role", stdin=lines(given))
    assert [message["content"] for message in json.loads(done.stdout)["messages"]] == ["one\n\ntwo", "first\n\nsecond"]


def test_sharegpt_format_writes_the_shape_that_fastchat_reads():
    done = run("--format", "sharegpt", stdin=lines(turns(("user", "a question"), ("bing", "<p>an answer</p>"))))
    assert json.loads(done.stdout)["conversations"] == [
        {"from": "human", "value": "a question"},
        {"from": "gpt", "value": "an answer"},
    ]


GOOD = chat("a good question", "<p>a good answer</p>", id="good")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"not json", "bad_json"),
        (b'{"a": 1} trailing', "bad_json"),
        (b'{"a": "\xff"}', "bad_json"),
        (b"42", "not_object"),
        (b"null", "not_object"),
        (b"{}", "bad_schema"),
        (b'{"conversations": 3}', "bad_schema"),
        (b'{"conversations": [{"from": "human", "value": 3}]}', "bad_schema"),
        (b'{"conversations": [{"from": "", "value": "x"}]}', "unknown_role"),
    ],
)
def test_a_bad_line_is_saved_with_its_reason_and_the_rest_goes_on(bad, reason, tmp_path):
    rejects = tmp_path / "rejects"
    done = run(
        "--rejects",
        str(rejects),
        stdin=lines(GOOD) + bad + b"\r\n\n\xef\xbb\xbf" + lines(chat("after it", "all is well here")),
    )
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 2
    (row,) = map(json.loads, rejects.read_bytes().splitlines())
    assert (row["reason"], row["line"], row["stage"]) == (reason, 2, "clean")
    if "raw_b64" in row:
        assert base64.b64decode(row["raw_b64"]).strip() == bad
    else:
        assert row["record"] == json.loads(bad)
    assert b"Traceback" not in done.stderr


def test_a_lone_surrogate_is_repaired_and_counted():
    done = run(
        stdin=b'{"conversations":[{"from":"human","value":"a \\ud83d question"},{"from":"gpt","value":"<p>an \\ud83d answer</p>"}]}\n'
    )
    assert "an \ufffd answer" in done.stdout.decode()
    assert b"repaired 1" in done.stderr


def test_a_torn_gzip_array_gives_its_whole_records(tmp_path):
    packed = gzip.compress(
        json.dumps([chat(f"question {n}", f"<p>answer {os.urandom(99).hex()}</p>") for n in range(99)]).encode()
    )
    file = tmp_path / "torn.json.gz"
    file.write_bytes(packed[: len(packed) // 2])
    done = run(str(file), "--rejects", str(tmp_path / "rejects"))
    assert done.returncode == 0
    assert 20 < len(done.stdout.splitlines()) < 99
    assert json.loads((tmp_path / "rejects").read_bytes())["reason"] == "torn_input"
    assert run(str(file)).returncode == 1


def test_control_characters_go_and_other_rare_ones_stay():
    text = "a\x00b\x1b[1m\tc\u2028d\u200be\xa0f\r\n"
    assert cleaned(text, text + "long enough") == [
        "ab[1m\tc\u2028d\u200be\xa0f\r\n",
        "ab[1m\tc\u2028d\u200be\xa0f\r\nlong enough",
    ]


def test_a_key_of_the_duplicate_filter_costs_at_most_100_bytes():
    """Measured in a process of its own, as peak memory does not fall."""
    code = (
        "from vtools.clean.duplicates import Exact\n"
        "from vtools.records.conversation import text_key\n"
        f"seen, peak = Exact(), lambda: {tiny.PEAK}\n"
        "seen.before(text_key([]), ''); start = peak()\n"
        "for n in range(1_000_000): seen.before(text_key([{'role': 'user', 'content': str(n)}]), str(n))\n"
        "print((peak() - start) / 1_000_000)\n"
    )
    assert float(subprocess.check_output([sys.executable, "-c", code])) < 100


def test_nothing_heavy_is_imported_before_the_first_html_answer():
    code = (
        "import sys\n"
        "from vtools.clean import clean_record\n"
        "def heavy(): return sorted({'bs4', 'markdownify', 'turbohtml', 'torch', 'rich', 'numpy'} & set(sys.modules))\n"
        "pair = lambda text: {'prompt': 'a question', 'completion': text}\n"
        "clean_record(pair('# Markdown\\n\\nwith a < b and <b>')); print(heavy())\n"
        "clean_record(pair('<p>HTML it is</p>')); print(heavy())\n"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split("\n")[:2] == ["[]", "['turbohtml']"]


def test_the_rate_limit_notice_alone_is_blocked_and_a_talk_about_it_is_not():
    record = functools.partial(chat, "please answer me")
    for notice in (
        "Too many requests in 1 hour. Try again later.",
        "<p>Too many requests in 1 hour. Try again later.</p>",
    ):
        with pytest.raises(Reject, match="blocked_response"):
            clean_record(record(notice))
    assert (
        filters.blocked_response(
            clean_record(record("Too many requests in 1 hour. Try again later. So said the page."))
        )
        is None
    )
