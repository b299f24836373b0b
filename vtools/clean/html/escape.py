"""Escaping of text, code and addresses so that a Markdown parser reads them back unchanged; no more than needed."""

import re

from vtools.clean.html.emphasis import is_word

_BACKTICKS = re.compile("`+")
# What CommonMark or GFM reads as markup inside a line: backslash escapes, code, tags, entities, links, strikethrough.
_MARKUP = re.compile(
    r"\\(?=[!-/:-@\[-`{-~]|\Z)|`|<(?=[a-zA-Z/!?][^<>]*>|!(?:--|[a-zA-Z\[])|\?)|&(?=#?\w{1,31};)|\](?=[(\[:])|~(?=~)|(?<=~)~"
)
_SUSPECT = re.compile(r"[\\`<&\]~]")  # a plain character set is much faster to search for
_LINE_START = re.compile(
    r"(?P<number>\d{1,9})(?=[.)](?:\s|\Z))|<(?=[a-zA-Z/!?])|(?:\#{1,6}|[-+*])(?=\s|\Z)|>|[=]+\s*\Z|-+\s*\Z|(?:[-*_]\s*){3,}\Z",
    re.ASCII,
)
_BRACKET = re.compile(r"\\.|[\[\]]", re.DOTALL)  # an escaped character, or a bracket
_HEADING_END = re.compile(r"(?<!\S)#+(?=\s*\Z)")
_EDGE = "\x07"


def text(text: str) -> str:
    """Escape what would be markup anywhere in a line, except emphasis."""
    return _MARKUP.sub(r"\\\g<0>", text) if _SUSPECT.search(text) else text


def brackets(text: str) -> str:
    """Escape all brackets unless they are in pairs, for the text of a link."""
    depth = 0
    for bracket in _BRACKET.findall(text):
        depth += {"[": 1, "]": -1}.get(bracket, 0)
        if depth < 0:
            break
    return _BRACKET.sub(lambda found: found[0] if len(found[0]) > 1 else "\\" + found[0], text) if depth else text


def line_end(text: str) -> str:
    """Escape a backslash at the end, which would escape what follows."""
    return text + "\\" if (len(text) - len(text.rstrip("\\"))) % 2 else text


def heading_end(text: str) -> str:
    """Escape what a parser would take for the end of a heading's line."""
    return _HEADING_END.sub(r"\\\g<0>", text)


def line_start(text: str) -> str:
    """Escape what would start a list, heading, quote, rule or heading underline at the start of a line."""
    match = _LINE_START.match(text)
    if match is None:
        return text
    return f"{match['number']}\\{text[match.end() :]}" if match["number"] else "\\" + text


def emphasis(texts: list[str], beside_emphasis: bool) -> list[str]:
    """Escape the * and _ of one block's texts if a parser would pair them, or if the block has real emphasis."""
    whole = _EDGE.join(texts)  # what line_start escaped is at the start or after an edge
    if beside_emphasis:
        whole = _EDGE + whole + _EDGE
    for mark, always in (("*", beside_emphasis), ("_", False)):
        runs = [run for run in re.finditer(rf"(?<!\A\\)(?<!{_EDGE}\\)\{mark}+", whole) if any(_roles(run, whole))]
        opened = needed = False
        for run in runs:
            opens, closes = _roles(run, whole)
            needed = needed or (opened and closes)
            opened = opened or opens
        if needed or (always and runs):
            pieces, end = [], 0
            for run in runs:
                pieces += [whole[end : run.start()], f"\\{mark}" * len(run[0])]
                end = run.end()
            whole = "".join([*pieces, whole[end:]])
    return whole.split(_EDGE)[1:-1] if beside_emphasis else whole.split(_EDGE)


def _roles(run: re.Match[str], text: str) -> tuple[bool, bool]:
    """Whether a run of * or _ can open and can close emphasis (CommonMark 0.31, 6.2)."""
    before = text[run.start() - 1] if run.start() else " "
    after = text[run.end()] if run.end() < len(text) else " "
    left = not after.isspace() and (is_word(after) or not before.isalnum())
    right = not before.isspace() and (is_word(before) or not after.isalnum())
    if run[0][0] == "*":
        return left, right
    return left and (not right or not before.isalnum()), right and (not left or not after.isalnum())


def _longest(text: str) -> int:
    return max(map(len, _BACKTICKS.findall(text))) if "`" in text else 0


def code(body: str) -> str:
    """A code span; empty for an empty body."""
    body = body.replace("\r", "").replace("\n", " ")
    if not body:
        return ""
    marks = "`" * (_longest(body) + 1)
    pad = body[0] == "`" or body[-1] == "`" or (body[0] == body[-1] == " " and body.strip(" "))
    return f"{marks} {body} {marks}" if pad else f"{marks}{body}{marks}"


def fence(body: str, language: str) -> str:
    """A fenced block, its fence longer than any run of backticks inside."""
    marks = "`" * max(3, _longest(body) + 1)
    return f"{marks}{language}\n{body}\n{marks}"


def address(address: str) -> str:
    """A link's target, escaped so that a parser reads all of it."""
    return re.sub(r"[\s<>()]", lambda match: f"%{ord(match[0]):02X}" if ord(match[0]) < 128 else "", address.strip())
