"""ShareGPT-like HTML with a known truth: conversations are made up, rendered as four eras of the site wrote them, and
what must be found again in the Markdown is kept beside them."""

import html
import random
import re
from dataclasses import dataclass, field

WORDS = (
    "river amber quietly seven lantern why moss 42 snake_case of the a copper 3.14 don't naïve Straße 日本語 中文 5*3 x_1 "
    "a<b AT&T C++ #tag 100% [sic] (maybe) vector<int> _private __init__ f(*args) 2*3*4 e.g. \\d+ `tick $5 ~home &lt; "
    "i|j — “quoted” https://example.org/a_b_c user@example.org"
).split()
LINE_STARTS = ["1. not a list", "- nor this", "# no heading", "> no quote", "+ plus", "--- dashes", "2) two", "* star"]
LANGUAGES = ["python", "c++", "bash", "", "objective-c", "html"]
CODE_LINES = [
    "def f(a_b, *args):", "    return a_b ** 2", "", "", "\tif (x < 3 && y > 2) {", "<div class=\"x\">&amp;</div>",
    "```", "print('Copy code')", "   ", "# comment_with_underscores", "1. not a list", "s = \"\"\"`a` ``b``\"\"\"", "\\n*x*", "2 / 3",
]  # fmt: skip
CODE_SPANS = ["my_var", "a`b", "x || y", "``", "<br>", "List<String>", " padded ", "f(*a)", "&nbsp;", "a\\", "$x$"]
MATH = ["x^2", "a_1 < b_{2} * c_3", r"\frac{1}{2}", r"|x| \le \{y\}", r"E = mc^2", r"\text{a & b}"]
KATEX = (
    '<span class="katex"><span class="katex-mathml"><math xmlns="http://www.w3.org/1998/Math/MathML"><semantics><mrow>'
    '<mi>X</mi></mrow><annotation encoding="application/x-tex">{}</annotation></semantics></math></span>'
    '<span class="katex-html" aria-hidden="true"><span class="base"><span class="strut"></span>'
    '<span class="mord mathnormal">X</span></span></span></span>'
)
ERAS = ("extension", "sanitised", "late-2023", "raw")


@dataclass
class Truth:
    """What the Markdown of one answer must hold, each in the order of the document."""

    code: list[tuple[str, str]] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    spans: list[str] = field(default_factory=list)
    math: list[str] = field(default_factory=list)
    items: list[tuple[int, str, str]] = field(default_factory=list)
    paragraphs: list[str] = field(default_factory=list)


