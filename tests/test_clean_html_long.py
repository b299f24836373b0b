"""vtools clean: one very long answer takes time and memory in proportion to its length."""

import html_corpus
import pytest
import running
from chats import jsonl, shared

from vtools.clean.html import engines, pieces

BLOCKS = (
    '<p>A river <strong>runs</strong>, <a href="https://example.org">see</a>.</p>\n<ul>\n<li>one<p>two</p></li>\n</ul>\n'
    "<blockquote><p>three</p></blockquote><table><tr><td><p>4</p></td></tr></table><pre><code>five\n\n<p>\n</code></pre><h2>six</h2>"
)


@pytest.mark.parametrize("around", ["{}", "<div>{}</div>", "<div><div class='x'>{}</div><p>z</p></div>", "<div>{}"])
def test_a_message_in_pieces_has_the_markdown_of_the_whole(around):
    source = around.format(BLOCKS * 5)
    cut = list(pieces.cut(source, long=100))
    assert len(cut) > 5
    assert "\n\n".join(engines.convert(cut, "auto")) == engines.convert([source], "auto")[0]


def test_answers_of_every_era_can_be_cut():
    for made in html_corpus.answers(100, seed=5):
        cut = engines.convert(list(pieces.cut(made.html, long=200)), "auto")
        assert "\n\n".join(filter(None, cut)) == engines.convert([made.html], "auto")[0]


@pytest.mark.parametrize("source", ["<ul><li>" + "<p>x</p>" * 99, "<b>" + "<p>x</p>" * 99, "<pre>" + "<p>x</p>" * 99])
def test_a_message_is_cut_only_outside_of_everything(source):
    assert list(pieces.cut(source, long=100)) == [source]


def test_a_long_answer_takes_a_few_times_its_length_in_memory(tmp_path):
    def memory(size: int, answer: str) -> int:
        made = tmp_path / "long.jsonl"
        made.write_bytes(jsonl(shared("A question?", answer * (size // len(answer)))))
        return running.peak("clean", made, "-o", tmp_path / "out.jsonl")

    for answer in (BLOCKS, "A line of **words**.\n\n- and\n- items\n\n"):
        small, large = (memory(size, answer) for size in (2_000_000, 4_000_000))
        assert large - small < 8 * 2_000_000
