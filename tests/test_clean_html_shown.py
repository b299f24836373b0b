"""vtools clean: the Markdown of an HTML answer shows what the HTML shows."""

import html_corpus
import html_documents
import pytest
from cleaning import ENGINES, answer

from vtools.clean.html import convert, engines


def unlike(engine: str, seeds: range) -> list[str]:
    """The documents whose Markdown shows other words."""
    sources = [html_documents.Document(seed).source for seed in seeds]
    return [
        source
        for source in sources
        if html_documents.shown_by_html(source)
        != html_documents.shown_by_markdown(engines.convert([source], engine)[0])
    ]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_markdown_of_random_html_shows_the_same_words(engine):
    assert unlike(engine, range(150)) == []


@pytest.mark.slow
def test_the_markdown_of_much_random_html_shows_the_same_words():
    assert unlike("fast", range(3000)) == []


EDGES = {  # HTML, and its Markdown
    "a break that ends bold": ("<p><strong>Note: <br></strong>Stir well.</p>", "**Note:**  \nStir well."),
    "two breaks around the end of bold": ("<p><strong>Note: <br></strong><br>Stir well.</p>", "**Note:**\n\nStir well."),
    "a break that begins bold": ("<p>so<b><br>Note</b> this</p>", "so  \n**Note** this"),
    "a break that begins a paragraph": ("<p><b><br>Note</b> this</p>", "**Note** this"),
    "bold with nothing in it": ("<p>a<b><br></b>b <i> </i>c</p>", "a  \nb c"),
    "an index in a link": ('<p><a href="https://e.org">f[0](x)</a></p>', "[f\\[0\\](x)](https://e.org)"),
    "brackets in pairs in a link": ('<p><a href="https://e.org">[1]</a></p>', "[[1]](https://e.org)"),
    "what becomes a link": ('<p><a href="">[x]</a>(y)</p>', "[x\\](y)"),
    "a heading that ends in a sharp": ("<h2>What is F #</h2>", "## What is F \\#"),
    "a heading that ends in a name": ("<h2>What is C#</h2>", "## What is C#"),
    "a tilde beside its mark": ("<p>about <del>10 ~</del> 20</p>", "about <del>10 ~</del> 20"),
    "stars beside their mark": ("<p>a <em>x **</em> b</p>", "a *x \\*\\** b"),
    "a backslash before a mark": ("<p><b>C:\\ </b>drive</p>", "**C:\\\\** drive"),
    "a comment as text": ("<p>&lt;!-- note <b>x</b> --&gt;</p>", "\\<!-- note **x** -->"),
    "bold that ends before an invisible space": ("<p><b>注：</b>\u200bx</p>", "<strong>注：</strong>\u200bx"),
    "bold in italics": ("<p><em>a <b>b</b> c</em>, <em>un<b>b</b>c</em></p>", "*a **b** c*, *un<strong>b</strong>c*"),
    "a list after text, and its quote": ("<ul><li>a<blockquote>q</blockquote></li><li>b</li></ul>", "- a\n\n  > q\n\n- b"),
    "a table in an item": ("<ul><li>a<table><tr><th>x</th></tr></table></li></ul>", "- a\n\n  | x |\n  | --- |"),
    "a rule in an item": ("<ul><li>a<hr>b</li></ul>", "- a\n\n  ---\n\n  b"),
    "a rule that begins an item": ("<ul><li><hr></li></ul>", "- \n  ---"),
}  # fmt: skip
TABLES = {
    "a cell over two rows": (
        "<table><tr><th>Day</th><th>Meal</th></tr><tr><td rowspan=2>Mon</td><td>soup</td></tr><tr><td>bread</td></tr>"
        "<tr><td>Tue</td><td>rice</td></tr></table>",
        "| Day | Meal |\n| --- | --- |\n| Mon | soup |\n|  | bread |\n| Tue | rice |",
    ),
    "a cell over two columns": (
        "<table><tr><th>a</th><th>b</th><th>c</th></tr><tr><td colspan=2>Sum</td><td>5</td></tr></table>",
        "| a | b | c |\n| --- | --- | --- |\n| Sum |  | 5 |",
    ),
    "a cell over both": (
        "<table><tr><th>a</th><th>b</th><th>c</th></tr><tr><td>1</td><td rowspan=2 colspan=2>x</td></tr><tr><td>2</td></tr>"
        "<tr><td>3</td><td>4</td><td>5</td></tr></table>",
        "| a | b | c |\n| --- | --- | --- |\n| 1 | x |  |\n| 2 |  |  |\n| 3 | 4 | 5 |",
    ),
    "two rows of heads": (
        "<table><tr><th rowspan=2>a</th><th colspan=2>b</th></tr><tr><th>c</th><th>d</th></tr></table>",
        "| a | b |  |\n| --- | --- | --- |\n|  | c | d |",
    ),
    "a caption": (
        "<table><caption>Tea &amp; <b>milk</b></caption><thead><tr><th>a</th></tr></thead><tr><td>1</td></tr></table>",
        "Tea & **milk**\n\n| a |\n| --- |\n| 1 |",
    ),
    "a caption without its end": ("<table><caption>Tea<tr><td>1</td></tr></table>", "Tea\n\n| 1 |\n| --- |"),
    "sides": (
        '<table><tr><th align="right">a</th><th>b</th><th style="text-align:center">c</th><th align=left>d</th></tr>'
        "<tr><td>1</td><td>2</td><td>3</td><td>4</td></tr></table>",
        "| a | b | c | d |\n| ---: | --- | :---: | :--- |\n| 1 | 2 | 3 | 4 |",
    ),
    "sides in a quote": (
        "<blockquote><table><tr><th align=right>a</th></tr><tr><td>1</td></tr></table></blockquote>", "> | a |\n> | ---: |\n> | 1 |",
    ),
}  # fmt: skip
LINES = {
    "an element for each line": "<pre><div>def f():</div><div>    return 1</div></pre>",
    "the same inside of code": "<pre><code><div>def f():</div>\n<div>    return 1</div></code></pre>",
    "an item for each line": "<pre><ol><li>def f():</li><li>    return 1</li></ol></pre>",
    "a row for each line": "<pre><table><tr><td></td><td>def f():</td></tr><tr><td></td><td>    return 1</td></tr></table></pre>",
    "a break after each line": "<pre><span class=line>def f():</span><br><span class=line>    return 1</span></pre>",
    "code for each line": "<pre><code>def f():</code><code>    return 1</code></pre>",
    "text around an element": "<pre>def f():<div>    return 1</div></pre>",
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", [*EDGES, *TABLES])
def test_marks_and_cells_are_where_a_reader_expects_them(name, engine):
    source, markdown = (EDGES | TABLES)[name]
    assert answer(source, engine) == markdown


@pytest.mark.parametrize("name", LINES)
def test_code_keeps_its_lines_however_the_page_marked_them(name):
    assert engines.convert([LINES[name]], "auto") == ["```\ndef f():\n    return 1\n```"]


def test_an_empty_line_of_code_is_kept_where_each_has_an_element():
    assert engines.convert(["<pre><div>a</div><div><br></div><div></div><div>b</div></pre>"], "auto") == [
        "```\na\n\n\nb\n```"
    ]


LISTS = (
    "<ul><li><p>a</p></li><li><p>b</p></li></ul>",
    "<ol><li><p><b>a</b>: b</p></li><li><p>c</p><ul><li><p>d</p></li></ul></li></ol>",
    "<ul><li>a<ul><li><p>b</p><p>c</p></li><li>d</li></ul></li><li>e</li></ul>",
    "<ul><li><p>a</p><p>b</p><ul><li>c<ul><li>d</li></ul></li><li>e</li></ul></li><li>f</li></ul>",
    "<ul><li>a<ul><li>b</li></ul>c</li><li>d</li></ul>",
    "<ul><li>a<ul><li>b</li></ul><ol><li>c</li></ol></li><li>d</li></ul>",
    "<ul><li><h3>a</h3>b</li><li>c</li></ul>",
    "<ul><li><blockquote>a</blockquote></li><li>b</li></ul>",
    "<ul><li>a<ol><li><hr></li></ol></li></ul>",
    "<ul><li><div>a</div><div>b</div></li><li>c</li></ul>",
)


def test_both_engines_write_the_same_text():
    sources = [*LISTS, *(made.html for made in html_corpus.answers(300, seed=8))]
    fast, reference = ([convert.to_markdown(source, engine) for source in sources] for engine in ENGINES)
    assert fast == reference
