"""vtools clean: what is HTML of the page, and what is Markdown or code that somebody wrote."""

import html_corpus
import pytest
from cleaning import ENGINES, answer, cleaned

from vtools.clean.html import convert

MARKDOWN = {
    "a centred title": '<h1 align="center">kettle</h1>\n\n**Small** and *quiet*. See [notes](https://example.org/n).\n\n## Use\n\n- `kettle on`\n',
    "a logo": '<p align="center"><img src="kettle.svg" width="90"></p>\n\n# kettle\n\n1. Fill\n2. Boil\n\n    kettle --boil\n',
    "a rule": "<hr>\n\n- water\n- leaves\n  - green\n",
    "a rule and a line": "<hr/>\n- water\n- leaves",
    "a table of tags, then text": "<table><tr><td>7</td></tr></table>\n\nAnd **then** this:\n\n- x\n- y\n",
    "a plain title, then text": "<h1>Kettle</h1>\n\nIt boils water.\n\nThat is all.",
    "a plain title, then bold": "<h1>Kettle</h1>\n\n<b>Warning:</b> it is hot.",
    "a plain title, then a table": "<h2>Times</h2>\n\n| tea | minutes |\n|---|---|\n| green | 2 |\n",
    "Markdown inside a block": "<div>\n\n# Kettle\n\n- boils\n\n</div>",
    "a quote, then text": "<blockquote>Slowly.</blockquote>\n\nSo it is said.",
    "blocks, then a list": "<p>Tea.</p>\n<p>More tea.</p>\n  \n1. Fill\n2. Boil",
    "text before a table": "<h3>Tea</h3>\nThese are the times:\n<table><tr><td>2</td></tr></table>",
}
CODE = {
    "a page": '<div class="container">\n<h1>Tea</h1>\n<p>Leaves and water.</p>\n</div>',
    "a bare list, indented": "<ul>\n  <li>Green</li>\n  <li>Black</li>\n</ul>",
    "blocks, indented by a tab": "<section>\n\t<h2>Tea</h2>\n</section>",
    "a form": '<div><form action="/tea"><label for="n">Cups</label><input id="n"></form></div>',
    "a style": '<h2 style="color: green">Tea</h2>',
    "a style of a text": '<p>A <span style="font-weight:bold">hot</span> cup</p>',
    "a script": "<div></div>\n<script>brew(3);</script>",
    "an event": '<p>Press <a href="#" onclick="brew()">here</a></p>',
    "a button": "<div><button>Brew</button></div>",
    "an identity": '<div id="app"></div>\n<p>Tea</p>',
    "a table of widths": '<table width="100%" cellpadding="0"><tr><td>Tea</td></tr></table>',
    "JSX": '<div className="tea">\n<p>Hot</p>\n</div>',
    "JSX, a loop": "<ul>{teas.map(tea => <Tea key={tea.id} name={tea.name} />)}</ul>",
    "JSX, a name": "<div><h1>{title}</h1></div>",
    "an own element": "<div><tea-pot></tea-pot></div>",
    "a mail": "<p>Dear {{ first_name }},</p>\n<p>Your tea is ready.</p>",
    "a loop of a template": "<ul>{% for tea in teas %}<li>{{ tea }}</li>{% endfor %}</ul>",
    "a PHP page": "<h1>Tea</h1>\n<p><?php echo $tea; ?></p>",
}
PAGES = {  # a message, and its Markdown
    "bare blocks with line ends between": ("<p>one</p>\n<p>two\nlines</p>\n\n<ul>\n<li>a</li>\n</ul>", "one\n\ntwo lines\n\n- a"),
    "code that holds a template, then text in the same item": (
        "<ul>\n<li>so<pre><code>{{ name }}\n\n# x\n  &lt;p>y&lt;/p>\n</code></pre>\nafter</li>\n</ul>",
        "- so\n\n  ```\n  {{ name }}\n\n  # x\n    <p>y</p>\n  ```\n\n  after",
    ),
    "the page's own block, whatever it holds": (
        '<div class="markdown prose w-full"><p>one</p><button class="x" onclick="y">Copy</button></div>', "one",
    ),
    "code without classes": ("<p>one</p><pre><div><button>Copy code</button></div><code>x</code></pre>", "one\n\n```\nx\n```"),
    "positions in the source": ('<p data-start="0" data-end="3">one</p>', "one"),
    "text right after a block": ("<p>one</p>and <em>two</em>", "one\n\nand *two*"),
    "a formula as text": ("<p>it is x_{{ij}}</p>", "it is x_{{ij}}"),
}  # fmt: skip


@pytest.mark.parametrize("name", MARKDOWN)
def test_markdown_that_begins_with_a_tag_is_kept_byte_for_byte(name):
    assert cleaned("A question long enough?", MARKDOWN[name])[1] == MARKDOWN[name]


@pytest.mark.parametrize("name", CODE)
def test_html_that_is_the_answer_is_kept_byte_for_byte(name):
    assert cleaned("A question long enough?", CODE[name])[1] == CODE[name]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", PAGES)
def test_what_the_page_had_is_converted(name, engine):
    source, markdown = PAGES[name]
    assert answer(source, engine) == markdown


def test_answers_of_every_era_are_recognised():
    assert all(convert.looks_like_html(made.html) for made in html_corpus.answers(500, seed=3))