class Answer:
    """One answer of an era: `html`, and its `truth`."""

    def __init__(self, dice: random.Random, era: str) -> None:
        self.dice, self.era, self.truth = dice, era, Truth()
        body = "".join(self.block() for _ in range(dice.randint(1, 8)))
        if era == "sanitised":
            body = f"<div><div>{body}</div></div>"
        elif era == "late-2023":
            pager = (
                '<div class="flex"><button><svg></svg></button><span class="flex-grow flex-shrink-0">1 / 2</span></div>'
            )
            body = f'<div class="markdown prose w-full break-words dark:prose-invert light">{body}{pager}</div>'
        else:
            body = f'<div class="markdown prose w-full break-words dark:prose-invert light"><p></p>{body}</div>'
        self.html = body

    def text(self, count: int | None = None) -> str:
        return " ".join(self.dice.choices(WORDS, k=count or self.dice.randint(1, 14)))

    def inline(self) -> tuple[str, str]:
        """Some prose: its HTML, and its text as a Markdown parser should give it back."""
        sources, texts = [], []
        for _ in range(self.dice.randint(1, 4)):
            kind = self.dice.random()
            if kind < 0.55:
                text = self.text()
                sources.append(html.escape(text, quote=False))
            elif kind < 0.75:
                text = self.dice.choice(CODE_SPANS)
                self.truth.spans.append(text)
                sources.append(f"<code>{html.escape(text, quote=False)}</code>")
            elif kind < 0.85:
                text = self.text(2)
                tag = self.dice.choice(["strong", "em"])
                sources.append(f"<{tag}>{html.escape(text, quote=False)}</{tag}>")
            elif kind < 0.93 and self.era != "sanitised":
                tex = f"{self.dice.choice(MATH)}_{{{len(self.truth.math)}}}"
                self.truth.math.append(tex)
                text = f"MATH{len(self.truth.math)}."
                sources.append(KATEX.format(html.escape(tex, quote=False)))
            else:
                text = self.text(2).replace("[sic]", "sic")
                sources.append(
                    f'<a href="https://example.org/a_(b*c)?q=1&amp;r=*2" target="_new">{html.escape(text, quote=False)}</a>'
                )
            texts.append(text)
        return " ".join(sources), " ".join(texts)

    def block(self) -> str:
        return self.dice.choice([self.paragraph, self.paragraph, self.code, self.list, self.table, self.heading])()

    def paragraph(self) -> str:
        if self.dice.random() < 0.1:
            text = self.dice.choice(LINE_STARTS)
            source = html.escape(text, quote=False)
        else:
            source, text = self.inline()
        self.truth.paragraphs.append(text)
        return f"<p>{source}</p>"

    def heading(self) -> str:
        level = self.dice.randint(1, 4)
        return f"<h{level}>{html.escape(self.text(3), quote=False)}</h{level}>"

    def code(self) -> str:
        language = self.dice.choice(LANGUAGES)
        body = "\n".join(["first = 1", *self.dice.choices(CODE_LINES, k=self.dice.randint(0, 8))])
        self.truth.code.append((language, body))
        escaped = re.sub(
            r"\b(def|return|if)\b", r'<span class="hljs-keyword">\1</span>', html.escape(body, quote=False)
        )
        label = f"<span>{language}</span>" if language else ""
        name = f" language-{language}" if language else ""
        if self.era == "sanitised":
            plain = html.escape(body, quote=False)
            return f"<pre><div><div>{label}Copy code</div><div><code>{plain}\n</code></div></div></pre>"
        if self.era == "late-2023":
            return (
                f'<pre><div class="bg-black rounded-md"><div class="flex items-center">{label}<span class="" data-state='
                f'"closed"><button class="flex gap-1"><svg width="24"><path d="M1 1"></path></svg>Copy code</button></span>'
                f'</div><div class="p-4 overflow-y-auto"><code class="!whitespace-pre hljs{name}">{escaped}\n</code></div></div></pre>'
            )
        return (
            f'<pre><div class="bg-black mb-4"><div class="flex items-center">{label}<button class="flex ml-auto">'
            f'<svg stroke="currentColor"><path d="M1"></path></svg>Copy code</button></div><div class="p-4"><code '
            f'class="!whitespace-pre-wrap hljs{name}">{escaped}\n</code></div></div></pre>'
        )

    def list(self, depth: int = 0) -> str:
        tag = self.dice.choice(["ul", "ol"])
        loose = self.dice.random() < 0.3
        items = []
        for _ in range(self.dice.randint(1, 4)):
            place = len(self.truth.items)
            source, text = self.inline()
            self.truth.items.insert(place, (depth, tag, text))
            inner = f"<p>{source}</p>" if loose else source
            if loose and self.dice.random() < 0.3:
                inner += self.code()
            if depth < 3 and self.dice.random() < 0.25:
                inner += "\n" + self.list(depth + 1)
            items.append(f"<li>{inner}</li>")
        return f"<{tag}>\n" + "\n".join(items) + f"\n</{tag}>"

    def table(self) -> str:
        columns = self.dice.randint(1, 4)
        rows = []
        for row in range(self.dice.randint(2, 4)):
            cells = [self.inline() for _ in range(columns)]
            self.truth.rows.append([text for _, text in cells])
            tag = "td" if row else "th"
            rows.append("<tr>" + "".join(f"<{tag}>{source}</{tag}>" for source, _ in cells) + "</tr>")
        return f"<table><thead>{rows[0]}</thead><tbody>{''.join(rows[1:])}</tbody></table>"


def answers(count: int, seed: int) -> list[Answer]:
    """Answers of the three eras that wrote HTML."""
    dice = random.Random(seed)
    return [Answer(dice, dice.choice(ERAS[:3])) for _ in range(count)]


def found(markdown: str, math: list[str]) -> Truth:
    """What a Markdown parser (CommonMark with tables, HTML on) finds in a text; math is read as `$tex$`."""
    from markdown_it import MarkdownIt

    truth = Truth()
    for tex in math:
        for written in (f"${tex}$", f"${tex}$".replace("|", "\\|")):
            if written in markdown:
                truth.math.append(tex)
                markdown = markdown.replace(written, f"MATH{len(truth.math)}.", 1)
                break
    depth, kinds, wanted, row = -1, [], False, None
    for token in MarkdownIt("commonmark").enable("table").parse(markdown):
        if token.type == "fence":
            truth.code.append((token.info, token.content.removesuffix("\n")))
        elif token.type.endswith("_list_open"):
            depth += 1
            kinds.append("ul" if token.type.startswith("bullet") else "ol")
            wanted = False
        elif token.type.endswith("_list_close"):
            depth -= 1
            kinds.pop()
        elif token.type == "list_item_open":
            wanted = True
        elif token.type == "tr_open":
            row = []
        elif token.type == "tr_close":
            truth.rows.append(row)
            row = None
        elif token.type == "heading_open":
            wanted = None
        elif token.type == "inline":
            text = "".join(
                {"softbreak": " ", "hardbreak": "\n"}.get(child.type, child.content) for child in token.children
            )
            truth.spans += [child.content for child in token.children if child.type == "code_inline"]
            if row is not None:
                row.append(text)
            elif wanted:
                truth.items.append((depth, kinds[-1], text))
                wanted = False
            elif wanted is False and depth < 0:
                truth.paragraphs.append(text)
            if wanted is None:
                wanted = False
    return truth
