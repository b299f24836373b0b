"""The report as one page that works from disk: the first lines, charts, tables, and every question to be read.

Nothing on it comes from a network, and nothing that was judged is ever more than text: Python escapes what it writes
into the page, the script shows texts by `textContent` alone, and a content security policy allows nothing except the
page's own script and style, each by its hash.
"""

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from vtools import plots
from vtools.process import Failure
from vtools.records import jsonl
from vtools.report import charts, headline, page_data, wording
from vtools.report.listings import Listing, listings
from vtools.report.page_data import visible
from vtools.report.reading import Known
from vtools.report.units import Judgments, Rule

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
NAME = 200  # characters of a name in a table
NO_ANSWERS = (
    "<p class=note>The judgments do not hold the answers; name their files with <code>--answers FILE</code> to read "
    "them here.</p>"
)
Table = dict[str, Any]


def page(found: dict[str, Any], judgments: Judgments, known: Known, rule: Rule) -> bytes:
    """The page in UTF-8."""
    style, script = (Path(__file__).with_name(name).read_text() for name in ("page.css", "page.js"))
    first, second = (_text(line, 4 * NAME) for line in headline.lines(found))
    # `<` never stands in the data, so that no text can end the element.
    data = jsonl.dumps(page_data.build(judgments, known, rule)).decode().replace("<", "\\u003c")
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; base-uri 'none'; form-action 'none'"
    )
    body = [f"<header><h1>{first}</h1><p class=lead>{second}</p></header>", *_sections(found), _questions(known)]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta name="color-scheme" content="light dark">
