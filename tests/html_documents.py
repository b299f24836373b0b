"""Random HTML documents full of Markdown's own marks, and the text that they and their Markdown show."""

import html
import random
import re
from html.parser import HTMLParser

from markdown_it import MarkdownIt

PIECES = (
    "word two Ünï 日本 7 10 * ** *** _ __ ~ ~~ ` `` \\ [ ] [0] [x] (y) ](z) [l](u) ! !! # ## #x x# - -- --- + = === 1. 2) > < <b <p> "
    "</i> <!-- & &amp; &lt; &copy; | a|b || : :: https://e.org/a_b. www.e.org e@e.org $ $x$ \\( \\[ {x} \" ' ~x~ a*b 2*3*4 _a_ a_b_c *a* **a** `c` "
    "C# F# x^2 [^1] [a]: [x]: <a@e.org> <https://e.org> \\* \\\\ \u200b … “q” — 。 、「 」"
).split(" ")
BREAKS = (
    "p",
    "div",
    "h1",
    "h2",
    "h3",
    "li",
    "ul",
    "ol",
    "blockquote",
    "table",
    "tr",
    "td",
    "th",
    "pre",
    "br",
    "hr",
    "caption",
)


class Document:
    """One document of a seed."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        source = "".join(self.block(0) for _ in range(self.dice.randint(1, 4)))
        # Two spans of code are never side by side: in Markdown, a space must stand between them.
        self.source = re.sub(r"</code>(?=(?:<(?!/pre)[^>]*>)*<code>)", "</code>,", source)

    def text(self) -> str:
        made = self.dice.choice(("", " ")).join(self.dice.choices(PIECES, k=self.dice.randint(1, 4)))
        made = self.dice.choice(("", "", "", " ")) + made + self.dice.choice(("", "", "", " "))
        return html.escape(made, quote=False)

    def inline(self, depth: int = 0) -> str:
        return "".join(self.span(depth) for _ in range(self.dice.randint(1, 4)))

    def span(self, depth: int) -> str:
        kind = self.dice.random()
        if kind < 0.5 or depth > 2:
            return self.text()
        if kind < 0.75:
            tag = self.dice.choice(("strong", "em", "b", "i", "del", "sup", "span"))
            return f"<{tag}>{self.inline(depth + 1)}</{tag}>"
        if kind < 0.83:
            return self.dice.choice(("<br>", "<br/>\n"))
        if kind < 0.92:
            return f"<code>{html.escape(self.dice.choice(PIECES), quote=False)}</code>"
        address = self.dice.choice(("https://e.org/a_(b*c)", "/x y", "#", "https://e.org", ""))
        return f'<a href="{address}">{re.sub("</?a( [^>]*)?>", " ", self.inline(depth + 1))}</a>'  # no link in a link

    def block(self, depth: int) -> str:
        kind = self.dice.choice(("p", "p", "p", "h", "list", "list", "quote", "table", "pre", "div", "hr", "text"))
        if kind == "h":
            level = self.dice.randint(1, 3)
            return f"<h{level}>{self.inline()}</h{level}>"
        if kind == "pre":
            return f"<pre><code>{self.text()}\n{self.text()}\n</code></pre>"
        if kind == "hr":
            return "<hr>"
        if kind == "table":
            return self.table()
        if kind == "text" and depth:
            return self.inline()
        if kind == "p" or depth > 2:
            return f"<p>{self.inline()}</p>"
        between = self.dice.choice(("", "\n"))
        if kind == "list":
            tag = self.dice.choice(("ul", "ol"))
            return (
                f"<{tag}>{between}"
                + between.join(f"<li>{self.item(depth)}</li>" for _ in range(self.dice.randint(1, 3)))
                + f"</{tag}>"
            )
        tag = "blockquote" if kind == "quote" else "div"
        return f"<{tag}>{between.join(self.block(depth + 1) for _ in range(self.dice.randint(1, 3)))}</{tag}>"

    def item(self, depth: int) -> str:
        start = self.inline() if self.dice.random() < 0.6 else ""
        return start + "".join(self.block(depth + 1) for _ in range(self.dice.randint(0 if start else 1, 2)))

    def table(self) -> str:
        columns = self.dice.randint(1, 3)
        rows = [[self.inline() for _ in range(columns)] for _ in range(self.dice.randint(1, 3))]
        made = [
            "".join(f"<{tag}>{cell}</{tag}>" for cell in row)
            for row, tag in zip(rows, ("th", "td", "td"), strict=False)
        ]
        return "<table>" + "".join(f"<tr>{row}</tr>" for row in made) + "</table>"


class Shown(HTMLParser):
    """The words that a browser shows."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self.feed(source)
        self.close()

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in BREAKS:
            self.pieces.append("\n")


def shown_by_html(source: str) -> list[str]:
    """The words of a document, as a browser shows them."""
    return "".join(Shown(source).pieces).split()


def shown_by_markdown(markdown: str) -> list[str]:
    """The words of its Markdown, as a parser (CommonMark with tables and strikethrough) shows them."""
    pieces = []
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown):
        if token.type == "inline":
            for child in token.children or ():
                if child.type in ("text", "code_inline", "text_special"):
                    pieces.append(child.content)
                elif child.type in ("softbreak", "hardbreak") or child.content.startswith("<br"):
                    pieces.append("\n")
        else:
            pieces += ["\n", token.content]
    return "".join(pieces).split()