<title>{first}</title>
<style>{style}</style>
</head>
<body>
{chr(10).join(body)}
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
""".encode()


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def _text(words: object, most: int = NAME) -> str:
    """Words from outside as text of the page, cut where they are absurdly long."""
    text = visible(str(words))
    return escape(text if len(text) <= most else text[:most] + "…")


def _name(name: str) -> str:
    return f"<bdi>{_text(name)}</bdi>"


def _sections(found: dict[str, Any]) -> Iterable[str]:
    tables = wording.ordered(found)
    if len(tables) > 1:
        yield _section("All pairs of models", _overview(tables))
    if len(tables) == 1:
        yield _pair(tables[0], alone=True)
    tables_of_models = list(listings(found))
    if tables_of_models:
        yield _section("Models and judges", *map(_listing, tables_of_models))
    yield _section("Charts", _charts(found))
    if len(tables) > 1:
        yield _section("Each pair of models", *(_pair(table, alone=False) for table in tables))


def _section(title: str, *parts: str) -> str:
    return f"<section><h2>{title}</h2>{''.join(parts)}</section>"


def _charts(found: dict[str, Any]) -> str:
    try:
        drawn = charts.charts(found)
    except Failure as failure:
        return f"<p>{_text(failure)}.</p>"
    return "".join(f"<figure>{_svg(plots.picture('page.svg', chart), chart.title)}</figure>" for chart in drawn)


def _svg(picture: bytes, title: str) -> str:
    """A chart as an element of the page: its styles as attributes, which the policy allows and the page's own style may
    replace where the page is dark.
    """
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(picture)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{{{SVG}}}metadata" or child.find(f"{{{SVG}}}style") is not None:
                parent.remove(child)
    linked = set(re.findall(rb"url\(#(\w+)\)|href=\"#(\w+)\"", picture))
    linked = {name.decode() for pair in linked for name in pair if name}
    for element in root.iter():
        for rule in filter(None, (element.attrib.pop("style", "")).split(";")):
            name, _, value = rule.partition(":")
            if name.strip() != "font-family":
                element.set(name.strip(), value.strip())
        if element.get("fill") == "#ffffff" and element.tag == f"{{{SVG}}}path":
            element.set("fill", "none")  # the white of the figure
        if element.get("id") not in linked:
            element.attrib.pop("id", None)
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.set("role", "img")
    root.set("aria-label", " ".join(visible(title).split()))
    return ElementTree.tostring(root, "unicode")


def _grid(heads: Sequence[str], rows: Iterable[Sequence[str]], names: int = 1) -> str:
    """A table; the cells, which are HTML, are names in the first columns and numbers in the others."""
    classes = ["name" if number < names else "number" for number in range(len(heads))]
    head = "".join(f"<th scope=col class={kind}>{each}</th>" for kind, each in zip(classes, heads, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td class={kind}>{cell}</td>" for kind, cell in zip(classes, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _overview(tables: list[Table]) -> str:
    rows = []
    for table in tables:
        rate, ends = table["win_rate"], table["win_rate_ci"]
        judge = "all judges" if "judges" in table else _name(table["judge"])
        shown = ["-" if rate is None else f"{rate:.1%}", "-" if ends is None else headline.percents(ends)]
        names = [_name(table["a"]), _name(table["b"]), judge]
        rows.append([*names, str(table["n"]), *shown, wording.sure(table), _bar(table)])
    heads = ["A", "B", "judge", "questions", "B’s win rate", "95 %", "better", "B wins, ties, A wins"]
    return _grid(heads, rows, names=3)


def _bar(row: Table) -> str:
    """B's wins, ties and A's wins as one bar."""
    if not row["n"]:
        return ""
    left, parts = 0.0, []
    for kind, count in (("b", row["b_wins"]), ("tie", row["ties"]), ("a", row["a_wins"])):
        width = 100 * count / row["n"]
        parts.append(f'<rect class="{kind}" x="{left:.2f}" y="0" width="{width:.2f}" height="10"/>')
        left += width
    said = f"B wins {row['b_wins']}, ties {row['ties']}, A wins {row['a_wins']}"
    return (
        f'<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label="{said}">'
        f"<title>{said}</title>{''.join(parts)}</svg>"
    )


def _pair(table: Table, alone: bool) -> str:
    title = f"B: {_name(table['b'])} against A: {_name(table['a'])}"
    parts = [f"<p class=who>{_text(wording.who(table), 2000)}</p>"]
    parts += [f"<p class=warning>{_text(warning, 2000)}</p>" for warning in table["warnings"]]
    measures = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in wording.rows(table))
    parts.append(f"<dl>{measures}</dl>")
    if table["categories"]:
        rows = []
        for name, row in table["categories"].items():
            ratio = "-" if row["score_ratio"] is None else f"{row['score_ratio']:.2f}"
            counts = [str(row[key]) for key in ("n", "b_wins", "ties", "a_wins")]
            rows.append([_name(name), _bar(row), *counts, ratio])
        heads = ["category", "B wins, ties, A wins", "questions", "B wins", "ties", "A wins", "score B/A"]
        parts.append(_grid(heads, rows))
    if alone:
        return _section(title, *parts)
    judge = "all judges" if "judges" in table else _name(table["judge"])
    return f"<details class=pair><summary>{title}, by {judge}</summary>{''.join(parts)}</details>"


def _listing(listing: Listing) -> str:
    rows = [[_name(cell) for cell in row] for row in listing.rows]
    title = f"<h3>{'<br>'.join(map(_text, listing.title.split(chr(10))))}</h3>" if listing.title else ""
    return title + _grid([_name(head) for head in listing.heads], rows, listing.names)


def _questions(known: Known) -> str:
    missing = "" if known.answers else NO_ANSWERS
    return f"""<section id="questions">
<h2>Questions</h2>
{missing}<noscript><p class=note>The list of questions needs JavaScript; nothing else on this page does.</p></noscript>
<form id="filters" role="search">
<label>Text <input id="text" type="search" autocomplete="off" placeholder="in questions, answers, the judge’s words">
</label>
<label>Category <select id="category"></select></label>
<label>Models <select id="model"></select></label>
<label>Verdict <select id="verdict"></select></label>
<label>Agreement <select id="agreement"></select></label>
<label>Order <select id="order"></select></label>
<p><output id="count"></output> <button type="reset">Clear the filters</button></p>
</form>
<ol id="list"></ol>
<p><button id="more" type="button" hidden>Show more</button></p>
</section>"""
